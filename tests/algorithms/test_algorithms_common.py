import pytest
import torch
from _given import given, near

from hf_llm_recipes.algorithms._common import (
    Alignment,
    Chance,
    RunningMean,
    above,
    kl_divergence,
    one_hot,
    probabilities,
)


def test_probabilities_are_sharpened_detached_and_float32():
    # (.8, .2) at temperature ½: squares .64 and .04, so .64/.68
    logits = torch.tensor([[0.8, 0.2]]).log().bfloat16().requires_grad_(True)
    sharp = probabilities(logits.detach().float(), 0.5)
    assert sharp[0].tolist() == near([0.64 / 0.68, 0.04 / 0.68], 0.01)
    assert probabilities(logits).dtype == torch.float32
    assert not probabilities(logits).requires_grad


def test_sharpening_to_the_limit_underflows_nowhere():
    assert probabilities(torch.tensor([[50.0, 0.0]]), 0.01).tolist() == [[1.0, 0.0]]


def test_one_hot_and_threshold():
    assert one_hot(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    guess = above(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]]), 0.75)
    assert guess.weight_U.tolist() == [1, 0, 1]  # the threshold itself is enough
    assert guess.target_UC.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert guess.stats["confidence"] == near((0.75 + 0.5 + 0.875) / 3)
    each = above(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([0.8, 0.4]))
    assert each.weight_U.tolist() == [0, 1]


def test_kl_with_a_target_of_zero():
    # target (1, 0): 1·ln(1/¼) = ln 4
    log_q = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert kl_divergence(target, log_q).tolist() == near([1.386294, 0.0])


def test_a_running_mean_starts_as_the_plain_mean():
    # 4, 8, 12 at momentum ½: 4; (4 + 8)/2 = 6; decay min(½, 1 − 1/3) = ½: (6 + 12)/2 = 9
    mean = RunningMean(torch.tensor(100.0), 0.5)
    assert [mean.update(torch.tensor(v)).item() for v in (4.0, 8.0, 12.0)] == [4, 6, 9]
    # at momentum .9 the third is still a plain mean: (4 + 8 + 12)/3 = 8
    mean = RunningMean(torch.tensor(100.0), 0.9)
    assert [mean.update(torch.tensor(v)).item() for v in (4.0, 8.0, 12.0)] == near([4, 6, 8])


def test_a_running_mean_refuses_another_shape():
    mean = RunningMean(torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\); allowed: \(3,\)"):
        mean.load_state_dict({"value": torch.zeros(2), "steps": 1})
    with pytest.raises(ValueError, match="RunningMean: `count`; allowed: steps, value"):
        mean.load_state_dict({"value": torch.zeros(3), "count": 1})


def test_alignment_towards_each_prior():
    # p = (.8, .2) and (.6, .4); their mean is (.7, .3)
    weak = [[0.8, 0.2], [0.6, 0.4]]
    # uniform: .8·.5/.7 = .571429 and .2·.5/.3 = .333333 -> .571429/.904762 = .631579
    #          .6·.5/.7 = .428571 and .4·.5/.3 = .666667 -> .428571/1.095238 = .391304
    aligned = Alignment("uniform", 0.9, 2)(torch.tensor(weak), given(weak, prior=[0.9, 0.1]))
    assert aligned[:, 0].tolist() == near([0.631579, 0.391304])
    # estimated (.9, .1): .8·.9/.7 = 1.028571 and .2·.1/.3 = .066667 -> 1.028571/1.095238 = .939130
    aligned = Alignment("estimated", 0.9, 2)(torch.tensor(weak), given(weak, prior=[0.9, 0.1]))
    assert aligned[0, 0].item() == near(0.939130)
    # labeled items predicted (.2, .8) and (.4, .6), mean (.3, .7):
    # .8·.3/.7 = .342857 and .2·.7/.3 = .466667 -> .342857/.809524 = .423529
    some = given(weak, labeled=[[0.2, 0.8], [0.4, 0.6]], labels=[1, 1])
    assert Alignment("labeled", 0.9, 2)(torch.tensor(weak), some)[0, 0].item() == near(0.423529)
    assert Alignment("none", 0.9, 2)(torch.tensor(weak), some)[0].tolist() == near([0.8, 0.2])


def test_alignment_remembers_the_steps_before():
    align = Alignment("uniform", 0.9, 2)
    first, second = [[0.8, 0.2]], [[0.4, 0.6]]
    align(torch.tensor(first), given(first))
    # the mean is now (.6, .4): .4·.5/.6 = .333333 and .6·.5/.4 = .75 -> .333333/1.083333 = .307692
    assert align(torch.tensor(second), given(second))[0, 0].item() == near(0.307692)


def test_alignment_without_labeled_items_keeps_its_prior():
    align = Alignment("labeled", 0.9, 2)
    weak = [[0.8, 0.2]]
    some = given(weak)
    some.labeled_BC = some.labeled_BC[:0]
    assert align(torch.tensor(weak), some)[0].tolist() == near([0.5, 0.5])  # nothing seen yet: uniform


def test_a_class_never_predicted_gives_no_nan():
    aligned = Alignment("uniform", 0.9, 2)(torch.tensor([[1.0, 0.0]]), given([[0.5, 0.5]]))
    assert aligned.tolist() == [[1.0, 0.0]]


def test_alignment_refuses_the_state_of_another_prior():
    state = Alignment("labeled", 0.9, 2).state_dict()
    with pytest.raises(ValueError, match="Alignment: `labeled`; allowed: unlabeled"):
        Alignment("uniform", 0.9, 2).load_state_dict(state)


def test_chance_follows_the_seed_and_its_state():
    torch.manual_seed(1)
    one, same = Chance(), Chance()
    torch.manual_seed(2)
    other = Chance()
    state = one.state_dict()
    draws = [torch.rand(4, generator=c.generator).tolist() for c in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]
    other.load_state_dict(state)
    assert torch.rand(4, generator=other.generator).tolist() == draws[0]
    with pytest.raises(ValueError, match="Chance: `seed`; allowed: generator"):
        other.load_state_dict({"generator": state["generator"], "seed": 1})
