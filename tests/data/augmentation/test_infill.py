"""Infill by models whose distribution is set by hand: the head's bias alone decides."""

import numpy as np
import pytest
import torch
from _augmented import Scripted, fitted, pool_of, words
from scipy import stats
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from hf_llm_recipes.data.augmentation.infill import Infill, _batches
from hf_llm_recipes.errors import DataError, RunError

pytest_plugins = ["_augmented_tokenizer"]

TEXTS = ["the a and was in of very new old good", "the a", "the a and was in of"] * 40


def masked_lm(folder, tokenizer, positions=32):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer) + 7,  # rows of the embedding that no token has
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    model = BertForMaskedLM(config)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture
def by_bias(tmp_path, tokenizer):
    """Draws ``ball`` with probability .75 and ``team`` with .25; its favourite is ``[SEP]``."""
    model = masked_lm(tmp_path, tokenizer)
    torch.nn.init.zeros_(model.cls.predictions.transform.LayerNorm.weight)
    bias = torch.full((len(tokenizer) + 7,), -100.0)
    ball, team = tokenizer.convert_tokens_to_ids(["ball", "team"])
    bias[ball], bias[team] = np.log(0.75), np.log(0.25)
    bias[tokenizer.sep_token_id] = bias[tokenizer.unk_token_id] = bias[-1] = 50.0
    model.cls.predictions.bias.data = bias
    model.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def by_context(tmp_path, tokenizer):
    """Random weights: what is drawn depends on all tokens that are attended to."""
    masked_lm(tmp_path, tokenizer).save_pretrained(tmp_path)
    return str(tmp_path)


def all_views(view, pool):
    return [
        [view(pool.features[i], i, Scripted(integers=[v]))["input_ids"] for i in range(len(pool.features))]
        for v in range(view.variants)
    ]


def test_masked_tokens_follow_the_model(tokenizer, by_bias):
    pool = pool_of(tokenizer, {"text": TEXTS})
    view = fitted(Infill(model=by_bias, rate=0.3, variants=2), pool)
    before = np.concatenate(pool.features["input_ids"][:])
    drawn = []
    for variant in all_views(view, pool):
        after = np.concatenate(variant)
        drawn += tokenizer.convert_ids_to_tokens(after[after != before])
    assert set(drawn) == {"ball", "team"}
    low, high = stats.binom.ppf([0.0005, 0.9995], len(drawn), 0.75)
    assert low <= drawn.count("ball") <= high
    # Of two words at most one is masked: 2 · .3 · .7 + .3² tokens of such a row.
    expected = 2 * 40 * (16 * 0.3 + 2 * 0.3 * 0.7 + 0.3**2)
    assert abs(len(drawn) - expected) < 4 * np.sqrt(expected)


def test_a_use_takes_one_of_the_variants(tokenizer, by_bias):
    pool = pool_of(tokenizer, {"text": TEXTS})
    view = fitted(Infill(model=by_bias, rate=0.5, variants=3), pool)
    variants = [views[0] for views in all_views(view, pool)]
    assert len({tuple(ids) for ids in variants}) == 3
    random = np.random.default_rng(0)
    uses = [variants.index(view(pool.features[0], 0, random)["input_ids"]) for _ in range(600)]
    assert stats.chisquare(np.bincount(uses, minlength=3)).pvalue > 1e-3


def test_a_row_is_filled_alike_whatever_rows_stand_beside_it(tokenizer, by_context, monkeypatch):
    pool = pool_of(tokenizer, {"text": TEXTS[:12]}, seed=4)
    together = all_views(fitted(Infill(model=by_context, rate=0.4), pool), pool)
    monkeypatch.setattr("hf_llm_recipes.data.augmentation.infill.TOKENS_AT_ONCE", 1)
    assert all_views(fitted(Infill(model=by_context, rate=0.4), pool), pool) == together
    pool.seed = 5
    assert all_views(fitted(Infill(model=by_context, rate=0.4), pool), pool) != together


def test_the_model_sees_the_mask_and_the_other_words(tokenizer, by_context):
    """The distribution of one masked word, from the model itself, against many draws."""
    pool = pool_of(tokenizer, {"text": ["the ball"] * 1500})
    view = fitted(Infill(model=by_context, rate=0.3, variants=1), pool)
    after = np.asarray(all_views(view, pool)[0])
    ids = torch.tensor([[2, tokenizer.mask_token_id, after[0, 2], 3]])
    ids[0, 2] = tokenizer.convert_tokens_to_ids("ball")
    with torch.no_grad():
        logits = BertForMaskedLM.from_pretrained(by_context).eval()(input_ids=ids).logits[0, 1]
    shares = torch.softmax(logits[5 : len(tokenizer)].double(), -1).numpy()  # ids 0 to 4 are special
    drawn = after[(after[:, 1] != 5) & (after[:, 2] == ids[0, 2].item()), 1] - 5
    likely = shares[1:] / shares[1:].sum()  # draws that give ``the`` back do not show
    expected = likely * len(drawn)
    many = expected > 5
    counts = np.bincount(drawn - 1, minlength=len(likely))
    observed = [*counts[many], counts[~many].sum()]
    assert stats.chisquare(observed, [*expected[many], expected[~many].sum()]).pvalue > 1e-3


def test_one_side_of_a_pair_is_filled(tokenizer, by_bias):
    pool = pool_of(tokenizer, {"text": ["the a and was"] * 30, "second": ["in of very new"] * 30})
    for variant in all_views(fitted(Infill(model=by_bias, rate=0.9), pool), pool):
        for after, before in zip(variant, pool.features["input_ids"], strict=True):
            sides = {i < 5 for i, (a, b) in enumerate(zip(after, before, strict=True)) if a != b}
            assert len(sides) <= 1


def test_rows_with_nothing_masked_stay(tokenizer, by_bias):
    pool = pool_of(tokenizer, {"text": ["the", ""]})
    view = fitted(Infill(model=by_bias, variants=1), pool)
    assert [words(tokenizer, view(pool.features[i], i, Scripted(integers=[0]))) for i in (0, 1)] == [
        ["[CLS]", "the", "[SEP]"],
        ["[CLS]", "[SEP]"],
    ]


def test_batches_hold_all_rows_and_few_tokens():
    batches = _batches(np.array([3, 500, 400, 2000, 3]))
    assert [batch.tolist() for batch in batches] == [[3], [1, 2], [0, 4]]


def test_a_checkpoint_without_the_head_is_refused(tokenizer, tiny_bert):
    with pytest.raises(RunError, match=r"no masked-LM head: `cls.predictions"):
        Infill(model=str(tiny_bert)).fit(pool_of(tokenizer, {"text": ["the ball"]}))


def test_an_architecture_without_the_head_is_refused(tokenizer, tiny_llama):
    with pytest.raises(RunError, match=r"the masked language model of .* cannot be loaded"):
        Infill(model=str(tiny_llama)).fit(pool_of(tokenizer, {"text": ["the ball"]}))


def test_another_vocabulary_is_refused(tokenizer, by_bias):
    own = AutoTokenizer.from_pretrained(by_bias)
    own.add_tokens(["racket"])
    with pytest.raises(DataError, match=r"another vocabulary .* 33 tokens, not the same 34"):
        Infill(model=by_bias).fit(pool_of(own, {"text": ["the ball"]}))


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer, by_bias):
    tokenizer.mask_token = None
    with pytest.raises(DataError, match="no mask token, which infill needs"):
        Infill(model=by_bias).fit(pool_of(tokenizer, {"text": ["the ball"]}))


def test_rows_too_long_for_the_model_are_refused(tmp_path, tokenizer):
    masked_lm(tmp_path, tokenizer, positions=8).save_pretrained(tmp_path)
    with pytest.raises(RunError, match="takes 8 tokens, but the longest row of the pool has 12") as error:
        Infill(model=str(tmp_path)).fit(pool_of(tokenizer, {"text": TEXTS[:3]}))
    assert error.value.hint == "set `task.max_length: 8`"


def test_a_broken_file_is_refused(tokenizer, by_bias, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunError, match=r"the masked language model of .* cannot be loaded"):
        Infill(model=by_bias).fit(pool_of(tokenizer, {"text": ["the ball"]}))


@pytest.mark.parametrize(
    "values,message",
    [({"rate": 1.0}, "rate is 1.0"), ({"variants": 0}, "variants is 0; allowed: 1 or more")],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Infill(model="any", **values)
