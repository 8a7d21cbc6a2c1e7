"""How good answers to questions are: exact match and F1, each with a 95 % interval over questions.

Notable:
- ``squad`` is the rule of SQuAD (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) as version 2.0's
  script has it: lower case, without ASCII punctuation and the articles a, an, the; F1 over words, whatever
  their order. Where no answer is right, an empty one is worth 1 and any other 0.
- ``cmrc`` is that of CMRC 2018 (Cui et al. 2019, https://aclanthology.org/D19-1600): Chinese characters one
  by one, other text in words; F1 of the longest run that both have. Words are parted by a regular
  expression here, by NLTK there: the scores of Chinese characters do not differ.
- Of several right answers the best match counts.

Shapes: N questions.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError

SCORINGS = ("squad", "cmrc")
ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What CMRC's script takes out; its "……" is two characters there and never met one by one.
CMRC_TAKEN_OUT = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
CMRC_PARTS = re.compile(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+|[^\w\s]")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def normalised(text: str, scoring: str) -> str:
    """Returns what of an answer counts for exact match."""
    if scoring == "cmrc":
        return text.lower().strip().translate(CMRC_TAKEN_OUT)
    return " ".join(ARTICLES.sub(" ", text.lower().translate(WITHOUT_PUNCTUATION)).split())


def parts(text: str, scoring: str) -> list[str]:
    """Returns what of an answer is counted for F1: words, or Chinese characters and other text's words."""
    plain = normalised(text, scoring)
    return CMRC_PARTS.findall(plain) if scoring == "cmrc" else plain.split()


def exact_match(answer: str, golds: Sequence[str], scoring: str) -> float:
    """Returns 1 where an answer is a right one, else 0.

    Args:
        answer: What was answered; "" for nothing.
        golds: Right answers; none where there is no answer.
        scoring: ``squad`` or ``cmrc``.
    """
    found = normalised(answer, scoring)
    return float(any(found == normalised(gold, scoring) for gold in _golds(golds, scoring)))


def f1(answer: str, golds: Sequence[str], scoring: str) -> float:
    """Returns how much of an answer is in a right one and the other way round, in [0, 1]; see above."""
    found = parts(answer, scoring)
    return max(_overlap(found, parts(gold, scoring), scoring) for gold in _golds(golds, scoring))


def answering(
    answers_N: Sequence[str],
    golds_N: Sequence[Sequence[str]],
    *,
    scoring: str = "squad",
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns every score of a set of answers, ready for JSON.

    ``problem`` (``"answers"``), ``rows``, ``exact_match``, ``answer_f1``, ``scoring``, ``counts``,
    ``intervals_95``, ``bootstrap``, ``seed``, ``notes``. Where some questions have no answer and some have,
    also ``exact_match_answerable``, ``answer_f1_answerable`` and ``right_to_be_silent`` (the share of
    questions without an answer that got none).

    Args:
        answers_N: What was answered; "" for nothing.
        golds_N: The right answers of each question; none where it has no answer.
        scoring: ``squad`` or ``cmrc``.
        bootstrap: Number of resamples; 0 gives no intervals.
        seed: Of the resampling.

    Raises:
        DataError: no question, other lengths, another rule.
    """
    if scoring not in SCORINGS:
        raise DataError(f"scoring is {scoring!r}", allowed=", ".join(SCORINGS))
    if not len(golds_N) or len(answers_N) != len(golds_N):
        raise DataError(f"{len(answers_N)} answers to {len(golds_N)} questions", allowed="as many, 1 or more")
    pairs = list(zip(answers_N, golds_N, strict=True))
    exact_N = np.asarray([exact_match(answer, golds, scoring) for answer, golds in pairs])
    f1_N = np.asarray([f1(answer, golds, scoring) for answer, golds in pairs])
    answerable_N = np.asarray([bool(golds) for golds in golds_N], dtype=np.float64)
    rows, answerable = len(pairs), int(answerable_N.sum())

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        scores = {"exact_match": _mean(exact_N, weights_N), "answer_f1": _mean(f1_N, weights_N)}
        if not 0 < answerable < rows:
            return scores
        return {
            **scores,
            "exact_match_answerable": _mean(exact_N, weights_N * answerable_N),
            "answer_f1_answerable": _mean(f1_N, weights_N * answerable_N),
            "right_to_be_silent": _mean(exact_N, weights_N * (1 - answerable_N)),
        }

    return {
        "problem": "answers",
        "rows": rows,
        **statistics(np.ones(rows)),
        "scoring": scoring,
        "counts": {"answerable": answerable, "answered": sum(map(bool, answers_N))},
        "intervals_95": evaluation.bootstrap_intervals(statistics, rows, bootstrap, seed),
        "notes": ["one row: no interval can be given"] if rows == 1 else [],
        "bootstrap": bootstrap,
        "seed": seed,
    }


def _mean(values_N: np.ndarray, weights_N: np.ndarray) -> float:
    total = weights_N.sum()
    return float(weights_N @ values_N / total) if total else float("nan")


def _golds(golds: Sequence[str], scoring: str) -> list[str]:
    """Right answers of which something counts, as SQuAD 2.0's script has it; else the empty one."""
    return [gold for gold in golds if normalised(gold, scoring)] or [""]


def _overlap(found: list[str], wanted: list[str], scoring: str) -> float:
    if not found or not wanted:
        return float(found == wanted)
    if scoring == "cmrc":
        same = _longest_run(found, wanted)
    else:
        same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted))


def _longest_run(first: list[str], second: list[str]) -> int:
    """The length of the longest run of parts that both have."""
    before, longest = [0] * (len(second) + 1), 0
    for one in first:
        now = [0]
        for place, other in enumerate(second):
            now.append(before[place] + 1 if one == other else 0)
        longest, before = max(longest, *now), now
    return longest
