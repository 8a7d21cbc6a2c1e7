import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hf_llm_recipes.methods import _head_loss
from hf_llm_recipes.methods._head_loss import (
    called_loss,
    chunk_rows,
    linear_loss,
    loss_in_head,
    replaced_forward,
    targets,
)


@pytest.fixture(autouse=True)
def three_rows_a_chunk(monkeypatch):
    monkeypatch.setattr(_head_loss, "CHUNK_LOGITS_ELSEWHERE", 3 * 11)
    monkeypatch.setattr(_head_loss, "SMALLEST_CHUNK", 1)


def case(bias=True, tokens=8):
    torch.manual_seed(0)
    head = nn.Linear(5, 11, bias=bias)
    return head, torch.randn(tokens, 5, requires_grad=True), torch.randint(11, (tokens,))


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def test_targets_by_hand():
    labels = torch.tensor([[1, 2, -100, 4]])
    assert targets(labels, shifted=True).tolist() == [[2, -100, 4, -100]]
    assert targets(labels, shifted=False) is labels


def test_two_tokens_by_hand():
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[0.0], [1.0]])
    x = torch.tensor([[0.0], [0.0]], requires_grad=True)
    loss = linear_loss(head, x, torch.tensor([0, 1]))
    # Both logits are 0: twice ln 2. dx = (p - onehot) W: (.5 - 1, .5) . (0, 1) = .5, and (.5, .5 - 1) -> -.5.
    assert loss.item() == pytest.approx(1.386294, abs=1e-6)
    loss.backward()
    assert x.grad.tolist() == [[0.5], [-0.5]]


def test_chunks_hold_the_stated_number_of_logits():
    assert chunk_rows(11, "cpu") == 3
    assert chunk_rows(33, "cpu") == 1
    assert chunk_rows(2**16, "cuda") == 2**10


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_all_logits_at_once(bias, smoothing):
    head, x, target = case(bias)
    weights = list(head.parameters())
    expected = cross_entropy(head(x), target, reduction="sum", label_smoothing=smoothing)
    wanted = gradients(expected / 7, x, *weights)
    for loss in (
        linear_loss(head, x, target, smoothing),
        called_loss(head, x, target, 11, smoothing),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(loss / 7, x, *weights), wanted)


def test_a_frozen_head_keeps_only_the_gradient_of_the_hidden_states():
    head, x, target = case()
    head.requires_grad_(False)
    linear_loss(head, x, target).backward()
    expected = gradients(cross_entropy(head(x), target, reduction="sum"), x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert head.weight.grad is None


def test_no_more_than_a_chunk_of_logits_is_made():
    head, x, target = case()
    seen = []
    head.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    called_loss(head, x, target, 11).backward()
    assert seen == [3, 3, 2, 2, 3, 3]  # forward, and again in the backward pass
    with torch.no_grad():
        assert not linear_loss(head, x, target).requires_grad


@pytest.mark.parametrize("function", ["linear", "called"])
def test_no_supervised_token_is_a_loss_of_zero_with_a_gradient_of_zero(function):
    head, x, _ = case()
    x0, none = x[:0], torch.zeros(0, dtype=torch.long)
    loss = linear_loss(head, x0, none) if function == "linear" else called_loss(head, x0, none, 11)
    assert loss.item() == 0
    loss.backward()
    assert x.grad.abs().sum() == 0


def test_half_precision_is_summed_in_float32():
    head, x, target = case()
    head, x = head.bfloat16(), x.detach().bfloat16().requires_grad_()
    loss = linear_loss(head, x, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(head(x).float(), target, reduction="sum"))
    loss.backward()
    assert x.grad.dtype == head.weight.grad.dtype == torch.bfloat16


class Model(nn.Module):
    """A body and a head, as language models are."""

    def __init__(self, head):
        super().__init__()
        self.body, self.lm_head = nn.Linear(5, 5), head

    def forward(self, x_BTD):
        return self.lm_head(self.body(x_BTD))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_gives_its_loss_in_the_place_of_its_logits(wrapped):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(5, 11)) if wrapped else nn.Linear(5, 11)
    model = Model(head)
    x, labels = torch.randn(2, 4, 5), torch.tensor([[-100, 3, -100, 4], [-100, -100, 5, -100]])
    logits = model(x)
    expected = sum(
        cross_entropy(logits[b, t], torch.tensor(y)) for b, t, y in [(0, 0, 3), (0, 2, 4), (1, 1, 5)]
    )
    wanted = gradients(expected, *model.parameters())
    with loss_in_head(model.lm_head, targets(labels, shifted=True), 11):
        found = model(x)
    assert found.shape == (1, 1, 1)
    torch.testing.assert_close(found.sum(), expected)
    torch.testing.assert_close(gradients(found.sum(), *model.parameters()), wanted)
    assert "forward" not in model.lm_head.__dict__
    torch.testing.assert_close(model(x), logits)


def test_a_head_that_sees_other_positions_is_refused_and_comes_back():
    model = Model(nn.Linear(5, 11))
    with (
        pytest.raises(ValueError, match=r"the head is given \(2, 3\) positions, not \(2, 4\)"),
        loss_in_head(model.lm_head, torch.zeros(2, 4, dtype=torch.long), 11),
    ):
        model(torch.randn(2, 3, 5))
    assert model(torch.randn(2, 3, 5)).shape == (2, 3, 11)


def test_a_forward_that_a_hook_put_in_place_comes_back():
    head = nn.Linear(5, 11)
    hooked = lambda x: "hooked"  # noqa: E731
    head.forward = hooked
    with replaced_forward(head, lambda x: "replaced"):
        assert head(None) == "replaced"
    assert head.forward is hooked
