"""Tests between two runs against worked figures, SciPy's other routes and published examples."""

import numpy as np
import pytest
from scipy import stats

from hf_llm_recipes.assessing import significance
from hf_llm_recipes.errors import DataError


def right(both, first, second, neither):
    """Two runs' right rows with these counts of each kind."""
    ours = [True] * (both + first) + [False] * (second + neither)
    theirs = [True] * both + [False] * first + [True] * second + [False] * neither
    return np.asarray(ours), np.asarray(theirs)


def test_many_discordant_rows_take_chi_square_with_the_correction():
    # Agresti, Categorical Data Analysis, table 10.1: 794, 150, 86, 570; (|150 - 86| - 1)^2 / 236 = 16.818
    found = significance.mcnemar(*right(794, 150, 86, 570))
    assert found["test"] == "McNemar, chi-square with continuity correction"
    assert (found["only_first"], found["only_second"]) == (150, 86)
    assert found["statistic"] == pytest.approx(16.818, abs=5e-4)
    assert found["p"] == pytest.approx(4.115e-05, rel=1e-3)  # R: mcnemar.test(Performance)


def test_few_discordant_rows_take_the_exact_test():
    found = significance.mcnemar(*right(30, 8, 2, 10))
    # two-sided: 2 * (1 + 10 + 45) / 2^10
    assert (found["test"], found["p"]) == ("McNemar, exact binomial", pytest.approx(2 * 56 / 1024))
    assert significance.mcnemar(*right(5, 12, 12, 5))["test"] == significance.EXACT
    assert significance.mcnemar(*right(5, 12, 13, 5))["test"] == significance.CHI_SQUARE


def test_runs_that_agree_do_not_differ():
    assert significance.mcnemar(*right(5, 0, 0, 5))["p"] == 1.0
    even = significance.mcnemar(*right(5, 20, 20, 5))
    assert (even["statistic"], even["p"]) == (0.0, 1.0)


def test_wilcoxon_by_ranks():
    first, second = np.zeros(6), np.asarray([1.0, 2.0, -3.0, 4.0, 5.0, 0.0])
    found = significance.wilcoxon(first, second)
    # ranks of |d| without the zero: 1 2 3 4 5; the negative one has 3. P(W- <= 3) = 5/32: {}, 1, 2, 3, 1+2
    assert found["statistic"] == 3.0
    assert found["p"] == pytest.approx(2 * 5 / 32)
    assert significance.wilcoxon(first, first)["p"] == 1.0


LABELS = ["a", "b", "a", "b"] * 10


def classified(wrong):
    flipped = {"a": "b", "b": "a"}
    return {
        "label": LABELS,
        "predicted_label": [flipped[one] if i in wrong else one for i, one in enumerate(LABELS)],
    }


def test_classes_are_compared_by_mcnemar_with_the_paired_difference():
    found = significance.compare(classified({0, 1, 2, 3}), classified({3}))
    assert found["test"] == significance.EXACT
    assert (found["only_first"], found["only_second"]) == (0, 3)
    assert (found["first"], found["second"]) == (0.9, 0.975)
    assert found["difference"] == pytest.approx(0.075)
    assert found["difference_95"][0] >= 0
    forced = significance.compare(classified({0, 1, 2, 3}), classified({3}), "wilcoxon")
    assert (forced["test"], forced["figure"]) == ("Wilcoxon signed-rank", "share of rows right")


def test_sets_of_labels_are_right_where_all_are():
    first = {"label": [["a", "b"], ["c"]], "predicted_label": [["b", "a"], []]}
    assert significance.hits(first).tolist() == [True, False]


def test_right_and_wrong_of_other_kinds():
    preferred = {"chosen_logprob": [-1.0, -4.0], "rejected_logprob": [-2.0, -2.0]}
    assert significance.hits(preferred).tolist() == [True, False]
    assert significance.hits({"reward": [1.0, 0.0]}).tolist() == [True, False]
    assert significance.hits({"exact_match": [0.0, 1.0], "answer_f1": [0.5, 1.0]}).tolist() == [False, True]
    assert significance.hits({"reward": [0.5, 0.0]}) is None
    assert significance.hits({"tokens": [["x"]], "label": [["O"]], "predicted_label": [["O"]]}) is None


@pytest.mark.parametrize(
    ("columns", "name", "values"),
    [
        ({"label": [1.0, 2.0], "prediction": [1.5, 0.0]}, "absolute error", [0.5, 2.0]),
        (
            {
                "tokens": [["x", "y"], ["z"]],
                "label": [["O", "B-n"], ["O"]],
                "predicted_label": [["O", "O"], ["O"]],
            },
            "share of a row's words wrong",
            [0.5, 0.0],
        ),
        ({"loss": [2.0, 3.0], "tokens": [4, 3]}, "nats a token", [0.5, 1.0]),
        ({"loss": [np.log(2) * 8], "tokens": [4], "bytes": [4]}, "bits a byte", [2.0]),
        ({"reward": [0.5, 0.25]}, "reward", [0.5, 0.25]),
        ({"row": [0], "loss": [0.5]}, "loss", [0.5]),
    ],
)
def test_what_each_task_keeps_of_a_row(columns, name, values):
    found = significance.figures(columns)
    assert found.name == name
    assert found.values_N.tolist() == pytest.approx(values)


def test_numbers_are_compared_by_wilcoxon():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=40)
    first = {"label": targets.tolist(), "prediction": (targets + generator.normal(size=40)).tolist()}
    second = {"label": targets.tolist(), "prediction": (targets + 0.1 * generator.normal(size=40)).tolist()}
    found = significance.compare(first, second)
    a, b = (np.abs(np.asarray(one["prediction"]) - targets) for one in (first, second))
    assert found["p"] == pytest.approx(stats.wilcoxon(b - a).pvalue)
    assert found["difference"] == pytest.approx(b.mean() - a.mean())
    assert found["difference_95"][1] < 0


def test_what_does_not_fit_is_refused():
    numbers = {"label": [1.0], "prediction": [2.0]}
    with pytest.raises(DataError, match="McNemar's test needs rows that are right or wrong") as caught:
        significance.compare(numbers, numbers, "mcnemar")
    assert "Wilcoxon's test and the paired bootstrap" in str(caught.value)
    with pytest.raises(DataError, match=r"there is no test `t`\n  allowed: mcnemar, wilcoxon"):
        significance.compare(numbers, numbers, "t")
    with pytest.raises(DataError, match="the task keeps no number of each row"):
        significance.compare({"document": [1]}, {"document": [1]})
    with pytest.raises(DataError, match="one run is judged by reward, the other by absolute error"):
        significance.compare({"reward": [0.5]}, numbers)
