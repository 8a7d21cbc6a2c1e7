"""Signs and words that the tokenizer does not know: it feeds one token for all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hf_llm_recipes.checking.base import Finding, Report, share
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.tasks.token_classification import TokenClassification

WORTH_WARNING = 0.01  # of the tokens
EXAMPLES = 8
LONGEST_EXAMPLE = 12  # characters
ROWS_FOR_EXAMPLES = 200


def look(subject: Subject, report: Report) -> list[Finding]:
    """Returns how many tokens of each split are the unknown one; of tags of words, ``words`` tells it."""
    task = subject.task
    unknown = getattr(subject.tokenizer, "unk_token_id", None) if task.processor == "tokenizer" else None
    if unknown is None or isinstance(task, TokenClassification):
        return []
    counts = {}
    for split in subject.splits():
        features = subject.features(split)
        if "input_ids" in features.column_names:
            ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in features["input_ids"]])
            counts[split] = (int((ids == unknown).sum()), len(ids))
    return _told(subject, {split: found for split, found in counts.items() if found[0]})


def _told(subject: Subject, counts: dict[str, tuple[int, int]]) -> list[Finding]:
    if not counts:
        return []
    split, *others = counts
    count, tokens = counts[split]
    examples = _examples(subject, split)
    what = f"{count:,} of {tokens:,} tokens ({share(count, tokens)}) are the tokenizer's unknown one, "
    what += "the same whatever stood there" + (f", mostly {' '.join(examples)}" if examples else "")
    what += subject.sampled(split)
    what += "".join(f"; {other}: {counts[other][0]:,} ({share(*counts[other])})" for other in others)
    much = any(some / of >= WORTH_WARNING for some, of in counts.values())
    do = "take a model whose tokenizer knows this language or these signs"
    return [Finding("warning" if much else "info", "unknown", what, subject.where(split), do)]


def _examples(subject: Subject, split: str) -> list[str]:
    """What stood most often where an unknown token stands, in some rows."""
    tokenizer, rows = subject.tokenizer, subject.rows(split)
    if not tokenizer.is_fast:
        return []
    counts: Counter = Counter()
    for row in rows.select(range(min(ROWS_FOR_EXAMPLES, len(rows)))):
        for text in (
            row[column] for column in subject.task.input_columns if isinstance(row.get(column), str)
        ):
            made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            pairs = zip(made["input_ids"], made["offset_mapping"], strict=True)
            counts.update(text[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id)
    return [text[:LONGEST_EXAMPLE] for text, _ in counts.most_common(EXAMPLES)]
