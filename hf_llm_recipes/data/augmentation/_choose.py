"""One of several augmentations per row, and the ones that a recipe gets when it names none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_llm_recipes.data.augmentation.base import Augmentation
from hf_llm_recipes.registry import AUGMENTATIONS, registered_name


class OneOf:
    """Applies one augmentation to each row, all with equal chance.

    Args:
        views: One or more, fitted.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, views: Sequence[Augmentation]) -> None:
        if not views:
            raise ValueError("there is no augmentation to choose from; allowed: one or more")
        self.views = list(views)

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a changed copy of a row; see ``Augmentation``."""
        chosen = self.views[int(random.integers(len(self.views)))]
        return chosen(row, index, random)


def default_views(kind: str) -> list[Augmentation]:
    """Returns new augmentations: half substitution, half span cutoff; for images shift, rotation, cutout.

    Args:
        kind: ``"text"`` or ``"image"``.
    """
    names = {"text": ("substitute", "cutoff"), "image": ("shift", "rotate", "cutout")}[kind]
    return [AUGMENTATIONS.get(name)() for name in names]


def check_kinds(views: Sequence[Augmentation], kind: str, *, same_length: bool) -> None:
    """Refuses augmentations that do not fit the task's rows.

    Args:
        views: To check.
        kind: ``"text"`` or ``"image"``.
        same_length: Whether tokens must stay where they are (token classification).

    Raises:
        ValueError: names the ones that fit.
    """
    for view in views:
        moves = same_length and not view.keeps_length
        if view.kind != kind or moves:
            reason = f"the rows are {kind}s" if view.kind != kind else "it moves tokens, and each has a tag"
            raise ValueError(
                f"augmentation {registered_name(type(view))} does not fit: {reason}; "
                f"allowed: {', '.join(_fitting(kind, same_length))}"
            )


def _fitting(kind: str, same_length: bool) -> list[str]:
    classes = {name: AUGMENTATIONS.get(name) for name in AUGMENTATIONS.names()}
    return [n for n, c in classes.items() if c.kind == kind and (c.keeps_length or not same_length)]
