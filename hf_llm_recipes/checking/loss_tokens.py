"""Exactly which tokens carry loss: rows as the collator hands them to the model, in readable pieces.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hf_llm_recipes.checking.base import Finding, Piece, Report, Sample
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.methods.grpo import GRPO
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.objectives.contrastive import Contrastive
from hf_llm_recipes.objectives.masked_image import MaskedImage
from hf_llm_recipes.objectives.mlm_nsp import MlmNsp
from hf_llm_recipes.tasks._windows import without_answer
from hf_llm_recipes.tasks.preference import Preference
from hf_llm_recipes.tasks.question_answering import QuestionAnswering
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tasks.token_classification import TokenClassification

IGNORED = -100
SAMPLES = 6  # rows of the train split; the screen shows fewer
MOST_TOKENS = 400  # of a shown row
BEFORE = 120  # tokens shown before the first that carries loss, where a row is longer
ANSWERS = ("chosen", "rejected")


def look(subject: Subject, report: Report) -> list[Finding]:
    """Adds sample rows to the report; this part finds nothing, it shows."""
    features = subject.prepared.train
    chosen = np.unique(np.linspace(0, len(features) - 1, min(SAMPLES, len(features))).astype(int))
    report.samples = [sample for row in chosen for sample in samples(subject, int(row))]
    blocks = isinstance(subject.task, Objective) and subject.task.processor == "tokenizer"
    if blocks and "row" not in subject.features("train").column_names:
        report.samples = [dataclasses.replace(sample, unit="block") for sample in report.samples]
    return []


def samples(subject: Subject, number: int) -> list[Sample]:
    """Returns a row of the train split as it is learnt from; one for each answer of a preference."""
    task, row = subject.task, subject.prepared.train[number]
    place = subject.place("train", int(row["row"]) if "row" in row else number)
    if isinstance(task, Preference):
        return [
            _tokens_sample(
                subject.tokenizer,
                place,
                [*row["prompt_ids"], *row[f"{answer}_ids"]],
                [IGNORED] * len(row["prompt_ids"]) + list(row[f"{answer}_ids"]),
                label=answer,
            )
            for answer in ANSWERS
        ]
    if task.processor == "image_processor":
        return [_image_sample(subject, row, place)]
    if isinstance(subject.plan.method, GRPO):
        label = f"what it writes is learnt by its reward, {task.reward}"
        return [_tokens_sample(subject.tokenizer, place, row["prompt_ids"], None, label=label)]
    return [_text_sample(subject, {k: v.tolist() for k, v in _batch(subject, row).items()}, place)]


def _batch(subject: Subject, row: dict[str, Any]) -> dict[str, Any]:
    made = subject.prepared.collator([row])
    return {key: value for key, value in made.items() if torch.is_tensor(value)}


def _text_sample(subject: Subject, batch: dict[str, Any], place: int) -> Sample:
    task, tokenizer = subject.task, subject.tokenizer
    ids, labels = batch["input_ids"][0], batch.get("labels")
    if isinstance(task, TextClassification):
        return _tokens_sample(tokenizer, place, ids, None, label=label_words(task, labels[0], subject))
    if isinstance(task, Contrastive):
        other = "its pair" if task.text_pair else "itself under another dropout"
        return _tokens_sample(
            tokenizer, place, ids, None, label=f"like {other}, unlike the batch's other rows"
        )
    if isinstance(task, TokenClassification):
        names = subject.prepared.config["id2label"]
        notes = ["" if label == IGNORED or names[label] == "O" else names[label] for label in labels[0]]
        return _tokens_sample(tokenizer, place, ids, labels[0], notes=notes)
    if isinstance(task, QuestionAnswering):
        return _span_sample(tokenizer, place, ids, labels[0])
    if isinstance(task, MlmNsp):
        tokens = [label[0] for label in labels[0]]
        follows = "another document's" if batch["next_sentence_label"][0] else "the text's own"
        return _tokens_sample(
            tokenizer, place, ids, tokens, notes=_words(tokenizer, tokens), label=f"second part: {follows}"
        )
    if task.auto_class == "AutoModelForSeq2SeqLM":  # what is read, then what is to be written
        sample = _tokens_sample(tokenizer, place, ids, None)
        target = _tokens_sample(tokenizer, place, labels[0], labels[0])
        pieces = [*sample.pieces, Piece(" ⇒ "), *target.pieces]
        return Sample("train", place, pieces, tokens=len(ids), supervised=target.supervised)
    notes = None
    if not task.shifted_labels:
        notes = _words(tokenizer, labels[0])
    return _tokens_sample(tokenizer, place, ids, labels[0], notes=notes)


def _span_sample(tokenizer: Any, place: int, ids: list[int], label: Sequence[int]) -> Sample:
    """A window: the two tokens that are to be pointed at."""
    start, end = label[:2]
    notes = [
        " and ".join(word for word, at in (("start", start), ("end", end)) if at == i)
        for i in range(len(ids))
    ]
    marked = [i if note else IGNORED for i, note in zip(ids, notes, strict=True)]
    said = repr(tokenizer.decode(ids[start : end + 1]))
    if start == without_answer(ids, tokenizer):
        said = "no answer in this window"
    return _tokens_sample(tokenizer, place, ids, marked, notes=notes, label=said)


def _image_sample(subject: Subject, row: dict[str, Any], place: int) -> Sample:
    if isinstance(subject.task, MaskedImage):
        batch = subject.prepared.collator([row])
        mask = batch["bool_masked_pos"][0]
        label = f"{int(mask.sum())} of {mask.numel()} patches are hidden; their pixels are learnt"
    else:
        label = subject.prepared.config["id2label"][int(row["labels"])]
    shape = "x".join(map(str, np.shape(row["pixel_values"])))
    return Sample("train", place, [Piece(f"image of {shape} values")], label=label)


def label_words(task: TextClassification, value: Any, subject: Subject) -> str:
    """Returns what a row's label says."""
    names = subject.prepared.config["id2label"]
    if task.problem == "regression":
        return f"{float(np.ravel(value)[0]):g}"
    if task.problem == "multi_label":
        return ", ".join(names[i] for i, flag in enumerate(value) if flag) or "none"
    return names[int(value)]


def _words(tokenizer: Any, labels: Sequence[int]) -> list[str]:
    return ["" if label == IGNORED else tokenizer.decode([label]).strip() for label in labels]


def _tokens_sample(
    tokenizer: Any,
    place: int,
    ids: Sequence[int],
    labels: Sequence[int] | None,
    *,
    notes: Sequence[str] | None = None,
    label: str | None = None,
) -> Sample:
    labels_T = np.full(len(ids), IGNORED) if labels is None else np.asarray(labels)
    loss_T = labels_T != IGNORED
    supervised = None if labels is None else int(loss_T.sum())
    pieces = cut_out(tokenizer, list(ids), loss_T, notes)
    return Sample("train", place, pieces, label=label, tokens=len(ids), supervised=supervised)


def cut_out(
    tokenizer: Any, ids: list[int], loss_T: np.ndarray, notes: Sequence[str] | None = None
) -> list[Piece]:
    """Returns a row's pieces, around its first token with loss where the row is long.

    Args:
        tokenizer: Of the model.
        ids: T token ids.
        loss_T: Whether each carries loss.
        notes: Of each token, what is to be predicted there; None where it is the token itself.
    """
    begin, end = 0, len(ids)
    if end > MOST_TOKENS:
        first = int(loss_T.argmax()) if loss_T.any() else 0
        begin = max(0, min(first - BEFORE, end - MOST_TOKENS))
        end = min(end, begin + MOST_TOKENS)
    notes = None if notes is None else list(notes[begin:end])
    made = pieces(tokenizer, ids[begin:end], loss_T[begin:end], notes)
    before = [Piece(f"… {begin} tokens …")] if begin else []
    behind = [Piece(f"… {len(ids) - end} tokens …")] if end < len(ids) else []
    return [*before, *made, *behind]


def pieces(
    tokenizer: Any, ids: list[int], loss_T: Sequence[bool], notes: Sequence[str] | None = None
) -> list[Piece]:
    """Returns runs of tokens that do, or do not, carry loss; a token with a note is a run of its own."""
    made: list[Piece] = []
    so_far, start = "", 0
    for at in range(1, len(ids) + 1):
        goes_on = at < len(ids) and loss_T[at] == loss_T[start]
        if goes_on and not (notes and (notes[at] or notes[start])):
            continue
        whole = tokenizer.decode(ids[:at], clean_up_tokenization_spaces=False)
        text = whole[len(so_far) :] if whole.startswith(so_far) else tokenizer.decode(ids[start:at])
        made.append(Piece(text, bool(loss_T[start]), notes[start] if notes else ""))
        so_far, start = whole, at
    return made
