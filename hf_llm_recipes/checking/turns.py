"""Chats and other texts that are generated: does an answer end, begin once, and is anything of it learnt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_llm_recipes.checking.base import Finding, Report, named, share
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.methods.grpo import GRPO
from hf_llm_recipes.objectives.clm import Clm
from hf_llm_recipes.tasks._chat_spans import ChatEncoder
from hf_llm_recipes.tasks.chat import Chat
from hf_llm_recipes.tasks.generation import Generation
from hf_llm_recipes.tasks.preference import Preference
from hf_llm_recipes.tasks.seq2seq import Seq2Seq, end_token

IGNORED = -100
NEAR_END = 3  # tokens: a template may write a line break behind the end
MOST_ROWS = 5_000  # of a split that are looked at


def look(subject: Subject, report: Report) -> list[Finding]:
    """Returns what is odd about beginnings, ends and supervised tokens of rows whose answer is a text."""
    task, tokenizer = subject.task, subject.tokenizer
    if not isinstance(task, (Chat, Generation, Preference, Clm, Seq2Seq)):
        return []
    found = []
    for split in ("train", "eval"):
        if split not in subject.splits():
            continue
        features, where = subject.features(split), subject.where(split)
        features = features.select(range(min(len(features), MOST_ROWS)))
        numbers = features["row"][:] if "row" in features.column_names else list(range(len(features)))
        places = [subject.place(split, row) for row in numbers]
        ids = features["prompt_ids" if isinstance(task, Preference) else "input_ids"][:]
        found += double_beginning(ids, tokenizer, places, where)
        if isinstance(task, Clm) or isinstance(subject.plan.method, GRPO):
            continue
        labels = _labels(features)
        found += nothing_learnt(labels, places, where, shifted=task.shifted_labels)
        if not (isinstance(task, Chat) and task.format == "text"):
            found += unfinished(labels, _ends(task, tokenizer), tokenizer, places, where)
        if isinstance(task, Seq2Seq):
            found += cut_targets(subject.prepared.findings[split], where)
            found += started_twice(
                labels, getattr(subject.config, "decoder_start_token_id", None), tokenizer, where
            )
        if isinstance(task, (Generation, Seq2Seq)):
            found += too_long_to_write(labels, task.max_new_tokens, where)
    if isinstance(task, Chat) and task.format != "text" and tokenizer.chat_template:
        found += _template(tokenizer)
    return found


def _labels(features: Any) -> list[list[int]]:
    return features["chosen_ids"][:] if "chosen_ids" in features.column_names else features["labels"][:]


def _ends(task: Any, tokenizer: Any) -> list[int]:
    if isinstance(task, Chat) and tokenizer.chat_template:
        return ChatEncoder(tokenizer).stop_ids
    if isinstance(task, Seq2Seq):
        return [end_token(tokenizer)]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def double_beginning(
    ids: Sequence[Sequence[int]], tokenizer: Any, places: Sequence[int], where: str
) -> list[Finding]:
    """Returns rows that begin with the beginning token twice.

    Args:
        ids: Token ids of each row.
        tokenizer: Of the model.
        places: The rows' numbers.
        where: The split.
    """
    bos = tokenizer.bos_token_id
    odd = [p for p, row in zip(places, ids, strict=True) if bos is not None and list(row[:2]) == [bos, bos]]
    if not odd:
        return []
    return [
        Finding(
            "error",
            "turns",
            f"{len(odd):,} of {len(ids):,} rows begin with {tokenizer.bos_token!r} twice (rows {named(odd)})",
            where,
            f"take {tokenizer.bos_token!r} out of the texts, or out of the chat template: the tokenizer "
            "writes it",
        )
    ]


def nothing_learnt(
    labels: Sequence[Sequence[int]], places: Sequence[int], where: str, *, shifted: bool
) -> list[Finding]:
    """Returns rows without a supervised token.

    Args:
        labels: Of each row, −100 where nothing is learnt.
        places: The rows' numbers.
        where: The split.
        shifted: Whether the first label of a row has no place before it.
    """
    begin = 1 if shifted else 0
    odd = [p for p, row in zip(places, labels, strict=True) if all(i == IGNORED for i in row[begin:])]
    if not odd:
        return []
    everything = len(odd) == len(labels)
    return [
        Finding(
            "error" if everything else "warning",
            "turns",
            f"{len(odd):,} of {len(labels):,} rows have no token that carries loss (rows {named(odd)})",
            where,
            "give them answers, or take them out: they cost time and teach nothing",
        )
    ]


def unfinished(
    labels: Sequence[Sequence[int]], ends: Sequence[int], tokenizer: Any, places: Sequence[int], where: str
) -> list[Finding]:
    """Returns rows in whose last supervised tokens none ends an answer.

    Args:
        labels: Of each row, −100 where nothing is learnt.
        ends: Tokens that end an answer.
        tokenizer: Of the model.
        places: The rows' numbers.
        where: The split.
    """
    last = [[i for i in row if i != IGNORED][-NEAR_END:] for row in labels]
    odd = [p for p, few in zip(places, last, strict=True) if few and not set(few) & set(ends)]
    if not odd:
        return []
    token = tokenizer.convert_ids_to_tokens(ends[0]) if ends else None
    if token is None:
        what = "no token ends an answer: the model will never learn to stop"
        do = "set `task.chat_template: chatml`, or take a tokenizer with an end token"
    else:
        what = (
            f"in {len(odd):,} of {len(labels):,} rows ({share(len(odd), len(labels))}) the end of the "
            f"answer, {token!r}, carries no loss (rows {named(odd)}): the model does not learn to stop there"
        )
        do = "where rows were cut (`task.truncation: cut`), raise `task.max_length` or drop them; else the "
        do += "chat template writes no end token behind the assistant's words: take another one"
    return [Finding("error" if len(odd) > len(labels) / 2 else "warning", "turns", what, where, do)]


def cut_targets(counts: Mapping[str, int], where: str) -> list[Finding]:
    """Returns how many targets are cut, so that a model learns to stop within them.

    Args:
        counts: A split's ``findings``.
        where: The split.
    """
    cut, rows = counts["targets_cut"], counts["rows"]
    if not cut:
        return []
    return [
        Finding(
            "warning" if cut / rows >= 0.01 else "info",
            "turns",
            f"{cut:,} of {rows:,} targets ({share(cut, rows)}) are longer than {counts['max_target_length']} "
            f"tokens and are cut: {counts['supervised_tokens_lost']:,} tokens are not learnt, and the end is "
            "learnt where it is none",
            where,
            "raise `task.max_target_length`, or take these rows out",
        )
    ]


def started_twice(
    labels: Sequence[Sequence[int]], start: int | None, tokenizer: Any, where: str
) -> list[Finding]:
    """Returns a finding where targets begin with the token that the decoder is given before them.

    Args:
        labels: Of each row.
        start: The model's ``decoder_start_token_id``.
        tokenizer: Of the model.
        where: The split.
    """
    count = sum(bool(row) and row[0] == start for row in labels)
    if start is None or not count:
        return []
    return [
        Finding(
            "info",
            "turns",
            f"{count:,} of {len(labels):,} targets begin with {tokenizer.convert_ids_to_tokens(start)!r}, "
            "which the decoder is given before them anyway: it learns to write it once more",
            where,
            "nothing: it costs one token a row; another `decoder_start_token_id` would save it",
        )
    ]


def too_long_to_write(labels: Sequence[Sequence[int]], most: int, where: str) -> list[Finding]:
    """Returns how many answers are longer than what the model may write when it is judged."""
    sizes_N = np.asarray([sum(i != IGNORED for i in row) for row in labels])
    count = int((sizes_N > most).sum())
    if not count:
        return []
    return [
        Finding(
            "warning",
            "turns",
            f"{count:,} of {len(sizes_N):,} answers ({share(count, len(sizes_N))}) have more tokens than "
            f"`task.max_new_tokens: {most}`: what the model writes is cut before it is judged",
            where,
            f"`task.max_new_tokens: {sizes_N.max()}` leaves room for the longest",
        )
    ]


def _template(tokenizer: Any) -> list[Finding]:
    encoder = ChatEncoder(tokenizer)
    if encoder.end_of_turn is None:
        return [
            Finding(
                "warning",
                "turns",
                "the chat template writes no special token behind the assistant's words: answers will run on",
                "task.chat_template",
                "set `task.chat_template: chatml`, or a file whose turns end with the tokenizer's end token",
            )
        ]
    return []
