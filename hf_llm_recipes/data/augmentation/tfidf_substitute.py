"""Unimportant tokens replaced by unimportant ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class TfidfSubstitute(Augmentation):
    """Replaces tokens of low TF-IDF and keeps the keywords.

    UDA (Xie et al. 2020, https://arxiv.org/abs/1904.12848, appendix A.2): a token is replaced with
    probability min(rate · (C − s) / Z, 1), s its TF-IDF in the row, C the row's largest, Z the row's mean
    of C − s; the new token is drawn in proportion to max S − S, S = frequency · IDF over the pool.

    Args:
        rate: Mean probability of a row's tokens (less where the bound of 1 bites), in (0, 1). A token may
            be drawn in its own place.

    Raises:
        ValueError: ``rate`` out of range.
    """

    rate: float = 0.15

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Counts tokens and the rows that hold each."""
        self.vocabulary = _common.Vocabulary(pool.processor)
        tokens, counts = self.vocabulary.counts(pool)
        rows = [np.unique(np.asarray(ids, dtype=np.int64)) for ids in pool.features["input_ids"]]
        present, rows_with = np.unique(np.concatenate(rows), return_counts=True)
        idf = np.log(len(rows) / rows_with[np.isin(present, tokens)])
        importance = counts / counts.sum() * idf
        weights = importance.max() - importance
        self.draw = _common.Sampler(tokens, weights if weights.any() else np.ones(len(tokens)))
        self.tokens, self.idf = tokens, idf

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some tokens replaced."""
        ids_T = np.array(row["input_ids"])
        places = self.vocabulary.changeable(row, random)
        if len(places):
            chosen = _common.some(places, self._chances(ids_T[places]), random)
            ids_T[chosen] = self.draw(len(chosen), random)
        return _common.changed(row, "input_ids", ids_T)

    def _chances(self, ids_K: np.ndarray) -> np.ndarray:
        """Probability of each token to be replaced, (K,); a token that the pool lacks is the rarest."""
        at = np.minimum(np.searchsorted(self.tokens, ids_K), len(self.tokens) - 1)
        idf_K = np.where(self.tokens[at] == ids_K, self.idf[at], self.idf.max())
        _, where, counts = np.unique(ids_K, return_inverse=True, return_counts=True)
        score_K = counts[where] / len(ids_K) * idf_K
        room_K = score_K.max() - score_K
        mean = room_K.mean()
        return np.full(len(ids_K), self.rate) if mean == 0 else np.minimum(self.rate * room_K / mean, 1.0)
