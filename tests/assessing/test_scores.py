"""More scores: each equals scikit-learn's, on all rows and on a resample."""

import numpy as np
import pytest
from sklearn import metrics

from hf_llm_recipes.assessing import scores
from hf_llm_recipes.errors import DataError

generator = np.random.default_rng(3)
LABELS = generator.integers(0, 4, size=60)
LOGITS = np.round(np.eye(4)[LABELS] + generator.normal(size=(60, 4)), 1)  # rounded: ties
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
SETS = generator.integers(0, 2, size=(60, 4))
TARGETS = generator.normal(size=60)
PREDICTIONS = TARGETS + generator.normal(size=60)

THEIRS = {
    ("single_label", "balanced_accuracy"): lambda y, z: metrics.balanced_accuracy_score(y, z.argmax(1)),
    ("single_label", "matthews_corrcoef"): lambda y, z: metrics.matthews_corrcoef(y, z.argmax(1)),
    ("single_label", "cohen_kappa"): lambda y, z: metrics.cohen_kappa_score(y, z.argmax(1)),
    ("single_label", "roc_auc"): lambda y, z: metrics.roc_auc_score(y, softmax(z), multi_class="ovr"),
    ("single_label", "average_precision"): lambda y, z: metrics.average_precision_score(
        np.eye(4)[y], softmax(z), average="macro"
    ),
    ("single_label", "top_3_accuracy"): lambda y, z: metrics.top_k_accuracy_score(
        y, z + 1e-6 * np.arange(4), k=3
    ),
    ("multi_label", "hamming_loss"): lambda y, z: metrics.hamming_loss(y, z >= 0),
    ("multi_label", "jaccard"): lambda y, z: metrics.jaccard_score(
        y, z >= 0, average="samples", zero_division=1
    ),
    ("multi_label", "roc_auc"): lambda y, z: metrics.roc_auc_score(y, z),
    ("multi_label", "average_precision"): lambda y, z: metrics.average_precision_score(y, z, average="macro"),
    ("regression", "median_absolute_error"): metrics.median_absolute_error,
    ("regression", "explained_variance"): metrics.explained_variance_score,
}
GIVEN = {
    "single_label": (LOGITS, LABELS),
    "multi_label": (LOGITS, SETS),
    "regression": (PREDICTIONS, TARGETS),
}


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_no_score_is_left_out():
    assert {(p, name) for p, found in scores.SCORES.items() for name in found} == set(THEIRS)


@pytest.mark.parametrize(("problem", "name"), THEIRS)
def test_the_value_is_scikit_learns(problem, name):
    outputs, labels = GIVEN[problem]
    if name == "top_3_accuracy":  # a tie counts for us, and there is one order of it for them
        outputs = outputs + 1e-6 * np.arange(4)
    values, intervals = scores.more([name], outputs, labels, problem, bootstrap=200)
    assert values[name] == pytest.approx(THEIRS[problem, name](labels, outputs), abs=1e-12)
    low, high = intervals[name]
    assert low < values[name] < high
    chosen = np.random.default_rng(5).integers(60, size=60)
    weighted = scores.SCORES[problem][name](outputs, labels)
    found = weighted(np.bincount(chosen, minlength=60).astype(float))
    assert found == pytest.approx(THEIRS[problem, name](labels[chosen], outputs[chosen]), abs=1e-12)


def test_what_does_not_exist_is_none():
    one_class = scores.more(
        ["roc_auc", "cohen_kappa"], np.asarray([[2.0, 0.0]] * 4), np.zeros(4), "single_label"
    )
    assert one_class == ({"roc_auc": None, "cohen_kappa": None}, {})
    flat = scores.more(["explained_variance"], np.asarray([1.0, 2.0]), np.asarray([3.0, 3.0]), "regression")
    assert flat == ({"explained_variance": None}, {})
    guess = scores.more(
        ["matthews_corrcoef"], np.asarray([[2.0, 0.0]] * 4), np.asarray([0, 1, 0, 1]), "single_label"
    )
    assert guess[0] == {"matthews_corrcoef": 0.0}  # scikit-learn's answer too


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="metric `jaccard` does not fit a task of single_label") as caught:
        scores.check(["jaccard"], "single_label")
    assert "allowed: average_precision, balanced_accuracy, cohen_kappa" in str(caught.value)
    with pytest.raises(DataError, match=r"unknown metric `roc_ac` \(did you mean `roc_auc`\?\)"):
        scores.check(["roc_ac"], "multi_label")
    with pytest.raises(DataError, match="allowed: none: a task of language has its own scores only"):
        scores.check(["roc_auc"], "language")
