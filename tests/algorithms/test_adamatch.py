import math

import pytest
from _given import given, loss, near

from hf_llm_recipes.algorithms.adamatch import AdaMatch


def started(classes=2, **fields):
    algorithm = AdaMatch(**fields)
    algorithm.start(classes, 10)
    return algorithm


def test_by_hand():
    algorithm = started(alignment="uniform")
    some = given([[0.8, 0.2], [0.6, 0.4]], labeled=[[0.7, 0.3], [0.3, 0.7], [0.4, 0.6]], labels=[0, 1, 1])
    guess = algorithm.guess(some)
    # threshold: .9·(.7 + .7 + .6)/3 = .6
    assert guess.stats["threshold"] == near(0.6)
    # aligned, see test_algorithms_common: (.631579, .368421) and (.391304, .608696): the label of the
    # second item turns to class 1; both are above .6
    assert guess.target_UC.tolist() == [[1, 0], [0, 1]]
    assert guess.weight_U.tolist() == [1, 1]
    # (−ln .5 − ln .25)/2 = 1.5·ln 2
    assert loss(algorithm, guess, [[0.5, 0.5], [0.75, 0.25]]) == near(1.5 * math.log(2))


def test_the_threshold_follows_the_labeled_items():
    weak = [[0.6, 0.4], [0.7, 0.3]]
    unsure = given(weak, labeled=[[0.55, 0.45]])  # .9·.55 = .495
    assert started(alignment="none").guess(unsure).weight_U.tolist() == [1, 1]
    sure = given(weak, labeled=[[0.75, 0.25]])  # .9·.75 = .675
    assert started(alignment="none").guess(sure).weight_U.tolist() == [0, 1]


def test_the_estimated_prior_is_the_default():
    # (.8, .2) and (.6, .4), mean (.7, .3), towards (.1, .9):
    # .8·.1/.7 = .114286 and .2·.9/.3 = .6, so both labels become class 1
    guess = started().guess(given([[0.8, 0.2], [0.6, 0.4]], prior=[0.1, 0.9]))
    assert guess.target_UC.tolist() == [[0, 1], [0, 1]]


def test_without_labeled_items_nothing_is_kept():
    some = given([[0.8, 0.2]])
    some.labeled_BC = some.labeled_BC[:0]
    algorithm = started(alignment="labeled")
    assert algorithm.guess(some).weight_U.tolist() == [0]
    assert algorithm.guess(given([[0.8, 0.2]])).weight_U.tolist() == [1]  # and the averages are still numbers


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("threshold", 1.1, "0 to 1"),
        ("alignment", "even", "estimated, uniform, labeled or none"),
        ("momentum", 1.0, "0 or more, below 1"),
        ("momentum", -0.1, "0 or more, below 1"),
    ],
)
def test_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: {allowed}"):
        AdaMatch(**{field: value})


def test_a_momentum_without_alignment():
    with pytest.raises(ValueError, match="momentum has no effect where alignment is none"):
        AdaMatch(alignment="none", momentum=0.5)


def test_the_state_of_another_alignment():
    with pytest.raises(ValueError, match="`unlabeled`"):
        started(alignment="none").load_state_dict(started().state_dict())
