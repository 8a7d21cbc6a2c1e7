"""The base of a task: what is predicted, from which columns, and how it is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hf_llm_recipes.errors import DataError


@dataclass
class Prepared:
    """Rows turned into features.

    Args:
        train: Features to train on.
        eval: Features looked at during training; None where the data has no eval split.
        test: Features touched once, at the end.
        config: Values for the model's configuration (labels, problem type).
        collator: Rows -> a batch.
        unlabeled: Features of the pool, without labels; None where there is no pool.
        findings: Counts that a user should see (rows cut, empty texts), JSON-able.
        notes: The same in sentences.
        callbacks: Of the Trainer, that the features need: such as one that tells them the epoch.
    """

    train: Any
    eval: Any
    test: Any
    config: dict[str, Any]
    collator: Any
    unlabeled: Any = None
    findings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    callbacks: list[Any] = field(default_factory=list)


@dataclass
class Judged:
    """What a task says of a trained model's answers to the test rows.

    Args:
        metrics: With intervals, JSON-able, as ``evaluation.format_table`` shows them.
        columns: Name -> one value a row, for ``predictions.parquet``.
    """

    metrics: dict[str, Any]
    columns: dict[str, list[Any]]


def splits(loaded: Any) -> list[str]:
    """Returns the labeled splits that the data has: train and test, and eval unless it has none."""
    return ["train", *(["eval"] if loaded.eval is not None else []), "test"]


class Task(ABC):
    """Turns rows into features and logits into a judgement.

    A subclass is a dataclass whose fields are the keys of the recipe's ``task:`` section.
    """

    auto_class: ClassVar[str]  # of transformers, e.g. "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str | None]  # of peft, e.g. "SEQ_CLS"; None: its plain model
    pipeline_tag: ClassVar[str]  # of the Hub, e.g. "text-classification"
    processor: ClassVar[str] = "tokenizer"  # what turns rows into features: that or "image_processor"
    vocabulary_labels: ClassVar[bool] = False  # labels are token ids; the head is the checkpoint's own
    shifted_labels: ClassVar[bool] = False  # a label belongs to the place before it: a causal model
    methods: ClassVar[tuple[str, ...] | None] = None  # that can train it; None: every one that takes features
    label_names: ClassVar[list[str] | None] = None  # of a batch, where the model's forward takes none
    compares_rows: ClassVar[bool] = False  # its loss is one of rows beside each other: a batch cannot be cut
    judges_model: ClassVar[bool] = False  # logits of all test rows are too many: see `judge_model`
    places: ClassVar[bool] = False  # its labels are places in a text, counted in characters
    writes: ClassVar[bool] = False  # a causal model that answers with text: see `LanguageTask.writing`

    @property
    def takes_settings(self) -> bool:
        """Whether ``GenerationConfig`` changes what it writes, and it has ``LanguageTask.with_settings``."""
        return self.writes

    @property
    def read_as(self) -> dict[str, Any]:
        """Fields that ``prepare`` told by the data, in place of those of the recipe; saved with the model."""
        return {}

    @property
    @abstractmethod
    def stratify_by(self) -> str | None:
        """The column whose proportions a random split keeps."""

    @property
    @abstractmethod
    def input_columns(self) -> list[str]:
        """The columns whose content makes a row what it is: two rows that agree in them are the same."""

    @property
    def item_problem(self) -> str:
        """What an unlabeled item is: ``single_label``, ``multi_label``, ``tokens`` or ``regression``."""
        return "single_label"

    @abstractmethod
    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns features of every split.

        Args:
            loaded: ``data.loading.Loaded``.
            tokenizer: Of the model.
            model_config: The checkpoint's configuration, for its maximal length.

        Raises:
            DataError: a column is missing or a row cannot be used.
        """

    @abstractmethod
    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns features and findings of new rows for a trained model, labels where asked."""

    @abstractmethod
    def loss(self, label_smoothing: float) -> Any:
        """Returns ``(outputs, labels, num_items_in_batch=None) -> loss``, or None for the model's own.

        It must be the mean over all rows of an optimizer step, however they are cut into batches.

        Raises:
            ValueError: label smoothing has no meaning here.
        """

    def items(self, logits: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Returns the items of a batch as semi-supervised algorithms see them.

        Args:
            logits: A tensor of the batch's logits.
            batch: The batch as the collator gives it, labels or not.

        Returns:
            Logits in float32, (items, C), and the row of each item, (items,).

        Raises:
            ValueError: this task has no classes to guess.
        """
        return logits.float(), torch.arange(len(logits), device=logits.device)

    def item_labels(self, labels: Any, batch: dict[str, Any]) -> Tensor:
        """Returns the class of each item of ``items``, (items,); −100 where it has none."""
        return labels

    def num_item_classes(self, model_config: Any) -> int:
        """Returns C of ``items``."""
        return model_config.num_labels

    @abstractmethod
    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """The cheap metrics, for evaluations while training (``compute_metrics`` of a Trainer)."""

    @abstractmethod
    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """The full metrics with intervals, JSON-able."""

    @abstractmethod
    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """One answer a row, with its probability or value."""

    @abstractmethod
    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Writes rows, labels, predictions and probabilities to a Parquet file."""

    @abstractmethod
    def collator(self, processor: Any) -> Any:
        """Rows of features, labeled or not -> a batch."""

    def lengths(self, features: Any) -> np.ndarray:
        """Returns how long each row is, (rows,); rows of like length waste little when batched."""
        return np.asarray([len(ids) for ids in features["input_ids"]])

    def outcomes(self, logits: Any, batch: dict[str, Any]) -> tuple[list, list | None]:
        """Returns each row's logits and labels as ``judge`` and ``decode`` take them, before padding.

        Args:
            logits: Of the batch, an array.
            batch: The batch as arrays; at least ``labels`` where there are some.
        """
        labels = batch.get("labels")
        return list(logits), None if labels is None else list(labels)

    def answers(self, rows: Any, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """What ``decode`` says, with whatever of the rows makes it readable."""
        return self.decode(logits, model_config)

    def read_inputs(self, inputs: list[Any]) -> Any:
        """Returns rows of bare inputs, such as texts.

        Raises:
            DataError: an input is none, or this task takes whole rows only.
        """
        raise DataError(
            f"{inputs[0]!r} is no row", where="row 0", allowed="dicts with the task's columns, or a Dataset"
        )

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Judges a model itself, where ``judges_model``; in place of ``judge`` and ``write_predictions``.

        Args:
            model: In ``eval()``, on its device.
            features: Of the rows, as ``prepare`` or ``encode`` made them.
            rows: As they were read.
            processor: The tokenizer or image processor.
        """
        raise TypeError(f"{type(self).__name__} is judged by its logits")

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """Returns what a saved model must give again on a few rows, where ``judges_model``.

        Args:
            model: In ``eval()``, on its device.
            features: Of these rows.
            processor: The tokenizer or image processor.
        """
        raise TypeError(f"{type(self).__name__} is judged by its logits")

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """One answer a row of a model itself, where ``judges_model``; in place of ``answers``.

        Args:
            model: In ``eval()``, on its device.
            rows: A data set with the task's columns.
            processor: The tokenizer or image processor.
        """
        raise TypeError(f"{type(self).__name__} answers by its logits")

    def fit_model(self, source: Any) -> Any:
        """Returns the ``tuning._model.ModelSource`` as this task wants it, e.g. with another attention."""
        return source

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Looks at the model that is about to be trained; returns sentences for the log.

        Raises:
            RunError: it would learn something else than it should.
        """
        return []
