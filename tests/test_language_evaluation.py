import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.language_evaluation import language, text_sizes

LN2 = math.log(2)
# Two documents of two tokens each: probability 1/2 a token in the first, 1/8 in the second.
LOSSES, TOKENS, BYTES, WORDS = [2 * LN2, 6 * LN2], [2, 2], [6, 10], [1, 1]


def test_the_scores_are_those_worked_by_hand():
    scores = language(LOSSES, TOKENS, bytes_D=BYTES, words_D=WORDS)
    assert scores["loss"] == pytest.approx(2 * LN2)  # 8 ln 2 over 4 tokens
    assert scores["perplexity"] == pytest.approx(4.0)  # 2^(8/4)
    assert scores["bits_per_byte"] == pytest.approx(0.5)  # 8 bits over 16 bytes
    assert scores["word_perplexity"] == pytest.approx(16.0)  # 2^(8/2)
    assert scores["counts"] == {"tokens": 4, "bytes": 16, "words": 2}
    assert (scores["problem"], scores["rows"], scores["notes"]) == ("language", 2, [])


def test_the_intervals_are_over_documents():
    # A resample of two documents is (1,1), (1,2) or (2,2) with probability 1/4, 1/2, 1/4: the 2.5 and the
    # 97.5 percentile are those of one document alone. Words: 2 and 6 bits a word.
    intervals = language(LOSSES, TOKENS, bytes_D=BYTES, words_D=WORDS)["intervals_95"]
    assert intervals["loss"] == pytest.approx([LN2, 3 * LN2])
    assert intervals["perplexity"] == pytest.approx([2.0, 8.0])
    assert intervals["bits_per_byte"] == pytest.approx([2 / 6, 6 / 10])
    assert intervals["word_perplexity"] == pytest.approx([4.0, 64.0])


def test_a_long_document_counts_by_its_tokens():
    # 1 token at 1 bit and 3 tokens at 3 bits each: 10 bits over 4 tokens, not the mean of 1 and 3.
    scores = language([LN2, 9 * LN2], [1, 3], bootstrap=0)
    assert scores["perplexity"] == pytest.approx(2**2.5)
    assert scores["intervals_95"] == {}
    assert "bits_per_byte" not in scores
    assert "word_perplexity" not in scores


def test_the_seed_decides_the_resamples():
    rng = np.random.default_rng(0)
    losses, tokens = rng.random(40) * 10, rng.integers(1, 9, 40)
    assert language(losses, tokens, seed=1) == language(losses, tokens, seed=1)
    assert language(losses, tokens, seed=1) != language(losses, tokens, seed=2)


def test_one_document_has_no_interval_and_says_so():
    scores = language([LN2], [1])
    assert scores["intervals_95"] == {}
    assert scores["notes"] == ["one document: no interval can be given"]


def test_a_document_without_predicted_tokens_adds_nothing():
    with_it = language([0.0, *LOSSES], [0, *TOKENS], bootstrap=0)
    assert with_it["perplexity"] == pytest.approx(4.0)
    # Resamples of the empty document alone have no score; the others still give an interval.
    assert language([0.0, *LOSSES], [0, *TOKENS])["intervals_95"]["perplexity"] == pytest.approx([2.0, 8.0])


def test_a_perplexity_beyond_floats_is_infinite_and_written_as_null(tmp_path):
    scores = language([1000.0, 1000.0], [1, 1], bootstrap=0)
    assert scores["perplexity"] == math.inf
    assert scores["loss"] == 1000.0
    evaluation.write_metrics(tmp_path / "m.json", scores)
    assert json.loads((tmp_path / "m.json").read_text())["perplexity"] is None


def test_the_table_shows_them():
    console = Console(file=io.StringIO(), width=80)
    console.print(evaluation.format_table(language(LOSSES, TOKENS, bytes_D=BYTES, words_D=WORDS)))
    shown = console.file.getvalue()
    assert "2 rows" in shown
    for line in ("perplexity", "4.0000", "2.0000 – 8.0000", "bits_per_byte", "0.5000", "word_perplexity"):
        assert line in shown
    assert evaluation.summary(language(LOSSES, TOKENS))["perplexity"] == pytest.approx(4.0)


def test_text_sizes_counts_utf8_bytes_and_words():
    sizes_D, words_D = text_sizes(["héllo  world\n", "", "日本 語", "\ud800"])
    assert sizes_D.tolist() == [14, 0, 10, 3]  # é is 2 bytes, each Han character 3, a lone surrogate 3
    assert words_D.tolist() == [2, 0, 2, 1]
    assert [len(part) for part in text_sizes([])] == [0, 0]


@pytest.mark.parametrize(
    "text", ["天空为什么是蓝色的？", "空は なぜ 青い", "ทำไมท้องฟ้าสีฟ้า", "so 天空天空 是 蓝色的"]
)
def test_words_that_no_white_space_parts_are_not_counted(text):
    sizes_D, words_D = text_sizes(["the sky", text])
    assert sizes_D[0] == 7
    assert words_D is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], []), "no document"),
        (([1.0], [1, 2]), "2 numbers of tokens for 1 documents"),
        (([math.nan, 1.0], [1, 1]), "losses are nan in document 0"),
        (([1.0, -1.0], [1, 1]), "losses are -1 in document 1"),
        (([1.0], [-1]), "tokens are -1"),
        (([0.0], [0]), "no tokens to score"),
        (([1.0, 1.0], [0, 3]), "document 0 has a loss of 1 and no predicted token"),
        (([[1.0]], [1]), "shape"),
    ],
)
def test_wrong_input_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        language(*given)


def test_documents_without_bytes_are_refused():
    with pytest.raises(DataError, match="no bytes to score"):
        language([1.0], [1], bytes_D=[0])
    with pytest.raises(DataError, match="bootstrap is -1"):
        language([1.0], [1], bootstrap=-1)


def test_a_summary_of_one_document_keeps_its_scores():
    found = evaluation.summary(language([2 * math.log(8.0)], [2]))
    assert found["perplexity"] == pytest.approx(8.0)
    assert found["intervals_95"] == {}
