"""VAT: the answer should not move under the worst small change of the embeddings.

Shapes: U rows, T tokens, D embedding width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import Chance, kl_divergence, probabilities, require
from hf_llm_recipes.algorithms.base import Algorithm, Forward, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS


@ALGORITHMS.register
@dataclass(kw_only=True)
class VAT(Algorithm):
    """KL(sg f(u) ‖ f(u + r)), r the direction that moves f most, dropout off.

    Miyato et al. 2018, https://arxiv.org/abs/1704.03976, algorithm 1 with one power iteration;
    on embeddings as in Miyato et al. 2017, https://arxiv.org/abs/1605.07725. There embeddings are
    normalised and ε is absolute; here both lengths are relative to the mean norm of a row's token
    embeddings, so that one ε fits every model. Unlabeled rows only, where the paper adds the labeled ones.

    Args:
        epsilon: Length of r over all tokens of a row, in mean norms of its token embeddings; above 0.
        xi: Length of the step that finds r, in the same unit; above 0. Below .01 float32 loses it.

    Raises:
        ValueError: a field is out of range.
    """

    teacher: ClassVar[str] = "student"
    through_model: ClassVar[bool] = True
    strong_view: ClassVar[bool] = False
    problems: ClassVar[tuple[str, ...]] = ("single_label",)

    epsilon: float = 1.0
    xi: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.epsilon < float("inf"), "epsilon", self.epsilon, "above 0")
        require(0 < self.xi < float("inf"), "xi", self.xi, "above 0")

    def start(self, num_classes: int, num_rows: int) -> None:
        """Seeds the directions that the power iteration starts from."""
        self.chance = Chance()

    def guess(self, given: Given) -> Guess:
        """Returns the probabilities without a change; every row counts."""
        target_UC = probabilities(given.weak_UC)
        return Guess(target_UC, torch.ones_like(target_UC[:, 0]))

    def loss_through(self, forward: Forward, given: Given, guess: Guess) -> Tensor:
        """Returns the mean divergence over all rows, in float32."""
        rows_U = torch.arange(len(guess.target_UC), device=guess.target_UC.device)
        embeddings_UTD = forward.embeddings(rows_U)
        change_UTD = self._worst(forward, rows_U, embeddings_UTD.detach(), guess.target_UC)
        return self._moved(forward, rows_U, embeddings_UTD, change_UTD, guess.target_UC).mean()

    def _worst(self, forward: Forward, rows_U: Tensor, embeddings_UTD: Tensor, target_UC: Tensor) -> Tensor:
        """Returns r: one power iteration from a random direction, padding left alone."""
        mask_UT1 = forward.token_mask(rows_U).unsqueeze(-1)
        norms_UT1 = embeddings_UTD.float().norm(dim=-1, keepdim=True) * mask_UT1
        scale_U11 = norms_UT1.sum((1, 2), keepdim=True) / mask_UT1.sum((1, 2), keepdim=True)
        noise_UTD = torch.randn(embeddings_UTD.shape, generator=self.chance.generator).to(mask_UT1.device)
        step_UTD = self.xi * scale_U11 * _unit(noise_UTD * mask_UT1)
        step_UTD.requires_grad_(True)
        moved = self._moved(forward, rows_U, embeddings_UTD, step_UTD, target_UC).sum()
        (gradient_UTD,) = torch.autograd.grad(moved, step_UTD)
        return self.epsilon * scale_U11 * _unit(gradient_UTD * mask_UT1)

    def _moved(
        self,
        forward: Forward,
        rows_U: Tensor,
        embeddings_UTD: Tensor,
        change_UTD: Tensor,
        target_UC: Tensor,
    ) -> Tensor:
        """Returns KL(target ‖ f(u + change)) of each row, (U,)."""
        changed_UTD = (embeddings_UTD.float() + change_UTD).to(embeddings_UTD.dtype)
        logits_UC = forward.logits(rows_U, changed_UTD)
        return kl_divergence(target_UC, torch.log_softmax(logits_UC.float(), dim=-1))

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers are."""
        return self.chance.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; ValueError where it is of another algorithm."""
        self.chance.load_state_dict(state)


def _unit(rows_UTD: Tensor) -> Tensor:
    """Returns each row divided by its length over tokens and width; zero stays zero."""
    largest_U11 = rows_UTD.abs().amax((1, 2), keepdim=True)
    # first to size one: squares of small gradients underflow in float32
    rows_UTD = rows_UTD / largest_U11.clamp_min(torch.finfo(rows_UTD.dtype).tiny)
    length_U11 = rows_UTD.square().sum((1, 2), keepdim=True).sqrt()
    return rows_UTD / length_U11.clamp_min(torch.finfo(rows_UTD.dtype).tiny)
