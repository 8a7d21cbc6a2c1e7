"""What a run's folder says: every file that is there, and what could not be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_llm_recipes import rundir
from hf_llm_recipes.errors import UserError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import RunDirectory

SAMPLES = "samples.jsonl"  # of the callback `samples`
ATTRIBUTIONS = "attributions.json"  # of `report --attributions`
STAGE = re.compile(r"stage-(\d+)\.jsonl")
MOST_CELLS = 4_000_000  # of the predictions: some 300 MiB as Python's numbers
Lines = list[dict[str, Any]]


@dataclass
class Facts:
    """A run as its folder has it.

    Args:
        path: The folder.
        name: Of the recipe, else of the folder.
        recipe: As it was run; None where it cannot be read.
        metrics: ``metrics.json``; empty of a run that has not finished.
        environment: ``environment.json``; empty where it is missing.
        log: Lines of ``log.jsonl``.
        stages: Lines of ``stage-N.jsonl``, by N.
        samples: Lines of ``samples.jsonl``.
        predictions: Columns of ``predictions.parquet``.
        attributions: What answers to a few rows hang on, of ``attributions.json``.
        files: Name -> bytes, of what lies in the folder.
        troubles: Sentences on what could not be read.
        running: Whether it is training while this is read.
    """

    path: Path
    name: str
    recipe: Recipe | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    log: Lines = field(default_factory=list)
    stages: dict[int, Lines] = field(default_factory=dict)
    samples: Lines = field(default_factory=list)
    predictions: dict[str, list[Any]] = field(default_factory=dict)
    attributions: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    running: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run has been judged."""
        return bool(self.metrics)

    @property
    def test(self) -> dict[str, Any]:
        """The scores on the test rows."""
        return self.metrics.get("test", {})

    def section(self, key: str) -> dict[str, Any]:
        """A section of the recipe; empty where it is missing."""
        return self.recipe.section(key) if self.recipe is not None else {}

    @property
    def score(self) -> str | None:
        """The score that a run is called good by: the first one that has an interval."""
        return next(iter(self.test.get("intervals_95", {})), None)


def read(path: str | Path) -> Facts:
    """Returns what a run's folder says.

    Raises:
        RunError: no such folder, or no run's.
    """
    directory = RunDirectory.existing(path)
    facts = Facts(directory.path, directory.path.resolve().name)
    try:
        facts.recipe = directory.recipe()
        facts.name = facts.recipe.name
    except UserError as error:
        facts.troubles.append(f"{rundir.RECIPE} cannot be read: {error.what}")
    facts.metrics = _json(directory / rundir.METRICS, facts)
    facts.environment = _json(directory / rundir.ENVIRONMENT, facts)
    facts.log = lines(directory / rundir.LOG, facts.troubles)
    facts.samples = lines(directory / SAMPLES, facts.troubles)
    facts.predictions = _predictions(directory / rundir.PREDICTIONS, facts)
    facts.attributions = _json(directory / ATTRIBUTIONS, facts).get("rows", [])
    for file in sorted(directory.path.iterdir()):
        found = STAGE.fullmatch(file.name)
        if found:
            facts.stages[int(found[1])] = lines(file, facts.troubles)
        facts.files[file.name + ("/" if file.is_dir() else "")] = _size(file)
    return facts


def lines(path: Path, troubles: list[str]) -> Lines:
    """Returns the objects of a JSON-lines file; a torn or foreign line is left out and counted.

    Args:
        path: May be missing.
        troubles: Gets a sentence where a line is left out.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    kept, lost = [], 0
    for line in filter(None, text.split("\n")):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            kept.append(found)
        else:
            lost += 1
    if lost:
        what = "1 torn line was" if lost == 1 else f"{lost:,} torn lines were"
        troubles.append(f"{path.name}: {what} left out")
    return kept


def points(log: Iterable[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Returns the steps and values of what was logged as ``key``; what is no finite number is left out."""
    found = [(one["step"], one[key]) for one in log if _is_number(one.get(key))]
    return [step for step, _ in found], [float(value) for _, value in found]


def _is_number(value: Any) -> bool:
    finite = isinstance(value, int | float) and abs(value) < float("inf")
    return finite and not isinstance(value, bool)


def _json(path: Path, facts: Facts) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        facts.troubles.append(f"{path.name} cannot be read: {error}")
        return {}
    return found if isinstance(found, dict) else {}


def _predictions(path: Path, facts: Facts) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        return {}
    try:
        table = pyarrow.parquet.read_table(path)
        most = MOST_CELLS // max(1, table.num_columns)
        if table.num_rows > most:
            facts.troubles.append(f"{path.name}: {most:,} of its {table.num_rows:,} rows were looked at")
        return table.slice(0, most).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        facts.troubles.append(f"{path.name} cannot be read: {error}")
        return {}


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
