"""UDA: the strong view follows the sharpened guess on the weak view."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import kl_divergence, probabilities, require, require_share
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS

SCHEDULES = {
    "linear": lambda t: t,
    "log": lambda t: 1 - math.exp(-5 * t),
    "exp": lambda t: math.exp(5 * (t - 1)),
}


@ALGORITHMS.register
@dataclass(kw_only=True)
class UDA(Algorithm):
    """1[max p ≥ τ] · KL(sharpen(p, T) ‖ q).

    Xie et al. 2020, "Unsupervised Data Augmentation for Consistency Training",
    https://arxiv.org/abs/1904.12848, §2. The paper's student is its own teacher; here an EMA
    teacher is unless the recipe says otherwise.

    Args:
        threshold: τ of the confidence before sharpening, in [0, 1].
        temperature: T, in (0, 1]; 1 does not sharpen.
        training_signal_annealing: Leaves out labeled items that are known too well: those whose class has
            a probability above η = α·(1 − 1/C) + 1/C. α grows from 0 to 1 over the training: ``linear``,
            ``log`` (releases soon, for plenty of labels) or ``exp`` (releases late, for few); ``none``
            keeps all.

    Raises:
        ValueError: a field is out of range.
    """

    threshold: float = 0.8
    temperature: float = 0.4
    training_signal_annealing: Literal["none", "linear", "log", "exp"] = "none"

    def __post_init__(self) -> None:
        require_share("threshold", self.threshold)
        require(0 < self.temperature <= 1, "temperature", self.temperature, "above 0, at most 1")
        annealing = self.training_signal_annealing
        names = ("none", *SCHEDULES)
        require(annealing in names, "training_signal_annealing", annealing, ", ".join(names))

    def guess(self, given: Given) -> Guess:
        """Returns the confident items with their sharpened probabilities."""
        confidence_U = probabilities(given.weak_UC).amax(-1)
        target_UC = probabilities(given.weak_UC, self.temperature)
        stats = {"confidence": confidence_U.mean().item()}
        return Guess(target_UC, (confidence_U >= self.threshold).float(), stats)

    def item_losses(self, strong_KC: Tensor, target_KC: Tensor) -> Tensor:
        """Returns KL(target ‖ q), (K,)."""
        return kl_divergence(target_KC, torch.log_softmax(strong_KC, dim=-1))

    def keep_labeled(self, labeled_BC: Tensor, labels_B: Tensor, progress: float) -> Tensor | None:
        """Which labeled items are not yet known too well; None without annealing."""
        if self.training_signal_annealing == "none":
            return None
        alpha = SCHEDULES[self.training_signal_annealing](progress)
        chance = 1 / labeled_BC.shape[-1]
        known_B = probabilities(labeled_BC).gather(-1, labels_B[:, None]).squeeze(-1)
        return known_B <= alpha * (1 - chance) + chance
