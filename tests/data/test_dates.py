"""Dates in words and digits, held against spellings by hand and against `datetime`."""

import datetime
import re
from collections import Counter

import pytest

from hf_llm_recipes.data.corpora.base import SPLITS, split_of
from hf_llm_recipes.data.corpora.dates import FORMS, ROWS, Dates, ordinal, year


@pytest.fixture(scope="module")
def rows():
    return list(Dates().rows())


def test_every_form_by_hand():
    day = datetime.date(1996, 2, 29)  # a Thursday
    assert {form: write(day) for form, write in FORMS.items()} == {
        "day_month": "29 February 1996",
        "month_day": "February 29th, 1996",
        "short": "Thu, 29 Feb 1996",
        "year_first": "1996, February 29",
        "digits": "29.2.1996",
        "said": "the twenty-ninth of february nineteen ninety-six",
        "said_month_first": "february the twenty-ninth, nineteen ninety-six",
        "last_day": "the last day of February 1996",
        "day_before": "the day before 1 March 1996",
        "day_after": "the day after 28 February 1996",
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1900, "nineteen hundred"),
        (1905, "nineteen oh five"),
        (1912, "nineteen twelve"),
        (2000, "two thousand"),
        (2009, "two thousand and nine"),
        (2010, "twenty ten"),
        (2040, "twenty forty"),
        (2099, "twenty ninety-nine"),
    ],
)
def test_years_as_they_are_said(value, said):
    assert year(value) == said


def test_ordinals_of_a_month():
    said = " ".join(ordinal(value) for value in (*range(1, 14), 20, 21, 22, 30, 31))
    assert said == (
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
        "twentieth twenty-first twenty-second thirtieth thirty-first"
    )
    suffixes = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 22: "22nd"}
    for value, said in suffixes.items():
        assert FORMS["month_day"](datetime.date(2001, 5, value)) == f"May {said}, 2001"


def test_digits_are_those_of_the_date(rows):
    """Read back by `strptime`, where a form is one that it knows."""
    formats = {
        "day_month": "%d %B %Y",
        "year_first": "%Y, %B %d",
        "digits": "%d.%m.%Y",
        "short": "%a, %d %b %Y",
    }
    one = datetime.timedelta(days=1)
    seen = Counter()
    for _, row in rows:
        source, form, wanted = row["source"], row["form"], datetime.date.fromisoformat(row["target"])
        step = {"day_before": -one, "day_after": one}.get(form, 0 * one)
        if form in ("day_before", "day_after"):
            source, form = re.sub("the day (before|after) ", "", source), "day_month"
        if form == "month_day":
            source, form = re.sub("(st|nd|rd|th),", ",", source), "plain"
        known = {**formats, "plain": "%B %d, %Y"}.get(form)
        if known is not None:
            assert datetime.datetime.strptime(source, known).date() + step == wanted
            seen[row["form"]] += 1
        if form == "last_day":
            assert (wanted + one).day == 1
    assert len(seen) == 7
    assert min(seen.values()) > 1500


def test_no_day_is_in_two_splits_and_no_source_is_there_twice(rows):
    assert len(rows) == len({row["source"] for _, row in rows}) == ROWS
    assert all(split == split_of(row["target"]) for split, row in rows)
    shares = Counter(split for split, _ in rows)
    assert [round(shares[split] / ROWS, 1) for split in SPLITS] == [0.8, 0.1, 0.1]
    forms = Counter(row["form"] for _, row in rows)
    assert set(forms) == set(FORMS)
    assert min(forms.values()) / ROWS >= 0.07
    ends = [row for _, row in rows if row["form"] == "day_after" and row["target"].endswith("-01")]
    assert 0.3 < len(ends) / forms["day_after"] < 0.6


def test_no_trivial_answer_is_right(rows):
    """Copying, and the most frequent answer of the training rows."""
    test = [row for split, row in rows if split == "test"]
    ((most, _),) = Counter(row["target"] for split, row in rows if split == "train").most_common(1)
    assert not [row for row in test if row["target"] in (row["source"], most)]
