"""A training whose batches do not fit into memory goes on with smaller ones, as many rows an optimizer step.

Notable:
- It goes on from the last checkpoint, or from the start with the weights, random states and order of rows
  that a run with the smaller batch would have begun with. accelerate's ``find_executable_batch_size``
  shrinks the effective batch instead, and with it the meaning of the learning rate.
- An optimizer step has the rows that it would have had: samplers look at batch size x accumulation.
- The smaller batch is kept in the run directory, with the step behind which it began: a run that is killed
  afterwards and taken up again goes on with it, to the bits of a run that was not, however much memory there
  is by then; and ``verify`` runs each step again with the batch that it had.
- Losses that compare the rows of a batch cannot be cut: then it stops and says what to try.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_llm_recipes import checkpoints
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.probing import out_of_memory, put_back, random_states

log = logging.getLogger("hf_llm_recipes")

SMALLER = "smaller_batch.json"  # in the run directory: a list, what the training goes on with behind a step

STATEFUL = ("method", "algorithm", "augmentation", "stages", "callbacks")  # of a plan: may change in a try
BATCH, ACCUMULATION, EVAL = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"),
)
SIZES = (BATCH, ACCUMULATION, EVAL)
AFTER = "after_step"  # of the whole training, in each entry
ADVICE = (
    "a smaller `task.max_length`; `trainer.gradient_checkpointing: true`; `tuning: lora` with "
    "`quantization: {load_in_4bit: true}` (QLoRA); or a smaller model"
)


def take_up(runner: Any, checkpoint: Path | None) -> list[str]:
    """Changes a plan as the run did before it was killed; returns what is to be said of it.

    Args:
        runner: ``run._Runner`` whose directory is an unfinished run's.
        checkpoint: From which it goes on.

    Raises:
        RunError: what the run left is damaged.
    """
    kept = kept_sizes(runner.directory / SMALLER)
    if not kept:
        return []
    sizes = sizes_of(kept)
    runner.plan.trainer = {**runner.plan.trainer, **sizes}
    step = _steps_until(checkpoint)
    if kept[-1][AFTER] > step:  # the checkpoint with which it began is no longer whole
        runner.directory.write_json(SMALLER, _noted(kept, step, sizes))
    return [f"{told(sizes)}: this run was out of memory with more ({SMALLER})"]


def kept_sizes(path: Path) -> list[dict[str, int]]:
    """Returns the smaller batches of a run: ``after_step`` and sizes, by rising steps; empty without a file.

    Raises:
        RunError: what the run left is damaged.
    """
    if not path.is_file():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, list) and kept and all(map(_is_entry, kept)):
            return kept
        why = f"it holds {str(kept)[:80]}"
    except ValueError as error:
        why = str(error)
    raise RunError(
        f"tells no batch sizes: {why}", where=str(path), hint="delete it to begin with the recipe's"
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not all(type(n) is int and n >= 0 for n in entry.values()):
        return False
    sizes = {name: n for name, n in entry.items() if name != AFTER}
    return AFTER in entry and bool(sizes) and all(k in SIZES and n > 0 for k, n in sizes.items())


def sizes_of(kept: list[dict[str, int]]) -> dict[str, int]:
    """The arguments of the last entry; none of no entry."""
    return {name: value for name, value in kept[-1].items() if name != AFTER} if kept else {}


def _noted(kept: list[dict[str, int]], step: int, sizes: dict[str, int]) -> list[dict[str, int]]:
    """The entries once training goes on from a step with these sizes: later ones are of steps taken anew."""
    return [*(entry for entry in kept if entry[AFTER] < step), {AFTER: step, **sizes}]


def _steps_until(checkpoint: Path | None) -> int:
    """Steps of the whole training behind a checkpoint; where it has rounds, earlier ones come before it."""
    if checkpoint is None:
        return 0
    number = checkpoints.number_of(checkpoint.parent) if checkpoint.parent.name.startswith("round-") else 0
    records = [checkpoint.parent.parent / f"round-{earlier}" / "round.json" for earlier in range(number or 0)]
    before = sum(json.loads(path.read_text(encoding="utf-8"))["steps"] for path in records if path.is_file())
    return before + checkpoints.number_of(checkpoint)


def told(sizes: dict[str, int]) -> str:
    """Sizes in words."""
    return " and ".join(f"{name} {value}" for name, value in sizes.items())


class Retry:
    """Begins a training again, with less memory a forward.

    Args:
        runner: ``run._Runner`` before its training; its plan is copied before anything changes it.
        begin: Builds the Trainer of a try; given the checkpoint to go on from, or None.
    """

    def __init__(self, runner: Any, begin: Callable[[Path | None], None]) -> None:
        self.runner, self.begin = runner, begin
        self.pristine = {name: copy.deepcopy(getattr(runner.plan, name)) for name in STATEFUL}

    def train(self, checkpoint: Path | None) -> Any:
        """Returns what ``Trainer.train`` does, after as many tries as it takes.

        Raises:
            RunError: one row at a time is too much, or the batch cannot be cut.
        """
        states = None
        while True:
            where = "training"
            self.begin(checkpoint)
            if states is None:
                states = random_states()
            elif checkpoint is None:
                put_back(states)
            try:
                return self.runner.trainer.train(
                    resume_from_checkpoint=str(checkpoint) if checkpoint else None
                )
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                where = "evaluation" if _passes(error, "evaluation_loop") else where
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            checkpoint = self._shrink(where, said)  # here the error and all that it holds are gone

    def _shrink(self, where: str, said: str) -> Path | None:
        """Makes ready for a smaller try; returns the checkpoint to go on from."""
        runner = self.runner
        changes = self._smaller(where, said)
        step = runner.trainer.state.global_step + 1
        runner.trainer = runner.built = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for name, value in self.pristine.items():
            setattr(runner.plan, name, copy.deepcopy(value))
        runner.plan.trainer = {**runner.plan.trainer, **changes}
        checkpoint = runner.directory.checkpoint().path
        kept = kept_sizes(runner.directory / SMALLER)
        sizes = {**sizes_of(kept), **changes}
        runner.directory.write_json(SMALLER, _noted(kept, _steps_until(checkpoint), sizes))
        start = checkpoint.name if checkpoint else "the start"
        note = "" if where == "evaluation" else f"; {self._kept()}"
        why = f"out of memory in step {step} ({where}: {said})"
        runner.rebuild_model(f"{why}: going on from {start} with {told(changes)}{note}")
        return checkpoint

    def _smaller(self, where: str, said: str) -> dict[str, int]:
        """The arguments of the next try.

        Raises:
            RunError: there are none.
        """
        args, plan = self.runner.trainer.args, self.runner.plan
        problem = f"out of memory ({said})"
        if args.world_size > 1:
            raise RunError(
                f"{problem} on one of {args.world_size} processes",
                hint=f"set `trainer.{BATCH}` to a half and `trainer.{ACCUMULATION}` to the double",
            )
        if where == "evaluation":
            if args.per_device_eval_batch_size > 1:
                return {EVAL: args.per_device_eval_batch_size // 2}
            raise RunError(f"{problem} while evaluating one row at a time", hint=ADVICE)
        if plan.task.compares_rows:
            raise RunError(
                f"{problem}, and the loss compares the rows of a batch, so that it cannot be cut",
                hint=f"a smaller `trainer.{BATCH}` is another training; else {ADVICE}",
            )
        batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
        rows = batch * accumulation
        smaller = next((size for size in range(batch // 2, 0, -1) if rows % size == 0), None)
        if smaller is None:
            raise RunError(f"{problem} with one row at a time", hint=ADVICE)
        return {BATCH: smaller, ACCUMULATION: rows // smaller}

    def _kept(self) -> str:
        """What stays as it was, and what does not."""
        plan = self.runner.plan
        if plan.method.takes_algorithm:
            return (
                "as many rows a step; the algorithm's state moves once a forward, so losses differ a little"
            )
        if plan.trainer.get("dataloader_drop_last"):
            return "as many rows a step; fewer are dropped at the end of an epoch"
        return "each step has the same rows and the same loss, but for draws (dropout, masks)"


def _passes(error: BaseException, function: str) -> bool:
    """Whether an error came from within a function of that name."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == function:
            return True
        trace = trace.tb_next
    return False
