import numpy as np
import pytest
from _augmented import Scripted, fitted, pool_of, words
from scipy import stats

from hf_llm_recipes.data.augmentation.substitute import Substitute

pytest_plugins = ["_augmented_tokenizer"]

TEXTS = ["the the the ball team", "the goal ball xyz xyz"]  # the 4, ball 2, team 1, goal 1: eight words


def test_chosen_tokens_are_drawn_from_the_pool(tokenizer):
    pool = pool_of(tokenizer, {"text": TEXTS})
    view = fitted(Substitute(rate=0.5), pool)
    # In order of ids: the [0, .5), ball [.5, .75), team [.75, .875), goal [.875, 1).
    script = Scripted([0.9, 0.4, 0.9, 0.1, 0.9, 0.8, 0.5])
    expected = ["[CLS]", "the", "team", "the", "ball", "team", "[SEP]"]
    assert words(tokenizer, view(pool.features[0], 0, script)) == expected


@pytest.mark.parametrize("distribution,shares", [("unigram", [4, 2, 1, 1]), ("uniform", [2, 2, 2, 2])])
def test_draws_follow_the_distribution(tokenizer, distribution, shares):
    pool = pool_of(tokenizer, {"text": TEXTS})
    view, random = fitted(Substitute(distribution=distribution), pool), np.random.default_rng(0)
    drawn = tokenizer.convert_ids_to_tokens(view.draw(4000, random))
    counts = [drawn.count(word) for word in ("the", "ball", "team", "goal")]
    assert sum(counts) == 4000
    assert stats.chisquare(counts, np.array(shares) * 500).pvalue > 1e-3


def test_as_many_change_as_asked(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the a and was in of very new old good", "ball " * 2000]})
    view, random = fitted(Substitute(rate=0.15), pool), np.random.default_rng(0)
    row = np.asarray(pool.features[0]["input_ids"])
    changed = [(np.asarray(view(pool.features[0], 0, random)["input_ids"]) != row) for _ in range(2000)]
    same_again = 1 / 2010  # each of the ten words is that share of the pool
    low, high = stats.binom.ppf([0.0005, 0.9995], 20_000, 0.15 * (1 - same_again))
    assert low <= np.sum(changed) <= high
    assert not np.any(changed, axis=0)[[0, -1]].any()
