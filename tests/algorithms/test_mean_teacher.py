import math

import pytest
from _given import given, loss, near

from hf_llm_recipes.algorithms.mean_teacher import MeanTeacher


def test_squared_by_hand():
    algorithm = MeanTeacher()
    guess = algorithm.guess(given([[0.7, 0.2, 0.1]]))
    # (.5 − .7)² + (.3 − .2)² + (.2 − .1)² = .04 + .01 + .01
    assert loss(algorithm, guess, [[0.5, 0.3, 0.2]]) == near(0.06)
    assert guess.stats["confidence"] == near(0.7)


def test_kl_by_hand():
    algorithm = MeanTeacher(divergence="kl")
    guess = algorithm.guess(given([[0.75, 0.25], [0.5, 0.5]]))
    # KL((¾, ¼) ‖ (½, ½)) = ¾·ln 1.5 + ¼·ln .5; the second item is 0; mean over two
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert loss(algorithm, guess, [[0.5, 0.5], [0.5, 0.5]]) == near(expected)


def test_the_teacher_is_an_average():
    assert MeanTeacher.teacher == "ema"
    assert not MeanTeacher.teacher_dropout


def test_another_divergence():
    with pytest.raises(ValueError, match="divergence is cosine; allowed: squared or kl"):
        MeanTeacher(divergence="cosine")
