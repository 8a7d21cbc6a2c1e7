"""Words and their subwords: is each tag learnt at its own word, and which words are lost on the way?"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_llm_recipes.checking.base import Finding, Report, named, share
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.tasks.token_classification import TokenClassification

ALIGNED_ROWS = 200  # whose subwords are compared with their words
SPLIT_MUCH = 4.0  # subwords a word, on average
IGNORED = -100


def look(subject: Subject, report: Report) -> list[Finding]:
    """Returns words that are lost, unknown or out of place."""
    task = subject.task
    if not isinstance(task, TokenClassification):
        return []
    found = []
    for split in subject.splits():
        counts, where = subject.prepared.findings[split], subject.where(split)
        found += lost_words(counts, where, subject.sampled(split))
        if split == "train":
            found += split_much(counts, where)
    return found + _misaligned(subject)


def lost_words(counts: dict[str, int], where: str, sampled: str = "") -> list[Finding]:
    """Returns words that the tokenizer knows nothing of.

    Args:
        counts: A split's ``findings``.
        where: The split.
        sampled: Words that say how many rows were looked at.
    """
    count, words = counts["words_unknown"], counts["words"]
    if not count:
        return []
    return [
        Finding(
            "warning" if count / words >= 0.001 else "info",
            "words",
            f"{count:,} of {words:,} words ({share(count, words)}) are nothing to the tokenizer, and are fed "
            f"as its unknown token{sampled}",
            where,
            "are there control characters, or a script that the model does not know? Clean the words",
        )
    ]


def split_much(counts: dict[str, int], where: str) -> list[Finding]:
    """Returns a finding where a word is many subwords: the tokenizer was made for other texts."""
    a_word = (counts["tokens"] - 2 * counts["rows"]) / max(counts["words"] - counts["words_cut"], 1)
    if a_word < SPLIT_MUCH:
        return []
    return [
        Finding(
            "warning",
            "words",
            f"a word is {a_word:.1f} subwords on average: the tokenizer does not know these texts",
            where,
            "take a model for this language or domain",
        )
    ]


def _misaligned(subject: Subject) -> list[Finding]:
    if subject.task.label_all_subwords:
        return []
    rows, features = subject.rows("train"), subject.features("train")
    chosen = np.unique(np.linspace(0, len(features) - 1, min(ALIGNED_ROWS, len(features))).astype(int))
    odd = []
    for number in chosen.tolist():
        batch = subject.prepared.collator([features[number]])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        words = rows[number][subject.task.tokens]
        if not aligned(words, ids, labels, subject.tokenizer):
            odd.append(subject.place("train", number))
    if not odd:
        return []
    return [
        Finding(
            "error",
            "words",
            f"in {len(odd):,} of {len(chosen):,} rows a tag does not stand at its word's first subword (rows "
            f"{named(odd)})",
            subject.where("train"),
            "the tokenizer does not tell truly which word a token is of: take another model, and report this",
        )
    ]


def aligned(words: Sequence[str], ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> bool:
    """Whether the k-th token with a label is the beginning of the k-th word.

    Args:
        words: Of a row.
        ids: Its token ids.
        labels: −100 but at each word's first subword.
        tokenizer: Of the model.
    """
    unknown = tokenizer.unk_token_id
    marked = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    for word, token in zip(words, marked, strict=False):
        if token == unknown:
            continue
        piece = _letters(tokenizer.decode([token]))
        if piece and "\ufffd" not in piece and not _letters(word).startswith(piece):
            return False
    return len(marked) <= len(words)


def _letters(text: str) -> str:
    """Letters and digits without case and accents: what a tokenizer may do to a word first."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if letter.isalnum())
