"""Distillation: a small model learns from a large one's whole answers, not only from the labels.

    method:
      name: distillation
      teacher: runs/large      # a finished run of the same task, a Hub id or a folder
    data:
      name: …
      unlabeled: pool.csv      # for one answer a row: what the teacher says of these rows, too

Shape suffixes: K items (rows, words or supervised tokens)  C classes or vocabulary  T tokens  D width.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import Tensor

from hf_llm_recipes.errors import RunError
from hf_llm_recipes.methods import _pool_teaching
from hf_llm_recipes.methods._forward import model_inputs, unwrapped
from hf_llm_recipes.methods._pool_teaching import Lessons, PoolTrainer
from hf_llm_recipes.methods._streams import TwoStreams
from hf_llm_recipes.methods._teacher import load_answering, load_teacher
from hf_llm_recipes.methods._teaching import NEARNESS, TaughtTrainer
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import METHODS
from hf_llm_recipes.tuning import _model

IGNORED = -100
RATIO = 3.0  # unlabeled rows for each labeled one


@METHODS.register
@dataclass(kw_only=True)
class Distillation(Method):
    """Learn from a teacher's logits (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, §2).

    The loss is (1 − w) · L(labels) + w · T² · KL(teacher ‖ student), both softened by T, + h · the mean
    squared difference of hidden states (Sanh et al. 2019, https://arxiv.org/abs/1910.01108, use the
    cosine instead). A regression learns the squared difference of the two values in place of the KL.

    With a pool (``data.unlabeled``, or ``data.labels_per_class``) the KL is the mean over labeled and
    unlabeled rows, ``unlabeled_ratio`` of these for each of those; an epoch is one pass over the pool. The
    teacher answers every row once, before the training.

    Args:
        teacher: A finished run of the same task, or its ``model/``; for a language model, or with a pool,
            also a Hub id, a folder or ``local/…``. It needs the student's tokenizer; with a pool only the
            student's classes, in whatever order.
        weight: w, in [0, 1].
        temperature: T, > 0; 1 for a regression.
        hidden_weight: h, ≥ 0. Student layer i of S learns from teacher layer i·L/S, rounded; both models
            need one width.
        unlabeled_ratio: Unlabeled rows for each labeled one, > 0; 3 where there is a pool.

    Raises:
        ValueError: a value out of range, or nothing is learned from the teacher.
    """

    comparable: ClassVar[bool] = True
    takes_unlabeled: ClassVar[bool] = True

    teacher: str
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    unlabeled_ratio: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; allowed: 0 to 1")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}; allowed: above 0")
        if not (self.hidden_weight >= 0 and math.isfinite(self.hidden_weight)):
            raise ValueError(f"hidden_weight is {self.hidden_weight}; allowed: 0 or more")
        if self.weight == self.hidden_weight == 0:
            raise ValueError("weight and hidden_weight are 0: the teacher has no effect; use `supervised`")
        ratio = self.unlabeled_ratio
        if ratio is not None and not (ratio > 0 and math.isfinite(ratio)):
            raise ValueError(f"unlabeled_ratio is {ratio}; allowed: above 0")

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        return transformers.TrainingArguments

    def build(self, parts: Parts) -> TaughtTrainer:
        """Returns the Trainer; the teacher is loaded here, and asked about a pool.

        Raises:
            DataError: the pool is too small, or the task has several answers a row.
            RunError: the teacher is missing, answers other classes, or reads other tokens.
            ValueError: the two models' widths differ where hidden states are compared; or a value that has
                no effect with a pool, or without one.
        """
        self.lessons: Lessons | None = None
        if parts.unlabeled_rows is not None:
            return self._on_a_pool(parts)
        if self.unlabeled_ratio is not None:
            raise ValueError("unlabeled_ratio has no effect without a pool (`data.unlabeled`): take it out")
        if parts.arguments.label_smoothing_factor and parts.task.vocabulary_labels:
            raise ValueError("label_smoothing_factor has no effect beside a teacher: take it out")
        teacher = load_teacher(self.teacher, parts.task, parts.processing_class)
        _check_fit(self.teacher, teacher, unwrapped(parts.model), hidden=self.hidden_weight > 0)
        with frozen_quantised_base(parts.model):
            return DistillationTrainer(
                teacher=teacher.requires_grad_(False).eval(),
                train_dataset=parts.train,
                **self._given(parts),
            )

    def _on_a_pool(self, parts: Parts) -> PoolTrainer:
        _pool_teaching.check_pool(parts, self.hidden_weight)
        batches = _pool_teaching.batches_of(parts, self.unlabeled_ratio or RATIO)
        teacher = load_answering(self.teacher, parts.task, unwrapped(parts.model).config.id2label)
        self.lessons = _pool_teaching.lessons(teacher, parts)
        with frozen_quantised_base(parts.model):
            return PoolTrainer(
                streams=TwoStreams(parts.train, parts.unlabeled, None, batches),
                lessons=self.lessons,
                teacher_weights=_model.count_parameters(teacher.model)["total"],
                **self._given(parts),
            )

    def _given(self, parts: Parts) -> dict[str, Any]:
        return {
            "settings": self,
            "task": parts.task,
            "model": parts.model,
            "args": parts.arguments,
            "eval_dataset": parts.eval,
            "data_collator": parts.collator,
            "compute_metrics": parts.compute_metrics,
            "compute_loss_func": parts.compute_loss,
            "processing_class": parts.processing_class,
            "callbacks": parts.callbacks,
        }

    def report(self, trainer: TaughtTrainer) -> dict[str, Any]:
        """How large both models are, and how near to each other at first and at last.

        ``agreement`` is the share of training items for which both say the same, ``kl`` the unsoftened
        KL(teacher ‖ student) an item in nats; in the first and the last tenth of what was logged.
        """
        found = {
            "teacher": self.teacher,
            "teacher_weights": trainer.teacher_weights,
            "student_weights": _model.count_parameters(trainer.model)["total"],
        }
        logs = [entry for entry in trainer.state.log_history if NEARNESS[0] in entry]
        tenth = max(1, len(logs) // 10)
        for when, few in (("first", logs[:tenth]), ("last", logs[-tenth:])):
            for name in NEARNESS if logs else ():
                short = name.rpartition("/")[2]
                found[f"{when}_{short}"] = round(sum(entry[name] for entry in few) / len(few), 4)
        return found

    def baselines(self, trainer: TaughtTrainer) -> dict[str, np.ndarray]:
        """What the teacher of a pool says of the test rows, for one class a row."""
        if self.lessons is None or trainer.task.item_problem != "single_label":
            return {}
        return {"teacher": torch.softmax(torch.from_numpy(self.lessons.test_NC).double(), -1).numpy()}


class DistillationTrainer(TaughtTrainer):
    """A Trainer whose loss looks at a frozen teacher too.

    Args:
        teacher: In ``eval()``, no gradients.
        **rest: Of ``TaughtTrainer``.
    """

    def __init__(self, *, teacher: Any, **rest: Any) -> None:
        super().__init__(**rest)
        taken = inspect.signature(type(unwrapped(teacher)).forward).parameters
        # with a cache, packed sequences see each other: transformers makes one where nothing forbids it
        self._no_cache = {"use_cache": False} if "use_cache" in taken else {}
        quantised = getattr(teacher, "is_quantized", False)
        self.teacher = teacher if quantised else teacher.to(self.args.device)
        self.teacher_weights = _model.count_parameters(teacher)["total"]
        if self.compute_loss_func is None and not self.model_accepts_loss_kwargs:
            raise RunError(
                f"{type(unwrapped(self.model)).__name__} takes the mean of each micro-batch itself",
                hint="its loss would change with gradient accumulation: choose another model",
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The labels' loss and the teacher's, over the items of the whole optimizer step."""
        hidden = {"output_hidden_states": True} if self.settings.hidden_weight else {}
        labels_loss, outputs = super().compute_loss(
            model, {**inputs, **hidden}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        with torch.no_grad():
            theirs = self.teacher(**model_inputs(self.teacher, inputs), **self._no_cache, **hidden)
        student_KC, teacher_KC = (self._items(found["logits"], inputs) for found in (outputs, theirs))
        count = num_items_in_batch if num_items_in_batch is not None else len(student_KC)
        taught = self._difference(student_KC, teacher_KC) / count
        if model.training:
            self._note_nearness(student_KC, teacher_KC)
        if hidden:
            taught = taught + self._hidden_difference(outputs, theirs, inputs, len(student_KC)) / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            taught = taught * self.accelerator.num_processes  # as the stock loss: gradients are averaged
        loss = (1 - self.settings.weight) * labels_loss + taught
        return (loss, outputs) if return_outputs else loss

    def _items(self, logits: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The scores that labels belong to, (K, C) in float32."""
        if not self.task.vocabulary_labels:
            if self.task.item_problem == "regression":
                return logits.float().reshape(-1, 1)
            items_KC = self.task.items(logits, inputs)[0]
            if self.task.item_problem != "tokens":
                return items_KC
            return items_KC[self.task.item_labels(inputs["labels"], inputs) != IGNORED]
        labels = inputs["labels"]
        if self.task.shifted_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        return logits[labels != IGNORED].float()

    def _hidden_difference(self, ours: Any, theirs: Any, inputs: dict[str, Any], items: int) -> Tensor:
        """h · the mean squared difference over real tokens and width, times the items of the batch."""
        mine, yours = ours["hidden_states"][1:], theirs["hidden_states"][1:]
        mask = inputs.get("attention_mask")
        total = mine[0].new_zeros((), dtype=torch.float32)
        for i, states in enumerate(mine, start=1):
            goal = yours[round(i * len(yours) / len(mine)) - 1]
            square_BT = (states.float() - goal.float()).square().mean(-1)
            keep = torch.ones_like(square_BT) if mask is None else mask.to(square_BT)
            total = total + (square_BT * keep).sum() / keep.sum()
        return self.settings.hidden_weight * items * total / len(mine)


def _check_fit(name: str, teacher: Any, student: Any, *, hidden: bool) -> None:
    theirs, ours = unwrapped(teacher).config, student.config
    if getattr(theirs, "id2label", None) != getattr(ours, "id2label", None):
        raise RunError(
            f"the teacher's classes are {list(theirs.id2label.values())}, "
            f"the student's {list(ours.id2label.values())}",
            where=name,
            hint="name the classes in the same order in both recipes (`task.labels`)",
        )
    if hidden:
        widths = theirs.hidden_size, ours.hidden_size
        if widths[0] != widths[1]:
            raise ValueError(
                f"hidden_weight compares hidden states, but the teacher is {widths[0]} wide and the student "
                f"{widths[1]}; allowed: one width, or hidden_weight 0"
            )
