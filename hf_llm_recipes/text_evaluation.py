"""How near written texts are to the wanted ones: exact match, chrF, ROUGE-L, with 95 % intervals over rows.

Notable:
- chrF is that of Popović 2015 (https://aclanthology.org/W15-3049) as sacrebleu has it by default: runs of 1
  to 6 characters without white space, counted over all rows, recall twice as weighty; here in [0, 1].
- ROUGE-L is that of Lin 2004 (https://aclanthology.org/W04-1013): F1 of the longest common subsequence of
  words, the mean over rows; lower case, no punctuation, Chinese characters one by one.
- Exact match compares texts whose white space was made alike.

Shapes: N rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError

ORDER, BETA = 6, 2
WORDS = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")


def scores(
    written_N: Sequence[str],
    wanted_N: Sequence[str],
    *,
    losses_N: Sequence[float] | None = None,
    tokens_N: Sequence[int] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns every score of a set of texts, ready for JSON.

    ``problem`` (``"language"``), ``rows``, ``chrf``, ``rouge_l``, ``exact_match``, ``loss`` (nats a wanted
    token) where losses are given, ``intervals_95``, ``bootstrap``, ``seed``, ``notes``.

    Args:
        written_N: What was written.
        wanted_N: What was to be written.
        losses_N: Negative log-likelihoods of the wanted texts, in nats.
        tokens_N: Their numbers of tokens.
        bootstrap: Number of resamples; 0 gives no intervals.
        seed: Of the resampling.

    Raises:
        DataError: no row, or not as many texts as wanted ones.
    """
    if not len(wanted_N) or len(written_N) != len(wanted_N):
        raise DataError(f"{len(written_N)} texts for {len(wanted_N)} rows", allowed="as many, 1 or more")
    pairs = list(zip(written_N, wanted_N, strict=True))
    counts_NK = np.asarray([character_counts(*pair) for pair in pairs], dtype=np.float64)
    rouge_N = np.asarray([rouge_l(*pair) for pair in pairs])
    exact_N = np.asarray([float(written.split() == wanted.split()) for written, wanted in pairs])
    losses = None if losses_N is None else np.stack([losses_N, tokens_N]).astype(np.float64)

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        total = weights_N.sum()
        found = {
            "chrf": chrf(weights_N @ counts_NK),
            "rouge_l": float(weights_N @ rouge_N / total),
            "exact_match": float(weights_N @ exact_N / total),
        }
        if losses is not None:
            nats, tokens = losses @ weights_N
            found["loss"] = float(nats / tokens) if tokens else float("nan")
        return found

    rows = len(pairs)
    return {
        "problem": "language",
        "rows": rows,
        **statistics(np.ones(rows)),
        "intervals_95": evaluation.bootstrap_intervals(statistics, rows, bootstrap, seed),
        "notes": ["one row: no interval can be given"] if rows == 1 else [],
        "bootstrap": bootstrap,
        "seed": seed,
    }


def character_counts(written: str, wanted: str) -> list[int]:
    """Returns of runs of 1, 2, … 6 characters: those written, those wanted, those that are both."""
    first, second = ("".join(text.split()) for text in (written, wanted))
    found: list[int] = []
    for length in range(1, ORDER + 1):
        ours, theirs = (
            Counter(text[i : i + length] for i in range(len(text) - length + 1)) for text in (first, second)
        )
        same = sum((ours & theirs).values())
        found += [sum(ours.values()) if theirs else 0, sum(theirs.values()), same]
    return found


def chrf(counts: Sequence[float]) -> float:
    """Returns chrF of summed ``character_counts``; orders that one side lacks are left out."""
    precisions, recalls = [], []
    for ours, theirs, same in zip(counts[::3], counts[1::3], counts[2::3], strict=True):
        if ours and theirs:
            precisions.append(same / ours)
            recalls.append(same / theirs)
    precision, recall = (float(np.mean(values)) if values else 0.0 for values in (precisions, recalls))
    if not precision + recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def rouge_l(written: str, wanted: str) -> float:
    """Returns ROUGE-L of one row, in [0, 1]."""
    ours, theirs = (WORDS.findall(text.lower()) for text in (written, wanted))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * _common(ours, theirs) / (len(ours) + len(theirs))


def _common(first: list[str], second: list[str]) -> int:
    """The length of the longest common subsequence."""
    before = [0] * (len(second) + 1)
    for one in first:
        now = [0]
        for place, other in enumerate(second):
            now.append(before[place] + 1 if one == other else max(before[place + 1], now[-1]))
        before = now
    return before[-1]
