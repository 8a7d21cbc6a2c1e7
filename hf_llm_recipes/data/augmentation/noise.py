"""Gaussian noise on an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hf_llm_recipes.data.augmentation.base import Augmentation
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Noise(Augmentation):
    """Adds independent Gaussian noise to every value.

    Args:
        std: Standard deviation, as a share of the image's own, > 0.

    Raises:
        ValueError: ``std`` out of range.
    """

    kind: ClassVar[str] = "image"

    std: float = 0.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std is {self.std}; allowed: more than 0")

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a noisy copy."""
        image_CHW = np.asarray(row["pixel_values"], dtype=np.float32)
        drawn = random.standard_normal(image_CHW.shape, dtype=np.float32)
        return {**row, "pixel_values": image_CHW + self.std * image_CHW.std() * drawn}
