"""Distillation on a pool: a teacher answers labeled and unlabeled rows once, a student learns the answers.

Notable:
- The teacher reads rows, not the student's token ids: tokenizers may differ. Its logits are kept on disk by
  what it is and what it read, so that a resume reads the same ones; it is gone while the student trains.
- One forward a step on labeled and unlabeled rows; which rows a step sees is a function of (seed, step).

Shape suffixes: N rows of a split  B labeled rows, U unlabeled ones, R = B + U rows of a step  K items
C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods._features import config_bytes, keep, rows_sha256, weights_sha256
from hf_llm_recipes.methods._forward import model_inputs, unwrapped
from hf_llm_recipes.methods._frozen import MOST_TEST_ROWS
from hf_llm_recipes.methods._streams import TwoStreamBatches, TwoStreams, two_stream_loader
from hf_llm_recipes.methods._teacher import Answering
from hf_llm_recipes.methods._teaching import TaughtTrainer
from hf_llm_recipes.methods.base import Parts

VERSION = 1  # of what is kept; a new one forgets old files
ONE_ANSWER = ("single_label", "multi_label", "regression")  # a row
TAUGHT = "teacher_logits"  # key of a batch
LABELS = ("label", "labels")


@dataclass
class Lessons:
    """A teacher's logits, in the order of the student's classes.

    Args:
        labeled_NC: Of the labeled rows.
        pool_NC: Of the pool.
        test_NC: Of the first test rows, to say how good the teacher is; never learned from.
    """

    labeled_NC: np.ndarray
    pool_NC: np.ndarray
    test_NC: np.ndarray


def check_pool(parts: Parts, hidden_weight: float) -> None:
    """Refuses what cannot be learned from a pool.

    Raises:
        DataError: the task has several answers a row.
        ValueError: hidden states are asked for, or an order of rows that two streams do not have.
    """
    task = parts.task
    if task.vocabulary_labels or task.item_problem not in ONE_ANSWER:
        raise DataError(
            "a teacher answers unlabeled rows with one answer a row; this task has others",
            where="data.unlabeled",
            allowed="text_classification, image_classification",
            hint="take `data.unlabeled` out: distillation then learns from the labeled rows",
        )
    if hidden_weight:
        raise ValueError("hidden_weight has no effect with a pool, whose teacher gives answers; allowed: 0")
    if parts.arguments.train_sampling_strategy != "random":
        raise ValueError("train_sampling_strategy has no effect on two streams: take it out")


def batches_of(parts: Parts, ratio: float) -> TwoStreamBatches:
    """Returns the order of labeled and unlabeled rows.

    Args:
        parts: Of the run.
        ratio: Unlabeled rows for each labeled one.

    Raises:
        DataError: the pool does not fill a batch.
    """
    batch = parts.arguments.train_batch_size
    size = max(1, round(batch * ratio))
    if len(parts.unlabeled) < size * parts.arguments.world_size:
        raise DataError(
            f"the pool has {len(parts.unlabeled)} rows, fewer than a batch of {size}",
            where="data.unlabeled",
            hint="add rows, or lower `method.unlabeled_ratio` or `trainer.per_device_train_batch_size`",
        )
    return TwoStreamBatches(len(parts.train), len(parts.unlabeled), batch, size, parts.arguments.seed)


def lessons(teacher: Answering, parts: Parts) -> Lessons:
    """Returns what a teacher says of every row; each split is read once."""
    few = range(min(MOST_TEST_ROWS, len(parts.test_rows)))
    splits = {
        "labeled": parts.train_rows,
        "pool": parts.unlabeled_rows,
        "test": parts.test_rows.select(few),
    }
    return Lessons(*(_answers(teacher, rows, parts, name) for name, rows in splits.items()))


def _answers(teacher: Answering, rows: Any, parts: Parts, name: str) -> np.ndarray:
    """A teacher's logits of rows, (N, C) float32, kept on disk."""
    arguments, model = parts.arguments, teacher.model
    features, _ = teacher.task.encode(rows, teacher.processor, unwrapped(model).config, labeled=False)
    size = arguments.eval_batch_size
    known = f"{VERSION} {weights_sha256(model, adapters=True)} {rows_sha256(features)} {size} {model.dtype} "
    known += f"{arguments.device.type} {teacher.columns} "
    digest = hashlib.sha256(known.encode() + config_bytes(unwrapped(model)))
    path = Path(parts.cache) / "teachers" / f"{digest.hexdigest()}.npy"
    found = _kept(path, (len(features), len(teacher.columns)))
    if found is None:
        found = _asked(teacher, features, arguments, f"the teacher on {name} rows")
        keep(path, found, "the teacher's answers")
    return found


@torch.no_grad()
def _asked(teacher: Answering, features: Any, arguments: Any, label: str) -> np.ndarray:
    """Longest rows first, in fixed batches: the same rows give the same bits."""
    model, size = teacher.model, arguments.eval_batch_size
    if not getattr(unwrapped(model), "is_quantized", False):
        model = model.to(arguments.device)
    collate = teacher.task.collator(teacher.processor)
    order = np.argsort(-teacher.task.lengths(features), kind="stable")
    found_NC = np.empty((len(features), len(teacher.columns)), np.float32)
    starts = range(0, len(order), size)
    for start in tqdm(starts, desc=label, unit="batch", disable=arguments.disable_tqdm or len(order) < 500):
        chosen = order[start : start + size]
        batch = dict(collate([features[int(i)] for i in chosen]))
        inputs = {key: value.to(arguments.device) for key, value in model_inputs(model, batch).items()}
        logits = model(**inputs)["logits"].float().reshape(len(chosen), -1)
        found_NC[chosen] = logits[:, teacher.columns].cpu().numpy()
    return found_NC


def _kept(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """What a file holds; None where there is none or it is damaged."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32
    return found if fits else None


@dataclass
class Together:
    """Items of ``TwoStreams`` -> one batch, labeled rows first, with the teacher's logits of each row.

    Args:
        collate: Rows -> a batch, as the task does it.
        lessons: The teacher's logits.
    """

    collate: Callable[[list[dict]], Any]
    lessons: Lessons

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch; ``labels`` are those of the labeled rows."""
        labeled = [item["row"] for item in items if not item["key"].unlabeled]
        bare = [{k: v for k, v in item["row"].items() if k not in LABELS} for item in items]
        batch = {**self.collate(bare), "labels": self.collate(labeled)["labels"]}
        kinds = self.lessons.labeled_NC, self.lessons.pool_NC
        taught = [kinds[item["key"].unlabeled][item["key"].index] for item in items]
        return {**batch, TAUGHT: torch.from_numpy(np.stack(taught))}


class PoolTrainer(TaughtTrainer):
    """A Trainer whose student learns a teacher's answers to labeled and unlabeled rows.

    Args:
        streams: Both kinds of rows, labeled ones first in each batch.
        lessons: The teacher's logits.
        teacher_weights: How many the teacher has.
        **rest: Of ``TaughtTrainer``.
    """

    def __init__(self, *, streams: TwoStreams, lessons: Lessons, teacher_weights: int, **rest: Any) -> None:
        self.streams, self.teacher_weights = streams, teacher_weights
        self.together = Together(rest["data_collator"], lessons)
        super().__init__(train_dataset=streams, **rest)
        self._task_loss, self.compute_loss_func = self.compute_loss_func, self._labels_loss

    def get_train_dataloader(self) -> DataLoader:
        """Both streams; see ``TwoStreams``."""
        return self.accelerator.prepare(two_stream_loader(self.streams, self.together, self.args))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The labels' loss, and the teacher's over all rows; of evaluations the labels' loss alone."""
        if TAUGHT not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        known = {**model_inputs(self.model, inputs), "labels": inputs["labels"]}
        labels_loss, outputs = super().compute_loss(
            model, known, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        student_KC, teacher_KC = (self._items(of, inputs) for of in (outputs["logits"], inputs[TAUGHT]))
        self._note_nearness(student_KC, teacher_KC)
        # every batch of the step has as many rows: their means have one weight
        taught = self._difference(student_KC, teacher_KC) / len(student_KC)
        taught = taught / self.current_gradient_accumulation_steps
        loss = (1 - self.settings.weight) * labels_loss + taught
        return (loss, outputs) if return_outputs else loss

    def _labels_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The task's loss of the rows that have labels: the first ones."""
        known = {"logits": outputs["logits"][: len(labels)]}
        return self._task_loss(known, labels, num_items_in_batch=num_items_in_batch)

    def _items(self, logits: Tensor, inputs: dict[str, Any]) -> Tensor:
        """What the teacher is compared in, (K, C) in float32."""
        if self.task.item_problem == "regression":
            return logits.float().reshape(-1, 1)
        return self.task.items(logits, inputs)[0]
