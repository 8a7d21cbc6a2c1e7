import argparse
import hashlib
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hf_llm_recipes.data import tokenizer_training as training
from hf_llm_recipes.data.tokenizer_training import TokenizerTraining, special_tokens, train_tokenizer
from hf_llm_recipes.errors import DataError

TEXTS = [
    "def low(x):\n    return lower(x)\n",
    "the lower the slower, the lowest the slowest",
    "low lower lowest slow slower slowest",
    "héllo wörld, 日本語 and 🙂",
] * 4
KINDS = ("bpe", "wordpiece", "unigram")


@pytest.fixture(scope="module")
def tokenizers():
    sizes = {"bpe": 400, "wordpiece": 160, "unigram": 400}
    return {
        kind: train_tokenizer(TEXTS, TokenizerTraining(train=kind, vocab_size=sizes[kind], use="encoder"))
        for kind in KINDS
    }


def files(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_bpe_merges_the_most_frequent_pair_first():
    # "ab" is there four times; then "abc" three times, "ca" twice, the rest once.
    made = train_tokenizer(["abcabcabc ab xy"], TokenizerTraining(train="bpe", vocab_size=261, use="decoder"))
    assert len(made) == 261
    assert made.convert_ids_to_tokens(range(3)) == ["<|pad|>", "<|bos|>", "<|eos|>"]
    assert made.convert_ids_to_tokens([259, 260]) == ["ab", "abc"]
    assert made.tokenize("abcab xy") == ["abc", "ab", "Ġ", "x", "y"]


def test_wordpiece_has_continuations_and_an_unknown_token():
    # Letters a, b, c: three at the start of a word, three inside; then the pair of the most words.
    made = train_tokenizer(
        ["ab ab ab ac"], TokenizerTraining(train="wordpiece", vocab_size=12, use="encoder")
    )
    assert sorted(set(made.get_vocab()) - set(special_tokens("encoder", "wordpiece"))) == [
        "##a", "##b", "##c", "a", "ab", "b", "c"
    ]  # fmt: skip
    assert made.tokenize("ab aba zb") == ["ab", "ab", "##a", "[UNK]"]
    assert made.decode(made("ab aba")["input_ids"], skip_special_tokens=True) == "ab aba"


def test_unigram_scores_are_the_expected_counts_worked_by_hand():
    # "ab" with pieces a, b, ab of equal scores 1/3: the path ab has 1/3, the path a+b 1/9.
    found = dict(
        training._expected("ab", {"a": math.log(1 / 3), "b": math.log(1 / 3), "ab": math.log(1 / 3)})
    )
    assert found == {"a": pytest.approx(0.25), "b": pytest.approx(0.25), "ab": pytest.approx(0.75)}
    # At the fixed point "ab" is always one piece and the second word, "a", the other: shares 3/4 and 1/4.
    scores = training._estimated({"a", "b", "ab"}, Counter({"ab": 3, "a": 1}))
    assert math.exp(scores["ab"]) == pytest.approx(3 / 4, abs=0.02)
    assert math.exp(scores["a"]) == pytest.approx(1 / 4, abs=0.02)
    assert scores["b"] < math.log(0.02)


def test_long_words_do_not_underflow():
    shares = training._expected("a" * 3000, {"a": -1.0, "aa": -900.0})
    assert sum(share for piece, share in shares if piece == "a") == pytest.approx(3000)


def test_source_code_becomes_few_tokens():
    code = Path(argparse.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    made = {
        kind: train_tokenizer(code, TokenizerTraining(train=kind, vocab_size=1000, use="decoder"))
        for kind in ("bpe", "unigram")
    }
    lengths = {kind: sum(map(len, each(code)["input_ids"])) for kind, each in made.items()}
    assert [len(each) for each in made.values()] == [1000, 1000]
    # `tokenizers` counts each word once when it looks for Unigram's pieces: a fifth more tokens than BPE.
    assert lengths["bpe"] < lengths["unigram"] < 1.3 * lengths["bpe"] < 0.45 * sum(map(len, code))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_files(kind, tmp_path):
    made = [
        train_tokenizer(TEXTS, TokenizerTraining(train=kind, vocab_size=380, use="encoder")) for _ in range(3)
    ]
    first, *others = [files(each, tmp_path / str(number)) for number, each in enumerate(made)]
    assert len(first) >= 2
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_loaded_by_its_folder(kind, tokenizers, tmp_path):
    tokenizer = tokenizers[kind]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "unseen 语 \x00 words"]:
        assert again(text, text)["input_ids"] == tokenizer(text, text)["input_ids"]
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert len(again) == len(tokenizer)


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=150)
def test_byte_level_tokenizers_give_every_text_back(tokenizers, text):
    text = text.encode("utf-8", "ignore").decode()  # no lone surrogates
    for kind in ("bpe", "unigram"):
        ids = tokenizers[kind](text, add_special_tokens=False)["input_ids"]
        assert tokenizers[kind].decode(ids) == text


def test_byte_level_tokenizers_know_every_byte(tokenizers):
    text = "".join(map(chr, range(1, 0x800))) + "\U0001f642\U0010ffff"
    for kind in ("bpe", "unigram"):
        assert tokenizers[kind].unk_token_id not in tokenizers[kind](text)["input_ids"]
    assert tokenizers["wordpiece"].unk_token_id in tokenizers["wordpiece"](text)["input_ids"]


def test_an_encoder_frames_texts_and_pairs(tokenizers):
    for kind in KINDS:
        made = tokenizers[kind]
        assert made.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        encoded = made("low", "slow")
        tokens = made.convert_ids_to_tokens(encoded["input_ids"])
        assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
        assert encoded["token_type_ids"][0] == 0
        assert encoded["token_type_ids"][-1] == 1
        assert made.pad_token_id == 0


def test_a_decoder_begins_with_its_begin_token():
    for kind in KINDS:
        made = train_tokenizer(TEXTS, TokenizerTraining(train=kind, vocab_size=300), use="decoder")
        encoded = made("low")
        assert "token_type_ids" not in encoded
        assert encoded["input_ids"][0] == made.bos_token_id == 1
        assert made.eos_token_id == 2
        assert (made.unk_token is None) == (kind != "wordpiece")


def test_an_encoder_decoder_has_an_end_and_a_hundred_sentinels():
    made = train_tokenizer(TEXTS, TokenizerTraining(train="bpe", vocab_size=400, use="encoder_decoder"))
    assert made("low")["input_ids"][-1] == made.eos_token_id == 1
    ids = made.convert_tokens_to_ids([f"<extra_id_{number}>" for number in range(100)])
    assert ids == list(range(2, 102))
    assert set(ids) <= set(made.all_special_ids)
    assert made("a <extra_id_7>b", add_special_tokens=False)["input_ids"].count(ids[7]) == 1
    assert made.decode(ids, skip_special_tokens=True) == ""


def test_case_does_not_count_when_asked():
    made = train_tokenizer(
        TEXTS, TokenizerTraining(train="wordpiece", vocab_size=200, use="encoder", lowercase=True)
    )
    assert made.tokenize("LOWER") == made.tokenize("lower") == ["lower"]
    assert made.tokenize("hÉllo") == made.tokenize("héllo") != ["[UNK]"]


def test_a_text_gives_no_more_tokens_than_it_has():
    made = train_tokenizer(["ab ab"], TokenizerTraining(train="bpe", vocab_size=8000, use="decoder"))
    assert len(made) == 3 + 256 + 1  # `ab` is there twice; the space with it once, below min_frequency


@pytest.mark.parametrize(
    ("kind", "texts", "size", "message"),
    [
        ("bpe", [], 400, "none of 0 rows has text"),
        ("unigram", ["", " \n"], 400, "none of 2 rows has text"),
        ("bpe", ["a", None], 400, "row 1 is None, not text"),
        ("bpe", ["a"], 258, r"vocab_size is 258\n  allowed: 259 or more: 256 bytes and 3 special tokens"),
        ("unigram", ["a"], 258, "259 or more"),
        ("wordpiece", ["abc"], 9, "10 or more: 3 characters, as many inside words, and 4 special tokens"),
    ],
)
def test_what_cannot_be_trained_is_refused(kind, texts, size, message):
    with pytest.raises(DataError, match=message):
        train_tokenizer(texts, TokenizerTraining(train=kind, vocab_size=size, use="decoder"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": "bpe", "vocab_size": 0}, "vocab_size is 0"),
        ({"train": "bpe", "min_frequency": 0}, "min_frequency is 0"),
        ({"train": "bpe", "lowercase": True}, "lowercase has no effect with train: bpe"),
        ({"train": "unigram", "min_frequency": 3}, "min_frequency has no effect"),
    ],
)
def test_keys_without_effect_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TokenizerTraining(**given)
    with pytest.raises(ValueError, match="use is missing"):
        train_tokenizer(["a"], TokenizerTraining(train="bpe"))
