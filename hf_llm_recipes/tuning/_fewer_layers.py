"""A model with some of its layers only: a smaller student that begins with a large model's weights."""

from __future__ import annotations

from typing import Any

from torch.nn import ModuleList


def keep_layers(model: Any, count: int) -> None:
    """Takes layers out of a model, in place, and says so in its configuration.

    The first and the last stay, and those between at even distances (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108, §3, take every other layer).

    Args:
        model: With one stack of ``config.num_hidden_layers`` layers.
        count: Layers to keep, ≥ 2.

    Raises:
        ValueError: the model has fewer layers, or no such stack.
    """
    config = model.config
    layers = config.num_hidden_layers
    if not 2 <= count < layers:
        raise ValueError(f"keep_layers is {count}; allowed: 2 to {layers - 1}, the model has {layers} layers")
    stacks = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, ModuleList) and len(child) == layers
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"keep_layers: {type(model).__name__} has {len(stacks)} stacks of {layers} layers, not one"
        )
    ((parent, name),) = stacks
    kept = kept_layers(layers, count)
    chosen = ModuleList([getattr(parent, name)[i] for i in kept])
    setattr(parent, name, chosen)
    _number(chosen)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]


def kept_layers(layers: int, count: int) -> list[int]:
    """Returns which of ``layers`` stay: ``count`` of them, at even distances, both ends among them."""
    return [round(i * (layers - 1) / (count - 1)) for i in range(count)]


def _number(layers: ModuleList) -> None:
    """Each layer's place in the cache of keys and values."""
    for place, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = place
