"""Texts as they were written -> texts to learn from, by rules that count what they do.

Notable:
- Each rule is one function; `CHANGES` and `DROPS` hold them in the order they run.
- Nothing is changed or dropped uncounted: `Cleaned.report` has every rule that did something, with the
  first rows it did it to.
- A recipe cleans all splits and drops rows of train and the pool only: how many rows are held out is
  part of a benchmark.
- Blanks inside a line stay: in code they carry meaning.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_llm_recipes.data.texts import column_texts, with_texts
from hf_llm_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Cleaned", "Cleaning", "clean", "clean_splits", "repeated_lines"]

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
        if not (drop and _is_dropped(text, row, rules, counts)):
            cleaned.append(text)
            kept.append(row)
    return Cleaned(cleaned, np.asarray(kept, dtype=np.int64), counts.report)


def clean_splits(
    splits: Mapping[str, Dataset], columns: Sequence[str], rules: Cleaning, *, held_out: Collection[str]
) -> tuple[dict[str, Dataset], dict[str, Any], list[str]]:
    """Returns cleaned splits, a report for each (column -> rule -> …), and sentences.

    Boilerplate is looked for in ``train``. A row of several columns is dropped for what they hold together.

    Args:
        splits: Name -> rows; ``train`` among them.
        columns: Of text.
        rules: Which rules, and their limits.
        held_out: Names of the splits that lose no row.

    Raises:
        DataError: a column is missing or no text, or nothing is left of train.
    """
    texts = {
        part: {name: column_texts(rows, name, key="data.clean", part=part) for name in columns}
        for part, rows in splits.items()
    }
    lines = {name: repeated_lines(values, rules) for name, values in texts["train"].items()}
    cleaned, report, notes = {}, {}, []
    for part, rows in splits.items():
        made = {
            name: clean(texts[part][name], rules, boilerplate=lines[name], drop=False) for name in columns
        }
        report[part] = {name: each.report for name, each in made.items() if each.report}
        for name in report[part]:
            told = _fingerprint(rows, name, rules, lines[name])
            rows = with_texts(rows, name, made[name].texts, told)
        if part not in held_out:
            kept, dropped = _kept([each.texts for each in made.values()], rules)
            if dropped:
                rows = rows.select(kept)
                report[part]["row"] = dropped
        cleaned[part] = rows
        notes += _sentences(part, report[part])
    notes = notes or ["cleaning changed no row and dropped none"]
    if not len(cleaned["train"]):
        raise DataError("cleaning leaves no row of train", where="data.clean", hint="loosen its limits")
    return cleaned, report, notes


def _kept(columns: list[list[str]], rules: Cleaning) -> tuple[list[int], dict[str, dict[str, Any]]]:
    counts, kept = _Counts(), []
    for row, texts in enumerate(zip(*columns, strict=True)):
        if not _is_dropped("\n".join(filter(None, texts)), row, rules, counts):
            kept.append(row)
    return kept, counts.report


def _fingerprint(rows: Dataset, column: str, rules: Cleaning, lines: frozenset[str]) -> str:
    told = json.dumps([rows._fingerprint, column, asdict(rules), sorted(lines)])
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _sentences(part: str, found: dict[str, dict[str, Any]]) -> list[str]:
    changed: Counter[str] = Counter()
    for name, rules in found.items():
        if name != "row":
            changed.update({rule: entry["rows"] for rule, entry in rules.items()})
    said = [f"cleaning changed rows of {part}: {_listed(changed)}"] if changed else []
    dropped = {rule: entry["rows"] for rule, entry in found.get("row", {}).items()}
    if dropped:
        said.append(f"cleaning dropped {sum(dropped.values()):,} rows of {part}: {_listed(dropped)}")
    return said


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {rule.replace('_', ' ')}" for rule, count in counts.items())


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


def _is_dropped(text: str, row: int, rules: Cleaning, counts: _Counts) -> bool:
    rule = next((name for name, is_bad in DROPS.items() if is_bad(text, rules)), None)
    if rule is not None:
        counts.add(rule, row, dropped=True)
    return rule is not None


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
