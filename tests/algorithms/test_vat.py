import math

import pytest
import torch
from _given import LinearForward, given, near

from hf_llm_recipes.algorithms.vat import VAT, _unit


def started(**fields):
    torch.manual_seed(0)
    algorithm = VAT(**fields)
    algorithm.start(2, 10)
    return algorithm


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_by_hand():
    # One token of width 1, W = (+1, −1): f = softmax(e, −e), so P(class 0) = sigmoid(2e).
    # At e = 2 the mean norm is 2, so r = ±ε·2 = ±1 with ε = ½; a line has but these two directions.
    # KL(sigmoid(4) ‖ sigmoid(2)) moves more than KL(sigmoid(4) ‖ sigmoid(6)), but one power iteration
    # keeps the side its random start fell on: the loss is one of the two.
    algorithm = started(epsilon=0.5)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    forward = LinearForward(torch.tensor([[[2.0]]]), torch.ones(1, 1), weight)
    p = sigmoid(4)
    some = given([[p, 1 - p]])
    loss = algorithm.loss_through(forward, some, algorithm.guess(some))

    def kl(q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    moved = forward.asked[-1].item()
    assert moved in (near(1.0), near(3.0))
    assert loss.item() == near(kl(sigmoid(2 * moved)))
    loss.backward()
    # d KL/dW_0 = (q − p)·e' for class 0, with opposite sign for class 1
    slope = (sigmoid(2 * moved) - p) * moved
    assert weight.grad.squeeze().tolist() == near([slope, -slope])


def test_the_change_follows_the_only_direction_that_matters():
    # Two dimensions, W reads the first only: KL's gradient has nothing in the second.
    algorithm = started(epsilon=0.25, xi=0.01)
    forward = LinearForward(
        torch.tensor([[[3.0, 4.0]]]), torch.ones(1, 1), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    )
    p = sigmoid(3)
    some = given([[p, 1 - p]])
    algorithm.loss_through(forward, some, algorithm.guess(some))
    first, second = forward.asked
    # the step that finds r: ξ·5 = .05 long; r: ε·5 = 1.25 long, along the first dimension
    assert (first - torch.tensor([3.0, 4.0])).norm().item() == near(0.05, 1e-4)
    change = (second - torch.tensor([3.0, 4.0])).squeeze()
    assert abs(change[0].item()) == near(1.25, 1e-4)
    assert change[1].item() == near(0.0, 1e-4)


def test_padding_is_left_alone_and_does_not_count_in_the_norm():
    # norms 3 and 5 over two tokens: mean 4; the padded third, of norm 100, counts nothing
    algorithm = started(epsilon=0.5)
    tokens = torch.tensor([[[3.0, 0.0], [3.0, 4.0], [100.0, 0.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    forward = LinearForward(tokens, mask, torch.tensor([[0.1, 0.0], [0.0, 0.1]]))
    p = sigmoid(0.1)  # mean embedding (3, 2): logits .3 and .2
    some = given([[p, 1 - p]])
    algorithm.loss_through(forward, some, algorithm.guess(some))
    change = forward.asked[-1] - tokens
    assert change[0, 2].tolist() == [0, 0]
    assert change.norm().item() == near(0.5 * 4, 1e-4)
    # the mean of tokens shares the gradient evenly between the two
    assert change[0, 0].tolist() == near(change[0, 1].tolist(), 1e-4)


class LeakyForward(LinearForward):
    """Reads its padding, as a model without an attention mask would."""

    def pooled(self, rows_K, embeddings_KTD):
        return embeddings_KTD.mean(1)


def test_padding_is_left_alone_even_where_the_model_reads_it():
    algorithm = started()
    tokens = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    forward = LeakyForward(tokens, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    some = given([[0.3, 0.7]])
    algorithm.loss_through(forward, some, algorithm.guess(some))
    assert len(forward.asked) == 2
    for changed in forward.asked:
        assert changed[0, 1].tolist() == [2.0, 1.0]
        assert changed[0, 0].tolist() != [1.0, 2.0]


def test_each_row_has_its_own_length():
    algorithm = started(epsilon=1.0)
    tokens = torch.tensor([[[1.0]], [[2.0]]])
    forward = LinearForward(tokens, torch.ones(2, 1), torch.tensor([[1.0], [-1.0]]))
    weak = [[sigmoid(2), 1 - sigmoid(2)], [sigmoid(4), 1 - sigmoid(4)]]
    algorithm.loss_through(forward, given(weak), algorithm.guess(given(weak)))
    assert (forward.asked[-1] - tokens).abs().flatten().tolist() == near([1.0, 2.0])


def test_a_model_that_does_not_move_gives_zero():
    algorithm = started()
    forward = LinearForward(torch.ones(2, 1, 3), torch.ones(2, 1), torch.zeros(2, 3))
    some = given([[0.5, 0.5]] * 2)
    assert algorithm.loss_through(forward, some, algorithm.guess(some)).item() == 0


def test_the_direction_of_a_tiny_gradient_survives():
    # 3 and 4 times 1e-30: their squares are zero in float32
    assert _unit(torch.tensor([[[3e-30], [4e-30]]])).flatten().tolist() == near([0.6, 0.8])


def test_embeddings_in_half_precision_stay_so():
    algorithm = started()
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    forward = LinearForward(torch.ones(1, 1, 2).bfloat16(), torch.ones(1, 1).bfloat16(), weight)
    some = given([[0.5, 0.5]])
    loss = algorithm.loss_through(forward, some, algorithm.guess(some))
    assert forward.asked[-1].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.item() > 0


def test_a_resume_goes_on_with_the_same_directions():
    algorithm = started(epsilon=0.5)
    tokens = torch.arange(12.0).reshape(2, 2, 3) / 10
    forward = LinearForward(tokens, torch.ones(2, 2), torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]]))
    some = given([[0.5, 0.5]] * 2)
    step = lambda a: a.loss_through(forward, some, a.guess(some)).item()  # noqa: E731
    step(algorithm)
    state = algorithm.state_dict()
    expected = [step(algorithm), step(algorithm)]
    torch.manual_seed(5)
    resumed = VAT(epsilon=0.5)
    resumed.start(2, 10)
    resumed.load_state_dict(state)
    assert [step(resumed), step(resumed)] == expected
    assert torch.equal(forward.asked[-4], forward.asked[-8])  # the same random start, not just one side


@pytest.mark.parametrize("field", ["epsilon", "xi"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf")])
def test_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed: above 0"):
        VAT(**{field: value})
