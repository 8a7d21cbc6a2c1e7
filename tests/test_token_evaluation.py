import math

import numpy as np
import pandas as pd
import pytest

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.token_evaluation import (
    PADDING,
    answer,
    marks_spans,
    quick_metrics,
    spans,
    tagging,
    write_predictions,
)

BIO = ["O", "B-per", "I-per", "B-loc", "I-loc"]
O, BP, IP, BL, IL = range(5)


def logits_of(tags, classes=5, height=2.0):
    """Logits that answer the given tags; PADDING gives a row of -100."""
    tags = np.asarray(tags)
    made = np.eye(classes)[np.where(tags == PADDING, 0, tags)] * height
    made[tags == PADDING] = PADDING
    return made


SPANS = {
    "none": (["O", "O"], []),
    "one": (["O", "B-a", "I-a", "O"], [("a", 1, 3)]),
    "to the end": (["B-a", "I-a"], [("a", 0, 2)]),
    "side by side": (["B-a", "B-a", "B-b"], [("a", 0, 1), ("a", 1, 2), ("b", 2, 3)]),
    "inside begins": (["O", "I-a", "I-a"], [("a", 1, 3)]),
    "inside of another type": (["B-a", "I-b"], [("a", 0, 1), ("b", 1, 2)]),
    "a hyphen in the type": (["B-a-b", "I-a-b"], [("a-b", 0, 2)]),
    "ends": (["B-a", "E-a", "I-a"], [("a", 0, 2), ("a", 2, 3)]),
    "singles": (["S-a", "S-a", "E-b"], [("a", 0, 1), ("a", 1, 2), ("b", 2, 3)]),
    "empty": ([], []),
}


@pytest.mark.parametrize("case", SPANS)
def test_spans(case):
    tags, expected = SPANS[case]
    assert spans(tags) == expected


def test_which_tags_mark_spans():
    assert marks_spans(BIO)
    assert marks_spans(["B-x", "I-x"])
    assert not marks_spans(["noun", "verb"])
    assert not marks_spans(["O", "x"])
    assert not marks_spans(["B-x", "noun"])
    assert not marks_spans(["O", "B-"])


def test_spans_are_right_where_type_and_both_ends_are():
    labels = [[BP, IP, O, BL], [O, BL, PADDING, PADDING], [O, O, O, PADDING]]
    # per 0-2 right; loc 3-4 right. loc 1-2 is called per. per 2-3 is made up; no span is there.
    guesses = [[BP, IP, O, BL], [O, BP, PADDING, PADDING], [O, O, IP, PADDING]]
    scores = tagging(logits_of(guesses), labels, BIO)
    assert scores["problem"] == "tokens"
    assert scores["rows"] == 3
    assert scores["counts"] == {"words": 9, "spans": 3, "spans_predicted": 4}
    assert scores["precision"] == pytest.approx(2 / 4)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 * 2 / (4 + 3))
    # per: 1 right of 3 said and 1 true; loc: 1 right of 1 said and 2 true
    assert scores["per_class"] == {
        "loc": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "per": {"precision": pytest.approx(1 / 3), "recall": 1.0, "f1": pytest.approx(0.5), "support": 1},
    }
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores["token_accuracy"] == pytest.approx(7 / 9)
    assert scores["majority_baseline"] == pytest.approx(5 / 9)
    right, wrong = math.log(1 + 4 * math.exp(-2)), math.log(math.exp(2) + 4)
    assert scores["loss"] == pytest.approx((7 * right + 2 * wrong) / 9)
    low, high = scores["intervals_95"]["f1"]
    assert 0 <= low <= scores["f1"] <= high <= 1
    assert scores["notes"] == []


def test_plain_tags_are_scored_word_by_word():
    labels = [[0, 1, 1], [2, 0, PADDING]]
    guesses = [[0, 1, 2], [2, 1, PADDING]]
    scores = tagging(logits_of(guesses, 4), labels, ["a", "b", "c", "d"])
    assert scores["token_accuracy"] == pytest.approx(3 / 5)
    assert "f1" not in scores
    assert scores["counts"] == {"words": 5}
    # a: 1 of 1 said, 2 true; b: 1 of 2, 2; c: 1 of 2, 1; d never occurs
    assert [scores["per_class"][k]["f1"] for k in "abcd"] == pytest.approx([2 / 3, 1 / 2, 2 / 3, 0])
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert scores["notes"] == ["no word of 'd': recall and F1 of 0 there are 0/0, not errors"]


def test_what_is_not_judged_counts_for_nothing():
    labels = np.array([[BP, PADDING, IP, O]])
    guesses = logits_of([[BP, BL, IP, O]])
    guesses[0, 1] = np.nan
    scores = tagging(guesses, labels, BIO)
    assert (scores["f1"], scores["token_accuracy"]) == (1.0, 1.0)
    assert scores["intervals_95"] == {}
    assert scores["notes"][0] == "one row: no interval can be given"


def test_nothing_to_find_and_nothing_found_is_no_error():
    scores = tagging(logits_of([[O, O], [O, O]]), [[O, O], [O, O]], BIO)
    assert (scores["precision"], scores["recall"], scores["f1"], scores["f1_macro"]) == (0, 0, 0, 0)
    assert scores["token_accuracy"] == 1


def test_intervals_draw_sentences():
    # Every sentence is all right or all wrong: two of four. Words drawn alone would give a narrower interval.
    labels = np.zeros((4, 50), dtype=int)
    guesses = np.repeat([[0], [0], [1], [1]], 50, axis=1)
    low, high = tagging(logits_of(guesses, 2), labels, ["a", "b"])["intervals_95"]["token_accuracy"]
    assert (low, high) == (0.0, 1.0)  # all four draws alike: each with a chance of 1/16
    assert tagging(logits_of(guesses, 2), labels, ["a", "b"], bootstrap=0)["intervals_95"] == {}


def test_quick_metrics():
    labels = [[BP, IP, O, BL]]
    assert quick_metrics(logits_of([[BP, IP, O, O]]), labels, BIO) == {
        "f1": pytest.approx(2 / 3),
        "f1_macro": pytest.approx(1 / 2),
        "token_accuracy": pytest.approx(3 / 4),
    }
    assert set(quick_metrics(logits_of([[0, 1]], 2), [[0, 1]], ["x", "y"])) == {"f1_macro", "token_accuracy"}


REFUSED = {
    "no tags": (np.zeros((1, 2)), [[0, 1]], "logits have the shape (1, 2) and labels (1, 2) for 2 tags"),
    "other width": (np.zeros((1, 3, 2)), [[0, 1]], "logits have the shape (1, 3, 2) and labels (1, 2)"),
    "other tags": (np.zeros((1, 2, 3)), [[0, 1]], "logits have the shape (1, 2, 3) and labels (1, 2)"),
    "nothing judged": (np.zeros((1, 2, 2)), [[-100, -100]], "there is no labeled word to score"),
    "out of range": (np.zeros((2, 2, 2)), [[0, 1], [0, 2]], "row 1: label 2 of word 1\n  allowed: 0 to 1"),
    "negative": (np.zeros((1, 2, 2)), [[0, -1]], "row 0: label -1 of word 1"),
    "diverged": (np.full((1, 2, 2), np.nan), [[-100, 1]], "row 0: a logit of word 1 is not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_refused(case):
    logits, labels, message = REFUSED[case]
    with pytest.raises(DataError) as caught:
        tagging(logits, labels, ["a", "b"])
    assert str(caught.value).startswith(message)


def test_an_answer_has_a_tag_a_word():
    found = answer(logits_of([BP, IP, PADDING], height=math.log(4)), BIO, 3)
    assert found["tags"] == ["B-per", "I-per", None]
    assert found["probabilities"] == [pytest.approx(0.5), pytest.approx(0.5), None]  # 4 / (4 + 4)
    assert found["spans"] == [{"type": "per", "start": 0, "end": 2}]
    assert answer(logits_of([PADDING]), BIO) == {"tags": [], "probabilities": [], "spans": []}
    assert set(answer(logits_of([0], 2), ["x", "y"])) == {"tags", "probabilities"}


def test_predictions_stand_beside_their_words(tmp_path):
    path = tmp_path / "new" / "predictions.parquet"
    write_predictions(
        path,
        tokens=[["Ada", "in", "Rome"], ["no"]],
        logits_NWC=logits_of([[BP, O], [O, PADDING]]),
        labels_NW=[[BP, O], [O, PADDING]],
        label_names=BIO,
    )
    written = pd.read_parquet(path)
    assert [list(words) for words in written["tokens"]] == [["Ada", "in", "Rome"], ["no"]]
    assert [list(tags) for tags in written["label"]] == [["B-per", "O", None], ["O"]]  # Rome was cut
    assert [list(tags) for tags in written["predicted_label"]] == [["B-per", "O", None], ["O"]]
    assert [len(row) for row in written["probability"]] == [3, 1]
    assert list(written["predicted_spans"][0]) == [{"type": "per", "start": 0, "end": 1}]
    assert [p.name for p in path.parent.iterdir()] == ["predictions.parquet"]


def test_predictions_without_labels_and_spans(tmp_path):
    write_predictions(
        tmp_path / "p.parquet",
        tokens=[["a"]],
        logits_NWC=logits_of([[1]], 2),
        labels_NW=None,
        label_names=["x", "y"],
    )
    assert list(pd.read_parquet(tmp_path / "p.parquet").columns) == [
        "tokens",
        "predicted_label",
        "probability",
    ]
