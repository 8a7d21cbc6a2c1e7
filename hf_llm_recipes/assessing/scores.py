"""More scores of a classifier or a regression, each with its bootstrap interval, for `evaluate.metrics`.

Notable:
- Values are scikit-learn's (`sklearn.metrics`); areas under curves are means over the classes that occur and
  do not fill all rows, one class against the rest.
- A resample is a vector of row counts, as in ``evaluation``: an area is computed from sorted codes.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError, did_you_mean

Weighted = Callable[[np.ndarray], float]  # how often each row was drawn -> a score


def check(names: Sequence[str], problem: str) -> None:
    """Refuses scores that are unknown or do not fit.

    Raises:
        DataError: names the ones that do.
    """
    fitting = sorted(SCORES.get(problem, {}))
    for name in names:
        if name not in fitting:
            known = any(name in found for found in SCORES.values())
            what = (
                f"metric `{name}` does not fit a task of {problem}" if known else f"unknown metric `{name}`"
            )
            raise DataError(
                f"{what}{did_you_mean(name, fitting)}",
                allowed=", ".join(fitting) or f"none: a task of {problem} has its own scores only",
            )


def more(
    names: Sequence[str],
    outputs: Any,
    labels: Any,
    problem: str,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """Returns scores and their 95 % intervals.

    Args:
        names: Keys of ``SCORES[problem]``.
        outputs: Logits (N, C); in regression numbers.
        labels: As for ``evaluation.classification`` and ``evaluation.regression``.
        problem: ``single_label``, ``multi_label`` or ``regression``.
        bootstrap: Number of resamples.
        seed: Of the resampling.

    Raises:
        DataError: as ``check``.
    """
    check(names, problem)
    outputs, labels = np.asarray(outputs, dtype=np.float64), np.asarray(labels)
    if problem == "regression":
        outputs = outputs.reshape(-1)
    made = {name: SCORES[problem][name](outputs, labels) for name in names}

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        return {name: weighted(weights_N) for name, weighted in made.items()}

    values = {name: float(value) for name, value in statistics(np.ones(len(labels))).items()}
    intervals = evaluation.bootstrap_intervals(statistics, len(labels), bootstrap, seed)
    defined = {name: value if np.isfinite(value) else None for name, value in values.items()}
    return defined, {name: edges for name, edges in intervals.items() if defined[name] is not None}


def _confusion(make: Callable[[np.ndarray], float], logits_NC: np.ndarray, labels_N: np.ndarray) -> Weighted:
    """A score of the confusion matrix (rows true, columns predicted)."""
    classes = logits_NC.shape[1]
    cell_N = labels_N.astype(np.int64) * classes + logits_NC.argmax(axis=1)

    def weighted(weights_N: np.ndarray) -> float:
        return make(np.bincount(cell_N, weights_N, minlength=classes**2).reshape(classes, classes))

    return weighted


def _balanced_accuracy(counts_CC: np.ndarray) -> float:
    true_C = counts_CC.sum(axis=1)
    there = true_C > 0
    return float((np.diag(counts_CC)[there] / true_C[there]).mean())


def _matthews(counts_CC: np.ndarray) -> float:
    """Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006; 0 where it would be 0/0."""
    total, true_C, guessed_C = counts_CC.sum(), counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    spread = (total**2 - guessed_C @ guessed_C) * (total**2 - true_C @ true_C)
    return float((np.trace(counts_CC) * total - true_C @ guessed_C) / np.sqrt(spread)) if spread > 0 else 0.0


def _kappa(counts_CC: np.ndarray) -> float:
    total = counts_CC.sum()
    chance = counts_CC.sum(axis=1) @ counts_CC.sum(axis=0) / total**2
    return float((np.trace(counts_CC) / total - chance) / (1 - chance)) if chance < 1 else np.nan


def _top(k: int, logits_NC: np.ndarray, labels_N: np.ndarray) -> Weighted:
    own_N1 = np.take_along_axis(logits_NC, labels_N.astype(np.int64)[:, None], axis=1)
    hit_N = ((logits_NC > own_N1).sum(axis=1) < k).astype(np.float64)
    return partial(_mean, hit_N)


def _mean(values_N: np.ndarray, weights_N: np.ndarray) -> float:
    return float(weights_N @ values_N / weights_N.sum())


def _over_classes(
    area: Callable[..., float], outputs_NC: np.ndarray, labels: np.ndarray, *, softmax: bool = False
) -> Weighted:
    problem = "single_label" if softmax else "multi_label"
    scores_NC = evaluation.probabilities(outputs_NC, problem)
    sets_NC = np.eye(outputs_NC.shape[1])[labels.astype(np.int64)] if softmax else labels
    codes_CN = [np.unique(column_N, return_inverse=True)[1] for column_N in scores_NC.T]

    def weighted(weights_N: np.ndarray) -> float:
        found = [area(codes_N, set_N, weights_N) for codes_N, set_N in zip(codes_CN, sets_NC.T, strict=True)]
        kept = [one for one in found if not np.isnan(one)]
        return float(np.mean(kept)) if kept else np.nan

    return weighted


def _roc_auc(codes_N: np.ndarray, positive_N: np.ndarray, weights_N: np.ndarray) -> float:
    """The share of pairs (a positive, a negative) in the right order, ties half; NaN without a pair."""
    ours_K, theirs_K = _counted(codes_N, positive_N, weights_N)
    pairs = ours_K.sum() * theirs_K.sum()
    below_K = np.cumsum(theirs_K) - theirs_K / 2
    return float(ours_K @ below_K / pairs) if pairs else np.nan


def _average_precision(codes_N: np.ndarray, positive_N: np.ndarray, weights_N: np.ndarray) -> float:
    """``sum_n (R_n − R_{n−1}) P_n`` over thresholds, as scikit-learn has it; NaN without a pair."""
    ours_K, theirs_K = (counts_K[::-1] for counts_K in _counted(codes_N, positive_N, weights_N))
    if not ours_K.any() or not theirs_K.any():
        return np.nan
    hits_K, seen_K = np.cumsum(ours_K), np.cumsum(ours_K + theirs_K)
    return float(ours_K @ (hits_K / np.maximum(seen_K, 1)) / ours_K.sum())


def _counted(
    codes_N: np.ndarray, positive_N: np.ndarray, weights_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many positive and negative rows have each code, ascending."""
    ours_K = np.bincount(codes_N, weights_N * positive_N)
    return ours_K, np.bincount(codes_N, weights_N) - ours_K


def _hamming(logits_NC: np.ndarray, labels_NC: np.ndarray) -> Weighted:
    return partial(_mean, ((logits_NC >= 0) != labels_NC).mean(axis=1))


def _jaccard(logits_NC: np.ndarray, labels_NC: np.ndarray) -> Weighted:
    """The mean over rows; 1 where a row has no label and none is answered."""
    guessed_NC, labels_NC = logits_NC >= 0, labels_NC.astype(bool)
    either_N = (guessed_NC | labels_NC).sum(axis=1)
    both_N = (guessed_NC & labels_NC).sum(axis=1)
    return partial(_mean, np.where(either_N > 0, both_N / np.maximum(either_N, 1), 1.0))


def _median_error(predictions_N: np.ndarray, targets_N: np.ndarray) -> Weighted:
    errors_N = np.abs(predictions_N - targets_N)

    def weighted(weights_N: np.ndarray) -> float:
        return float(np.median(np.repeat(errors_N, weights_N.astype(np.int64))))

    return weighted


def _explained_variance(predictions_N: np.ndarray, targets_N: np.ndarray) -> Weighted:
    def variance(values_N: np.ndarray, weights_N: np.ndarray) -> float:
        return _mean(np.square(values_N - _mean(values_N, weights_N)), weights_N)

    def weighted(weights_N: np.ndarray) -> float:
        spread = variance(targets_N, weights_N)
        return 1 - variance(targets_N - predictions_N, weights_N) / spread if spread > 0 else np.nan

    return weighted


SCORES: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], Weighted]]] = {
    "single_label": {
        "balanced_accuracy": partial(_confusion, _balanced_accuracy),
        "matthews_corrcoef": partial(_confusion, _matthews),
        "cohen_kappa": partial(_confusion, _kappa),
        "roc_auc": partial(_over_classes, _roc_auc, softmax=True),
        "average_precision": partial(_over_classes, _average_precision, softmax=True),
        "top_3_accuracy": partial(_top, 3),
    },
    "multi_label": {
        "hamming_loss": _hamming,
        "jaccard": _jaccard,
        "roc_auc": partial(_over_classes, _roc_auc),
        "average_precision": partial(_over_classes, _average_precision),
    },
    "regression": {
        "median_absolute_error": _median_error,
        "explained_variance": _explained_variance,
    },
}
