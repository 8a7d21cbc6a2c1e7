"""Dates as people write and say them, and the same dates in digits: made by the code, from nothing."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, split_of
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
ROWS = 20_000
DAY = datetime.timedelta(days=1)
MONTHS = (  # calendar.month_name is in the language of the machine
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
UNITS = (
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = {  # the others end in -th, or in -ieth for -y
    **{"one": "first", "two": "second", "three": "third", "five": "fifth"},
    **{"eight": "eighth", "nine": "ninth", "twelve": "twelfth"},
}


@CORPORA.register
class Dates(Corpus):
    """A date as it is written or said, and in digits: ``the day before 1 March 1996``, ``1996-02-29``.

    Columns: ``source``, ``target`` (ISO 8601), ``form``. Days from 1900 to 2099, none in two rows of the same
    form and none of ``target`` in two splits. The forms, about a tenth of the 20,000 rows each:

    - ``day_month``: 3 March 1998; ``month_day``: March 3rd, 1998; ``short``: Tue, 3 Mar 1998;
      ``year_first``: 1998, March 3; ``digits``: 3.3.1998;
    - ``said``: the third of march nineteen ninety-eight; ``said_month_first``: march the third …;
    - ``last_day``: the last day of February 1996, where leap years count (7 % of the rows);
    - ``day_before``, ``day_after``: the day before 1 March 1996, half of them across the end of a month.

    Hashes draw the days, and put about 80, 10 and 10 % of them into train, validation and test.
    """

    summary = "dates as written or said, and in digits: sources and targets made by the code"
    license = "CC0-1.0"
    version = 1
    packages = ("python",)

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import Features, Value

        return Features({name: Value("string") for name in ("source", "target", "form")})

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row) in hash order."""
        days = [FIRST + number * DAY for number in range((LAST - FIRST).days + 1)]
        forms = list(FORMS)
        ends = {
            "last_day": [day for day in days if (day + DAY).day == 1],
            "day_before": [day for day in days if (day + DAY).day == 1],
            "day_after": [day for day in days if day.day == 1],
        }
        seen, draw = set(), 0
        while len(seen) < ROWS:
            form = forms[draw % len(forms)]
            at_an_end = form == "last_day" or draw % (2 * len(forms)) < len(forms)
            pool = ends[form] if form in ends and at_an_end else days[1:-1]
            day = pool[int(fraction_of(f"day {draw}") * len(pool))]
            draw += 1
            if (form, day) not in seen:
                seen.add((form, day))
                row = {"source": FORMS[form](day), "target": day.isoformat(), "form": form}
                yield split_of(row["target"]), row


def number(value: int) -> str:
    """Returns a number below 100 in words."""
    if value < len(UNITS):
        return UNITS[value]
    return TENS[value // 10] + (f"-{UNITS[value % 10]}" if value % 10 else "")


def ordinal(value: int) -> str:
    """Returns which one, below 100, in words: first, twentieth, twenty-first."""
    head, dash, last = number(value).rpartition("-")
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return f"{head}{dash}{ORDINALS.get(last, regular)}"


def year(value: int) -> str:
    """Returns a year of 1900 to 2099 as it is said."""
    century, rest = divmod(value, 100)
    if 2000 <= value < 2010:
        return "two thousand" + (f" and {number(rest)}" if rest else "")
    said = "hundred" if rest == 0 else f"oh {number(rest)}" if rest < 10 else number(rest)
    return f"{number(century)} {said}"


def _suffixed(value: int) -> str:
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{value}{'th' if 10 < value < 20 else ends.get(value % 10, 'th')}"


def _plain(day: datetime.date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


FORMS: dict[str, Callable[[datetime.date], str]] = {
    "day_month": _plain,
    "month_day": lambda day: f"{MONTHS[day.month - 1]} {_suffixed(day.day)}, {day.year}",
    "short": lambda day: f"{WEEKDAYS[day.weekday()]}, {day.day} {MONTHS[day.month - 1][:3]} {day.year}",
    "year_first": lambda day: f"{day.year}, {MONTHS[day.month - 1]} {day.day}",
    "digits": lambda day: f"{day.day}.{day.month}.{day.year}",
    "said": lambda day: f"the {ordinal(day.day)} of {MONTHS[day.month - 1].lower()} {year(day.year)}",
    "said_month_first": lambda day: (
        f"{MONTHS[day.month - 1].lower()} the {ordinal(day.day)}, {year(day.year)}"
    ),
    "last_day": lambda day: f"the last day of {MONTHS[day.month - 1]} {day.year}",
    "day_before": lambda day: f"the day before {_plain(day + DAY)}",
    "day_after": lambda day: f"the day after {_plain(day - DAY)}",
}
