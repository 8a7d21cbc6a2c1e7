"""Groups of rows and the gaps between them, against worked figures and published intervals."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from scipy.stats import chi2_contingency

from hf_llm_recipes import evaluation
from hf_llm_recipes.assessing import slices
from hf_llm_recipes.errors import DataError


def test_words_are_groups_and_what_is_missing_is_one():
    found = slices.of_column("who", ["b", "a", None, "b", ""])
    assert found.names == ["a", "b", "(none)"]
    assert found.number_N.tolist() == [1, 0, 2, 1, 2]
    assert slices.of_column("year", [10, 9, 10, 9]).names == ["9", "10"]  # by value, not by letter
    assert slices.of_column("on", [True, False, True]).names == ["False", "True"]


def test_many_numbers_are_quantile_bins():
    found = slices.of_column("age", list(range(20)))
    # method "higher" of the quartiles of 0..19: 5, 10, 15
    assert found.names == ["0 – 5", "6 – 10", "11 – 15", "16 – 19"]
    assert np.bincount(found.number_N).tolist() == [6, 5, 5, 4]
    holes = slices.of_column("age", [*range(20), None, float("nan")])
    assert holes.names == [*found.names, "(none)"]
    assert holes.number_N[-2:].tolist() == [4, 4]


def test_equal_numbers_stay_together():
    found = slices.of_numbers("length", np.asarray([1.0] * 9 + [5.0, 7.0, 9.0]), " tokens")
    # quartiles of twelve, "higher": places 3, 6 and 9 of 0 to 11, which are 1, 1 and 5
    assert found.names == ["1 tokens", "5 tokens", "7 – 9 tokens"]


def test_rare_words_are_one_group():
    values = [f"w{i // 3}" for i in range(3 * 24)]
    found = slices.of_column("word", values)
    assert (len(found.names), found.names[-1]) == (21, "(others)")
    assert int((found.number_N == 20).sum()) == 12  # four words thrice


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], ["b"]], r"column `x`: \['a'\] is no group"),
        ([f"text {i}" for i in range(60)], "60 different values in 60 rows make no groups"),
        (["same"] * 5, "column `x`: all rows are same: one group only"),
    ],
)
def test_columns_that_make_no_groups(values, message):
    with pytest.raises(DataError, match=message):
        slices.of_column("x", values)


def test_a_column_that_is_not_there_names_the_nearest():
    rows = Dataset.from_dict({"author": ["a"], "text": ["b"]})
    with pytest.raises(
        DataError, match=r"no column `autor` to slice by \(did you mean `author`\?\)"
    ) as caught:
        slices.column(rows, "autor")
    assert "allowed: length, author, text" in str(caught.value)


def test_classes_are_named():
    rows = Dataset.from_dict({"label": [1, 0, None]}).cast_column("label", ClassLabel(names=["ham", "spam"]))
    assert slices.column(rows, "label") == ["spam", "ham", None]


def test_wilson_and_newcombe_as_published():
    # Newcombe 1998 (Statistics in Medicine 17, 857 and 873), method 3 on 81/263, method 10 on 56/70 - 48/80
    assert slices.wilson(81 / 263, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    first, second = slices.wilson(56 / 70, 70), slices.wilson(48 / 80, 80)
    assert slices.gap_interval(56 / 70, first, 48 / 80, second) == pytest.approx([0.0524, 0.3339], abs=5e-5)


def classified(right_of_group, rows=40):
    """A judge of rows whose first ``right_of_group[g]`` of each group are right."""
    number = np.repeat(np.arange(len(right_of_group)), rows)
    labels = np.tile(np.arange(rows) % 2, len(right_of_group))
    wrong = np.concatenate([np.arange(rows) >= right for right in right_of_group])
    logits = np.eye(2)[np.where(wrong, 1 - labels, labels)]

    def judge(chosen):
        return evaluation.classification(logits[chosen], labels[chosen], ["a", "b"], bootstrap=50)

    names = [f"g{i}" for i in range(len(right_of_group))]
    return slices.Groups("who", names, number), judge


def test_the_gap_is_between_the_best_and_the_worst_group():
    found = slices.sliced(*classified([32, 24, 40]))
    assert found["score"] == "accuracy"
    assert [(one["name"], one["rows"], one["accuracy"]) for one in found["groups"]] == [
        ("g0", 40, 0.8),
        ("g1", 40, 0.6),
        ("g2", 40, 1.0),
    ]
    assert found["groups"][2]["intervals_95"]["accuracy"] == pytest.approx(
        [0.9124, 1.0], abs=1e-4
    )  # n/(n+z²)
    gap = found["gap"]
    assert (gap["highest"], gap["lowest"], gap["difference"], gap["pairs"]) == (
        "g2",
        "g1",
        pytest.approx(0.4),
        3,
    )
    low, high = gap["difference_95"]
    assert low > 0.2
    assert high < 0.6
    wanted = chi2_contingency([[32, 24, 40], [8, 16, 0]], correction=False)
    assert wanted.expected_freq.min() >= 5
    assert found["alike"]["p"] == pytest.approx(wanted.pvalue)
    assert found["notes"] == []


def test_few_rows_are_marked_and_left_out_of_the_gap():
    groups, judge = classified([32, 24])
    number = groups.number_N.copy()
    number[:3] = 2  # three right rows
    found = slices.sliced(slices.Groups("who", ["g0", "g1", "g2"], number), judge)
    assert [one["few"] for one in found["groups"]] == [False, False, True]
    assert (found["gap"]["highest"], found["gap"]["pairs"]) == ("g0", 1)
    assert found["notes"] == ["fewer than 30 rows, left out of the gap: g2"]
    few = slices.sliced(*classified([5, 6], rows=10))
    assert few["gap"] is None
    assert "alike" not in few


def test_equal_groups_have_no_gap():
    found = slices.sliced(*classified([40, 40]))
    assert found["gap"]["difference"] == 0.0
    assert {found["gap"]["highest"], found["gap"]["lowest"]} == {"g0", "g1"}
    assert found["alike"]["p"] == 1.0


def test_a_rare_mistake_is_tested_by_permutation():
    found = slices.sliced(*classified([40, 38]))
    assert found["alike"]["test"] == "chi-square of equal shares, by permutation"
    # both mistakes in one given group, of two: 2 * C(40,2) / C(80,2), Fisher's two-sided p
    assert found["alike"]["p"] == pytest.approx(2 * 780 / 3160, abs=0.02)


def test_other_scores_have_the_tasks_own_intervals():
    generator = np.random.default_rng(1)
    targets = generator.normal(size=80)
    predictions = targets + np.repeat([0.1, 1.0], 40) * generator.normal(size=80)

    def judge(chosen):
        return evaluation.regression(predictions[chosen], targets[chosen], bootstrap=200)

    found = slices.sliced(slices.Groups("noise", ["low", "high"], np.repeat([0, 1], 40)), judge)
    assert (found["score"], found["gap"]["highest"]) == ("rmse", "high")
    errors = [
        float(np.sqrt(np.mean((predictions - targets)[part] ** 2))) for part in (slice(40), slice(40, 80))
    ]
    assert found["gap"]["difference"] == pytest.approx(errors[1] - errors[0])
    assert found["gap"]["difference_95"][0] > 0
    assert "alike" not in found


def test_a_group_that_cannot_be_judged_is_told():
    groups, judge = classified([32, 24])

    def refusing(chosen):
        if chosen[0] == 0:
            raise DataError("there is no labeled word to score")
        return judge(chosen)

    found = slices.sliced(groups, refusing)
    assert [one["name"] for one in found["groups"]] == ["g1"]
    assert found["notes"] == ["g0: not judged: there is no labeled word to score"]

    def never(chosen):
        raise DataError("nothing")

    with pytest.raises(DataError, match="who: no group can be judged"):
        slices.sliced(groups, never)


def test_f1_comes_before_precision():
    judged = {"intervals_95": {"precision": [0.0, 1.0], "recall": [0.0, 1.0], "f1": [0.0, 1.0]}}
    assert slices._main_score([judged]) == "f1"
    assert slices._main_score([{"loss": 1.0, "intervals_95": {}}]) == "loss"
    assert slices._main_score([{"intervals_95": {}}, {"intervals_95": {"rmse": [0, 1]}}]) == "rmse"
