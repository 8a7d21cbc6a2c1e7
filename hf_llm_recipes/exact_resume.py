"""Makes any Trainer write whole checkpoints and go on from them to the same bits.

``resume_exactly(trainer)`` puts ``ExactResume`` before the class of a Trainer that is built, ours, trl's or
the stock one: everything that it writes into a checkpoint is then written to the side, sealed and renamed
(see ``checkpoints``). What callbacks add in ``on_save`` comes later and is not sealed; none of ours does.

Notable, each of them lost by the stock Trainer (5.23):
- What is summed up between two logs (the loss, counts of tokens) is in the checkpoint, so that the first
  line logged after a resume is the line of a run that was never stopped.
- A checkpoint at the end of an epoch, or of the training, is written after that end's evaluation.
- A training that is over takes no further step, and one ended by early stopping is over.
- An evaluation before the first step does not come a second time.
- Answers that GRPO learns from in several steps are in the checkpoint.
- A stream goes on within the epoch that it was stopped in.
- A stop that reaches a data loader's workers as well takes no batch away (``worker_signals``).
- The best checkpoint is found beside the others in a run that was moved.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import has_length

from hf_llm_recipes import checkpoints
from hf_llm_recipes.worker_signals import steady_workers

PROGRESS = "progress.json"
ANSWERS = "answers.pt"  # that trl's GRPO has written and will learn from in further steps
SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")  # the Trainer's
# What subclasses sum up: tokens, nearness to a teacher; trl's metrics, tokens and forwards.
MORE_SUMS = ("_since_log", "_near", "_metrics", "_total_train_tokens", "_step")


class KeptFacts(TrainerCallback, ABC):
    """A callback that a checkpoint keeps small facts of."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must hold, JSON-able."""

    @abstractmethod
    def take_up(self, facts: dict[str, Any]) -> None:
        """Goes on from there."""


def resume_exactly(trainer: Any) -> Any:
    """Returns the same Trainer, its class with ``ExactResume`` before it."""
    cls = type(trainer)
    if not issubclass(cls, ExactResume):
        trainer.__class__ = type(cls.__name__, (ExactResume, cls), {"__module__": cls.__module__})
        trainer.add_callback(_Keeper(trainer))
    return trainer


def read_progress(checkpoint: str | Path | None) -> dict[str, Any]:
    """Returns what ``ExactResume`` has left in a checkpoint; nothing where it has not written it."""
    path = Path(checkpoint) / PROGRESS if checkpoint else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}


class ExactResume:
    """Stands before a Trainer's class; its own names begin with ``_exact``, so that they hide no other."""

    _exact_side: Path | None = None  # while a checkpoint is written
    _exact_progress: ClassVar[dict[str, Any]] = {}  # of the checkpoint that this training went on from
    _exact_from: str | None = None
    _exact_began = 0.0
    _exact_epoch = 0
    _exact_epoch_began = 0  # at which step
    _exact_epoch_ends = False  # whether the loop stands behind the last step of an epoch

    def get_train_dataloader(self) -> DataLoader:
        """That of the class behind, its workers deaf to the first stop."""
        return steady_workers(super().get_train_dataloader())

    def get_eval_dataloader(self, *given: Any, **named: Any) -> DataLoader:
        """That of the class behind, its workers deaf to the first stop."""
        return steady_workers(super().get_eval_dataloader(*given, **named))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._exact_side is None else str(self._exact_side)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes to the side, seals, renames; then deletes older ones."""
        folder = Path(self._get_output_dir(trial))
        side, name = folder / checkpoints.SIDE, f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(side, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._exact_side = side
            super()._save_checkpoint(model, trial)
            self._exact_side = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._exact_complete(side / name, folder / name)
                checkpoints.seal(side / name)
                checkpoints.publish(side / name, folder / name)
                checkpoints.rotate(
                    folder / name, self.args.save_total_limit, self.state.best_model_checkpoint
                )
        finally:
            self._exact_side = None
            if self.args.should_save:
                shutil.rmtree(side, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _exact_complete(self, side: Path, target: Path) -> None:
        """Adds what the stock Trainer forgets; a best checkpoint goes by its later name."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == side:
            self.state.best_model_checkpoint = str(target)
            self.state.save_to_json(os.path.join(side, checkpoints.STATE))
        answers = vars(self).get("_buffered_inputs")
        if answers is not None:
            torch.save(answers, side / ANSWERS)
        (side / PROGRESS).write_text(json.dumps(self._exact_made(), default=_listed), encoding="utf-8")

    def _exact_made(self) -> dict[str, Any]:
        state, ended = self.state, self._exact_epoch_ends
        total = self._total_loss_scalar + self._tr_loss.item()
        return {
            "sums": {name: vars(self)[name] for name in (*SUMS, *MORE_SUMS) if name in vars(self)},
            "seconds": time.time() - self._exact_began + self._exact_progress.get("seconds", 0.0),
            "train_loss": total / max(state.global_step, 1),
            "over": state.global_step >= state.max_steps or self._exact_patience_is_over(),
            "epoch": self._exact_epoch + ended,
            "steps_in_epoch": 0 if ended else state.global_step - self._exact_epoch_began,
            "callbacks": {type(c).__name__: c.facts() for c in self._exact_keeping()},
        }

    def _exact_patience_is_over(self) -> bool:
        return any(
            isinstance(c, EarlyStoppingCallback)
            and c.early_stopping_patience_counter >= c.early_stopping_patience
            for c in self.callback_handler.callbacks
        )

    def _exact_keeping(self) -> list[KeptFacts]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, KeptFacts)]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        known = read_progress(resume_from_checkpoint).get("callbacks", {})
        for callback in self._exact_keeping() if self.is_world_process_zero() else []:
            if type(callback).__name__ in known:
                callback.take_up(known[type(callback).__name__])

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        self._exact_progress, self._exact_began = read_progress(resume_from_checkpoint), time.time()
        self._exact_from = resume_from_checkpoint
        self._exact_epoch, self._exact_epoch_began, self._exact_epoch_ends = 0, 0, False
        if self.args.should_save:
            checkpoints.tidy(Path(self.args.output_dir))
        evaluates = args.eval_on_start
        args.eval_on_start = evaluates and resume_from_checkpoint is None
        try:
            return super()._inner_training_loop(
                batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval
            )
        finally:
            args.eval_on_start = evaluates

    def _init_training_state(
        self, max_steps: int, per_epoch: int, num_epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        epoch, batches = super()._init_training_state(max_steps, per_epoch, num_epochs, checkpoint, trial)
        if checkpoint is None:
            return epoch, batches
        best = self.state.best_model_checkpoint or f"checkpoint-{self.state.best_global_step}"
        beside = Path(checkpoint).parent / Path(best).name
        if self.state.best_global_step and beside.is_dir():
            self.state.best_model_checkpoint = str(beside)
        if not has_length(self.train_dataset) and "epoch" in self._exact_progress:
            epoch = self._exact_progress["epoch"]
            batches = self._exact_progress["steps_in_epoch"] * self.args.gradient_accumulation_steps
        return epoch, batches

    def _run_epoch(self, **given: Any) -> None:
        """As upstream; no step where the training was over."""
        if self._exact_is_over():
            self.control.should_training_stop = True
            return
        first = given["resume_from_checkpoint"] is not None and given["epoch"] == given["epochs_trained"]
        skipped = given["steps_trained_in_current_epoch"] if first else 0
        self._exact_epoch, self._exact_epoch_ends = given["epoch"], False
        self._exact_epoch_began = self.state.global_step - skipped // self.args.gradient_accumulation_steps
        super()._run_epoch(**given)

    def _exact_is_over(self) -> bool:
        return self._exact_progress.get("over", False) or self.state.global_step >= self.state.max_steps

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """As upstream; time and loss are those of the whole training."""
        if self._exact_progress:
            self._initial_global_step = 0
            start_time -= self._exact_progress["seconds"]
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _exact_take_sums(self) -> None:
        """Gives back what was summed up when the checkpoint was written."""
        for name, value in self._exact_progress.get("sums", {}).items():
            present = vars(self).get(name)
            if torch.is_tensor(present):
                setattr(self, name, torch.tensor(value, dtype=present.dtype, device=present.device))
            elif name == "_metrics":  # by mode, then by name, both of them trl's defaultdicts
                for mode, metrics in value.items():
                    self._metrics[mode].update(metrics)
            elif present is not None:
                setattr(self, name, value)
        answers = Path(self._exact_from) / ANSWERS if self._exact_from else None
        if answers is not None and answers.is_file():
            self._buffered_inputs = torch.load(answers, map_location=self.args.device, weights_only=True)


class _Keeper(TrainerCallback):
    """Gives the sums back and puts off a checkpoint that falls on the end of an epoch; called last."""

    def __init__(self, trainer: ExactResume) -> None:
        self.trainer, self.put_off = trainer, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.put_off = False
        self.trainer._exact_take_sums()

    def on_step_end(self, args, state, control, **kwargs):
        ends = control.should_training_stop or control.should_epoch_stop or state.epoch == int(state.epoch)
        if control.should_save and ends:
            control.should_save, self.put_off = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer._exact_epoch_ends = not control.should_training_stop or state.epoch == int(state.epoch)
        if self.put_off:
            control.should_save, self.put_off = True, False


def _listed(tensor: torch.Tensor) -> Any:
    """A tensor for JSON; float32 keeps its bits."""
    return tensor.tolist()
