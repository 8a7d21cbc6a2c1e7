"""A second text of the user's own: a paraphrase, a back-translation."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.errors import DataError, did_you_mean
from hf_llm_recipes.registry import AUGMENTATIONS

log = logging.getLogger("hf_llm_recipes")


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Column(Augmentation):
    """Takes another column of the pool as the strong view; a row without one stays as it is.

    Args:
        column: The other text.
        replaces: The column in whose place it stands.

    Raises:
        ValueError: both are the same column.
    """

    keeps_length: ClassVar[bool] = False

    column: str
    replaces: str = "text"

    def __post_init__(self) -> None:
        if self.column == self.replaces:
            raise ValueError(f"column and replaces are both {self.column!r}; allowed: two different columns")

    def fit(self, pool: Pool) -> None:
        """Encodes the column.

        Raises:
            DataError: a column is missing, or no row has a text in it.
        """
        names = pool.rows.column_names
        for name in (self.column, self.replaces):
            if name not in names:
                raise DataError(
                    f"the unlabeled rows have no column `{name}`{did_you_mean(name, names)}",
                    where="augmentation",
                    allowed=", ".join(names),
                )
        texts = pool.rows[self.column]
        self.filled = np.asarray([isinstance(text, str) and bool(text.strip()) for text in texts])
        if not self.filled.any():
            raise DataError(f"column `{self.column}` holds no text", where="augmentation")
        if not self.filled.all():
            missing = int((~self.filled).sum())
            log.info(
                f"augmentation: {missing:,} of {len(texts):,} rows have no `{self.column}`: left unchanged"
            )
        of_pool = zip(texts, pool.rows[self.replaces], self.filled, strict=True)
        mixed = [text if filled else own for text, own, filled in of_pool]
        rows = pool.rows.remove_columns([self.replaces]).add_column(self.replaces, mixed)
        self.features = pool.encode(rows)

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns the other text's features."""
        return {**row, **self.features[index]} if self.filled[index] else dict(row)
