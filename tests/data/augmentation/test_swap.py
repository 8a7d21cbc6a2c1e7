import numpy as np
import pytest
from _augmented import Scripted, fitted, pool_of, words
from scipy import stats

from hf_llm_recipes.data.augmentation.swap import Swap

pytest_plugins = ["_augmented_tokenizer"]


@pytest.mark.parametrize(
    "draws,expected",
    [
        ([0.04, 0.9, 0.9], "ball the team goal"),
        ([0.9, 0.9, 0.049], "the ball goal team"),
        ([0.0, 0.0, 0.9], "ball team the goal"),  # the first goes on to the right
        ([0.05, 0.05, 0.05], "the ball team goal"),
    ],
)
def test_neighbors_are_exchanged(tokenizer, draws, expected):
    pool = pool_of(tokenizer, {"text": ["the ball team goal"]})
    view = fitted(Swap(rate=0.1), pool)(pool.features[0], 0, Scripted(draws))
    assert words(tokenizer, view) == ["[CLS]", *expected.split(), "[SEP]"]


def test_every_pair_is_exchanged_at_half_the_rate(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball"]})
    view, random = fitted(Swap(rate=0.2), pool), np.random.default_rng(0)
    swapped = sum(words(tokenizer, view(pool.features[0], 0, random))[1] == "ball" for _ in range(4000))
    low, high = stats.binom.ppf([0.0005, 0.9995], 4000, 0.1)
    assert low <= swapped <= high
