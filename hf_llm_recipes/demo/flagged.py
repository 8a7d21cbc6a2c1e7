"""Rows that users flagged, in files that the next run reads as data.

Notable:
- A row has the columns of the run's own data, in the data's names: the run's recipe reads it as it stands
  (``data.name: flagged.jsonl``, ``data.train: train+flagged.jsonl``).
- Rows without a right answer go to a file of their own (``flagged-unlabeled.jsonl``), for
  ``data.unlabeled``: a labeled file may hold labeled rows only.
- A row is in a file whole or not at all; pages that share a file wait for each other
  (``.NAME.lock`` beside it).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import EISDIR, ENOSPC
from pathlib import Path
from typing import Any

from filelock import FileLock

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.rundir import ENVIRONMENT, RECIPE, RunDirectory, writing

SUFFIX = ".jsonl"
ADVICE = "name another file with --flagged"


@dataclass(frozen=True)
class Columns:
    """The columns of a run's data.

    Args:
        names: A task's name for a column -> the data's, where they differ.
        others: Columns of the data that the task does not read; flagged rows have null there.
    """

    names: dict[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()

    @classmethod
    def of_run(cls, folder: Path) -> Columns:
        """Of the training rows, as a run directory tells them; a ``model/`` alone tells nothing.

        Args:
            folder: The run's ``model/``.
        """
        run = folder.parent
        if not (run / RECIPE).is_file():
            return cls()
        names = dict(RunDirectory(run).recipe().section("data").get("columns") or {})
        try:
            told = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
            columns = list(told["data"]["splits"]["train"]["columns"])
        except (OSError, ValueError, KeyError, TypeError):
            columns = []
        return cls(names, [names.get(column, column) for column in columns])

    def row(self, values: dict[str, Any]) -> dict[str, Any]:
        """Returns a row in the data's names, with null where nothing is known."""
        return {**dict.fromkeys(self.others), **{self.names.get(k, k): v for k, v in values.items()}}


class Flagged:
    """The two files of a page.

    Args:
        path: Of the labeled rows, a ``.jsonl`` file, new or begun.
        columns: Of the run's data.

    Raises:
        RunError: a file of another kind, or a place that cannot be written to.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        if path.suffix != SUFFIX:
            raise RunError("flagged rows are JSON lines", where=str(path), allowed=f"a file named *{SUFFIX}")
        self.labeled = path
        self.unlabeled = path.with_name(f"{path.stem}-unlabeled{SUFFIX}")
        self.columns = columns
        for file in (self.labeled, self.unlabeled):
            _check_writable(file)

    def add(self, values: dict[str, Any], *, labeled: bool) -> Path:
        """Appends a row; returns its file.

        Args:
            values: In the task's names.
            labeled: Whether the right answer is among them.

        Raises:
            DataError: the file holds rows with other columns.
            RunError: it cannot be written.
        """
        path = self.labeled if labeled else self.unlabeled
        row = self.columns.row(values)
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with writing(path, ADVICE), FileLock(path.with_name(f".{path.name}.lock")):
            _check_columns(path, row)
            _append(path, line)
        return path


def _check_writable(path: Path) -> None:
    """Opens the file as it will be opened; leaves none behind that was not there.

    Raises:
        RunError: it cannot be.
    """
    if path.is_dir():
        raise RunError(f"cannot be written: {os.strerror(EISDIR)}", where=str(path), hint=ADVICE)
    new = not path.exists()
    with writing(path, ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
        if new:
            path.unlink()


def _check_columns(path: Path, row: dict[str, Any]) -> None:
    """Refuses to mix rows of different columns, which could not be read again.

    Raises:
        DataError: the first row of the file has others.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        first = file.readline()
    try:
        held = json.loads(first)
    except ValueError:
        held = None
    if not isinstance(held, dict) or held.keys() != row.keys():
        names = ", ".join(held) if isinstance(held, dict) else "no rows of JSON"
        raise DataError(
            f"holds {names}; this page's rows have {', '.join(row)}",
            where=str(path),
            hint="start the page with another file: --flagged FILE",
        )


def _append(path: Path, line: bytes) -> None:
    """Writes a line behind the others, and takes it back where it does not fit on the disk."""
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        try:
            if file.write(line) == len(line):
                os.fsync(file.fileno())
                return
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError:
            file.truncate(size)
            raise
