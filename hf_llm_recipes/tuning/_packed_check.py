"""What a model sees that it should not: other sequences of a packed row, or the tokens that it is to guess.

Many do not, and train on without a word: BLOOM and XGLM attend over the whole row, Mamba carries its state
from one sequence into the next, and OPT keeps them apart under `hlr_packed` only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_llm_recipes.errors import RunError

ROWS, TOKENS = 3, 48  # looked at, and of each row
LOOKED_AT = 8  # tokens of the look at what stands behind
# In standard deviations (sd) of the logits: what another order of sums may move them by.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
HINT = "set `task.packing: false`: rows are padded then, and batched by length"


def check_packed(model: nn.Module, rows: Sequence[dict[str, Any]]) -> float:
    """Returns the largest difference between packed and separate logits, in their standard deviations.

    Args:
        model: A causal or masked language model, an adapter on it included; left as it was.
        rows: Features with ``input_ids``; the first few of two tokens and more are looked at.

    Raises:
        RunError: the model lets sequences see each other, or takes no positions.
        ValueError: no row has two tokens.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(base.forward).parameters
    name = type(base).__name__
    if "position_ids" not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        raise _leaks(name, "it takes no position_ids, by which sequences are told apart")
    pieces = _pieces(rows)
    more = {"use_cache": False} if "use_cache" in taken else {}
    with torch.no_grad(), without_dropout(model), rows_rounded_apart(model):
        packed = _packed_logits(model, pieces, more)
        turned = [pieces[0], pieces[1].flip(0).roll(1), *pieces[2:]]
        others = torch.ones(len(packed), dtype=torch.bool)
        others[len(pieces[0]) : len(pieces[0]) + len(pieces[1])] = False
        seen = _difference(_packed_logits(model, turned, more)[others], packed[others])
        alone = torch.cat([_packed_logits(model, [piece], more) for piece in pieces])
    if not seen <= _tolerance(model, torch.float32):
        raise _leaks(name, f"sequences see each other's tokens (their logits move by {seen:.2g} sd)")
    difference = _difference(packed, alone)
    if not difference <= _tolerance(model, model.dtype):
        raise _leaks(name, f"positions count on across sequences (logits move by {difference:.2g} sd)")
    return max(seen, difference)


def check_causal(model: nn.Module) -> None:
    """Looks whether a token's logits hang on the tokens behind it, as those of an encoder do.

    Args:
        model: An adapter on it included; left as it was.

    Raises:
        RunError: they do: the next token, that is to be guessed, is read.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids_1T = torch.arange(LOOKED_AT)[None].to(model.device) % base.config.get_text_config().vocab_size
    changed_1T = torch.cat([ids_1T[:, :-1], ids_1T[:, :1]], dim=1)
    with torch.no_grad(), without_dropout(model), rows_rounded_apart(model):
        found, again = (model(input_ids=ids)["logits"][0, :-1].float() for ids in (ids_1T, changed_1T))
    seen = _difference(again, found)
    if not seen <= _tolerance(model, torch.float32):
        raise RunError(
            f"{type(base).__name__} reads the tokens behind the one it is at (its logits move by "
            f"{seen:.2g} sd): it would copy the next token, not guess it",
            allowed="a decoder, such as local/smollm2-135m",
            hint="an encoder learns from raw text by `task: mlm`",
        )


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """As ``eval()``, for a look in between; 4-bit layers on a CPU would repack and round their weights."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def rows_rounded_apart(model: nn.Module) -> Iterator[None]:
    """8-bit layers round each row by itself inside.

    LLM.int8() keeps a column in 16 bits where any row of the batch is above a threshold, so that other rows
    change how a row is rounded: by a standard deviation of the logits, on a real model, and without a leak.
    """
    before = [(module.state, module.state.threshold) for module in _in_8bit(model)]
    for state, _ in before:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in before:
            state.threshold = threshold


def _in_8bit(model: nn.Module) -> list[Any]:
    if not getattr(model, "is_loaded_in_8bit", False):
        return []
    from bitsandbytes.nn import Linear8bitLt  # peft's layer around one has the same name

    return [module for module in model.modules() if isinstance(module, Linear8bitLt)]


def _leaks(name: str, reason: str) -> RunError:
    return RunError(f"{name} cannot be trained on packed rows: {reason}", hint=HINT)


def _pieces(rows: Sequence[dict[str, Any]]) -> list[Tensor]:
    """The first rows, cut short; a lone one twice, since it takes two to leak."""
    found = []
    for row in rows:
        if len(row["input_ids"]) > 1:
            found.append(torch.as_tensor(row["input_ids"])[:TOKENS])
        if len(found) == ROWS:
            break
    if not found:
        raise ValueError("no row has two tokens, so packing cannot be checked")
    return found if len(found) > 1 else found * 2


def _packed_logits(model: nn.Module, pieces: list[Tensor], more: dict[str, Any]) -> Tensor:
    device = model.device
    ids = torch.cat(pieces)[None].to(device)
    positions = torch.cat([torch.arange(len(piece)) for piece in pieces])[None].to(device)
    return model(input_ids=ids, position_ids=positions, **more)["logits"][0].float()


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.std())


def _tolerance(model: nn.Module, dtype: torch.dtype) -> float:
    # 8 bits: an input that other sums move by its last bit is rounded to its neighbour.
    in_8bit = getattr(model, "is_loaded_in_8bit", False)
    return TOLERANCE.get(torch.bfloat16 if in_8bit else dtype, TOLERANCE[torch.bfloat16])
