"""Tokens and rows a second, without padding, and how much of the device's matrix product they make."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers.trainer_callback import ExportableState

from hf_llm_recipes.callbacks._figures import Figures
from hf_llm_recipes.registry import CALLBACKS

SIDE = 1024  # of the matrices whose product is timed, 2.1 GFLOP
PRODUCTS = 8


@CALLBACKS.register
class Throughput(Figures, ExportableState):
    """Adds ``throughput/…`` to each log of the training loss.

    ``tokens_per_second`` and ``samples_per_second``: what the model was given in training mode, padding left
    out, over the seconds of the steps (evaluations and saving left out). ``padding_share`` in [0, 1]: of
    all places computed. ``tokens_total``: since the training began, a resumed one's earlier part included.
    ``mfu`` in [0, 1]: the arithmetic of these tokens, 2 operations a weight forward, 2 backward to the
    inputs where something below is trained, 2 to the trained weights (attention's products are left out,
    as in Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, and embeddings that are only looked up), as
    a share of the fastest of a few matrix products timed on this device in the model's own precision when
    training begins.

    Of several processes the figures are those of the first.
    """

    def __init__(self) -> None:
        self.tokens_total = 0
        self.peak_flops: float | None = None
        self._hook: Any = None
        self._begun: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._seconds, self._places = 0.0, 0
        self._samples: Any = 0  # tensors while the device computes
        self._tokens: Any = 0

    def state(self) -> dict[str, Any]:
        """How many tokens there were, for the checkpoint."""
        return {"args": {}, "attributes": {"tokens_total": self.tokens_total + int(self._tokens)}}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Times the device's matrix product and begins to count what the model is given."""
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        mixed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else parameter.dtype
        self.peak_flops = matrix_product_flops(parameter.device, mixed)
        self._flops_per_token = flops_per_token(model)
        self._clear()
        if self._hook is not None:  # the training before ended with an error
            self._hook.remove()
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def on_train_end(self, args, state, control, **kwargs):
        """Stops to count."""
        self._hook.remove()
        self._hook = None

    def on_step_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self._begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """Stops the clock."""
        if isinstance(self._tokens, torch.Tensor) and self._tokens.is_cuda:
            torch.cuda.synchronize(self._tokens.device)
        self._seconds += time.perf_counter() - self._begun

    def figures(self, args, state, logs):
        """Since the last log."""
        tokens, seconds = int(self._tokens), self._seconds
        self.tokens_total += tokens
        found = {"throughput/samples_per_second": int(self._samples) / seconds}
        if self._places:
            found |= {
                "throughput/tokens_per_second": tokens / seconds,
                "throughput/padding_share": 1 - tokens / self._places,
                "throughput/tokens_total": self.tokens_total,
                "throughput/mfu": tokens * self._flops_per_token / seconds / self.peak_flops,
            }
        self._clear()
        return found

    def _see(self, module: Any, given: tuple, named: dict[str, Any]) -> None:
        if not module.training:
            return
        ids = named.get("input_ids", given[0] if given else None)
        ids = named.get("pixel_values") if ids is None else ids
        ids = named.get("inputs_embeds") if ids is None else ids
        if not torch.is_tensor(ids):
            return
        positions, mask = named.get("position_ids"), named.get("attention_mask")
        if ids.ndim != 2:  # images, or vectors in place of tokens
            self._samples += len(ids)
            return
        packed = positions is not None and positions.shape == ids.shape
        self._samples = self._samples + ((positions == 0).sum() if packed else len(ids))
        self._places += ids.numel()
        plain = torch.is_tensor(mask) and mask.shape == ids.shape
        self._tokens = self._tokens + (mask.sum() if plain else ids.numel())


def flops_per_token(model: Any) -> int:
    """Returns the operations of a training step for each token, attention's products left out."""
    table = getattr(model, "get_input_embeddings", lambda: None)()
    head = getattr(model, "get_output_embeddings", lambda: None)()
    table_weights = [] if table is None else list(table.parameters())
    tied = head is not None and any(head.weight is weight for weight in table_weights)
    upwards = [p for p in model.parameters() if not any(p is weight for weight in table_weights)]
    operations, trained_below = 0, any(weight.requires_grad for weight in table_weights)
    for parameter in [*upwards, *(table_weights if tied else [])]:
        if parameter.ndim >= 2:
            operations += 2 * (1 + trained_below + parameter.requires_grad) * _weights(parameter)
        trained_below |= parameter.requires_grad
    return operations


def _weights(parameter: Any) -> int:
    """Weights of a tensor; bitsandbytes packs two of 4 bits into a byte."""
    packed = type(parameter).__name__ == "Params4bit" and parameter.dtype == torch.uint8
    return parameter.numel() * (2 if packed else 1)


def matrix_product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the operations a second of the fastest of a few large matrix products, additions counted.

    It draws nothing at random.
    """
    dtype = dtype if dtype.is_floating_point else torch.float32
    left = torch.linspace(-1, 1, SIDE * SIDE, device=device).view(SIDE, SIDE).to(dtype)
    fastest = float("inf")
    with torch.no_grad():
        left @ left
        for _ in range(PRODUCTS):
            begun = time.perf_counter()
            product = left @ left
            product[0, 0].item()  # waits for the device
            fastest = min(fastest, time.perf_counter() - begun)
    return 2 * SIDE**3 / fastest
