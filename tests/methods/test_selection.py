import math

import numpy as np
import pytest

from hf_llm_recipes.methods._selection import (
    PoolLabels,
    RoundRows,
    agreement,
    balanced,
    bald,
    confidence_of,
    quotas,
    repeats,
    surest,
    surest_of_strata,
)

LN2 = math.log(2)


def test_bald_is_what_the_passes_disagree_about():
    sure_but_split = [[1.0, 0.0], [0.0, 1.0]]  # mean (.5, .5) has ln 2, each pass has 0
    agreed_doubt = [[0.5, 0.5], [0.5, 0.5]]  # mean ln 2, each pass ln 2
    passes_SIC = np.array([sure_but_split, agreed_doubt]).transpose(1, 0, 2)
    np.testing.assert_allclose(bald(passes_SIC), [LN2, 0], atol=1e-12)
    np.testing.assert_allclose(confidence_of(passes_SIC, "bald"), [-LN2, 0], atol=1e-12)
    np.testing.assert_allclose(confidence_of(passes_SIC, "entropy"), [-LN2, -LN2])
    np.testing.assert_allclose(confidence_of(passes_SIC, "probability"), [0.5, 0.5])


def test_bald_between_the_extremes():
    passes_SIC = np.array([[[1.0, 0.0]], [[0.5, 0.5]]])  # mean (.75, .25)
    mean_entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert bald(passes_SIC)[0] == pytest.approx(mean_entropy - LN2 / 2)


def test_quotas_are_rounded_by_largest_remainders():
    assert quotas(np.array([0.5, 0.3, 0.2]), 10).tolist() == [5, 3, 2]
    assert quotas(np.array([0.5, 0.3, 0.2]), 4).tolist() == [2, 1, 1]  # 2, 1.2, .8
    assert quotas(np.full(3, 1 / 3), 4).tolist() == [2, 1, 1]  # equal remainders: the lower class
    assert quotas(np.full(3, 1 / 3), 6).tolist() == [2, 2, 2]
    assert quotas(np.array([0.6, 0.4005]), 10_000).sum() == 10_000  # shares that sum to 1.0005


def test_each_class_gives_its_surest_rows():
    classes = np.array([0, 0, 0, 1, 1, 0])
    confidence = np.array([0.9, 0.7, 0.9, 0.6, 0.5, 0.8])
    assert balanced(classes, confidence, np.array([2, 1])).tolist() == [0, 2, 3]
    assert balanced(classes, confidence, np.array([1, 1])).tolist() == [0, 3]  # a tie: the lower row
    assert balanced(classes, confidence, np.array([3, 3])).tolist() == [0, 2, 3, 4, 5]  # only two of class 1
    confidence[3] = -np.inf
    assert balanced(classes, confidence, np.array([1, 2])).tolist() == [0, 4]


def test_the_surest_rows():
    assert surest(np.array([-3.0, -1.0, -1.0, -2.0]), 2).tolist() == [1, 2]
    assert surest(np.array([-1.0, -1.0, -1.0]), 2).tolist() == [0, 1]
    assert surest(np.array([0.5, -np.inf]), 2).tolist() == [0]


def test_long_answers_get_the_share_that_they_have():
    sizes = np.array([1, 1, 1, 1, 1, 1, 2, 3, 0, 1])  # words; quartiles of the nine: 1, 1, 1
    sure = np.array([1.0, 1.0, 0.9, 1.0, 0.8, 1.0, 0.5, 0.75, -np.inf, 1.0])
    assert surest(sure, 4).tolist() == [0, 1, 3, 5]
    # of nine rows with an answer seven have one word: 3.1 of four, and 0.9
    assert surest_of_strata(sizes, sure, 4, 4).tolist() == [0, 1, 3, 7]
    assert surest_of_strata(sizes, sure, 4, 1).tolist() == [0, 1, 3, 5]
    sure[[6, 7]] = -np.inf  # what the long ones cannot give stays unused
    assert surest_of_strata(sizes, sure, 4, 4).tolist() == [0, 1, 3]
    # one row of the larger stratum, which has none: the surest of all
    assert surest_of_strata(np.array([1, 1, 2]), np.array([-np.inf, -np.inf, 0.5]), 1, 2).tolist() == [2]


def test_agreement():
    assert agreement(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])) == 0.75
    values = np.array([1.0, 2.0, 4.0])
    assert agreement(values, 2 * values + 1) == pytest.approx(1)
    assert agreement(values, -values) == pytest.approx(-1)
    flat = np.ones(3)
    assert (agreement(flat, flat), agreement(flat, values)) == (1.0, 0.0)


def test_labeled_rows_are_repeated_towards_their_share():
    assert repeats(10, 30, 0.25) == 1
    assert repeats(10, 300, 0.25) == 10
    assert repeats(10, 300, 0.0) == 1
    assert repeats(10, 5, 0.25) == 1
    assert repeats(10, 0, 0.5) == 1


def rows(problem, items, counts, chosen, pool=None):
    confidence = np.zeros(len(counts))
    labels = PoolLabels(np.asarray(items), np.asarray(counts), confidence, chosen=np.asarray(chosen))
    labeled = [{"x": "a", "labels": "own"}, {"x": "b", "labels": "own"}]
    pool = pool or [{"x": i} for i in range(len(counts))]
    return listed(RoundRows(labeled, 2, pool, labels, problem))


def listed(dataset):
    return [dataset[i] for i in range(len(dataset))]


def test_rows_of_a_round():
    made = rows("single_label", [1, 0, 2], [1, 1, 1], [0, 2])
    assert [row["x"] for row in made] == ["a", "b", "a", "b", 0, 2]
    assert [row["labels"] for row in made] == ["own"] * 4 + [1, 2]
    alone = RoundRows([{"x": "a"}], 3, [], None, "single_label")
    assert [row["x"] for row in listed(alone)] == ["a"] * 3


def test_labels_of_other_problems():
    assert rows("multi_label", [0, 1, 1, 1], [2, 2], [0, 1])[-2]["labels"] == [0.0, 1.0]
    assert rows("regression", np.array([0.5, 1.5], np.float32), [1, 1], [1])[-1]["labels"] == 1.5
    pool = [{"token_items": [0, 0]}, {"token_items": [0, 1, 0, 1, 0]}]
    assert rows("tokens", [2, 3], [0, 2], [1], pool)[-1]["labels"] == [-100, 2, -100, 3, -100]
