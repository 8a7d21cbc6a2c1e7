"""An image turned by a few degrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from hf_llm_recipes.data.augmentation.base import Augmentation
from hf_llm_recipes.registry import AUGMENTATIONS


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Rotate(Augmentation):
    """Turns an image about its middle; its edge fills what is left open.

    Args:
        degrees: Farthest turn either way, in (0, 180].

    Raises:
        ValueError: ``degrees`` out of range.
    """

    kind: ClassVar[str] = "image"

    degrees: float = 15.0

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180:
            raise ValueError(f"degrees is {self.degrees}; allowed: more than 0, at most 180")

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with the image turned."""
        image_CHW = np.asarray(row["pixel_values"], dtype=np.float32)
        angle = float(random.uniform(-self.degrees, self.degrees))
        turned = ndimage.rotate(image_CHW, angle, axes=(1, 2), reshape=False, order=1, mode="nearest")
        return {**row, "pixel_values": turned.astype(np.float32)}
