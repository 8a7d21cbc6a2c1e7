"""LoRA and its kin (DoRA, rsLoRA, PiSSA, …) through peft's own arguments."""

from __future__ import annotations

from typing import Any, ClassVar

from hf_llm_recipes.registry import TUNINGS
from hf_llm_recipes.tuning.base import Tuning


@TUNINGS.register
class Lora(Tuning):
    """Low-rank adapters on a frozen base (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Args:
        **config: Arguments of ``peft.LoraConfig``, e.g. ``r``, ``lora_alpha``, ``use_dora``.
            ``target_modules`` defaults to every linear layer of the backbone (QLoRA,
            Dettmers et al. 2023, §4), where peft's own default takes query and value only.

    Raises:
        ValueError: a number that peft refuses only once the model is loaded.
    """

    uses_adapter: ClassVar[bool] = True

    def __init__(self, **config: Any) -> None:
        if config.get("r", 1) < 1:
            raise ValueError(f"r is {config['r']}; allowed: 1 or more")
        if not 0 <= config.get("lora_dropout", 0.0) <= 1:
            raise ValueError(f"lora_dropout is {config['lora_dropout']}; allowed: 0 to 1")
        self.config = {"target_modules": "all-linear", **config}

    @classmethod
    def rest(cls) -> type:
        """``peft.LoraConfig``."""
        from peft import LoraConfig

        return LoraConfig

    @classmethod
    def refused(cls) -> dict[str, str]:
        """What the task decides."""
        return {
            "task_type": "the task decides it",
            "megatron_config": "peft would import any module that megatron_core names",
            "megatron_core": "peft would import any module that it names",
            "base_model_name_or_path": "set `model.name`",
            "inference_mode": "an adapter in training is never in inference mode",
        }

    def full_precision(self, skeleton):
        """``modules_to_save``: they are trained whole; adapters are added to a base of any kind."""
        wanted = self.config.get("modules_to_save") or []
        names = [name for name, _ in skeleton.named_modules()] if wanted else []
        return [name for name in names if any(name == w or name.endswith(f".{w}") for w in wanted)]

    def apply(self, model, *, head, task_type):
        """Wraps the model; the head is trained and saved with the adapter."""
        from peft import get_peft_model, prepare_model_for_kbit_training

        if getattr(model, "is_quantized", False):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        saved = list(dict.fromkeys([*head, *(self.config.get("modules_to_save") or [])]))
        config = self.rest()(**{**self.config, "task_type": task_type, "modules_to_save": saved or None})
        return get_peft_model(model, config)
