"""Label columns of any form -> class numbers, with the row named where one does not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hf_llm_recipes.errors import DataError, did_you_mean

UNLABELED = -100
QUOTED = 60  # characters of a text in a message


def declared_names(dataset: Any, column: str) -> list[str] | None:
    """Returns the names a ``datasets`` column brings with it (ClassLabel, or a list of them)."""
    feature = (dataset.features or {}).get(column)
    feature = getattr(feature, "feature", feature)  # a list's items
    names = getattr(feature, "names", None)
    return list(names) if names else None


def found_names(values: Iterable[Any]) -> list[str]:
    """Returns the distinct labels in order: numbers by value, words by alphabet."""
    distinct = {_word(value) for value in values}
    if all(_is_number(word) for word in distinct):
        return sorted(distinct, key=lambda word: (float(word), word))  # "1" and "1.0" are two names
    return sorted(distinct)


def integer_names(declared: Sequence[str] | None, chosen: Sequence[str] | None) -> Sequence[str] | None:
    """Returns the names that a column's integers stand for; None where it declares none.

    Args:
        declared: The names that the column brings with it.
        chosen: The recipe's ``labels``: the same names in another order, or new ones by position.
    """
    renamed = declared is not None and chosen is not None and not set(chosen) & set(declared)
    return chosen if renamed else declared


def to_class(
    value: Any,
    names: Sequence[str],
    *,
    integers: Sequence[str] | None = None,
    numbers: bool = False,
    where: str,
) -> int:
    """Returns the class number of one label.

    Args:
        value: A name, or a number.
        names: The classes in order.
        integers: The names that integers stand for in this column (``integer_names``).
        numbers: Whether an integer that is no name is a class number (the recipe gave ``labels``).
        where: For the message.

    Raises:
        DataError: no label, or none of the classes.
    """
    if is_missing(value):
        raise DataError("has no label", where=where, hint="take the row out or label it")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if integers is not None and whole:
        value = integers[_within(value, integers, where)]
    word = _word(value)
    if numbers and word not in names and (whole or word.isdecimal()):  # CSV files hold text only
        return _within(int(word), names, where)
    if word in names:
        return names.index(word)
    raise DataError(
        f"label {value!r} is none of the classes{did_you_mean(word, names)}",
        where=where,
        allowed=_listing(names),
        hint="mend the row, or name every class under `task.labels`",
    )


def is_missing(value: Any) -> bool:
    """Whether a row says nothing of its class."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def refuse_missing(values: Sequence[Any], texts: Sequence[Any], *, where: str) -> None:
    """Refuses rows without a label, and says how the first begins: its file has another number for it.

    Raises:
        DataError: a label is missing.
    """
    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        said = f"; {len(missing):,} of {len(values):,} rows have none" if len(missing) > 1 else ""
        raise DataError(
            f"has no label: {quoted(texts[missing[0]])}{said}",
            where=f"{where}, row {missing[0]}",
            hint="take the row out or label it",
        )


def quoted(text: Any) -> str:
    """Returns the beginning of a row's text, by which it is found in its file."""
    line = " ".join(str(text).split())
    return repr(line if len(line) <= QUOTED else line[: QUOTED - 1] + "…")


def _within(number: int, names: Sequence[str], where: str) -> int:
    if 0 <= number < len(names):
        return number
    raise DataError(
        f"label {number} is outside the classes",
        where=where,
        allowed=f"0 to {len(names) - 1}",
        hint="mend the row or take it out",
    )


def to_set(value: Any, separator: str, *, where: str) -> list[Any]:
    """Returns the labels of one multi-label row: a list as it is, a text cut at the separator.

    Raises:
        DataError: neither a list nor text.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise DataError(
        f"label {value!r} is no list of labels", where=where, allowed=f"a list, or text such as a{separator}b"
    )


def to_number(value: Any, *, where: str) -> float:
    """Returns a regression target.

    Raises:
        DataError: missing, not a number, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"label {value!r} is not a finite number", where=where, hint="mend or drop the row")
    if number == UNLABELED:
        raise DataError(
            f"label {value!r} is transformers' mark for an unlabeled item and would not be counted",
            where=where,
            hint="shift or scale the targets",
        )
    return number


def check_classes(class_numbers: Sequence[int], names: Sequence[str], *, where: str) -> list[str]:
    """Refuses a training split of one class; returns sentences on classes that have no row.

    Raises:
        DataError: fewer than two classes have rows.
    """
    counts = Counter(class_numbers)
    if len(counts) < 2:
        only = names[next(iter(counts))] if counts else "none"
        raise DataError(
            f"all {len(class_numbers):,} rows have one class ({only!r}): there is nothing to learn",
            where=where,
            hint="check `task.label`, the split expression and the order of the rows",
        )
    empty = [name for i, name in enumerate(names) if not counts[i]]
    return [f"{where}: no row of class {_listing(empty)}"] if empty else []


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _listing(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(names[:most])
    return shown + (f", … ({len(names) - most} more)" if len(names) > most else "")
