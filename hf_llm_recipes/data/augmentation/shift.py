"""An image moved by a few pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_llm_recipes.data.augmentation.base import Augmentation
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Shift(Augmentation):
    """Moves an image by whole pixels; its edge fills what is left open.

    Args:
        share: Farthest shift in each direction, as a share of the side, in (0, 0.5].

    Raises:
        ValueError: ``share`` out of range.
    """

    kind: ClassVar[str] = "image"

    share: float = 0.125

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.5:
            raise ValueError(f"share is {self.share}; allowed: more than 0, at most 0.5")

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with the image moved."""
        image_CHW = np.asarray(row["pixel_values"], dtype=np.float32)
        _, height, width = image_CHW.shape
        down, right = (
            int(random.integers(-max(1, round(self.share * side)), max(1, round(self.share * side)) + 1))
            for side in (height, width)
        )
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        return {**row, "pixel_values": image_CHW[:, rows][:, :, columns]}
