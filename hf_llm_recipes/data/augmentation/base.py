"""The base of an augmentation: one way to change a row without changing what it means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass
class Pool:
    """What an augmentation may look at once, before training.

    Args:
        features: The unlabeled rows as features (a ``datasets.Dataset`` of ``input_ids`` and so on, or
            of ``pixel_values``).
        rows: The same rows as they were read, in the same order.
        processor: The tokenizer or image processor.
        encode: Rows -> features, as the task does it.
        seed: Of what is drawn once.
    """

    features: Any
    rows: Any
    processor: Any
    encode: Callable[[Any], Any]
    seed: int = 0


class Augmentation(ABC):
    """Makes a strong view of a row; a subclass is a dataclass whose fields are recipe keys."""

    kind: ClassVar[str] = "text"  # or "image"
    keeps_length: ClassVar[bool] = True  # False: tokens move, so it cannot serve token classification

    def fit(self, pool: Pool) -> None:  # noqa: B027  a hook that may stay empty
        """Learns what it needs of the pool (vocabulary, frequencies, another column).

        Raises:
            DataError: the pool lacks what this augmentation needs.
        """

    @abstractmethod
    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a changed copy of one row's features.

        Args:
            row: Features of one row (``input_ids``, ``attention_mask``, … as lists; or
                ``pixel_values`` as a float32 array (channels, height, width)).
            index: Its number in the pool.
            random: The only source of chance: the same generator state gives the same view.
        """
