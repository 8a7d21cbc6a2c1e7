"""Sentence vectors: views, loss and scores worked by hand, runs, bad input."""

import math

import pytest
import torch
from _tiny_objective import assert_resumes_exactly, logged_losses, run_of, values
from conftest import sentences, write_csv

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives.contrastive import (
    Contrastive,
    ViewCollator,
    contrastive_loss,
    neighbours_agree,
    uniformity,
)


@pytest.fixture
def given(tiny_bert, tmp_path):
    rows = [
        {**row, "same": " ".join(reversed(row["text"].split())), "alike": i % 5}
        for i, row in enumerate(sentences(90))
    ]
    data = write_csv(tmp_path / "rows.csv", rows)
    made = values({"name": str(tiny_bert)}, data, {"name": "contrastive"}, tmp_path / "out")
    return {**made, "trainer": {**made["trainer"], "per_device_train_batch_size": 8}}


def test_a_batch_is_both_views_one_above_the_other():
    rows = [{"input_ids": [2, 7, 3], "pair_ids": [2, 3]}, {"input_ids": [2, 8, 9, 3], "pair_ids": [2, 5, 3]}]
    batch = ViewCollator(0)(rows)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0], [2, 8, 9, 3], [2, 3, 0, 0], [2, 5, 3, 0]]
    assert batch["labels"].tolist() == [[3, 4], [2, 3]]
    alone = ViewCollator(0)([{"input_ids": [2, 7, 3]}])
    assert alone["input_ids"].tolist() == [[2, 7, 3]] * 2


def test_the_loss_of_two_rows_by_hand():
    # means over attended tokens: (1, 0), (0, 1); second views (1, 0), (1, 1) of length sqrt 2
    states = torch.tensor(
        [
            [[1.0, 0.0], [9.0, 9.0]],
            [[0.0, 2.0], [0.0, 0.0]],
            [[3.0, 0.0], [3.0, 0.0]],
            [[1.0, 1.0], [5.0, 0.0]],
        ]
    )
    labels = torch.tensor([[1, 1], [2, 1]])
    half = math.sqrt(0.5)
    first = math.log(math.exp(2 * 1) + math.exp(2 * half)) - 2 * 1
    second = math.log(math.exp(0) + math.exp(2 * half)) - 2 * half
    found = contrastive_loss({"last_hidden_state": states}, labels, temperature=0.5)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-5)
    found = contrastive_loss({"last_hidden_state": states}, labels, torch.tensor(8), temperature=0.5)
    assert found.item() == pytest.approx((first + second) / 4, rel=1e-5)  # half of a step of four rows


def test_neighbours_and_uniformity_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    assert neighbours_agree(vectors, ["a", "a", "b", "b"]) == [True] * 4
    assert neighbours_agree(vectors, ["a", "b", "a", "b"]) == [False] * 4
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-2 * 4)  # |x − y|² = 4


def test_a_run_learns_from_dropout_and_is_judged_by_neighbours(given):
    task = {**given["task"], "label": "label"}
    trainer = {**given["trainer"], "max_steps": 30, "eval_strategy": "steps", "eval_steps": 30}
    done = run_of(given, task=task, trainer=trainer)
    before, after = done.metrics["before"], done.metrics["test"]
    assert after["loss"] < before["loss"]
    assert 0 <= after["knn_accuracy"] <= 1
    assert after["majority_baseline"] < 0.6
    assert '"eval_loss"' in (done.path / "log.jsonl").read_text()
    from hf_llm_recipes.predictor import Predictor

    vector = Predictor.load(done.path).predict(["the ball"])[0]["vector"]
    assert len(vector) == 32
    assert math.fsum(v * v for v in vector) == pytest.approx(1, rel=1e-5)
    assert "AutoModel.from_pretrained" in (done.path / "README.md").read_text()


def test_pairs_are_learned_through_lora_and_judged_by_their_score(given):
    task = {**given["task"], "text_pair": "same", "score": "alike"}
    done = run_of(given, task=task, tuning={"name": "lora", "r": 4})
    assert -1 <= done.metrics["test"]["spearman"] <= 1
    assert "spearman" in done.metrics["test"]["intervals_95"]


def test_two_batches_of_a_step_are_the_mean_of_both(given, tmp_path):
    trainer = {**given["trainer"], "max_steps": 1, "train_sampling_strategy": "sequential"}
    task = {**given["task"], "text_pair": "same"}
    model = {"architecture": "hlr_encoder", "tokenizer": given["model"]["name"]}
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    dropout = {"hidden_dropout_prob": 0.0, "attention_dropout_prob": 0.0}
    base = {**given, "task": task, "model": {**model, "config": {**shape, **dropout}}}
    whole = run_of(base, output=str(tmp_path / "a"), trainer={**trainer, "gradient_accumulation_steps": 2})
    # without a learning rate the second step sees the model of the first
    steps = {**trainer, "max_steps": 2, "learning_rate": 0.0}
    parts = run_of(base, output=str(tmp_path / "b"), trainer=steps)
    assert logged_losses(whole.path)[0] == pytest.approx(sum(logged_losses(parts.path)) / 2, rel=1e-5)


def test_a_killed_run_goes_on_to_the_same_bits(given, tmp_path, monkeypatch):
    given = {**given, "trainer": {**given["trainer"], "per_device_train_batch_size": 20}}
    assert_resumes_exactly(given, tmp_path, monkeypatch)


def test_models_without_dropout_or_of_two_stacks_are_refused(given):
    plain = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    tokenizer = given["model"]["name"]
    dropout = {"hidden_dropout_prob": 0.0, "attention_dropout_prob": 0.0}
    model = {"architecture": "hlr_encoder", "config": {**plain, **dropout}, "tokenizer": tokenizer}
    with pytest.raises(RunError, match=r"no dropout .*both passes of a row would be equal"):
        run_of(given, model=model)
    both = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {"architecture": "hlr_encoder_decoder", "config": both, "tokenizer": tokenizer}
    with pytest.raises(RunError, match="has an encoder and a decoder"):
        run_of(given, model=model)


def test_rows_without_text_are_left_out_or_refused(given, tmp_path):
    rows = [{"text": "the ball" if i % 2 else ""} for i in range(40)]
    done = run_of(given, data={"name": str(write_csv(tmp_path / "half.csv", rows))})
    found = done.metrics["data"]["train"]
    assert found["rows"] + found["rows_empty"] == 32
    with pytest.raises(DataError, match="texts are empty"):
        run_of(
            given,
            data={"name": str(write_csv(tmp_path / "none.csv", [{"text": " "}] * 20))},
            output=str(tmp_path / "other"),
        )


def test_a_column_that_is_not_there_is_named(given):
    with pytest.raises(DataError, match="there is no column `other`"):
        run_of(given, task={**given["task"], "text_pair": "other"})
    with pytest.raises(DataError, match="there is no column `topic`"):
        run_of(given, task={**given["task"], "label": "topic"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"max_length": 2}, "max_length is 2"),
        ({"score": "alike"}, "score has an effect only with text_pair"),
    ],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Contrastive(**fields)
    with pytest.raises(ValueError, match="label_smoothing_factor has no meaning"):
        Contrastive().loss(0.1)


def test_a_batch_of_one_row_is_told(caplog):
    states = torch.ones(2, 1, 4)
    with caplog.at_level("WARNING", logger="hf_llm_recipes"):
        loss = contrastive_loss({"last_hidden_state": states}, torch.tensor([[1], [1]]), temperature=1.0)
    assert loss.item() == 0
    assert "a batch of one row teaches nothing" in caplog.text
