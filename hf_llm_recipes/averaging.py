"""An exponential moving average of the trainable weights, swapped in by pointer.

Only what is trained has an average, so that under an adapter it costs the adapter and the head once more,
not a second model; under full fine-tuning it is one copy of all weights. Quantised bases are never touched.
(Mean Teacher: Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

STEPS_REMEMBERED = 14  # default decay = 1 - 14/T over T steps: .999 is for 100,000 of them


def default_decay(steps: int) -> float:
    """Returns 1 − 14/T for a training of T steps, never below 0."""
    return max(0.0, 1 - STEPS_REMEMBERED / max(steps, 1))


class WeightSet:
    """A second set of values for a model's trainable weights.

    Args:
        model: Whose trainable parameters are mirrored.

    Raises:
        ValueError: nothing is trainable.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the model has no trainable weight")
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model computes with these values inside the block; its own come back bit for bit."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchanges these values with the model's."""
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    @torch.no_grad()
    def copy_from_model(self) -> None:
        """Takes the model's present values."""
        for name, parameter in self.parameters.items():
            self.values[name].copy_(parameter)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Gives these values to the model."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The values by name."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes values back.

        Raises:
            ValueError: they belong to another model or tuning.
        """
        if state.keys() != self.values.keys():
            odd = sorted(state.keys() ^ self.values.keys())[0]
            raise ValueError(f"the checkpoint was made with other trainable weights: `{odd}`")
        for name, value in state.items():
            self.values[name].copy_(value)


class MovingAverage(WeightSet):
    """The moving average of a model's trainable weights.

    Weights of 16 bits are averaged in float32: in their own precision a step would move nothing.

    Args:
        model: Whose weights are averaged.
        decay: In [0, 1); ``min(1 − 1/(t + 1), decay)`` is used after step t, so that the average
            starts as the plain mean of the weights so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self.values = {name: v.float() if v.element_size() < 4 else v for name, v in self.values.items()}
        self._aside: dict[str, Tensor] = {}  # the model's own of 16 bits, while it has the average

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the model after optimizer step (or move, if rarer) ``step``, counted from 1."""
        decay = min(1 - 1 / (step + 1), self.decay)
        values = list(self.values.values())  # in the order of the parameters
        weights = [
            p if p.dtype == value.dtype else p.to(value.dtype)
            for p, value in zip(self.parameters.values(), values, strict=True)
        ]
        torch._foreach_lerp_(values, weights, 1 - decay)  # one pass: reads both, writes one

    def swap(self) -> None:
        """Gives the model the average; called again, its own weights."""
        for name, parameter in self.parameters.items():
            value = self.values[name]
            if value.dtype == parameter.dtype:
                parameter.data, self.values[name] = value, parameter.data
            elif name in self._aside:
                parameter.data = self._aside.pop(name)
            else:
                self._aside[name], parameter.data = parameter.data, value.to(parameter.dtype)
