"""The texts of a data set's columns, and a data set with other texts in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_llm_recipes.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["column_texts", "joined_texts", "with_texts"]


def column_texts(rows: Dataset, column: str, *, key: str, part: str, words: bool = False) -> list[str]:
    """Returns a column's texts, "" where there is none.

    Args:
        rows: Of one split.
        column: Its name.
        key: What of the recipe needs texts, for messages: ``data.dedup``.
        part: The split's name, for messages.
        words: Whether a list of words is taken too, joined by blanks.

    Raises:
        DataError: no such column, or a value that is no text.
    """
    if column not in rows.column_names:
        raise DataError(
            f"{part} has no column `{column}`{did_you_mean(column, rows.column_names)}",
            where=key,
            allowed=", ".join(rows.column_names),
            hint="rename it in `data.columns`",
        )
    values = rows[column][:]
    for row, value in enumerate(values):
        if not (value is None or isinstance(value, str) or (words and _are_words(value))):
            raise DataError(
                f"{key}: `{column}` is {str(value)[:60]!r} in row {row} of {part}, not text",
                where=f"{part}, row {row}",
                hint=f"take `{key}` out: it is for texts",
            )
    return [" ".join(value) if isinstance(value, list) else value or "" for value in values]


def joined_texts(rows: Dataset, columns: Sequence[str], *, key: str, part: str) -> list[str]:
    """Returns one text a row: those of all columns, a line feed between; words joined by blanks."""
    texts = [column_texts(rows, column, key=key, part=part, words=True) for column in columns]
    return ["\n".join(values) for values in zip(*texts, strict=True)]


def with_texts(rows: Dataset, column: str, texts: Sequence[str], fingerprint: str) -> Dataset:
    """Returns the data set with these texts in a column.

    Args:
        rows: As many as there are texts.
        column: Its name.
        texts: One a row.
        fingerprint: A name for the result; it saves `datasets` hashing all texts.
    """
    return rows.map(
        lambda _, numbers: {column: [texts[number] for number in numbers]},
        with_indices=True,
        batched=True,
        keep_in_memory=True,
        load_from_cache_file=False,
        new_fingerprint=fingerprint,
        features=rows.features,
    )


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)
