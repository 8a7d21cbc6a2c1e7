"""Rows of token ids of any length -> one batch, padded or packed end to end.

A row is ``{"input_ids": [...], "labels": [...]}``, both lists of ints of the same length; ``labels`` may
be missing (a batch to answer, not to learn from). Other keys are left behind.

Notable:
- In a causal model a label belongs to the position before it. The first label of every sequence has
  none, so it is -100: packed, it would be guessed from the sequence before; padded, it would be counted.
- ``PackedCollator`` wants attention that reads ``position_ids``: `hlr_packed`, or flash attention.
  ``tuning._packed_check`` looks whether a model keeps the sequences apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # of labels: nothing to learn here


@dataclass(kw_only=True)
class PackedCollator:
    """Lays rows end to end in one row (1, N): no padding, nothing computed in vain.

    The batch has ``input_ids``, ``labels`` and ``position_ids`` that restart at 0 for each row, and no
    ``attention_mask``. Empty rows vanish.

    Args:
        shifted_labels: Whether a label belongs to the position before it (causal models).
    """

    shifted_labels: bool = True

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch.

        Raises:
            ValueError: labels and ids of a row differ in length, or no row has a token.
        """
        pairs = [pair for pair in _pairs(rows, shifted=self.shifted_labels) if pair[0]]
        if not pairs:
            raise ValueError(f"none of the {len(rows)} rows of a batch has a token")
        batch = {
            "input_ids": _row(chain.from_iterable(ids for ids, _ in pairs)),
            "position_ids": _row(chain.from_iterable(range(len(ids)) for ids, _ in pairs)),
        }
        if pairs[0][1] is not None:
            batch["labels"] = _row(chain.from_iterable(labels for _, labels in pairs))
        return batch


@dataclass(kw_only=True)
class PaddedCollator:
    """Pads rows on the right to the longest: (B, T) with ``attention_mask``; labels of padding are -100.

    Args:
        pad_token_id: Fills ``input_ids``. It may be a token that also ends sequences: the mask and the
            labels go by position, so that the real one is still learnt.
        shifted_labels: As in ``PackedCollator``.
        pad_to_multiple_of: Rounds T up, for kernels that like it.
    """

    pad_token_id: int
    shifted_labels: bool = True
    pad_to_multiple_of: int = 1

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch.

        Raises:
            ValueError: labels and ids of a row differ in length, or no row has a token.
        """
        pairs = _pairs(rows, shifted=self.shifted_labels)
        longest = max(len(ids) for ids, _ in pairs)
        if longest == 0:
            raise ValueError(f"none of the {len(rows)} rows of a batch has a token")
        length = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {
            "input_ids": _filled((ids for ids, _ in pairs), length, self.pad_token_id),
            "attention_mask": _filled(([1] * len(ids) for ids, _ in pairs), length, 0),
        }
        if pairs[0][1] is not None:
            batch["labels"] = _filled((labels for _, labels in pairs), length, IGNORED)
        return batch


def _pairs(rows: list[dict[str, Any]], *, shifted: bool) -> list[tuple[list[int], list[int] | None]]:
    """The ids and labels of each row; the first label is taken out where it has no position."""
    made = []
    for row in rows:
        ids, labels = list(row["input_ids"]), row.get("labels")
        if labels is not None:
            labels = list(labels)
            if len(labels) != len(ids):
                raise ValueError(f"a row has {len(ids)} input_ids but {len(labels)} labels; one a token")
            labels[:1] = [IGNORED] * min(1, len(labels)) if shifted else labels[:1]
        made.append((ids, labels))
    if any((labels is None) != (made[0][1] is None) for _, labels in made):
        raise ValueError("some rows of a batch have labels and some have none")
    return made


def _row(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)[None]


def _filled(rows: Iterable[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=torch.long)
