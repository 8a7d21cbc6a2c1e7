import pytest
import torch

from hf_llm_recipes.methods._guard import Guard, even

RIGHT = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
LABELS = torch.tensor([0, 1])
MORE = [[1.0, 0.0], [1.0, 0.0], [0.49, 0.51]]  # class 0 gets (1 + 1 + .49) / 3 = .83; one guess of three is 1


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
        watch(one, MORE)
        assert one.distance == pytest.approx(0.33)  # |.83 - .5|, the half of both classes' differences
        said = one.look(step)
        assert "class 0 gets 83 % of the pool (estimated: 50 %)" in said
        factors.append(one.factor)
    assert factors == [0.5, 0.25, 0.0]
    assert "switched off" in one.findings[-1]


def test_labeled_rows_that_are_unlearned_count():
    one = guard()
    watch(one, [[0.5, 0.5]], steps=20)
    assert one.look(20) is None
    watch(one, [[0.5, 0.5]], logits=-RIGHT, steps=4)  # 0.95^4 = .81 of the average is left
    assert "labeled accuracy fell from 1.00 to 0.81" in one.look(25)


MOSTLY_NONE = torch.tensor([0.8, 0.1, 0.1])  # of words: of no kind, and of two kinds


def words(one, kinds, count=1000):
    """A step whose guesses are of the first kind but for this many of each of the others."""
    classes = torch.tensor([0] * (count - 2 * kinds) + [1] * kinds + [2] * kinds)
    one.observe(torch.eye(3)[classes], torch.eye(3), torch.arange(3))


def test_a_teacher_that_knows_the_commonest_class_only_is_waited_for():
    one = Guard(prior_C=MOSTLY_NONE, eval_rows=0, every=5)
    words(one, 0)
    assert one.distance == pytest.approx(0.2)  # the histogram sees less than its .3, whatever happens
    assert one.waiting
    # the share of the others after n steps of 2 * 60 in 1,000 is .12 (1 - .8^n); at least half of .2 less
    # 2 * sqrt(.1 * .9 / (1000 * 1.8 / .2)) = .0063 is wanted: .0937, that is n = 7
    waited = []
    for _ in range(8):
        words(one, 60)
        waited.append(one.waiting)
    assert waited == [True] * 6 + [False] * 2
    assert one.steps_waited == 7
    assert one.look(10) is None
    assert one.factor == 1.0


def test_a_class_that_takes_the_others_place_is_waited_for_and_counts():
    one = Guard(prior_C=MOSTLY_NONE, eval_rows=0, every=5)
    for _ in range(5):
        words(one, 100)
    assert not one.waiting
    for _ in range(5):  # .2 * .8^4 = .082 < .0937
        words(one, 0)
    assert one.waiting
    assert "class 0 gets 93 % of the pool (estimated: 80 %)" in one.look(10)  # 1 - .2 * .8^5
    assert one.factor == 0.5
    words(one, 0)
    assert one.waiting
    one.seen = 5
    assert one.look(15) is None  # it has not been ready since
    assert one.factor == 0.5


def test_few_items_of_a_rare_class_may_be_absent_by_chance():
    one = Guard(prior_C=torch.tensor([0.97, 0.03]), eval_rows=0)
    for _ in range(50):
        one.observe(torch.tensor([[0.9, 0.1]] * 24), RIGHT, LABELS)
    assert not one.waiting  # .015 - 2 * sqrt(.015 * .985 / (24 * 9)) < 0


def test_labels_that_are_given_are_never_waited_for():
    one = Guard(prior_C=MOSTLY_NONE, eval_rows=0)
    one.observe(torch.tensor([[0.8, 0.1, 0.1]] * 1000), torch.eye(3), torch.arange(3), guesses=False)
    assert not one.waiting
    assert one.steps_waited == 0


def test_a_rare_class_that_is_unlearned_counts_as_much_as_the_commonest():
    one = Guard(prior_C=MOSTLY_NONE, eval_rows=0)
    labels = torch.tensor([0] * 98 + [1, 2])
    one.observe(torch.eye(3), torch.eye(3)[labels], labels)
    assert one.accuracy == 1.0
    for _ in range(20):
        one.observe(torch.eye(3), torch.eye(3)[torch.zeros(100, dtype=torch.long)], labels)
    # 98 of 100 items are right, and of three classes one and twice .95^20
    assert one.accuracy == pytest.approx((1 + 2 * 0.95**20) / 3)


def test_an_evaluation_counts_beyond_two_standard_errors():
    one = guard()
    watch(one, [[0.5, 0.5]])
    assert one.evaluated(10, 0.90) is None
    assert one.evaluated(20, 0.82) is None  # 2 * sqrt((.9*.1 + .82*.18) / 100) = .097 > .08
    assert "accuracy on the eval split fell from 0.900 to 0.780" in one.evaluated(
        30, 0.78
    )  # 2 * sqrt(.2616 / 100) = .102 < .12


def test_looks_come_only_every_so_many_steps_and_after_enough_of_them():
    one = guard()
    watch(one, MORE, steps=4)
    assert one.look(5) is None
    watch(one, MORE, steps=1)
    assert one.look(6) is None
    assert one.look(10) is not None


def test_its_state_survives():
    one, other = guard(), guard()
    watch(one, MORE)
    one.look(5)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
    assert other.factor == 0.5
