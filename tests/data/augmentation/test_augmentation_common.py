"""Which tokens may change, drawn with which weights."""

from types import SimpleNamespace

import numpy as np
import pytest
from _augmented import Scripted, pool_of

from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.errors import DataError

pytest_plugins = ["_augmented_tokenizer"]


@pytest.fixture
def vocabulary(tokenizer):
    return _common.Vocabulary(tokenizer)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_out_of_range_is_named(rate):
    with pytest.raises(ValueError, match=r"share is .*; allowed: more than 0, less than 1"):
        _common.check_rate("share", rate)


def test_words_may_change_and_special_tokens_not(tokenizer, vocabulary):
    row = tokenizer("the ball xyz team [MASK] goal", padding="max_length", max_length=10)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [
        *("[CLS]", "the", "ball", "[UNK]", "team", "[MASK]", "goal", "[SEP]", "[PAD]", "[PAD]")
    ]
    assert vocabulary.changeable(dict(row), Scripted()).tolist() == [1, 2, 3, 4, 6]


def test_an_unknown_word_parts_no_segments(tokenizer, vocabulary):
    row = dict(tokenizer("the xyz ball"))
    del row["token_type_ids"]
    assert vocabulary.changeable(row, Scripted()).tolist() == [1, 2, 3]


def test_a_word_that_is_hidden_already_stays(tokenizer, vocabulary):
    row = {**tokenizer("the ball team"), "attention_mask": [1, 1, 0, 1, 1]}
    assert vocabulary.changeable(row, Scripted()).tolist() == [1, 3]


def test_without_a_mask_all_is_attended_to(tokenizer, vocabulary):
    row = {"input_ids": tokenizer("the ball").input_ids}
    assert vocabulary.changeable(row, Scripted()).tolist() == [1, 2]


@pytest.mark.parametrize("types", [True, False])
@pytest.mark.parametrize("segment,places", [(0, [1, 2]), (1, [4, 5, 6])])
def test_one_segment_of_a_pair_changes(tokenizer, vocabulary, types, segment, places):
    row = dict(tokenizer("the ball", "a new song"))  # [CLS] the ball [SEP] a new song [SEP]
    if not types:
        del row["token_type_ids"]
    assert vocabulary.changeable(row, Scripted(integers=[segment])).tolist() == places


def test_a_pair_with_one_empty_side_is_one_segment(tokenizer, vocabulary):
    assert vocabulary.changeable(dict(tokenizer("", "a new song")), Scripted()).tolist() == [2, 3, 4]


def test_a_row_of_no_words_has_no_places(tokenizer, vocabulary):
    assert vocabulary.changeable(dict(tokenizer("")), Scripted()).tolist() == []


def test_an_unknown_token_that_is_also_the_end_token_stays():
    roles = {f"{role}_token_id": None for role in ("sep", "cls", "bos", "pad", "mask")}
    gpt = SimpleNamespace(
        **roles, unk_token_id=0, eos_token_id=0, all_special_ids=[0], get_vocab=lambda: {"end": 0, "a": 7}
    )
    row = {"input_ids": [7, 7, 0], "attention_mask": [1, 1, 1]}
    assert _common.Vocabulary(gpt).changeable(row, Scripted()).tolist() == [0, 1]


def test_some_take_each_place_by_its_chance():
    places = np.array([3, 5, 8])
    assert _common.some(places, 0.5, Scripted([0.4, 0.5, 0.1])).tolist() == [3, 8]
    assert _common.some(places, np.array([0.1, 0.9, 0.0]), Scripted([0.4, 0.5, 0.0])).tolist() == [5]


def test_some_are_never_all():
    assert _common.some(np.array([3, 5, 8]), 0.5, Scripted([0.0, 0.0, 0.0], [1])).tolist() == [3, 8]
    assert _common.some(np.array([3]), 0.5, Scripted([0.0], [0])).tolist() == []
    assert _common.some(np.array([], dtype=int), 0.5, Scripted()).tolist() == []


def test_counts_are_of_words(tokenizer, vocabulary):
    pool = pool_of(tokenizer, {"text": ["the ball the", "xyz ball the team"]})
    tokens, counts = vocabulary.counts(pool)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["the", "ball", "team"]
    assert counts.tolist() == [3, 2, 1]


def test_a_pool_without_words_is_refused(tokenizer, vocabulary):
    with pytest.raises(DataError, match="no word to draw from"):
        vocabulary.counts(pool_of(tokenizer, {"text": ["", "xyz"]}))


def test_the_sampler_cuts_the_unit_interval_by_the_weights():
    draw = _common.Sampler(np.array([10, 20, 30, 40]), np.array([1, 0, 3, 0]))
    nearly_one = np.nextafter(1.0, 0.0)
    assert draw(4, Scripted([0.0, 0.2499, 0.25, nearly_one])).tolist() == [10, 10, 30, 30]


def test_lists_stay_lists_and_arrays_stay_arrays():
    row = {"input_ids": [1, 2], "attention_mask": np.array([1, 1])}
    assert _common.changed(row, "input_ids", np.array([5, 6]))["input_ids"] == [5, 6]
    assert isinstance(_common.changed(row, "attention_mask", np.array([0, 1]))["attention_mask"], np.ndarray)
    assert row["input_ids"] == [1, 2]
