"""Frozen layers: only the head and the last layers are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hf_llm_recipes.registry import TUNINGS
from hf_llm_recipes.tuning.base import Tuning


@TUNINGS.register
@dataclass(kw_only=True)
class Freeze(Tuning):
    """Trains the head and the last layers; on a quantised base these stay in full precision.

    Args:
        last: How many of the model's last layers are trained, ≥ 0; 0 trains the head only.
            What stands behind the last layer (a final norm, a pooler) is trained with ``last`` ≥ 1.

    Raises:
        ValueError: ``last`` is negative.
    """

    last: int = 0

    def __post_init__(self) -> None:
        if self.last < 0:
            raise ValueError(f"last is {self.last}; allowed: 0 (head only) or more")

    def full_precision(self, skeleton):
        """The modules that will be trained."""
        return self._trained(skeleton)

    def apply(self, model, *, head, task_type):
        """Freezes all but the head and the last layers."""
        model.requires_grad_(False)
        for name in [*head, *self._trained(model)]:
            model.get_submodule(name).requires_grad_(True)
        return model

    def _trained(self, model) -> list[str]:
        if self.last == 0:
            return []
        stack_name, stack = layer_stack(model)
        if self.last > len(stack):
            raise ValueError(f"last is {self.last}, but `{stack_name}` has {len(stack)} layers")
        layers = [f"{stack_name}.{i}" for i in range(len(stack) - self.last, len(stack))]
        return layers + _behind(model, stack_name)


def layer_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns name and modules of the longest list of equal layers: the transformer's blocks.

    Of an encoder-decoder's two lists of the same length it is the decoder's, which comes last.

    Raises:
        ValueError: the model has no list of two or more layers.
    """
    stacks = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(m) for m in module}) == 1
    ]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of layers to freeze; use `last: 0` or lora")
    longest = max(len(module) for _, module in stacks)
    return [(name, module) for name, module in stacks if len(module) == longest][-1]


def _behind(model: nn.Module, stack_name: str) -> list[str]:
    """Names of the backbone's modules after the layers: siblings of the stack and of its parents."""
    found: list[str] = []
    parts = stack_name.split(".")
    prefix = getattr(model, "base_model_prefix", "")
    for depth in range(len(parts) - 1, 0, -1):
        parent = ".".join(parts[:depth])
        siblings = list(model.get_submodule(parent).named_children())
        place = [name for name, _ in siblings].index(parts[depth])
        found += [f"{parent}.{name}" for name, _ in siblings[place + 1 :]]
        if parent == prefix:
            break
    return [name for name in found if _has_parameters(model.get_submodule(name))]


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
