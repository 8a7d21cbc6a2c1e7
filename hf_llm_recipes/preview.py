"""What augmentation does to rows, before and after, on one screen.

Shape suffixes: T tokens of a row  C channels  H height  W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation._choose import OneOf, check_kinds, default_views
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.errors import visible
from hf_llm_recipes.methods._streams import VIEWS

REMOVED, ADDED, HIDDEN = "bold red", "bold green", "dim"
HIDDEN_CHARACTER = "░"
SHADES = " ░▒▓█"
LARGEST_SIDE = 16  # of a drawn image, in characters; its columns are two wide


def preview(
    pool: Pool,
    views: Sequence[Augmentation],
    index_list: Sequence[int],
    kind: str = "text",
    *,
    same_length: bool = False,
) -> list[tuple[str, str]]:
    """Returns rows before and after augmentation, as rich's markup.

    These are the views of the first epoch of a run with the pool's seed. Of a text, changed tokens are
    highlighted on both sides and hidden ones are shown as ``░``; an image is drawn in blocks, lighter
    where it is brighter, both sides on one scale.

    Args:
        pool: As a method makes it.
        views: Augmentations, not fitted yet; none for the default ones.
        index_list: Numbers of rows in the pool.
        kind: ``"text"`` or ``"image"``.
        same_length: Whether tokens must stay where they are (token classification).

    Raises:
        ValueError: a view does not fit the rows.
        DataError: the pool lacks what a view needs.
    """
    views = list(views) or default_views(kind)
    check_kinds(views, kind, same_length=same_length)
    for view in views:
        view.fit(pool)
    strong = OneOf(views)
    shown = []
    for index in index_list:
        before = pool.features[int(index)]
        after = strong(before, int(index), np.random.default_rng((pool.seed, VIEWS, 0, int(index))))
        shown.append(_images(before, after) if kind == "image" else _texts(before, after, pool.processor))
    return shown


def format_preview(pairs: Sequence[tuple[str, str]], index_list: Sequence[int] | None = None) -> Table:
    """Returns a table for ``rich.console.Console.print``, one row a pair.

    Args:
        pairs: From ``preview``.
        index_list: The rows' numbers; counted from 0 where they are not given.
    """
    table = Table("row", "before", "after", show_lines=True)
    numbers = range(len(pairs)) if index_list is None else index_list
    for number, (before, after) in zip(numbers, pairs, strict=True):
        table.add_row(str(number), *(Text.from_markup(side, emoji=False) for side in (before, after)))
    return table


def _texts(before: dict[str, Any], after: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    old_T, new_T = np.asarray(before["input_ids"]), np.asarray(after["input_ids"])
    old_changed_T, new_changed_T = _differences(old_T, new_T)
    old_hidden_T, new_hidden_T = _common.attention(before) == 0, _common.attention(after) == 0
    return (
        _marked(tokenizer, old_T, old_changed_T, old_hidden_T, REMOVED),
        _marked(tokenizer, new_T, new_changed_T, new_hidden_T, ADDED),
    )


def _differences(old_T: np.ndarray, new_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens differ: place by place where the lengths agree, else by the longest common runs."""
    if len(old_T) == len(new_T):
        differ_T = old_T != new_T
        return differ_T, differ_T
    old_changed_T, new_changed_T = np.ones(len(old_T), bool), np.ones(len(new_T), bool)
    for run in SequenceMatcher(None, old_T.tolist(), new_T.tolist(), autojunk=False).get_matching_blocks():
        old_changed_T[run.a : run.a + run.size] = False
        new_changed_T[run.b : run.b + run.size] = False
    return old_changed_T, new_changed_T


def _marked(
    tokenizer: Any, ids_T: np.ndarray, changed_T: np.ndarray, hidden_T: np.ndarray, style: str
) -> str:
    """A row's text as markup, without the special tokens around it."""
    words = (~np.isin(ids_T, list(_around(tokenizer)))).nonzero()[0]
    if not len(words):
        return ""
    inside = slice(words[0], words[-1] + 1)
    ids, states = ids_T[inside].tolist(), (changed_T + 2 * hidden_T)[inside]
    ends = [*((states[1:] != states[:-1]).nonzero()[0] + 1).tolist(), len(ids)]
    text, so_far, start = Text(), "", 0
    for end in ends:
        whole = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        piece = whole[len(so_far) :] if whole.startswith(so_far) else tokenizer.decode(ids[start:end])
        if states[start] & 2:
            piece = "".join(c if c.isspace() else HIDDEN_CHARACTER for c in piece)
        text.append(visible(piece), HIDDEN if states[start] & 2 else style if states[start] else "")
        so_far, start = whole, end
    return text.markup


def _around(tokenizer: Any) -> set[int]:
    """Special tokens that only frame a text."""
    roles = [getattr(tokenizer, role) for role in (*_common.SEPARATORS, "pad_token_id")]
    return {role for role in roles if role is not None}


def _images(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, str]:
    old_HW, new_HW = (_grey(row["pixel_values"]) for row in (before, after))
    low, high = float(old_HW.min()), float(old_HW.max())
    return _blocks(old_HW, low, high), _blocks(new_HW, low, high)


def _grey(image_CHW: Any) -> np.ndarray:
    """The mean over the channels, (H, W), shrunk by whole factors to what a terminal holds."""
    image_HW = np.asarray(image_CHW, dtype=np.float32).mean(axis=0)
    factor = -(-max(image_HW.shape) // LARGEST_SIDE)
    height, width = (-(-side // factor) for side in image_HW.shape)
    padded = np.full((height * factor, width * factor), np.nan, dtype=np.float32)
    padded[: image_HW.shape[0], : image_HW.shape[1]] = image_HW
    return np.nanmean(padded.reshape(height, factor, width, factor), axis=(1, 3))


def _blocks(image_HW: np.ndarray, low: float, high: float) -> str:
    share_HW = (image_HW - low) / max(high - low, 1e-6)
    shade_HW = np.clip(np.rint(share_HW * (len(SHADES) - 1)), 0, len(SHADES) - 1).astype(int)
    return "\n".join("".join(2 * SHADES[shade] for shade in line) for line in shade_HW)
