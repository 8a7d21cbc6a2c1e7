"""Batches cut to some rows, and the forwards that an algorithm may ask of the student."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_llm_recipes.tuning.freeze import layer_stack


def take(batch: dict[str, Tensor], rows_K: Tensor) -> dict[str, Tensor]:
    """Returns some rows of a batch, padded no further than the longest of them."""
    taken = {key: value[rows_K] for key, value in batch.items()}
    mask = taken.get("attention_mask")
    if mask is None:
        return taken
    used = _used(taken)
    width = mask.shape[1]
    return {
        key: value[:, used] if value.dim() > 1 and value.shape[1] == width else value
        for key, value in taken.items()
    }


def _used(batch: dict[str, Tensor]) -> slice:
    """The columns from the first to the last that some row fills, or that hold an item to classify."""
    filled = batch["attention_mask"].bool()
    if "token_items" in batch:  # a hidden token (cutoff) is classified all the same
        filled = filled | batch["token_items"].bool()
    columns = filled.any(0).nonzero().squeeze(-1)
    return slice(int(columns[0]), int(columns[-1]) + 1)


def widths(batch: dict[str, Tensor]) -> Tensor | None:
    """Returns how many tokens each row has, (K,); None for images."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.sum(1)


@lru_cache(maxsize=16)
def _accepted(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)


def model_inputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of a batch that the model's forward takes, without labels."""
    inner = unwrapped(model)
    accepted = _accepted(type(inner))
    return {key: value for key, value in batch.items() if key in accepted and key != "labels"}


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns transformers' model inside peft's or a parallel wrapper."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "peft_config") else inner


class StudentForward:
    """``algorithms.base.Forward`` over a transformers model.

    Args:
        model: The student.
        weak: The step's unlabeled batch.
        labeled: The step's labeled batch.
        task: Turns logits into items.
    """

    def __init__(self, model: nn.Module, weak: dict, labeled: dict, task: Any) -> None:
        self.model, self.weak, self.labeled, self.task = model, weak, labeled, task
        self.inner = unwrapped(model)

    def embeddings(self, rows_K: Tensor) -> Tensor:
        """The input embeddings of some rows, (K, T, D), detached."""
        return self.inner.get_input_embeddings()(self.weak["input_ids"][rows_K]).detach()

    def token_mask(self, rows_K: Tensor) -> Tensor:
        """1 for tokens, 0 for padding, (K, T), float."""
        return self.weak["attention_mask"][rows_K].float()

    def logits(self, rows_K: Tensor, embeddings_KTD: Tensor) -> Tensor:
        """Logits of some rows on given embeddings, dropout off."""
        inputs = model_inputs(self.model, {key: value[rows_K] for key, value in self.weak.items()})
        inputs.pop("input_ids")
        training = self.model.training
        self.model.eval()
        try:
            return self.model(inputs_embeds=embeddings_KTD, **inputs)["logits"].float()
        finally:
            self.model.train(training)

    def mixed(self, rows_K: Tensor, others_K: Tensor, share: float, layer: int | None) -> Tensor:
        """Logits where the hidden states behind ``layer`` (None: the middle one) are mixed."""
        both = _joined(self.weak, {k: v for k, v in self.labeled.items() if k != "labels"})
        count = len(rows_K)
        batch = take(both, torch.cat([rows_K, others_K]))
        inputs = model_inputs(self.model, batch)
        name, stack = layer_stack(self.inner)
        number = min(len(stack) // 2, len(stack) - 2) if layer is None else layer
        if not 0 <= number < len(stack) - 1:
            raise ValueError(f"layer is {number}; allowed: 0 to {len(stack) - 2} (`{name}`)")
        with _mixing(stack[number], count, share):
            return self.model(**inputs)["logits"][:count].float()


@contextmanager
def _mixing(layer: nn.Module, count: int, share: float) -> Iterator[None]:
    """The first ``count`` rows behind a layer become mixtures with the rows that follow them."""

    def mix(module: nn.Module, given: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        mixture = share * hidden[:count] + (1 - share) * hidden[count:]
        hidden = torch.cat([mixture, hidden[count:]])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = layer.register_forward_hook(mix)
    try:
        yield
    finally:
        hook.remove()


def _joined(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two padded batches one above the other, the narrower one padded with zeros on the right."""
    joined = {}
    for key in first.keys() & second.keys():
        a, b = first[key], second[key]
        if a.dim() > 1:
            width = max(a.shape[1], b.shape[1])
            a, b = (nn.functional.pad(x, (0, width - x.shape[1])) for x in (a, b))
        joined[key] = torch.cat([a, b])
    return joined
