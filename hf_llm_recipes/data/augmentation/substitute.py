"""Random tokens replaced by others of the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Substitute(Augmentation):
    """Replaces tokens by tokens drawn from the pool.

    As good as back-translation in UDA's setting (Xie et al. 2020, https://arxiv.org/abs/1904.12848;
    compared in 2010.11966).

    Args:
        rate: Probability of each token, in (0, 1).
        distribution: ``unigram``: as often as a token occurs in the pool; ``uniform``: all alike.

    Raises:
        ValueError: ``rate`` out of range.
    """

    rate: float = 0.15
    distribution: Literal["unigram", "uniform"] = "unigram"

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Counts the pool's tokens."""
        self.special = _common.special_ids(pool.processor)
        self.tokens, counts = _common.token_counts(pool, self.special)
        if self.distribution == "uniform":
            counts = np.ones_like(counts)
        self.cumulative = np.cumsum(counts) / counts.sum()

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some tokens replaced."""
        ids_T = np.array(row["input_ids"])
        places = _common.some(_common.changeable(row, self.special, random), self.rate, random)
        drawn = np.searchsorted(self.cumulative, random.random(len(places)), side="right")
        ids_T[places] = self.tokens[np.minimum(drawn, len(self.tokens) - 1)]
        return _common.changed(row, "input_ids", ids_T)
