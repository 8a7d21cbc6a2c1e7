"""SoftMatch: every guess counts, the less the further its confidence is below the average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_llm_recipes.algorithms._common import (
    MOMENTUM,
    Alignment,
    RunningMean,
    Towards,
    load_states,
    one_hot,
    probabilities,
    require,
    require_alignment,
    require_momentum,
    states,
)
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class SoftMatch(Algorithm):
    """w · H(argmax p, q), w = exp(−min(max p̃ − μ, 0)² · n_σ² / (2σ²)); μ, σ² are averages of max p̃.

    Chen et al. 2023, https://arxiv.org/abs/2301.10921, §3. Alignment (p̃) decides the weight only;
    the label comes from the raw p. The paper aligns to the uniform distribution, here the estimated prior
    is the default; its averages start at 1/C and 1, which a training of hundreds of steps would not
    forget, ours as the plain means of the steps so far.

    Args:
        n_sigma: n_σ, above 0: how soon the weight falls off.
        alignment: Towards which class shares; see ``Alignment``.
        momentum: Of all averages, in [0, 1); .99 for hundreds of steps, the paper's .999 for 100,000.

    Raises:
        ValueError: a field is out of range.
    """

    problems: ClassVar[tuple[str, ...]] = ("single_label", "tokens")

    n_sigma: float = 2.0
    alignment: Towards = "estimated"
    momentum: float = MOMENTUM

    def __post_init__(self) -> None:
        require(0 < self.n_sigma < float("inf"), "n_sigma", self.n_sigma, "above 0")
        require_alignment(self.alignment)
        require_momentum(self.momentum)

    def start(self, num_classes: int, num_rows: int) -> None:
        """Makes the averages."""
        self.align = Alignment(self.alignment, self.momentum, num_classes)
        self.mean = RunningMean(torch.tensor(1 / num_classes), self.momentum)
        self.variance = RunningMean(torch.tensor(1.0), self.momentum)
        self.parts = {"alignment": self.align, "mean": self.mean, "variance": self.variance}

    def guess(self, given: Given) -> Guess:
        """Returns the likeliest classes and their weights in (0, 1]."""
        probability_UC = probabilities(given.weak_UC)
        confidence_U = self.align(probability_UC, given).amax(-1)
        mean = self.mean.update(confidence_U.mean())
        if len(confidence_U) > 1:  # one value has no variance
            self.variance.update(confidence_U.var())
        variance = self.variance.value.to(mean.device).clamp_min(1e-12)  # zero where all are alike
        below_U = (confidence_U - mean).clamp_max(0)
        weight_U = torch.exp(-(below_U**2) * self.n_sigma**2 / (2 * variance))
        target_UC = one_hot(probability_UC.argmax(-1), probability_UC.shape[-1])
        stats = {
            "confidence": confidence_U.mean().item(),
            "threshold": mean.item(),
            "item_weight": weight_U.mean().item(),
        }
        return Guess(target_UC, weight_U, stats)

    def state_dict(self) -> dict[str, Any]:
        """All averages."""
        return states(self.parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; see ``load_states``."""
        load_states(self, self.parts, state)
