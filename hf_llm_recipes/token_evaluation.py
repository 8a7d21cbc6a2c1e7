"""How good a tagger is: spans and words, each score with a 95 % interval over sentences.

Notable:
- Spans follow conlleval (Tjong Kim Sang & Buchholz 2000, https://aclanthology.org/W00-0726): a span is
  right where its type, first and last word are. An ``I-`` with nothing of its type before it begins a
  span, as seqeval's default has it; ``E-`` ends and ``S-`` is one.
- Tags without such prefixes are scored word by word, each tag a class.
- A resample draws sentences, not words: the words of one sentence are not independent.

Shapes: N sentences, W words of the longest, C tags, K what is counted (types of spans, or tags).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError

PADDING = -100  # in labels and logits, as the Trainer pads; a label of it is not judged
OUTSIDE = "O"
PREFIXED = re.compile(r"[BIES]-.+", re.DOTALL)

Span = tuple[str, int, int]  # type, first word, the word after the last


def marks_spans(names: Sequence[str]) -> bool:
    """Whether the tags are ``O``, ``B-x``, ``I-x`` (and ``E-x``, ``S-x``) rather than plain classes."""
    prefixed = [name for name in names if PREFIXED.fullmatch(name)]
    return bool(prefixed) and all(name == OUTSIDE or PREFIXED.fullmatch(name) for name in names)


def spans(tags: Sequence[str]) -> list[Span]:
    """Returns the spans of one sentence in order; tags as ``marks_spans`` has them."""
    found: list[Span] = []
    start, kind = None, ""
    for place, tag in enumerate(tags):
        prefix, _, name = tag.partition("-")
        goes_on = start is not None and prefix in ("I", "E") and name == kind
        if start is not None and not goes_on:
            found.append((kind, start, place))
            start = None
        if tag != OUTSIDE and not goes_on:
            start, kind = place, name
        if prefix in ("E", "S"):
            found.append((kind, start, place + 1))
            start = None
    return found if start is None else [*found, (kind, start, len(tags))]


def tagging(
    logits_NWC: Any, labels_NW: Any, label_names: Sequence[str], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Returns every score of a tagger on labeled sentences, ready for JSON.

    Always ``problem`` (``"tokens"``), ``rows`` (sentences), ``token_accuracy``, ``f1_macro``, ``loss``
    (nats a word), ``majority_baseline`` (the accuracy of always answering the most frequent tag),
    ``per_class``, ``labels``, ``counts``, ``intervals_95``, ``bootstrap``, ``seed``, ``notes``. Where the
    tags mark spans, also ``precision``, ``recall`` and ``f1`` over all spans; then ``per_class`` and
    ``f1_macro`` are over types of spans, else over tags. ``f1_macro`` leaves out what occurs neither in the
    labels nor in the predictions. A score that would be 0/0 is 0.

    Args:
        logits_NWC: Scores before softmax; anything where nothing is judged.
        labels_NW: Tag numbers in [0, C); −100 where nothing is judged.
        label_names: The C tags, in the order of the logits.
        bootstrap: Number of resamples; 0 gives no intervals.
        seed: Of the resampling.

    Raises:
        DataError: shapes that do not fit, no judged word, NaN or infinite logits, tags out of range.
    """
    logits_NWC, labels_NW = _checked(logits_NWC, labels_NW, label_names)
    judged_NW = labels_NW != PADDING
    predicted_NW = logits_NWC.argmax(-1)
    by_span = marks_spans(label_names)
    kinds, counts_3NK = (_span_counts if by_span else _tag_counts)(
        predicted_NW, labels_NW, judged_NW, label_names
    )
    words_N = _word_sums(logits_NWC, labels_NW, judged_NW, predicted_NW)

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        return _scores(weights_N @ counts_3NK, {k: weights_N @ v for k, v in words_N.items()}, by_span)

    totals_3K = counts_3NK.sum(1)
    return {
        "problem": "tokens",
        "rows": len(labels_NW),
        **statistics(np.ones(len(labels_NW))),
        "majority_baseline": float(np.bincount(labels_NW[judged_NW]).max() / judged_NW.sum()),
        "per_class": _per_class(kinds, totals_3K),
        "labels": list(label_names),
        "counts": {
            "words": int(judged_NW.sum()),
            **(
                {"spans": int(totals_3K[2].sum()), "spans_predicted": int(totals_3K[1].sum())}
                if by_span
                else {}
            ),
        },
        "intervals_95": evaluation.bootstrap_intervals(statistics, len(labels_NW), bootstrap, seed),
        "notes": _notes(kinds, totals_3K, len(labels_NW), by_span),
        "bootstrap": bootstrap,
        "seed": seed,
    }


def quick_metrics(logits_NTC: Any, labels_NT: Any, label_names: Sequence[str]) -> dict[str, float]:
    """Returns the cheap scores, for ``Trainer.compute_metrics``; arguments as for ``tagging``.

    ``token_accuracy`` and ``f1_macro``; ``f1`` too where the tags mark spans.
    """
    scores = tagging(logits_NTC, labels_NT, label_names, bootstrap=0)
    return {name: scores[name] for name in ("f1", "f1_macro", "token_accuracy") if name in scores}


def write_predictions(
    path: str | Path,
    *,
    tokens: Sequence[Sequence[str]],
    logits_NWC: Any,
    labels_NW: Any | None,
    label_names: Sequence[str],
) -> None:
    """Writes one Parquet row a sentence: words, tags, predicted tags, probabilities, predicted spans.

    Columns ``tokens``, ``label`` (unless ``labels_NW`` is None), ``predicted_label``, ``probability`` (of
    the predicted tag) and, where the tags mark spans, ``predicted_spans`` (``type``, ``start``, ``end``,
    words counted from 0, the end not included). Words that were cut have null. Written beside the target
    first, then renamed.

    Args:
        path: Its folder is made if it is missing.
        tokens: The words of each sentence.
        logits_NWC: Rows of −100 where there is no word.
        labels_NW: As for ``tagging``.
        label_names: The C tags.
    """
    import pyarrow as pa
    import pyarrow.parquet

    answers = [
        answer(logits_WC, label_names, len(words))
        for logits_WC, words in zip(logits_NWC, tokens, strict=True)
    ]
    columns: dict[str, Any] = {"tokens": pa.array([list(words) for words in tokens], pa.list_(pa.string()))}
    if labels_NW is not None:
        named = [
            [label_names[int(i)] if i != PADDING else None for i in _filled(labels_W, len(words))]
            for labels_W, words in zip(np.asarray(labels_NW), tokens, strict=True)
        ]
        columns["label"] = pa.array(named, pa.list_(pa.string()))
    columns["predicted_label"] = pa.array([a["tags"] for a in answers], pa.list_(pa.string()))
    columns["probability"] = pa.array([a["probabilities"] for a in answers], pa.list_(pa.float64()))
    if marks_spans(label_names):
        span = pa.struct([("type", pa.string()), ("start", pa.int64()), ("end", pa.int64())])
        columns["predicted_spans"] = pa.array([a["spans"] for a in answers], pa.list_(span))
    with evaluation.written_beside(Path(path)) as beside:
        pyarrow.parquet.write_table(pa.table(columns), beside)


def answer(logits_WC: Any, label_names: Sequence[str], words: int | None = None) -> dict[str, Any]:
    """Returns ``tags``, ``probabilities`` and, where tags mark spans, ``spans`` of one sentence.

    Args:
        logits_WC: Rows of −100 where there is no word.
        label_names: The C tags.
        words: Of the sentence; those behind the logits' last have None. None: as many as there are logits.
    """
    logits_WC = np.asarray(logits_WC, dtype=np.float64)
    seen_WC = logits_WC[~(logits_WC == PADDING).all(-1)]
    lost = 0 if words is None else words - len(seen_WC)
    tags = [label_names[int(i)] for i in seen_WC.argmax(-1)]
    best_W = evaluation.probabilities(seen_WC, "single_label").max(-1) if len(seen_WC) else np.zeros(0)
    answered = {"tags": tags + [None] * lost, "probabilities": best_W.tolist() + [None] * lost}
    if marks_spans(label_names):
        answered["spans"] = [{"type": t, "start": start, "end": end} for t, start, end in spans(tags)]
    return answered


def _filled(labels_W: np.ndarray, words: int) -> list[int]:
    kept = labels_W[:words].tolist()
    return kept + [PADDING] * (words - len(kept))


def _checked(logits: Any, labels: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    logits_NWC = np.asarray(logits, dtype=np.float64)
    labels_NW = np.asarray(labels)
    if logits_NWC.ndim != 3 or logits_NWC.shape[:2] != labels_NW.shape or logits_NWC.shape[2] != len(names):
        raise DataError(
            f"logits have the shape {logits_NWC.shape} and labels {labels_NW.shape} for {len(names)} tags",
            allowed="(sentences, words, tags) and (sentences, words)",
        )
    judged_NW = labels_NW != PADDING
    if not judged_NW.any():
        raise DataError("there is no labeled word to score", hint="give the split at least one")
    wrong = judged_NW & ((labels_NW < 0) | (labels_NW >= len(names)))
    if wrong.any():
        row, word = (int(i) for i in np.argwhere(wrong)[0])
        raise DataError(
            f"label {labels_NW[row, word]} of word {word}",
            where=f"row {row}",
            allowed=f"0 to {len(names) - 1}, or {PADDING} where nothing is judged",
        )
    bad = judged_NW & ~np.isfinite(logits_NWC).all(-1)
    if bad.any():
        row, word = (int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"a logit of word {word} is not finite",
            where=f"row {row}",
            hint="the model has diverged: lower the learning rate, or train in float32 or bfloat16",
        )
    return logits_NWC, labels_NW


def _span_counts(
    predicted_NW: np.ndarray, labels_NW: np.ndarray, judged_NW: np.ndarray, names: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Types, and each sentence's right, predicted and true spans of each type, (3, N, K)."""
    kinds = sorted({name[2:] for name in names if name != OUTSIDE})
    number = {kind: k for k, kind in enumerate(kinds)}
    counts_3NK = np.zeros((3, len(labels_NW), len(kinds)))
    for row, judged_W in enumerate(judged_NW):
        true = set(spans([names[i] for i in labels_NW[row, judged_W]]))
        guessed = set(spans([names[i] for i in predicted_NW[row, judged_W]]))
        for which, group in enumerate((true & guessed, guessed, true)):
            for kind, _, _ in group:
                counts_3NK[which, row, number[kind]] += 1
    return kinds, counts_3NK


def _tag_counts(
    predicted_NW: np.ndarray, labels_NW: np.ndarray, judged_NW: np.ndarray, names: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Tags, and each sentence's right, predicted and true words of each tag, (3, N, K)."""
    rows = np.broadcast_to(np.arange(len(labels_NW))[:, None], labels_NW.shape)
    counts_3NK = np.zeros((3, len(labels_NW), len(names)))
    right_NW = judged_NW & (predicted_NW == labels_NW)
    for which, (chosen_NW, tags_NW) in enumerate(
        ((right_NW, labels_NW), (judged_NW, predicted_NW), (judged_NW, labels_NW))
    ):
        np.add.at(counts_3NK[which], (rows[chosen_NW], tags_NW[chosen_NW]), 1)
    return list(names), counts_3NK


def _word_sums(
    logits_NWC: np.ndarray, labels_NW: np.ndarray, judged_NW: np.ndarray, predicted_NW: np.ndarray
) -> dict[str, np.ndarray]:
    """Each sentence's words, right words and summed loss, (N,)."""
    probabilities_MC = evaluation.probabilities(logits_NWC[judged_NW], "single_label")
    own_M = probabilities_MC[np.arange(len(probabilities_MC)), labels_NW[judged_NW]]
    loss_NW = np.zeros(labels_NW.shape)
    loss_NW[judged_NW] = -np.log(np.maximum(own_M, np.finfo(np.float64).tiny))
    return {
        "words": judged_NW.sum(1).astype(np.float64),
        "right": (judged_NW & (predicted_NW == labels_NW)).sum(1).astype(np.float64),
        "loss": loss_NW.sum(1),
    }


def _scores(counts_3K: np.ndarray, words: dict[str, float], by_span: bool) -> dict[str, float]:
    right, predicted, true = counts_3K.sum(1)
    right_K, either_K = counts_3K[0], counts_3K[1] + counts_3K[2]
    f1_K = (2 * right_K / np.maximum(either_K, 1.0))[either_K > 0]
    over_spans = {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, true),
        "f1": _ratio(2 * right, predicted + true),
    }
    return {
        **(over_spans if by_span else {}),
        "f1_macro": float(f1_K.mean()) if len(f1_K) else 0.0,
        "token_accuracy": _ratio(words["right"], words["words"]),
        "loss": _ratio(words["loss"], words["words"]),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _per_class(kinds: list[str], totals_3K: np.ndarray) -> dict[str, dict[str, Any]]:
    return {
        kind: {
            "precision": _ratio(right, predicted),
            "recall": _ratio(right, true),
            "f1": _ratio(2 * right, predicted + true),
            "support": int(true),
        }
        for kind, right, predicted, true in zip(kinds, *totals_3K, strict=True)
    }


def _notes(kinds: list[str], totals_3K: np.ndarray, rows: int, by_span: bool) -> list[str]:
    notes = ["one row: no interval can be given"] if rows == 1 else []
    absent = [kind for kind, true in zip(kinds, totals_3K[2], strict=True) if not true]
    if absent:
        notes.append(
            f"no {'span' if by_span else 'word'} of {', '.join(map(repr, absent))}: recall and F1 of 0 there "
            "are 0/0, not errors"
        )
    return notes
