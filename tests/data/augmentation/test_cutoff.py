import numpy as np
import pytest
from _augmented import Scripted, fitted, pool_of

from hf_llm_recipes.data.augmentation.cutoff import Cutoff

pytest_plugins = ["_augmented_tokenizer"]

TEN = "the a and was in of very new old good"


@pytest.mark.parametrize(
    "text,rate,start,hidden",
    [
        (TEN, 0.1, 0, [1]),
        (TEN, 0.3, 7, [8, 9, 10]),
        (TEN, 0.99, 1, [2, 3, 4, 5, 6, 7, 8, 9, 10]),  # never all ten
        ("the a", 0.1, 1, [2]),  # at least one
        ("the xyz team ball", 0.5, 0, [1, 2]),  # an unknown word in the span is hidden with it
    ],
)
def test_a_span_is_hidden(tokenizer, text, rate, start, hidden):
    pool = pool_of(tokenizer, {"text": [text]})
    row = pool.features[0]
    view = fitted(Cutoff(rate=rate), pool)(row, 0, Scripted(integers=[start]))
    assert [i for i, seen in enumerate(view["attention_mask"]) if not seen] == hidden
    assert view["input_ids"] == row["input_ids"]


def test_every_place_can_be_the_first_of_a_whole_span(tokenizer):
    pool = pool_of(tokenizer, {"text": [TEN]})
    view, random = fitted(Cutoff(rate=0.3), pool), np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        hidden = np.flatnonzero(np.asarray(view(pool.features[0], 0, random)["attention_mask"]) == 0)
        assert hidden.tolist() == [hidden[0], hidden[0] + 1, hidden[0] + 2]
        seen.add(int(hidden[0]))
    assert seen == set(range(1, 9))


def test_a_row_without_a_mask_gets_one(tokenizer):
    view = fitted(Cutoff(rate=0.5), pool_of(tokenizer, {"text": [TEN]}))
    row = {"input_ids": tokenizer("the ball").input_ids}
    assert view(row, 0, Scripted(integers=[0]))["attention_mask"] == [1, 0, 1, 1]
