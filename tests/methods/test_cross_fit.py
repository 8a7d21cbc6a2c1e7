"""Labeled rows held out in turn, semi-supervised against supervised training."""

import json

import numpy as np
import pytest
import torch
from _tiny_parts import make_parts
from datasets import Dataset

from hf_llm_recipes.algorithms.fixmatch import FixMatch
from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.errors import DataError, InterruptedRunError
from hf_llm_recipes.methods import _cross_fit
from hf_llm_recipes.methods._cross_fit import RECORD, Verdict, cross_fit, folds
from hf_llm_recipes.methods.semi_supervised import SemiSupervised

METHOD = {"warm_start": "none", "unlabeled_ratio": 2, "guard": "cross_fit"}


def parts_of(folder, out, **given):
    parts = make_parts(folder, out, **{"max_steps": 2, "save_strategy": "no"} | given)
    parts.algorithm, parts.unlabeled_rows = FixMatch(threshold=0.34), parts.unlabeled
    return parts


@pytest.fixture
def scores(monkeypatch):
    """The folds' scores are given, semi-supervised first; what was trained on is remembered."""
    given, seen = [], []

    def trained(trainer, held, start, stops):
        labeled = trainer.streams.labeled if hasattr(trainer, "streams") else trainer.train_dataset
        seen.append((type(trainer).__name__, labeled["input_ids"][:], held["input_ids"][:]))
        trainer.state.max_steps = 2
        return "accuracy", given.pop(0)

    monkeypatch.setattr(_cross_fit, "_trained", trained)
    return given, seen


def test_every_class_is_spread_evenly_over_the_folds(tiny_bert, tmp_path):
    parts = parts_of(tiny_bert, tmp_path)
    fold_N, labels = folds(parts), np.asarray(parts.train["labels"][:])
    assert sorted(fold_N) == [0] * 4 + [1] * 4 + [2] * 4  # 12 rows
    for label in range(3):  # 4 rows each
        assert sorted(np.bincount(fold_N[labels == label], minlength=3)) == [1, 1, 2]


def test_both_see_the_same_rows_and_no_row_that_they_are_judged_on(tiny_bert, tmp_path, scores):
    given, seen = scores
    given += [0.5, 0.25, 0.75, 0.5, 1.0, 0.75]
    parts = parts_of(tiny_bert, tmp_path)
    trainer = SemiSupervised(**METHOD).build(parts)
    assert [name for name, *_ in seen] == ["SemiSupervisedTrainer", "Trainer"] * 3
    held = []
    for semi, supervised in zip(seen[::2], seen[1::2], strict=True):
        assert semi[1:] == supervised[1:]
        assert len(semi[1]) == 8
        assert len(semi[2]) == 4
        held += semi[2]
    assert sorted(held) == sorted(parts.train["input_ids"][:])
    assert trainer.schedule.weight == 1.0


def test_where_the_pool_does_harm_the_run_goes_without_it(tiny_bert, tmp_path, scores, caplog):
    scores[0].extend([0.5, 0.75, 0.5, 0.75, 0.5, 0.5])
    method = SemiSupervised(**METHOD)
    trainer = method.build(parts_of(tiny_bert, tmp_path))
    assert "semi-supervised 50.0 %, supervised 66.7 %: the pool does harm here" in caplog.text
    trainer.train()
    report = method.report(trainer)
    assert report["unlabeled_rows_seen"] == 0
    assert report["exported"] == "student"
    assert report["cross_fit"] == {
        "metric": "accuracy",
        "semi_supervised": 0.5,
        "supervised": pytest.approx(2 / 3),
        "folds": 3,
        "rows": 12,
    }


def test_a_tie_is_no_harm():
    assert not Verdict("accuracy", 0.5, 0.5, 3, 12).harms
    assert Verdict("accuracy", 0.49, 0.5, 3, 12).harms


def test_the_run_after_it_is_the_one_without_it(tiny_bert, tmp_path):
    """Real trainings: weights and chance of the run itself are as if nothing had been tried."""
    found = []
    for guard in (True, "cross_fit"):
        parts = parts_of(tiny_bert, tmp_path / str(guard))
        method = SemiSupervised(**METHOD | {"guard": guard})
        trainer = method.build(parts)
        if guard == "cross_fit":
            assert (tmp_path / "cross_fit" / "checkpoints" / RECORD).is_file()
            if method.verdict.harms:  # the score is chance here: what is looked at is what comes after
                parts = parts_of(tiny_bert, tmp_path / "again", model=parts.model)
                trainer = SemiSupervised(**METHOD | {"guard": True}).build(parts)
        trainer.train()
        found.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_a_run_that_is_taken_up_again_reads_what_was_said(tiny_bert, tmp_path):
    parts = parts_of(tiny_bert, tmp_path)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    record = {"metric": "f1", "semi_supervised": 0.25, "supervised": 0.5, "folds": 3, "rows": 12}
    (folder / RECORD).write_text(json.dumps(record))
    assert cross_fit(parts, lambda _: pytest.fail("trained")) == Verdict(**record)


def test_a_stop_ends_it(tiny_bert, tmp_path):
    stop = GracefulStop()
    parts = parts_of(tiny_bert, tmp_path, callbacks=[stop])

    def build(some):
        trainer = SemiSupervised(**METHOD | {"guard": True}).build(some)
        plain = trainer.training_step

        def step(*given, **named):
            stop.received = 2
            return plain(*given, **named)

        trainer.training_step = step
        return trainer

    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    with pytest.raises(InterruptedRunError, match="held out in turn: nothing was saved yet"):
        cross_fit(parts, build)
    assert all(torch.equal(before[name], p) for name, p in parts.model.named_parameters())
    assert not (tmp_path / "checkpoints" / RECORD).exists()


def test_rows_that_make_no_folds(tiny_bert, tmp_path):
    parts = parts_of(tiny_bert, tmp_path)
    labels = [0] * 6 + [1] * 5 + [2]
    parts.train = Dataset.from_dict({"input_ids": parts.train["input_ids"][:], "labels": labels})
    with pytest.raises(DataError, match="a class has one labeled row: none can be held out"):
        folds(parts)
    parts.train = parts.train.select([0, 1])
    with pytest.raises(DataError, match="2 labeled rows make no 3 folds"):
        folds(parts)


def test_without_an_unlabeled_loss_there_is_nothing_to_compare(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm_recipes.methods.semi_supervised.cross_fit", lambda *_: pytest.fail("asked"))
    SemiSupervised(**METHOD | {"weight": 0.0}).build(parts_of(tiny_bert, tmp_path))
