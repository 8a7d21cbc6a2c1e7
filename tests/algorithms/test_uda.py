import math

import pytest
from _given import given, logits, loss, near

from hf_llm_recipes.algorithms.uda import UDA


def test_by_hand():
    algorithm = UDA(temperature=0.5)
    guess = algorithm.guess(given([[0.8, 0.2], [0.7, 0.3]]))
    assert guess.weight_U.tolist() == [1, 0]  # .8 is the threshold, before sharpening
    # sharpened: (.64, .04)/.68 = (16/17, 1/17)
    assert guess.target_UC[0].tolist() == near([16 / 17, 1 / 17])
    # KL to (½, ½) over two items
    kl = 16 / 17 * math.log(32 / 17) + 1 / 17 * math.log(2 / 17)
    assert loss(algorithm, guess, [[0.5, 0.5], [0.5, 0.5]]) == near(kl / 2)


def test_the_default_temperature():
    # .9^2.5 = .768433 and .1^2.5 = .003162
    guess = UDA().guess(given([[0.9, 0.1]]))
    assert guess.target_UC[0, 0].item() == near(0.768433 / (0.768433 + 0.003162))


@pytest.mark.parametrize(
    "annealing, expected",
    [
        # half-way, three classes: η = α·⅔ + ⅓; known are .4, .7 and .95
        ("linear", [True, False, False]),  # α = ½: η = .666667
        ("log", [True, True, False]),  # α = 1 − e^−2.5 = .917915: η = .945277
        ("exp", [False, False, False]),  # α = e^−2.5 = .082085: η = .388057
    ],
)
def test_annealing_leaves_out_what_is_known(annealing, expected):
    labeled = logits([[0.4, 0.3, 0.3], [0.1, 0.7, 0.2], [0.02, 0.03, 0.95]])
    some = given([[0.2, 0.3, 0.5]], labels=[0, 1, 2])
    kept = UDA(training_signal_annealing=annealing).keep_labeled(labeled, some.labels_B, 0.5)
    assert kept.tolist() == expected


def test_all_is_released_at_the_end():
    labels = given([[0.5, 0.5]]).labels_B
    for annealing in ("linear", "exp"):
        kept = UDA(training_signal_annealing=annealing).keep_labeled(logits([[0.999, 0.001]]), labels, 1.0)
        assert kept.tolist() == [True]
    assert UDA().keep_labeled(logits([[0.999, 0.001]]), labels, 0.0) is None


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("threshold", 1.2, "0 to 1"),
        ("temperature", 0.0, "above 0, at most 1"),
        ("temperature", 1.5, "above 0, at most 1"),
        ("training_signal_annealing", "cosine", "none, linear, log, exp"),
    ],
)
def test_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: {allowed}"):
        UDA(**{field: value})
