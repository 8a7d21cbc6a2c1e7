import math

import pytest
import torch
from _given import LinearForward, given, near

from hf_llm_recipes.algorithms.mixtext import MixText


def started(**fields):
    torch.manual_seed(0)
    algorithm = MixText(**fields)
    algorithm.start(2, 10)
    return algorithm


def forward(weight=None):
    """Three unlabeled rows and one labeled, one token each."""
    tokens = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[2.0, 1.0]], [[0.5, 0.5]]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]]) if weight is None else weight
    return LinearForward(tokens, torch.ones(4, 1), weight)


WEAK = [[0.8, 0.2], [0.5, 0.5], [0.3, 0.7]]


def test_the_guess_is_sharpened():
    # at temperature ½: (.64, .04)/.68, (½, ½), (.09, .49)/.58
    guess = started().guess(given(WEAK))
    assert guess.target_UC[:, 0].tolist() == near([16 / 17, 0.5, 9 / 58])
    assert guess.weight_U.tolist() == [1, 1, 1]


@pytest.mark.parametrize("partners, most", [("all", 4), ("unlabeled", 3)])
def test_by_hand(partners, most):
    algorithm = started(partners=partners, layer=1)
    model = forward()
    some = given(WEAK, labeled=[[0.6, 0.4]], labels=[1])
    loss = algorithm.loss_through(model, some, algorithm.guess(some)).item()
    rows, others, share, layer = model.asked[-1]
    assert rows.tolist() == [0, 1, 2]
    assert len(set(others.tolist())) == 3
    assert max(others) < most
    assert 0.5 <= share <= 1
    assert layer == 1
    # the same in plain numbers: logits (x, 2y) of the mixed token, KL to the mixed answers
    points = [(1, 0), (0, 1), (2, 1), (0.5, 0.5)]
    first = [16 / 17, 0.5, 9 / 58, 0.0]  # class 0 of the guesses; the labeled row is class 1
    total = 0.0
    for own, other in enumerate(others.tolist()):
        x, y = (share * a + (1 - share) * b for a, b in zip(points[own], points[other], strict=True))
        target = share * first[own] + (1 - share) * first[other]
        q = math.exp(x) / (math.exp(x) + math.exp(2 * y))
        total += target * math.log(target / q) + (1 - target) * math.log((1 - target) / (1 - q))
    assert loss == near(total / 3)


def test_all_rows_become_partners_and_shares_follow_alpha():
    algorithm = started()
    drawn = [algorithm.draw(3, 4) for _ in range(200)]
    assert {n for _, others in drawn for n in others.tolist()} == {0, 1, 2, 3}
    shares = torch.tensor([share for share, _ in drawn])
    assert shares.min() >= 0.5
    # Beta(16, 16) has sd √(1/(4·33)) = .087, so |λ − ½| is .069 on average (√(2/π)·sd); ±.02 is five sd
    assert shares.mean().item() == pytest.approx(0.569, abs=0.02)


def test_the_gradient_reaches_the_model():
    weight = torch.eye(2, requires_grad=True)
    algorithm = started()
    some = given(WEAK, labels=[1])
    algorithm.loss_through(forward(weight), some, algorithm.guess(some)).backward()
    assert weight.grad.abs().sum() > 0


def test_a_resume_goes_on_with_the_same_draws():
    algorithm = started()
    algorithm.draw(3, 4)
    state = algorithm.state_dict()
    expected = [algorithm.draw(3, 4) for _ in range(3)]
    torch.manual_seed(5)
    resumed = MixText()
    resumed.start(2, 10)
    resumed.load_state_dict(state)
    for share, others in expected:
        again = resumed.draw(3, 4)
        assert again[0] == share
        assert torch.equal(again[1], others)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("alpha", 0, "above 0"),
        ("temperature", 0.0, "above 0, at most 1"),
        ("temperature", 1.1, "above 0, at most 1"),
        ("layer", -1, "0 or more, or none"),
        ("partners", "labeled", "all or unlabeled"),
    ],
)
def test_out_of_range(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: {allowed}"):
        MixText(**{field: value})
