"""Whether the pool helps, by labeled rows held out in turn: semi-supervised against supervised training.

Both are trained on the same rows outside a fold, from the same weights, for the same steps, and judged on
the fold. It costs as many trainings of each as there are folds, and is worth it where a wrong answer
would be expensive: no other sign tells as well that unlabeled rows do harm.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PrinterCallback, ProgressCallback, Trainer

from hf_llm_recipes.averaging import WeightSet
from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.errors import DataError, InterruptedRunError
from hf_llm_recipes.methods._semi_trainer import JUDGED, SemiSupervisedTrainer
from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.methods.supervised import Supervised

log = logging.getLogger("hf_llm_recipes")

FOLDS = 3
RECORD = "cross_fit.json"


@dataclass(frozen=True)
class Verdict:
    """What the held-out rows said.

    Args:
        metric: The score's name.
        semi_supervised: Its mean over the folds, in [0, 1].
        supervised: The same of the training without the pool.
        folds: How many.
        rows: Labeled rows in all.
    """

    metric: str
    semi_supervised: float
    supervised: float
    folds: int
    rows: int

    @property
    def harms(self) -> bool:
        """Whether the pool made it worse."""
        return self.semi_supervised < self.supervised


def cross_fit(parts: Parts, build: Callable[[Parts], SemiSupervisedTrainer]) -> Verdict:
    """Returns what labeled rows held out in turn say; the model's weights come back as they were.

    A run that is taken up again reads what it said before.

    Args:
        parts: Of the run.
        build: Parts -> the semi-supervised Trainer.

    Raises:
        DataError: a class has one labeled row only, or there are fewer rows than folds.
        InterruptedRunError: it was asked to stop.
    """
    record = Path(parts.arguments.output_dir) / RECORD
    if record.is_file():
        return Verdict(**json.loads(record.read_text(encoding="utf-8")))
    fold_N = folds(parts)
    start = WeightSet(parts.model)
    scores: dict[str, list[float]] = {"semi_supervised": [], "supervised": []}
    for number in range(FOLDS):
        log.info(
            f"cross-fitting: fold {number + 1} of {FOLDS}, held out: {int((fold_N == number).sum())} rows"
        )
        metric, found = _fold(parts, build, fold_N, number, start)
        for name, score in found.items():
            scores[name].append(score)
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    verdict = Verdict(metric, **means, folds=FOLDS, rows=len(fold_N))
    if parts.arguments.should_save:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(asdict(verdict)), encoding="utf-8")
    return verdict


def folds(parts: Parts) -> np.ndarray:
    """Returns the fold of each labeled row, (N,); with one class a row, every class is spread evenly."""
    count = len(parts.train)
    order = np.random.default_rng(parts.arguments.seed).permutation(count)
    if parts.task.item_problem == "single_label":
        labels = np.asarray(parts.train["labels"][:])[order]
        _, counts = np.unique(labels, return_counts=True)
        if counts.min() < 2:
            raise DataError(
                "a class has one labeled row: none can be held out",
                where="data",
                hint="label another row of it, or set `method.guard: true`",
            )
        order = order[np.argsort(labels, kind="stable")]
    if count < FOLDS:
        raise DataError(
            f"{count} labeled rows make no {FOLDS} folds", where="data", hint="set `method.guard: true`"
        )
    fold_N = np.empty(count, np.int64)
    fold_N[order] = np.arange(count) % FOLDS
    return fold_N


def _fold(
    parts: Parts, build: Callable, fold_N: np.ndarray, number: int, start: WeightSet
) -> tuple[str, dict[str, float]]:
    """The metric's name and both trainings' scores on one fold."""
    rest = parts.train.select(np.flatnonzero(fold_N != number))
    held = parts.train.select(np.flatnonzero(fold_N == number))
    stops = [callback for callback in parts.callbacks if isinstance(callback, GracefulStop)]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        mine = replace(parts, train=rest, eval=None, callbacks=stops, arguments=quiet(parts, folder))
        trainer = build(mine)
        metric, found["semi_supervised"] = _trained(trainer, held, start, stops)
        mine.arguments = quiet(parts, folder)
        mine.arguments.max_steps = trainer.state.max_steps
        found["supervised"] = _trained(Supervised().build(mine), held, start, stops)[1]
    return metric, found


def quiet(parts: Parts, folder: str) -> Any:
    """The run's arguments without checkpoints, evaluations and trackers."""
    made = copy.copy(parts.arguments)
    made.output_dir, made.report_to, made.load_best_model_at_end = folder, [], False
    made.save_strategy = type(made.save_strategy).NO
    made.eval_strategy = type(made.eval_strategy).NO
    return made


def unheard(trainer: Trainer) -> Trainer:
    """Returns a Trainer that neither prints its log nor draws a bar: it is not the run's own training."""
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    return trainer


def _trained(trainer: Trainer, held: Any, start: WeightSet, stops: list[GracefulStop]) -> tuple[str, float]:
    """Trains, judges the exported weights on the held-out rows, and gives the model its weights back."""
    try:
        unheard(trainer).train()
        if any(stop.received is not None for stop in stops):
            raise InterruptedRunError(
                "stopped while labeled rows were held out in turn: nothing was saved yet",
                hint="run it again",
            )
        metrics = trainer.evaluate(held)
    finally:
        start.copy_to_model()
        for parameter in start.parameters.values():
            parameter.grad = None
    name = next(name for name in JUDGED if f"eval_{name}" in metrics)
    return name, metrics[f"eval_{name}"]
