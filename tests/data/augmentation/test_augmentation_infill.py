"""Infill at a temperature, and what it leaves as it was."""

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from scipy.stats import binom
from transformers import BertConfig, BertForMaskedLM

from hf_llm_recipes.data.augmentation.base import Pool
from hf_llm_recipes.data.augmentation.infill import Infill
from hf_llm_recipes.errors import RunError

BALL, TEAM = 15, 16  # [PAD] [UNK] [CLS] [SEP] [MASK], ten fillers, ball, team


@pytest.fixture(scope="module")
def three_to_one(tmp_path_factory):
    """A tokenizer, and a folder whose model gives "ball" the probability .75 and "team" .25."""
    folder = tmp_path_factory.mktemp("mlm")
    tokenizer = make_tokenizer(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes))
    bias = torch.full((len(tokenizer),), -1000.0)
    bias[BALL], bias[TEAM] = np.log(0.75), np.log(0.25)
    with torch.no_grad():
        model.cls.predictions.transform.LayerNorm.weight.zero_()  # the bias alone decides
        model.cls.predictions.bias.copy_(bias)
    model.save_pretrained(folder)
    return tokenizer, str(folder)


def pool_of(tokenizer, text, rows):
    features = Dataset.from_list([dict(tokenizer(text))] * rows)
    return Pool(features, None, tokenizer, encode=None, seed=3)


@pytest.mark.parametrize(
    ("temperature", "share"),
    # p^(1/T): .75² : .25² = 9 : 1;  .75 : .25;  √.75 : √.25
    [(0.5, 0.9), (1.0, 0.75), (2.0, 0.75**0.5 / (0.75**0.5 + 0.5))],
)
def test_temperature(temperature, share, three_to_one):
    tokenizer, folder = three_to_one
    pool = pool_of(tokenizer, "the a and was in of very new", 300)
    view = Infill(model=folder, rate=0.4, variants=1, temperature=temperature)
    view.fit(pool)
    drawn = np.concatenate(
        [view(row, i, np.random.default_rng(0))["input_ids"] for i, row in enumerate(pool.features)]
    )
    drawn = drawn[drawn >= BALL].tolist()
    assert set(drawn) == {BALL, TEAM}
    low, high = binom.interval(1 - 1e-6, len(drawn), share)
    assert low <= drawn.count(BALL) <= high
    low, high = binom.interval(1 - 1e-6, 300 * 8, 0.4)
    assert low <= len(drawn) <= high


def test_the_global_random_state_and_the_row_stay_as_they_were(three_to_one):
    tokenizer, folder = three_to_one
    pool = pool_of(tokenizer, "the a and was", 4)
    row, before = pool.features[0], pool.features[0]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    view = Infill(model=folder)
    view.fit(pool)
    view(row, 0, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert row == before


def test_views_fitted_twice_are_the_same(three_to_one):
    tokenizer, folder = three_to_one
    pool = pool_of(tokenizer, "the a and was in of", 20)
    made = []
    for _ in range(2):
        view = Infill(model=folder, rate=0.5, variants=3)
        view.fit(pool)
        made.append([view(row, i, np.random.default_rng(i)) for i, row in enumerate(pool.features)])
    assert made[0] == made[1]
    assert all(len(row["input_ids"]) == 8 for row in made[0])


def test_a_checkpoint_without_the_head_is_told_what_needs_none(three_to_one, tiny_bert):
    tokenizer, _ = three_to_one
    with pytest.raises(RunError, match="no masked-LM head") as raised:
        Infill(model=str(tiny_bert)).fit(pool_of(tokenizer, "the band", 2))
    assert raised.value.allowed.startswith("substitute, tfidf_substitute, mask, cutoff")


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_temperature_out_of_range(value):
    with pytest.raises(ValueError, match=rf"^temperature is {value}; allowed: more than 0$"):
        Infill(model="any", temperature=value)
