"""Token ids of many texts, and what is kept of them."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_llm_recipes.tasks import _tokens

TEXTS = ["the ball and the team", "", "a goal", "salt and pepper", "ball"]


@pytest.fixture
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path))
    monkeypatch.setattr(_tokens, "CACHED_FROM", 10)
    return tmp_path / "tokens"


def ids(made):
    assert all(row.dtype == np.int32 for row in made)
    return [row.tolist() for row in made]


@pytest.mark.parametrize("special", [True, False])
def test_they_are_the_tokenizers(tokenizer, special):
    found = ids(_tokens.tokenize(TEXTS, tokenizer, "text", special=special))
    assert found == [tokenizer(text, add_special_tokens=special)["input_ids"] for text in TEXTS]
    assert _tokens.tokenize([], tokenizer, "text") == []


def test_a_large_corpus_is_read_the_second_time(tokenizer, kept, monkeypatch):
    first = ids(_tokens.tokenize(TEXTS, tokenizer, "text"))
    assert len(list(kept.iterdir())) == 1
    monkeypatch.setattr(_tokens, "_tokenized", lambda *_, **__: pytest.fail("tokenised again"))
    assert ids(_tokens.tokenize(TEXTS, tokenizer, "another split")) == first


def test_other_texts_another_tokenizer_or_no_special_tokens_are_another_corpus(tokenizer, kept, tmp_path):
    _tokens.tokenize(TEXTS, tokenizer, "text")
    assert ids(_tokens.tokenize(TEXTS, tokenizer, "text", special=False))[3] != []
    _tokens.tokenize([*TEXTS[1:], TEXTS[0]], tokenizer, "text")
    _tokens.tokenize(["the ball and the", "team", *TEXTS[1:]], tokenizer, "text")
    tokenizer.add_tokens(["pepper"])
    found = ids(_tokens.tokenize(TEXTS, tokenizer, "text"))
    assert found[3] == tokenizer(TEXTS[3])["input_ids"]
    assert len(list(kept.iterdir())) == 5


def test_a_torn_file_is_made_again(tokenizer, kept):
    first = ids(_tokens.tokenize(TEXTS, tokenizer, "text"))
    (path,) = kept.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert ids(_tokens.tokenize(TEXTS, tokenizer, "text")) == first
    assert ids(_tokens.tokenize(TEXTS, tokenizer, "text")) == first
    assert [path.suffix for path in kept.iterdir()] == [".npz"]


def test_a_small_one_leaves_nothing_behind(tokenizer, kept, monkeypatch):
    monkeypatch.setattr(_tokens, "CACHED_FROM", 1000)
    _tokens.tokenize(TEXTS, tokenizer, "text")
    assert not kept.exists()
