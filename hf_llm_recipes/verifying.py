"""Whether a run gives the same bits again: its first steps, from its own recipe, held against its log.

Notable:
- The schedule is the run's: the steps that are left out are not taken, nothing else changes. Stages and
  first labels come before the first step and are made in whole.
- What is compared is what was logged, every number of it but times; a run that first logged at step 10 is
  run for 10 steps.
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
    """

    steps: int
    compared: int
    differences: list[str] = field(default_factory=list)
    surroundings: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether every number was the same."""
        return not self.differences

    def __str__(self) -> str:
        if self.same:
            lines = "1 logged line" if self.compared == 1 else f"{self.compared} logged lines"
            return f"the same bits: {lines} of the first {self.steps} steps"
        lines = [f"not the same bits, in {len(self.differences)} of {self.compared} logged lines:"]
        lines += [f"  {one}" for one in self.differences[:10]]
        lines.append(
            "what is not as it was:" if self.surroundings else "nothing else is known to have changed"
        )
        return "\n".join([*lines, *(f"  {one}" for one in self.surroundings)])


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
    with tempfile.TemporaryDirectory() as folder:
        made, data = _again(directory.recipe(), Path(folder) / "run", wanted)
    kept = [line for line in recorded if line["step"] <= wanted]
    return Verdict(wanted, len(kept), _differences(kept, made), _surroundings(directory, data))


def _again(recipe: Recipe, folder: Path, steps: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a second try and what its environment says of the data."""
    import hf_llm_recipes.run as engine
    from hf_llm_recipes.callbacks.push import Push

    recipe = copy.deepcopy(recipe)
    for key in ("compare", "resume"):
        recipe.values.pop(key, None)
    recipe.values["output"] = str(folder)
    plan = engine.plan(recipe)
    silent = [callback for callback in plan.callbacks if not isinstance(callback, Push)]
    plan.callbacks = [*silent, _stop_after(steps)]
    runner = engine._Runner(plan)
    runner.train_only()
    made = json.loads((folder / rundir.ENVIRONMENT).read_text(encoding="utf-8"))
    return [line for line in _lines(folder / rundir.LOG) if line["step"] <= steps], made


def _stop_after(steps: int) -> Any:
    from transformers import TrainerCallback

    class StopAfter(TrainerCallback):
        """Ends the training behind a step; the schedule stays that of the whole."""

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step >= steps

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
