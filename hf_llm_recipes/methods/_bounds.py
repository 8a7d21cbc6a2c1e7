"""Bounds of the numbers under ``trainer:`` that upstream takes unseen and fails on late, or in silence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.recipe import Recipe

Bound = tuple[str, Callable[[float], bool]]

ONE_OR_MORE: Bound = ("1 or more", lambda value: value >= 1)
ZERO_OR_MORE: Bound = ("0 or more", lambda value: value >= 0)
POSITIVE: Bound = ("more than 0", lambda value: value > 0)
SHARE: Bound = ("0 or more, below 1", lambda value: 0 <= value < 1)
BOUNDS: dict[str, Bound] = {
    # -1 is upstream's "as many as the epochs give"; at 0 it trains one step all the same
    "max_steps": ("1 or more, or -1 to count in epochs", lambda value: value >= 1 or value == -1),
    **dict.fromkeys(("num_train_epochs", "save_steps", "eval_steps"), POSITIVE),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        ONE_OR_MORE,
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "dataloader_num_workers"),
        ZERO_OR_MORE,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), SHARE),
}
SEEDS = 2**32  # what numpy takes


def check_bounds(recipe: Recipe, trainer: dict[str, Any]) -> None:
    """Checks the numbers of ``trainer:`` and ``seed:``.

    Raises:
        RecipeError: one that no training can use, at its line.
    """
    for key, (allowed, holds) in BOUNDS.items():
        value = trainer.get(key)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise RecipeError(
                f"trainer.{key} is {value}", where=recipe.where("trainer", key), allowed=allowed
            )
    for path in (("seed",), ("trainer", "data_seed")):
        seed = recipe.get("seed") if path == ("seed",) else trainer.get("data_seed")
        if seed is not None and not 0 <= seed < SEEDS:
            raise RecipeError(
                f"{'.'.join(path)} is {seed}", where=recipe.where(*path), allowed=f"0 to {SEEDS - 1:,}"
            )
