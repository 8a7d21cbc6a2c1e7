import math

import pytest
import torch
from _given import given, loss, near

from hf_llm_recipes.algorithms.pseudo_label import PseudoLabel


def test_by_hand():
    algorithm = PseudoLabel(threshold=0.75)
    guess = algorithm.guess(given([[0.8, 0.2], [0.6, 0.4]]))
    assert guess.target_UC.tolist() == [[1, 0], [1, 0]]
    assert guess.weight_U.tolist() == [1, 0]
    # one of two items: −ln .5 / 2
    assert loss(algorithm, guess, [[0.5, 0.5], [0.9, 0.1]]) == near(math.log(2) / 2)


def test_a_threshold_of_zero_takes_every_item():
    assert PseudoLabel(threshold=0).guess(given([[0.5, 0.5]])).weight_U.tolist() == [1]


def test_one_view():
    assert not PseudoLabel.strong_view
    assert PseudoLabel.teacher == "ema"


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}; allowed: 0 to 1"):
        PseudoLabel(threshold=threshold)


def test_default():
    p = torch.tensor([[0.951, 0.049], [0.949, 0.051]])
    assert PseudoLabel().guess(given(p.tolist())).weight_U.tolist() == [1, 0]
