"""What an answer is worth: rewards by name, or a function of the user's."""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from hf_llm_recipes.errors import DataError, did_you_mean

WORD = re.compile(r"\w+")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

Reward = Callable[[str, dict[str, Any]], float]


def exact_match(written: str, row: dict[str, Any]) -> float:
    """1 where the text is the row's answer, white space and case aside; else 0."""
    return float(_plain(written) == _plain(row["answer"]))


def contains(written: str, row: dict[str, Any]) -> float:
    """1 where the row's answer stands in the text as whole words, case aside; else 0."""
    return float(re.search(rf"(?<!\w){re.escape(_plain(row['answer']))}(?!\w)", _plain(written)) is not None)


def last_number(written: str, row: dict[str, Any]) -> float:
    """1 where the text's last number is that of the row's answer, e.g. behind ``####``; else 0."""
    mine, right = _last_number(written), _last_number(str(row["answer"]))
    return float(mine is not None and mine == right)


def token_f1(written: str, row: dict[str, Any]) -> float:
    """F1 of the text's words against the answer's, case and order aside, in [0, 1].

    As SQuAD counts it (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, §6.1), but that articles
    are words too.
    """
    mine, right = (Counter(WORD.findall(_plain(text))) for text in (written, row["answer"]))
    both = (mine & right).total()
    return 2 * both / (mine.total() + right.total()) if both else 0.0


NAMED: dict[str, Reward] = {
    "exact_match": exact_match,
    "contains": contains,
    "last_number": last_number,
    "token_f1": token_f1,
}


def reward_of(name: str) -> Reward:
    """Returns a reward by its name, or the function ``module:function``.

    Raises:
        ValueError: no such reward, module or function.
    """
    if name in NAMED:
        return NAMED[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"reward is `{name}`{did_you_mean(name, NAMED)}; allowed: {', '.join(NAMED)}, or module:function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward is `{name}`, which cannot be imported: {error}; it must be importable from the folder "
            "you run in"
        ) from error
    if not callable(found):
        raise ValueError(f"reward is `{name}`, which is no function")
    return found


def answer_key(name: str, written: str) -> str | None:
    """Returns what a text answers, as the reward of that name reads it; None where it answers nothing."""
    if name == "last_number":
        number = _last_number(written)
        return None if number is None else repr(number)
    return _plain(written) or None


def rewarded(name: str, reward: Reward, written: str, row: dict[str, Any], where: str) -> float:
    """Returns the reward of one text.

    Raises:
        DataError: the function raised, or gave no finite number; names row and text.
    """
    try:
        value = reward(written, row)
    except Exception as error:  # a user's function may raise anything: it is told, with its row
        raise DataError(
            f"the reward `{name}` raised {type(error).__name__}: {error}\n    for the text {written[:80]!r}",
            where=where,
            hint="mend the function, or let it return 0 for what it cannot judge",
        ) from error
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"the reward `{name}` gave {value!r} for the text {written[:80]!r}",
            where=where,
            allowed="a finite number",
        )
    return float(value)


def _plain(text: Any) -> str:
    return " ".join(str(text).split()).casefold()


def _last_number(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
