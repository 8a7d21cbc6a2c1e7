"""The loss of labels that are token ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORED = -100


def token_loss(*, shifted: bool, label_smoothing: float) -> Callable[..., Tensor]:
    """Returns a Trainer's ``compute_loss_func``: the mean over the guessed tokens of an optimizer step.

    Args:
        shifted: Whether a label belongs to the position before it (causal models).
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.
    """
    return partial(_token_loss, shifted=shifted, label_smoothing=label_smoothing)


def _token_loss(
    outputs: Any,
    labels_BT: Tensor,
    num_items_in_batch: Any = None,
    *,
    shifted: bool,
    label_smoothing: float,
) -> Tensor:
    logits_BTV = outputs["logits"]
    if shifted:
        logits_BTV, labels_BT = logits_BTV[:, :-1], labels_BT[:, 1:]
    guessed_BT = labels_BT != IGNORED  # the others' logits are not needed in float32
    labels_K = labels_BT[guessed_BT]
    total = cross_entropy(
        logits_BTV[guessed_BT].float(), labels_K, reduction="sum", label_smoothing=label_smoothing
    )
    items = len(labels_K) if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(items, device=total.device).clamp(min=1)
