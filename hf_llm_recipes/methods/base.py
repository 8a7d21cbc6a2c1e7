"""The base of a method: how a gradient is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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


class Method(ABC):
    """Builds the Trainer of a run; a subclass's fields are the keys of ``method:``."""

    @classmethod
    @abstractmethod
    def arguments_class(cls) -> type:
        """The class whose arguments the recipe's ``trainer:`` section is."""

    @abstractmethod
    def build(self, parts: Parts) -> Trainer:
        """Returns a Trainer that is ready for ``train()``."""
