"""The base of a stage: training on unlabeled rows before the task's own training.

Task-adaptive pretraining (Gururangan et al. 2020, https://arxiv.org/abs/2004.10964, §4), through
whatever weights the tuning has chosen: an adapter learns the domain and then the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback


@dataclass
class StageParts:
    """What a run hands to a stage.

    Args:
        model: A transformers model, bare or under peft, its trainable weights chosen.
        pool: A ``datasets.Dataset`` of features (``input_ids``, ``attention_mask``, …), no labels.
        collator: Rows -> a padded batch.
        processing_class: The tokenizer.
        source: The ``tuning._model.ModelSource`` of the model.
        output_dir: Folder of this stage's checkpoints.
        seed: Of the order of the rows, of masks and dropout.
        device_arguments: Of ``TrainingArguments``: device and precision, e.g. ``use_cpu``.
        callbacks: Added to the Trainer's own.
        resume: A checkpoint of this stage to go on from, or None.
    """

    model: Any
    pool: Any
    collator: Any
    processing_class: Any
    source: Any
    output_dir: str
    seed: int
    device_arguments: dict[str, Any] = field(default_factory=dict)
    callbacks: list[TrainerCallback] = field(default_factory=list)
    resume: Path | None = None


@dataclass(kw_only=True)
class Stage(ABC):
    """Trains a model in place; a subclass's fields are the keys of its block in ``stages:``.

    Args:
        max_steps: Optimizer steps, ≥ 1; instead of ``epochs``.
        epochs: Passes over the pool, > 0; 1 where neither is given.
        batch_size: Rows of one forward on one device, ≥ 1.
        gradient_accumulation_steps: Forwards of one optimizer step, ≥ 1.
        learning_rate: > 0; None: what the stage says.
        warmup_fraction: Share of the steps over which the rate rises, in [0, 1); then it falls to 0.
        save_steps: Steps between checkpoints, ≥ 1; None: only where a signal asks for one.
        logging_steps: Steps between two logs of the loss, ≥ 1.

    Raises:
        ValueError: a value outside these ranges, or both ``max_steps`` and ``epochs``.
    """

    max_steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float | None = None
    warmup_fraction: float = 0.06
    save_steps: int | None = None
    logging_steps: int = 10

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.epochs is not None:
            raise ValueError(
                f"max_steps is {self.max_steps} and epochs is {self.epochs}; allowed: one of the two"
            )
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "save_steps", "logging_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; allowed: above 0")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}; allowed: 0 to below 1")

    @abstractmethod
    def run(self, parts: StageParts) -> dict[str, Any]:
        """Trains ``parts.model`` in place and returns figures, JSON-able.

        The trained weights stay the same objects, nothing stays wrapped, every module's mode and the
        global random state come back as they were. The task's head takes no part.

        Returns:
            ``steps``, ``first_loss`` (of the first step), ``last_loss`` (mean since the log before the
            last one) and ``seconds`` (of this call).
        """
