"""Which rows of which split go where: expressions such as ``train[:80%]`` and held-out parts.

Notable:
- The same seed gives the same rows on every machine: numpy's frozen ``RandomState``,
  never ``hash()``.
- A class keeps its share to within one row: rows are ranked inside their class, and
  the held-out part is the lowest ranks of all classes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_llm_recipes.errors import DataError

TERM = re.compile(r"^(?P<base>[^\[\]]+?)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?$")


@dataclass(frozen=True)
class Term:
    """One part of a split expression: ``base[start:stop]``; a bound is an int, ``"80%"`` or None."""

    base: str
    start: str | None = None
    stop: str | None = None

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.base
        return f"{self.base}[{self.start or ''}:{self.stop or ''}]"


def parse(expression: str, *, where: str) -> list[Term]:
    """Returns the terms of ``train[:80%]+validation``.

    Raises:
        DataError: it is not such an expression.
    """
    matches = [TERM.match(part.strip()) for part in expression.split("+")]
    if not all(matches):
        raise DataError(
            f"`{expression}` is not a split expression",
            where=where,
            allowed="a split or file, a slice of it in rows or whole percents, or several joined by +: "
            "train, train[:250], train[10%:90%], train+validation",
        )
    return [Term(**match.groupdict()) for match in matches]


def bounds(term: Term, rows: int, *, where: str) -> tuple[int, int]:
    """Returns the half-open row range of a term in a split of that many rows.

    Raises:
        DataError: the range reaches outside the split or is empty.
    """
    start = 0 if term.start is None else _position(term.start, rows)
    stop = rows if term.stop is None else _position(term.stop, rows)
    if not 0 <= start < stop <= rows:
        raise DataError(
            f"`{term}` asks for rows {start} to {stop}, and `{term.base}` has {rows}",
            where=where,
            allowed=f"a non-empty part of 0 to {rows}",
        )
    return start, stop


def _position(bound: str, rows: int) -> int:
    value = int(bound.rstrip("%"))
    if bound.endswith("%"):
        value = (2 * abs(value) * rows + 100) // 200 * (-1 if value < 0 else 1)
    return value + rows if bound.startswith("-") else value


def check_fraction(name: str, fraction: float) -> None:
    """Checks a held-out fraction.

    Raises:
        DataError: it is not between 0 and 1, both excluded.
    """
    if not isinstance(fraction, (int, float)) or isinstance(fraction, bool) or not 0 < fraction < 1:
        raise DataError(f"`{name}: {fraction}` is out of range", allowed="0 < fraction < 1, e.g. 0.1")


def hold_out(
    rows: int, fractions: dict[str, float], *, groups: Sequence[Hashable] | None, seed: int
) -> dict[str, np.ndarray]:
    """Returns the sorted row numbers of each part, and those that are left as ``"train"``.

    Args:
        rows: How many rows there are.
        fractions: Part -> its share of all rows; at least one row each.
        groups: A class for each row, whose shares the parts keep; None for no classes.
        seed: Same seed, same rows.

    Raises:
        DataError: no row would be left for train.
    """
    sizes = {name: max(1, math.floor(rows * fraction + 0.5)) for name, fraction in fractions.items()}
    if sum(sizes.values()) >= rows:
        parts = " and ".join(f"{size} for {name}" for name, size in sizes.items())
        raise DataError(
            f"train has {rows} row{'s' * (rows != 1)}; holding out {parts} leaves none",
            allowed="fewer held-out rows than rows",
            hint="add rows, lower eval_fraction and test_fraction, or name eval and test",
        )
    order = _ranked(rows, groups, seed)
    parts, at = {}, 0
    for name, size in sizes.items():
        parts[name] = np.sort(order[at : at + size])
        at += size
    return {**parts, "train": np.sort(order[at:])}


def _ranked(rows: int, groups: Sequence[Hashable] | None, seed: int) -> np.ndarray:
    shuffled = np.random.RandomState(seed).permutation(rows)
    if groups is None:
        return shuffled
    sizes, seen = Counter(groups), Counter()
    ranks = np.empty(rows)
    for position, row in enumerate(shuffled):
        group = groups[row]
        ranks[position] = (seen[group] + 0.5) / sizes[group]
        seen[group] += 1
    return shuffled[np.argsort(ranks, kind="stable")]


def why_not_stratified(groups: Sequence) -> str | None:
    """Returns why rows cannot be held out by class, or None when they can."""
    if any(isinstance(group, (list, dict)) for group in groups):
        return "its values are lists"
    if any(isinstance(group, float) for group in groups):
        return "its values are real numbers"
    return None


def lone_classes(groups: Sequence, parts: dict[str, np.ndarray], most: int = 5) -> str | None:
    """Returns which classes have one row, and where it is; None where there is none.

    Args:
        groups: A class for each row; None and ``""`` are none.
        parts: Of ``hold_out``.
        most: Classes that are named.
    """
    lone = [group for group, count in Counter(groups).items() if count < 2 and group not in (None, "")]
    if not lone:
        return None
    rows = {group: row for row, group in enumerate(groups)}
    part_of = {int(row): part for part, some in parts.items() for row in some}
    shown = ", ".join(f"{group!r} (in {part_of[rows[group]]})" for group in lone[:most])
    more = f", … ({len(lone) - most} more)" if len(lone) > most else ""
    return f"classes of one row, which no two parts can share: {shown}{more}"
