"""Scores that are ratios of sums over documents, with intervals over documents.

Shapes: D documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError

BOOTSTRAP, SEED = 1000, 0


def ratio(part: float, whole: float) -> float:
    """Returns NaN where there is nothing to divide by."""
    return part / whole if whole else math.nan


def exp(value: float) -> float:
    """Returns e to the value, infinite where that is too much for a float."""
    return math.exp(value) if not value > 709 else math.inf


def judged(
    sums_D: Mapping[str, np.ndarray],
    scores: Callable[[Mapping[str, float]], dict[str, float]],
    **more: Any,
) -> dict[str, Any]:
    """Returns scores, counts and intervals, JSON-able.

    Args:
        sums_D: Name -> one sum a document.
        scores: Sums over some documents -> scores; called once for each resample.
        **more: What has no interval.

    Raises:
        DataError: no document, or a sum that is no finite number.
    """
    rows = len(next(iter(sums_D.values())))
    if not rows:
        raise DataError("there is nothing to judge", hint="give the test split some rows")
    for name, values_D in sums_D.items():
        if not np.isfinite(values_D).all():
            raise DataError(
                f"{name} is not finite in document {int(np.flatnonzero(~np.isfinite(values_D))[0])}",
                hint="the model has diverged: lower the learning rate",
            )

    def statistics(weights_D: np.ndarray) -> dict[str, float]:
        return scores({name: float(weights_D @ values_D) for name, values_D in sums_D.items()})

    return {
        "problem": "language",
        "rows": rows,
        **statistics(np.ones(rows)),
        **more,
        "intervals_95": evaluation.bootstrap_intervals(statistics, rows, BOOTSTRAP, SEED),
        "notes": ["one document: no interval can be given"] if rows == 1 else [],
        "bootstrap": BOOTSTRAP,
        "seed": SEED,
    }


def sums_by(document_N: Any, values: Mapping[str, Any], documents: int) -> dict[str, np.ndarray]:
    """Returns each value summed over the rows of a document, (D,)."""
    return {
        name: np.bincount(
            np.asarray(document_N), weights=np.asarray(v, dtype=np.float64), minlength=documents
        )
        for name, v in values.items()
    }
