"""Distillation: a small model learns from a large one's whole answers, not only from the labels.

    method:
      name: distillation
      teacher: runs/large      # a finished run of the same task, a Hub id or a folder

Shape suffixes: K items (rows, words or supervised tokens)  C classes or vocabulary  T tokens  D width.
"""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoTokenizer, Trainer

from hf_llm_recipes import trust
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.methods._forward import model_inputs, unwrapped
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import METHODS
from hf_llm_recipes.rundir import MODEL, RECIPE, RECORD, path_of
from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource

IGNORED = -100
NEARNESS = ("teacher/kl", "teacher/agreement")  # logged


@METHODS.register
@dataclass(kw_only=True)
class Distillation(Method):
    """Learn from a teacher's logits (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, §2).

    The loss is (1 − w) · L(labels) + w · T² · KL(teacher ‖ student), both softened by T, + h · the mean
    squared difference of hidden states (Sanh et al. 2019, https://arxiv.org/abs/1910.01108, use the
    cosine instead). A regression learns the squared difference of the two values in place of the KL.

    Args:
        teacher: A finished run of the same task, or its ``model/``; for a language model also a Hub id, a
            folder or ``local/…``. It needs the student's tokenizer.
        weight: w, in [0, 1].
        temperature: T, > 0; 1 for a regression.
        hidden_weight: h, ≥ 0. Student layer i of S learns from teacher layer i·L/S, rounded; both models
            need one width.

    Raises:
        ValueError: a value out of range, or nothing is learned from the teacher.
    """

    comparable: ClassVar[bool] = True

    teacher: str
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; allowed: 0 to 1")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}; allowed: above 0")
        if not (self.hidden_weight >= 0 and math.isfinite(self.hidden_weight)):
            raise ValueError(f"hidden_weight is {self.hidden_weight}; allowed: 0 or more")
        if self.weight == self.hidden_weight == 0:
            raise ValueError("weight and hidden_weight are 0: the teacher has no effect; use `supervised`")

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        return transformers.TrainingArguments

    def build(self, parts: Parts) -> DistillationTrainer:
        """Returns the Trainer; the teacher is loaded here.

        Raises:
            RunError: the teacher is missing, answers other classes, or reads other tokens.
            ValueError: the two models' widths differ where hidden states are compared.
        """
        if parts.arguments.label_smoothing_factor and parts.task.vocabulary_labels:
            raise ValueError("label_smoothing_factor has no effect beside a teacher: take it out")
        teacher = load_teacher(self.teacher, parts.task, parts.processing_class)
        _check_fit(self.teacher, teacher, unwrapped(parts.model), hidden=self.hidden_weight > 0)
        with frozen_quantised_base(parts.model):
            return DistillationTrainer(
                teacher=teacher.requires_grad_(False).eval(),
                settings=self,
                task=parts.task,
                model=parts.model,
                args=parts.arguments,
                train_dataset=parts.train,
                eval_dataset=parts.eval,
                data_collator=parts.collator,
                compute_metrics=parts.compute_metrics,
                compute_loss_func=parts.compute_loss,
                processing_class=parts.processing_class,
                callbacks=parts.callbacks,
            )

    def report(self, trainer: DistillationTrainer) -> dict[str, Any]:
        """How large both models are, and how near to each other at first and at last.

        ``agreement`` is the share of training items for which both say the same, ``kl`` the unsoftened
        KL(teacher ‖ student) an item in nats; in the first and the last tenth of what was logged.
        """
        found = {
            "teacher": self.teacher,
            "teacher_weights": _model.count_parameters(trainer.teacher)["total"],
            "student_weights": _model.count_parameters(trainer.model)["total"],
        }
        logs = [entry for entry in trainer.state.log_history if NEARNESS[0] in entry]
        tenth = max(1, len(logs) // 10)
        for when, few in (("first", logs[:tenth]), ("last", logs[-tenth:])):
            for name in NEARNESS if logs else ():
                short = name.rpartition("/")[2]
                found[f"{when}_{short}"] = round(sum(entry[name] for entry in few) / len(few), 4)
        return found


class DistillationTrainer(Trainer):
    """A Trainer whose loss looks at a frozen teacher too.

    Args:
        teacher: In ``eval()``, no gradients.
        settings: The method.
        task: Turns logits into items.
        **rest: Of ``Trainer``.
    """

    loss_is_scaled_for_ga = True  # every term is a sum over items by the items of the whole step

    def __init__(self, *, teacher: Any, settings: Distillation, task: Any, **rest: Any) -> None:
        self.settings, self.task = settings, task
        self._near = torch.zeros(3)  # KL, same answers, items since the last log
        super().__init__(**rest)
        taken = inspect.signature(type(unwrapped(teacher)).forward).parameters
        # with a cache, packed sequences see each other: transformers makes one where nothing forbids it
        self._no_cache = {"use_cache": False} if "use_cache" in taken else {}
        quantised = getattr(teacher, "is_quantized", False)
        self.teacher = teacher if quantised else teacher.to(self.args.device)
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
        if model.training and self.task.item_problem != "regression":
            self._near = self._near.to(student_KC.device) + _nearness(student_KC.detach(), teacher_KC)
        if hidden:
            taught = taught + self._hidden_difference(outputs, theirs, inputs, len(student_KC)) / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            taught = taught * self.accelerator.num_processes  # as the stock loss: gradients are averaged
        loss = (1 - self.settings.weight) * labels_loss + taught
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:
        """Adds how near the student is to its teacher, on this process's items."""
        kl, same, items = self._near.tolist()
        if "loss" in logs and items:
            logs = {**logs, **dict(zip(NEARNESS, (kl / items, same / items), strict=True))}
            self._near.zero_()
        super().log(logs, *given, **named)

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

    def _difference(self, student_KC: Tensor, teacher_KC: Tensor) -> Tensor:
        """w · T² · KL(teacher ‖ student), summed over items (Hinton et al. 2015, §2)."""
        weight, temperature = self.settings.weight, self.settings.temperature
        if self.task.item_problem == "regression":
            return weight * (student_KC - teacher_KC).square().sum()
        student, teacher = (log_softmax(x / temperature, dim=-1) for x in (student_KC, teacher_KC))
        return weight * temperature**2 * kl_div(student, teacher, reduction="sum", log_target=True)

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


def _nearness(student_KC: Tensor, teacher_KC: Tensor) -> Tensor:
    """The summed KL(teacher ‖ student), items with the same likeliest class, and items."""
    student, teacher = (log_softmax(x, dim=-1) for x in (student_KC, teacher_KC))
    kl = kl_div(student, teacher, reduction="sum", log_target=True)
    same = (student_KC.argmax(-1) == teacher_KC.argmax(-1)).sum()
    return torch.stack([kl, same, torch.tensor(len(student_KC), device=kl.device)])


def load_teacher(name: str, task: Any, processor: Any) -> Any:
    """Returns the model of a finished run, or of a checkpoint that needs no head of ours.

    Args:
        name: A run directory, its ``model/``, or what ``model.name`` takes.
        task: The student's.
        processor: The student's tokenizer or image processor.

    Raises:
        RunError: there is none, its task is another, or it reads other tokens than the student.
    """
    path = path_of(name)
    folder = next((f for f in (path, path / MODEL) if (f / RECORD).is_file()), None)
    if folder is None:
        return _published(name, task, processor)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    trust.check_run(record, folder.parent / RECIPE, trust_code=False)
    theirs, ours = record["task"]["name"], type(task).__module__.rpartition(".")[2]
    if theirs != ours:
        raise RunError(f"the teacher was trained for {theirs}, the student for {ours}", where=name)
    if task.processor == "tokenizer":
        _check_tokens(name, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), processor)
    config = record["config"]
    if "id2label" in config:
        config["id2label"] = {int(i): label for i, label in config["id2label"].items()}
    return _model.load_saved(
        folder,
        auto_class=task.auto_class,
        source=task.fit_model(ModelSource(**record["model"])),
        updates=config,
        pad_token_id=getattr(processor, "pad_token_id", None),
        quantization=record["quantization"],
    )


def _published(name: str, task: Any, processor: Any) -> Any:
    if not task.vocabulary_labels:
        raise RunError(
            "is no finished run, and only a run has this task's classes",
            where=name,
            hint="train the teacher with a recipe of the same task, then name its run directory",
        )
    source = task.fit_model(ModelSource(name=name))  # it gets the student's batches, packed or not
    _check_tokens(name, _model.load_tokenizer(source), processor)
    precision = _model.choose_precision("auto", frozen_base=True)
    return _model.load_plain(source, task.auto_class, precision)


def _check_tokens(name: str, theirs: Any, ours: Any) -> None:
    if theirs.get_vocab() != ours.get_vocab():
        raise RunError(
            f"the teacher's tokenizer ({len(theirs):,} tokens) is not the student's ({len(ours):,})",
            where=name,
            hint="both read the same token ids: give the student `model.tokenizer` of the teacher",
        )


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
