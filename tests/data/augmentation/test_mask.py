import numpy as np
from _augmented import Scripted, fitted, pool_of, words
from scipy import stats

from hf_llm_recipes.data.augmentation.mask import Mask

pytest_plugins = ["_augmented_tokenizer"]


def test_chosen_tokens_are_masked(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball team"]})
    view = fitted(Mask(rate=0.3), pool)(pool.features[0], 0, Scripted([0.2, 0.3, 0.29]))
    assert words(tokenizer, view) == ["[CLS]", "[MASK]", "ball", "[MASK]", "[SEP]"]
    assert view["attention_mask"] == [1] * 5


def test_as_many_are_masked_as_asked(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the a and was in of very new old good"]})
    view, random = fitted(Mask(rate=0.2), pool), np.random.default_rng(0)
    masked = sum(
        view(pool.features[0], 0, random)["input_ids"].count(tokenizer.mask_token_id) for _ in range(2000)
    )
    low, high = stats.binom.ppf([0.0005, 0.9995], 20_000, 0.2)
    assert low <= masked <= high
