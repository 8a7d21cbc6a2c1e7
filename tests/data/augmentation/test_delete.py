import numpy as np
from _augmented import Scripted, fitted, pool_of, words

from hf_llm_recipes.data.augmentation.delete import Delete

pytest_plugins = ["_augmented_tokenizer"]


def test_chosen_tokens_are_left_out(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball team goal"]})
    row = {**pool.features[0], "of_the_row": [0, 1, 2, 3, 4, 5]}  # as long as the row by chance
    view = fitted(Delete(rate=0.5), pool)(row, 0, Scripted([0.1, 0.9, 0.9, 0.1]))
    assert words(tokenizer, view) == ["[CLS]", "ball", "team", "[SEP]"]
    assert (view["attention_mask"], view["token_type_ids"]) == ([1] * 4, [0] * 4)
    assert view["of_the_row"] == [0, 1, 2, 3, 4, 5]


def test_of_a_pair_one_side_is_shortened(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball"], "second": ["a new song"]})
    view = fitted(Delete(rate=0.5), pool)(pool.features[0], 0, Scripted([0.1, 0.9, 0.1], [1]))
    assert words(tokenizer, view) == ["[CLS]", "the", "ball", "[SEP]", "new", "[SEP]"]
    assert view["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_a_word_is_always_left(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball"]})
    view, random = fitted(Delete(rate=0.99), pool), np.random.default_rng(0)
    left = [words(tokenizer, view(pool.features[0], 0, random)) for _ in range(100)]
    assert {len(some) for some in left} <= {3, 4}
    assert {some[1] for some in left} == {"the", "ball"}
