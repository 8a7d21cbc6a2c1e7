"""Answers in their contexts, the tokens that cover them, and the best spans."""

import numpy as np
import pytest

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks import _windows

CONTEXT = "the old ball, the new ball"  # ball at 8 and 22
STARTS = np.array([0, 4, 8, 12, 14, 18, 22])
ENDS = np.array([3, 7, 12, 13, 17, 21, 26])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"text": ["ball", "old"], "answer_start": [8, 4]}, [("ball", 8), ("old", 4)]),
        ([{"text": "ball", "answer_start": 8}], [("ball", 8)]),
        ({"text": [], "answer_start": []}, []),
        ({"text": [""], "answer_start": [0]}, []),
        (None, []),
    ],
    ids=["squad", "pairs", "none", "empty", "missing"],
)
def test_answers_of_squads_shape(value, found):
    assert _windows.read_answers({"answers": value}, ["answers"], "row 0") == found


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("ball", 8, [("ball", 8)]),
        ("ball", "8", [("ball", 8)]),
        ("ball", 8.0, [("ball", 8)]),
        (None, None, []),
    ],
    ids=["numbers", "of a CSV file", "beside missing ones", "none"],
)
def test_answers_in_two_columns(text, start, found):
    assert _windows.read_answers({"a": text, "s": start}, ["a", "s"], "row 0") == found


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"answers": "ball"}, ["answers"], "row 3: `answers` is 'ball'"),
        (
            {"answers": {"text": ["a", "b"], "answer_start": [1]}},
            ["answers"],
            "row 3: `answers` has 2 texts and [1] as their places",
        ),
        ({"a": "ball", "s": None}, ["a", "s"], "row 3: `answer_start` of the answer 'ball' is None"),
        ({"a": "ball", "s": True}, ["a", "s"], "row 3: `answer_start` of the answer 'ball' is True"),
        ({"a": 7, "s": 1}, ["a", "s"], "row 3: the answer is 7, not text"),
    ],
)
def test_answers_of_no_shape(row, columns, message):
    with pytest.raises(DataError) as caught:
        _windows.read_answers(row, columns, "row 3")
    assert str(caught.value).startswith(message)


def test_an_answer_at_another_place():
    assert _windows.misplaced(("ball", 22), CONTEXT, "row 0") is None
    error = _windows.misplaced(("ball", 20), CONTEXT, "row 0")
    assert error.what == "`answer_start` is 20, where the context has 'w ba', not the answer 'ball'"
    assert error.hint == "the nearest place that has it is 22: mend the row"
    assert "does not hold the answer" in _windows.misplaced(("goal", 3), CONTEXT, "row 0").hint
    assert _windows.misplaced(("ball", -4), CONTEXT, "row 0") is not None  # Python would count from the end
    assert _windows.nearest("ball", 12, CONTEXT) == 8
    assert _windows.nearest("goal", 12, CONTEXT) is None


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        (("old ball", 4), (1, 2, True)),
        ((" ball", 7), (2, 2, True)),  # a space before it is nobody's
        (("all", 9), (2, 2, False)),
        (("ball, the", 8), (2, 4, True)),
        (("new ball", 18), (5, 6, True)),
    ],
)
def test_the_tokens_of_an_answer(answer, place):
    found = _windows.place_of(answer, STARTS, ENDS)
    assert (found.first, found.last, found.exact) == place


def test_a_window_that_lacks_some_of_an_answer():
    part = slice(2, 6)  # "ball, the new"
    starts, ends = STARTS[part], ENDS[part]
    assert _windows.place_of(("old ball", 4), starts, ends) is None
    assert _windows.place_of(("new ball", 18), starts, ends) is None
    assert _windows.place_of(("the", 14), starts, ends).first == 2
    touching = [
        _windows.touches(one, starts, ends) for one in (("old ball", 4), ("old", 4), ("new ball", 18))
    ]
    assert touching == [True, False, True]
    assert not _windows.touches(("the", 0), STARTS[:0], ENDS[:0])
    assert _windows.place_of(("\u200b", 3), STARTS, ENDS) is None  # nothing to the tokenizer


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_spans_are_those_of_trying_all(longest):
    rng = np.random.default_rng(longest)
    start, end = rng.normal(size=(2, len(STARTS)))
    tried = [
        (start[i] + end[j], int(STARTS[i]), int(ENDS[j]))
        for i in range(len(STARTS))
        for j in range(i, min(len(STARTS), i + longest))
    ]
    found = _windows.best_spans(start, end, STARTS, ENDS, longest, 5)
    assert sorted(((c.score, c.start, c.end) for c in found), reverse=True) == [
        (pytest.approx(score), first, last) for score, first, last in sorted(tried, reverse=True)[:5]
    ]


def test_more_spans_are_wanted_than_there_are():
    found = _windows.best_spans(np.array([1.0, 0.0]), np.array([0.0, 2.0]), STARTS[:2], ENDS[:2], 2, 20)
    assert sorted((c.score, c.start, c.end) for c in found) == [(1.0, 0, 3), (2.0, 4, 7), (3.0, 0, 7)]


def test_a_span_of_two_windows_is_one():
    spans = [_windows.Candidate(1.0, 0, 3), _windows.Candidate(3.0, 0, 3), _windows.Candidate(2.0, 4, 7)]
    assert _windows.distinct(spans, 5) == [spans[1], spans[2]]
    assert _windows.distinct(spans, 1) == [spans[1]]
