"""`compare: true`: the supervised baseline under the same budget, and the paired difference to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.recipe import Recipe

BASELINE = "baseline"  # folder of the supervised run, inside the run it is compared with
# keys that it goes without
UNSUPERVISED = ("compare", "algorithm", "augmentation", "stages", "method", "evaluate", "push_to_hub")
POOL_KEYS = ("unlabeled", "unlabeled_limit", "pool_overlap")
RESAMPLES = 2000


def baseline_recipe(recipe: Recipe, directory: Path, steps: int) -> Recipe:
    """Returns the recipe of the supervised run: the same model, tuning, labeled rows, seed and steps.

    Args:
        recipe: Of the run that is compared.
        directory: Of that run.
        steps: Optimizer steps that it took.
    """
    made = copy.deepcopy(recipe)
    for key in UNSUPERVISED:
        made.values.pop(key, None)
    made.values["method"] = "supervised"
    made.values["name"] = f"{recipe.name}-supervised"
    made.values["data"] = {k: v for k, v in recipe.section("data").items() if k not in POOL_KEYS}
    trainer = {k: v for k, v in recipe.section("trainer").items() if k != "num_train_epochs"}
    made.values["trainer"] = {**trainer, "max_steps": steps}
    folder = directory / BASELINE
    made.values["output"] = str(folder)
    made.values.pop("resume", None)
    if folder.exists():
        made.values["resume"] = True
    return made


def compare(ours: Path, theirs: Path, our_metrics: dict, their_metrics: dict) -> dict[str, Any]:
    """Returns both runs' scores and, for one class a row, the paired difference of accuracy.

    Args:
        ours: Predictions of the run, Parquet.
        theirs: Of the baseline; the same rows in the same order.
        our_metrics: ``metrics.json`` of the run.
        their_metrics: Of the baseline.
    """
    found = {
        "supervised": evaluation.summary(their_metrics["test"]),
        "supervised_minutes": _minutes(their_metrics),
        "supervised_minutes_in_all": _minutes(their_metrics)
        + their_metrics["training"].get("minutes_judging", 0.0),
        "minutes": _minutes(our_metrics),
    }
    if "accuracy" in our_metrics["test"] and "accuracy" in their_metrics["test"]:
        our_hits, their_hits = _hits(ours), _hits(theirs)
        if our_hits is not None and their_hits is not None:
            found |= paired_difference(our_hits, their_hits)
    return found


def paired_difference(our_hits_N: np.ndarray, their_hits_N: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Returns ``{"difference", "difference_95"}`` of two accuracies on the same rows.

    The interval is the percentile bootstrap over rows (Efron & Tibshirani 1993, ch. 13), each row with
    both of its answers.

    Args:
        our_hits_N: 1 where a row is right, else 0.
        their_hits_N: The same of the other run.
        seed: Of the resamples.
    """
    difference_N = our_hits_N.astype(np.float64) - their_hits_N
    count = len(difference_N)
    random = np.random.default_rng(seed)
    means = [difference_N[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    return {
        "difference": float(difference_N.mean()),
        "difference_95": [float(edge) for edge in np.percentile(means, [2.5, 97.5])],
    }


def _hits(path: Path) -> np.ndarray | None:
    """Which rows are right; None where a row has more than one answer."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    if not {"label", "predicted_label"} <= set(table.column_names):
        return None
    labels, predicted = (table.column(name).to_pylist() for name in ("label", "predicted_label"))
    if labels and isinstance(labels[0], list):
        return None
    return np.asarray([a == b for a, b in zip(labels, predicted, strict=True)], dtype=np.int64)


def _minutes(metrics: dict[str, Any]) -> float:
    """Of training, and of what the method needed before it."""
    training = metrics["training"]
    return training["minutes"] + training.get("minutes_before", 0.0)


def not_exported(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the test scores of weights that a run had beside the exported ones, by what they are.

    Args:
        metrics: Of ``metrics.json``.
    """
    return {
        name.removeprefix("test_"): scores
        for name, scores in metrics.get("method", {}).items()
        if name.startswith("test_") and isinstance(scores, Mapping)
    }
