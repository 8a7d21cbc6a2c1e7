"""Π-model: two passes with different dropout should say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import probabilities
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class PiModel(Algorithm):
    """Σ over classes of (q₁ − sg q₂)², two passes of the student with dropout over one view.

    Laine & Aila 2017, https://arxiv.org/abs/1610.02242, algorithm 1. The paper divides by the number of
    classes and lets the gradient into both passes; here the second one is a fixed target, which halves the
    memory and, by symmetry, the gradient.
    """

    teacher: ClassVar[str] = "student"
    teacher_dropout: ClassVar[bool] = True
    strong_view: ClassVar[bool] = False

    def guess(self, given: Given) -> Guess:
        """Returns the probabilities of the second pass; every item counts."""
        target_UC = probabilities(given.weak_UC)
        return Guess(target_UC, torch.ones_like(target_UC[:, 0]))

    def item_losses(self, strong_KC: Tensor, target_KC: Tensor) -> Tensor:
        """Returns the squared differences of probabilities, summed over classes, (K,)."""
        return (torch.softmax(strong_KC, dim=-1) - target_KC).square().sum(-1)
