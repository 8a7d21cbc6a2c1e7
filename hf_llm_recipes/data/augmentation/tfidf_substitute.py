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
    probability min(rate · (C − s) / Z, 1), s its TF-IDF in the row, C the largest, Z the mean of C − s; the
    new token is drawn by (max S − S), S = frequency · IDF over the pool.

    Args:
        rate: Mean probability of a token, in (0, 1).

    Raises:
        ValueError: ``rate`` out of range.
    """

    rate: float = 0.15

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Counts tokens and the rows that hold each."""
        self.special = _common.special_ids(pool.processor)
        self.tokens, counts = _common.token_counts(pool, self.special)
        rows = [np.unique(np.asarray(ids, dtype=np.int64)) for ids in pool.features["input_ids"]]
        present = np.concatenate(rows)
        present = present[~np.isin(present, self.special)]
        document_counts = np.bincount(np.searchsorted(self.tokens, present), minlength=len(self.tokens))
        self.idf = np.log(len(rows) / document_counts)
        importance = counts / counts.sum() * self.idf
        weight = importance.max() - importance
        if weight.sum() == 0:
            weight = np.ones_like(importance)
        self.cumulative = np.cumsum(weight) / weight.sum()

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some tokens replaced."""
        ids_T = np.array(row["input_ids"])
        places = _common.changeable(row, self.special, random)
        if len(places) < 2:
            return _common.changed(row, "input_ids", ids_T)
        chosen = places[random.random(len(places)) < self._chances(ids_T[places])]
        chosen = chosen[:-1] if len(chosen) == len(places) else chosen
        drawn = np.searchsorted(self.cumulative, random.random(len(chosen)), side="right")
        ids_T[chosen] = self.tokens[np.minimum(drawn, len(self.tokens) - 1)]
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
