import math

import pytest
from _given import given, loss, near

from hf_llm_recipes.algorithms.jointmatch import JointMatch


def started(classes=2, **fields):
    algorithm = JointMatch(**fields)
    algorithm.start(classes, 10)
    return algorithm


WEAK = [[0.96, 0.04], [0.96, 0.04], [0.2, 0.8], [0.9, 0.1]]
PEER = [[0.6, 0.4], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]]


def test_by_hand():
    algorithm = started()
    guess = algorithm.guess(given(WEAK, peer=PEER))
    # p̄ = (3.02/4, .98/4): τ_0 = .95, τ_1 = .95·.98/3.02 = .308278: all but the last are kept
    # agreement .1, disagreement .9, disagreement .9, below the threshold
    assert guess.weight_U.tolist() == near([0.1, 0.9, 0.9, 0])
    assert guess.target_UC.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0]]
    assert guess.stats["disagreement"] == near(3 / 4)
    assert guess.stats["threshold"] == near(0.95 * (1 + 0.98 / 3.02) / 2)
    # −ln ½ for each: ln 2·1.9/4
    assert loss(algorithm, guess, [[0.5, 0.5]] * 4) == near(math.log(2) * 1.9 / 4)


def test_the_average_is_that_of_both_students():
    algorithm = started(momentum=0.5)
    algorithm.guess(given([[0.8, 0.2]], peer=[[0.5, 0.5]]))
    algorithm.guess(given([[0.4, 0.6]], peer=[[0.5, 0.5]]))
    assert algorithm.state_dict()["mean"]["value"].tolist() == near([0.6, 0.4])


def test_without_a_peer():
    with pytest.raises(ValueError, match="peer_UC is None"):
        started().guess(given(WEAK))


def test_two_students():
    assert JointMatch.students == 2
    assert JointMatch.teacher == "ema"


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("threshold", 1.1, "0 to 1"),
        ("disagreement_weight", -0.1, "0 to 1"),
        ("momentum", 1.0, "0 or more, below 1"),
    ],
)
def test_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: {allowed}"):
        JointMatch(**{field: value})
