"""Cross-entropy of a language model's head, chunk by chunk: never more than a chunk's logits live.

``loss_in_head`` lets a model run as it is and stands in for its output embedding during the call. The
stand-in takes the hidden states at supervised positions and gives their summed loss back in the place
of the logits.

Shapes: B rows, T tokens, K supervised tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK_LOGITS = {"cuda": 2**26}  # that live at once: 256 MiB in float32 on a GPU
CHUNK_LOGITS_ELSEWHERE = 2**23  # 32 MiB
SMALLEST_CHUNK = 16  # tokens


def targets(labels: Tensor, *, shifted: bool) -> Tensor:
    """Returns what each position (B, T) is to predict; -100 where nothing."""
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED) if shifted else labels


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Returns how many positions' logits are computed at once."""
    return max(SMALLEST_CHUNK, CHUNK_LOGITS.get(device_type, CHUNK_LOGITS_ELSEWHERE) // vocab_size)


@contextmanager
def loss_in_head(
    head: nn.Module, target_BT: Tensor, vocab_size: int, label_smoothing: float = 0.0
) -> Iterator[None]:
    """While open, a call of the model that owns ``head`` has the summed loss (1, 1, 1) as its logits.

    Raises:
        ValueError: (in the call) the head is not given one hidden state a position.
    """
    original = head.forward
    # A plain layer's gradient is taken at once; a wrapped one (adapters, quantised, offloaded) is called.
    plain = type(head) is nn.Linear and "forward" not in head.__dict__

    def forward(hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hidden_BTD.shape[:-1] != target_BT.shape:
            raise ValueError(
                f"the head is given {tuple(hidden_BTD.shape[:-1])} positions, not {tuple(target_BT.shape)}"
            )
        chosen_K = (target_BT.flatten() != IGNORED).nonzero().squeeze(1)
        x_KD = hidden_BTD.flatten(0, -2).index_select(0, chosen_K)
        target_K = target_BT.flatten().index_select(0, chosen_K)
        if plain:
            loss = linear_loss(head, x_KD, target_K, label_smoothing)
        else:
            call = lambda x: original(x, *args, **kwargs)  # noqa: E731
            loss = called_loss(call, x_KD, target_K, vocab_size, label_smoothing)
        return loss.view(1, 1, 1)

    with replaced_forward(head, forward):
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Another ``forward`` for one instance, hooks of its class and of others left in place."""
    own = module.__dict__.get("forward")  # accelerate's hooks put one there
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def linear_loss(head: nn.Linear, x_KD: Tensor, target_K: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns the summed cross-entropy of a linear layer, in float32; its gradient is taken at once.

    Args:
        head: The layer.
        x_KD: Hidden states.
        target_K: Token ids.
        label_smoothing: In [0, 1): that share of the target is spread over the vocabulary.
    """
    return _LinearLoss.apply(x_KD, head.weight, head.bias, target_K, label_smoothing, torch.is_grad_enabled())


def called_loss(
    call: Callable[[Tensor], Tensor],
    x_KD: Tensor,
    target_K: Tensor,
    vocab_size: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Returns what ``linear_loss`` does for any head; each chunk is computed again in the backward pass."""
    if len(target_K) == 0:
        return x_KD.float().sum()  # 0, with a graph
    rows = chunk_rows(vocab_size, x_KD.device.type)
    losses = [
        checkpoint(_chunk_loss, call, x, target, label_smoothing, use_reentrant=False)
        for x, target in zip(x_KD.split(rows), target_K.split(rows), strict=True)
    ]
    return torch.stack(losses).sum()


def _chunk_loss(call, x, target, label_smoothing):
    return cross_entropy(call(x).float(), target, reduction="sum", label_smoothing=label_smoothing)


class _LinearLoss(torch.autograd.Function):
    """sum_k CE(W x_k + b, target_k); gradients are made beside the logits, which are then dropped.

    A third of the arithmetic of computing them again, and no logits wait for the backward pass.
    """

    @staticmethod
    def forward(ctx, x_KD, weight_VD, bias_V, target_K, label_smoothing, wanted):
        needs = [wanted and given for given in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(given) if need else None
            for given, need in zip((x_KD, weight_VD, bias_V), needs, strict=True)
        ]
        total = torch.zeros((), dtype=torch.float32, device=x_KD.device)
        rows = chunk_rows(len(weight_VD), x_KD.device.type)
        for start in range(0, len(target_K), rows):
            x, target = x_KD[start : start + rows], target_K[start : start + rows, None]
            logits = linear(x, weight_VD, bias_V)
            log_probs = logits.log_softmax(-1, dtype=torch.float32)
            total -= (1 - label_smoothing) * log_probs.gather(1, target).sum()
            if label_smoothing:
                total -= label_smoothing * log_probs.mean(1).sum()
            if any(needs):
                dtype = logits.dtype
                del logits
                grad = _logit_gradient(log_probs, target, label_smoothing).to(dtype)
                _accumulate(grads, grad, x, weight_VD, slice(start, start + rows))
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        grads = [None if grad is None else grad * scale.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*grads, None, None, None)


def _logit_gradient(log_probs, target, label_smoothing):
    """softmax(logits) - target distribution, in the place of the log-probabilities."""
    grad = log_probs.exp_()
    if label_smoothing:
        grad -= label_smoothing / grad.shape[1]
    return grad.scatter_add_(1, target, grad.new_full(target.shape, label_smoothing - 1.0))


def _accumulate(grads, grad, x, weight_VD, rows):
    of_x, of_weight, of_bias = grads
    if of_x is not None:
        of_x[rows] = grad @ weight_VD
    if of_weight is not None:
        of_weight.addmm_(grad.T.to(of_weight.dtype), x.to(of_weight.dtype))
    if of_bias is not None:
        of_bias += grad.sum(0)
