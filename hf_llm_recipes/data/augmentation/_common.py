"""What text augmentations share: which tokens may change, and what they change to.

Shape suffixes: T tokens of a row  K places that may change  V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_llm_recipes.data.augmentation.base import Pool
from hf_llm_recipes.errors import DataError

SEPARATORS = ("sep_token_id", "eos_token_id", "cls_token_id", "bos_token_id")
STRUCTURE = (*SEPARATORS, "pad_token_id", "mask_token_id")


def check_rate(name: str, rate: float) -> None:
    """Refuses a rate outside (0, 1).

    Raises:
        ValueError: names the field.
    """
    if not 0 < rate < 1:
        raise ValueError(f"{name} is {rate}; allowed: more than 0, less than 1")


class Vocabulary:
    """What a tokenizer's ids mean to an augmentation.

    An unknown word is a word: it may change and ends no segment, but no token becomes unknown.

    Args:
        tokenizer: Of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.special = np.asarray(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
        roles = {getattr(tokenizer, role) for role in STRUCTURE}
        separators = {getattr(tokenizer, role) for role in SEPARATORS}
        unknown = set() if tokenizer.unk_token_id in roles else {tokenizer.unk_token_id}
        size = max(tokenizer.get_vocab().values()) + 1
        self._fixed_V = np.zeros(size, dtype=bool)  # tables: np.isin costs several times as much per row
        self._fixed_V[[i for i in self.special if i not in unknown]] = True
        self._separator_V = np.zeros(size, dtype=bool)
        self._separator_V[[i for i in separators if i is not None]] = True

    def changeable(self, row: dict[str, Any], random: np.random.Generator) -> np.ndarray:
        """Returns the places that may change, (K,): words that are attended to, of one segment only.

        The segments of a pair are told by its ``token_type_ids`` where they have two values among the
        words, else by the separators between words. A tokenizer that gives neither leaves the pair one.

        Args:
            row: Features of one row.
            random: Chooses the segment.
        """
        ids_T = np.asarray(row["input_ids"])
        places = (~self._fixed_V[ids_T] & (attention(row) != 0)).nonzero()[0]
        segments_K = self._segments(row, ids_T, places)
        if not len(places) or (segments_K == segments_K[0]).all():
            return places
        found = np.unique(segments_K)
        return places[segments_K == found[random.integers(len(found))]]

    def _segments(self, row: dict[str, Any], ids_T: np.ndarray, places: np.ndarray) -> np.ndarray:
        if "token_type_ids" in row:
            kinds_K = np.asarray(row["token_type_ids"])[places]
            if (kinds_K != kinds_K[:1]).any():
                return kinds_K
        return np.cumsum(self._separator_V[ids_T])[places]

    def counts(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pool's tokens that are not special, ascending, and how often each occurs.

        Raises:
            DataError: it has none.
        """
        everything = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in pool.features["input_ids"]])
        tokens, counts = np.unique(everything, return_counts=True)
        kept = ~np.isin(tokens, self.special)
        if not kept.any():
            raise DataError(
                "the pool holds no word to draw from", where="data.unlabeled", hint="check the texts"
            )
        return tokens[kept], counts[kept]


class Sampler:
    """Draws tokens with given weights.

    Args:
        tokens: (V,).
        weights: (V,), ≥ 0, not all 0.
    """

    def __init__(self, tokens: np.ndarray, weights: np.ndarray) -> None:
        self.tokens = tokens
        self._cumulative = np.cumsum(weights, dtype=np.float64)
        self._cumulative /= self._cumulative[-1]  # ends at exactly 1, which no draw reaches

    def __call__(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Returns so many independent draws."""
        return self.tokens[np.searchsorted(self._cumulative, random.random(count), side="right")]


def attention(row: dict[str, Any]) -> np.ndarray:
    """Returns a row's attention mask, (T,); all ones where it has none."""
    if "attention_mask" in row:
        return np.asarray(row["attention_mask"])
    return np.ones(len(row["input_ids"]), dtype=np.int64)


def some(places: np.ndarray, chances: float | np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns each place with its probability, never all of them.

    Args:
        places: (K,).
        chances: One for all, or (K,).
        random: Draws.
    """
    chosen = places[random.random(len(places)) < chances]
    if len(chosen) == len(places) and len(places):
        return np.delete(chosen, random.integers(len(chosen)))
    return chosen


def changed(row: dict[str, Any], key: str, values: np.ndarray) -> dict[str, Any]:
    """Returns a copy of a row with one feature replaced; lists stay lists and arrays stay arrays."""
    return {**row, key: values if isinstance(row.get(key), np.ndarray) else values.tolist()}
