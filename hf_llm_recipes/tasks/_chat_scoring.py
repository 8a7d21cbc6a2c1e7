"""The loss of each row on its own supervised tokens, and what a saved model must give again.

Shapes: B rows of a batch, T tokens, N tokens end to end, K supervised tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_llm_recipes.tasks._language import LOGITS_AT_ONCE, causal_logits, padded
from hf_llm_recipes.tasks._packing import IGNORED, PackedCollator, PaddedCollator

PROBED_TOKENS = 64  # of each row


@torch.inference_mode()
def row_losses(model: Any, features: Any, pad_token_id: int, *, packs: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns each row's summed loss in nats and its number of supervised tokens, in order.

    Args:
        model: A causal model in ``eval()``.
        features: Rows of ``input_ids`` and ``labels``.
        pad_token_id: Fills shorter rows; never counted.
        packs: Whether the model keeps rows apart that are laid end to end.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]
    losses, counts = np.zeros(len(features)), np.zeros(len(features), dtype=np.int64)
    lengths = np.asarray([len(ids) for ids in features["input_ids"]])
    for chosen in _batches(lengths, max(1, LOGITS_AT_ONCE // vocabulary), packs=packs):
        rows = [features[int(i)] for i in chosen]
        logits_KV, labels_K, row_K = (_packed if packs else _padded)(model, rows, pad_token_id)
        found_K = cross_entropy(logits_KV.float(), labels_K, reduction="none").double().cpu().numpy()
        np.add.at(losses, chosen[row_K], found_K)
        np.add.at(counts, chosen[row_K], 1)
    return losses, counts


def _batches(lengths: np.ndarray, tokens: int, *, packs: bool) -> Iterator[np.ndarray]:
    """Rows of like length together, at most ``tokens`` a batch with padding, at least one row."""
    order, start, held = np.argsort(-lengths, kind="stable"), 0, 0
    for at, row in enumerate(order):
        size = held + lengths[row] if packs else (at - start + 1) * lengths[order[start]]
        if at > start and size > tokens:
            yield order[start:at]
            start, size = at, lengths[row]
        held = size
    if len(order):
        yield order[start:]


def _packed(model: Any, rows: list[dict], pad_token_id: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """The logits of supervised tokens only, where the model's head can do that; rows end to end."""
    batch = {key: value.to(model.device) for key, value in PackedCollator()(rows).items()}
    target_N = torch.cat([batch["labels"][0, 1:], batch["labels"].new_full((1,), IGNORED)])
    places_K = (target_N != IGNORED).nonzero().squeeze(1)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(base.forward).parameters
    given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if "use_cache" in taken:
        given["use_cache"] = False
    keeps = "logits_to_keep" in taken
    if keeps:
        given["logits_to_keep"] = places_K
    logits_NV = model(**given)["logits"][0]
    row_N = np.repeat(np.arange(len(rows)), [len(row["input_ids"]) for row in rows])
    return (logits_NV if keeps else logits_NV[places_K]), target_N[places_K], row_N[places_K.cpu().numpy()]


def _padded(model: Any, rows: list[dict], pad_token_id: int) -> tuple[Tensor, Tensor, np.ndarray]:
    batch = PaddedCollator(pad_token_id=pad_token_id)(rows)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    target_BT = batch["labels"][:, 1:]
    logits_BTV = causal_logits(model, batch["input_ids"], batch["attention_mask"])[:, :-1]
    counted_BT = target_BT != IGNORED
    return logits_BTV[counted_BT], target_BT[counted_BT], counted_BT.nonzero()[:, 0].cpu().numpy()


@torch.inference_mode()
def probe_rows(model: Any, features: Any, pad_token_id: int) -> np.ndarray:
    """Returns the logits of the first tokens of each row, (tokens, V)."""
    found = []
    for row in features:
        ids_BT, mask_BT = padded([row["input_ids"][:PROBED_TOKENS]], pad_token_id, model.device)
        found.append(causal_logits(model, ids_BT, mask_BT)[0].float().cpu().numpy())
    return np.concatenate(found)
