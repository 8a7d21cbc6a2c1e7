"""The pool of unlabeled rows: few labels made of many, and what must not be in a pool.

Two rows are the same when their input columns agree: texts, and the words of a list, without regard
to case and white space, anything else byte by byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_llm_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

# `likeness` of 22 corpora of seven languages and of molecules, 13 to 1,000 rows against 50 to 2,000.
# Rows of one corpus: median 1.0; below 0.7 one trial of 176 for 13 rows against 50, none for more. Corpora
# of one language: median 0.67, 19 of 20 above 0.46. Different languages: median 0.04, 0.55 at most.
OTHER_DOMAIN = 0.7
OTHER_LANGUAGE = 0.4
FEW_WORDS = 50  # on either side: too few to tell
NOTHING_SHARED = 0.1  # cosine of parts of one corpus (gene sequences: 0; all others 0.2 and more)
SAMPLE = 2000  # rows of each side that are compared, roughly
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai to Han: no spaces
WORD = re.compile(f"[{UNSPACED}]|(?:(?![{UNSPACED}])[^\\W\\d_])+")


@dataclass
class Pool:
    """A pool that has been looked at.

    Args:
        rows: What is left of it.
        findings: Counts, JSON-able.
        notes: The same in sentences.
    """

    rows: Dataset
    findings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def few_labels(labels: Sequence[Any], per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted numbers of the rows that keep their label, and of the others.

    The rows kept for a smaller ``per_class`` are among those kept for a larger one. A row without a
    label (None, an empty text) is among the others.

    Args:
        labels: One class a row.
        per_class: Labeled rows of each class, ≥ 1.
        seed: Same seed, same rows.

    Raises:
        DataError: a class has too few rows, no row has a label, or ``per_class`` is below 1.
    """
    where = "data.labels_per_class"
    if per_class < 1:
        raise DataError(f"`labels_per_class: {per_class}` is out of range", where=where, allowed="1 or more")
    order = np.random.RandomState(seed).permutation(len(labels))
    seen: Counter = Counter()
    kept = []
    for row in order:
        if labels[row] in (None, ""):
            continue
        if seen[labels[row]] < per_class:
            kept.append(int(row))
        seen[labels[row]] += 1
    if not kept:
        raise DataError(f"none of {len(labels):,} rows has a label", where=where)
    short = [label for label, count in sorted(seen.items(), key=str) if count < per_class]
    if short:
        raise DataError(
            f"class {short[0]!r} has {seen[short[0]]} rows, fewer than `labels_per_class: {per_class}`",
            where=where,
            allowed=f"at most {min(seen.values())}",
        )
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[kept] = True
    return chosen.nonzero()[0], (~chosen).nonzero()[0]


def check_pool(
    pool: Dataset, *, labeled: Any, held_out: dict[str, Any], columns: Sequence[str], overlap: str
) -> Pool:
    """Returns the pool without rows that must not be in it.

    Args:
        pool: Unlabeled rows.
        labeled: Labeled rows to train on.
        held_out: Name -> rows that are judged (``eval``, ``test``).
        columns: The input columns.
        overlap: ``refuse`` or ``drop``: what is done with pool rows that are held-out rows.

    Raises:
        DataError: a column is missing, nothing is left, or pool rows are held-out rows and
            ``overlap`` is ``refuse``.
    """
    missing = [column for column in columns if column not in pool.column_names]
    if missing:
        raise DataError(
            f"the unlabeled rows have no column `{missing[0]}`",
            where="data.unlabeled",
            allowed=", ".join(pool.column_names),
            hint="rename it in `data.columns`, or in the file",
        )
    if not len(pool):
        raise DataError("there is no unlabeled row", where="data.unlabeled", hint="add rows")
    found = Pool(pool)
    keys = row_keys(pool, columns)
    keep = np.ones(len(pool), dtype=bool)
    _drop_empty(found, keys, keep)
    for name, rows in held_out.items():
        _drop_held_out(found, keys, keep, name, set(row_keys(rows, columns)), overlap)
    own = set(row_keys(labeled, columns))
    again = sum(key in own for key, kept in zip(keys, keep, strict=True) if kept)
    found.findings["labeled_rows_in_pool"] = again
    if again:
        found.notes.append(f"{again:,} rows of the pool are labeled rows too: they stay, without their label")
    if not keep.any():
        raise DataError("no unlabeled row is left", where="data.unlabeled", hint="add rows")
    if not keep.all():
        found.rows = pool.select(keep.nonzero()[0])
    _compare_words(found, [labeled, *held_out.values()], columns)
    return found


def row_keys(rows: Any, columns: Sequence[str]) -> list[str]:
    """Returns what makes each row what it is; the empty string where all its texts are empty."""
    parts = [[_key(value) for value in _plain(rows, column)] for column in columns]
    return ["\0".join(values) if any(values) else "" for values in zip(*parts, strict=True)]


def _plain(rows: Any, column: str) -> Any:
    """A column's values; images as they are stored."""
    from datasets import Image

    if isinstance((rows.features or {}).get(column), Image):
        rows = rows.cast_column(column, Image(decode=False))
    return rows[column]


def _key(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return "\x1f".join(_key(word) for word in value)
    if isinstance(value, dict):  # an image that is not decoded
        value = value.get("bytes") or _content(value.get("path"))
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return "" if value is None else json.dumps(value, default=str)


def _content(path: str | None) -> bytes | str | None:
    """The bytes of a file on this machine: two copies of a picture are one."""
    return Path(path).read_bytes() if path and Path(path).is_file() else path


def _drop_empty(found: Pool, keys: list[str], keep: np.ndarray) -> None:
    empty = np.asarray([key == "" for key in keys])
    found.findings["empty"] = int(empty.sum())
    if empty.all():
        raise DataError(
            f"all {len(keys):,} unlabeled rows are empty",
            where="data.unlabeled",
            hint="check the column's name",
        )
    if empty.any():
        found.notes.append(f"{int(empty.sum()):,} empty rows of the pool are left out")
        keep &= ~empty


def _drop_held_out(
    found: Pool, keys: list[str], keep: np.ndarray, name: str, held_out: set[str], overlap: str
) -> None:
    same = np.asarray([key in held_out for key in keys]) & keep
    found.findings[f"{name}_rows_in_pool"] = int(same.sum())
    if not same.any():
        return
    first = int(same.nonzero()[0][0])
    if overlap == "refuse":
        raise DataError(
            f"{int(same.sum()):,} of {len(keys):,} unlabeled rows are rows of the {name} split "
            f"(the first is row {first}: {keys[first][:60]!r})",
            where="data.unlabeled",
            hint="take them out, or set `data.pool_overlap: drop`",
        )
    found.notes.append(f"{int(same.sum()):,} rows of the pool are rows of the {name} split: left out")
    keep &= ~same


def _compare_words(found: Pool, others: list[Any], columns: Sequence[str]) -> None:
    """Says when pool and other rows use other words: another language, or another domain."""
    pool = [_words(text) for text in _texts(found.rows, columns)]
    labeled = [_words(text) for rows in others for text in _texts(rows, columns)]
    alike = likeness(pool, labeled)
    if alike is None:
        return
    found.findings["likeness"] = round(alike, 3)
    if alike < OTHER_DOMAIN and min(_size(pool), _size(labeled)) >= FEW_WORDS:
        other = "language" if alike < OTHER_LANGUAGE else "domain"
        found.notes.append(
            f"the pool reads unlike the other rows (likeness of word frequencies {alike:.2f}; rows of one "
            f"source have about 1): is it another {other}?"
        )


def _texts(rows: Any, columns: Sequence[str]) -> list[str]:
    """The texts of a sample of rows, one a row; empty where a row has none."""
    sample = rows.select(range(0, len(rows), max(1, len(rows) // SAMPLE)))
    texts = [""] * len(sample)
    for column in columns:
        for row, value in enumerate(_plain(sample, column)):
            words = value if isinstance(value, list) else [value]
            texts[row] += " ".join(["", *(word for word in words if isinstance(word, str))])
    return texts


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _size(texts: list[list[str]]) -> int:
    return sum(map(len, texts))


def likeness(a: list[list[str]], b: list[list[str]]) -> float | None:
    """Returns how alike two sets of texts read: 0, no word in common; about 1, like one source.

    The cosine of their word frequencies over that of two parts of the larger set, one of them as
    small as the smaller set: a cosine alone falls with the number of words, and few labeled rows would
    look foreign for being few.

    Args:
        a: The words of each text.
        b: The same.

    Returns:
        None where parts of one set share no words either: words tell nothing then.
    """
    small, large = sorted((a, b), key=_size)
    wanted, taken, cut = _size(small), 0, 0
    order = np.random.RandomState(0).permutation(len(large))
    while cut < len(large) // 2 and taken < wanted:
        taken += len(large[order[cut]])
        cut += 1
    within = cosine(_count(large[i] for i in order[:cut]), _count(large[i] for i in order[cut:]))
    return cosine(_count(small), _count(large)) / within if within >= NOTHING_SHARED else None


def _count(texts: Iterable[list[str]]) -> Counter:
    return Counter(word for words in texts for word in words)


def cosine(a: Counter, b: Counter) -> float:
    """Returns the cosine of two word counts, in [0, 1]; counts enter as their square roots.

    Without the root the one commonest word would decide. 0 where either has no words.
    """
    if not a or not b:
        return 0.0
    dot = sum(math.sqrt(count * b[word]) for word, count in a.items())
    return dot / math.sqrt(sum(a.values()) * sum(b.values()))
