import pytest
import torch
from torch import nn

from hf_llm_recipes.averaging import MovingAverage, WeightSet, default_decay


def layer(*values):
    model = nn.Linear(len(values), 1, bias=False)
    model.weight.data = torch.tensor([values])
    return model


def test_the_default_decay_is_that_of_the_papers_at_their_length():
    assert default_decay(14_000) == pytest.approx(0.999)
    assert default_decay(140) == pytest.approx(0.9)
    assert default_decay(7) == 0.0


def test_the_average_starts_as_a_mean_and_ends_as_a_moving_one():
    model = layer(0.0)
    teacher = MovingAverage(model, decay=0.6)
    # min(1 - 1/(t+1), .6): 1/2, .6, .6 ...
    for step, (student, expected) in enumerate([(4.0, 2.0), (7.0, 4.0), (9.0, 6.0)], start=1):
        model.weight.data.fill_(student)
        teacher.update(step)
        assert teacher.values["weight"].item() == pytest.approx(expected)


def test_only_trained_weights_have_an_average():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert set(WeightSet(model).values) == {"1.weight", "1.bias"}
    with pytest.raises(ValueError, match="no trainable weight"):
        WeightSet(model.requires_grad_(False))


def test_the_student_comes_back_bit_for_bit_also_after_an_exception():
    model = layer(0.1, 0.2)
    teacher = MovingAverage(model, 0.9)
    model.weight.data.add_(1.0)
    student, pointer = model.weight.detach().clone(), model.weight.data_ptr()
    seen = []

    def look():
        with teacher.swapped():
            seen.append(model.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert torch.equal(seen[0], torch.tensor([[0.1, 0.2]]))
    assert torch.equal(model.weight.data, student)
    assert model.weight.data_ptr() == pointer


def test_a_forward_of_the_teacher_leaves_the_gradient_of_the_student():
    x = torch.tensor([[1.0, 2.0]])
    gradients = []
    for look in (False, True):
        model = layer(0.3, 0.4)
        teacher = MovingAverage(model, 0.9)
        model.weight.data.mul_(2)
        loss = (model(x) ** 2).sum()
        if look:
            with teacher.swapped(), torch.no_grad():
                assert model(x).item() == pytest.approx(1.1)
        loss.backward()
        gradients.append(model.weight.grad)
    assert torch.equal(*gradients)


def test_state_of_another_tuning_is_refused():
    teacher = MovingAverage(layer(1.0), 0.9)
    state = {"weight": torch.tensor([[5.0]])}
    teacher.load_state_dict(state)
    assert teacher.state_dict()["weight"].item() == 5.0
    with pytest.raises(ValueError, match="other trainable weights: `bias`"):
        teacher.load_state_dict({**state, "bias": torch.zeros(1)})


def test_sixteen_bits_are_averaged_in_float32_and_come_back_as_they_were():
    model = layer(1.0).to(torch.bfloat16)
    average = MovingAverage(model, 0.999)
    model.weight.data.fill_(2.0)
    for step in range(2000, 2010):  # bfloat16 has no number between 1 and 1.0078: it would stay at 1
        average.update(step)
    expected = 2 - 0.999**10
    assert average.values["weight"].item() == pytest.approx(expected, abs=1e-6)
    with average.swapped():
        assert model.weight.dtype == torch.bfloat16
        assert model.weight.item() == pytest.approx(expected, abs=0.004)
    assert model.weight.item() == 2.0


def test_a_move_has_the_bits_of_one_weight_after_the_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    average = MovingAverage(model, 0.97)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in (1, 2, 50):
        for name, parameter in model.named_parameters():
            parameter.data.add_(torch.randn_like(parameter))
            # the decay is 1/2, 2/3 and then 0.97
            wanted[name] = torch.lerp(wanted[name], parameter.data, 1 - min(1 - 1 / (step + 1), 0.97))
        average.update(step)
    assert all(torch.equal(average.values[name], value) for name, value in wanted.items())
