"""Rows before and after an augmentation, for a look at what a recipe does to them.

Shape suffixes: C channels  H rows of pixels  W columns of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hf_llm_recipes.data.augmentation.base import Augmentation

HIDDEN = "░"
SHADES = " ░▒▓█"
MOST_CELLS = 16  # of a drawn image, each way; a cell is two characters wide, about a square


def preview(
    features: Any, view: Augmentation, processor: Any, count: int, seed: int, kind: str
) -> list[tuple[str, str]]:
    """Returns rows before and after, as rich markup.

    A text is its tokens with spaces between them, without padding and separators; in its view a changed
    token is bold and a hidden one ``░``. An image is drawn in blocks, the brighter the fuller.

    Args:
        features: The pool as features.
        view: A fitted augmentation, or several (``OneOf``).
        processor: The tokenizer; of images not looked at.
        count: How many rows at most, ≥ 1; drawn at random, in the pool's order.
        seed: Of the rows and of the views.
        kind: ``"text"`` or ``"image"``.

    Raises:
        ValueError: ``count`` out of range.
    """
    if count < 1:
        raise ValueError(f"count is {count}; allowed: 1 or more")
    size = min(count, len(features))
    chosen = np.sort(np.random.default_rng(seed).choice(len(features), size, replace=False))
    pairs = []
    for index in chosen.tolist():
        row = features[index]
        after = view(row, index, np.random.default_rng((seed, index)))
        pairs.append(_texts(row, after, processor) if kind == "text" else _images(row, after))
    return pairs


def format_preview(pairs: Sequence[tuple[str, str]]) -> Table:
    """Returns a table for a rich console: one row a pair of ``preview``."""
    table = Table("as it is", "strong view", show_lines=True)
    for pair in pairs:
        table.add_row(*(Text.from_markup(cell) for cell in pair))
    return table


def _texts(before: dict[str, Any], after: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    old, new = _tokens(before, tokenizer), _tokens(after, tokenizer)
    changed = _changed([token for token, _ in old], [token for token, _ in new])
    return _line(old, set()), _line(new, changed)


def _tokens(row: dict[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """Each token and whether it is hidden, without padding at the ends and without separators."""
    shown = {tokenizer.mask_token_id, tokenizer.unk_token_id}
    left_out = set(tokenizer.all_special_ids) - shown
    ids = row["input_ids"]
    attended = row.get("attention_mask", [1] * len(ids))
    return [
        (tokenizer.decode([token]).strip(), not seen)
        for token, seen in zip(ids, attended, strict=True)
        if token not in left_out
    ]


def _changed(old: list[str], new: list[str]) -> set[int]:
    """Numbers of the new tokens that differ from the old ones: in place where both are as long."""
    if len(old) == len(new):
        return {i for i, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]}
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return {i for step, _, _, start, stop in steps if step != "equal" for i in range(start, stop)}


def _line(tokens: list[tuple[str, bool]], changed: set[int]) -> str:
    words = []
    for i, (word, hidden) in enumerate(tokens):
        words.append(Text(HIDDEN * max(1, len(word)) if hidden else word, "bold" if i in changed else ""))
    return Text(" ").join(words).markup  # escapes brackets that open in one token and close in the next


def _images(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, str]:
    old_HW, new_HW = (np.asarray(row["pixel_values"], np.float32).mean(axis=0) for row in (before, after))
    low, high = float(old_HW.min()), float(old_HW.max())
    return _blocks(old_HW, low, high), _blocks(new_HW, low, high)


def _blocks(image_HW: np.ndarray, low: float, high: float) -> str:
    """An image in shades of ``low`` … ``high``, shrunk by means to ``MOST_CELLS`` each way."""
    lines = []
    for band in _parts(image_HW, axis=0):
        cells = np.asarray([part.mean() for part in _parts(band, axis=1)])
        shares = (cells - low) / (high - low or 1.0)
        levels = np.clip(shares * len(SHADES), 0, len(SHADES) - 1).astype(int)
        lines.append("".join(SHADES[level] * 2 for level in levels))
    return "\n".join(lines)


def _parts(image_HW: np.ndarray, axis: int) -> list[np.ndarray]:
    """At most ``MOST_CELLS`` parts of one side, evenly spread (``np.array_split`` puts large ones first)."""
    side = image_HW.shape[axis]
    cells = min(side, MOST_CELLS)
    return np.split(image_HW, np.arange(1, cells) * side // cells, axis=axis)
