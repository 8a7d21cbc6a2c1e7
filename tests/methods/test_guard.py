import pytest
import torch

from hf_llm_recipes.methods._guard import Guard, even

RIGHT = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
LABELS = torch.tensor([0, 1])


def guard(**keys):
    return Guard(prior_C=even(2), eval_rows=100, every=5, **keys)


def watch(one, teacher_UC, logits=RIGHT, steps=5):
    for _ in range(steps):
        one.observe(torch.tensor(teacher_UC), logits, LABELS)


def test_a_pool_that_is_guessed_as_it_should_be_changes_nothing():
    one = guard()
    watch(one, [[0.9, 0.1], [0.1, 0.9]], steps=50)
    assert one.look(50) is None
    assert one.factor == 1.0
    assert one.distance == pytest.approx(0.0, abs=1e-6)


def test_a_class_that_swallows_the_other_halves_the_weight_three_times_then_stops():
    one = guard()
    factors = []
    for step in (5, 10, 15):
        watch(one, [[0.9, 0.1], [0.9, 0.1]])
        assert one.distance == pytest.approx(0.4)  # |.9 - .5|, the half of both classes' differences
        said = one.look(step)
        assert "class 0 gets 90 % of the pool (estimated: 50 %)" in said
        factors.append(one.factor)
    assert factors == [0.5, 0.25, 0.0]
    assert "switched off" in one.findings[-1]


def test_labeled_rows_that_are_unlearned_count():
    one = guard()
    watch(one, [[0.5, 0.5]], steps=20)
    assert one.look(20) is None
    watch(one, [[0.5, 0.5]], logits=-RIGHT, steps=4)  # 0.95^4 = .81 of the average is left
    assert "labeled accuracy fell from 1.00 to 0.81" in one.look(25)


def test_an_evaluation_counts_beyond_two_standard_errors():
    one = guard()
    watch(one, [[0.5, 0.5]])
    assert one.evaluated(10, 0.90) is None
    assert one.evaluated(20, 0.82) is None  # 2 * sqrt((.9*.1 + .82*.18) / 100) = .097 > .08
    assert "fell from 0.900 to 0.780" in one.evaluated(30, 0.78)  # 2 * sqrt(.2616 / 100) = .102 < .12


def test_looks_come_only_every_so_many_steps_and_after_enough_of_them():
    one = guard()
    watch(one, [[0.9, 0.1]], steps=4)
    assert one.look(5) is None
    watch(one, [[0.9, 0.1]], steps=1)
    assert one.look(6) is None
    assert one.look(10) is not None


def test_its_state_survives():
    one, other = guard(), guard()
    watch(one, [[0.9, 0.1]])
    one.look(5)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
    assert other.factor == 0.5
