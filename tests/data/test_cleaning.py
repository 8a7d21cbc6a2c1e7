import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_llm_recipes.data.cleaning import Cleaning, clean, repeated_lines
from hf_llm_recipes.errors import DataError


def cleaned(text, **rules):
    return clean([text], Cleaning(**rules), drop=False).texts[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301", "\u00e9"),  # e and a combining acute
        ("\ufb01n", "\ufb01n"),  # the ligature fi stays in NFC
        ("a\x00b\x1bc\x7f", "abc"),
        ("\ufeffa\u200bb\u00adc", "abc"),  # byte order mark, zero-width space, soft hyphen
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),  # Persian needs its non-joiner
        ("a\ud800b", "ab"),  # a lone surrogate, which no tokenizer takes
        ("a\tb", "a\tb"),
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("def f():  \n    return 1\t\n\n\n\n\nx", "def f():\n    return 1\n\nx"),
        ("\n \n    indented\n\n", "    indented"),
        ("e\x00\u0301", "\u00e9"),  # composed once the control between is gone
        ("a\n\x00\n\nb", "a\n\nb"),  # the control goes first, then the empty lines it left
        ("a  b", "a  b"),
        ("plain", "plain"),
        (" \t\n ", ""),
    ],
)
def test_the_changes_worked_by_hand(text, expected):
    assert cleaned(text) == expected


def test_nfkc_makes_plain_letters():
    assert cleaned("\ufb01n \uff21", unicode="nfkc") == "fin A"


def test_each_rule_can_be_turned_off():
    raw = "e\u0301\x00 \r\n"
    assert cleaned(raw, unicode=None, control_characters=False, white_space=False) == raw


def test_every_row_is_kept_or_counted():
    texts = ["good text", "", None, " \n", "ab", "x" * 11, "e\u0301e\u0301e\u0301", "also fine"]
    found = clean(texts, Cleaning(min_characters=3, max_characters=10))
    assert found.kept.tolist() == [0, 6, 7]
    assert found.texts == ["good text", "\u00e9\u00e9\u00e9", "also fine"]
    assert found.report == {
        "empty": {"rows": 3, "dropped": True, "examples": [1, 2, 3]},
        "white_space": {"rows": 1, "dropped": False, "examples": [3]},
        "too_short": {"rows": 1, "dropped": True, "examples": [4]},
        "too_long": {"rows": 1, "dropped": True, "examples": [5]},
        "unicode": {"rows": 1, "dropped": False, "examples": [6]},
    }


def test_five_examples_are_named_at_most():
    report = clean([""] * 9, Cleaning()).report
    assert report == {"empty": {"rows": 9, "dropped": True, "examples": [0, 1, 2, 3, 4]}}


def test_held_out_rows_are_changed_and_never_dropped():
    found = clean(["", "a ", None], Cleaning(min_characters=5), drop=False)
    assert found.texts == ["", "a", ""]
    assert found.kept.tolist() == [0, 1, 2]
    assert list(found.report) == ["white_space"]


def test_boilerplate_lines_are_found_in_many_documents_and_taken_out_of_all():
    notice = "All rights reserved, no warranty."
    texts = [f"one\n{notice}", f"{notice}  \n\ntwo", f"{notice}\n{notice}", "x = 1\nthree", "x = 1\nfour"]
    rules = Cleaning(boilerplate_share=0.5)
    lines = repeated_lines(texts, rules)
    assert lines == {notice}  # 3 of 5 documents; `x = 1` is in two, and shorter than 15 characters
    found = clean(texts, rules, boilerplate=lines)
    assert found.texts == ["one", "two", "x = 1\nthree", "x = 1\nfour"]
    assert found.report["boilerplate"] == {"rows": 3, "dropped": False, "examples": [0, 1, 2]}
    assert found.report["empty"] == {"rows": 1, "dropped": True, "examples": [2]}
    assert clean([notice, "other"], rules, boilerplate=lines, drop=False).texts == ["", "other"]


def test_a_line_needs_two_documents_and_the_share():
    line = "a line of some length"
    assert repeated_lines([line, "b"], Cleaning(boilerplate_share=0.1)) == frozenset()
    assert repeated_lines([line, line, "b", "c"], Cleaning(boilerplate_share=0.5)) == {line}
    assert repeated_lines([line, line, "b", "c"], Cleaning(boilerplate_share=0.51)) == frozenset()
    assert repeated_lines([line, line], Cleaning()) == frozenset()


@given(st.lists(st.one_of(st.none(), st.text(max_size=40)), max_size=8))
@settings(deadline=None, max_examples=200)
def test_cleaning_twice_is_cleaning_once_and_the_count_balances(texts):
    found = clean(texts, Cleaning(min_characters=2))
    dropped = sum(entry["rows"] for entry in found.report.values() if entry["dropped"])
    assert len(found.kept) + dropped == len(texts)
    again = clean(found.texts, Cleaning(min_characters=2))
    assert again.texts == found.texts
    assert again.report == {}
    for text in found.texts:
        assert unicodedata.is_normalized("NFC", text)
        text.encode()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boilerplate_share": 0.0}, "boilerplate_share is 0.0"),
        ({"boilerplate_share": 1.5}, "boilerplate_share is 1.5"),
        ({"boilerplate_characters": 0}, "boilerplate_characters is 0"),
        ({"min_characters": 0}, "min_characters is 0"),
        ({"min_characters": 9, "max_characters": 8}, "max_characters is 8"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Cleaning(**given)


def test_what_is_no_text_is_refused():
    with pytest.raises(DataError, match="row 1 is a list, not a text"):
        clean(["a", ["b"]], Cleaning())
