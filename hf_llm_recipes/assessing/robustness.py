"""What a model loses when the test rows are changed a little: each augmentation as a test of its own.

Notable:
- The views are those of training (`augmentation:`), at a fixed seed: the same rows change the same way.
- What is drawn (other words, frequencies) is drawn from the test rows.
- Not every change is harmless: a view may take the very word that a label hangs on. The figure compares
  models; it is no error rate.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_llm_recipes.comparison import paired_difference
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.errors import DataError, did_you_mean
from hf_llm_recipes.registry import AUGMENTATIONS

PROBLEMS = ("single_label", "multi_label", "regression", "tokens")
PADDING = -100  # of labels
SEED_DOMAIN = 41  # apart from the random numbers of training
Logits = Callable[[Any], np.ndarray]  # features, as a data set -> logits of each row


def check(problem: str) -> None:
    """Refuses tasks whose rows no augmentation changes.

    Raises:
        DataError: such a task.
    """
    if problem not in PROBLEMS:
        raise DataError(
            f"robustness to augmentations is not measured of a task of {problem}",
            allowed="text_classification, token_classification, image_classification",
        )


def views_of(names: Sequence[str] | None, kind: str, *, same_length: bool) -> dict[str, Augmentation]:
    """Returns the views that rows of a kind can be judged under, by name.

    Args:
        names: Of augmentations; None takes all that need no argument.
        kind: ``text`` or ``image``.
        same_length: Whether tokens must stay where they are, as of tags.

    Raises:
        DataError: an unknown name, one that does not fit the rows, or one that needs arguments.
    """
    classes = {name: AUGMENTATIONS.get(name) for name in AUGMENTATIONS.names()}
    fitting = [n for n, c in classes.items() if c.kind == kind and (c.keeps_length or not same_length)]
    free = [name for name in fitting if not _needs_arguments(classes[name])]
    for name in names or ():
        if name not in free:
            what = "needs arguments" if name in fitting else "does not fit these rows"
            known = f"view `{name}` {what}" if name in classes else f"unknown view `{name}`"
            raise DataError(f"{known}{did_you_mean(name, free)}", allowed=", ".join(free))
    return {name: classes[name]() for name in names or free}


def robustness(
    views: dict[str, Augmentation],
    pool: Pool,
    logits_of: Logits,
    logits: np.ndarray,
    labels: np.ndarray,
    problem: str,
) -> dict[str, Any]:
    """Returns, for each view, the score under it and the paired loss of score, ready for JSON.

    ``score`` (what is compared: a mean over rows), ``plain``, ``seed``, ``views`` (``name``, ``value``,
    ``difference`` with ``difference_95``, under the view − plain; ``answers_changed``, the share of rows with
    another answer, where rows have answers), ``notes`` (views left out, with the reason).

    Args:
        views: Not fitted yet.
        pool: The test rows.
        logits_of: The model.
        logits: Of the rows as they are.
        labels: Of the rows, as the task judges them.
        problem: ``single_label``, ``multi_label``, ``regression`` or ``tokens``.

    Raises:
        DataError: no view could be made.
    """
    score, plain_N = row_scores(logits, labels, problem)
    made, notes = [], []
    for name, view in views.items():
        try:
            view.fit(pool)
        except DataError as error:
            notes.append(f"{name} is left out: {error.what}")
            continue
        changed = logits_of(_changed(view, pool))
        values_N = row_scores(changed, labels, problem)[1]
        found = paired_difference(values_N, plain_N)
        answers = {} if problem == "regression" else {"answers_changed": _moved(logits, changed, problem)}
        made.append({"name": name, "value": float(values_N.mean()), **found, **answers})
    if not made:
        raise DataError("no view fits these rows", where="test split", hint="; ".join(notes))
    return {"score": score, "plain": float(plain_N.mean()), "seed": pool.seed, "views": made, "notes": notes}


def row_scores(logits: Any, labels: Any, problem: str) -> tuple[str, np.ndarray]:
    """Returns what is compared, and its value of each row, (N,)."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if problem == "regression":
        return "mae", np.abs(logits.reshape(len(labels)) - labels)
    right = _answers(logits, problem) == labels
    if problem == "single_label":
        return "accuracy", right.astype(np.float64)
    if problem == "multi_label":
        return "subset_accuracy", right.all(axis=1).astype(np.float64)
    judged_NW = labels != PADDING
    shares_N = (right & judged_NW).sum(axis=1) / np.maximum(judged_NW.sum(axis=1), 1)
    return "share_of_words_right", np.where(judged_NW.any(axis=1), shares_N, 1.0)


def _answers(logits: np.ndarray, problem: str) -> np.ndarray:
    return (logits >= 0).astype(np.int64) if problem == "multi_label" else logits.argmax(axis=-1)


def _moved(before: np.ndarray, after: np.ndarray, problem: str) -> float:
    differs = _answers(before, problem) != _answers(after, problem)
    return float(differs.reshape(len(differs), -1).any(axis=1).mean())


def _changed(view: Augmentation, pool: Pool) -> Any:
    from datasets import Dataset

    features = pool.features
    rows = [
        view(features[i], i, np.random.default_rng((pool.seed, SEED_DOMAIN, i))) for i in range(len(features))
    ]
    keys = features.column_names
    return Dataset.from_dict({key: [row[key] for row in rows] for key in keys if key in rows[0]})


def _needs_arguments(cls: type) -> bool:
    return any(
        one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        for one in dataclasses.fields(cls)
    )
