"""What frozen features say before any training: soft labels of the pool, its prior, and baselines."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm_recipes.data import propagation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods import _features
from hf_llm_recipes.methods._features import frozen_features
from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.rundir import full_disk_told

log = logging.getLogger("hf_llm_recipes")

MOST_TEST_ROWS = 2000  # of the baselines: encoding more would cost more than it tells
BATCH = 32
KEPT = "frozen.npz"
CLEARLY = 0.1  # accuracy on a few dozen rows: a smaller gap between probe and propagation is chance


@dataclass
class Frozen:
    """Frozen features and what follows from them.

    Args:
        features_ND: Of the labeled rows, then the pool.
        labels_N: Classes of the labeled rows; −1 for the pool.
        target_NC: Class probabilities of the pool, by ``source``.
        prior_C: Estimated class shares of the pool.
        source: ``"propagation"``, or ``"probe"`` where labeled rows held out in turn say that it is better.
        held_out: Accuracy of both on those rows; empty where a class has one labeled row only.
        test_MD: Features of the first test rows, made before any weight is trained.
    """

    features_ND: np.ndarray
    labels_N: np.ndarray
    target_NC: np.ndarray
    prior_C: np.ndarray
    source: str
    held_out: dict[str, float]
    test_MD: np.ndarray

    def baselines(self) -> dict[str, np.ndarray]:
        """Probabilities on the first test rows: the probe's, and those of one fitted to the pool's labels."""
        seen, classes = self.labels_N >= 0, self.target_NC.shape[1]
        labels = self.labels_N[seen]
        soft_NC = np.concatenate([np.eye(classes)[labels], self.target_NC])
        return {
            "probe": propagation.probe(self.features_ND[seen], labels, classes, self.test_MD),
            self.source if self.source == "propagation" else "probe on its own labels": (
                propagation.probe_on_soft(self.features_ND, soft_NC, self.test_MD)
            ),
        }


def first_test_rows(parts: Parts) -> Any:
    """Returns the test features that baselines are judged on."""
    return parts.test.select(range(min(MOST_TEST_ROWS, len(parts.test))))


def look(parts: Parts) -> Frozen:
    """Returns features of labeled rows and pool, soft labels of the pool and its class shares."""
    return seen_once(parts, lambda: _look(parts))


def seen_once(parts: Parts, make: Callable[[], Frozen]) -> Frozen:
    """Returns what ``make`` gives, in a run that is taken up again what it gave at first.

    Where a stage has trained the backbone itself, a killed run begins anew with the weights from before
    it, and would see other features.

    Args:
        parts: Of the run.
        make: Computes features and labels.
    """
    if hasattr(parts.model, "peft_config") or parts.arguments.save_strategy == "no":
        return make()
    path = Path(parts.arguments.output_dir) / KEPT
    digest = " ".join(_features.rows_sha256(rows) for rows in (parts.train, parts.unlabeled))
    found = _read(path, digest)
    if found is None:
        found = make()
        if parts.arguments.should_save:
            _write(path, found, digest)
    return found


def _read(path: Path, digest: str) -> Frozen | None:
    """What a run saw before it was killed; None where it saw other rows, or nothing."""
    if not path.is_file():
        return None
    with np.load(path) as stored:
        values = {name: stored[name] for name in stored.files}
    if str(values.pop("digest")) != digest:
        return None
    said = {name: json.loads(str(values.pop(name))) for name in ("source", "held_out")}
    return Frozen(**values, **said)


def _write(path: Path, found: Frozen, digest: str) -> None:
    values = vars(found) | {name: json.dumps(getattr(found, name)) for name in ("source", "held_out")}
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.part")
    with full_disk_told(path, "free some space"):
        with side.open("wb") as file:
            np.savez(file, digest=digest, **values)
        os.replace(side, path)


def _look(parts: Parts) -> Frozen:
    classes = parts.model.config.num_labels
    labeled_ND = _encode(parts, parts.train, "labeled features")
    pool_ND = _encode(parts, parts.unlabeled, "pool features")
    labels = np.asarray(parts.train["labels"][:], dtype=np.int64)
    features_ND = np.concatenate([labeled_ND, pool_ND])
    labels_N = np.concatenate([labels, np.full(len(pool_ND), -1)])
    _check_every_class(labels, parts)
    graph = propagation.neighbor_graph(features_ND)
    found = propagation.propagate(None, labels_N, classes, graph=graph)
    held_out: dict[str, float] = {}
    if np.bincount(labels, minlength=classes).min() > 1:
        held_out = propagation.held_out_accuracy(features_ND, labels_N, classes, graph=graph)
    source, target_NC, prior_C = "propagation", found.probabilities_NC[len(labeled_ND) :], found.prior_C
    if held_out and held_out["probe"] > held_out["propagation"] + CLEARLY:
        source = "probe"
        target_NC = propagation.probe(labeled_ND, labels, classes, pool_ND)
        prior_C = propagation.estimate_prior(target_NC, np.bincount(labels, minlength=classes))
    _tell(source, held_out, prior_C)
    test_MD = _encode(parts, first_test_rows(parts), "test features")
    return Frozen(features_ND, labels_N, target_NC, prior_C, source, held_out, test_MD)


def _check_every_class(labels: np.ndarray, parts: Parts) -> None:
    config = parts.model.config
    absent = [i for i in range(config.num_labels) if i not in set(labels.tolist())]
    if absent:
        raise DataError(
            f"no labeled row of class {config.id2label[absent[0]]!r}: nothing can be guessed of it",
            where="data",
            hint="label a row of it, take it out of `task.labels`, or set `method.warm_start: none`",
        )


def _tell(source: str, held_out: dict[str, float], prior_C: np.ndarray) -> None:
    shares = ", ".join(f"{100 * share:.0f}" for share in prior_C)
    log.info(f"frozen features: first labels of the pool by {source}; estimated class shares {shares} %")
    if held_out:
        scores = ", ".join(f"{name} {100 * score:.0f} %" for name, score in held_out.items())
        log.info(f"frozen features, labeled rows held out in turn: {scores} right")


def _encode(parts: Parts, rows: Any, label: str) -> np.ndarray:
    folder = parts.cache / "features"
    return frozen_features(parts.model, rows, parts.collator, batch_size=BATCH, label=label, directory=folder)
