"""Random tokens left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.registry import AUGMENTATIONS

PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids"}


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Delete(Augmentation):
    """Leaves tokens out (random deletion of EDA, Wei & Zou 2019, https://arxiv.org/abs/1901.11196).

    Args:
        rate: Probability of each token, in (0, 1).

    Raises:
        ValueError: ``rate`` out of range.
    """

    keeps_length: ClassVar[bool] = False

    rate: float = 0.1

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)

    def fit(self, pool: Pool) -> None:
        """Looks the special tokens up."""
        self.vocabulary = _common.Vocabulary(pool.processor)

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a shorter copy."""
        gone = _common.some(self.vocabulary.changeable(row, random), self.rate, random)
        kept = np.ones(len(row["input_ids"]), dtype=bool)
        kept[gone] = False
        shorter = dict(row)
        for key in PER_TOKEN & row.keys():
            shorter = _common.changed(shorter, key, np.asarray(row[key])[kept])
        return shorter
