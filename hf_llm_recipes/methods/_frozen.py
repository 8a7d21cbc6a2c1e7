"""What frozen features say before any training: soft labels of the pool, its prior, and baselines."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.data import propagation
from hf_llm_recipes.methods._features import frozen_features
from hf_llm_recipes.methods.base import Parts

log = logging.getLogger("hf_llm_recipes")

MOST_TEST_ROWS = 2000  # of the baselines: encoding more would cost more than it tells
BATCH = 32


@dataclass
class Frozen:
    """Frozen features and what follows from them.

    Args:
        features_ND: Of the labeled rows, then the pool.
        labels_N: Classes of the labeled rows; −1 for the pool.
        target_NC: Propagated class probabilities of the pool.
        prior_C: Estimated class shares of the pool.
        parts: For the test rows.
    """

    features_ND: np.ndarray
    labels_N: np.ndarray
    target_NC: np.ndarray
    prior_C: np.ndarray
    parts: Parts

    def baselines(self) -> dict[str, np.ndarray]:
        """Probabilities on the first test rows: the probe's, and propagation's through its probe."""
        test = self.parts.test.select(range(min(MOST_TEST_ROWS, len(self.parts.test))))
        test_ND = _encode(self.parts, test, "test features")
        seen = self.labels_N >= 0
        classes = self.target_NC.shape[1]
        everything_NC = np.eye(classes, dtype=np.float32)[np.where(seen, self.labels_N, 0)]
        everything_NC[~seen] = self.target_NC
        return {
            "probe": propagation.probe(self.features_ND[seen], self.labels_N[seen], classes).predict(test_ND),
            "propagation": propagation.probe_on_soft(self.features_ND, everything_NC).predict(test_ND),
        }


def look(parts: Parts) -> Frozen:
    """Returns features of the labeled rows and the pool, and the propagated labels."""
    labeled_ND = _encode(parts, parts.train, "labeled features")
    pool_ND = _encode(parts, parts.unlabeled, "pool features")
    labels = np.asarray(parts.train["labels"][:], dtype=np.int64)
    features_ND = np.concatenate([labeled_ND, pool_ND])
    labels_N = np.concatenate([labels, np.full(len(pool_ND), -1)])
    found = propagation.propagate(features_ND, labels_N, parts.model.config.num_labels)
    target_NC = found.probabilities_NC[len(labeled_ND) :]
    shares = ", ".join(f"{100 * share:.0f}" for share in found.prior_C)
    log.info(f"label propagation on frozen features: estimated class shares of the pool {shares} %")
    return Frozen(features_ND, labels_N, target_NC, found.prior_C, parts)


def _encode(parts: Parts, rows: Any, label: str) -> np.ndarray:
    folder = parts.cache / "features"
    return frozen_features(parts.model, rows, parts.collator, batch_size=BATCH, label=label, directory=folder)
