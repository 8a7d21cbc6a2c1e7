"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from dataclasses import dataclass

from hf_llm_recipes.registry import TUNINGS
from hf_llm_recipes.tuning.base import Tuning


@TUNINGS.register
@dataclass(kw_only=True)
class Full(Tuning):
    """Trains every weight of the model."""

    def full_precision(self, skeleton):
        """Refuses: quantised weights have no gradient, so nothing would be left to train in full."""
        raise ValueError(
            "full fine-tuning cannot train quantised weights; "
            "use `tuning: lora`, or `tuning: {name: freeze, last: n}`, or take `quantization:` out"
        )

    def apply(self, model, *, head, task_type):
        """Makes every parameter trainable."""
        return model.requires_grad_(True)
