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

    In UDA (Xie et al. 2020, https://arxiv.org/abs/1904.12848) often as good as back-translation (Lowell
    et al. 2020, https://arxiv.org/abs/2010.11966).

    Args:
        rate: Probability of each token, in (0, 1). A token may be drawn in its own place.
        distribution: ``unigram``: as often as a token occurs in the pool; ``uniform``: all alike.

    Raises:
        ValueError: ``rate`` or ``distribution`` out of range.
    """

    rate: float = 0.15
    distribution: Literal["unigram", "uniform"] = "unigram"

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)
        if self.distribution not in ("unigram", "uniform"):
            raise ValueError(f"distribution is {self.distribution!r}; allowed: unigram, uniform")

    def fit(self, pool: Pool) -> None:
        """Counts the pool's tokens."""
        self.vocabulary = _common.Vocabulary(pool.processor)
        tokens, counts = self.vocabulary.counts(pool)
        weights = np.ones(len(tokens)) if self.distribution == "uniform" else counts
        self.draw = _common.Sampler(tokens, weights)

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some tokens replaced."""
        ids_T = np.array(row["input_ids"])
        places = _common.some(self.vocabulary.changeable(row, random), self.rate, random)
        ids_T[places] = self.draw(len(places), random)
        return _common.changed(row, "input_ids", ids_T)
