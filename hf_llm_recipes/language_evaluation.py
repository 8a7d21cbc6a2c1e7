"""How well a language model predicts text: perplexity per token and word, bits per byte, with intervals.

Notable:
- Everything is a ratio of sums over documents. Tokens depend on the tokenizer, bytes and words do not:
  compare models that read text differently by ``bits_per_byte`` or ``word_perplexity``.
- A resample draws documents, not tokens: the tokens of one document are not independent.

Shapes: D documents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError

# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Han
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def text_sizes(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns each text's UTF-8 bytes and its words (what white space parts).

    None in place of words where the texts have more characters of Chinese, Japanese, Thai and the like
    than words: white space does not part them.
    """
    sizes = [
        (len(text.encode("utf-8", "surrogatepass")), len(text.split()), len(_UNSPACED.findall(text)))
        for text in texts
    ]
    sizes_D3 = np.asarray(sizes, dtype=np.int64).reshape(-1, 3)
    bytes_D, words_D, unspaced_D = sizes_D3.T
    return bytes_D, words_D if unspaced_D.sum() <= words_D.sum() else None


def language(
    losses_D: Any,
    tokens_D: Any,
    *,
    bytes_D: Any | None = None,
    words_D: Any | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns every score of a language model on a set of documents, ready for JSON.

    ``problem`` (``"language"``), ``rows`` (documents), ``loss`` (nats a token), ``perplexity``
    ``exp(sum losses / sum tokens)``, ``bits_per_byte`` ``sum losses / (ln 2 · sum bytes)``,
    ``word_perplexity`` ``exp(sum losses / sum words)``, ``counts``, ``intervals_95``, ``bootstrap``,
    ``seed``, ``notes``. Without ``bytes_D`` or ``words_D`` their score is not there.

    Args:
        losses_D: Negative log-likelihoods in nats, summed over each document's predicted tokens.
        tokens_D: How many tokens those are; a document's first token is none of them where nothing
            stands before it.
        bytes_D: UTF-8 bytes of the predicted text, as `text_sizes` counts them. An end token is
            predicted and has no bytes.
        words_D: Words of it.
        bootstrap: Number of resamples; 0 gives no intervals.
        seed: Of the resampling.

    Raises:
        DataError: lengths that differ, no document, no token (byte, word) at all, NaN or infinite or
            negative numbers, a loss where no token was predicted, a negative number of resamples.
    """
    if bootstrap < 0:
        raise DataError(f"bootstrap is {bootstrap}", allowed="0 (no intervals) or more; 1000 is usual")
    given = {"losses": losses_D, "tokens": tokens_D, "bytes": bytes_D, "words": words_D}
    sums_D = _checked({name: values for name, values in given.items() if values is not None})

    def statistics(weights_D: np.ndarray) -> dict[str, float]:
        return _scores({name: float(weights_D @ values_D) for name, values_D in sums_D.items()})

    rows = len(sums_D["losses"])
    return {
        "problem": "language",
        "rows": rows,
        **statistics(np.ones(rows)),
        "counts": {name: int(values_D.sum()) for name, values_D in sums_D.items() if name != "losses"},
        "intervals_95": evaluation.bootstrap_intervals(statistics, rows, bootstrap, seed),
        "notes": ["one document: no interval can be given"] if rows == 1 else [],
        "bootstrap": bootstrap,
        "seed": seed,
    }


def _scores(sums: dict[str, float]) -> dict[str, float]:
    """A resample of documents without a token (byte, word) has no score: NaN."""
    scores = {
        "loss": _ratio(sums["losses"], sums["tokens"]),
        "perplexity": _exp(_ratio(sums["losses"], sums["tokens"])),
    }
    if "bytes" in sums:
        scores["bits_per_byte"] = _ratio(sums["losses"], math.log(2) * sums["bytes"])
    if "words" in sums:
        scores["word_perplexity"] = _exp(_ratio(sums["losses"], sums["words"]))
    return scores


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if not value > 709 else math.inf  # above, math.exp raises


def _checked(given: dict[str, Any]) -> dict[str, np.ndarray]:
    arrays = {name: _one_number_a_document(name, values) for name, values in given.items()}
    documents = len(arrays["losses"])
    for name, values_D in arrays.items():
        if len(values_D) != documents:
            raise DataError(f"{len(values_D)} numbers of {name} for {documents} documents", allowed="as many")
        wrong = np.flatnonzero(~(np.isfinite(values_D) & (values_D >= 0)))
        if len(wrong):
            raise DataError(
                f"{name} are {values_D[wrong[0]]:g} in document {wrong[0]} (such documents: {len(wrong)})",
                where=f"row {wrong[0]}",
                allowed="finite numbers from 0 up",
                hint="the model has diverged: lower the learning rate" if name == "losses" else None,
            )
        if name != "losses" and not values_D.sum():
            raise DataError(f"the documents have no {name} to score", hint="give the split some text")
    bare = np.flatnonzero((arrays["tokens"] == 0) & (arrays["losses"] > 0))
    if len(bare):
        raise DataError(
            f"document {bare[0]} has a loss of {arrays['losses'][bare[0]]:g} and no predicted token",
            where=f"row {bare[0]}",
            allowed="a loss of 0 where no token is predicted",
        )
    return arrays


def _one_number_a_document(name: str, values: Any) -> np.ndarray:
    values_D = np.asarray(values, dtype=np.float64)
    if values_D.ndim != 1:
        raise DataError(f"{name} have the shape {values_D.shape}", allowed="one number a document")
    if not len(values_D):
        raise DataError("there is no document to score", hint="give the split at least one")
    return values_D
