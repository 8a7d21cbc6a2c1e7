"""Stops a training, or skips a step, before a NaN reaches a weight; tells what looks wrong.

Notable:
- The optimizer step is prevented: after the backward the loss and the gradient norm, which the Trainer
  has computed already, are looked at, and where one is not finite all gradients are dropped. Weights,
  moments and the teacher stay as they are, bit for bit.
- One value is fetched from the device a step; nothing is computed over the weights but once.
- ``watch`` lets the guard of a Trainer see batches and losses; a run does it by itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from hf_llm_recipes.callbacks._batch_rows import guilty, rows_of
from hf_llm_recipes.callbacks._figures import InMetrics
from hf_llm_recipes.callbacks.overfitting import Overfitting
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import CALLBACKS

log = logging.getLogger("hf_llm_recipes")

IGNORED = -100
UNKNOWN = "its rows are not known"
TOLD = 5  # of each kind of finding; the rest is counted
KEPT = 50  # steps remembered for the report
FEW = 20  # losses before one can be told to be unlike them
MAD_TO_SIGMA = 1.4826  # of a normal distribution
COUNTERS = (
    *("losses", "skipped", "skipped_in_all", "in_a_row", "spikes", "spikes_in_all"),
    *("masked_batches", "zero_in_a_row", "dead", "steps", "lost", "steps_since_log", "lost_since_log"),
)


@CALLBACKS.register
@dataclass(kw_only=True, eq=False)
class TrainingGuard(InMetrics, ExportableState):
    """Looks at every step before the optimizer does.

    Args:
        when_not_finite: ``stop`` the training with the step and its rows, or ``skip`` the step, which
            then changes nothing, and count it.
        most_skipped: Steps skipped in a row before it stops after all, ≥ 1.
        most_zero: Steps in a row with a loss of exactly 0 and no gradient before it stops, ≥ 1; None: never.
        spike: How many standard deviations, of the losses before, a loss must lie above their median to be
            told, > 0.
        window: Steps that it remembers for that, ≥ 20.
        dead_after: The step at which tensors whose gradient is exactly 0 are named, ≥ 1; those that get
            none at all are named at the first. None: neither.

    Raises:
        ValueError: a value out of range.
    """

    section: ClassVar[str] = "guard"

    when_not_finite: Literal["stop", "skip"] = "stop"
    most_skipped: int = 10
    most_zero: int | None = 10
    spike: float = 10.0
    window: int = 100
    dead_after: int | None = 10

    def __post_init__(self) -> None:
        if self.when_not_finite not in ("stop", "skip"):
            raise ValueError(f"when_not_finite is {self.when_not_finite!r}; allowed: stop, skip")
        for name, least in (("most_skipped", 1), ("most_zero", 1), ("window", FEW), ("dead_after", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; allowed: {least} or more")
        if self.spike <= 0:
            raise ValueError(f"spike is {self.spike}; allowed: more than 0")
        self.losses: list[float] = []  # of the last steps
        self.skipped: list[int] = []  # steps
        self.spikes: list[int] = []  # steps
        self.skipped_in_all = self.spikes_in_all = self.masked_batches = 0
        self.in_a_row = self.zero_in_a_row = 0
        self.dead: list[str] = []
        self._trainer: Any = None
        self._strangers: list[Tensor] | None = None
        self._begin()

    def _begin(self) -> None:
        self.steps = self.lost = self.steps_since_log = self.lost_since_log = 0
        self._next_step()

    def _next_step(self) -> None:
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []
        self._supervised: list[Tensor] = []
        self._norm: Any = None

    def state(self) -> dict[str, Any]:
        """Its arguments and counters, for the checkpoint."""
        return {
            "args": {field.name: getattr(self, field.name) for field in fields(self)},
            "attributes": {name: getattr(self, name) for name in COUNTERS},
        }

    def report(self) -> dict[str, Any]:
        """What was found, for ``metrics.json``; empty where nothing was."""
        found = {
            "skipped_steps": self.skipped_in_all,
            "skipped_at": self.skipped,
            "loss_spikes": self.spikes_in_all,
            "loss_spikes_at": self.spikes,
            "batches_without_supervised_token": self.masked_batches,
            "tensors_without_gradient": self.dead,
        }
        return {name: value for name, value in found.items() if value}

    def see_batch(self, trainer: Trainer, inputs: Any) -> None:
        """Takes note of a batch before its forward."""
        self._trainer = trainer
        named = isinstance(inputs, Mapping)
        self._batches.append(dict(inputs) if named else inputs)
        labels = inputs.get("labels") if named else None
        if torch.is_tensor(labels) and labels.dim() > 0 and not labels.is_floating_point():
            shifted = getattr(trainer, "_loss_shifts_labels", False) and labels.dim() > 1
            self._supervised.append((labels[..., 1:] if shifted else labels).ne(IGNORED).sum())

    def see_loss(self, loss: Tensor) -> Tensor:
        """Takes note of a batch's loss after its backward; returns what the Trainer adds up."""
        self._losses.append(loss)
        return torch.nan_to_num(loss, 0.0, 0.0, 0.0) if self.when_not_finite == "skip" else loss

    def see_norm(self, norm: Any) -> None:
        """Takes note of the norm of a step's gradient as it was before clipping."""
        self._norm = norm

    def see_logs(self, logs: dict[str, Any]) -> None:
        """Takes skipped steps out of the means, and counts them."""
        if "loss" in logs:
            logs["loss"] *= _share(self.steps_since_log, self.lost_since_log)
            self.steps_since_log = self.lost_since_log = 0
            if self.skipped_in_all:
                logs["skipped_steps"] = self.skipped_in_all
        if "train_loss" in logs:
            logs["train_loss"] *= _share(self.steps, self.lost)

    def on_train_begin(self, args, state, control, **kwargs):
        """Begins anew, or goes on."""
        if state.global_step == 0:
            self._begin()
        self._next_step()
        self._strangers = None

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Looks at the step.

        Raises:
            RunError: a value that is not finite, where it is to stop; nothing but zeros for long.
        """
        step = state.global_step + 1
        loss, norm = self._values(model, optimizer, step)
        self.steps += 1
        self.steps_since_log += 1
        if loss is not None and not math.isfinite(loss):
            self._not_finite(f"the loss is {loss}", step, args, optimizer)
        elif not math.isfinite(norm):
            self._not_finite(f"the gradient's norm is {norm}", step, args, optimizer)
        else:
            self.in_a_row = 0
            self._look_for_zero(loss, norm, step, args)
            if self.dead_after is not None and norm > 0 and step in (1, self.dead_after):
                self._look_for_dead(model, step)
            if loss is not None:
                self._look_for_spike(loss, step)
        self._next_step()

    def _values(self, model: Any, optimizer: Any, step: int) -> tuple[float | None, float]:
        """The step's loss, None where it is not watched, and its gradient's norm: one transfer."""
        norm = self._norm
        if norm is None:  # not watched
            norm = _total_norm(p for group in optimizer.param_groups for p in group["params"])
        if getattr(optimizer, "scaler", None) is not None:
            norm = 1.0  # float16: its scaler skips steps whose gradient overflows, and needs some to do so
        values = [torch.as_tensor(norm).float(), *self._losses, *self._supervised]
        strangers = self._strangers_of(model, optimizer)
        if strangers:
            values.append(_total_norm(strangers))
        device = values[-1].device if self._losses else values[0].device
        found = torch.stack([value.detach().float().to(device) for value in values]).tolist()
        losses = found[1 : 1 + len(self._losses)]
        supervised = found[1 + len(losses) : 1 + len(losses) + len(self._supervised)]
        self._count_masked(supervised, step)
        norm = math.hypot(found[0], found[-1]) if strangers else found[0]
        return (sum(losses) if losses else None), norm

    def _strangers_of(self, model: Any, optimizer: Any) -> list[Tensor]:
        """Trained tensors that are not the model's, such as a second student's."""
        if self._strangers is None:
            mine = {id(p) for p in model.parameters()}
            every = [p for group in optimizer.param_groups for p in group["params"]]
            alike = len(mine) >= len(every) and not any(id(p) in mine for p in every)  # wrapped copies: FSDP
            self._strangers = [] if alike else [p for p in every if id(p) not in mine]
        return self._strangers

    def _count_masked(self, supervised: list[float], step: int) -> None:
        empty = [place for place, count in enumerate(supervised) if count == 0]
        if empty and not self.masked_batches:
            log.warning(
                "step %d: a batch has no supervised token, so it teaches nothing (%s); others are counted",
                step,
                self._rows(empty),
            )
        self.masked_batches += len(empty)

    def _rows(self, places: list[int], *, only_guilty: bool = False) -> str:
        """The training rows of these batches of the step, in words."""
        rows, narrowed = [], False
        for place in places:
            batch = self._batches[place]
            found = rows_of(batch, self._trainer.train_dataset)
            bad = guilty(self._trainer, batch) if only_guilty and found else []
            if bad and len(found) == len(batch["labels"]):
                found, narrowed = [found[i] for i in bad], True
            rows.append((found, bool(bad)))
        kept = [row for found, bad in rows if bad or not narrowed for row in found]
        if not kept:
            return UNKNOWN
        listed = ", ".join(map(str, kept[:16])) + (", …" if len(kept) > 16 else "")
        return f"training row{'s' if len(kept) > 1 else ''} {listed}, counted from 0"

    def _not_finite(self, what: str, step: int, args: Any, optimizer: Any) -> None:
        """Drops the gradients, so that the optimizer does nothing; then stops or counts."""
        told = self.when_not_finite == "stop" or self.skipped_in_all < TOLD
        last = self.when_not_finite == "stop" or self.in_a_row + 1 >= self.most_skipped
        rows = UNKNOWN
        if (told or last) and self._trainer is not None:
            rows = self._rows(list(range(len(self._batches))), only_guilty=True)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.in_a_row += 1
        if last:
            raise self._stopped(what, step, args, rows)
        self.skipped_in_all += 1
        self.skipped = [*self.skipped, step][-KEPT:]
        self._forget_loss()
        if told:
            log.warning("step %d is skipped: %s (%s); no weight was changed", step, what, rows)

    def _forget_loss(self) -> None:
        """Takes the finite part of the step's loss out of the sum that is logged."""
        self.lost += 1
        self.lost_since_log += 1
        for loss in self._losses:
            self._trainer._tr_loss -= torch.nan_to_num(loss, 0.0, 0.0, 0.0)

    def _stopped(self, what: str, step: int, args: Any, rows: str) -> RunError:
        checkpoint = get_last_checkpoint(args.output_dir)
        kept = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
        often = f", {self.in_a_row} steps in a row" if self.when_not_finite == "skip" else ""
        look = "look at these rows; " if rows != UNKNOWN else ""
        return RunError(
            f"step {step}: {what}{often}; {rows}. No weight was changed; {kept}",
            hint=f"{look}try a lower learning_rate, warmup_steps, or max_grad_norm; or "
            "`callbacks: [{name: training_guard, when_not_finite: skip}]`",
        )

    def _look_for_zero(self, loss: float | None, norm: float, step: int, args: Any) -> None:
        self.zero_in_a_row = self.zero_in_a_row + 1 if norm == 0 and loss in (0, None) else 0
        if self.most_zero is None or self.zero_in_a_row != self.most_zero:
            return
        said = f"the loss is exactly 0 and there is no gradient, {self.zero_in_a_row} steps in a row"
        if getattr(args, "num_generations", None) is not None:  # rewards that are all alike teach nothing
            log.warning("step %d: %s: are all rewards of a prompt alike?", step, said)
            return
        raise RunError(
            f"step {step}: {said}: nothing is learned ({self._rows(list(range(len(self._batches))))})",
            hint="look at the labels: every token may be masked, cut off by max_length, or all rows alike",
        )

    def _look_for_dead(self, model: Any, step: int) -> None:
        """Names trained tensors that get no gradient; each once."""
        found = [
            name
            for name, p in model.named_parameters()
            if p.requires_grad
            and name not in self.dead
            and (p.grad is None or (step >= self.dead_after and not p.grad.any()))
        ]
        self.dead += found
        if found:
            listed = ", ".join(found[:TOLD]) + (", …" if len(found) > TOLD else "")
            log.warning(
                "step %d: %d tensors are to be trained but get no gradient: %s. They stay as they are: "
                "freeze them, or see why the loss does not depend on them",
                *(step, len(found), listed),
            )

    def _look_for_spike(self, loss: float, step: int) -> None:
        if len(self.losses) >= FEW:
            median = float(np.median(self.losses))
            spread = MAD_TO_SIGMA * float(np.median(np.abs(np.asarray(self.losses) - median)))
            if loss > median + self.spike * max(spread, 0.01 * abs(median)):
                self._tell_spike(loss, median, step)
        self.losses = [*self.losses, loss][-self.window :]

    def _tell_spike(self, loss: float, median: float, step: int) -> None:
        self.spikes_in_all += 1
        self.spikes = [*self.spikes, step][-KEPT:]
        if self.spikes_in_all <= TOLD:
            log.warning(
                "step %d: the loss is %.4g, the median before it %.4g (%s); if it stays there, try a lower "
                "learning_rate or a longer warm-up",
                *(step, loss, median, self._rows(list(range(len(self._batches))))),
            )


GUARDS = (TrainingGuard, Overfitting)


def watch(trainer: Trainer) -> Trainer:
    """Shows a Trainer's batches, losses and gradient norms to its ``TrainingGuard``; returns the Trainer.

    Args:
        trainer: Any; without a guard among its callbacks it stays as it is.
    """
    if guard_of(trainer) is None:
        return trainer
    step, write, norm_of = trainer.training_step, trainer.log, getattr(trainer, "_get_grad_norm", None)

    @wraps(step)
    def training_step(model: Any, inputs: Any, *given: Any, **named: Any) -> Tensor:
        guard = guard_of(trainer)  # a resume puts another in its place
        guard.see_batch(trainer, inputs)
        return guard.see_loss(step(model, inputs, *given, **named))

    @wraps(write)
    def logged(logs: dict[str, float], *given: Any, **named: Any) -> None:
        guard_of(trainer).see_logs(logs)
        write(logs, *given, **named)

    trainer.training_step, trainer.log = training_step, logged
    if norm_of is not None:

        @wraps(norm_of)
        def grad_norm(*given: Any, **named: Any) -> Any:
            norm = norm_of(*given, **named)
            guard_of(trainer).see_norm(norm)
            return norm

        trainer._get_grad_norm = grad_norm
    return trainer


def guard_of(trainer: Trainer) -> TrainingGuard | None:
    """Returns the ``TrainingGuard`` among a Trainer's callbacks."""
    return next((c for c in trainer.callback_handler.callbacks if isinstance(c, TrainingGuard)), None)


def _share(steps: int, lost: int) -> float:
    """By what a mean over all steps becomes one over those that counted; NaN where none did."""
    if not lost:
        return 1.0
    return steps / (steps - lost) if steps > lost else math.nan


def _total_norm(parameters: Any) -> Tensor:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


def default_guards(named: list[TrainerCallback]) -> list[TrainerCallback]:
    """Returns the guards that every run has, without those that its recipe names."""
    return [kind() for kind in GUARDS if not any(isinstance(callback, kind) for callback in named)]
