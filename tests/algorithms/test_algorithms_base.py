import pytest
import torch
from _given import given, near

from hf_llm_recipes.algorithms.base import Algorithm, Guess


class Nothing(Algorithm):
    def guess(self, given):
        return Guess(torch.softmax(given.weak_UC, -1), torch.zeros(len(given.weak_UC)))


def test_the_loss_is_a_mean_over_all_items():
    # weight 2 on a uniform target and q = (1/4, 3/4): −½·ln ¼ − ½·ln ¾ = ½·(1.386294 + .287682) = .836988
    strong = torch.tensor([[0.25, 0.75]]).log()
    guess = Guess(torch.tensor([[0.5, 0.5]]), torch.tensor([2.0]))
    assert Nothing().loss(strong, guess, 4).item() == near(2 * 0.836988 / 4)


def test_keep_takes_items_by_their_numbers():
    guess = Guess(torch.eye(3), torch.tensor([1.0, 0.0, 2.0]), {"threshold": 0.5})
    kept = guess.keep(torch.tensor([2, 0]))
    assert kept.target_UC.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert kept.weight_U.tolist() == [2, 1]
    assert kept.stats == {"threshold": 0.5}


def test_without_state_or_model():
    algorithm = Nothing()
    assert algorithm.state_dict() == {}
    algorithm.load_state_dict({})
    with pytest.raises(ValueError, match="Nothing has no state, got mean"):
        algorithm.load_state_dict({"mean": 1})
    some = given([[0.5, 0.5]])
    with pytest.raises(TypeError, match="Nothing needs no model"):
        algorithm.loss_through(None, some, algorithm.guess(some))
    assert algorithm.keep_labeled(some.labeled_BC, some.labels_B, 0.5) is None
