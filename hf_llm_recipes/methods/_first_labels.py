"""First labels of the pool: what frozen features and fine-tuned models say, mixed.

Half a training on poor labels costs more than the other half brings back. Three supervised models, each
on the labeled rows outside a fold, join label propagation and a probe on frozen features. What they say
is multiplied, each opinion raised to a power, and the powers are those that make the labeled rows
likeliest, each judged by those that did not see it: stacking (Wolpert 1992) of a logarithmic opinion
pool (Genest & Zidek 1986, Combining Probability Distributions).

It costs three supervised trainings of half the steps, and three forwards of each row that is learned
from first where the fine-tuned models' power is worth them.

Shape suffixes: N rows of the pool  C classes  L labeled rows  S opinions.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import Tensor
from tqdm.auto import tqdm

from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.data import propagation
from hf_llm_recipes.errors import InterruptedRunError
from hf_llm_recipes.methods import _features
from hf_llm_recipes.methods._cross_fit import FOLDS, folds, quiet
from hf_llm_recipes.methods._forward import model_inputs
from hf_llm_recipes.methods._teacher import WeightSet
from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.methods.supervised import Supervised
from hf_llm_recipes.rundir import full_disk_told

log = logging.getLogger("hf_llm_recipes")

FLOOR = 1e-4  # of an opinion's probabilities: none is quite sure
PULL = 5.0  # towards equal powers that sum to 1, in nats for a squared distance of 1
MOST = 3.0  # of a power
LEAST = 0.05  # a power below it is not worth three forwards of each row
PASSES = 40  # over the labeled rows at most: few are learned by heart long before
KEPT = "first_labels.npz"
NAME = "fine_tuned"


@dataclass(frozen=True)
class FirstLabels:
    """Soft labels of the pool's rows.

    Args:
        target_NC: Class probabilities.
        weight_N: 1 for the rows that were looked at, 0 for the others.
        prior_C: Estimated class shares of the pool.
        source: Whose labels they are.
        powers: Of each opinion in a mixture; empty where there is none.
    """

    target_NC: np.ndarray
    weight_N: np.ndarray
    prior_C: np.ndarray
    source: str = "fine_tuned"
    powers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What the folds said.

    Args:
        held_out: Accuracy of the fine-tuned models on labeled rows they did not see.
        labels: Of the pool.
    """

    held_out: float
    labels: FirstLabels


def mixture(
    parts: Parts, *, steps: int, rows: np.ndarray, opinions: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Found:
    """Returns the labels of some rows of the pool by fine-tuned models and whoever else has an opinion.

    The model's weights come back as they were. A run that is taken up again reads what was found before.

    Args:
        parts: Of the run; every class has two labeled rows or more.
        steps: Of the whole training.
        rows: Numbers of the rows that are learned from first.
        opinions: Name -> probabilities of labeled rows that it did not see, (L, C), and of the pool, (N, C).

    Raises:
        InterruptedRunError: it was asked to stop.
        RunError: the disk is full.
    """
    keeps = parts.arguments.save_strategy != "no"
    path = Path(parts.arguments.output_dir) / KEPT
    digest = " ".join(_features.rows_sha256(some) for some in (parts.train, parts.unlabeled))
    found = _read(path, digest) if keeps else None
    if found is None:
        found = _mixture(parts, steps, rows, opinions)
        if keeps and parts.arguments.should_save:
            _write(path, found, digest)
    return found


def _mixture(
    parts: Parts, steps: int, rows: np.ndarray, opinions: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Found:
    fold_L, start = folds(parts), WeightSet(parts.model)
    labels_L = np.asarray(parts.train["labels"][:])
    held_out_LC = np.zeros((len(fold_L), parts.model.config.num_labels))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.pt" for number in range(FOLDS)]
        try:
            for number, file in enumerate(files):
                held = np.flatnonzero(fold_L == number)
                log.info(
                    f"first labels: fine-tuning on all labeled rows but {len(held)}, {number + 1} of {FOLDS}"
                )
                _train(parts, np.flatnonzero(fold_L != number), steps, folder)
                held_out_LC[held] = _probabilities(parts, parts.train, held, None)
                with full_disk_told(file, "free some space in the folder for temporary files"):
                    torch.save({name: p.detach().cpu() for name, p in start.parameters.items()}, file)
                start.copy_to_model()
            accuracy = float((held_out_LC.argmax(1) == labels_L).mean())
            powers = _powers({**{k: held for k, (held, _) in opinions.items()}, NAME: held_out_LC}, labels_L)
            said = {name: pool_NC[rows] for name, (_, pool_NC) in opinions.items() if name in powers}
            if NAME in powers:
                said[NAME] = np.zeros((len(rows), held_out_LC.shape[1]))
                for number, file in enumerate(files):
                    _give(start, torch.load(file, weights_only=True))
                    label = f"first labels, model {number + 1} of {FOLDS}"
                    said[NAME] += _probabilities(parts, parts.unlabeled, rows, label) / FOLDS
        finally:
            start.copy_to_model()
            for parameter in start.parameters.values():
                parameter.grad = None
    mixed_KC = said[NAME] if list(powers) == [NAME] else pooled(said, powers)
    return Found(accuracy, _spread(mixed_KC, rows, len(parts.unlabeled), labels_L, powers))


def _powers(held_out: dict[str, np.ndarray], labels_L: np.ndarray) -> dict[str, float]:
    """The powers of the opinions that are worth asking."""
    if len(held_out) == 1:
        return dict.fromkeys(held_out, 1.0)
    found = stacked_powers(held_out, labels_L)
    if found[NAME] >= LEAST:
        return found
    return stacked_powers({name: said for name, said in held_out.items() if name != NAME}, labels_L)


def stacked_powers(held_out: dict[str, np.ndarray], labels_L: np.ndarray) -> dict[str, float]:
    """Returns the powers of opinions whose normalised product makes labels likeliest.

    Minimises Σ_l −log p_l(y_l) + 5 Σ_s (power_s − 1/S)² with p ∝ Π_s p_s^power_s, which is convex: a few
    dozen rows cannot tell much, so the powers are held back towards equal ones.

    Args:
        held_out: Name -> probabilities, (L, C).
        labels_L: Class numbers.
    """
    logs_SLC = np.log(np.clip(np.stack(list(held_out.values())), FLOOR, 1))
    count, equal = len(logs_SLC), 1 / len(logs_SLC)
    own_SL = np.take_along_axis(logs_SLC, labels_L[None, :, None], 2)[..., 0]

    def objective(power_S: np.ndarray) -> tuple[float, np.ndarray]:
        logits_LC = np.tensordot(power_S, logs_SLC, 1)
        total_L = logsumexp(logits_LC, 1)
        soft_LC = np.exp(logits_LC - total_L[:, None])
        loss = float((total_L - power_S @ own_SL).sum() + PULL * ((power_S - equal) ** 2).sum())
        slope_S = ((logs_SLC * soft_LC).sum(2) - own_SL).sum(1) + 2 * PULL * (power_S - equal)
        return loss, slope_S

    found = minimize(
        objective, np.full(count, equal), jac=True, bounds=[(0, MOST)] * count, method="L-BFGS-B"
    )
    return {name: float(power) for name, power in zip(held_out, found.x, strict=True)}


def pooled(said: dict[str, np.ndarray], powers: dict[str, float]) -> np.ndarray:
    """Returns the normalised product of opinions, each raised to its power, (K, C)."""
    logits_KC = sum(powers[name] * np.log(np.clip(soft_KC, FLOOR, 1)) for name, soft_KC in said.items())
    return softmax(logits_KC, 1)


def _train(parts: Parts, rows: np.ndarray, steps: int, folder: str) -> None:
    """One supervised training of half the steps, without checkpoints and evaluations."""
    stops = [callback for callback in parts.callbacks if isinstance(callback, GracefulStop)]
    arguments = quiet(parts, folder)
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    arguments.max_steps = max(1, min(steps // 2, math.ceil(PASSES * len(rows) / batch)))
    arguments.logging_strategy = type(arguments.logging_strategy).NO
    mine = replace(
        parts, train=parts.train.select(rows), eval=None, callbacks=list(stops), arguments=arguments
    )
    Supervised().build(mine).train()
    if any(stop.received is not None for stop in stops):
        raise InterruptedRunError(
            "stopped while the first labels of the pool were made: nothing was saved yet", hint="run it again"
        )


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
    for start in tqdm(range(0, len(order), size), desc=label, disable=label is None or len(order) < 500):
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


def _spread(
    mean_KC: np.ndarray, rows: np.ndarray, count: int, labels_L: np.ndarray, powers: dict[str, float]
) -> FirstLabels:
    classes = mean_KC.shape[1]
    prior_C = propagation.estimate_prior(mean_KC, np.bincount(labels_L, minlength=classes))
    target_NC, weight_N = np.tile(prior_C, (count, 1)), np.zeros(count)
    target_NC[rows], weight_N[rows] = mean_KC, 1
    return FirstLabels(target_NC, weight_N, prior_C, "mixture" if len(powers) > 1 else NAME, powers)


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
    said = json.loads(str(values.pop("said")))
    return Found(said.pop("held_out"), FirstLabels(**values, **said))


def _write(path: Path, found: Found, digest: str) -> None:
    arrays = {name: getattr(found.labels, name) for name in ("target_NC", "weight_N", "prior_C")}
    labels = found.labels
    said = {"held_out": found.held_out, "source": labels.source, "powers": labels.powers}
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.part")
    with full_disk_told(path, "free some space"):
        with side.open("wb") as file:
            np.savez(file, digest=digest, said=json.dumps(said), **arrays)
        os.replace(side, path)
