"""First labels of the pool by fine-tuning, where they are better than those from frozen features.

Where classes do not lie together in a model's features, label propagation gives poor labels, and half a
training on poor labels costs more than the other half brings back. Three supervised models, each on the
labeled rows outside a fold, say by the rows held out how good a fine-tuned model's labels are. Where they
are better, a fourth one learns from all labeled rows, as the supervised baseline does, and the rows of
the first steps get the mean of the four models' probabilities.

It costs three supervised trainings of half the steps; where they are used, one of all the steps and four
forwards of each of these rows besides.

Shape suffixes: N rows of the pool  C classes  L labeled rows.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_llm_recipes.averaging import WeightSet
from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.data import propagation
from hf_llm_recipes.errors import InterruptedRunError
from hf_llm_recipes.methods import _features
from hf_llm_recipes.methods._cross_fit import FOLDS, folds, quiet, unheard
from hf_llm_recipes.methods._forward import model_inputs
from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.methods.supervised import Supervised
from hf_llm_recipes.rundir import full_disk_told

log = logging.getLogger("hf_llm_recipes")

PASSES = 40  # over the labeled rows at most: few are learned by heart long before
KEPT = "first_labels.npz"


@dataclass(frozen=True)
class FirstLabels:
    """Soft labels of the pool's rows.

    Args:
        target_NC: Class probabilities.
        weight_N: 1 for the rows that were looked at, 0 for the others.
        prior_C: Estimated class shares of the pool.
        source: Whose labels they are.
    """

    target_NC: np.ndarray
    weight_N: np.ndarray
    prior_C: np.ndarray
    source: str = "fine_tuned"


@dataclass(frozen=True)
class Found:
    """What the folds said.

    Args:
        held_out: Accuracy of the fine-tuned models on labeled rows they did not see.
        labels: Of the pool; None where others are as good.
    """

    held_out: float
    labels: FirstLabels | None


def fine_tuned(parts: Parts, *, steps: int, to_beat: float, rows: np.ndarray) -> Found:
    """Returns the fine-tuned models' labels of some rows of the pool, where they beat the others.

    Judged on labeled rows held out. The model's weights come back as they were. A run that is taken up
    again reads what was found before.

    Args:
        parts: Of the run; every class has two labeled rows or more.
        steps: Of the whole training.
        to_beat: Accuracy of the other labels on labeled rows held out, in [0, 1].
        rows: Numbers of the rows that are learned from first.

    Raises:
        InterruptedRunError: it was asked to stop.
        RunError: the disk is full.
    """
    keeps = parts.arguments.save_strategy != "no"
    path = Path(parts.arguments.output_dir) / KEPT
    digest = " ".join(_features.rows_sha256(some) for some in (parts.train, parts.unlabeled))
    found = _read(path, digest) if keeps else None
    if found is None:
        found = _fine_tuned(parts, steps, to_beat, rows)
        if keeps and parts.arguments.should_save:
            _write(path, found, digest)
    return found


def _fine_tuned(parts: Parts, steps: int, to_beat: float, rows: np.ndarray) -> Found:
    fold_L, start = folds(parts), WeightSet(parts.model)
    labels_L = np.asarray(parts.train["labels"][:])
    right_L = np.zeros(len(fold_L), dtype=bool)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.pt" for number in range(FOLDS)]
        try:
            for number, file in enumerate(files):
                held = np.flatnonzero(fold_L == number)
                log.info(
                    f"first labels: fine-tuning on all labeled rows but {len(held)}, {number + 1} of {FOLDS}"
                )
                _train(parts, np.flatnonzero(fold_L != number), steps // 2, folder)
                guessed = _probabilities(parts, parts.train, held, None).argmax(1)
                right_L[held] = guessed == labels_L[held]
                with full_disk_told(file, "free some space in the folder for temporary files"):
                    torch.save({name: p.detach().cpu() for name, p in start.parameters.items()}, file)
                start.copy_to_model()
            accuracy = float(right_L.mean())
            if accuracy <= to_beat:
                return Found(accuracy, None)
            log.info("first labels: they are the better ones; fine-tuning on all labeled rows")
            _train(parts, np.arange(len(fold_L)), steps, folder)
            mean = _probabilities(parts, parts.unlabeled, rows, "first labels, all labeled rows")
            for number, file in enumerate(files):
                _give(start, torch.load(file, weights_only=True))
                label = f"first labels, model {number + 1} of {FOLDS}"
                mean += _probabilities(parts, parts.unlabeled, rows, label)
            mean /= FOLDS + 1
        finally:
            start.copy_to_model()
            for parameter in start.parameters.values():
                parameter.grad = None
    return Found(accuracy, _spread(mean, rows, len(parts.unlabeled), labels_L))


def _train(parts: Parts, rows: np.ndarray, steps: int, folder: str) -> None:
    """One supervised training of so many steps or fewer, without checkpoints and evaluations."""
    stops = [callback for callback in parts.callbacks if isinstance(callback, GracefulStop)]
    arguments = quiet(parts, folder)
    arguments.max_steps = steps_of(arguments, len(rows), steps)
    arguments.logging_strategy = type(arguments.logging_strategy).NO
    mine = replace(
        parts, train=parts.train.select(rows), eval=None, callbacks=list(stops), arguments=arguments
    )
    unheard(Supervised().build(mine)).train()
    if any(stop.received is not None for stop in stops):
        raise InterruptedRunError(
            "stopped while the first labels of the pool were made: nothing was saved yet", hint="run it again"
        )


def steps_of(arguments: Any, rows: int, most: int) -> int:
    """Returns the steps of a supervised training on so many labeled rows, ``most`` of them at most."""
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return max(1, min(most, math.ceil(PASSES * rows / batch)))


@torch.no_grad()
def _probabilities(parts: Parts, rows: Any, chosen: np.ndarray, label: str | None) -> np.ndarray:
    """The model's class probabilities of some rows, (K, C), longest rows first for the batches' sake."""
    model, size = parts.model, parts.arguments.eval_batch_size
    few = rows.select(chosen)
    lengths = [len(ids) for ids in few["input_ids"]] if "input_ids" in few.column_names else [0] * len(few)
    order = np.argsort(-np.asarray(lengths), kind="stable")
    found = np.empty((len(few), model.config.num_labels))
    device, training = next(model.parameters()).device, model.training
    model.eval()
    hidden = True if label is None or len(order) < 500 else None  # None: shown in a terminal only
    for start in tqdm(range(0, len(order), size), desc=label, disable=hidden):
        places = order[start : start + size]
        batch = parts.collator([_unlabeled(few[int(place)]) for place in places])
        batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        logits = model(**model_inputs(model, batch))["logits"]
        found[places] = torch.softmax(logits.float(), -1).cpu().numpy()
    model.train(training)
    return found


def _unlabeled(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("label", "labels")}


@torch.no_grad()
def _give(weights: WeightSet, values: dict[str, Tensor]) -> None:
    for name, parameter in weights.parameters.items():
        parameter.copy_(values[name])


def _spread(mean_KC: np.ndarray, rows: np.ndarray, count: int, labels_L: np.ndarray) -> FirstLabels:
    classes = mean_KC.shape[1]
    prior_C = propagation.estimate_prior(mean_KC, np.bincount(labels_L, minlength=classes))
    target_NC, weight_N = np.tile(prior_C, (count, 1)), np.zeros(count)
    target_NC[rows], weight_N[rows] = mean_KC, 1
    return FirstLabels(target_NC, weight_N, prior_C)


def visited(batches: Iterable, count: int, pool: int) -> np.ndarray:
    """Returns the sorted numbers of the pool's rows in the first ``count`` of ``TwoStreamBatches``."""
    seen: set[int] = set()
    epoch = 0
    while count > 0 and len(seen) < pool:
        batches.set_epoch(epoch)
        for batch in batches:
            seen |= {key.index for key in batch if key.unlabeled}
            count -= 1
            if count == 0:
                break
        epoch += 1
    batches.set_epoch(0)
    return np.asarray(sorted(seen), dtype=np.int64)


def _read(path: Path, digest: str) -> Found | None:
    if not path.is_file():
        return None
    with np.load(path) as stored:
        values = {name: stored[name] for name in stored.files}
    if str(values.pop("digest")) != digest:
        return None
    held_out = float(values.pop("held_out"))
    return Found(held_out, FirstLabels(**values) if values else None)


def _write(path: Path, found: Found, digest: str) -> None:
    arrays = ("target_NC", "weight_N", "prior_C")
    values = {} if found.labels is None else {name: getattr(found.labels, name) for name in arrays}
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.part")
    with full_disk_told(path, "free some space"):
        with side.open("wb") as file:
            np.savez(file, digest=digest, held_out=found.held_out, **values)
        os.replace(side, path)
