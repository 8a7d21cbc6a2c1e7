"""Judging and using a finished run: its test split again, or rows from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import RunDirectory, writing

WRITERS = {".csv": "to_csv", ".jsonl": "to_json", ".parquet": "to_parquet"}


def evaluate_run(
    directory: str | Path, data: str | Path | None = None, *, trust_code: bool = False
) -> dict[str, Any]:
    """Returns the full metrics of a finished run.

    Args:
        directory: A run directory.
        data: A labeled file with the columns of the run's data; None for the run's test split.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run.
        DataError: rows that cannot be used.
    """
    run = RunDirectory.existing(directory)
    predictor = Predictor.load(directory, trust_code=trust_code)
    rows = test_rows(run.recipe(), predictor) if data is None else file_rows(run.recipe(), data)
    with _said_of(data):
        return predictor.judge(rows)


def predict_file(
    directory: str | Path,
    source: str | Path,
    target: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    seed: int | None = None,
    trust_code: bool = False,
) -> int:
    """Answers every row of a file and writes rows with answers; returns how many.

    Args:
        directory: A run directory.
        source: Rows with the task's columns, in any format that ``data:`` reads.
        target: ``.csv``, ``.jsonl`` or ``.parquet``; written to the side and renamed.
        settings: Of ``GenerationConfig``, for models that write text.
        seed: Where they sample.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, or a format that cannot be written.
        DataError: rows that cannot be used.
    """
    target = Path(target)
    if target.suffix not in WRITERS:
        raise RunError(f"cannot write `{target.suffix}` files", where=str(target), allowed=", ".join(WRITERS))
    predictor = Predictor.load(directory, trust_code=trust_code)
    predictor.write_with(settings or {}, seed)
    recipe = RunDirectory.existing(directory).recipe()
    rows = file_rows(recipe, source)
    with _said_of(source):
        answers = predictor.predict(rows)
    for key in answers[0]:
        column = f"predicted_{key}"
        if column in rows.column_names:
            raise RunError(f"the file has a column `{column}` already", where=str(source), hint="rename it")
        rows = rows.add_column(column, [answer[key] for answer in answers])
    side = target.with_name(f".{target.name}.part")
    try:
        with writing(target, "name another file"), _quiet():
            target.parent.mkdir(parents=True, exist_ok=True)
            getattr(rows, WRITERS[target.suffix])(str(side))
            os.replace(side, target)
    finally:
        with suppress(OSError):
            side.unlink(missing_ok=True)
    return len(answers)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar for one file."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


@contextmanager
def _said_of(path: str | Path | None) -> Iterator[None]:
    """Names the file where the task says "data"."""
    try:
        yield
    except DataError as error:
        if path is None or error.where is None:
            raise
        where = re.sub("^data(?=$|, )", lambda found: str(path), error.where)
        raise DataError(error.what, where=where, allowed=error.allowed, hint=error.hint) from error


def test_rows(recipe: Recipe, predictor: Predictor) -> Any:
    """Returns the test split of a run's data."""
    from hf_llm_recipes.data.loading import Source, load

    source = recipe.build("data", cls=Source)
    task = predictor.task
    texts = task.input_columns if task.processor == "tokenizer" else ()
    return load(source, stratify_by=task.stratify_by, text_columns=texts).test


def file_rows(recipe: Recipe, path: str | Path) -> Any:
    """Returns the rows of a file that has the columns of a run's data."""
    from hf_llm_recipes.data.loading import Source, read_rows

    source = recipe.build("data", cls=Source)
    return read_rows(path, source=source)
