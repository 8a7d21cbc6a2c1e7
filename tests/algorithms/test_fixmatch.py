import math

import pytest
from _given import given, loss, near

from hf_llm_recipes.algorithms.fixmatch import FixMatch


def test_by_hand():
    algorithm = FixMatch()
    guess = algorithm.guess(given([[0.96, 0.04], [0.03, 0.97], [0.94, 0.06]]))
    assert guess.target_UC.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert guess.weight_U.tolist() == [1, 1, 0]
    assert guess.stats["confidence"] == near((0.96 + 0.97 + 0.94) / 3)
    # −ln .5 and −ln .25 over three items: (ln 2 + 2·ln 2)/3 = ln 2
    assert loss(algorithm, guess, [[0.5, 0.5], [0.75, 0.25], [0.1, 0.9]]) == near(math.log(2))


def test_no_confident_item_gives_no_loss():
    algorithm = FixMatch()
    assert loss(algorithm, algorithm.guess(given([[0.5, 0.5]])), [[0.9, 0.1]]) == 0


@pytest.mark.parametrize("threshold", [-0.01, 1.01])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}; allowed: 0 to 1"):
        FixMatch(threshold=threshold)
