"""What holds for every text augmentation, by name, those that fit on a model or a column included."""

import copy
import pickle

import numpy as np
import pytest
import torch
from _augmented import pool_of
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from hf_llm_recipes.registry import AUGMENTATIONS

pytest_plugins = ["_augmented_tokenizer"]

TEXT = ["column", "cutoff", "delete", "infill", "mask", "substitute", "swap", "tfidf_substitute"]
FIRST, SECOND = "the ball was in the old oven", "a new song and a very good drum"


@pytest.fixture(scope="module")
def mlm(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("mlm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(mlm):
    """Name, and a rate where there is one -> a new augmentation."""

    def make(name, **rate):
        required = {"infill": {"model": mlm, "variants": 4}, "column": {"column": "other"}}
        return AUGMENTATIONS.get(name)(**required.get(name, {}), **(rate if name != "column" else {}))

    return make


def pair_pool(tokenizer):
    columns = {"text": [FIRST] * 4, "second": [SECOND] * 4, "other": ["the goal"] * 4}
    return pool_of(tokenizer, columns)


@pytest.mark.parametrize("name", TEXT)
def test_a_text_view(tokenizer, make, name):
    pool, view = pair_pool(tokenizer), make(name)
    view.fit(pool)
    row = pool.features[1]
    before = copy.deepcopy(row)
    arrays = {key: np.asarray(value) for key, value in row.items()}
    other_process = pickle.loads(pickle.dumps(view))
    for seed in range(20):
        made = view(row, 1, np.random.default_rng(seed))
        assert row == before, "the row was changed in place"
        assert made.keys() == row.keys()
        assert made is not row
        assert len({len(values) for values in made.values()}) == 1
        assert made == view(row, 1, np.random.default_rng(seed))
        assert made == other_process(row, 1, np.random.default_rng(seed))
        of_arrays = view(arrays, 1, np.random.default_rng(seed))
        assert {key: list(values) for key, values in of_arrays.items()} == made
    assert all(np.array_equal(arrays[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in TEXT if name != "column"])
def test_special_tokens_and_one_segment_stay(tokenizer, make, name):
    pool, view = pair_pool(tokenizer), make(name, rate=0.6)
    view.fit(pool)
    row = pool.features[0]
    first_side, second_side = row["input_ids"][1:8], row["input_ids"][9:17]
    random, changed = np.random.default_rng(0), set()
    for use in range(60):
        made = view(row, use % len(pool.features), random)
        ids, attended = made["input_ids"], made["attention_mask"]
        middle = ids.index(tokenizer.sep_token_id)
        assert [ids[0], ids[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
        assert ids.count(tokenizer.sep_token_id) == 2
        assert [attended[0], attended[middle], attended[-1]] == [1, 1, 1]
        sides = (
            ids[1:middle] != first_side or 0 in attended[:middle],
            ids[middle + 1 : -1] != second_side or 0 in attended[middle:],
        )
        assert sides != (True, True)
        changed.add(sides)
    assert {(True, False), (False, True)} <= changed


@pytest.mark.parametrize("name", [name for name in TEXT if name != "column"])
def test_one_word_is_left_alone(tokenizer, make, name):
    pool, view = pool_of(tokenizer, {"text": ["ball", "the song"]}), make(name, rate=0.99)
    view.fit(pool)
    random = np.random.default_rng(0)
    for _ in range(20):
        assert view(pool.features[0], 0, random) == pool.features[0]


@pytest.mark.parametrize("name", TEXT)
def test_empty_rows_pass(tokenizer, make, name):
    pool = pool_of(tokenizer, {"text": ["", "the song"], "other": ["", "a tune"]})
    view = make(name)
    view.fit(pool)
    assert view(pool.features[0], 0, np.random.default_rng(0)) == pool.features[0]
