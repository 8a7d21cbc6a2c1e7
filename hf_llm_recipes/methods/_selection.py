"""Which rows of a pool a round of self-training learns from, and with which labels.

An item is what a class is guessed of: a row, for ``multi_label`` a row and class, for ``tokens`` a word.
Shape suffixes: S dropout passes  I items  C classes  N rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

IGNORED = -100  # the label of what is no item


@dataclass
class PoolLabels:
    """Labels of a whole pool, and the rows among them to train on.

    Args:
        items_I: Class of every item, rows in order; for regression the value.
        counts_N: Items of every row.
        confidence_N: Higher is surer; −inf for a row without items.
        prior_C: Class shares that the choice was balanced to; empty where it was not.
        chosen: Numbers of the rows to train on, rising.
        agreement: With the labels of the round before, at most 1; NaN where there are none.
    """

    items_I: np.ndarray
    counts_N: np.ndarray
    confidence_N: np.ndarray
    prior_C: np.ndarray = field(default_factory=lambda: np.zeros(0))
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    agreement: float = float("nan")

    def __post_init__(self) -> None:
        self._ends_N = np.cumsum(self.counts_N)

    def of_row(self, row: int) -> np.ndarray:
        """Returns the labels of a row's items."""
        end = int(self._ends_N[row])
        return self.items_I[end - int(self.counts_N[row]) : end]


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Returns the entropy in nats over the last axis."""
    return -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(-1)


def bald(probabilities_SIC: np.ndarray) -> np.ndarray:
    """Returns how much the passes disagree about each item, (I,), in nats, ≥ 0.

    H(mean of p) − mean of H(p): the mutual information of label and weights (Houlsby et al. 2011,
    https://arxiv.org/abs/1112.5745, eq. 2).
    """
    return entropy(probabilities_SIC.mean(0)) - entropy(probabilities_SIC).mean(0)


def confidence_of(probabilities_SIC: np.ndarray, kind: str) -> np.ndarray:
    """Returns how sure each item's class is, (I,), higher is surer.

    Args:
        probabilities_SIC: Of each pass.
        kind: ``"bald"`` (its negative), ``"entropy"`` (that of the mean, negative) or ``"probability"``
            (the largest of the mean).
    """
    if kind == "bald":
        return -bald(probabilities_SIC)
    mean_IC = probabilities_SIC.mean(0)
    return -entropy(mean_IC) if kind == "entropy" else mean_IC.max(-1)


def quotas(prior_C: np.ndarray, count: int) -> np.ndarray:
    """Returns how many of ``count`` rows each class gets, (C,).

    Shares that are no whole number of rows are rounded by largest remainders, ties to the lower class.
    """
    wanted_C = np.asarray(prior_C, np.float64) / np.sum(prior_C) * count
    given_C = np.floor(wanted_C + 1e-9).astype(np.int64)
    order = np.argsort(-(wanted_C - given_C).round(9), kind="stable")
    given_C[order[: count - given_C.sum()]] += 1
    return given_C


def balanced(classes_N: np.ndarray, confidence_N: np.ndarray, quota_C: np.ndarray) -> np.ndarray:
    """Returns the surest rows of each class up to its quota, rising; ties to the lower row.

    A class that too few rows were guessed to be of leaves the rest of its quota unused: other classes'
    rows in its place would undo the balance.
    """
    chosen = []
    for number, quota in enumerate(quota_C):
        rows = np.flatnonzero((classes_N == number) & np.isfinite(confidence_N))
        chosen.append(rows[np.argsort(-confidence_N[rows], kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen))


def surest(confidence_N: np.ndarray, count: int) -> np.ndarray:
    """Returns the ``count`` surest rows, rising; ties to the lower row; never a row without items."""
    order = np.argsort(-confidence_N, kind="stable")[:count]
    return np.sort(order[np.isfinite(confidence_N[order])])


def surest_of_strata(sizes_N: np.ndarray, confidence_N: np.ndarray, count: int, strata: int) -> np.ndarray:
    """Returns at most ``count`` rows, rising: the surest of each stratum, each its share of all rows.

    A stratum with too few rows at a finite confidence leaves the rest of its quota unused (``balanced``).

    Args:
        sizes_N: What the strata are made of, by quantiles; equal sizes share one. A row of size 0 has none.
        confidence_N: Higher is surer; −inf for a row that must not be taken. One at least is finite.
        count: ≥ 1.
        strata: ≥ 1.
    """
    rows = np.flatnonzero(sizes_N)
    edges = np.quantile(sizes_N[rows], np.arange(1, strata) / strata)
    strata_N = np.full(len(sizes_N), -1)
    strata_N[rows] = np.searchsorted(edges, sizes_N[rows])
    quota_C = quotas(np.bincount(strata_N[rows], minlength=strata), count)
    chosen = balanced(strata_N, confidence_N, quota_C)
    return chosen if len(chosen) else surest(confidence_N, count)


def agreement(first_I: np.ndarray, second_I: np.ndarray) -> float:
    """Returns the share of items with the same class; of values, their correlation."""
    if first_I.dtype.kind != "f":
        return float((first_I == second_I).mean())
    if first_I.std() == 0 or second_I.std() == 0:
        return float(np.allclose(first_I, second_I))
    return float(np.corrcoef(first_I, second_I)[0, 1])


def repeats(num_labeled: int, num_chosen: int, labeled_share: float) -> int:
    """Returns how often the labeled rows occur so that their share comes nearest to ``labeled_share``."""
    return max(1, round(labeled_share / (1 - labeled_share) * num_chosen / num_labeled))


class RoundRows(Dataset):
    """The labeled rows, as often as wanted, then the chosen rows of the pool with their labels.

    Args:
        labeled: Features with labels.
        times: How often the labeled rows occur, ≥ 1.
        pool: Features without.
        labels: Of the pool; None for the labeled rows alone.
        problem: What an item is (``Task.item_problem``).
    """

    def __init__(self, labeled: Any, times: int, pool: Any, labels: PoolLabels | None, problem: str) -> None:
        self.labeled, self.pool, self.labels, self.problem = labeled, pool, labels, problem
        self.num_labeled = times * len(labeled)

    def __len__(self) -> int:
        """Rows, repeated ones counted as often as they occur."""
        return self.num_labeled + (0 if self.labels is None else len(self.labels.chosen))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a row with its labels."""
        if index < self.num_labeled:
            return self.labeled[index % len(self.labeled)]
        number = int(self.labels.chosen[index - self.num_labeled])
        row = self.pool[number]
        return {**row, "labels": _as_label(self.labels.of_row(number), row, self.problem)}


def _as_label(items: np.ndarray, row: dict[str, Any], problem: str) -> Any:
    if problem == "single_label":
        return int(items[0])
    if problem == "regression":
        return float(items[0])
    if problem == "multi_label":
        return items.astype(np.float64).tolist()
    labels = np.full(len(row["token_items"]), IGNORED)
    labels[np.asarray(row["token_items"], bool)] = items
    return labels.tolist()
