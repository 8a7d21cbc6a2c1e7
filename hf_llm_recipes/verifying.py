"""Whether a run gives the same bits again: its first steps, from its own recipe, held against its log.

Notable:
- The schedule is the run's: the steps that are left out are not taken, nothing else changes. Stages and
  first labels come before the first step and are made in whole.
- What is compared is what was logged, every number of it but times; a run that first logged at step 10 is
  run for 10 steps.
- A run that was out of memory is run again as it ran: each step with the batch that it had, and on from the
  step from which it went on, through a checkpoint as it did.
- Where numbers differ, versions, device, threads, data and weights that are no longer the same are named.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_llm_recipes import rundir
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.out_of_memory import AFTER, SMALLER, kept_sizes, sizes_of, told
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import RunDirectory

STEPS = 5
TIMES = ("runtime", "per_second", "time", "mfu")  # ends of names that no two runs share
MEASURED = ("energy/", "memory/")  # beginnings of such names


@dataclass
class Verdict:
    """What the second try gave.

    Args:
        steps: That were run again.
        compared: Lines of the log that were held against each other.
        differences: ``step, name: before -> now``, the first of each line; empty where all bits are the same.
        surroundings: What else is not as it was.
        smaller: ``after step 4 …``: what a run that was out of memory went on with, and this try, too.
    """

    steps: int
    compared: int
    differences: list[str] = field(default_factory=list)
    surroundings: list[str] = field(default_factory=list)
    smaller: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether every number was the same."""
        return not self.differences

    def __str__(self) -> str:
        if self.same:
            lines = "1 logged line" if self.compared == 1 else f"{self.compared} logged lines"
            return "\n".join([f"the same bits: {lines} of the first {self.steps} steps", *self._as_it_ran()])
        lines = [f"not the same bits, in {len(self.differences)} of {self.compared} logged lines:"]
        lines += [f"  {one}" for one in self.differences[:10]]
        lines += self._as_it_ran()
        lines.append(
            "what is not as it was:" if self.surroundings else "nothing else is known to have changed"
        )
        return "\n".join([*lines, *(f"  {one}" for one in self.surroundings)])

    def _as_it_ran(self) -> list[str]:
        return [f"  as the run, which was out of memory: {one}" for one in self.smaller]


def verify(path: str | Path, steps: int = STEPS) -> Verdict:
    """Runs the first steps of a run again in a folder that is deleted afterwards.

    Args:
        path: The run's directory.
        steps: At least so many.

    Raises:
        RunError: no run, or one that has logged no loss.
    """
    directory = RunDirectory.existing(path)
    recorded = _lines(directory / rundir.LOG)
    first = next((line["step"] for line in recorded if "loss" in line), None)
    if first is None:
        raise RunError(
            "has logged no loss that could be compared",
            where=str(directory / rundir.LOG),
            hint="a run logs its loss every `trainer.logging_steps` steps",
        )
    wanted = max(steps, first)
    smaller = [one for one in kept_sizes(directory / SMALLER) if one[AFTER] < wanted]
    with tempfile.TemporaryDirectory() as folder:
        made, data, again = _again(directory.recipe(), Path(folder) / "run", wanted, smaller)
    kept = [line for line in recorded if line["step"] <= wanted]
    return Verdict(
        wanted, len(kept), _differences(kept, made), [*again, *_surroundings(directory, data)], _told(smaller)
    )


def _again(
    recipe: Recipe, folder: Path, steps: int, smaller: list[dict[str, int]]
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """The lines of a second try, what its environment says of the data, and where its memory went out.

    Args:
        recipe: The run's.
        folder: That does not exist yet.
        steps: To take.
        smaller: The run's smaller batches behind earlier steps; the training goes on with them from there.
    """
    ends = [*(one[AFTER] for one in smaller), steps]
    begun = False
    for number, end in enumerate(ends):
        if end > 0:  # 0: the run began again from the start
            _run_until(recipe, folder, end, smaller[:number], resume=begun, save=number < len(smaller))
            begun = True
    made = json.loads((folder / rundir.ENVIRONMENT).read_text(encoding="utf-8"))
    again = [f"this try was out of memory, too: {one}" for one in _told(kept_sizes(folder / SMALLER))]
    return [line for line in _lines(folder / rundir.LOG) if line["step"] <= steps], made, again


def _run_until(
    recipe: Recipe, folder: Path, step: int, smaller: list[dict[str, int]], *, resume: bool, save: bool
) -> None:
    """Trains to a step with the last of the smaller batches, and saves a checkpoint there if asked."""
    import hf_llm_recipes.run as engine
    from hf_llm_recipes.callbacks.push import Push

    recipe = copy.deepcopy(recipe)
    for key in ("compare", "resume"):
        recipe.values.pop(key, None)
    recipe.values |= {"output": str(folder), **({"resume": True} if resume else {})}
    plan = engine.plan(recipe)
    silent = [callback for callback in plan.callbacks if not isinstance(callback, Push)]
    plan.callbacks = [*silent, _stop_after(step, save)]
    plan.trainer = {**plan.trainer, **sizes_of(smaller)}
    engine._Runner(plan).train_only()


def _told(smaller: list[dict[str, int]]) -> list[str]:
    return [f"after step {one[AFTER]} {told(sizes_of([one]))}" for one in smaller]


def _stop_after(steps: int, save: bool) -> Any:
    from transformers import TrainerCallback

    class StopAfter(TrainerCallback):
        """Ends the training behind a step; the schedule stays that of the whole."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step >= steps
            control.should_save |= save and state.global_step >= steps

        def on_epoch_end(self, args, state, control, **kwargs):
            if state.global_step >= steps and state.epoch != int(state.epoch):
                control.should_log = control.should_evaluate = control.should_save = False

    return StopAfter()


def _lines(path: Path) -> list[dict[str, Any]]:
    """What was logged, without times; the line that ends a training has no other numbers of its own."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [
        {
            name: value
            for name, value in line.items()
            if not name.endswith(TIMES) and not name.startswith(MEASURED)
        }
        for line in lines
        if "train_runtime" not in line
    ]


def _differences(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    found = []
    for number, line in enumerate(before):
        other = now[number] if number < len(now) else {}
        name = next((n for n in sorted(line.keys() | other.keys()) if line.get(n) != other.get(n)), None)
        if name is not None:
            found.append(f"step {line['step']}, {name}: {line.get(name)!r} -> {other.get(name)!r}")
    return found


def _surroundings(directory: RunDirectory, now: dict[str, Any]) -> list[str]:
    """Versions, devices, data and weights that are not as when the run was made."""
    record = directory / rundir.ENVIRONMENT
    if not record.is_file():
        return [f"{rundir.ENVIRONMENT} is missing"]
    before = json.loads(record.read_text(encoding="utf-8"))
    found = rundir.environment_differences(before, now)
    found += [
        f"{name} ({part}): {one.get(name)} -> {other.get(name)}"
        for part in ("data", "model")
        for one, other in [(before.get(part) or {}, now.get(part) or {})]
        for name in sorted(one.keys() | other.keys())
        if name != "notes" and one.get(name) != other.get(name)
    ]
    return found
