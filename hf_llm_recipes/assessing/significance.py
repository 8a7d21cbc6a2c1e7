"""Whether two runs differ beyond chance on the same rows: McNemar's test, Wilcoxon's, what each needs.

Notable:
- A test needs one figure a row: right or wrong for McNemar, a number for Wilcoxon. ``hits`` and ``figures``
  find them in the columns of ``predictions.parquet``.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.comparison import paired_difference
from hf_llm_recipes.errors import DataError

FEW_DISCORDANT = 25  # below, the chi-square's tail is no longer near the binomial's
TESTS = ("mcnemar", "wilcoxon")
EXACT, CHI_SQUARE = "McNemar, exact binomial", "McNemar, chi-square with continuity correction"
WILCOXON = "Wilcoxon signed-rank"
Columns = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Figures:
    """One number a row.

    Args:
        name: What it is, with the unit.
        values_N: The numbers.
        lower_is_better: Whether they are errors.
    """

    name: str
    values_N: np.ndarray
    lower_is_better: bool


def compare(first: Columns, second: Columns, test: str | None = None) -> dict[str, Any]:
    """Returns the test of two runs on the same rows, with the paired difference and its 95 % interval.

    ``test`` (its name), ``statistic``, ``p`` (two-sided), ``figure`` (what is compared), ``first`` and
    ``second`` (its means), ``difference`` (second − first), ``difference_95`` (paired bootstrap over rows);
    of McNemar also ``only_first`` and ``only_second`` (rows that only one has right).

    Args:
        first: Columns of ``predictions.parquet`` of one run.
        second: Of the other; the same rows in the same order.
        test: ``mcnemar`` or ``wilcoxon``; None takes McNemar where each row is right or wrong.

    Raises:
        DataError: the test does not fit what the task says of a row, or the runs' figures cannot be paired.
    """
    if test not in (None, *TESTS):
        raise DataError(f"there is no test `{test}`", allowed=", ".join(TESTS))
    ours, theirs = hits(first), hits(second)
    right_or_wrong = ours is not None and theirs is not None
    if test == "mcnemar" and not right_or_wrong:
        raise DataError(
            "McNemar's test needs rows that are right or wrong, which this task's are not",
            hint="compare its figures row by row: Wilcoxon's test and the paired bootstrap "
            "(`--test wilcoxon`, or leave `--test` out)",
        )
    if right_or_wrong and test != "wilcoxon":
        found = mcnemar(ours, theirs)
        return {**found, "figure": "share of rows right", **_paired(ours, theirs)}
    one, other = figures(first), figures(second)
    if one is None or other is None:
        raise DataError(
            "the task keeps no number of each row that two runs could be compared by",
            allowed="classes, tags, numbers, preferences, rewards, losses of documents",
        )
    if one.name != other.name:
        raise DataError(
            f"one run is judged by {one.name}, the other by {other.name}", allowed="two runs of the same task"
        )
    found = wilcoxon(one.values_N, other.values_N)
    return {**found, "figure": one.name, **_paired(one.values_N, other.values_N)}


def mcnemar(first_N: np.ndarray, second_N: np.ndarray) -> dict[str, Any]:
    """Returns McNemar's test (1947, https://doi.org/10.1007/BF02295996) of two runs' right and wrong rows.

    Fewer than 25 discordant rows: the exact two-sided binomial test. Else chi-square with one degree of
    freedom and Edwards' correction (1948), ``max(|b − c| − 1, 0)² / (b + c)``.

    Args:
        first_N: Whether each row is right.
        second_N: The same of the other run.
    """
    from scipy.stats import binomtest, chi2

    first_N, second_N = np.asarray(first_N, dtype=bool), np.asarray(second_N, dtype=bool)
    b, c = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    counts = {"only_first": b, "only_second": c}
    if b + c < FEW_DISCORDANT:
        p = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
        return {"test": EXACT, **counts, "statistic": float(min(b, c)), "p": p}
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c)
    return {"test": CHI_SQUARE, **counts, "statistic": statistic, "p": float(chi2.sf(statistic, 1))}


def wilcoxon(first_N: np.ndarray, second_N: np.ndarray) -> dict[str, Any]:
    """Returns Wilcoxon's signed-rank test of two figures a row; rows without a difference are left out."""
    from scipy.stats import wilcoxon as signed_rank

    difference_N = np.asarray(second_N, dtype=np.float64) - first_N
    if not difference_N.any():
        return {"test": WILCOXON, "statistic": 0.0, "p": 1.0}
    found = signed_rank(difference_N)
    return {"test": WILCOXON, "statistic": float(found.statistic), "p": float(found.pvalue)}


def hits(columns: Columns) -> np.ndarray | None:
    """Returns which rows are right, (N,); None where that is no yes or no."""
    if {"label", "predicted_label"} <= set(columns) and "tokens" not in columns:
        pairs = zip(columns["label"], columns["predicted_label"], strict=True)
        return np.asarray([_plain(a) == _plain(b) for a, b in pairs], dtype=bool)
    if {"chosen_logprob", "rejected_logprob"} <= set(columns):
        return np.asarray(columns["chosen_logprob"]) > np.asarray(columns["rejected_logprob"])
    for name in ("reward", "exact_match"):
        if name in columns and set(columns[name]) <= {0.0, 1.0}:
            return np.asarray(columns[name]) == 1.0
    return None


def figures(columns: Columns) -> Figures | None:
    """Returns the number that a task keeps of each row; None of one that keeps none."""
    right = hits(columns)
    if right is not None:
        return Figures("share of rows right", right.astype(np.float64), False)
    if {"label", "predicted_label", "tokens"} <= set(columns):
        return Figures("share of a row's words wrong", _words_wrong(columns), True)
    if {"label", "prediction"} <= set(columns):
        errors_N = np.asarray(columns["prediction"], dtype=np.float64) - columns["label"]
        return Figures("absolute error", np.abs(errors_N), True)
    if "reward" in columns:
        return Figures("reward", np.asarray(columns["reward"], dtype=np.float64), False)
    if "loss" in columns and "bytes" in columns:  # does not depend on the tokenizer
        return Figures("bits a byte", _per(columns, "bytes") / np.log(2), True)
    if "loss" in columns and "tokens" in columns:
        return Figures("nats a token", _per(columns, "tokens"), True)
    if "loss" in columns:
        return Figures("loss", np.asarray(columns["loss"], dtype=np.float64), True)
    return None


def _paired(first_N: np.ndarray, second_N: np.ndarray) -> dict[str, Any]:
    return {
        "first": float(np.mean(first_N)),
        "second": float(np.mean(second_N)),
        **paired_difference(np.asarray(second_N, dtype=np.float64), np.asarray(first_N, dtype=np.float64)),
    }


def _words_wrong(columns: Columns) -> np.ndarray:
    shares = []
    for labels, answers in zip(columns["label"], columns["predicted_label"], strict=True):
        judged = [a == b for a, b in zip(labels, answers, strict=True) if a is not None]
        shares.append(1 - sum(judged) / len(judged) if judged else 0.0)
    return np.asarray(shares)


def _per(columns: Columns, unit: str) -> np.ndarray:
    counts_N = np.asarray(columns[unit], dtype=np.float64)
    return np.asarray(columns["loss"], dtype=np.float64) / np.maximum(counts_N, 1)


def _plain(value: Any) -> Any:
    return tuple(sorted(value)) if isinstance(value, list) else value
