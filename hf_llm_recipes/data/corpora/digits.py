"""Handwritten digits as small images, from a file that scikit-learn brings."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hf_llm_recipes.data.corpora.base import Corpus, source_root
from hf_llm_recipes.data.splitting import hold_out
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

SIDE = 8
MAX_VALUE = 16  # of a pixel in the file


@CORPORA.register
class Digits(Corpus):
    """1,797 digits of 43 writers, 8x8 pixels in grey (mode L), as PNG.

    Columns: ``image``, ``label`` (a `ClassLabel` "0" to "9"). Pixels of 0 to 16 are scaled to 0 to
    255. A tenth is test, a tenth validation, at random with equal shares of each digit.

    The file does not say who wrote which digit, so a writer may be in two splits, and figures are
    better than on new writers. E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
    UCI Machine Learning Repository, 1998.
    """

    summary = "8x8 images of handwritten digits"
    license = "CC-BY-4.0"
    version = 1
    packages = ("scikit-learn",)

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import ClassLabel, Features, Image

        return Features(
            {"image": Image(mode="L"), "label": ClassLabel(names=[str(digit) for digit in range(10)])}
        )

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row) in the file's order."""
        with gzip.open(source_root("sklearn") / "datasets" / "data" / "digits.csv.gz", "rt") as file:
            values = np.loadtxt(file, delimiter=",").astype(np.int64)
        pixels = ((values[:, :-1] * 255 + MAX_VALUE // 2) // MAX_VALUE).astype(np.uint8)
        labels = values[:, -1].tolist()
        parts = hold_out(len(labels), {"test": 0.1, "validation": 0.1}, groups=labels, seed=0)
        splits = {row: split for split, rows in parts.items() for row in rows.tolist()}
        for row, label in enumerate(labels):
            yield splits[row], {"image": pixels[row].reshape(SIDE, SIDE), "label": label}
