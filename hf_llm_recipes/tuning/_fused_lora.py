"""peft's LoRA layers in fewer passes over memory: the same formula, the scale on the r-wide side.

peft computes ``base(x) + B(A(dropout(x))) * s`` in separate steps: three passes over the wide result
forward and two backward, which on a CPU is a tenth of a training step. Here the product with B is added
in the matrix product itself, ``out = x W^T + s (x A^T) B^T``, and so is its part of the gradient.

Layers that are more than that (DoRA and other variants, dropout, several adapters, merged or disabled
ones, mixed precision, compiling) keep peft's own forward; it is looked at in every call.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def fuse_lora(model: nn.Module) -> int:
    """Gives peft's linear LoRA layers the short forward; returns how many.

    Nothing else about the layers changes: names, weights, saving and merging stay peft's.
    """
    from peft.tuners.lora import LoraLayer

    count = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and "forward" not in module.__dict__:
            if getattr(module.get_base_layer(), "weight", None) is None or module.lora_embedding_A:
                continue
            # A bound method, so that a deep copy of the layer computes with its own weights.
            module.forward = MethodType(_forward, module)
            count += 1
    return count


def _forward(layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    name = None if args or kwargs else _plain_adapter(layer, x)
    if name is None:
        return type(layer).forward(layer, x, *args, **kwargs)
    base, scale = layer.base_layer, layer.scaling[name]
    a_RI, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
    x_NI = x.reshape(-1, x.shape[-1])
    if _is_bare_and_frozen(base):
        out_NO = _LinearWithAdapter.apply(x_NI, base.weight, base.bias, a_RI, b_OR, scale)
    else:
        out_NO = base(x_NI)
        if out_NO.dtype != x.dtype:
            return type(layer).forward(layer, x)
        out_NO = torch.addmm(out_NO, linear(x_NI, a_RI), b_OR.T, alpha=scale)
    return out_NO.view(*x.shape[:-1], -1)


def _plain_adapter(layer: nn.Module, x: Tensor) -> str | None:
    """The layer's one adapter, where the formula is all there is to it."""
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    name = names[0]
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if name in layer.lora_variant or type(a) is not nn.Linear or type(b) is not nn.Linear:
        return None
    drops = layer.training and not isinstance(dropout, nn.Identity)
    mixed = torch.is_autocast_enabled(x.device.type) or not (x.dtype == a.weight.dtype == b.weight.dtype)
    if drops or mixed or b.bias is not None or torch.compiler.is_compiling():
        return None
    return name


def _is_bare_and_frozen(base: nn.Module) -> bool:
    return (
        type(base) is nn.Linear
        and type(base.weight) is nn.Parameter
        and not any(p.requires_grad for p in base.parameters())
        and not (base._forward_hooks or base._forward_pre_hooks or "forward" in base.__dict__)
    )


class _LinearWithAdapter(torch.autograd.Function):
    """x W^T + c + s (x A^T) B^T with W and c frozen. Shapes: N tokens, I in, O out, R rank."""

    @staticmethod
    def forward(ctx, x_NI, w_OI, c_O, a_RI, b_OR, scale):
        h_NR = linear(x_NI, a_RI)
        ctx.save_for_backward(x_NI, w_OI, a_RI, b_OR, h_NR)
        ctx.scale = scale
        return linear(x_NI, w_OI, c_O).addmm_(h_NR, b_OR.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NO):
        x_NI, w_OI, a_RI, b_OR, h_NR = ctx.saved_tensors
        grad_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        of_x = (grad_NO @ w_OI).addmm_(grad_NR, a_RI) if ctx.needs_input_grad[0] else None
        of_a = grad_NR.T @ x_NI if ctx.needs_input_grad[3] else None
        of_b = (grad_NO.T @ h_NR).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None
