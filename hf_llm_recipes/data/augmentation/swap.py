"""Neighbouring tokens exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Swap(Augmentation):
    """Exchanges neighbours (after EDA's random swap, Wei & Zou 2019, https://arxiv.org/abs/1901.11196).

    EDA exchanges any two words; neighbours keep more of the meaning.

    Args:
        rate: Share of the tokens that move, in (0, 1): each pair of neighbours is exchanged with
            probability rate / 2, from left to right.

    Raises:
        ValueError: ``rate`` out of range.
    """

    keeps_length: ClassVar[bool] = False  # as long as before, but tokens leave their places

    rate: float = 0.1

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Looks the special tokens up."""
        self.vocabulary = _common.Vocabulary(pool.processor)

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some neighbours exchanged."""
        ids_T = np.array(row["input_ids"])
        places = self.vocabulary.changeable(row, random)
        for at in (random.random(max(len(places) - 1, 0)) < self.rate / 2).nonzero()[0]:
            one, other = places[at], places[at + 1]
            ids_T[one], ids_T[other] = ids_T[other], ids_T[one]
        return _common.changed(row, "input_ids", ids_T)
