import math

import pytest
from _given import given, loss, near

from hf_llm_recipes.algorithms.softmatch import SoftMatch


def started(classes=2, **fields):
    algorithm = SoftMatch(**fields)
    algorithm.start(classes, 10)
    return algorithm


def test_by_hand():
    algorithm = started(alignment="none")
    guess = algorithm.guess(given([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]))
    # confidences .9, .7, .5: mean .7, variance (.04 + 0 + .04)/2 = .04
    # the last: exp(−(−.2)²·4/(2·.04)) = exp(−2)
    assert guess.weight_U.tolist() == near([1, 1, math.exp(-2)])
    assert guess.target_UC.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert guess.stats["threshold"] == near(0.7)
    assert guess.stats["item_weight"] == near((2 + math.exp(-2)) / 3)
    # every item has −ln ½
    expected = math.log(2) * (2 + math.exp(-2)) / 3
    assert loss(algorithm, guess, [[0.5, 0.5]] * 3) == near(expected)


def test_the_averages_go_on():
    algorithm = started(alignment="none", momentum=0.5)
    algorithm.guess(given([[0.9, 0.1], [0.7, 0.3]]))  # mean .8, variance (.01 + .01)/1 = .02
    algorithm.guess(given([[0.6, 0.4], [0.6, 0.4]]))  # mean .6 -> .7; variance 0 -> .01
    # then a step of .5 and .6, mean .55, variance .005:
    # μ = (.7 + .55)/2 = .625, σ² = (.01 + .005)/2 = .0075
    guess = algorithm.guess(given([[0.5, 0.5], [0.6, 0.4]]))
    expected = [math.exp(-(0.125**2) * 4 / 0.015), math.exp(-(0.025**2) * 4 / 0.015)]
    assert guess.weight_U.tolist() == near(expected)


def test_alignment_decides_the_weight_and_not_the_label():
    # aligned to uniform, see test_algorithms_common: .631579 and .608696 (of class 1)
    # mean .620137, variance 2·.011442² = .000262, so the second is at exp(−.011442²·4/(2·.000262)) = exp(−1)
    guess = started(alignment="uniform").guess(given([[0.8, 0.2], [0.6, 0.4]]))
    assert guess.target_UC.tolist() == [[1, 0], [1, 0]]
    assert guess.weight_U.tolist() == near([1, math.exp(-1)], 1e-3)


def test_one_item_and_equal_items():
    algorithm = started(alignment="none")
    assert algorithm.guess(given([[0.9, 0.1]])).weight_U.tolist() == [1]
    equal = started(alignment="none").guess(given([[0.75, 0.25]] * 2))
    assert equal.weight_U.tolist() == near([1, 1])


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("n_sigma", 0, "above 0"),
        ("n_sigma", float("inf"), "above 0"),
        ("alignment", "even", "estimated, uniform, labeled or none"),
        ("momentum", 1.0, "0 or more, below 1"),
    ],
)
def test_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: {allowed}"):
        SoftMatch(**{field: value})


def test_the_state_of_another_algorithm():
    with pytest.raises(ValueError, match="not one of SoftMatch: `alignment`; allowed: alignment, mean, var"):
        started().load_state_dict({})
