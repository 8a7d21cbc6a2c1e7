"""Words and subwords: planted losses and shifts, and clean rows of which nothing is said."""

from _planted import found, jsonl, recipe_of, report_of, said
from transformers import AutoTokenizer

from hf_llm_recipes.checking.words import aligned, lost_words, split_much

COUNTS = {"words": 1000, "words_unknown": 0, "words_cut": 0, "tokens": 1220, "rows": 10}


def test_words_that_are_nothing_to_the_tokenizer():
    (finding,) = lost_words({**COUNTS, "words_unknown": 5}, "train split")
    assert finding.level == "warning"
    assert finding.what.startswith("5 of 1,000 words (0.5 %) are nothing to the tokenizer")
    assert not lost_words(COUNTS, "train split")


def test_words_that_fall_to_pieces():
    (finding,) = split_much({**COUNTS, "tokens": 5020}, "train split")
    assert "a word is 5.0 subwords on average" in finding.what
    assert not split_much(COUNTS, "train split")


def test_a_tag_at_another_word(tiny_bert):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    words = ["the", "ball", "was"]
    ids = tokenizer(words, is_split_into_words=True)["input_ids"]
    assert aligned(words, ids, [-100, 0, 1, 0, -100], tokenizer)
    assert aligned(words, ids, [-100, 0, 1, -100, -100], tokenizer)  # the last one was cut
    assert not aligned(words, ids, [-100, -100, 0, 1, -100], tokenizer)
    assert not aligned(words[:2], ids, [-100, 0, 1, 0, -100], tokenizer)


def tagged(tiny_bert, tmp_path, words, **task):
    rows = [{"tokens": list(words), "label": ["O", *["B-x"] * (len(words) - 1)]} for _ in range(8)]
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "train": "train[:4]", "test": "train[4:]"}
    values = recipe_of(tiny_bert, {**data, "eval_fraction": 0}, {"name": "token_classification", **task})
    return report_of(values, tmp_path)


def test_in_a_recipe(tiny_bert, tmp_path):
    assert not found(tagged(tiny_bert, tmp_path, ["the", "ball"]), "words")
    report = tagged(tiny_bert, tmp_path, ["the", " ", "ball"])
    assert "4 of 12 words (33.3 %) are nothing to the tokenizer" in said(report, "words")
    report = tagged(tiny_bert, tmp_path, ["the", "ball", "was", "new"], max_length=5)
    assert "4 of 16 labeled words, are not seen" in said(report, "lengths")
    assert report.splits["train"]["supervised_tokens_cut"] == 4
