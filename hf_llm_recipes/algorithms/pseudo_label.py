"""Pseudo-Label: what the teacher is sure of becomes the label, on one view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_llm_recipes.algorithms._common import above, probabilities, require_share
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class PseudoLabel(Algorithm):
    """1[max p ≥ τ] · H(argmax p, q), p and q on the same view.

    Lee 2013, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
    Networks", eq. 15. The paper has no threshold and lets the student label itself; τ and the EMA teacher
    are what its successors added.

    Args:
        threshold: τ, in [0, 1]; 0 takes every item, as the paper does.

    Raises:
        ValueError: the threshold is out of range.
    """

    strong_view: ClassVar[bool] = False

    threshold: float = 0.95

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)

    def guess(self, given: Given) -> Guess:
        """Returns the confident items with their likeliest class."""
        return above(probabilities(given.weak_UC), self.threshold)
