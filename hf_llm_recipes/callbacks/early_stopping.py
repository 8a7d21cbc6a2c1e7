"""Stops when the evaluation metric no longer improves."""

from __future__ import annotations

from transformers import EarlyStoppingCallback

from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.registry import CALLBACKS


@CALLBACKS.register
class EarlyStopping(EarlyStoppingCallback):
    """transformers' early stopping under a recipe's name; its counter survives a resume.

    It needs ``eval_strategy``, ``load_best_model_at_end`` and ``metric_for_best_model`` under
    ``trainer:``.

    Args:
        early_stopping_patience: Evaluations without improvement before the stop, ≥ 1.
        early_stopping_threshold: What counts as an improvement, in the metric's unit, ≥ 0.

    Raises:
        ValueError: a value below its bound.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0) -> None:
        if early_stopping_patience < 1 or early_stopping_threshold < 0:
            raise ValueError(
                f"early_stopping_patience is {early_stopping_patience} (allowed: 1 or more), "
                f"early_stopping_threshold is {early_stopping_threshold} (allowed: 0 or more)"
            )
        super().__init__(early_stopping_patience, early_stopping_threshold)

    def on_train_begin(self, args, state, control, **kwargs):
        """Checks that there is something to watch; upstream only asserts."""
        lacking = [
            f"{key}: {value}"
            for key, value, given in (
                ("load_best_model_at_end", "true", args.load_best_model_at_end),
                ("metric_for_best_model", "loss", args.metric_for_best_model),
                ("eval_strategy", "steps", args.eval_strategy != "no"),
            )
            if not given
        ]
        if lacking:
            raise RecipeError(
                "early_stopping has nothing to watch", hint=f"under `trainer:` add {', '.join(lacking)}"
            )
        super().on_train_begin(args, state, control, **kwargs)
