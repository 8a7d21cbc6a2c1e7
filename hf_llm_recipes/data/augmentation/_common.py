"""What text augmentations share: which tokens may change, and what they change to."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_llm_recipes.data.augmentation.base import Pool
from hf_llm_recipes.errors import DataError


def check_rate(name: str, rate: float) -> None:
    """Refuses a rate outside (0, 1).

    Raises:
        ValueError: names the field.
    """
    if not 0 < rate < 1:
        raise ValueError(f"{name} is {rate}; allowed: more than 0, less than 1")


def special_ids(processor: Any) -> np.ndarray:
    """Returns the ids that are never changed."""
    return np.asarray(sorted(set(processor.all_special_ids)), dtype=np.int64)


def changeable(row: dict[str, Any], special: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns the places that may change: real tokens, of one segment of a pair only.

    A pair is told by its ``token_type_ids``, or else by special tokens between two runs of real ones.

    Args:
        row: Features of one row.
        special: Ids that are never changed.
        random: Chooses the segment.
    """
    ids_T = np.asarray(row["input_ids"])
    real_T = (np.asarray(row["attention_mask"]) != 0) & ~np.isin(ids_T, special)
    places = real_T.nonzero()[0]
    segments = _segments(row, real_T)[places]
    found = np.unique(segments)
    return places[segments == random.choice(found)] if len(found) > 1 else places


def _segments(row: dict[str, Any], real_T: np.ndarray) -> np.ndarray:
    if "token_type_ids" in row:
        kinds = np.asarray(row["token_type_ids"])
        if len(np.unique(kinds[real_T])) > 1:
            return kinds
    starts = real_T & ~np.concatenate([[False], real_T[:-1]])
    return np.cumsum(starts)


def some(places: np.ndarray, rate: float, random: np.random.Generator) -> np.ndarray:
    """Returns each place with probability ``rate``, never all of them."""
    chosen = places[random.random(len(places)) < rate]
    return chosen[:-1] if len(chosen) == len(places) and len(chosen) else chosen


def token_counts(pool: Pool, special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pool's tokens that are not special, and how often each occurs.

    Raises:
        DataError: it has none.
    """
    columns = pool.features["input_ids"]
    everything = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in columns])
    tokens, counts = np.unique(everything, return_counts=True)
    kept = ~np.isin(tokens, special)
    if not kept.any():
        raise DataError("the pool holds no word to draw from", where="data.unlabeled", hint="check the texts")
    return tokens[kept], counts[kept]


def changed(row: dict[str, Any], key: str, values: np.ndarray) -> dict[str, Any]:
    """Returns a copy of a row with one feature replaced."""
    return {**row, key: values.tolist()}
