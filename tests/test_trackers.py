"""Trackers for real: a run's figures, under our names, in the files of trackio and TensorBoard, offline."""

import json
import socket
import sqlite3
from contextlib import closing

import pytest

from hf_llm_recipes.errors import MissingExtraError, RecipeError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import plan, run

OURS = ("throughput/tokens_per_second", "memory/host_peak_gib")
EVALUATED = "eval_loss"


@pytest.fixture
def watched(recipe, monkeypatch):
    """A recipe with two callbacks and an evaluation, in a process that reaches no network."""

    def refuse(self, address):
        raise AssertionError(f"asked for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    recipe["callbacks"] = [{"name": "throughput"}, {"name": "memory"}]
    recipe["trainer"] |= {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 4}
    return recipe


def logged(done):
    return [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]


def test_tensorboard_has_our_figures(watched):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched["trainer"]["report_to"] = "tensorboard"
    done = run(Recipe.from_dict(watched))
    (file,) = done.path.rglob("events.out.tfevents.*")
    assert done.path / "checkpoints" in file.parents
    events = EventAccumulator(str(file.parent))
    events.Reload()
    lines = logged(done)
    for name in (*OURS, "loss"):
        found = [(one.step, one.value) for one in events.Scalars(f"train/{name}")]
        assert found == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line
        ]
        assert [step for step, _ in found] == [2, 4]
    (judged,) = events.Scalars("eval/loss")
    expected = next(line[EVALUATED] for line in lines if EVALUATED in line)
    assert (judged.step, judged.value) == (4, pytest.approx(expected, rel=1e-6))


def test_trackio_has_our_figures(watched, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    for module in ("trackio.utils", "trackio.sqlite_storage"):  # read from TRACKIO_DIR when first imported
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    watched["trainer"] |= {"report_to": "trackio", "project": "ours"}
    done = run(Recipe.from_dict(watched))
    with closing(sqlite3.connect(tmp_path / "trackio" / "ours.db")) as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY step").fetchall()
    assert {name for name, _ in rows} == {"out"}  # the directory's name, for the test split's scores too
    found = [json.loads(metrics) for _, metrics in rows]
    lines = logged(done)
    for name in (*OURS, "loss"):
        theirs = [(one["train/global_step"], one[f"train/{name}"]) for one in found if f"train/{name}" in one]
        assert theirs == [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert [step for step, _ in theirs] == [2, 4]
    assert any("test/loss" in one for one in found)
    (judged,) = [one["eval/loss"] for one in found if "eval/loss" in one]
    assert judged == pytest.approx(next(line[EVALUATED] for line in lines if EVALUATED in line))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("trackio", MissingExtraError, r"hf_llm_recipes\[trackers\]"),
        (["tensorboard", "wandb"], RecipeError, "the package of `wandb` is not installed"),
        (
            "tensorbord",
            RecipeError,
            r"unknown tracker `tensorbord` \(did you mean `tensorboard`\?\); allowed: none",
        ),
        (["none"], RecipeError, "unknown tracker `none`"),
    ],
)
def test_trackers_that_are_not_there_are_told_before_anything_is_loaded(
    recipe, monkeypatch, name, error, said
):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: True)
    recipe["trainer"]["report_to"] = name
    with pytest.raises(error, match=said):
        plan(Recipe.from_dict(recipe))


def test_none_and_all_are_names_too(recipe):
    for name in ("none", "all", []):
        recipe["trainer"]["report_to"] = name
        plan(Recipe.from_dict(recipe))
