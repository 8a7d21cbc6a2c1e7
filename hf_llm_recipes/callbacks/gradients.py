"""How large the gradients of the model's parts are."""

from __future__ import annotations

import re

import torch

from hf_llm_recipes.callbacks._figures import Figures
from hf_llm_recipes.registry import CALLBACKS

PART = re.compile(r"^(.*?\w+\.\d+)\.")  # up to the first number: encoder.layer.3
WRAPPERS = re.compile(r"^(base_model\.model\.|module\.|_orig_mod\.)+")


@CALLBACKS.register
class Gradients(Figures):
    """Adds ``gradients/PART`` to each log of the training loss: the 2-norm of a part's gradients.

    A part is a block of the model (``encoder.layer.3``), or what lies outside of blocks by its first two
    names (``bert.embeddings``, ``classifier``). After clipping, and of the logged step only.
    """

    def __init__(self) -> None:
        self._found: dict[str, float] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Looks at the gradients of a step that will be logged."""
        step = state.global_step + 1
        first = args.logging_first_step and step == 1
        if not first and step % max(1, int(state.logging_steps or 1)):
            return
        squares: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                part = part_of(name)
                squares[part] = squares.get(part, 0) + parameter.grad.detach().float().pow(2).sum()
        self._found = {f"gradients/{part}": value.sqrt().item() for part, value in squares.items()}

    def figures(self, args, state, logs):
        """Of the step that is logged."""
        found, self._found = self._found, {}
        return found


def part_of(name: str) -> str:
    """Returns the part of a model that a parameter belongs to."""
    name = WRAPPERS.sub("", name)
    block = PART.match(name)
    if block:
        return block.group(1)
    names = [word for word in name.split(".")[:-1] if word not in ("default", "modules_to_save")]
    return ".".join(names[:2]) or name
