"""A square of an image covered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_llm_recipes.data.augmentation.base import Augmentation
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Cutout(Augmentation):
    """Covers a square with the image's mean (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).

    The paper's square may hang over the edge and is filled with the data set's mean.

    Args:
        size: Side of the square, as a share of the image's shorter side, in (0, 1).

    Raises:
        ValueError: ``size`` out of range.
    """

    kind: ClassVar[str] = "image"

    size: float = 0.35

    def __post_init__(self) -> None:
        if not 0 < self.size < 1:
            raise ValueError(f"size is {self.size}; allowed: more than 0, less than 1")

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with a square covered."""
        image_CHW = np.array(row["pixel_values"], dtype=np.float32)
        _, height, width = image_CHW.shape
        side = max(1, round(self.size * min(height, width)))
        top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
        image_CHW[:, top : top + side, left : left + side] = image_CHW.mean(axis=(1, 2), keepdims=True)
        return {**row, "pixel_values": image_CHW}
