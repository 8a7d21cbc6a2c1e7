"""FixMatch: the confident guess on the weak view is the label of the strong view."""

from __future__ import annotations

from dataclasses import dataclass

from hf_llm_recipes.algorithms._common import above, probabilities, require_share
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class FixMatch(Algorithm):
    """1[max p ≥ τ] · H(argmax p, q).

    Sohn et al. 2020, https://arxiv.org/abs/2001.07685, eq. 4. The paper's student labels itself; here an
    EMA teacher does unless the recipe says otherwise.

    Args:
        threshold: τ, in [0, 1].

    Raises:
        ValueError: the threshold is out of range.
    """

    threshold: float = 0.95

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)

    def guess(self, given: Given) -> Guess:
        """Returns the confident items with their likeliest class."""
        return above(probabilities(given.weak_UC), self.threshold)
