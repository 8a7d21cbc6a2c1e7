"""Scores of written texts: worked by hand, and against the published formulas written out again."""

import math

import pytest

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.text_evaluation import character_counts, chrf, rouge_l, scores


def test_runs_of_characters_are_counted_without_white_space():
    # "ab c" -> a b c ab bc abc; "abd" -> a b d ab bd abd
    assert character_counts("ab c", "abd") == [3, 3, 2, 2, 2, 1, 1, 1, 0, *[0] * 9]


def test_chrf_by_hand():
    # orders 1 to 3: precision and recall (2/3 + 1/2 + 0) / 3 = 7/18; alike, so F is the same
    assert chrf(character_counts("ab c", "abd")) == pytest.approx(7 / 18)
    # "ab" for "abcd": precision (1 + 1) / 2, recall (1/2 + 1/3) / 2 = 5/12 over the orders both have
    precision, recall = 1.0, 5 / 12
    assert chrf(character_counts("ab", "abcd")) == pytest.approx(
        5 * precision * recall / (4 * precision + recall)
    )
    assert chrf(character_counts("abcdefgh", "abcdefgh")) == 1.0
    assert chrf(character_counts("", "abc")) == chrf(character_counts("x", "y")) == 0.0


@pytest.mark.parametrize(
    ("written", "wanted", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("police killed the gunman", "the gunman killed police", 2 * 2 / 8),  # the gunman
        ("The cat, sat!", "the cat", 2 * 2 / 5),
        ("我爱北京", "我在北京", 3 / 4),
        ("", "", 1.0),
        ("", "a", 0.0),
    ],
)
def test_rouge_l_by_hand(written, wanted, score):
    assert rouge_l(written, wanted) == pytest.approx(score)


def test_all_scores_of_a_set():
    written, wanted = ["a  b", "the cat sat", "x"], ["a b", "the cat", "y"]
    found = scores(written, wanted, losses_N=[2.0, 3.0, 1.0], tokens_N=[4, 4, 2], bootstrap=100)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["rouge_l"] == pytest.approx((1 + 4 / 5 + 0) / 3)
    assert found["loss"] == pytest.approx(0.6)
    total = [
        sum(c) for c in zip(*(character_counts(*p) for p in zip(written, wanted, strict=True)), strict=True)
    ]
    assert found["chrf"] == pytest.approx(chrf(total))
    assert list(found["intervals_95"]) == ["chrf", "rouge_l", "exact_match", "loss"]
    assert all(low <= found[name] <= high for name, (low, high) in found["intervals_95"].items())
    alone = scores(["a"], ["a"])
    assert (alone["notes"], alone["intervals_95"]) == (["one row: no interval can be given"], {})
    assert "loss" not in alone
    assert not any(math.isnan(value) for value in alone.values() if isinstance(value, float))


def test_against_sacrebleu():
    import sacrebleu

    written = ["The cat sat on a mat.", "A quick brown fox", "nothing"]
    wanted = ["the cat is on the mat.", "The quick brown fox jumps", "everything else"]
    theirs = sacrebleu.corpus_chrf(written, [wanted]).score
    assert scores(written, wanted, bootstrap=0)["chrf"] == pytest.approx(theirs / 100)


def test_what_cannot_be_scored():
    for written, wanted in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(DataError, match="texts for"):
            scores(written, wanted)
