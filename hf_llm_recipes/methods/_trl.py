"""What every method of trl's needs here: its package, its precision, its extra adapter."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from hf_llm_recipes.errors import MissingExtraError
from hf_llm_recipes.tuning._model import is_quantised

# trl's own defaults are bfloat16 and recomputed activations, on whatever device
DEFAULTS = {"gradient_checkpointing": False, "per_device_eval_batch_size": 4}
REFERENCE = "ref"  # the name of trl's frozen copy of an adapter


def trl_class(name: str) -> type:
    """Returns a class of trl.

    Raises:
        MissingExtraError: trl is not installed.
    """
    try:
        return getattr(importlib.import_module("trl"), name)
    except ImportError as error:
        raise MissingExtraError("trl", "trl") from error


def in_float32(model: Any) -> None:
    """Takes back that trl (1.16) casts the adapters of a quantised base to bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 and not is_quantised(parameter):
            parameter.data = parameter.data.float()


def without_reference(model: Any) -> None:
    """Takes trl's frozen copy of the adapter away, which would be saved beside the trained one."""
    if REFERENCE in getattr(model, "peft_config", {}):
        model.delete_adapter(REFERENCE)
