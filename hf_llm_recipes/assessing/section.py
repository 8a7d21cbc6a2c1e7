"""The recipe's `evaluate:`: what is looked at beyond the scores of the test split, at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_llm_recipes.assessing import robustness, scores, slices, temperature
from hf_llm_recipes.errors import DataError


@dataclass(kw_only=True)
class Assessment:
    """What is looked at once more, on the test rows.

    Args:
        slices: ``length``, or columns of the data: scores of each group of rows, and how far apart they are.
        temperature: Whether a temperature is fitted on the eval split, for ``predict --calibrated``.
        robustness: Whether the rows are judged under each augmentation that fits them, or which ones.
        metrics: More scores, with intervals: ``balanced_accuracy``, ``matthews_corrcoef``, ``cohen_kappa``,
            ``roc_auc``, ``average_precision``, ``top_3_accuracy`` of one class a row; ``hamming_loss``,
            ``jaccard``, ``roc_auc``, ``average_precision`` of several; ``median_absolute_error``,
            ``explained_variance`` of numbers.
    """

    slices: list[str] | None = None
    temperature: bool = False
    robustness: bool | list[str] = False
    metrics: list[str] | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything is."""
        return bool(self.slices or self.temperature or self.robustness or self.metrics)

    @property
    def views(self) -> list[str] | None:
        """Names of augmentations; None for all that fit."""
        return self.robustness if isinstance(self.robustness, list) else None


def check(asked: Assessment, task: Any, test: Any, held_out: Any) -> None:
    """Refuses, before anything is trained, what could only fail at the end.

    Args:
        asked: Of the recipe or the command line.
        task: Of the run.
        test: Its test rows.
        held_out: Its eval rows, or None.

    Raises:
        DataError: no such column, score or view, or one that does not fit the task.
    """
    from datasets import IterableDataset

    if not asked.wanted:
        return
    problem = problem_of(task)
    if isinstance(test, IterableDataset):
        raise DataError("a stream of test rows is read once only", hint="take `evaluate:` out")
    for name in asked.slices or ():
        if name != slices.LENGTH:
            slices.column(test, name)
    scores.check(asked.metrics or (), problem)
    if asked.temperature:
        temperature.check(problem, held_out)
    if asked.robustness:
        robustness.check(problem)
        robustness.views_of(asked.views, kind_of(task), same_length=problem == "tokens")


def problem_of(task: Any) -> str:
    """Returns what kind of answer a task's rows have, as its metrics call it."""
    return "language" if task.judges_model else task.problem


def kind_of(task: Any) -> str:
    """Returns what an augmentation calls the task's rows."""
    return "image" if task.processor == "image_processor" else "text"
