"""Looks at a model once more, as `evaluate:` or the command line asks: slices, temperature, views, scores.

``predictor`` is a ``predictor.Predictor``, of a finished run or around the model that was just trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm_recipes.assessing import robustness, scores, slices, temperature
from hf_llm_recipes.assessing.section import Assessment, check, kind_of, problem_of
from hf_llm_recipes.data.augmentation.base import Pool
from hf_llm_recipes.errors import DataError

log = logging.getLogger("hf_llm_recipes")

SEED = 0  # of the views: the same rows change the same way for every model
KEYS = ("slices", "temperature", "robustness")  # of ``metrics.json``


class Subject:
    """A model and labeled rows that it answers once.

    Args:
        predictor: The model with its task and processor.
        rows: Labeled.
        answers: Logits and labels of the rows, where they are known.
    """

    def __init__(self, predictor: Any, rows: Any, answers: tuple[Any, Any] | None = None) -> None:
        self.predictor, self.rows, self.task = predictor, rows, predictor.task
        if answers is not None:
            self.answers = answers

    @cached_property
    def features(self) -> Any:
        """The rows as the model reads them."""
        predictor = self.predictor
        return self.task.encode(self.rows, predictor.tokenizer, predictor.model.config, labeled=True)[0]

    @cached_property
    def answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels, as the task judges them."""
        return self.predictor.feature_logits(self.features, labeled=True)

    def judge(self, chosen: np.ndarray) -> dict[str, Any]:
        """Returns the task's metrics of some rows."""
        if self.task.judges_model:
            return self.predictor.judge(self.rows.select(chosen))
        logits, labels = self.answers
        return self.task.judge(logits[chosen], labels[chosen], self.predictor.model.config)

    def groups(self, by: str) -> slices.Groups:
        """Returns the rows in groups.

        Raises:
            DataError: no such column, or one that makes no groups.
        """
        if by != slices.LENGTH or by in self.rows.column_names:
            return slices.of_column(by, slices.column(self.rows, by))
        if self.task.judges_model:
            names = self.task.input_columns or self.rows.column_names
            rows = self.rows.select_columns(names)
            lengths = [sum(map(_characters, row.values())) for row in rows]
            return slices.of_numbers(by, np.asarray(lengths, dtype=np.float64), " characters")
        return slices.of_numbers(by, self.task.lengths(self.features).astype(np.float64), " tokens")


def assess(
    predictor: Any,
    asked: Assessment,
    test: Any,
    held_out: Any,
    *,
    answers: tuple[Any, Any] | None = None,
    lenient: bool = False,
) -> dict[str, Any]:
    """Returns what was asked for, by keys of ``metrics.json``; more scores under ``metrics``.

    Args:
        predictor: The model.
        asked: What is looked at.
        test: Labeled rows.
        held_out: Labeled rows that the temperature is fitted on, or None.
        answers: Logits and labels of the test rows, where they are known.
        lenient: Whether what cannot be measured is told in the log and left out, as at the end of a run.

    Raises:
        DataError: what was asked for does not fit the rows or the task.
    """
    check(asked, predictor.task, test, held_out)
    subject = Subject(predictor, test, answers)
    found: dict[str, Any] = {}
    if asked.slices:
        each = {by: _measured(lambda: _sliced(subject, by), by, lenient) for by in asked.slices}  # noqa: B023
        found["slices"] = {by: one for by, one in each.items() if one}
    if asked.temperature:
        found["temperature"] = _measured(lambda: _calibrated(subject, held_out), "the temperature", lenient)
    if asked.robustness:
        found["robustness"] = _measured(lambda: _robustness(subject, asked.views), "robustness", lenient)
    if asked.metrics:
        problem = problem_of(predictor.task)
        values, intervals = scores.more(asked.metrics, *subject.answers, problem)
        found["metrics"] = {**values, "intervals_95": intervals}
    return {key: one for key, one in found.items() if one}


def of_run(
    predictor: Any,
    asked: Assessment,
    loaded: Any,
    answers: tuple[Any, Any] | None,
    metrics: dict[str, Any],
    model: Path,
) -> dict[str, Any]:
    """Returns the metrics of a run that ends, with what was asked for; what cannot be measured costs no run.

    Args:
        predictor: Around the trained model.
        asked: The recipe's `evaluate:`.
        loaded: ``data.loading.Loaded``.
        answers: Logits and labels of the test rows, where the task is judged by them.
        metrics: Of the run so far.
        model: The run's ``model/``.
    """
    found = assess(predictor, asked, loaded.test, loaded.eval, answers=answers, lenient=True)
    return store(metrics, found, model)


def store(metrics: dict[str, Any], found: dict[str, Any], model: Path) -> dict[str, Any]:
    """Returns the metrics of a run with what ``assess`` found; a temperature is kept beside the weights.

    Args:
        metrics: What ``metrics.json`` holds, or will.
        found: From ``assess``, on the run's own test rows.
        model: The run's ``model/``.
    """
    merged = {**metrics, **{key: found[key] for key in KEYS if key in found}}
    if "slices" in found:
        merged["slices"] = {**metrics.get("slices", {}), **found["slices"]}
    if "metrics" in found:
        merged["test"] = with_scores(metrics["test"], found)
    if "temperature" in found:
        temperature.save(model, found["temperature"])
    return merged


def with_scores(test: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns a task's metrics with the scores of ``assess``, intervals among the others."""
    values = {key: value for key, value in found["metrics"].items() if key != "intervals_95"}
    edges = {**test.get("intervals_95", {}), **found["metrics"]["intervals_95"]}
    return {**test, **values, "intervals_95": edges}


def _measured(make: Callable[[], Any], what: str, lenient: bool) -> Any:
    try:
        return make()
    except DataError as error:
        if not lenient:
            raise
        log.warning("%s was not measured: %s", what, error)
        return None


def _sliced(subject: Subject, by: str) -> dict[str, Any]:
    return slices.sliced(subject.groups(by), subject.judge)


def _calibrated(subject: Subject, held_out: Any) -> dict[str, Any]:
    answers = Subject(subject.predictor, held_out).answers
    return temperature.calibrate(answers, subject.answers, problem_of(subject.task))


def _robustness(subject: Subject, names: list[str] | None) -> dict[str, Any]:
    predictor, task = subject.predictor, subject.task
    problem = problem_of(task)
    views = robustness.views_of(names, kind_of(task), same_length=problem == "tokens")

    def encode(rows: Any) -> Any:
        return task.encode(rows, predictor.tokenizer, predictor.model.config, labeled=True)[0]

    pool = Pool(subject.features, subject.rows, predictor.tokenizer, encode, SEED)

    def logits_of(features: Any) -> np.ndarray:
        return predictor.feature_logits(features, labeled=True)[0]

    return robustness.robustness(views, pool, logits_of, *subject.answers, problem)


def _characters(value: Any) -> int:
    """How long a text is, or a list of texts, or of messages."""
    if isinstance(value, dict):
        return _characters(value.get("content"))
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 0
