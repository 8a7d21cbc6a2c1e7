"""AdaMatch: aligned guesses, and a threshold relative to the confidence on the labeled items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_llm_recipes.algorithms._common import (
    MOMENTUM,
    Alignment,
    Towards,
    above,
    probabilities,
    require_alignment,
    require_momentum,
    require_share,
)
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class AdaMatch(Algorithm):
    """1[max p̃ ≥ τ · mean of max p_labeled] · H(argmax p̃, q), p̃ the aligned p.

    Berthelot et al. 2022, https://arxiv.org/abs/2106.04732, §3; the hard label is that of the authors'
    code. Without their random interpolation of logits, which is about batch statistics that transformers
    do not have, and with the estimated prior where they take the labeled items' mean prediction.

    Args:
        threshold: τ, a share of the mean confidence on the step's labeled items, in [0, 1].
        alignment: Towards which class shares; see ``Alignment``. ``none`` leaves p as it is.
        momentum: Of the average of p, in [0, 1). The authors average over 128 steps; .99 is near that and
            fits a training of hundreds of steps.

    Raises:
        ValueError: a field is out of range or would have no effect.
    """

    problems: ClassVar[tuple[str, ...]] = ("single_label", "tokens")

    threshold: float = 0.9
    alignment: Towards = "estimated"
    momentum: float = MOMENTUM

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)
        require_alignment(self.alignment)
        require_momentum(self.momentum)
        if self.alignment == "none" and self.momentum != MOMENTUM:
            raise ValueError("momentum has no effect where alignment is none")

    def start(self, num_classes: int, num_rows: int) -> None:
        """Makes the averages."""
        self.align = Alignment(self.alignment, self.momentum, num_classes)

    def guess(self, given: Given) -> Guess:
        """Returns the items that are confident for this step, with their likeliest aligned class."""
        # not a number without labeled items, and then no item is kept
        threshold = self.threshold * probabilities(given.labeled_BC).amax(-1).mean()
        guess = above(self.align(probabilities(given.weak_UC), given), threshold)
        guess.stats["threshold"] = threshold.item()
        return guess

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return self.align.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; ValueError where it is of another alignment."""
        self.align.load_state_dict(state)
