"""How good a model is on each group of rows, and how far apart the groups are.

Notable:
- Shares of rows (accuracy and its like) have Wilson's interval, whose ends stay apart where every row is
  right; other scores have the task's own bootstrap interval.
- The gap's interval is Newcombe's: from the intervals of the two groups alone (for shares: method 10 of
  Newcombe 1998; in general MOVER, Zou & Donner 2008), so that it holds for any score of any task.
- The widest of many gaps is wide by choice: a test that all groups are alike stands beside it.

Shapes: N rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError, did_you_mean

LENGTH = "length"
FEW_ROWS = 30  # below, a group is marked and no gap is measured to it
BINS = 4  # of lengths and other numbers
MOST_GROUPS = 20  # of words; the rarer ones are one group
MOST_NUMBERS = 10  # different numbers that are still groups of their own
OTHERS, NONE = "(others)", "(none)"
SHARES = ("accuracy", "subset_accuracy")  # right rows over rows: binomial

Judge = Callable[[np.ndarray], dict[str, Any]]  # numbers of rows -> a task's metrics


@dataclass(frozen=True)
class Groups:
    """Rows in groups.

    Args:
        by: What they are grouped by, as a reader is told.
        names: Of the groups, in order.
        number_N: Each row's group.
    """

    by: str
    names: list[str]
    number_N: np.ndarray


def of_column(name: str, values: Sequence[Any]) -> Groups:
    """Returns the groups of a column: its values, numbers in quantile bins where there are many.

    Args:
        name: Of the column.
        values: One a row; None and ``""`` are a group of their own.

    Raises:
        DataError: lists or dicts, or words of which hardly any occurs twice, or one group only.
    """
    where = f"column `{name}`"
    odd = next((value for value in values if isinstance(value, list | dict)), None)
    if odd is not None:
        raise DataError(f"{odd!r} is no group", where=where, allowed="one word or number a row")
    given_N = np.asarray([_name(value) != NONE for value in values])
    given = [value for value, there in zip(values, given_N, strict=True) if there]
    distinct = set(given)
    numeric = bool(given) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
    if numeric and len(distinct) > MOST_NUMBERS:
        found = of_numbers(name, np.asarray(given, dtype=np.float64))
        if given_N.all():
            return found
        number_N = np.full(len(values), len(found.names))
        number_N[given_N] = found.number_N
        return Groups(name, [*found.names, NONE], number_N)
    if len(distinct) > max(MOST_GROUPS, len(values) // 2):
        raise DataError(
            f"{len(distinct):,} different values in {len(values):,} rows make no groups",
            where=where,
            allowed="a column whose values occur many times, or numbers",
        )
    counts = Counter(_name(value) for value in values)
    kept = [one for one, _ in counts.most_common(MOST_GROUPS)]
    kept = sorted(kept, key=_number_first)
    names = kept if len(kept) == len(counts) else [*kept, OTHERS]
    number = {one: i for i, one in enumerate(kept)}
    found_N = np.asarray([number.get(_name(value), len(kept)) for value in values])
    return _at_least_two(Groups(name, names, found_N), where)


def of_numbers(by: str, values_N: np.ndarray, unit: str = "") -> Groups:
    """Returns groups of about as many rows each, by quantiles; equal numbers are never parted.

    Args:
        by: What the numbers are.
        values_N: Finite.
        unit: Behind the names.

    Raises:
        DataError: all are equal.
    """
    cuts = np.unique(np.quantile(values_N, np.linspace(0, 1, BINS + 1)[1:-1], method="higher"))
    number_N = np.unique(np.searchsorted(cuts, values_N, side="left"), return_inverse=True)[1]
    bounds = [(values_N[number_N == i].min(), values_N[number_N == i].max()) for i in np.unique(number_N)]
    names = [f"{low:g}{unit}" if low == high else f"{low:g} – {high:g}{unit}" for low, high in bounds]
    return _at_least_two(Groups(by, names, number_N), by)


def column(rows: Any, name: str) -> list[Any]:
    """Returns a column of the data, classes by their names.

    Raises:
        DataError: it is not there; names the nearest.
    """
    from datasets import ClassLabel

    if name not in rows.column_names:
        raise DataError(
            f"there is no column `{name}` to slice by{did_you_mean(name, [*rows.column_names, LENGTH])}",
            allowed=", ".join([LENGTH, *rows.column_names]),
        )
    values = list(rows[name])
    kind = rows.features[name]
    if isinstance(kind, ClassLabel):
        return [None if value is None else kind.int2str(value) for value in values]
    return values


def sliced(groups: Groups, judge: Judge) -> dict[str, Any]:
    """Returns every group's scores with intervals, the widest gap, and a test that all are alike.

    ``by``, ``score`` (the first that has an interval), ``groups`` (``name``, ``rows``, ``few``, every score,
    ``intervals_95``), ``gap`` (``highest``, ``lowest``, ``difference``, ``difference_95``, ``pairs``), for
    shares ``alike`` (``test``, ``statistic``, ``p``), ``notes``. A gap is None where fewer than two groups
    have 30 rows.

    Args:
        groups: Of the rows.
        judge: What the task says of some rows.
    """
    made, notes, judged = [], [], []
    for i, name in enumerate(groups.names):
        rows = np.flatnonzero(groups.number_N == i)
        try:
            metrics = judge(rows)
        except DataError as error:  # e.g. no judged word among them
            notes.append(f"{name}: not judged: {error.what}")
            continue
        scores = evaluation.summary(metrics)
        judged.append(scores)
        made.append({"name": name, "rows": len(rows), "few": len(rows) < FEW_ROWS, **scores})
    if not made:
        raise DataError("no group can be judged", where=groups.by, hint="; ".join(notes))
    score = _main_score(judged)
    if score in SHARES:
        for one in made:
            one["intervals_95"] = {**one["intervals_95"], score: wilson(one[score], one["rows"])}
    few = [one["name"] for one in made if one["few"]]
    if few:
        notes.append(f"fewer than {FEW_ROWS} rows, left out of the gap: {', '.join(few)}")
    whole = [one for one in made if not one["few"] and score in one["intervals_95"]]
    alike = {"alike": _alike(whole, score)} if score in SHARES and len(whole) > 1 else {}
    return {
        "by": groups.by,
        "score": score,
        "groups": made,
        "gap": _gap(whole, score),
        **alike,
        "notes": notes,
    }


def _main_score(judged: Sequence[dict[str, Any]]) -> str:
    """F1 where a task has precision before it, else the first score that has an interval, else the first."""
    with_interval = list(dict.fromkeys(key for one in judged for key in one["intervals_95"]))
    names = with_interval or [key for key in judged[0] if key != "intervals_95"]
    return "f1" if "f1" in names else names[0]


def wilson(share: float, rows: int) -> list[float]:
    """Returns Wilson's 95 % interval of a share of rows (1927, https://doi.org/10.2307/2276774)."""
    from scipy.stats import binomtest

    found = binomtest(round(share * rows), rows).proportion_ci(0.95, method="wilson")
    return [float(found.low), float(found.high)]


def gap_interval(
    first: float, first_95: Sequence[float], second: float, second_95: Sequence[float]
) -> list[float]:
    """Returns the interval of ``first − second`` of independent groups (Zou & Donner 2008, eq. 3).

    https://doi.org/10.1002/sim.3095; with Wilson's intervals it is method 10 of Newcombe 1998.
    """
    below = math.hypot(first - first_95[0], second_95[1] - second)
    above = math.hypot(first_95[1] - first, second - second_95[0])
    return [first - second - below, first - second + above]


def _gap(whole: list[dict[str, Any]], score: str) -> dict[str, Any] | None:
    if len(whole) < 2:
        return None
    highest = max(whole, key=lambda one: one[score])
    lowest = min(reversed(whole), key=lambda one: one[score])  # another group than the highest in a tie
    edges = gap_interval(
        highest[score], highest["intervals_95"][score], lowest[score], lowest["intervals_95"][score]
    )
    return {
        "highest": highest["name"],
        "lowest": lowest["name"],
        "difference": highest[score] - lowest[score],
        "difference_95": edges,
        "pairs": math.comb(len(whole), 2),
    }


def _alike(whole: list[dict[str, Any]], score: str) -> dict[str, Any]:
    """Whether all groups could have one share: chi-square, by permutation where a cell expects under 5."""
    from scipy.stats import PermutationMethod, chi2_contingency

    right = np.asarray([round(one[score] * one["rows"]) for one in whole])
    counts = np.stack([right, np.asarray([one["rows"] for one in whole]) - right])
    if not counts.sum(axis=1).all():  # every row right, or none
        return {"test": "chi-square of equal shares", "statistic": 0.0, "p": 1.0}
    found = chi2_contingency(counts, correction=False)
    if found.expected_freq.min() >= 5:
        return {
            "test": "chi-square of equal shares",
            "statistic": float(found.statistic),
            "p": float(found.pvalue),
        }
    drawn = PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    found = chi2_contingency(counts, correction=False, method=drawn)
    name = "chi-square of equal shares, by permutation"
    return {"test": name, "statistic": float(found.statistic), "p": float(found.pvalue)}


def _at_least_two(groups: Groups, where: str) -> Groups:
    if len(groups.names) < 2:
        raise DataError(f"all rows are {groups.names[0]}: one group only", where=where)
    return groups


def _name(value: Any) -> str:
    return NONE if value is None or value == "" or value != value else str(value)  # NaN is not itself


def _number_first(name: str) -> tuple[int, float, str]:
    """Numbers by value, then words; what is missing last."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (2 if name == NONE else 1, 0.0, name)
