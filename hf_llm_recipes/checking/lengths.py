"""How long the rows of each split are, and what truncation takes of them: rows, tokens, supervised tokens."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.checking.base import Finding, share
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods.grpo import GRPO
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.tasks._rows import input_length
from hf_llm_recipes.tasks.chat import Chat
from hf_llm_recipes.tasks.question_answering import QuestionAnswering
from hf_llm_recipes.tasks.seq2seq import Seq2Seq
from hf_llm_recipes.tasks.token_classification import TokenClassification

MOST_AGAIN = 5_000  # rows that are read again for their whole length
NO_LIMIT = 1 << 30
WORTH_WARNING = 0.01  # share of the rows, or of the supervised tokens
BINS = 16


@dataclass
class Lengths:
    """Of a split, in tokens.

    Args:
        whole_N: Of each row, before anything is cut or left out.
        kept_N: What is left of it; 0 where it is left out.
        limit: Tokens that a row may have.
        supervised: Tokens that carry loss, of what is left; None where the loss is not one of tokens.
        supervised_cut: Tokens that would have carried it.
        passed: Tokens that are read to learn those; None: the ones that are left.
        unit: What is counted beside tokens: ``rows``, ``blocks`` of packed documents, or ``windows``.
        most: Tokens that the model takes.
    """

    whole_N: np.ndarray
    kept_N: np.ndarray
    limit: int
    supervised: int | None = None
    supervised_cut: int = 0
    passed: int | None = None
    unit: str = "rows"
    most: int = NO_LIMIT

    def facts(self) -> dict[str, Any]:
        """Returns the figures, JSON-able."""
        cut_N = self.whole_N - self.kept_N
        quantiles = np.percentile(self.whole_N, [50, 95, 99])
        counts, edges = np.histogram(self.whole_N, bins=min(BINS, max(1, int(np.ptp(self.whole_N)) + 1)))
        return {
            "tokens": int(self.kept_N.sum()),
            "rows_cut": int((cut_N > 0).sum()),
            "tokens_cut": int(cut_N.sum()),
            "supervised_tokens": self.supervised,
            "supervised_tokens_cut": self.supervised_cut,
            "tokens_read": int(self.kept_N.sum()) if self.passed is None else self.passed,
            "length": {
                **{name: float(q) for name, q in zip(("median", "p95", "p99"), quantiles, strict=True)},
                "max": int(self.whole_N.max()),
                "limit": self.limit,
                "unit": self.unit,
            },
            "histogram": {"counts": counts.tolist(), "from": float(edges[0]), "to": float(edges[-1])},
        }


def look(subject: Subject, report: Any) -> list[Finding]:
    """Adds the figures of each split to the report; returns what truncation takes."""
    found, every = [], {}
    for split in subject.splits():
        rows = len(subject.all_rows(split))
        report.splits[split] = {"rows": rows, "looked_at": len(subject.rows(split))}
        lengths = measured(subject, split)
        if lengths is not None:
            every[split] = lengths
            report.splits[split] |= lengths.facts()
        found += _left_out(subject, split)
    return told(every, subject.task, {split: subject.where(split) for split in every}) + found


def measured(subject: Subject, split: str) -> Lengths | None:
    """Returns the lengths of a split's rows; None for images."""
    task, features = subject.task, subject.features(split)
    if task.processor != "tokenizer":
        return None
    if isinstance(task, Objective) and "row" not in features.column_names:
        sizes_N = np.asarray([len(ids) for ids in features["input_ids"]])
        return Lengths(sizes_N, sizes_N, task.block_size or int(sizes_N.max()), unit="blocks")
    limit = input_length(task.max_length, subject.tokenizer, subject.config)
    if isinstance(task, QuestionAnswering):  # cut into windows, which hold every token
        sizes_N = np.asarray(sizes(features))
        return Lengths(sizes_N, sizes_N, limit, unit="windows")
    kept_N = _kept(features, len(subject.rows(split)))
    whole_N, lost = _whole(subject, split, kept_N, limit)
    found = Lengths(whole_N, kept_N, limit, supervised_cut=lost)
    found.most = input_length(None, subject.tokenizer, subject.config)
    if split == "unlabeled" or isinstance(subject.plan.method, GRPO):
        return found
    if "labels" in features.column_names and (
        task.vocabulary_labels or isinstance(task, TokenClassification)
    ):
        found.supervised = _supervised(features["labels"], shifted=task.shifted_labels)
        if isinstance(task, Seq2Seq):  # the target is no part of the source
            found.passed = int(kept_N.sum()) + sum(map(len, features["labels"]))
    elif "chosen_ids" in features.column_names:
        found.supervised = _of_both_answers(features)
        found.passed = found.supervised + 2 * sum(map(len, features["prompt_ids"]))
    counts = subject.prepared.findings.get(split, {})
    for name in ("supervised_tokens_lost", "words_cut"):  # counted where it was done
        found.supervised_cut = counts.get(name, found.supervised_cut)
    return found


def told(every: Mapping[str, Lengths], task: Any, where: Mapping[str, str]) -> list[Finding]:
    """Returns one finding where rows are cut or left out, in whichever split.

    Args:
        every: Split -> lengths.
        task: Of the recipe.
        where: Split -> its words.
    """
    cut = {split: found for split, found in every.items() if (found.whole_N > found.kept_N).any()}
    if not cut:
        return []
    first, *others = cut
    lengths = cut[first]
    what = f"{_rows_cut(lengths)} are longer than {lengths.limit} tokens and {_how(task)}: "
    what += f"{lengths.facts()['tokens_cut']:,} of {int(lengths.whole_N.sum()):,} tokens"
    if lengths.supervised is not None:
        unit = "labeled words" if isinstance(task, TokenClassification) else "supervised ones"
        what += f", {lengths.supervised_cut:,} of {lengths.supervised + lengths.supervised_cut:,} {unit},"
    what += " are not seen"
    if others:
        what += "; " + ", ".join(f"{split}: {_rows_cut(cut[split])}" for split in others)
    level = "warning" if any(map(_is_much, cut.values())) else "info"
    return [Finding(level, "lengths", what, where[first], _what_to_do(lengths, task))]


def _rows_cut(lengths: Lengths) -> str:
    rows, count = len(lengths.whole_N), int((lengths.whole_N > lengths.kept_N).sum())
    return f"{count:,} of {rows:,} rows ({share(count, rows)})"


def _is_much(lengths: Lengths) -> bool:
    total = (lengths.supervised or 0) + lengths.supervised_cut
    rows = float((lengths.whole_N > lengths.kept_N).mean())
    return rows >= WORTH_WARNING or lengths.supervised_cut > WORTH_WARNING * total


def _how(task: Any) -> str:
    if isinstance(task, Seq2Seq):
        return "have their source cut"
    if isinstance(task, Chat):
        ways = {"cut_left_turns": "lose their oldest turns", "cut": "are cut at their end"}
        return ways.get(task.truncation, "are left out")
    return "are left out" if task.writes else "are cut"


def _what_to_do(lengths: Lengths, task: Any) -> str:
    longest, most = int(lengths.whole_N.max()), int(np.ceil(np.percentile(lengths.whole_N, 99)))
    if task.max_length is None:
        said = f"the model takes {lengths.limit} tokens and the longest row has {longest:,}: split the rows"
    elif lengths.most < longest and lengths.limit < lengths.most:
        whole = int((lengths.whole_N <= lengths.most).sum())
        said = f"`task.max_length: {lengths.most}` is what the model takes and would keep "
        said += f"{share(whole, len(lengths.whole_N))} of the rows whole"
    elif lengths.most < longest:
        said = f"the model takes no more; the longest row has {longest:,}: split the rows"
    elif lengths.limit < most < longest:
        said = f"`task.max_length: {most}` would keep 99 % of the rows whole, {longest} all of them"
    else:
        said = f"`task.max_length: {longest}` would keep all of them whole"
    if isinstance(task, Chat) and task.truncation == "drop":
        said += "; `task.truncation: cut_left_turns` keeps the last exchange of a long one"
    return said + "; or go on, if what is cut does not matter"


def _left_out(subject: Subject, split: str) -> list[Finding]:
    """Rows that are empty or that nothing can be learnt from."""
    counts, found = subject.prepared.findings.get(split, {}), []
    where, rows = subject.where(split), len(subject.rows(split))
    for name, words in (
        ("rows_empty", "are empty"),
        ("rows_bad", "cannot be learnt from and are left out"),
        ("bad", "cannot be learnt from and are left out"),
        ("documents_too_short", "have fewer than two tokens and are left out"),
    ):
        count = counts.get(name)
        if count:
            of = counts.get("documents", 0) + count if name == "documents_too_short" else rows
            unit = "documents" if name == "documents_too_short" else "rows"
            level = "info" if name == "documents_too_short" else "warning"
            found.append(
                Finding(
                    level,
                    "lengths",
                    f"{count:,} of {of:,} {unit} ({share(count, of)}) {words}{subject.sampled(split)}",
                    where,
                    "take them out of the data, or see that they are meant to be there",
                )
            )
    return found


def sizes(features: Any) -> list[int]:
    """Returns the tokens of each row of features; of a preference, with its longer answer."""
    if "chosen_ids" not in features.column_names:
        return [len(ids) for ids in features["input_ids"]]
    columns = (features[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return [len(p) + max(len(a), len(b)) for p, a, b in zip(*columns, strict=True)]


def _kept(features: Any, rows: int) -> np.ndarray:
    """Tokens that are left of each row, (rows,)."""
    if "row" not in features.column_names:
        return np.asarray(sizes(features))
    return np.bincount(features["row"][:], weights=sizes(features), minlength=rows).astype(np.int64)


def _whole(subject: Subject, split: str, kept_N: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
    """The length of each row before anything was taken, and the supervised tokens of those left out.

    Rows that fill the limit, and those that were left out, are turned into features again without one;
    of very many, the first ones, whose mean stands for the others.
    """
    task = subject.task
    if isinstance(task, Chat) and task.format == "text":
        return kept_N, 0
    again = np.flatnonzero((kept_N >= limit) | (kept_N == 0))
    if not len(again):
        return kept_N, 0
    few = again[:MOST_AGAIN]
    made = _without_limit(subject, split, few)
    if made is None:
        return kept_N, 0
    whole_N = kept_N.copy()
    whole_N[few] = np.maximum(_kept(made, len(few)), kept_N[few])
    whole_N[again[MOST_AGAIN:]] = int(whole_N[few].mean())
    lost = kept_N[few] == 0
    learnt = 0
    if lost.any() and task.vocabulary_labels and "labels" in made.column_names:
        rows = made["row"][:] if "row" in made.column_names else range(len(few))
        gone = [labels for row, labels in zip(rows, made["labels"], strict=True) if lost[row]]
        learnt = _supervised(gone, shifted=task.shifted_labels)
    elif lost.any() and "chosen_ids" in made.column_names:
        learnt = _of_both_answers(made.select([i for i, row in enumerate(made["row"]) if lost[row]]))
    return whole_N, learnt


def _without_limit(subject: Subject, split: str, rows: np.ndarray) -> Any:
    """Features of some rows that no length cuts; None where they cannot be had."""
    tokenizer, config = copy.copy(subject.tokenizer), copy.copy(subject.config)
    tokenizer.model_max_length = NO_LIMIT
    config.max_position_embeddings = NO_LIMIT
    more = {"bad_rows": "drop"} if isinstance(subject.task, Chat) else {}
    task = dataclasses.replace(subject.task, max_length=None, **more)
    labeled = task.vocabulary_labels
    try:
        return task.encode(subject.rows(split).select(rows), tokenizer, config, labeled=labeled)[0]
    except DataError:  # rows that are bad, not long
        return None


def _of_both_answers(pairs: Any) -> int:
    return sum(len(ids) for key in ("chosen_ids", "rejected_ids") for ids in pairs[key])


def _supervised(labels: Any, *, shifted: bool) -> int:
    """Labels that count; in a causal model the first of a row has no place before it."""
    return sum(sum(label != -100 for label in row[1 if shifted else 0 :]) for row in labels)
