"""A Trainer of the run's own method on a few short rows, and the gradient of a step cut into batches.

Dropout is off. Trainable tensors that are all zero (LoRA's B before its first step) are stirred while they
are looked at: behind a zero no gradient arrives, and a lost adapter would not be missed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from hf_llm_recipes.checking.lengths import sizes
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.methods._teacher import untrained
from hf_llm_recipes.methods.distillation import Distillation
from hf_llm_recipes.methods.propagation import Propagation
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.methods.supervised import Supervised
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives.mlm_nsp import MlmNsp
from hf_llm_recipes.tasks.preference import Preference
from hf_llm_recipes.tasks.question_answering import INPUTS
from hf_llm_recipes.training import trainer_of
from hf_llm_recipes.tuning._packed_check import without_dropout

ROWS = 8
TOKENS = 64  # of the longest row; each further one has a few fewer, so that batches are padded
FEWER = 4
OPERATIONS = 1e12  # floating-point, of rows that cannot be cut short
STIR = 0.02  # standard deviation of what stands in for zeros
IGNORED = -100
BY_POOL = (SemiSupervised, Propagation)  # their Trainer takes two streams and looks at the whole pool


@dataclass
class Probe:
    """A Trainer that could train, and what it trains on.

    Args:
        trainer: Of the method; of `supervised` where the method wants a pool.
        rows: How many rows it has.
        own: Whether it is the method's own.
    """

    trainer: Any
    rows: int
    own: bool


def build(subject: Subject, folder: Path) -> Probe:
    """Returns the Trainer on a few rows; what it writes, it writes into a folder that vanishes.

    Raises:
        UserError: what the run would stop with, too.
    """
    whole, plan = subject.prepared, subject.plan
    few = few_rows(subject)
    own = not (isinstance(plan.method, BY_POOL) or _waits_for_teacher(plan.method, whole.unlabeled))
    evaluated = None if whole.eval is None else whole.eval.select(range(1))
    subject.prepared = dataclasses.replace(whole, train=few, eval=evaluated)
    settings = {"dataloader_num_workers": 0, "dataloader_drop_last": False}
    method = plan.method if own else Supervised()
    try:
        subject.trainer = plan.recipe.located(
            lambda: trainer_of(subject, folder, whole.callbacks, method=method, **settings), "trainer"
        )
    finally:
        subject.prepared = whole
    return Probe(subject.trainer, len(few), own)


def _waits_for_teacher(method: Any, pool: Any) -> bool:
    """Whether a teacher must answer a pool first, or be trained itself."""
    return isinstance(method, Distillation) and (pool is not None or untrained(method.teacher) is not None)


def few_rows(subject: Subject) -> Any:
    """Returns a few of the shorter training rows, cut short, no two of one length where that can be."""
    features, task = subject.features("train"), subject.task
    images = task.processor == "image_processor"
    lengths_N = np.zeros(len(features)) if images else np.asarray(sizes(features))
    order = np.argsort(lengths_N, kind="stable")
    count = _affordable(subject, float(np.median(lengths_N)))
    chosen = np.sort(order[len(order) // 4 :][:count] if len(order) >= 2 * count else order[:count])
    few = features.select(chosen)
    if task.processor == "tokenizer" and not isinstance(task, MlmNsp) and "prompt" not in few.column_names:
        few = Dataset.from_list([shortened(row, TOKENS - FEWER * i) for i, row in enumerate(few)])
    elif "labels" in few.column_names and "prompt" in few.column_names:
        few = few.map(lambda row, i: shortened(row, TOKENS - FEWER * i), with_indices=True)
    return Draws(few) if isinstance(subject.prepared.train, Draws) else few


def _affordable(subject: Subject, length: float) -> int:
    """How many rows a step on this machine may have, to be over in seconds."""
    if not isinstance(subject.task, Preference):
        return ROWS
    tokens = OPERATIONS / (16 * subject.parameters["total"])  # forward, backward and reference, twice
    return int(np.clip(tokens / max(2 * length, 1), 2, ROWS))


def shortened(row: dict[str, Any], most: int) -> dict[str, Any]:
    """Returns a row of at most so many tokens, those with loss among them.

    Args:
        row: Features; what is as long as its ``input_ids`` is cut with them.
        most: Tokens.
    """
    length = len(row["input_ids"])
    if length <= most:
        return row
    if "context_at" in row:
        return _shortened_window(row, most)
    labels = row.get("labels")
    first = 0
    if isinstance(labels, list) and len(labels) == length:
        first = next((i for i, label in enumerate(labels) if label != IGNORED), 0)
    begin = min(max(0, first - most // 2), length - most)
    cut = {
        key: value[begin : begin + most] if isinstance(value, list) and len(value) == length else value
        for key, value in row.items()
    }
    if "seq_lengths" in row:  # of blocks: where their documents end
        ends = np.cumsum(row["seq_lengths"])
        inside = [int(end) - begin for end in ends if begin < end < begin + most]
        cut["seq_lengths"] = np.diff([0, *inside, most]).tolist()
    return cut


def _shortened_window(row: dict[str, Any], most: int) -> dict[str, Any]:
    """A window of question answering around the start of its answer; the end is its last token at most."""
    length, (start, end, _) = len(row["input_ids"]), row["labels"]
    begin = min(max(0, start - most // 2), length - most)
    inputs = {key: row[key][begin : begin + most] for key in INPUTS if key in row}
    return {**row, **inputs, "labels": [start - begin, min(end - begin, most - 1), most]}


@contextmanager
def stirred(model: nn.Module) -> Iterator[int]:
    """Small numbers in place of trainable tensors that are all zero; yields how many there are."""
    zeros = [p for p in model.parameters() if p.requires_grad and not bool(p.detach().any())]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in zeros:
            parameter.copy_(STIR * torch.randn(parameter.shape).to(parameter))
    try:
        yield len(zeros)
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


@dataclass
class Gradient:
    """Of one optimizer step.

    Args:
        loss: As the Trainer's steps give it, in sum.
        of: Name -> gradient; None where none arrived.
    """

    loss: float
    of: dict[str, Tensor | None]


def gradient(probe: Probe, batch_size: int) -> Gradient:
    """Returns the gradient of all rows of a probe, as so many a micro-batch; dropout is off."""
    trainer, model = probe.trainer, probe.trainer.model
    trainer._train_batch_size = batch_size
    batches = -(-probe.rows // batch_size)
    trainer.current_gradient_accumulation_steps = batches
    model.zero_grad(set_to_none=True)
    with _staying(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loader = iter(trainer.get_train_dataloader())
        samples, items = trainer.get_batch_samples(loader, batches, trainer.args.device)
        losses = [trainer.training_step(model, batch, items) for batch in samples]
    found = {
        name: None if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    model.zero_grad(set_to_none=True)
    return Gradient(float(sum(losses)), found)


def difference(first: Gradient, second: Gradient) -> float:
    """Returns how far two gradients are apart, as a share of the first's length."""
    apart = length = 0.0
    for name, value in first.of.items():
        other = second.of[name]
        if value is None or other is None:
            continue
        apart += float((value.double() - other.double()).square().sum())
        length += float(value.double().square().sum())
    return (apart / length) ** 0.5 if length else 0.0


@contextmanager
def _staying(model: nn.Module) -> Iterator[None]:
    """Without dropout, whatever a training step says to the model."""
    with without_dropout(model):
        model.train = lambda mode=True: model
        try:
            yield
        finally:
            del model.train
