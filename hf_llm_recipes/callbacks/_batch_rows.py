"""Which training rows a batch was made of, found by what is in them once somebody has to be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEYS = ("input_ids", "pixel_values", "input_values", "input_features", "x")  # by which a row is known
MOST = 500_000  # rows that are searched
# What a loss raises that cannot be computed of one row, or outside a step.
NOT_TAKEN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def rows_of(batch: Any, dataset: Any) -> list[int]:
    """Returns the places of a batch's rows in the data that was read; empty where they cannot be told.

    Args:
        batch: As the collator made it.
        dataset: The Trainer's ``train_dataset``; its column ``row``, where it has one, holds the places.
    """
    if not isinstance(batch, Mapping):
        return []
    dataset = getattr(dataset, "labeled", dataset)  # of two streams
    if torch.is_tensor(batch.get("index")):
        found: list[int] = batch["index"].tolist()
    else:
        found = _found(batch, dataset)
    names = getattr(dataset, "column_names", None) or []
    return [int(dataset[place]["row"]) for place in found] if "row" in names else found


def _found(batch: Mapping[str, Any], dataset: Any) -> list[int]:
    key = next((key for key in KEYS if torch.is_tensor(batch.get(key))), None)
    if key is None or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return []
    wanted = [_signature(content) for content in _contents(batch, key)]
    known: dict[bytes, int] = {}
    left = set(wanted)
    for place, value in enumerate(_column(dataset, key)):
        if not left or place >= MOST:
            break
        signature = _signature(value)
        if signature in left:
            known[signature] = place
            left.discard(signature)
    return [known[signature] for signature in wanted if signature in known]


def _contents(batch: Mapping[str, Any], key: str) -> Iterator[Tensor]:
    """Each row without its padding."""
    mask = batch.get("attention_mask")
    for number, value in enumerate(batch[key].detach().cpu()):
        masked = torch.is_tensor(mask) and mask.dim() == 2 and mask.shape[:2] == batch[key].shape[:2]
        yield value[mask[number].bool().cpu()] if masked else value


def _column(dataset: Any, key: str) -> Iterator[Any]:
    names = getattr(dataset, "column_names", None)
    if names is not None:
        yield from dataset[key] if key in names else ()
        return
    for place in range(len(dataset)):
        row = dataset[place]
        if not isinstance(row, Mapping) or key not in row:
            return
        yield row[key]


def _signature(value: Any) -> bytes:
    content = np.asarray(value)
    kind = np.float32 if np.issubdtype(content.dtype, np.floating) else np.int64
    return content.astype(kind).tobytes()


def guilty(trainer: Any, batch: Any) -> list[int]:
    """Returns the places in a batch of rows whose own loss is not finite; empty where none is found."""
    if not isinstance(batch, Mapping) or "unlabeled" in batch or not torch.is_tensor(batch.get("labels")):
        return []
    count = len(batch["labels"])
    model, training = trainer.model, trainer.model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    found = []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for place in range(count):
                one = {k: v[place : place + 1] if _is_of_rows(v, count) else v for k, v in batch.items()}
                loss = trainer.compute_loss(model, trainer._prepare_inputs(one))
                if not torch.isfinite(loss).all():
                    found.append(place)
    except NOT_TAKEN:
        return []
    finally:
        model.train(training)
    return found


def _is_of_rows(value: Any, count: int) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and len(value) == count
