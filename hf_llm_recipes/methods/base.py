"""The base of a method: how a gradient is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback, TrainingArguments


@dataclass
class Parts:
    """What a run hands to a method.

    Args:
        model: The model with its trainable weights chosen.
        arguments: An instance of the method's ``arguments_class``.
        train: Training features.
        eval: Features looked at during training.
        collator: Rows -> a batch.
        compute_metrics: For the Trainer's evaluations; may be None.
        compute_loss: ``(outputs, labels, num_items_in_batch=None) -> loss``; None where the model's
            own loss is right under gradient accumulation.
        processing_class: The tokenizer or processor, saved with every checkpoint.
        callbacks: Added to the Trainer's own.
        task: The task that made the features.
        test: Features of the test split, for baselines that no training touches.
        train_rows: The training rows as they were read; a feature's ``row`` is a place among them.
        test_rows: The test split's rows as they were read, for a teacher with a tokenizer of its own.
        unlabeled: Features of the pool, or None.
        unlabeled_rows: The pool's rows as they were read, in the same order.
        eval_rows: The eval split's rows as they were read.
        encode: Rows like the pool's -> features like the pool's.
        algorithm: The registered semi-supervised algorithm of the recipe, or None.
        augmentation: The registered augmentations of the recipe; empty for the default ones.
        cache: Folder for what can be computed again.
    """

    model: Any
    arguments: TrainingArguments
    train: Any
    eval: Any
    collator: Any
    compute_metrics: Any
    compute_loss: Any
    processing_class: Any
    callbacks: list[TrainerCallback] = field(default_factory=list)
    task: Any = None
    test: Any = None
    train_rows: Any = None
    test_rows: Any = None
    unlabeled: Any = None
    unlabeled_rows: Any = None
    eval_rows: Any = None
    encode: Any = None
    algorithm: Any = None
    augmentation: list[Any] = field(default_factory=list)
    cache: Path | None = None


class Method(ABC):
    """Builds the Trainer of a run; a subclass's fields are the keys of ``method:``."""

    takes_unlabeled: ClassVar[bool] = False  # whether it learns from `data.unlabeled`
    takes_algorithm: ClassVar[bool] = False  # whether it reads `algorithm:` and `augmentation:`
    tasks: ClassVar[tuple[str, ...] | None] = None  # that it can train; None: every one with features
    for_task: ClassVar[dict[str, str]] = {}  # task -> the method that goes by this one's name there
    refused_callbacks: ClassVar[dict[str, str]] = {}  # name -> why it has no place here
    comparable: ClassVar[bool] = False  # whether `supervised` on the same labels is a baseline to it

    @classmethod
    @abstractmethod
    def arguments_class(cls) -> type:
        """The class whose arguments the recipe's ``trainer:`` section is."""

    @classmethod
    def argument_defaults(cls) -> dict[str, Any]:
        """Values of ``trainer:`` where the class's own would surprise."""
        return {}

    @abstractmethod
    def build(self, parts: Parts) -> Trainer:
        """Returns a Trainer that is ready for ``train()``."""

    def finish(self, trainer: Trainer) -> None:
        """Makes the trained model what is saved, right after ``train()``."""
        return

    def variants(self, trainer: Trainer) -> dict[str, AbstractContextManager]:
        """Other weights than the exported ones that are judged too: name -> a context that puts them in."""
        return {}

    def report(self, trainer: Trainer) -> dict[str, Any]:
        """What ``metrics.json`` shall say of the method, JSON-able; after ``train()``."""
        return {}

    def baselines(self, trainer: Trainer) -> dict[str, Any]:
        """Predictions that cost no training, to stand beside the result: name -> probabilities (rows, C)."""
        return {}
