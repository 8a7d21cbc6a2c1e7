"""Supervised training on labeled rows: the stock Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.registry import METHODS
from hf_llm_recipes.tuning._model import is_quantised


@METHODS.register
@dataclass(kw_only=True)
class Supervised(Method):
    """transformers' ``Trainer`` as it is; for labels that are token ids, with the loss of
    ``_language_trainer``.
    """

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        from transformers import TrainingArguments

        return TrainingArguments

    def build(self, parts: Parts):
        """Returns the Trainer."""
        from transformers import Trainer

        given = {
            "model": parts.model,
            "args": parts.arguments,
            "train_dataset": parts.train,
            "eval_dataset": parts.eval,
            "data_collator": parts.collator,
            "compute_metrics": parts.compute_metrics,
            "processing_class": parts.processing_class,
            "callbacks": parts.callbacks,
        }
        with frozen_quantised_base(parts.model):
            if parts.task is None or not parts.task.vocabulary_labels:
                return Trainer(**given, compute_loss_func=parts.compute_loss)
            from hf_llm_recipes.methods._language_trainer import LanguageTrainer

            return LanguageTrainer(**given, shift_labels=parts.task.shifted_labels)


@contextmanager
def frozen_quantised_base(model: Any) -> Iterator[None]:
    """Lets a Trainer take a quantised model whose trained layers are all in full precision.

    The Trainer's constructor refuses every quantised model without an adapter, since integer
    weights have no gradient. With frozen layers quantised and the trained ones not (`tuning:
    freeze`), that reason does not hold.

    Raises:
        ValueError: a quantised weight is marked as trainable.
    """
    plain = getattr(model, "is_quantized", False) and not hasattr(model, "peft_config")
    if not plain:
        yield
        return
    bad = [n for n, p in model.named_parameters() if p.requires_grad and is_quantised(p)]
    if bad:
        raise ValueError(f"`{bad[0]}` is quantised and cannot be trained; allowed: lora, freeze")
    model.is_quantized = False
    try:
        yield
    finally:
        model.is_quantized = True
