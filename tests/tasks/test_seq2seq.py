"""Sequence to sequence: ids by hand, what a check says of planted faults, and runs of a tiny T5."""

import json

import pandas as pd
import pytest
from conftest import make_tokenizer
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, BertConfig, T5Config, T5ForConditionalGeneration

from hf_llm_recipes.checking.core import check
from hf_llm_recipes.checking.turns import started_twice
from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.judging import evaluate_run
from hf_llm_recipes.predictor import Predictor, check_writes
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.tasks.seq2seq import Seq2Seq

# [PAD] 0, [CLS] 2, [SEP] 3, the 5, a 6, new 12, old 13, good 14, ball 15, team 16
CONFIG = BertConfig(max_position_embeddings=32)
OPPOSITE = {"old": "new", "new": "old", "good": "a", "the": "a"}


def pairs(count=48):
    things = ["ball", "team", "goal", "coach", "bread", "soup"]
    made = []
    for i in range(count):
        words = [
            "the",
            ["old", "new"][i % 2],
            things[i % 6],
            "and",
            "the",
            ["new", "old"][i // 6 % 2],
            things[(i + i // 6 + 1) % 6],
        ]
        made.append(
            {"source": " ".join(words), "target": " ".join(OPPOSITE.get(word, word) for word in words[1:3])}
        )
    return made


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """A T5 of two layers and width 32 with random weights, as a folder."""
    import torch

    folder = tmp_path_factory.mktemp("tiny-t5")
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=3,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def prepared(tokenizer, rows, **task):
    data = Dataset.from_list(rows)
    return Seq2Seq(**task).prepare(
        Loaded(train=data, eval=None, test=data, description={}), tokenizer, CONFIG
    )


ROWS = [{"source": "the old ball", "target": "new ball"}, {"source": "a team", "target": "the team"}]


def test_sources_and_targets_are_ids(tokenizer):
    made = prepared(tokenizer, ROWS)
    assert made.train["input_ids"][:] == [[2, 5, 13, 15, 3], [2, 6, 16, 3]]
    assert made.train["labels"][:] == [[2, 12, 15, 3], [2, 5, 16, 3]]
    batch = made.collator([made.train[0], {**made.train[1], "labels": [2, 3]}])
    assert batch["input_ids"].tolist() == [[2, 5, 13, 15, 3], [2, 6, 16, 3, 0]]
    assert batch["attention_mask"].tolist()[1] == [1, 1, 1, 1, 0]
    assert batch["labels"].tolist() == [[2, 12, 15, 3], [2, 3, -100, -100]]
    assert prepared(tokenizer, ROWS, prefix="good ").train["input_ids"][1] == [2, 14, 6, 16, 3]
    assert made.notes == []


def test_what_is_cut_is_counted_and_still_ends(tokenizer):
    made = prepared(tokenizer, ROWS, max_length=4, max_target_length=3)
    assert made.train["input_ids"][0] == [2, 5, 13, 3]
    assert made.train["labels"][:] == [[2, 12, 3], [2, 5, 3]]
    counts = made.findings["train"]
    assert (counts["rows_cut"], counts["targets_cut"], counts["supervised_tokens_lost"]) == (1, 2, 2)
    assert made.notes[:2] == [
        "train: 1 of 2 rows have a source that is longer than 4 tokens and is cut",
        "train: 2 of 2 rows have a target that is longer than 3 tokens and is cut; its end is learnt where "
        "it was cut",
    ]


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([ROWS[0], {"source": "a", "target": None}], {}, "train split, row 1: `target` is None"),
        ([ROWS[0], {"source": " ", "target": "a"}], {}, "train split, row 1: `source` is ' '"),
        (ROWS, {"target": "answer"}, "train split: there is no column `answer`"),
        (ROWS, {"max_target_length": 40}, "max_target_length is 40, but the model takes 32 tokens"),
    ],
)
def test_what_cannot_be_used_is_refused(tokenizer, rows, task, message):
    with pytest.raises(DataError) as caught:
        prepared(tokenizer, rows, **task)
    assert str(caught.value).startswith(message)


def test_a_stream_is_refused(tokenizer):
    stream = Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(DataError, match="pairs are read whole"):
        Seq2Seq().encode(stream, tokenizer, CONFIG, labeled=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_target_length": 2}, "max_target_length is 2; allowed: 3 or more tokens"),
        (
            {"generation": {"max_new_tokens": 3}},
            "generation.max_new_tokens stands in the key `max_new_tokens`",
        ),
        (
            {"generation": {"num_beam": 3}},
            "generation.num_beam is an unknown key (did you mean `num_beams`?)",
        ),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(ValueError) as caught:
        Seq2Seq(**fields)
    assert str(caught.value) == message


def test_a_model_must_say_what_its_decoder_begins_with(tokenizer, tiny_t5):
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)
    assert Seq2Seq().check_model(model, None, tokenizer) == ["the decoder begins with '[PAD]'"]
    model.config.decoder_start_token_id = None
    with pytest.raises(RunError, match="decoder_start_token_id is None and pad_token_id is 0"):
        Seq2Seq().check_model(model, None, tokenizer)


def values(tiny_t5, folder, rows=None, **more):
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows or pairs()), encoding="utf-8")
    return {
        "name": "tiny",
        "output": str(folder / "out"),
        "model": {"name": str(tiny_t5)},
        "data": {"name": str(data)},
        "task": {"name": "seq2seq", "max_new_tokens": 8},
        "trainer": {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        **more,
    }


TUNINGS = {"full": {}, "lora": {"tuning": {"name": "lora", "r": 4, "target_modules": ["q", "v"]}}}


@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_run(tiny_t5, tmp_path, tuning):
    done = run(Recipe.from_dict(values(tiny_t5, tmp_path, **TUNINGS[tuning])))
    scores = done.metrics["test"]
    assert {"chrf", "rouge_l", "exact_match", "loss"} == set(scores["intervals_95"])
    assert done.metrics["before"]["loss"] > 0
    assert done.metrics["reload"]["logits_max_difference"] <= 1e-5
    written = pd.read_parquet(done.path / "predictions.parquet")
    assert written["loss"].sum() / written["tokens"].sum() == pytest.approx(scores["loss"])
    again = evaluate_run(done.path)
    assert (again["loss"], again["chrf"]) == (pytest.approx(scores["loss"]), pytest.approx(scores["chrf"]))
    (answer,) = Predictor.load(done.path).predict(["the old ball"])
    assert isinstance(answer["generated"], str)
    assert "AutoModelForSeq2SeqLM" in (done.path / "README.md").read_text(encoding="utf-8")


def test_how_it_writes_can_be_changed(tiny_t5, tokenizer):
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    predictor = Predictor(model, tokenizer, Seq2Seq(max_new_tokens=6, generation={"num_beams": 2}))

    def written(settings, seed=None):
        predictor.write_with(settings, seed)
        return [answer["generated"] for answer in predictor.predict(["the old ball", "a team"])]

    with pytest.raises(RunError, match="a seed has no effect: the likeliest token is taken"):
        predictor.write_with({}, seed=3)
    drawn = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 9}
    one, again, other = (written(drawn, seed) for seed in (3, 3, 4))
    assert one == again != other
    settings = predictor.task.writing(tokenizer).settings
    assert settings == {"num_beams": 2, **drawn}
    assert predictor.task.max_new_tokens == 9
    assert len(" ".join(written({"do_sample": False, "max_new_tokens": 1})).split()) <= 2


def test_it_has_no_conversation():
    with pytest.raises(RunError, match="task is seq2seq, whose model reads a source and writes a target: it"):
        check_writes(Seq2Seq(), "be served")


def test_it_learns(tiny_t5, tmp_path):
    trainer = {"max_steps": 60, "per_device_train_batch_size": 24, "learning_rate": 1e-2, "use_cpu": True}
    made = values(tiny_t5, tmp_path, trainer={**trainer, "disable_tqdm": True, "save_strategy": "no"})
    done = run(Recipe.from_dict(made))
    after, before = done.metrics["test"], done.metrics["before"]
    assert after["loss"] < before["loss"] / 3
    assert after["chrf"] > before["chrf"] + 0.1


def checked(tiny_t5, folder, rows=None, **task):
    given = values(tiny_t5, folder, rows)
    given["task"] |= task
    given["data"] |= {"train": "train[:32]", "test": "train[32:]", "eval_fraction": 0}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({k: v for k, v in given.items() if k != "output"}), encoding="utf-8")
    return check(Recipe.load(file), estimate=False)


def test_a_check_of_an_encoder_decoder(tiny_t5, tmp_path):
    report = checked(tiny_t5, tmp_path)
    assert not [one for one in report.findings if one.part in ("turns", "lengths", "gradients", "reload")]
    assert report.model["batch_split"]["gradient_difference"] < 1e-4
    assert report.splits["train"]["supervised_tokens"] == 32 * 4  # [CLS], two words, [SEP]
    assert report.splits["train"]["tokens_read"] == 32 * (9 + 4)
    sample = report.samples[0]
    assert (sample.tokens, sample.supervised) == (9, 4)
    arrow = [piece.text for piece in sample.pieces].index(" ⇒ ")
    assert not any(piece.loss for piece in sample.pieces[:arrow])
    assert all(piece.loss for piece in sample.pieces[arrow + 1 :])


def test_source_and_target_of_one_length_are_told_apart(tiny_t5, tmp_path):
    report = checked(tiny_t5, tmp_path, [{"source": "the old", "target": "new ball"} for _ in range(48)])
    assert all(" ⇒ " in [piece.text for piece in sample.pieces] for sample in report.samples)


def test_what_a_check_says_of_planted_faults(tiny_t5, tmp_path):
    report = checked(tiny_t5, tmp_path, max_length=5, max_target_length=3, max_new_tokens=2)
    told = {one.what for one in report.findings}
    assert any(
        "32 of 32 rows (100.0 %) are longer than 5 tokens and have their source cut" in one for one in told
    )
    assert any(
        "32 of 32 targets (100.0 %) are longer than 3 tokens and are cut: 32 tokens" in one for one in told
    )
    assert any("answers (100.0 %) have more tokens than `task.max_new_tokens: 2`" in one for one in told)
    assert not any("carries no loss" in one for one in told)  # a cut target still ends


def test_a_target_that_begins_as_the_decoder_does(tokenizer):
    (finding,) = started_twice([[2, 5, 3], [5, 3]], 2, tokenizer, "train split")
    assert finding.what.startswith(
        "1 of 2 targets begin with '[CLS]', which the decoder is given before them"
    )
    assert not started_twice([[2, 5, 3]], 0, tokenizer, "train split")
    assert not started_twice([[2, 5, 3]], None, tokenizer, "train split")


def test_a_causal_model_cannot_do_it(tiny_llama, tmp_path):
    with pytest.raises(RunError, match="a llama model cannot do this task"):
        run(Recipe.from_dict(values(tiny_llama, tmp_path)))
