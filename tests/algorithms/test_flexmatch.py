import math

import pytest
import torch
from _given import given, loss, near

from hf_llm_recipes.algorithms.flexmatch import FlexMatch


def started(rows=10, classes=2, **fields):
    algorithm = FlexMatch(**fields)
    algorithm.start(classes, rows)
    return algorithm


def test_by_hand():
    algorithm = started()
    # nothing was confident before: β = (0, 0), both thresholds 0, every item counts
    first = algorithm.guess(given([[0.96, 0.04], [0.97, 0.03], [0.04, 0.96], [0.6, 0.4]], rows=[0, 1, 2, 3]))
    assert first.weight_U.tolist() == [1, 1, 1, 1]
    # rows 0 and 1 were confident of class 0, row 2 of class 1, seven of none: the warm-up divides by 7
    # β = (2/7, 1/7); τ = .95·(2/7)/(12/7) = .95/6 and .95·(1/7)/(13/7) = .95/13
    assert algorithm.thresholds().tolist() == near([0.95 / 6, 0.95 / 13])


def test_after_the_warm_up():
    algorithm = started(rows=4)
    before = [[0.96, 0.04], [0.96, 0.04], [0.04, 0.96], [0.6, 0.4]]
    # a step's own guesses do not move its thresholds: they are still zero
    assert algorithm.guess(given(before, rows=[0, 1, 2, 3])).weight_U.tolist() == [1, 1, 1, 1]
    # σ = (2, 1), one row of none: β = (1, ½); τ = .95 and .95·½/1.5 = .316667
    assert algorithm.thresholds().tolist() == near([0.95, 0.95 / 3])
    guess = algorithm.guess(given([[0.9, 0.1], [0.4, 0.6]], rows=[3, 0]))
    assert guess.weight_U.tolist() == [0, 1]
    assert guess.stats["threshold"] == near((0.95 + 0.95 / 3) / 2)
    # one of two items, −ln ¼
    assert loss(algorithm, guess, [[0.5, 0.5], [0.75, 0.25]]) == near(math.log(4) / 2)


def test_the_last_confident_class_of_a_row_counts():
    algorithm = started(rows=3)
    algorithm.guess(given([[0.99, 0.01]], rows=[1]))
    algorithm.guess(given([[0.01, 0.99]], rows=[1]))
    algorithm.guess(given([[0.6, 0.4]], rows=[1]))  # unsure: the row keeps its class
    assert algorithm.state_dict()["last"].tolist() == [-1, 1, -1]
    assert algorithm.state_dict()["last"].dtype == torch.int64


def test_the_state_is_a_copy_and_knows_its_pool():
    algorithm = started(rows=3)
    state = algorithm.state_dict()
    algorithm.guess(given([[0.99, 0.01]], rows=[1]))
    assert state["last"].tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match="pool of 3 rows; allowed: 4"):
        started(rows=4).load_state_dict(state)
    with pytest.raises(ValueError, match="not one of FlexMatch: `last`"):
        algorithm.load_state_dict({})


@pytest.mark.parametrize("threshold", [0, -1.0, 1.01])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}; allowed: above 0, at most 1"):
        FlexMatch(threshold=threshold)


def test_an_item_must_be_a_row():
    assert FlexMatch.problems == ("single_label",)
