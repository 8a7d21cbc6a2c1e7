"""Random tokens replaced by the mask token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Mask(Augmentation):
    """Replaces tokens by the tokenizer's mask token.

    Args:
        rate: Probability of each token, in (0, 1).

    Raises:
        ValueError: ``rate`` out of range.
    """

    rate: float = 0.15

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Looks the mask token up.

        Raises:
            DataError: the tokenizer has none.
        """
        if pool.processor.mask_token_id is None:
            raise DataError(
                "the tokenizer has no mask token",
                where="augmentation",
                allowed="substitute, tfidf_substitute, cutoff, delete, swap",
            )
        self.vocabulary, self.mask = _common.Vocabulary(pool.processor), pool.processor.mask_token_id

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some tokens masked."""
        ids_T = np.array(row["input_ids"])
        ids_T[_common.some(self.vocabulary.changeable(row, random), self.rate, random)] = self.mask
        return _common.changed(row, "input_ids", ids_T)
