"""A span of tokens hidden from attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Cutoff(Augmentation):
    """Hides one span of tokens (span cutoff, Shen et al. 2020, https://arxiv.org/abs/2009.13818).

    The tokens keep their places; no other token attends to them.

    Args:
        rate: Share of the row's words (of a pair: of the segment that is changed), in (0, 1); at least
            one token, never all.

    Raises:
        ValueError: ``rate`` out of range.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Looks the special tokens up."""
        self.vocabulary = _common.Vocabulary(pool.processor)

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with a span hidden; rows of one word stay as they are."""
        places = self.vocabulary.changeable(row, random)
        mask_T = np.array(_common.attention(row))
        if len(places) > 1:
            length = min(max(1, round(self.rate * len(places))), len(places) - 1)
            start = int(random.integers(len(places) - length + 1))
            mask_T[places[start : start + length]] = 0
        return _common.changed(row, "attention_mask", mask_T)
