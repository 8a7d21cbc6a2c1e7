"""One temperature for a classifier's logits, found on held-out rows: probabilities that can be believed.

Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2: the logits are divided by T > 0, which moves
no decision. T is the one with the lowest loss on the eval split; the test split only tells what it is worth.

Shapes: N rows (of tags: words), C classes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.comparison import paired_difference
from hf_llm_recipes.errors import DataError, RunError

FILE = "temperature.json"  # beside the weights
BOUNDS = (0.05, 20.0)  # of T
PROBLEMS = ("single_label", "multi_label", "tokens")
PADDING = -100
WORSE = (
    "the loss of the test rows is higher with it: the held-out rows are not like the test rows, so leave it"
)


def check(problem: str, held_out: Any) -> None:
    """Refuses tasks without probabilities of classes, and data without held-out rows.

    Args:
        problem: Of the task.
        held_out: The eval split, or None.

    Raises:
        DataError: either.
    """
    if problem not in PROBLEMS:
        raise DataError(
            f"a temperature does not fit a task of {problem}: it has no probabilities of classes",
            allowed="text_classification (but regression), token_classification, image_classification",
        )
    if held_out is None or len(held_out) == 0:
        raise DataError(
            "a temperature needs held-out rows, and the data has no eval split: the training rows are "
            "answered too surely, and the test rows only judge",
            hint="hold some out (`data.eval_fraction: 0.1`, or `data.eval`)",
        )


def fit(logits_NC: Any, labels: Any, problem: str) -> float:
    """Returns the temperature with the lowest mean loss; the loss has one minimum in 1/T.

    Args:
        logits_NC: Of held-out rows.
        labels: Class indices (N,), or sets (N, C) of ``multi_label``.
        problem: ``single_label`` or ``multi_label``.

    Raises:
        DataError: the loss has no minimum within [0.05, 20], as where every row is right.
    """
    from scipy.optimize import minimize_scalar

    logits_NC, labels = np.asarray(logits_NC, dtype=np.float64), np.asarray(labels)
    answers = logits_NC >= 0 if problem == "multi_label" else logits_NC.argmax(axis=1)
    if (answers == labels).all():
        raise _none("all held-out rows are right, and surer answers would always be better")

    def mean_loss(log_temperature: float) -> float:
        return float(losses(logits_NC / math.exp(log_temperature), labels, problem).mean())

    low, high = (math.log(edge) for edge in BOUNDS)
    found = minimize_scalar(mean_loss, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    if high - found.x < 1e-3:
        raise _none("the answers are worth no more than a guess")
    if found.x - low < 1e-3:
        raise _none(f"the logits are smaller than {BOUNDS[0]:g} of what they should be")
    return math.exp(found.x)


def losses(logits_NC: Any, labels: Any, problem: str) -> np.ndarray:
    """Returns each row's negative log-likelihood in nats, (N,); of ``multi_label`` the mean over classes."""
    logits_NC, labels = np.asarray(logits_NC, dtype=np.float64), np.asarray(labels)
    if problem == "multi_label":
        return (np.logaddexp(0.0, logits_NC) - labels * logits_NC).mean(axis=1)
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    own_N = shifted_NC[np.arange(len(labels)), labels.astype(np.int64)]
    return np.log(np.exp(shifted_NC).sum(axis=1)) - own_N


def calibrate(eval_: tuple[Any, Any], test: tuple[Any, Any], problem: str) -> dict[str, Any]:
    """Returns the temperature and what it does to the test rows, ready for JSON.

    ``temperature``, ``fitted_rows``, ``before`` and ``after`` (``loss``, ``ece``, ``brier``, ``bins``),
    ``loss_difference`` (after − before) with ``loss_difference_95`` (paired bootstrap), ``notes``.

    Args:
        eval_: Logits and labels of held-out rows, as the task judges them.
        test: The same of the test rows.
        problem: One of ``PROBLEMS``; of ``tokens`` each judged word counts.

    Raises:
        DataError: no temperature fits.
    """
    eval_, test = (_words(*one) if problem == "tokens" else one for one in (eval_, test))
    kind = "single_label" if problem == "tokens" else problem
    found = fit(*eval_, kind)
    logits_NC, labels = np.asarray(test[0], dtype=np.float64), np.asarray(test[1])
    before_N, after_N = (losses(one, labels, kind) for one in (logits_NC, logits_NC / found))
    paired = paired_difference(after_N, before_N)
    return {
        "temperature": found,
        "fitted_rows": len(eval_[0]),
        "before": _scores(logits_NC, labels, kind),
        "after": _scores(logits_NC / found, labels, kind),
        "loss_difference": paired["difference"],
        "loss_difference_95": paired["difference_95"],
        "notes": [WORSE] if paired["difference_95"][0] > 0 else [],
    }


def divided(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Returns logits divided by a temperature; the −100 of padding stays."""
    return np.where(logits == PADDING, logits, logits / temperature).astype(logits.dtype)


def save(folder: Path, found: dict[str, Any]) -> None:
    """Writes the temperature beside the weights of ``model/``."""
    kept = {key: found[key] for key in ("temperature", "fitted_rows")}
    with evaluation.written_beside(folder / FILE) as beside:
        beside.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> float:
    """Returns the temperature of a ``model/``.

    Raises:
        RunError: it has none, or the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise RunError(
            "no temperature was fitted for this model",
            where=str(folder),
            hint="hf-llm-recipes evaluate RUN --temperature",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["temperature"]
        if isinstance(found, float) and 0 < found < math.inf:
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise RunError(f"{FILE} is damaged", where=str(folder), hint="hf-llm-recipes evaluate RUN --temperature")


def _none(why: str) -> DataError:
    return DataError(
        f"no temperature in [{BOUNDS[0]:g}, {BOUNDS[1]:g}] has the lowest loss: {why}",
        where="eval split",
        hint="hold more rows out (`data.eval_fraction`), or train the model further",
    )


def _scores(logits_NC: np.ndarray, labels: np.ndarray, problem: str) -> dict[str, Any]:
    names = [str(i) for i in range(logits_NC.shape[1])]
    found = evaluation.classification(logits_NC, labels, names, problem=problem, bootstrap=0)
    return {"loss": found["loss"], **found["calibration"]}


def _words(logits_NWC: Any, labels_NW: Any) -> tuple[np.ndarray, np.ndarray]:
    judged_NW = np.asarray(labels_NW) != PADDING
    return np.asarray(logits_NWC)[judged_NW], np.asarray(labels_NW)[judged_NW]
