"""The whole check: what refuses a run is a finding, long data is sampled and said so, nothing is changed."""

import json
from types import SimpleNamespace

import pytest
from _planted import found, jsonl, recipe_of, report_of, said
from conftest import sentences

from hf_llm_recipes.checking import core, probe, subject
from hf_llm_recipes.checking.needs import times, too_much, untold
from hf_llm_recipes.estimate import Estimate, Part

TASK = {"name": "text_classification"}


@pytest.fixture
def rows(tmp_path):
    data = jsonl(tmp_path / "rows.jsonl", sentences(60))
    return {"name": data, "train": "train[:40]", "test": "train[40:]", "eval_fraction": 0}


@pytest.mark.parametrize(
    "section,key,value,part,words",
    [
        ("task", "max_lenght", 8, "recipe", "max_lenght"),
        ("trainer", "max_steps", "many", "recipe", "many"),
        ("data", "name", "no/such.csv", "data", "no/such.csv"),
        ("task", "label", "class", "data", "there is no column `class`"),
        ("task", "max_length", 4096, "data", "max_length is 4096, but the model takes 32 tokens"),
        ("trainer", "eval_strategy", "steps", "trainer", "eval"),
    ],
)
def test_what_would_stop_a_run_is_a_finding(section, key, value, part, words, tiny_bert, rows, tmp_path):
    values = recipe_of(tiny_bert, rows, dict(TASK))
    values[section] = {**values[section], key: value}
    report = report_of(values, tmp_path)
    assert report.exit_code == 1
    errors = report.of("error")
    assert errors[0].part == part
    assert words in errors[0].what + str(errors[0].where)


def test_the_data_is_looked_at_where_features_cannot_be_made(tiny_bert, tmp_path):
    rows = sentences(30)
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "test": jsonl(tmp_path / "test.jsonl", rows[:9])}
    values = recipe_of(tiny_bert, {**data, "eval_fraction": 0}, {**TASK, "max_length": 4096})
    report = report_of(values, tmp_path)
    assert [finding.part for finding in report.of("error")] == ["data", "leakage"]
    assert not report.splits


def test_rows_that_are_no_texts_are_told_once(tiny_bert, tmp_path):
    rows = [{"text": i if i else None, "label": "ab"[i % 2]} for i in range(30)]
    values = recipe_of(tiny_bert, jsonl(tmp_path / "rows.jsonl", rows), dict(TASK))
    (error,) = report_of(values, tmp_path).of("error")
    assert error.part == "data"
    assert "not text" in error.what


def test_of_long_data_a_sample_is_looked_at_with_every_class(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "MOST_ROWS", 20)
    monkeypatch.setattr(subject, "LEAST_ROWS", 5)
    rows = [*sentences(80), {"text": "the old score", "label": "rare"}]
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "test": jsonl(tmp_path / "t.jsonl", rows[:12])}
    report = report_of(recipe_of(tiny_bert, {**data, "eval_fraction": 0}, dict(TASK)), tmp_path)
    facts = report.splits["train"]
    assert facts["rows"] == 81
    assert 20 <= facts["looked_at"] <= 24  # and one of each class
    assert report.labels["train"] == {"food": 27, "music": 26, "rare": 1, "sport": 27}
    assert "of a sample of" in said(report, "data")
    leak = next(f for f in report.findings if f.part == "leakage")
    assert leak.what.startswith("12 of 12 rows")  # these are looked for in all rows


def test_a_stream_is_looked_at_by_its_first_rows(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "STREAMED", 10)
    data = {
        "name": jsonl(tmp_path / "train.jsonl", sentences(30)),
        "test": jsonl(tmp_path / "test.jsonl", sentences(9, seed=3)),
        "eval": jsonl(tmp_path / "eval.jsonl", sentences(9, seed=4)),
        "streaming": True,
    }
    task = {**TASK, "labels": ["sport", "food", "music"]}
    report = report_of(recipe_of(tiny_bert, data, task), tmp_path)
    assert report.exit_code == 0, report.of("error")
    assert report.splits["train"]["looked_at"] == 10
    assert "of a stream's first 10 rows" in said(report, "data")


def test_a_clean_recipe_has_an_estimate_no_finding_and_its_weights_as_they_were(
    tiny_bert, rows, tmp_path, monkeypatch
):
    import torch

    seen = []
    looked = probe.build

    def build(one, folder):
        model = one.built.model
        seen.append((model, {name: p.detach().clone() for name, p in model.state_dict().items()}))
        return looked(one, folder)

    monkeypatch.setattr(core.probe, "build", build)
    before = sorted(path.name for path in tmp_path.iterdir())
    values = recipe_of(tiny_bert, rows, dict(TASK), tuning={"name": "lora", "r": 2})
    report = report_of(values, tmp_path, estimate=True)
    assert not report.findings, report.findings
    assert report.estimate.steps == 4
    ((model, weights),) = seen
    assert all(torch.equal(weights[name], p) for name, p in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "planted.yaml"])
    assert json.loads(json.dumps(report.to_dict()))["exit_code"] == 0


def test_an_estimate_that_does_not_fit():
    estimate = Estimate("cpu", [Part("weights", 3 << 30)], [], steps=10, capacity=2 << 30)
    (finding,) = too_much(estimate)
    assert finding.level == "error"
    assert finding.what == "about 3.00 GiB of memory are needed, and cpu has 2.00 GiB"
    sizes = {"train": (50, 20), "test": (8, 8)}
    subject = SimpleNamespace(
        splits=lambda: list(sizes), all_rows=lambda s: range(sizes[s][0]), rows=lambda s: range(sizes[s][1])
    )
    assert times(subject) == {"train": 2.5, "test": 1.0}
    assert not too_much(Estimate("cpu", [Part("weights", 1 << 30)], [], capacity=2 << 30))
    assert untold(IndexError("no such row")).what.endswith("(IndexError: no such row)")


def test_every_task_says_nothing_of_parts_that_are_not_its_own(tiny_bert, rows, tmp_path):
    report = report_of(recipe_of(tiny_bert, rows, dict(TASK)), tmp_path)
    assert not found(report, "turns")
    assert not found(report, "words")
    assert report.kind.startswith("task text_classification, method supervised, tuning full")
