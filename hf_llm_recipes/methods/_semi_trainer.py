"""The Trainer behind ``method: semi_supervised``: a labeled and an unlabeled loss, step by step.

Notable:
- The two losses go backward one after the other. The gradient is that of their sum, the peak memory
  that of the larger one.
- Exact economy: an unlabeled row whose weight is zero is not computed; the teacher runs without
  gradients, longest rows first in pieces, so that little padding is computed. Neither changes the loss.
- The model holds the student while it trains; evaluations see the teacher, and the student beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.averaging import MovingAverage, default_decay
from hf_llm_recipes.methods._forward import StudentForward, model_inputs, take, widths
from hf_llm_recipes.methods._guard import Guard
from hf_llm_recipes.methods._streams import TwoStreamCollator, TwoStreams, two_stream_loader

log = logging.getLogger("hf_llm_recipes")

STATE = "semi_supervised.pt"
JUDGED = ("accuracy", "f1", "f1_macro")  # of evaluations, by the guard; spans' F1 for tags
PIECE = 8  # rows of one teacher forward on a CPU; a GPU takes all at once


@dataclass
class Schedule:
    """How much the unlabeled loss counts over a training.

    Args:
        weight: Its full weight λ, ≥ 0.
        warmup: Share of the training without it, in [0, 1).
        ramp: Share of the training, after the warm-up, over which it grows as exp(−5(1 − t)²)
            (Laine & Aila 2017, https://arxiv.org/abs/1610.02242); 0: at once.
    """

    weight: float
    warmup: float
    ramp: float

    def at(self, progress: float) -> float:
        """Returns λ where ``progress``, in [0, 1], of the training is over."""
        if progress < self.warmup:
            return 0.0
        if self.ramp == 0:
            return self.weight
        t = min(1.0, (progress - self.warmup) / self.ramp)
        return self.weight * float(torch.exp(torch.tensor(-5 * (1 - t) ** 2)))


@dataclass
class WarmStart:
    """Soft labels from frozen features for the first part of a training.

    Args:
        target_NC: Probabilities for every row of the pool.
        weight_N: How much each row counts, ≥ 0.
        until: Share of the training that learns from them, in [0, 1].
    """

    target_NC: Tensor
    weight_N: Tensor
    until: float


class SemiSupervisedTrainer(Trainer):
    """A Trainer fed by two streams.

    Args:
        task: Turns logits into items (``tasks.base.Task``).
        algorithm: Gives targets and weights.
        streams: Both streams.
        teacher_kind: ``"ema"`` or ``"student"``.
        decay: Of the teacher; None: 1 − 14/T over T steps.
        schedule: Of the unlabeled weight.
        prior_C: Estimated class shares of the pool's items.
        warm_start: Soft labels for the first steps, or None.
        guard: Turns the weight down, or None.
        export: ``"teacher"`` or ``"student"``: whose weights the model holds after ``train()``.
        lower: A ``LowerLayers`` for the fixed views, or None.
        **rest: Of ``Trainer``.

    Raises:
        ValueError: FSDP or DeepSpeed.
    """

    def __init__(
        self,
        *,
        task: Any,
        algorithm: Algorithm,
        streams: TwoStreams,
        teacher_kind: str,
        decay: float | None,
        schedule: Schedule,
        prior_C: Tensor,
        warm_start: WarmStart | None,
        guard: Guard | None,
        export: str,
        lower: Any = None,
        **rest: Any,
    ) -> None:
        self.task, self.algorithm, self.streams = task, algorithm, streams
        self.schedule, self.warm_start, self.guard, self.lower = schedule, warm_start, guard, lower
        self.export, self.decay = export, decay
        collate = rest["data_collator"]
        super().__init__(train_dataset=streams, **rest)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "semi-supervised training swaps whole weights and goes backward twice a step; "
                "allowed: no FSDP and no DeepSpeed"
            )
        self.prior_C = prior_C.to(self.args.device)
        self.two_collator = TwoStreamCollator(collate)
        self.teacher = MovingAverage(self.model, decay or 0.0) if teacher_kind == "ema" else None
        self.tally: dict[str, list[float]] = {}
        self.computed = {"strong_rows": 0, "rows": 0}  # what the economy saved
        self._labeled: tuple[Tensor, Tensor] | None = None
        self._labeled_loss = self.compute_loss_func
        self.compute_loss_func = self._supervised_loss
        self.add_callback(_Steps(self))

    def get_train_dataloader(self) -> DataLoader:
        """Both streams; see ``TwoStreams``."""
        return self.accelerator.prepare(two_stream_loader(self.streams, self.two_collator, self.args))

    @property
    def progress(self) -> float:
        """Share of the training that is over, in [0, 1]."""
        return self.state.global_step / max(self.state.max_steps, 1)

    @property
    def strength(self) -> float:
        """The present weight λ of the unlabeled loss."""
        return self.schedule.at(self.progress) * (self.guard.factor if self.guard else 1.0)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Both losses, forward and backward; returns their weighted sum."""
        unlabeled, strength = inputs.pop("unlabeled"), self.strength
        self._index = inputs.pop("index")
        with self._wait_for_second_backward(model, strength > 0):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if strength == 0:
            return loss
        return loss + self._unlabeled_step(model, self._prepare_inputs(unlabeled), strength)

    def compute_loss(
        self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The supervised loss of the labeled rows."""
        self._batch = inputs
        inputs = {**model_inputs(self.model, inputs), "labels": inputs["labels"]}
        if self.lower is not None and model.training:
            self.lower.quiet()
            with self.lower.replaced(("labeled", self._index), inputs):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _supervised_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The task's loss; in training, remembers the labeled items for the algorithm."""
        if self.model.training:
            items_BC, _ = self.task.items(outputs["logits"].detach(), self._batch)
            labels_B = self.task.item_labels(labels, self._batch)
            seen = labels_B != -100
            self._labeled = items_BC[seen], labels_B[seen]
            kept = self.algorithm.keep_labeled(*self._labeled, self.progress)
            if kept is not None and labels.dim() == 1:
                labels = labels.masked_fill(~kept, -100)
        return self._labeled_loss(outputs, labels, num_items_in_batch=num_items_in_batch)

    def _wait_for_second_backward(self, model: Any, follows: bool) -> contextlib.AbstractContextManager:
        """Several processes exchange gradients once a step: at its last backward."""
        if follows and self.accelerator.num_processes > 1:
            return self.accelerator.no_sync(model)
        return contextlib.nullcontext()

    def _unlabeled_step(self, model: Any, unlabeled: dict[str, Any], strength: float) -> Tensor:
        """Forward and backward of the unlabeled loss; returns its share of the logged loss."""
        with self.compute_loss_context_manager():
            loss = self._unlabeled_loss(model, unlabeled)
        self._count("unlabeled/loss", float(loss.detach()))
        self._count("unlabeled/weight", strength)
        loss = strength * loss / self.current_gradient_accumulation_steps
        if loss.requires_grad:
            self.accelerator.backward(loss)
        return loss.detach()

    def _unlabeled_loss(self, model: Any, unlabeled: dict[str, Any]) -> Tensor:
        rows_U = unlabeled["rows"]
        warm = self.warm_start is not None and self.progress < self.warm_start.until
        if warm:
            guess = self._warm_guess(rows_U)
            item_rows = torch.arange(len(rows_U), device=rows_U.device)
            labeled = tuple(self._across(part) for part in self._labeled)
            self._watch(self._across(guess.target_UC), *labeled, guesses=False)
            return self._view_loss(model, unlabeled, guess, item_rows, warm)
        given, item_rows = self._given(model, unlabeled)
        everywhere = self._everywhere(given)
        guess = self.algorithm.guess(everywhere)
        everyones = torch.softmax(everywhere.weak_UC, -1)
        self._watch(everyones, everywhere.labeled_BC, everywhere.labels_B, guesses=True)
        guess = self._own(guess, len(given.weak_UC))
        waits = self.guard is not None and self.guard.waiting
        self._count("unlabeled/waiting", float(waits))
        if waits:
            guess.weight_U = torch.zeros_like(guess.weight_U)
        if self.algorithm.through_model:
            return self._loss_through(model, unlabeled, given, guess, waits)
        return self._view_loss(model, unlabeled, guess, item_rows, warm)

    def _loss_through(self, model: Any, unlabeled: dict, given: Given, guess: Guess, waits: bool) -> Tensor:
        """The loss of an algorithm that needs the model."""
        self._note(guess, guess.weight_U > 0)
        if waits:
            return torch.zeros((), device=guess.weight_U.device)
        forward = StudentForward(model, unlabeled["weak"], self._batch, self.task)
        return self.algorithm.loss_through(forward, given, guess)

    def _view_loss(self, model: Any, unlabeled: dict, guess: Guess, item_rows: Tensor, warm: bool) -> Tensor:
        """The loss on the student's view of the rows that count."""
        own = self.algorithm.strong_view or warm
        view = unlabeled["strong"] if own and "strong" in unlabeled else unlabeled["weak"]
        kept = guess.weight_U > 0
        if self.accelerator.num_processes > 1 and not kept.any():
            kept = kept.clone()
            kept[0] = True  # every process must take part in the exchange of gradients
        self._note(guess, kept)
        rows_K = torch.unique(item_rows[kept])
        self.computed["strong_rows"] += len(rows_K)
        self.computed["rows"] += len(unlabeled["rows"])
        if len(rows_K) == 0:
            return torch.zeros((), device=kept.device)
        batch = take(view, rows_K)
        logits = model(**model_inputs(self.model, batch))["logits"]
        items_MC, _ = self.task.items(logits, batch)
        among = torch.isin(item_rows, rows_K)  # items of these rows, in their order
        strong_KC = items_MC[kept[among]]
        mine = guess.keep(kept.nonzero().squeeze(-1))
        self._count(
            "unlabeled/agreement",
            (strong_KC.detach().argmax(-1) == mine.target_UC.argmax(-1)).float().mean().item(),
        )
        if warm:
            losses_K = -(mine.target_UC * torch.log_softmax(strong_KC.float(), -1)).sum(-1)
            return (mine.weight_U * losses_K).sum() / len(kept)
        return self.algorithm.loss(strong_KC, mine, self._mean_count(len(kept)))

    def _across(self, values: Tensor) -> Tensor:
        """The rows of all processes, in the processes' order; each may have another number of them."""
        if self.accelerator.num_processes == 1:
            return values
        counts = self._counts(len(values))
        padded = values.new_zeros((1, max(counts), *values.shape[1:]))
        padded[0, : len(values)] = values
        found = self.accelerator.gather(padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def _everywhere(self, given: Given) -> Given:
        """What all processes were given: their algorithms' states stay equal, and that of one process."""
        if self.accelerator.num_processes == 1:
            return given
        names = ("weak_UC", "labeled_BC", "labels_B", "rows_U")
        return replace(given, **{name: self._across(getattr(given, name)) for name in names})

    def _own(self, guess: Guess, count: int) -> Guess:
        """This process's part of a guess about the items of all of them."""
        if self.accelerator.num_processes == 1:
            return guess
        first = sum(self._counts(count)[: self.accelerator.process_index])
        return guess.keep(torch.arange(first, first + count, device=guess.weight_U.device))

    def _counts(self, count: int) -> list[int]:
        """A number of every process."""
        return self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).tolist()

    def _mean_count(self, count: int) -> float:
        """The mean over the processes: gradients are averaged over them, so that words count alike."""
        if self.accelerator.num_processes == 1:
            return count
        counts = self._counts(count)
        return sum(counts) / len(counts)

    def _warm_guess(self, rows_U: Tensor) -> Guess:
        cpu = rows_U.cpu()
        target, weight = self.warm_start.target_NC[cpu], self.warm_start.weight_N[cpu]
        return Guess(target.to(rows_U.device), weight.to(rows_U.device))

    def _given(self, model: Any, unlabeled: dict[str, Any]) -> tuple[Given, Tensor]:
        logits = self._teacher_logits(model, unlabeled["weak"], unlabeled["rows"])
        items_UC, item_rows = self.task.items(logits, unlabeled["weak"])
        labeled_BC, labels_B = self._labeled
        given = Given(
            weak_UC=items_UC.detach(),
            labeled_BC=labeled_BC,
            labels_B=labels_B,
            rows_U=unlabeled["rows"][item_rows],
            prior_C=self.prior_C,
            progress=self.progress,
        )
        return given, item_rows

    @torch.no_grad()
    def _teacher_logits(self, model: Any, weak: dict[str, Any], rows_U: Tensor) -> Tensor:
        """The teacher's logits on the weak views, in ``eval()`` unless the algorithm wants its dropout."""
        weights = self.teacher.swapped() if self.teacher is not None else contextlib.nullcontext()
        model.train(self.algorithm.teacher_dropout)
        try:
            with weights:
                return self._in_pieces(model, weak, rows_U)
        finally:
            model.train()
            if self.lower is not None:
                self.lower.quiet()

    def _in_pieces(self, model: Any, weak: dict[str, Any], rows_U: Tensor) -> Tensor:
        """Logits of a batch, longest rows first, each piece padded to its own longest row."""
        lengths = widths(weak)
        size = PIECE if rows_U.device.type == "cpu" and lengths is not None else len(rows_U)
        order = torch.arange(len(rows_U), device=rows_U.device)
        if lengths is not None:
            order = torch.argsort(lengths, descending=True, stable=True)
        pieces = []
        for chosen in order.split(size):
            batch = take(weak, chosen)
            inputs = model_inputs(self.model, batch)
            with self._lower_replaced(rows_U[chosen], batch):
                pieces.append(model(**inputs)["logits"])
        if pieces[0].dim() == 3:  # tokens: pad the shorter pieces again
            longest = max(piece.shape[1] for piece in pieces)
            longest = max(longest, weak["input_ids"].shape[1])
            pieces = [torch.nn.functional.pad(p, (0, 0, 0, longest - p.shape[1])) for p in pieces]
        return torch.cat(pieces)[torch.argsort(order)]

    def _lower_replaced(self, rows: Tensor, batch: dict) -> contextlib.AbstractContextManager:
        if self.lower is None:
            return contextlib.nullcontext()
        return self.lower.replaced(("unlabeled", rows), batch)

    def _watch(self, teacher_UC: Tensor, labeled_BC: Tensor, labels_B: Tensor, *, guesses: bool) -> None:
        """Logs the class shares of the teacher's guesses and shows them to the guard."""
        if self.guard is None:
            return
        self.guard.observe(teacher_UC, labeled_BC, labels_B, guesses=guesses)
        self._count("unlabeled/histogram_distance", self.guard.distance)

    def _note(self, guess: Guess, kept: Tensor) -> None:
        self._count("unlabeled/kept", kept.float().mean().item())
        classes = guess.target_UC[kept].argmax(-1)
        if guess.target_UC.shape[-1] <= 20:
            for number in range(guess.target_UC.shape[-1]):
                self._count(f"unlabeled/class_{number}", (classes == number).float().mean().item())
        for name, value in guess.stats.items():
            self._count(f"unlabeled/{name}", float(value))

    def _count(self, name: str, value: float) -> None:
        if value == value:  # a mean over no row is not a number
            self.tally.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """Adds the means since the last log."""
        if "loss" in logs and self.tally:
            logs = {**logs, **{name: sum(v) / len(v) for name, v in self.tally.items()}}
            self.tally = {}
        super().log(logs, *rest, **named)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"):
        """Judges the weights that will be exported, and the other's beside them."""
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        if several or not self._training:  # of several, each comes back here
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        teacher_first = self.teacher is not None and self.export == "teacher"
        with self.teacher.swapped() if teacher_first else contextlib.nullcontext():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.teacher is not None:
            metrics |= self._evaluate_other(eval_dataset, ignore_keys, metric_key_prefix)
        self._ask_guard(metrics, metric_key_prefix)
        return metrics

    def _evaluate_other(self, eval_dataset: Any, ignore_keys: Any, prefix: str) -> dict[str, float]:
        """The scores of the weights that are not exported, logged."""
        other = "student" if self.export == "teacher" else "teacher"
        with contextlib.nullcontext() if other == "student" else self.teacher.swapped():
            found = self.evaluation_loop(
                self.get_eval_dataloader(eval_dataset),
                description=f"Evaluation of the {other}",
                ignore_keys=ignore_keys,
                metric_key_prefix=f"{prefix}_{other}",
            ).metrics
        self.log(found)
        return found

    def _ask_guard(self, metrics: dict[str, float], prefix: str) -> None:
        known = [name for name in JUDGED if f"{prefix}_{name}" in metrics]
        if self.guard is not None and known:
            score = metrics[f"{prefix}_{known[0]}"]
            self._say(self.guard.evaluated(self.state.global_step, score, known[0]))

    def _say(self, sentence: str | None) -> None:
        if sentence is not None:
            log.warning(sentence)

    _training = False

    def train(self, *arguments: Any, **named: Any) -> Any:
        """As in any Trainer; afterwards the model holds the weights that are exported."""
        self._training = True
        try:
            result = super().train(*arguments, **named)
        finally:
            self._training = False
        if self.teacher is not None and self.export == "teacher":
            self.teacher.swap()
        if self.lower is not None and self.state.global_step >= self.state.max_steps:
            self._discard_lower_states()
        return result

    def _discard_lower_states(self) -> None:
        """Takes the states of the frozen layers from the disk: they are some hundred megabytes."""
        self.lower.close()
        shutil.rmtree(self.lower.directory, ignore_errors=True)
        self.lower = None

    @contextlib.contextmanager
    def other_weights(self) -> Iterator[None]:
        """The model holds the weights that are not exported; after ``train()``."""
        with self.teacher.swapped():
            yield

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            side = folder / f".{STATE}"
            torch.save(self._state(), side)
            os.replace(side, folder / STATE)
        super()._save_checkpoint(model, trial)

    def _state(self) -> dict[str, Any]:
        return {
            "teacher": self.teacher.state_dict() if self.teacher else {},
            "algorithm": self.algorithm.state_dict(),
            "guard": self.guard.state_dict() if self.guard else {},
            "tally": self.tally,
            "computed": self.computed,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = self._read_state(resume_from_checkpoint)
        self.algorithm.load_state_dict(state["algorithm"])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
        self.tally, self.computed = state["tally"], state["computed"]

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._read_state(self.state.best_model_checkpoint)

    def _read_state(self, folder: str) -> dict[str, Any]:
        state = torch.load(Path(folder) / STATE, map_location=self.args.device, weights_only=True)
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        return state


class _Steps(TrainerCallback):
    """Moves the teacher after each optimizer step and asks the guard."""

    def __init__(self, trainer: SemiSupervisedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        trainer = self.trainer
        if trainer.teacher is not None and trainer.decay is None:
            trainer.teacher.decay = default_decay(state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        trainer = self.trainer
        if trainer.teacher is not None:
            trainer.teacher.update(state.global_step)
        if trainer.guard is not None and trainer.strength > 0:
            trainer._say(trainer.guard.look(state.global_step))
