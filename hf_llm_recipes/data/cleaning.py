"""Texts as they were written -> texts to learn from, by rules that count what they do.

Notable:
- Each rule is one function; `CHANGES` and `DROPS` hold them in the order they run.
- Nothing is changed or dropped uncounted: `Cleaned.report` has every rule that did something, with the
  first rows it did it to.
- Blanks inside a line stay: in code they carry meaning.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hf_llm_recipes.errors import DataError

__all__ = ["Cleaned", "Cleaning", "clean", "repeated_lines"]

EXAMPLES = 5  # rows named for each rule
# C0 and C1 controls but tab and line feed, the soft hyphen, zero-width characters that join nothing, the
# byte order mark, lone surrogates, and noncharacters. U+200C and U+200D stay: Persian and emoji need them.
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
LINE_END = re.compile("\r\n|[\r\x85\u2028\u2029]")
TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
EMPTY_LINES = re.compile(r"\n{3,}")
OUTER_LINES = re.compile(r"\A(?:[^\S\n]*\n)+|\s+\Z")


@dataclass(kw_only=True)
class Cleaning:
    """The section ``data.clean`` of a recipe; ``clean: true`` takes the defaults.

    Args:
        unicode: Normal form; ``nfkc`` also turns ligatures and full-width letters into plain ones. None:
            characters stay as they are.
        control_characters: Whether characters that print nothing are taken out.
        white_space: Whether line ends become line feeds, and blanks at the end of lines, empty lines at
            either end and more than one empty line between others go.
        boilerplate_share: A line in at least this share of the training documents is taken out of all
            documents, in (0, 1]. None: no line is; code repeats its imports.
        boilerplate_characters: A shorter line is no boilerplate, ≥ 1.
        min_characters: Training documents with fewer are dropped, ≥ 1: an empty one always is.
        max_characters: Training documents with more are dropped; None for no limit.

    Raises:
        ValueError: a number out of range.
    """

    unicode: Literal["nfc", "nfkc"] | None = "nfc"
    control_characters: bool = True
    white_space: bool = True
    boilerplate_share: float | None = None
    boilerplate_characters: int = 15
    min_characters: int = 1
    max_characters: int | None = None

    def __post_init__(self) -> None:
        if self.boilerplate_share is not None and not 0 < self.boilerplate_share <= 1:
            raise ValueError(f"boilerplate_share is {self.boilerplate_share}; allowed: above 0, at most 1")
        for key in ("boilerplate_characters", "min_characters"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; allowed: 1 or more")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters is {self.max_characters}; allowed: min_characters "
                f"({self.min_characters}) or more"
            )


@dataclass
class Cleaned:
    """What `clean` returns.

    Args:
        texts: Of the kept rows, cleaned.
        kept: Their row numbers, ascending.
        report: Rule -> ``rows`` it applied to, whether they were ``dropped``, and the first of them in
            ``examples``; JSON-able. A rule that did nothing is not there.
    """

    texts: list[str]
    kept: np.ndarray
    report: dict[str, dict[str, Any]]


def normalize_unicode(text: str, rules: Cleaning) -> str:
    """Returns the text in the normal form that ``rules.unicode`` names."""
    return unicodedata.normalize(rules.unicode.upper(), text) if rules.unicode else text


def remove_control_characters(text: str, rules: Cleaning) -> str:
    """Returns the text without characters that print nothing; line ends of other systems are kept."""
    return CONTROL.sub("", text) if rules.control_characters else text


def normalize_white_space(text: str, rules: Cleaning) -> str:
    """Returns the text with plain line ends, no blanks at the end of lines and no run of empty lines."""
    if not rules.white_space:
        return text
    text = TRAILING.sub("", LINE_END.sub("\n", text))
    return OUTER_LINES.sub("", EMPTY_LINES.sub("\n\n", text))


def is_empty(text: str, rules: Cleaning) -> bool:
    """Whether there is nothing but white space."""
    return not text.strip()


def is_too_short(text: str, rules: Cleaning) -> bool:
    """Whether the text has fewer than ``min_characters``."""
    return len(text) < rules.min_characters


def is_too_long(text: str, rules: Cleaning) -> bool:
    """Whether the text has more than ``max_characters``."""
    return rules.max_characters is not None and len(text) > rules.max_characters


# Controls first: without one, "e\x00" and an accent are a letter to compose, "\n\x00\n" an empty line.
CHANGES: dict[str, Callable[[str, Cleaning], str]] = {
    "control_characters": remove_control_characters,
    "unicode": normalize_unicode,
    "white_space": normalize_white_space,
}
DROPS: dict[str, Callable[[str, Cleaning], bool]] = {
    "empty": is_empty,
    "too_short": is_too_short,
    "too_long": is_too_long,
}


@dataclass
class _Counts:
    """Rows that each rule applied to, in the order they come."""

    report: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, rule: str, row: int, *, dropped: bool) -> None:
        entry = self.report.setdefault(rule, {"rows": 0, "dropped": dropped, "examples": []})
        entry["rows"] += 1
        if len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(row)


def clean(
    texts: Iterable[str | None],
    rules: Cleaning,
    *,
    boilerplate: frozenset[str] = frozenset(),
    drop: bool = True,
) -> Cleaned:
    """Returns texts without what the rules take out.

    A row is dropped by the first rule that says so, and counted there.

    Args:
        texts: One a row; None counts as empty.
        rules: Which rules, and their limits.
        boilerplate: Lines to take out, from `repeated_lines`.
        drop: Whether rows are dropped. Held-out rows are not: their number is part of a benchmark.

    Raises:
        DataError: a row that is no text.
    """
    counts, cleaned, kept = _Counts(), [], []
    for row, text in enumerate(texts):
        text = _changed("" if text is None else text, row, rules, boilerplate, counts)
        rule = next((name for name, is_bad in DROPS.items() if is_bad(text, rules)), None) if drop else None
        if rule is not None:
            counts.add(rule, row, dropped=True)
            continue
        cleaned.append(text)
        kept.append(row)
    return Cleaned(cleaned, np.asarray(kept, dtype=np.int64), counts.report)


def repeated_lines(texts: Sequence[str | None], rules: Cleaning) -> frozenset[str]:
    """Returns the lines that ``rules.boilerplate_share`` of the documents hold, and two at least.

    Lines are compared as the other rules leave them, without white space at their ends.

    Raises:
        DataError: a row that is no text.
    """
    if rules.boilerplate_share is None:
        return frozenset()
    holding: Counter[str] = Counter()
    for row, text in enumerate(texts):
        text = _changed("" if text is None else text, row, rules, frozenset(), _Counts())
        lines = {line.strip() for line in text.split("\n")}
        holding.update(line for line in lines if len(line) >= rules.boilerplate_characters)
    needed = max(2, rules.boilerplate_share * len(texts))
    return frozenset(line for line, documents in holding.items() if documents >= needed)


def _changed(text: Any, row: int, rules: Cleaning, boilerplate: frozenset[str], counts: _Counts) -> str:
    if not isinstance(text, str):
        raise DataError(
            f"row {row} is a {type(text).__name__}, not a text",
            where=f"row {row}",
            hint="clean columns of text only; take `data.clean` out for other data",
        )
    for rule, change in CHANGES.items():
        changed = change(text, rules)
        if changed != text:
            counts.add(rule, row, dropped=False)
            text = changed
    if boilerplate:
        lines = text.split("\n")
        rest = [line for line in lines if line.strip() not in boilerplate]
        if len(rest) < len(lines):
            counts.add("boilerplate", row, dropped=False)
            text = normalize_white_space("\n".join(rest), rules)
    return text
