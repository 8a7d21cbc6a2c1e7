"""What the labels are: how many rows each class has, which have none or one, and whether splits agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from hf_llm_recipes.checking.base import Finding, Report, named, share
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.tasks.image_classification import ImageClassification
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tasks.token_classification import TokenClassification

IGNORED = -100
UNLIKE = 0.25  # total variation of two splits' class shares
ENOUGH = 50  # labels on each side, for that to mean something
UNBALANCED = 20  # times the rarest class


def look(subject: Subject, report: Report) -> list[Finding]:
    """Adds the labels of each split to the report; returns what is odd about them."""
    task = subject.task
    if not isinstance(task, (TextClassification, TokenClassification, ImageClassification)):
        return []
    splits = [split for split in subject.splits() if split != "unlabeled"]
    values = {split: list(subject.features(split)["labels"]) for split in splits}
    where = {split: subject.where(split) for split in splits}
    if task.problem == "regression":
        numbers = {split: np.asarray(found, dtype=float).ravel() for split, found in values.items()}
        report.labels = {split: _spread(found) for split, found in numbers.items()}
        return number_findings(numbers, where)
    names = list(subject.prepared.config["id2label"].values())
    kind = "tags" if isinstance(task, TokenClassification) else task.problem
    counts = {split: _counts(subject, split, found, len(names), kind) for split, found in values.items()}
    report.labels = {split: dict(zip(names, found.tolist(), strict=True)) for split, found in counts.items()}
    made = class_findings(counts, names, where, unit="words" if kind == "tags" else "rows")
    made += name_findings(names, where["train"])
    if kind == "multi_label":
        made += _unlabeled_rows(values, where)
    if kind == "tags":
        made += tag_findings(values, names, where)
    return made


def _counts(subject: Subject, split: str, values: list[Any], classes: int, kind: str) -> np.ndarray:
    """The classes of all rows; of a sample, whose labels tell what each value of the column means."""
    task, column = subject.task, subject.task.label
    if split not in subject.places or (isinstance(task, TokenClassification) and task.label_all_subwords):
        return counted(values, classes, kind)
    if isinstance(column, list):
        flags = [subject.all_rows(split)[one] for one in column]
        return np.asarray([sum(int(float(flag)) for flag in of_class) for of_class in flags])
    seen, every = subject.rows(split)[column], subject.all_rows(split)[column]
    return counted_by_value(list(seen), values, every, classes, kind)


def counted_by_value(
    seen: Sequence[Any], values: Sequence[Any], every: Iterable[Any], classes: int, kind: str
) -> np.ndarray:
    """Returns how often each class occurs in a column, by what its values mean in a few rows.

    Args:
        seen: The column in a few rows.
        values: The same rows' class numbers, flags or tag numbers.
        every: The column in all rows.
        classes: How many there are.
        kind: As in ``counted``.
    """
    meaning: dict[Any, Any] = {}
    if kind == "tags":
        for words, numbers in zip(seen, values, strict=True):
            meaning |= dict(zip(words, (i for i in numbers if i != IGNORED), strict=False))
        every = chain.from_iterable(every)
    else:
        meaning = {_hashable(one): value for one, value in zip(seen, values, strict=True)}
    found = np.zeros(classes, dtype=np.int64)
    for one, count in Counter(map(_hashable, every)).items():
        if one in meaning:
            found += count * counted([[meaning[one]] if kind == "tags" else meaning[one]], classes, kind)
    return found


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def counted(values: Any, classes: int, kind: str) -> np.ndarray:
    """Returns how often each class occurs, (classes,).

    Args:
        values: Class numbers; lists of flags (``multi_label``) or of tag numbers (``tags``).
        classes: How many there are.
        kind: ``single_label``, ``multi_label`` or ``tags``.
    """
    if kind == "multi_label":
        return np.asarray(values, dtype=np.int64).reshape(-1, classes).sum(0)
    flat = np.asarray(list(chain.from_iterable(values)) if kind == "tags" else values, dtype=np.int64)
    return np.bincount(flat[flat != IGNORED], minlength=classes)


def class_findings(
    counts: Mapping[str, np.ndarray],
    names: Sequence[str],
    where: Mapping[str, str],
    *,
    unit: str = "rows",
) -> list[Finding]:
    """Returns what is odd about class counts.

    Args:
        counts: Split -> rows of each class.
        names: Of the classes.
        where: Split -> its words.
        unit: What is counted.
    """
    train_C, found = counts["train"], []
    none = [name for name, count in zip(names, train_C, strict=True) if count == 0]
    if none:
        held_out = sum(int(c[train_C == 0].sum()) for split, c in counts.items() if split != "train")
        more = f"; {held_out:,} held-out {unit} have it" if held_out else ""
        found.append(
            Finding(
                "warning",
                "labels",
                f"no row of class {named(none)}: it cannot be learnt{more}",
                where["train"],
                "add rows of it, or leave it out of `task.labels`; or check the split expression",
            )
        )
    one = [name for name, count in zip(names, train_C, strict=True) if count == 1]
    if one:
        found.append(
            Finding(
                "warning",
                "labels",
                f"one of the {unit} only is of class {named(one)}",
                where["train"],
                "label some more: what is learnt of the class hangs on that one",
            )
        )
    some_C = train_C[train_C > 0]
    if unit == "rows" and len(some_C) > 1 and some_C.max() >= UNBALANCED * some_C.min():
        most, least = (
            names[int(train_C.argmax())],
            names[int(np.where(train_C > 0, train_C, 1 << 60).argmin())],
        )
        found.append(
            Finding(
                "info",
                "labels",
                f"class {most} has {some_C.max():,} rows, {least} {some_C.min():,}",
                where["train"],
                "judge by macro F1, not by accuracy alone",
            )
        )
    return found + _unlike(counts, names, where)


def _unlike(
    counts: Mapping[str, np.ndarray], names: Sequence[str], where: Mapping[str, str]
) -> list[Finding]:
    """Held-out splits with other class shares than the train split."""
    found, train_C = [], counts["train"]
    for split, held_out_C in counts.items():
        if split == "train" or min(train_C.sum(), held_out_C.sum()) < ENOUGH:
            continue
        gap_C = held_out_C / held_out_C.sum() - train_C / train_C.sum()
        if np.abs(gap_C).sum() / 2 <= UNLIKE:
            continue
        i = int(np.abs(gap_C).argmax())
        found.append(
            Finding(
                "warning",
                "labels",
                f"the classes have other shares than in train: {names[i]} "
                f"{share(held_out_C[i], held_out_C.sum())} in place of {share(train_C[i], train_C.sum())}",
                where[split],
                "are the rows sorted by class? Then let a random part be held out: take the split "
                f"expression `data.{split}` out and set `data.{split}_fraction`",
            )
        )
    return found


def name_findings(names: Sequence[str], where: str) -> list[Finding]:
    """Returns classes that may be one, written in different ways: `Spam` and `spam `.

    Args:
        names: Of the classes.
        where: The train split's words.
    """
    ways: dict[str, list[str]] = {}
    for name in names:
        ways.setdefault(" ".join(name.casefold().split()), []).append(name)
    alike = [group for group in ways.values() if len(group) > 1]
    if not alike:
        return []
    said = "; ".join(" and ".join(map(repr, group)) for group in alike[:5])
    more = f"; … ({len(alike) - 5} more)" if len(alike) > 5 else ""
    return [
        Finding(
            "warning",
            "labels",
            f"classes that differ in case or spaces only: {said}{more}",
            where,
            "write one class in one way in the data; or go on, if they are two",
        )
    ]


def _unlabeled_rows(values: Mapping[str, Any], where: Mapping[str, str]) -> list[Finding]:
    found = []
    for split, rows in values.items():
        empty = sum(not any(row) for row in rows)
        if empty:
            found.append(
                Finding(
                    "info",
                    "labels",
                    f"{empty:,} of {len(rows):,} rows ({share(empty, len(rows))}) have no class at all",
                    where[split],
                    "see that this means none, and not: unknown",
                )
            )
    return found


def tag_findings(values: Mapping[str, Any], names: Sequence[str], where: Mapping[str, str]) -> list[Finding]:
    """Returns spans that begin with ``I-x``, where others begin with ``B-x``."""
    if not any(name.startswith("B-") for name in names):
        return []
    found = []
    for split, rows in values.items():
        odd = [row for row, tags in enumerate(rows) if _begins_inside([names[t] for t in tags if t >= 0])]
        if odd:
            found.append(
                Finding(
                    "warning",
                    "labels",
                    f"in {len(odd):,} of {len(rows):,} rows an I- tag stands without the B- of its kind "
                    f"before it (rows {named(odd)})",
                    where[split],
                    "write spans as B-x I-x …; a lone I-x counts as a span of its own when judged",
                )
            )
    return found


def _begins_inside(tags: Sequence[str]) -> bool:
    pairs = zip(["O", *tags], tags, strict=False)
    return any(tag.startswith("I-") and before[2:] != tag[2:] for before, tag in pairs)


def number_findings(numbers: Mapping[str, np.ndarray], where: Mapping[str, str]) -> list[Finding]:
    """Returns what is odd about the targets of a regression."""
    train, found = numbers["train"], []
    if np.ptp(train) == 0:
        found.append(
            Finding(
                "error",
                "labels",
                f"every target is {train[0]:g}: there is nothing to learn",
                where["train"],
                "check `task.label` and the split expression",
            )
        )
    elif abs(train.mean()) > 10 * max(train.std(), 1e-12) or train.std() > 100:
        found.append(
            Finding(
                "warning",
                "labels",
                f"targets have mean {train.mean():.4g} and deviation {train.std():.4g}: the first steps go "
                "into reaching them",
                where["train"],
                "scale them to about mean 0 and deviation 1",
            )
        )
    return found


def _spread(numbers: np.ndarray) -> dict[str, float]:
    names = ("min", "mean", "max", "deviation")
    figures = (numbers.min(), numbers.mean(), numbers.max(), numbers.std())
    return {name: float(figure) for name, figure in zip(names, figures, strict=True)}
