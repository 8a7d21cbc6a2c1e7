"""Says when the evaluations have become worse for long while the training loss goes on falling."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from transformers.trainer_callback import ExportableState

from hf_llm_recipes.callbacks._figures import InMetrics
from hf_llm_recipes.registry import CALLBACKS

log = logging.getLogger("hf_llm_recipes")


@CALLBACKS.register
@dataclass(kw_only=True, eq=False)
class Overfitting(InMetrics, ExportableState):
    """Watches the evaluation loss and says once what to try; it stops nothing.

    Args:
        patience: Evaluations in a row that are worse than the best before it speaks, ≥ 1.

    Raises:
        ValueError: a value out of range.
    """

    section: ClassVar[str] = "guard"

    patience: int = 3

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}; allowed: 1 or more")
        self.best: float | None = None
        self.best_step = self.worse = self.told_at = 0
        self.loss_at_best: float | None = None
        self.loss: float | None = None  # of the training, as last logged

    def state(self) -> dict[str, Any]:
        """Its arguments and counters, for the checkpoint."""
        names = ("best", "best_step", "worse", "told_at", "loss_at_best", "loss")
        return {
            "args": {field.name: getattr(self, field.name) for field in fields(self)},
            "attributes": {name: getattr(self, name) for name in names},
        }

    def report(self) -> dict[str, Any]:
        """What was found, for ``metrics.json``; empty where nothing was."""
        if not self.told_at:
            return {}
        return {
            "overfitting": {"best_step": self.best_step, "best_eval_loss": self.best, "told_at": self.told_at}
        }

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remembers the training loss."""
        if logs and "loss" in logs:
            self.loss = logs["loss"]

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Compares the evaluation with the best before it."""
        found = (metrics or {}).get("eval_loss")
        if found is None:
            return
        if self.best is None or found < self.best:
            self.best, self.best_step, self.loss_at_best = found, state.global_step, self.loss
            self.worse = 0
            return
        self.worse += 1
        falls = None not in (self.loss, self.loss_at_best) and self.loss < self.loss_at_best
        if self.worse >= self.patience and falls and not self.told_at:
            self.told_at = state.global_step
            log.warning("%s", self._said(found, state.global_step, args))

    def _said(self, found: float, step: int, args: Any) -> str:
        advice = "fewer steps, a lower learning_rate, weight_decay, dropout or more rows"
        if not args.load_best_model_at_end:
            advice = f"load_best_model_at_end: true with the callback early_stopping; or {advice}"
        return (
            f"step {step}: overfitting. eval_loss is {found:.4g}; it was best, {self.best:.4g}, at step "
            f"{self.best_step}, {self.worse} evaluations ago, while the training loss fell from "
            f"{self.loss_at_best:.4g} to {self.loss:.4g}. Try {advice}"
        )
