"""Direct preference optimization, by trl.

task: preference
method: dpo
trainer: {beta: 0.1}
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_llm_recipes.methods import _trl
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import METHODS


@METHODS.register
@dataclass(kw_only=True)
class DPO(Method):
    """Make chosen answers likelier against rejected ones (Rafailov et al. 2023,
    https://arxiv.org/abs/2305.18290, eq. 7), measured from the model as it began.

    The reference costs nothing with an adapter, whose base it is, and a second model without one. All
    else stands under ``trainer:``, as trl's ``DPOConfig`` has it.
    """

    tasks: ClassVar[tuple[str, ...] | None] = ("preference",)

    @classmethod
    def arguments_class(cls) -> type:
        """``trl.DPOConfig``."""
        return _trl.trl_class("DPOConfig")

    @classmethod
    def argument_defaults(cls) -> dict[str, Any]:
        """Where trl's own would surprise."""
        return _trl.DEFAULTS

    def build(self, parts: Parts) -> Any:
        """Returns trl's ``DPOTrainer``."""
        adapter = hasattr(parts.model, "peft_config")
        columns = ["prompt", "chosen", "rejected"]
        with frozen_quantised_base(parts.model):
            trainer = _trl.trl_class("DPOTrainer")(
                model=parts.model,
                ref_model=None if adapter else copy.deepcopy(parts.model).requires_grad_(False),
                args=parts.arguments,
                train_dataset=parts.train.select_columns(columns),
                eval_dataset=None if parts.eval is None else parts.eval.select_columns(columns),
                processing_class=parts.processing_class,
                callbacks=parts.callbacks,
            )
        _trl.in_float32(trainer.model)
        return trainer

    def finish(self, trainer: Any) -> None:
        """The frozen copy of the adapter is not part of the model."""
        _trl.without_reference(trainer.model)
