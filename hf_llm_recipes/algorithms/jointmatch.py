"""JointMatch: two students label each other, and learn most where they disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_llm_recipes.algorithms._common import (
    RunningMean,
    above,
    load_states,
    probabilities,
    require_momentum,
    require_share,
    states,
    uniform,
)
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class JointMatch(Algorithm):
    """w · 1[max p ≥ τ_c] · H(argmax p, q), p of the other student, τ_c = τ · p̄_c / max p̄.

    Zou & Caragea 2023, https://arxiv.org/abs/2310.14583, §3: adaptive local thresholds (p̄ is the average
    of p, of both students as in the authors' code), cross-labeling, and w larger where the two students'
    likeliest classes differ than where they agree. The authors' code calls it disagreement where only one
    of the two is above its threshold; each of its students is its own teacher, here its EMA is.

    One guess teaches one student: a step asks for two, with ``weak_UC`` and ``peer_UC`` exchanged. The
    thresholds take classes for about equally frequent, which tokens' are not.

    Args:
        threshold: τ, in [0, 1].
        disagreement_weight: w on disagreement, in [0, 1]; agreement gets one minus it.
        momentum: Of p̄, in [0, 1). The authors' .9, ten guesses: it fits short trainings as it is.

    Raises:
        ValueError: a field is out of range.
    """

    students: ClassVar[int] = 2
    problems: ClassVar[tuple[str, ...]] = ("single_label",)

    threshold: float = 0.95
    disagreement_weight: float = 0.9
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)
        require_share("disagreement_weight", self.disagreement_weight)
        require_momentum(self.momentum)

    def start(self, num_classes: int, num_rows: int) -> None:
        """Makes the average."""
        self.mean = RunningMean(uniform(num_classes), self.momentum)
        self.parts = {"mean": self.mean}

    def guess(self, given: Given) -> Guess:
        """Returns what the teaching student is confident of, weighted by disagreement.

        Raises:
            ValueError: the logits of the student that is taught are missing.
        """
        if given.peer_UC is None:
            raise ValueError("peer_UC is None; allowed: the logits of the student that is taught")
        probability_UC = probabilities(given.weak_UC)
        mean_C = self.mean.update(probability_UC.mean(0))
        class_U = probability_UC.argmax(-1)
        thresholds_C = self.threshold * mean_C / mean_C.max()
        guess = above(probability_UC, thresholds_C[class_U])
        differs_U = class_U != given.peer_UC.argmax(-1)
        weight = self.disagreement_weight
        guess.weight_U = guess.weight_U * torch.where(differs_U, weight, 1 - weight)
        guess.stats["threshold"] = thresholds_C.mean().item()
        guess.stats["disagreement"] = differs_U.float().mean().item()
        return guess

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return states(self.parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; see ``load_states``."""
        load_states(self, self.parts, state)
