from _augmented import Scripted, fitted, pool_of, words

from hf_llm_recipes.data.augmentation.column import Column

pytest_plugins = ["_augmented_tokenizer"]


def test_the_other_side_of_a_pair_stays(tokenizer):
    pool = pool_of(tokenizer, {"text": ["the ball"], "second": ["a song"], "other": ["new tune"]})
    view = fitted(Column(column="other", replaces="second"), pool)(pool.features[0], 0, Scripted())
    assert words(tokenizer, view) == ["[CLS]", "the", "ball", "[SEP]", "new", "tune", "[SEP]"]
