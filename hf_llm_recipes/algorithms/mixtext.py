"""MixText: the answer to a mixture of two hidden states is the mixture of the two answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import Chance, kl_divergence, one_hot, probabilities, require
from hf_llm_recipes.algorithms.base import Algorithm, Forward, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class MixText(Algorithm):
    """KL(λ·y_i + (1 − λ)·y_j ‖ f(λ·h_i + (1 − λ)·h_j)), h hidden states, y sharpened guesses.

    Chen et al. 2020, https://arxiv.org/abs/2004.12239, §3 and §4, with λ = max(λ, 1 − λ) of
    Beta(α, α), one a step. Row i is unlabeled, its partner j any row of the step, whose label is known
    where it is labeled. The paper averages a guess over augmented rows and adds a margin on its entropy;
    here the guess is one sharpened prediction without dropout.

    Args:
        alpha: α, above 0; the larger, the nearer λ is to one half.
        temperature: Of the sharpening, in (0, 1]; 1 does not sharpen.
        layer: Number of the layer behind which to mix, 0 or more; None: the middle one.
        partners: ``all`` rows of the step, or only the ``unlabeled``.

    Raises:
        ValueError: a field is out of range.
    """

    teacher: ClassVar[str] = "student"
    through_model: ClassVar[bool] = True
    strong_view: ClassVar[bool] = False
    problems: ClassVar[tuple[str, ...]] = ("single_label",)

    alpha: float = 16.0
    temperature: float = 0.5
    layer: int | None = None
    partners: Literal["all", "unlabeled"] = "all"

    def __post_init__(self) -> None:
        require(0 < self.alpha < float("inf"), "alpha", self.alpha, "above 0")
        require(0 < self.temperature <= 1, "temperature", self.temperature, "above 0, at most 1")
        require(self.layer is None or self.layer >= 0, "layer", self.layer, "0 or more, or none")
        require(self.partners in ("all", "unlabeled"), "partners", self.partners, "all or unlabeled")

    def start(self, num_classes: int, num_rows: int) -> None:
        """Seeds the shares and the partners."""
        self.chance = Chance()

    def guess(self, given: Given) -> Guess:
        """Returns the sharpened probabilities; every row counts."""
        target_UC = probabilities(given.weak_UC, self.temperature)
        stats = {"confidence": target_UC.amax(-1).mean().item()}
        return Guess(target_UC, torch.ones_like(target_UC[:, 0]), stats)

    def loss_through(self, forward: Forward, given: Given, guess: Guess) -> Tensor:
        """Returns the mean divergence over all unlabeled rows, in float32."""
        target_UC = guess.target_UC
        target_NC = target_UC
        if self.partners == "all":
            target_NC = torch.cat([target_UC, one_hot(given.labels_B, target_UC.shape[-1])])
        share, others_U = self.draw(len(target_UC), len(target_NC))
        others_U = others_U.to(target_UC.device)
        rows_U = torch.arange(len(target_UC), device=target_UC.device)
        mixed_UC = share * target_UC + (1 - share) * target_NC[others_U]
        logits_UC = forward.mixed(rows_U, others_U, share, self.layer)
        return kl_divergence(mixed_UC, torch.log_softmax(logits_UC.float(), dim=-1)).mean()

    def draw(self, num_unlabeled: int, num_partners: int) -> tuple[float, Tensor]:
        """Returns λ in [.5, 1] and the number of each unlabeled row's partner, (U,)."""
        seed = int(torch.randint(2**62, (), generator=self.chance.generator))
        share = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        others_N = torch.randperm(num_partners, generator=self.chance.generator)
        return max(share, 1 - share), others_N[:num_unlabeled]

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers are."""
        return self.chance.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; ValueError where it is of another algorithm."""
        self.chance.load_state_dict(state)
