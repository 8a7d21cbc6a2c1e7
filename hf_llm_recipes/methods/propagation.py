"""Label propagation: soft labels of the pool from frozen features, learned from start to end.

method: propagation
data:
  name: …
  unlabeled: pool.csv
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hf_llm_recipes.algorithms.pseudo_label import PseudoLabel
from hf_llm_recipes.data import propagation as spreading
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods import _frozen
from hf_llm_recipes.methods._features import frozen_features
from hf_llm_recipes.methods._semi_trainer import SemiSupervisedTrainer, WarmStart
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.registry import METHODS

log = logging.getLogger("hf_llm_recipes")


@METHODS.register
@dataclass(kw_only=True)
class Propagation(Method):
    """Cross-entropy on labeled rows, and on changed views of pool rows with propagated soft labels.

    The labels are spread once over the neighbour graph of the frozen features (Zhou et al. 2004; see
    ``data/propagation.py``) and do not change while the model trains: no teacher pass, and no feedback
    of the model's own mistakes. For tasks with one class a row.

    Args:
        unlabeled_ratio: Unlabeled rows for each labeled one in a batch, > 0.
        neighbors: Of each row in the graph, ≥ 1 and fewer than the rows.
        alpha: How far labels travel, in (0, 1).
        confidence: Mean largest probability of the soft labels, between 1 / classes and 1.
        prior: Class shares of the pool that the labels are matched to: ``estimated``, ``uniform``,
            ``labeled`` (those of the labeled rows), or one share a class.
        export: Whose weights are judged and saved: ``ema`` (the moving average over the steps) or
            ``student`` (the last step's).
        ema_decay: Of the average, in [0, 1); None: 1 − 14/T over T steps.

    Raises:
        ValueError: a value out of range, or values that do not go together.
    """

    takes_unlabeled: ClassVar[bool] = True
    refused_callbacks: ClassVar[dict[str, str]] = {
        "ema": "ema has no place here: this method keeps an average of its own (method.export)"
    }

    unlabeled_ratio: float = 3.0
    neighbors: int = 15
    alpha: float = 0.99
    confidence: float = 0.75
    prior: Literal["estimated", "uniform", "labeled"] | list[float] = "estimated"
    export: Literal["ema", "student"] = "ema"
    ema_decay: float | None = None
    _inner: _Given = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"neighbors is {self.neighbors}; allowed: 1 or more")
        for name in ("alpha", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: more than 0, less than 1")
        if self.export == "student" and self.ema_decay is not None:
            raise ValueError("ema_decay has no effect where the student is exported; allowed: export: ema")
        self._inner = _Given(
            unlabeled_ratio=self.unlabeled_ratio,
            teacher=self.export,
            ema_decay=self.ema_decay,
            prior=self.prior,
            warmup_fraction=0.0,
            guard=False,
        )

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        return SemiSupervised.arguments_class()

    def build(self, parts: Parts) -> SemiSupervisedTrainer:
        """Returns the Trainer; features, labels and baselines are computed here."""
        problem = parts.task.item_problem
        if problem != "single_label":
            raise ValueError(
                f"labels are propagated for one class a row, not for a {problem} task; "
                "allowed: method: semi_supervised or self_training"
            )
        if parts.unlabeled is None or len(parts.unlabeled) == 0:
            raise DataError(
                "there are no unlabeled rows",
                where="data",
                hint="name them in `data.unlabeled`, or keep few labels with `data.labels_per_class`",
            )
        frozen = _frozen.seen_once(parts, lambda: self._spread(parts))
        self._held_out = frozen.held_out
        self._baselines = frozen.baselines()  # now: full tuning changes the features
        self._inner.target_NC = torch.from_numpy(frozen.target_NC).float()
        self._inner.prior_C = torch.from_numpy(np.asarray(frozen.prior_C)).float()
        return self._inner.build(replace(parts, algorithm=PseudoLabel()))

    def variants(self, trainer: SemiSupervisedTrainer) -> dict[str, AbstractContextManager]:
        """The last step's weights beside an exported average."""
        return self._inner.variants(trainer)

    def report(self, trainer: SemiSupervisedTrainer) -> dict[str, Any]:
        """The class shares, and how right propagation was on labeled rows held out in turn."""
        return {
            "exported": self.export,
            "prior": [round(float(share), 4) for share in trainer.prior_C],
            "held_out_accuracy": self._held_out,
        }

    def baselines(self, trainer: SemiSupervisedTrainer) -> dict[str, np.ndarray]:
        """Probe and propagation on frozen features, on the test rows."""
        return self._baselines

    def _spread(self, parts: Parts) -> _frozen.Frozen:
        classes = parts.model.config.num_labels
        labels = np.asarray(parts.train["labels"][:], dtype=np.int64)
        features_ND = np.concatenate(
            [_features(parts, parts.train, "labeled"), _features(parts, parts.unlabeled, "pool")]
        )
        labels_N = np.concatenate([labels, np.full(len(parts.unlabeled), -1)])
        graph = spreading.neighbor_graph(features_ND, self.neighbors)
        counts_C = np.bincount(labels, minlength=classes)
        found = spreading.propagate(
            None,
            labels_N,
            classes,
            alpha=self.alpha,
            confidence=self.confidence,
            prior=self._shares(counts_C),
            graph=graph,
        )
        held_out: dict[str, float] = {}
        if counts_C.min() > 1:
            held_out = spreading.held_out_accuracy(features_ND, labels_N, classes, graph=graph)
        if held_out and held_out["probe"] > held_out["propagation"] + _frozen.CLEARLY:
            log.warning(
                f"of labeled rows held out in turn a probe had {100 * held_out['probe']:.0f} % right, "
                f"propagation {100 * held_out['propagation']:.0f} %: its labels may do harm here"
            )
        target_NC = found.probabilities_NC[len(labels) :]
        test_MD = _features(parts, _frozen.first_test_rows(parts), "test")
        return _frozen.Frozen(
            features_ND, labels_N, target_NC, found.prior_C, "propagation", held_out, test_MD
        )

    def _shares(self, counts_C: np.ndarray) -> np.ndarray | None:
        if self.prior == "estimated":
            return None
        if self.prior == "uniform":
            return np.full(len(counts_C), 1 / len(counts_C))
        if self.prior == "labeled":
            return counts_C / counts_C.sum()
        return np.asarray(self.prior)


class _Given(SemiSupervised):
    """Semi-supervised training whose targets are given once and for all; its algorithm is never asked."""

    target_NC: Tensor
    prior_C: Tensor

    def _uses_features(self, parts: Parts) -> bool:
        return False

    def _warm_start(self) -> WarmStart:
        return WarmStart(self.target_NC, torch.ones(len(self.target_NC)), until=1.0)

    def _prior(self, parts: Parts, num_classes: int) -> Tensor:
        return self.prior_C


def _features(parts: Parts, rows: Any, name: str) -> np.ndarray:
    return frozen_features(
        parts.model,
        rows,
        parts.collator,
        batch_size=_frozen.BATCH,
        label=f"{name} features",
        directory=parts.cache / "features",
    )
