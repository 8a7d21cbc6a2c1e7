"""FreeMatch: thresholds that follow the model's confidence, and a term against class collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import (
    MOMENTUM,
    RunningMean,
    above,
    load_states,
    one_hot,
    probabilities,
    require,
    require_momentum,
    states,
    uniform,
)
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class FreeMatch(Algorithm):
    """1[max p ≥ τ_c] · H(argmax p, q) + w_f · fairness, τ_c = τ · p̃_c / max p̃.

    Wang et al. 2023, https://arxiv.org/abs/2205.07246, §4. τ is the average of max p, p̃ of p. The fairness
    term is −H(norm(p̃/h̃), norm(p̄/h̄)), h̃ the average histogram of the guesses, p̄ and h̄ the
    mean and histogram of the student's predictions on the strong views that are kept; a class that none
    of them has gives no gradient and is left out. The paper starts its averages at 1/C, ours are the
    plain means of the steps so far. The unlabeled weight of the method scales both terms.

    The thresholds take classes for about equally frequent, which tokens' are not.

    Args:
        fairness_weight: w_f, 0 or more; .001 to .01 is usual.
        momentum: Of all averages, in [0, 1); .99 for hundreds of steps, the paper's .999 for 100,000.

    Raises:
        ValueError: a field is out of range.
    """

    problems: ClassVar[tuple[str, ...]] = ("single_label",)

    fairness_weight: float = 0.01
    momentum: float = MOMENTUM

    def __post_init__(self) -> None:
        weight = self.fairness_weight
        require(0 <= weight < float("inf"), "fairness_weight", weight, "0 or more")
        require_momentum(self.momentum)

    def start(self, num_classes: int, num_rows: int) -> None:
        """Makes the averages."""
        self.threshold = RunningMean(torch.tensor(1 / num_classes), self.momentum)
        self.mean = RunningMean(uniform(num_classes), self.momentum)
        self.histogram = RunningMean(uniform(num_classes), self.momentum)
        self.parts = {"threshold": self.threshold, "mean": self.mean, "histogram": self.histogram}

    def guess(self, given: Given) -> Guess:
        """Returns the items that are confident by the present thresholds."""
        probability_UC = probabilities(given.weak_UC)
        confidence_U, class_U = probability_UC.max(-1)
        threshold = self.threshold.update(confidence_U.mean())
        mean_C = self.mean.update(probability_UC.mean(0))
        self.histogram.update(one_hot(class_U, len(mean_C)).mean(0))
        thresholds_C = threshold * mean_C / mean_C.max()
        guess = above(probability_UC, thresholds_C[class_U])
        guess.stats["threshold"] = threshold.item()
        return guess

    def loss(self, strong_KC: Tensor, guess: Guess, num_items: int) -> Tensor:
        """Returns the weighted cross-entropy plus the fairness term of the items that count."""
        taught = super().loss(strong_KC, guess, num_items)
        counts_K = guess.weight_U > 0
        if self.fairness_weight == 0 or not counts_K.any():
            return taught
        return taught + self.fairness_weight * self.fairness(torch.softmax(strong_KC[counts_K].float(), -1))

    def fairness(self, strong_KC: Tensor) -> Tensor:
        """Returns −H(norm(p̃/h̃), norm(p̄/h̄)) of the student's probabilities."""
        histogram_C = one_hot(strong_KC.detach().argmax(-1), strong_KC.shape[-1]).mean(0)
        device = strong_KC.device
        wanted_C = _over(self.mean.value.to(device), self.histogram.value.to(device))
        found_C = _over(strong_KC.mean(0), histogram_C)
        seen_C = histogram_C > 0
        return (wanted_C[seen_C] * found_C[seen_C].log()).sum()

    def state_dict(self) -> dict[str, Any]:
        """All averages."""
        return states(self.parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; see ``load_states``."""
        load_states(self, self.parts, state)


def _over(probability_C: Tensor, histogram_C: Tensor) -> Tensor:
    """Returns norm(p / h), zero where h is."""
    inverse_C = torch.where(histogram_C > 0, 1 / histogram_C, 0.0)
    ratio_C = probability_C * inverse_C
    return ratio_C / ratio_C.sum()
