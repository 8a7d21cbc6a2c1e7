"""The next token within documents: blocks, windows and figures worked by hand, runs, bad input."""

import json
import math

import numpy as np
import pytest
import torch
from _tiny_objective import (
    assert_resumes_exactly,
    assert_split_makes_no_difference,
    documents_csv,
    logged_losses,
    run_of,
    values,
)
from conftest import make_tokenizer, write_csv
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives import _documents
from hf_llm_recipes.objectives.clm import Clm
from hf_llm_recipes.tasks import _language

DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def given(tiny_llama, tmp_path):
    data = documents_csv(tmp_path / "docs.csv")
    model = {"architecture": "hlr_decoder", "config": DECODER, "tokenizer": str(tiny_llama)}
    return values(model, data, {"name": "clm", "block_size": 32}, tmp_path / "out")


def test_blocks_become_one_row_whose_documents_begin_without_a_label(tokenizer):
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]},
        {"input_ids": [10, 11], "seq_lengths": [2]},
    ]
    batch = Clm().collator(tokenizer)(rows)
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[5, 6, 7, 8, 9, 10, 11]],
        "position_ids": [[0, 1, 0, 1, 2, 0, 1]],
        "labels": [[-100, 6, -100, 8, 9, -100, 11]],
    }
    padded = Clm(packing="none").collator(tokenizer)([{"input_ids": [5, 6], "seq_lengths": [2]}, rows[0]][:1])
    assert padded["labels"].tolist() == [[-100, 6]]
    assert "position_ids" not in padded


def test_windows_guess_each_token_but_a_documents_first_once():
    made = _language.windows({0: [1, 2, 3, 4, 5, 6, 7], 2: [8, 9], 3: [1, 2, 3, 4]}, size=4, context=2)
    assert made["input_ids"][:] == [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7], [8, 9], [1, 2, 3, 4]]
    assert made["document"][:] == [0, 0, 0, 2, 3]
    assert made["first"][:] == [1, 2, 2, 1, 1]  # 3 + 2 + 1 = 6 of 7 tokens, 1 of 2, 3 of 4


def test_rows_are_joined_to_documents_where_a_pattern_says_where_they_begin():
    rows = Dataset.from_dict({"text": [" ", " = A = \n", "one\n", " = = B = = \n", " = C = \n", "two"]})
    found = _documents.read_documents(rows, "text", r" = [^=]", "train split")
    assert found == [" \n", " = A = \none\n = = B = = \n", " = C = \ntwo\n"]


def test_the_figures_are_those_of_an_independent_computation(tiny_llama):
    tokenizer, texts = (
        AutoTokenizer.from_pretrained(tiny_llama),
        ["the ball", "a song was very good band", "the"],
    )
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    task = Clm(block_size=32)
    rows = Dataset.from_dict({"text": texts})
    features, found = task.encode(rows, tokenizer, model.config, labeled=True)
    judged = task.judge_model(model, features, rows, tokenizer)
    assert found["documents_too_short"] == 1  # "the" is one token beside the special ones
    total = count = 0
    for text in texts[:2]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]  # [CLS] … [SEP]: all words are guessed
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    bytes_, words = len("the ball") + len("a song was very good band"), 8
    assert judged.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert judged.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / bytes_, rel=1e-5)
    assert judged.metrics["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-5)
    assert judged.metrics["counts"] == {"tokens": count, "bytes": bytes_, "words": words}
    assert judged.columns["document"] == [0, 1]


def test_short_windows_with_context_guess_the_same_tokens(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    rows = Dataset.from_dict({"text": ["the ball was new and the team very old in a match", "good bread"]})
    counts = []
    for size, context in ((32, 1), (5, 1), (6, 4)):
        task = Clm(block_size=size, eval_context=context)
        features, _ = task.encode(rows, tokenizer, model.config, labeled=True)
        counts.append(task.judge_model(model, features, rows, tokenizer).metrics["counts"])
    assert counts[0] == counts[1] == counts[2]


def test_a_first_token_that_nothing_stands_before_counts_no_bytes(tokenizer):
    assert _language.first_bytes("ball team", [15, 16], tokenizer) == 4
    assert _language.first_bytes("ball team", [2, 15, 16, 3], tokenizer) == 0  # [CLS] stands before it


def test_a_run_learns_and_answers(given):
    given = {**given, "task": {**given["task"], "generation": {"max_new_tokens": 3}}}
    done = run_of(given, trainer={**given["trainer"], "max_steps": 40, "learning_rate": 1e-2})
    test = done.metrics["test"]
    assert test["perplexity"] < 24  # of 33 at random; fillers are three of four words
    low, high = test["intervals_95"]["bits_per_byte"]
    assert low < test["bits_per_byte"] < high
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    assert done.metrics["data"]["train"]["documents"] > 10
    from hf_llm_recipes.predictor import Predictor

    predictor = Predictor.load(done.path)
    answers = predictor.predict(["the", "a very good"])
    assert [len(answer["generated"].split()) for answer in answers] == [3, 3]
    assert predictor.judge(Dataset.from_dict({"text": ["the ball was in the goal"]}))["rows"] == 1
    assert "AutoModelForCausalLM" in (done.path / "README.md").read_text()


def test_a_batch_of_eight_is_eight_batches_of_one(given, tmp_path):
    assert_split_makes_no_difference(given, tmp_path)


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_a_killed_run_goes_on_to_the_same_bits(given, tmp_path, monkeypatch, packing):
    given = {**given, "task": {**given["task"], "packing": packing}}
    assert_resumes_exactly(given, tmp_path, monkeypatch)


def test_packed_and_padded_rows_have_the_same_loss(given, tmp_path):
    losses = []
    for packing in ("best_fit", "none"):
        task = {**given["task"], "packing": packing}
        trainer = {**given["trainer"], "max_steps": 1, "per_device_train_batch_size": 100}
        done = run_of(given, output=str(tmp_path / packing), task=task, trainer=trainer)
        losses += logged_losses(done.path)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_goes_on_training_a_checkpoint_through_lora(tiny_llama, given):
    done = run_of(given, model={"name": str(tiny_llama)}, tuning={"name": "lora", "r": 4})
    assert done.metrics["before"]["perplexity"] != done.metrics["test"]["perplexity"]
    assert json.loads((done.path / "model" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_an_empty_corpus_is_refused(given, tmp_path):
    data = write_csv(tmp_path / "empty.csv", [{"text": ""} for _ in range(20)])
    with pytest.raises(DataError, match="none of 16 documents has 2 tokens or more"):
        run_of(given, data={"name": str(data)})


def test_a_block_longer_than_the_model_is_refused(given):
    with pytest.raises(DataError, match="block_size is 4096, but the model takes 32 tokens"):
        run_of(given, task={"name": "clm", "block_size": 4096})


def test_a_model_of_another_kind_is_refused(given, tmp_path):
    from transformers import ViTConfig, ViTModel

    folder = tmp_path / "vit"
    make_tokenizer(folder)
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(folder)
    with pytest.raises(RunError, match="a vit model cannot do this task"):
        run_of(given, model={"name": str(folder)})


def test_a_model_that_lets_packed_documents_see_each_other_is_refused_and_trained_on_padded_rows(
    given, tmp_path
):
    from transformers import BloomConfig, BloomForCausalLM

    folder = tmp_path / "bloom"
    tokenizer = make_tokenizer(folder)
    BloomForCausalLM(
        BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4)
    ).save_pretrained(folder)
    given = {**given, "model": {"name": str(folder)}}
    with pytest.raises(RunError, match=r"(?s)BloomForCausalLM .*packed rows.*set `task.packing: none`"):
        run_of(given)
    assert run_of(given, task={**given["task"], "packing": "none"}).metrics["training"]["steps"] == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_size": 1}, "block_size is 1; allowed: 2 or more"),
        ({"eval_context": 0}, "eval_context is 0; allowed: from 1 to below block_size"),
        ({"block_size": 8, "eval_context": 8}, "eval_context is 8"),
        ({"document_start": "("}, "no regular expression"),
        ({"generation": {"max_new_token": 3}}, "generation.max_new_token is an unknown key.*max_new_tokens"),
    ],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Clm(**fields)


def test_rows_that_are_no_text_are_named(tokenizer, tiny_llama):
    rows = Dataset.from_dict({"text": ["the ball", None]})
    config = AutoModelForCausalLM.from_pretrained(tiny_llama).config
    with pytest.raises(DataError, match="`text` is None, not text"):
        Clm().encode(rows, tokenizer, config, labeled=True)
    assert np.isfinite(config.vocab_size)
