"""How good a model is, and how sure that is: scores, 95 % intervals, calibration, files.

Notable:
- Point values come from scikit-learn (correlations from SciPy) through an ``evaluate.Metric``
  made on the spot: nothing is loaded from the Hub.
- Intervals are percentile bootstraps over rows. A resample is a vector of row counts, and every
  score is written as a function of such weights, so 1000 resamples of 10,000 rows take about a second.
- Macro-F1 is scikit-learn's default: the mean over the classes that occur in the labels or in the
  predictions. A class with neither has an F1 of 0/0 and is left out; a resample treats it alike.
- Importing this module is cheap; `evaluate` (which loads torch) comes with the first score.

Shapes: N rows, C classes, K whatever is in that axis.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_llm_recipes.errors import DataError, did_you_mean, visible

if TYPE_CHECKING:
    import evaluate
    import rich.console

PROBLEMS = ("single_label", "multi_label", "regression")
CALIBRATION_BINS = 15  # Guo et al. 2017

_DIVERGED = "the model has diverged: lower the learning rate, or train in float32 or bfloat16"


def classification(
    logits_NC: Any,
    labels_N: Any,
    label_names: Sequence[str],
    *,
    problem: str = "single_label",
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns every score of a classifier on one set of labeled rows, ready for JSON.

    Always: ``problem``, ``rows``, ``f1_macro``, ``loss`` (nats), ``majority_baseline``, ``calibration``
    (``ece``, ``brier``, ``bins``), ``per_class``, ``labels``, ``intervals_95``, ``bootstrap``, ``seed``
    and ``notes`` (sentences on what the numbers cannot say).

    Single-label adds ``accuracy``, ``f1_weighted`` and ``confusion_matrix`` (rows true, columns
    predicted, in the order of ``labels``). ``loss`` is the mean cross-entropy; ``brier`` is
    ``mean_n sum_c (p_nc - y_nc)^2``, in [0, 2]; ``majority_baseline`` is the accuracy of always
    answering the most frequent class of the given labels.

    Multi-label adds ``subset_accuracy`` (all labels of a row right), ``f1_micro`` and ``threshold``.
    A label is predicted where its probability is 0.5 or more. ``loss`` is the mean binary cross-entropy
    over all N x C decisions; ``brier`` is ``mean_nc (p_nc - y_nc)^2``, in [0, 1]; ``majority_baseline``
    is the subset accuracy of always answering the most frequent set of labels; a row may have no label.

    Precision, recall and F1 are 0 where they would be 0/0 (scikit-learn's ``zero_division=0``).
    The expected calibration error follows Guo et al. 2017 (https://arxiv.org/abs/1706.04599), eq. 3:
    ``sum_m |B_m| / n * |accuracy(B_m) - confidence(B_m)|`` over 15 equal-width bins ``((m-1)/15, m/15]``
    of the top label's probability; in multi-label over all decisions, with ``max(p, 1 - p)``.

    Args:
        logits_NC: Scores before softmax or sigmoid.
        labels_N: Class indices in [0, C); in multi-label an N x C matrix of zeros and ones.
        label_names: The C classes, in the order of the logits.
        problem: ``"single_label"`` or ``"multi_label"``.
        bootstrap: Number of resamples; 0 gives no intervals.
        seed: Of the resampling.

    Raises:
        DataError: shapes that do not fit, NaN or infinite logits, labels out of range, repeated names,
            no rows, another problem, a negative number of resamples.
    """
    _known_problem(problem, PROBLEMS[:2])
    logits_NC = _logits(logits_NC)
    names = _label_names(label_names, logits_NC.shape[1])
    _resamples_allowed(bootstrap)
    if problem == "single_label":
        scores = _single_label(logits_NC, _class_indices(labels_N, logits_NC), names, bootstrap, seed)
    else:
        scores = _multi_label(logits_NC, _label_sets(labels_N, logits_NC), names, bootstrap, seed)
    return {"problem": problem, "rows": len(logits_NC), **scores, "bootstrap": bootstrap, "seed": seed}


def regression(predictions_N: Any, targets_N: Any, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Returns every score of a regression on one set of rows, ready for JSON.

    ``problem``, ``rows``, ``rmse``, ``mae``, ``r2``, ``pearson``, ``spearman``, ``mean_baseline_rmse``
    (of always answering the mean of the given targets), ``intervals_95``, ``notes``, ``bootstrap``,
    ``seed``. What does not exist is None, with a note: correlations where predictions or targets are
    all equal, R2 where the targets are.

    Args:
        predictions_N: One number a row; N x 1 is taken too.
        targets_N: The same, in the same unit.
        bootstrap: Number of resamples; 0 gives no intervals.
        seed: Of the resampling.

    Raises:
        DataError: shapes that do not fit, NaN or infinite values, no rows, a negative number of resamples.
    """
    _resamples_allowed(bootstrap)
    predictions_N, targets_N = _regression_arrays(predictions_N, targets_N)
    values = _compute("regression", predictions_N, targets_N)
    draws = bootstrap_intervals(
        _regression_statistics(predictions_N, targets_N), len(targets_N), bootstrap, seed
    )
    defined = {name for name, value in values.items() if value is not None}
    return {
        "problem": "regression",
        "rows": len(targets_N),
        **values,
        "mean_baseline_rmse": float(np.std(targets_N)),
        "intervals_95": {name: interval for name, interval in draws.items() if name in defined},
        "notes": _row_notes(len(targets_N)) + _constant_notes(predictions_N, targets_N),
        "bootstrap": bootstrap,
        "seed": seed,
    }


def probabilities(logits_NC: Any, problem: str) -> np.ndarray:
    """Returns class probabilities in float64: softmax over C, or a sigmoid for each label.

    Raises:
        DataError: not N x C, NaN or infinite logits, another problem.
    """
    _known_problem(problem, PROBLEMS[:2])
    logits_NC = _logits(logits_NC)
    if problem == "single_label":
        return np.exp(_log_softmax(logits_NC))
    return np.exp(-np.logaddexp(0.0, -logits_NC))  # exp(-softplus(-z)) does not overflow


def quick_metrics(logits: Any, labels: Any, problem: str) -> dict[str, float]:
    """Returns the cheap scores, for ``Trainer.compute_metrics`` while training.

    Single-label: ``accuracy``, ``f1_macro``. Multi-label: ``f1_micro``, ``f1_macro``,
    ``subset_accuracy``. Regression: ``rmse``, ``mae``, ``pearson``, ``spearman``; a correlation that
    does not exist is 0.0 here, because a NaN as the first best score could never be beaten.

    Args:
        logits: N x C scores; in regression N or N x 1 numbers.
        labels: As for `classification` and `regression`.
        problem: ``"single_label"``, ``"multi_label"`` or ``"regression"``.

    Raises:
        DataError: as for `classification` and `regression`.
    """
    _known_problem(problem, PROBLEMS)
    if problem == "regression":
        scores = _compute(problem, *_regression_arrays(logits, labels))
        return {name: scores[name] or 0.0 for name in ("rmse", "mae", "pearson", "spearman")}
    logits_NC = _logits(logits)
    if problem == "single_label":
        scores = _compute(problem, np.argmax(logits_NC, axis=1), _class_indices(labels, logits_NC))
        return {name: scores[name] for name in ("accuracy", "f1_macro")}
    return _compute(problem, _decisions(logits_NC), _label_sets(labels, logits_NC))


def metric(problem: str) -> evaluate.Metric:
    """Returns an ``evaluate.Metric`` with the scalar scores of a problem, over decisions rather than logits.

    ``metric("single_label").compute(predictions=[0, 1], references=[0, 0])``; multi-label takes rows of
    zeros and ones, regression takes numbers. It is combined and batched as any other metric of
    `evaluate`; several processes gather their rows before scoring, not in here.

    Raises:
        DataError: another problem.
    """
    _known_problem(problem, PROBLEMS)
    return _metric_class()(problem)


def summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scores that have an interval, and the intervals, without tables and calibration.

    Where nothing has an interval, as of one document, every score.
    """
    intervals = {name: bounds for name, bounds in metrics.get("intervals_95", {}).items() if name in metrics}
    names = intervals or [name for name, value in metrics.items() if isinstance(value, float)]
    return {**{name: metrics[name] for name in names}, "intervals_95": intervals}


def format_table(metrics: Mapping[str, Any]) -> rich.console.Group:
    """Returns tables for the terminal: each score with its interval, then each class, then the notes.

    Args:
        metrics: From `classification` or `regression`, or the same read back from JSON.
    """
    from rich.console import Group

    parts = [_score_table(metrics)]
    if metrics.get("per_class"):
        parts.append(_class_table(metrics["per_class"]))
    return Group(*parts, *_note_lines(metrics))


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Writes metrics as JSON, whole or not at all: beside the target first, then renamed.

    Floats keep their full precision. JSON has no NaN: a value that is NaN or infinite is written as
    null, and a sentence saying so is added to ``notes``.

    Args:
        path: Its folder is made if it is missing.
        metrics: Nested dicts, lists, text, numbers; NumPy scalars and arrays are turned into plain ones.

    Raises:
        DataError: a value JSON cannot hold.
    """
    lost: list[str] = []
    plain = _plain(metrics, "", lost)
    if lost:
        plain["notes"] = [*plain.get("notes", []), *lost]
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    with written_beside(Path(path)) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def write_predictions(
    path: str | Path,
    *,
    columns: Mapping[str, Sequence[Any]],
    logits: Any,
    labels: Any | None,
    label_names: Sequence[str] | None,
    problem: str,
) -> None:
    """Writes one Parquet row per row: the given columns, the label, the prediction, the probabilities.

    Single-label: ``label``, ``predicted_label`` (names) and one ``probability_<name>`` a class.
    Multi-label: the same with lists of names. Regression: ``label``, ``prediction``. A given column of
    such a name is kept as ``input_<name>``. Written beside the target first, then renamed.

    Args:
        path: Its folder is made if it is missing.
        columns: Name -> N values, e.g. the texts.
        logits: N x C scores; in regression N or N x 1 numbers.
        labels: As for `classification` and `regression`; None for unlabeled rows: no ``label`` column.
        label_names: The C classes; None in regression.
        problem: ``"single_label"``, ``"multi_label"`` or ``"regression"``.

    Raises:
        DataError: as for `classification` and `regression`; a column of another length, or of values
            Parquet has no one type for.
    """
    import pyarrow.parquet

    _known_problem(problem, PROBLEMS)
    if problem == "regression":
        ours = _regression_columns(logits, labels)
    else:
        ours = _classification_columns(_logits(logits), labels, label_names, problem)
    rows = len(next(iter(ours.values())))
    table = pyarrow.table({**_given_columns(columns, taken=ours, rows=rows), **ours})
    with written_beside(Path(path)) as beside:
        pyarrow.parquet.write_table(table, beside)


def write_columns(path: str | Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes columns of equal length to a Parquet file, beside the target first, then renamed.

    Args:
        path: Its folder is made if it is missing.
        columns: Name -> one value a row.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({name: list(values) for name, values in columns.items()})
    with written_beside(Path(path)) as beside:
        pyarrow.parquet.write_table(table, beside)


def _known_problem(problem: str, allowed: Sequence[str]) -> None:
    if problem not in allowed:
        raise DataError(
            f"unknown problem `{problem}`{did_you_mean(str(problem), allowed)}", allowed=", ".join(allowed)
        )


def _resamples_allowed(bootstrap: int) -> None:
    if bootstrap < 0:
        raise DataError(f"bootstrap is {bootstrap}", allowed="0 (no intervals) or more; 1000 is usual")


def _numbers(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be read as one array of numbers: {error}") from error


def _all_finite(values: np.ndarray, what: str, hint: str) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    position = tuple(int(axis[0]) for axis in np.nonzero(bad))
    rows = np.unique(np.nonzero(bad)[0])
    raise DataError(
        f"{what} {values[position]} in row {position[0]} (such rows: {len(rows)} of {len(values)})",
        where=f"row {position[0]}",
        allowed="finite numbers",
        hint=hint,
    )


def _logits(values: Any) -> np.ndarray:
    logits_NC = _numbers(values, "logits")
    if logits_NC.ndim != 2 or logits_NC.shape[1] == 0:
        raise DataError(
            f"logits have the shape {logits_NC.shape}",
            allowed="(rows, classes)",
            hint="with one sequence of outputs a row, or a tuple of outputs, pass the class logits alone",
        )
    if len(logits_NC) == 0:
        raise DataError("there are no rows to score", hint="give the split at least one row")
    _all_finite(logits_NC, "a logit is", _DIVERGED)
    return logits_NC


def _label_names(names: Sequence[str], num_classes: int) -> list[str]:
    names = list(names)
    if len(names) != num_classes:
        raise DataError(
            f"{len(names)} label names for {num_classes} columns of logits",
            allowed="as many names as columns",
        )
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(f"label name {index} is {name!r}", allowed="text")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"label name {repeated[0]!r} is there twice", hint="give every class its own name")
    return names


def _class_indices(values: Any, logits_NC: np.ndarray) -> np.ndarray:
    labels_N = _numbers(values, "labels")
    num_classes = logits_NC.shape[1]
    if labels_N.shape != (len(logits_NC),):
        raise DataError(
            f"labels have the shape {labels_N.shape} and logits {logits_NC.shape}",
            allowed=f"one class index a row: ({len(logits_NC)},)",
            hint='labels with a column a class are problem="multi_label"' if labels_N.ndim == 2 else None,
        )
    wrong = np.flatnonzero((labels_N != np.floor(labels_N)) | (labels_N < 0) | (labels_N >= num_classes))
    if len(wrong):
        raise DataError(
            f"label {labels_N[wrong[0]]:g} in row {wrong[0]} (such rows: {len(wrong)} of {len(labels_N)})",
            where=f"row {wrong[0]}",
            allowed=f"whole numbers from 0 to {num_classes - 1}",
            hint="leave rows without a label (-100) out" if labels_N[wrong[0]] < 0 else None,
        )
    return labels_N.astype(np.int64)


def _label_sets(values: Any, logits_NC: np.ndarray) -> np.ndarray:
    labels_NC = _numbers(values, "labels")
    if labels_NC.shape != logits_NC.shape:
        raise DataError(
            f"labels have the shape {labels_NC.shape} and logits {logits_NC.shape}",
            allowed="the same shape: a 0 or 1 for every row and class",
            hint='one class index a row is problem="single_label"' if labels_NC.ndim == 1 else None,
        )
    wrong = np.argwhere((labels_NC != 0) & (labels_NC != 1))
    if len(wrong):
        row, column = (int(i) for i in wrong[0])
        raise DataError(
            f"label {labels_NC[row, column]:g} in row {row}, class {column}",
            where=f"row {row}",
            allowed="0 or 1",
        )
    return labels_NC.astype(np.int64)


def _one_number_a_row(values: Any, what: str) -> np.ndarray:
    numbers = _numbers(values, what)
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.ndim != 1:
        raise DataError(f"{what} have the shape {numbers.shape}", allowed="(rows,) or (rows, 1)")
    if len(numbers) == 0:
        raise DataError("there are no rows to score", hint="give the split at least one row")
    return numbers


def _regression_arrays(predictions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    predictions_N = _one_number_a_row(predictions, "predictions")
    targets_N = _one_number_a_row(targets, "targets")
    if len(predictions_N) != len(targets_N):
        raise DataError(f"{len(predictions_N)} predictions for {len(targets_N)} targets", allowed="as many")
    _all_finite(predictions_N, "a prediction is", _DIVERGED)
    _all_finite(targets_N, "a target is", "leave rows without a target out")
    return predictions_N, targets_N


@functools.cache
def _metric_class() -> type[evaluate.Metric]:
    import evaluate
    from datasets import Features, Sequence, Value

    scores = {
        "single_label": (_single_label_scores, Value("int64")),
        "multi_label": (_multi_label_scores, Sequence(Value("int64"))),
        "regression": (_regression_scores, Value("float64")),
    }

    class ProblemScores(evaluate.Metric):
        """The scalar scores of one of `PROBLEMS`."""

        def __init__(self, problem: str) -> None:
            self._scores, self._feature = scores[problem]
            super().__init__(config_name=problem, keep_in_memory=True)

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Scalar scores of one set of rows.",
                citation="",
                inputs_description="predictions and references: class indices, rows of 0 and 1, or numbers",
                features=Features({"predictions": self._feature, "references": self._feature}),
            )

        def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
            return self._scores(np.asarray(predictions), np.asarray(references))

    return ProblemScores


def _compute(problem: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    return metric(problem).compute(predictions=predictions, references=references)


def _single_label_scores(predicted_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(labels_N, predicted_N)),
        "f1_macro": float(f1_score(labels_N, predicted_N, average="macro", zero_division=0)),
        "f1_weighted": float(f1_score(labels_N, predicted_N, average="weighted", zero_division=0)),
    }


def _indicator(sets_NC: np.ndarray) -> np.ndarray:
    """Returns at least two columns: scikit-learn takes a single one for classes 0 and 1."""
    return np.pad(sets_NC, ((0, 0), (0, 1))) if sets_NC.shape[1] == 1 else sets_NC


def _multi_label_scores(predicted_NC: np.ndarray, labels_NC: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    predicted_NC, labels_NC = _indicator(predicted_NC), _indicator(labels_NC)

    def f1(average: str) -> float:
        occurring = np.flatnonzero((labels_NC + predicted_NC).any(axis=0))
        if len(occurring) == 0:
            return 0.0
        return float(f1_score(labels_NC, predicted_NC, labels=occurring, average=average, zero_division=0))

    return {
        "f1_micro": f1("micro"),
        "f1_macro": f1("macro"),
        "subset_accuracy": float(accuracy_score(labels_NC, predicted_NC)),
    }


def _regression_scores(predictions_N: np.ndarray, targets_N: np.ndarray) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    varied_targets = np.ptp(targets_N) > 0
    varied = varied_targets and np.ptp(predictions_N) > 0
    return {
        "rmse": math.sqrt(mean_squared_error(targets_N, predictions_N)),
        "mae": float(mean_absolute_error(targets_N, predictions_N)),
        "r2": float(r2_score(targets_N, predictions_N)) if varied_targets else None,
        "pearson": float(pearsonr(predictions_N, targets_N).statistic) if varied else None,
        "spearman": float(spearmanr(predictions_N, targets_N).statistic) if varied else None,
    }


def _per_class(labels: np.ndarray, predicted: np.ndarray, names: list[str]) -> dict[str, dict[str, Any]]:
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(labels, predicted, labels=range(len(names)), zero_division=0)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for name, p, r, f, s in zip(names, *columns, strict=True)
    }


def _single_label(
    logits_NC: np.ndarray, labels_N: np.ndarray, names: list[str], bootstrap: int, seed: int
) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix

    log_probs_NC = _log_softmax(logits_NC)
    probs_NC = np.exp(log_probs_NC)
    predicted_N = np.argmax(logits_NC, axis=1)
    one_hot_NC = np.eye(len(names))[labels_N]
    means = {
        "loss": -log_probs_NC[np.arange(len(labels_N)), labels_N],
        "brier": np.square(probs_NC - one_hot_NC).sum(axis=1),
    }
    statistics = _single_label_statistics(predicted_N, labels_N, len(names), means)
    scores = _compute("single_label", predicted_N, labels_N)
    per_class = _per_class(labels_N, predicted_N, names)
    return {
        **scores,
        "loss": float(means["loss"].mean()),
        "majority_baseline": float(np.bincount(labels_N).max() / len(labels_N)),
        "calibration": _calibration(probs_NC.max(axis=1), predicted_N == labels_N, means["brier"]),
        "per_class": per_class,
        "labels": names,
        "confusion_matrix": confusion_matrix(labels_N, predicted_N, labels=range(len(names))).tolist(),
        "intervals_95": bootstrap_intervals(statistics, len(labels_N), bootstrap, seed),
        "notes": _classification_notes(len(labels_N), scores["accuracy"], per_class),
    }


def _multi_label(
    logits_NC: np.ndarray, labels_NC: np.ndarray, names: list[str], bootstrap: int, seed: int
) -> dict[str, Any]:
    probs_NC = probabilities(logits_NC, "multi_label")
    predicted_NC = _decisions(logits_NC)
    means = {
        "loss": (np.logaddexp(0.0, logits_NC) - labels_NC * logits_NC).mean(axis=1),
        "brier": np.square(probs_NC - labels_NC).mean(axis=1),
    }
    statistics = _multi_label_statistics(predicted_NC, labels_NC, means)
    scores = _compute("multi_label", predicted_NC, labels_NC)
    per_class = _per_class(_indicator(labels_NC), _indicator(predicted_NC), names)
    confidence = np.maximum(probs_NC, 1.0 - probs_NC).ravel()
    return {
        **scores,
        "threshold": 0.5,
        "loss": float(means["loss"].mean()),
        "majority_baseline": float(_largest_group(labels_NC) / len(labels_NC)),
        "calibration": _calibration(confidence, (predicted_NC == labels_NC).ravel(), means["brier"]),
        "per_class": per_class,
        "labels": names,
        "intervals_95": bootstrap_intervals(statistics, len(labels_NC), bootstrap, seed),
        "notes": _classification_notes(len(labels_NC), scores["subset_accuracy"], per_class),
    }


def _log_softmax(logits_NC: np.ndarray) -> np.ndarray:
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))


def _decisions(logits_NC: np.ndarray) -> np.ndarray:
    return (logits_NC >= 0).astype(np.int64)  # sigmoid >= 0.5


def _largest_group(labels_NC: np.ndarray) -> int:
    return int(np.unique(labels_NC, axis=0, return_counts=True)[1].max())


def _calibration(confidence_K: np.ndarray, correct_K: np.ndarray, brier_N: np.ndarray) -> dict[str, Any]:
    """Returns ``ece``, ``brier`` and the bins of a reliability diagram; K decisions."""
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    bin_K = np.clip(np.digitize(confidence_K, edges, right=True) - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bin_K, minlength=CALIBRATION_BINS)
    confidence = np.bincount(bin_K, weights=confidence_K, minlength=CALIBRATION_BINS)
    accuracy = np.bincount(bin_K, weights=correct_K, minlength=CALIBRATION_BINS)
    return {
        "ece": float(np.abs(accuracy - confidence).sum() / len(confidence_K)),
        "brier": float(brier_N.mean()),
        "bins": [
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "count": int(count),
                "confidence": float(confidence[i] / count) if count else None,
                "accuracy": float(accuracy[i] / count) if count else None,
            }
            for i, count in enumerate(counts)
        ],
    }


SHARES_OF_ROWS = frozenset({"accuracy", "subset_accuracy", "exact_match"})
Statistics = Callable[[np.ndarray], dict[str, float]]  # weights_N (how often each row was drawn) -> scores


def bootstrap_intervals(
    statistics: Statistics, rows: int, resamples: int, seed: int
) -> dict[str, list[float]]:
    """Returns the 2.5 and 97.5 percentiles of each score over resamples of the rows.

    A score that does not exist on most resamples has no interval, and one row has none at all. Where all rows
    are right, or none is, every resample says the same: the share of right rows then has the exact binomial
    interval (Clopper & Pearson 1934).
    """
    if rows < 2 or resamples == 0:
        return {}
    rng = np.random.default_rng(seed)
    draws = [
        statistics(np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64))
        for _ in range(resamples)
    ]
    intervals = {}
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        values = values[np.isfinite(values)]
        if 2 * len(values) > resamples:
            intervals[name] = [float(edge) for edge in np.percentile(values, [2.5, 97.5])]
        if name in SHARES_OF_ROWS and intervals.get(name) in ([0.0, 0.0], [1.0, 1.0]) and np.ptp(values) == 0:
            edge = 0.025 ** (1 / rows)
            intervals[name] = [edge, 1.0] if values[0] else [0.0, 1 - edge]
    return intervals


def _single_label_statistics(
    predicted_N: np.ndarray, labels_N: np.ndarray, num_classes: int, means: dict[str, np.ndarray]
) -> Statistics:
    correct_N = (predicted_N == labels_N).astype(np.float64)

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        total = weights_N.sum()
        hits_C = np.bincount(labels_N, weights=weights_N * correct_N, minlength=num_classes)
        true_C = np.bincount(labels_N, weights=weights_N, minlength=num_classes)
        f1_C, occurs_C = _f1(hits_C, true_C, np.bincount(predicted_N, weights_N, minlength=num_classes))
        return {
            "accuracy": hits_C.sum() / total,
            "f1_macro": f1_C[occurs_C].mean(),
            "f1_weighted": f1_C @ true_C / total,
            **{name: weights_N @ values_N / total for name, values_N in means.items()},
        }

    return statistics


def _multi_label_statistics(
    predicted_NC: np.ndarray, labels_NC: np.ndarray, means: dict[str, np.ndarray]
) -> Statistics:
    num_classes = labels_NC.shape[1]
    counts_NK = np.hstack([predicted_NC * labels_NC, labels_NC, predicted_NC]).astype(np.float64)
    all_right_N = (predicted_NC == labels_NC).all(axis=1).astype(np.float64)

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        total = weights_N.sum()
        hits_C, true_C, positive_C = (weights_N @ counts_NK).reshape(3, num_classes)
        f1_C, occurs_C = _f1(hits_C, true_C, positive_C)
        either = (true_C + positive_C).sum()
        return {
            "f1_micro": 2 * hits_C.sum() / either if either else 0.0,
            "f1_macro": f1_C[occurs_C].mean() if occurs_C.any() else 0.0,
            "subset_accuracy": weights_N @ all_right_N / total,
            **{name: weights_N @ values_N / total for name, values_N in means.items()},
        }

    return statistics


def _f1(hits_C: np.ndarray, true_C: np.ndarray, positive_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each class's F1, ``2 TP / (true + predicted)``, and whether it occurs at all."""
    either_C = true_C + positive_C
    return 2 * hits_C / np.maximum(either_C, 1.0), either_C > 0


def _regression_statistics(predictions_N: np.ndarray, targets_N: np.ndarray) -> Statistics:
    errors_N = predictions_N - targets_N
    squared_N, absolute_N = np.square(errors_N), np.abs(errors_N)
    predicted_codes_N, target_codes_N = (
        np.unique(values_N, return_inverse=True)[1] for values_N in (predictions_N, targets_N)
    )

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        total = weights_N.sum()
        spread = _moment(targets_N, targets_N, weights_N)
        ranks = _mid_ranks(predicted_codes_N, weights_N), _mid_ranks(target_codes_N, weights_N)
        return {
            "rmse": math.sqrt(weights_N @ squared_N / total),
            "mae": weights_N @ absolute_N / total,
            "r2": 1.0 - weights_N @ squared_N / total / spread if spread > 0 else math.nan,
            "pearson": _correlation(predictions_N, targets_N, weights_N),
            "spearman": _correlation(*ranks, weights_N),
        }

    return statistics


def _moment(a_N: np.ndarray, b_N: np.ndarray, weights_N: np.ndarray) -> float:
    """Returns the weighted covariance of two columns."""
    total = weights_N.sum()
    return float(weights_N @ ((a_N - weights_N @ a_N / total) * (b_N - weights_N @ b_N / total)) / total)


def _correlation(a_N: np.ndarray, b_N: np.ndarray, weights_N: np.ndarray) -> float:
    spread = _moment(a_N, a_N, weights_N) * _moment(b_N, b_N, weights_N)
    return _moment(a_N, b_N, weights_N) / math.sqrt(spread) if spread > 0 else math.nan


def _mid_ranks(codes_N: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """Returns the ranks of rows repeated by weight, ties shared, from their sorted order: no sort here."""
    counts_K = np.bincount(codes_N, weights=weights_N)
    return (np.cumsum(counts_K) - (counts_K - 1) / 2)[codes_N]


def _row_notes(rows: int) -> list[str]:
    return ["one row: no interval can be given"] if rows == 1 else []


def _classification_notes(rows: int, accuracy: float, per_class: dict[str, dict[str, Any]]) -> list[str]:
    notes = _row_notes(rows)
    if accuracy in (0.0, 1.0) and rows > 1:
        said = "every row is right" if accuracy else "no row is right"
        notes.append(
            f"{said}, so the bootstrap sees no spread: the accuracy's interval is the exact binomial one"
        )
    absent = [name for name, scores in per_class.items() if scores["support"] == 0]
    if absent:
        notes.append(
            f"no row of {', '.join(map(repr, absent))}: recall and F1 of 0 there are 0/0, not errors"
        )
    return notes


def _constant_notes(predictions_N: np.ndarray, targets_N: np.ndarray) -> list[str]:
    notes = []
    if np.ptp(predictions_N) == 0:
        notes.append(f"every prediction is {predictions_N[0]:g}: no correlation exists")
    if np.ptp(targets_N) == 0:
        notes.append(f"every target is {targets_N[0]:g}: neither a correlation nor R2 exists")
    return notes


def _score_table(metrics: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table("metric", title=f"{metrics['rows']} rows")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    calibration = {name: metrics.get("calibration", {}).get(name) for name in ("ece", "brier")}
    intervals = metrics.get("intervals_95", {})
    aside = {"rows", "bootstrap", "seed", "threshold"}
    for name, value in {**metrics, **calibration}.items():
        if name in aside or not isinstance(value, (int, float)):
            continue
        interval = intervals.get(name)
        table.add_row(name, f"{value:.4f}", f"{interval[0]:.4f} – {interval[1]:.4f}" if interval else "")
    return table


def _class_table(per_class: Mapping[str, Mapping[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("class")
    for name in ("precision", "recall", "f1", "support"):
        table.add_column(name, justify="right")
    for name, scores in per_class.items():
        values = [f"{scores[key]:.4f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(visible(name)), *values, str(scores["support"]))
    return table


def _note_lines(metrics: Mapping[str, Any]) -> list[Any]:
    from rich.text import Text

    return [Text(visible(f"note: {note}")) for note in metrics.get("notes", [])]


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yields a path in the same folder, renamed to ``path`` if the block ends well and removed if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _plain(value: Any, where: str, lost: list[str]) -> Any:
    """Returns the value as JSON types; appends a sentence to ``lost`` for each number made null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}".lstrip("."), lost) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", lost) for i, item in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist(), where, lost)
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(f"`{where}` was {value} and is written as null")
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise DataError(
        f"`{where}` is a {type(value).__name__}, which JSON cannot hold",
        allowed="dicts, lists, text, numbers, true, false, null",
    )


def _classification_columns(
    logits_NC: np.ndarray, labels: Any | None, label_names: Sequence[str] | None, problem: str
) -> dict[str, list[Any]]:
    names = _label_names(label_names or [], logits_NC.shape[1])
    columns: dict[str, list[Any]] = {}
    if problem == "single_label":
        if labels is not None:
            columns["label"] = [names[i] for i in _class_indices(labels, logits_NC)]
        columns["predicted_label"] = [names[i] for i in np.argmax(logits_NC, axis=1)]
    else:
        if labels is not None:
            columns["label"] = _name_lists(_label_sets(labels, logits_NC), names)
        columns["predicted_label"] = _name_lists(_decisions(logits_NC), names)
    probs_NC = probabilities(logits_NC, problem)
    return columns | {f"probability_{name}": probs_NC[:, i].tolist() for i, name in enumerate(names)}


def _name_lists(sets_NC: np.ndarray, names: list[str]) -> list[list[str]]:
    return [[names[i] for i in np.flatnonzero(set_C)] for set_C in sets_NC]


def _regression_columns(predictions: Any, targets: Any | None) -> dict[str, list[float]]:
    if targets is None:
        predictions_N = _one_number_a_row(predictions, "predictions")
        _all_finite(predictions_N, "a prediction is", _DIVERGED)
        return {"prediction": predictions_N.tolist()}
    predictions_N, targets_N = _regression_arrays(predictions, targets)
    return {"label": targets_N.tolist(), "prediction": predictions_N.tolist()}


def _given_columns(
    columns: Mapping[str, Sequence[Any]], *, taken: Mapping[str, Any], rows: int
) -> dict[str, Any]:
    import pyarrow

    given: dict[str, Any] = {}
    for name, values in columns.items():
        if len(values) != rows:
            raise DataError(f"column `{name}` has {len(values)} values for {rows} rows", allowed="as many")
        renamed = name
        while renamed in taken or renamed in given or (renamed != name and renamed in columns):
            renamed = f"input_{renamed}"
        try:
            given[renamed] = pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                f"column `{name}` has values Parquet has no one type for: {error}",
                allowed="one type a column",
                hint="turn them into text, or leave the column out",
            ) from error
    return given
