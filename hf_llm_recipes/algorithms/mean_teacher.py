"""Mean Teacher: the student follows the average of its own past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import kl_divergence, probabilities, require
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class MeanTeacher(Algorithm):
    """‖q − p‖² summed over classes, or KL(p ‖ q), with p of the EMA teacher.

    Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780, §2. The teacher runs without noise and the
    student on the strong view, where the paper gives both noise of the same kind.

    Args:
        divergence: ``squared`` or ``kl``.

    Raises:
        ValueError: another divergence.
    """

    divergence: Literal["squared", "kl"] = "squared"

    def __post_init__(self) -> None:
        require(self.divergence in ("squared", "kl"), "divergence", self.divergence, "squared or kl")

    def guess(self, given: Given) -> Guess:
        """Returns the teacher's probabilities; every item counts."""
        target_UC = probabilities(given.weak_UC)
        stats = {"confidence": target_UC.amax(-1).mean().item()}
        return Guess(target_UC, torch.ones_like(target_UC[:, 0]), stats)

    def item_losses(self, strong_KC: Tensor, target_KC: Tensor) -> Tensor:
        """Returns how far each item is from the teacher's, (K,)."""
        if self.divergence == "kl":
            return kl_divergence(target_KC, torch.log_softmax(strong_KC, dim=-1))
        return (torch.softmax(strong_KC, dim=-1) - target_KC).square().sum(-1)
