import math

import pytest
import torch
from _given import given, logits, loss, near

from hf_llm_recipes.algorithms.base import Guess
from hf_llm_recipes.algorithms.freematch import FreeMatch


def started(classes=2, **fields):
    algorithm = FreeMatch(**fields)
    algorithm.start(classes, 10)
    return algorithm


WEAK = [[0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]


def test_thresholds_by_hand():
    guess = started().guess(given(WEAK))
    # τ = (.9 + .6 + .6)/3 = .7; p̃ = (1.9/3, 1.1/3); τ_0 = .7, τ_1 = .7·1.1/1.9 = .405263
    assert guess.stats["threshold"] == near(0.7)
    assert guess.weight_U.tolist() == [1, 0, 1]
    assert guess.target_UC.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_loss_by_hand():
    algorithm = started(fairness_weight=0.1)
    guess = algorithm.guess(given(WEAK))
    strong = [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]
    taught = -2 * math.log(0.75) / 3
    # h̃ = (⅔, ⅓): p̃/h̃ = (1.9/2, 1.1), normalised (.95, 1.1)/2.05
    # strong views of the two that are kept: mean (½, ½), one of each class: p̄/h̄ = (1, 1), normalised ½
    # fairness = (.95 + 1.1)/2.05 · ln ½
    assert loss(algorithm, guess, strong) == near(taught + 0.1 * math.log(0.5))


def test_fairness_of_uneven_predictions():
    algorithm = started()
    algorithm.guess(given(WEAK))
    # of three, two guess class 0: mean (.6, .4), h̄ = (⅔, ⅓): (.9, 1.2)/2.1
    strong = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.3, 0.7]])
    expected = 0.95 / 2.05 * math.log(0.9 / 2.1) + 1.1 / 2.05 * math.log(1.2 / 2.1)
    assert algorithm.fairness(strong).item() == near(expected)


def test_a_class_that_nobody_has_is_left_out():
    algorithm = started()
    algorithm.guess(given(WEAK))
    # every strong view is class 0: p̄/h̄ = (.8, 0), normalised (1, 0): ln 1 = 0, and no infinity
    strong = torch.tensor([[0.8, 0.2]], requires_grad=True)
    fairness = algorithm.fairness(strong)
    assert fairness.item() == 0
    fairness.backward()
    assert strong.grad.isfinite().all()


def test_items_of_weight_zero_do_not_enter_fairness():
    algorithm = started(fairness_weight=1.0)
    algorithm.guess(given(WEAK))
    guess = Guess(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))
    strong = logits([[0.75, 0.25], [0.01, 0.99]])
    alone = algorithm.loss(strong[:1], guess.keep(torch.tensor([0])), 2)
    assert torch.equal(algorithm.loss(strong, guess, 2), alone)


def test_nothing_kept_gives_no_loss_and_no_fairness():
    algorithm = started(fairness_weight=0)
    guess = algorithm.guess(given(WEAK))
    assert loss(algorithm, guess, WEAK) == near(-(math.log(0.9) + math.log(0.6)) / 3)
    none = Guess(torch.eye(2), torch.zeros(2))
    assert started().loss(logits([[0.5, 0.5]] * 2), none, 2).item() == 0


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("fairness_weight", -0.1, "0 or more"),
        ("fairness_weight", float("inf"), "0 or more"),
        ("momentum", 1.0, "0 or more, below 1"),
    ],
)
def test_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: {allowed}"):
        FreeMatch(**{field: value})


def test_the_state_of_another_number_of_classes():
    state = started().state_dict() | {"mean": started(3).mean.state_dict()}
    with pytest.raises(ValueError, match=r"shape \(3,\); allowed: \(2,\)"):
        started().load_state_dict(state)
