"""Vectors of rows, and the loss that tells each row's other view from the other rows.

Shape suffixes: B rows  T tokens  D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from hf_llm_recipes.errors import RunError


def mean_vectors(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns the mean over each row's attended tokens, (B, D), in float32."""
    weight = mask_BT[..., None].float()
    return (states_BTD.float() * weight).sum(1) / weight.sum(1).clamp(min=1)


def view_losses(vectors_2BD: Tensor, temperature: float) -> Tensor:
    """Returns each row's loss, (B,).

    −log(exp(cos(z_i, z'_i)/τ) / Σ_j exp(cos(z_i, z'_j)/τ)), z and z' the two views, j over the B rows.
    """
    first_BD, second_BD = normalize(vectors_2BD.float(), dim=-1)
    similarity_BB = first_BD @ second_BD.T / temperature
    matches_B = torch.arange(len(similarity_BB), device=similarity_BB.device)
    return cross_entropy(similarity_BB, matches_B, reduction="none")


def check_dropout(model: nn.Module, hint: str) -> None:
    """Refuses a model whose two passes over a row would be equal.

    Args:
        model: Gives hidden states.
        hint: What to do instead.

    Raises:
        RunError: it has no dropout.
    """
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if "dropout" in key and isinstance(value, int | float)
    }
    modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    attention = any(value > 0 for key, value in config.items() if "attention" in key)  # often no module
    if not modules and not attention:
        raise RunError(
            f"the model has no dropout ({_said(config)}), so both passes of a row would be equal", hint=hint
        )


def _said(config: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in config.items()) or "no such key"
