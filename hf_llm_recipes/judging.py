"""Judging and using a finished run: its test split again, or rows from a file."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_llm_recipes import evaluation, rundir
from hf_llm_recipes.assessing import engine, significance
from hf_llm_recipes.assessing.explanation import Explanation
from hf_llm_recipes.assessing.section import Assessment
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.reporting import comparing, facts
from hf_llm_recipes.rundir import RunDirectory, writing

log = logging.getLogger(__name__)
EXPLAINED = 6  # rows of a report
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
        found = predictor.judge(rows)
    if data is not None:
        _tell_of_train_rows(run.recipe(), predictor, rows, data)
    return found


def _tell_of_train_rows(recipe: Recipe, predictor: Predictor, rows: Any, data: str | Path) -> None:
    """Says how many rows of a file are those that the run was trained on, where its data is still there."""
    from datasets import Dataset

    from hf_llm_recipes.data.pool import row_keys

    try:
        train = splits_of(recipe, predictor).train
    except DataError:
        return
    columns = predictor.task.input_columns
    if not columns or not isinstance(train, Dataset) or not set(columns) <= set(train.column_names):
        return
    learned = set(row_keys(train, columns)) - {""}
    count = sum(key in learned for key in row_keys(rows, columns))
    if count:
        log.warning(
            f"{count:,} of {len(rows):,} rows of {data} are rows of train: the run was trained on them, and "
            "the figures are too good"
        )


def assess_run(
    directory: str | Path, asked: Assessment, data: str | Path | None = None, *, trust_code: bool = False
) -> dict[str, Any]:
    """Looks at a finished run once more; what is found on its own test rows is kept in ``metrics.json``.

    Args:
        directory: A run directory.
        asked: What is looked at.
        data: A labeled file in place of the test split; then nothing is kept.
        trust_code: Whether Python code that the run brings or names may run.

    Returns:
        By ``slices``, ``temperature``, ``robustness`` and ``metrics`` (more scores).

    Raises:
        RunError: no finished run.
        DataError: what is asked for does not fit the rows or the task.
    """
    run = RunDirectory.existing(directory)
    metrics = run.metrics()
    predictor = Predictor.load(directory, trust_code=trust_code)
    loaded = splits_of(run.recipe(), predictor)
    test = loaded.test if data is None else file_rows(run.recipe(), data)
    with _said_of(data):
        found = engine.assess(predictor, asked, test, loaded.eval)
    if data is None:
        with writing(run.path, "copy the run to where you may write"), rundir.locked(run.path):
            kept = engine.store(metrics, found, run / rundir.MODEL)
            evaluation.write_metrics(run / rundir.METRICS, kept)
    return found


def compare_runs(
    first: str | Path,
    second: str | Path,
    *,
    test: str | None = None,
    data: str | Path | None = None,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Tests whether two finished runs differ on the same rows; see ``significance.compare``.

    Args:
        first: A run directory.
        second: Another.
        test: ``mcnemar`` or ``wilcoxon``; None takes the one that fits.
        data: A labeled file that both answer, in place of the test rows that both were judged on.
        trust_code: Whether Python code that the runs bring or name may run.

    Raises:
        RunError: no finished run, or they were judged on other rows.
        DataError: the test does not fit, or rows that cannot be used.
    """
    runs = [facts.read(one) for one in (first, second)]
    for one in runs:
        RunDirectory(one.path).metrics()  # a run that has not finished is refused
    if data is None:
        _same_rows(runs)
        columns = [one.predictions for one in runs]
    else:
        columns = [_columns_of(one.path, data, trust_code) for one in runs]
    found = significance.compare(*columns, test)
    names = comparing.names_of(runs)
    rows = len(next(iter(columns[0].values())))
    return {"runs": {"first": names[0], "second": names[1]}, "rows": rows, **found}


def explain_worst(directory: str | Path, *, trust_code: bool = False) -> Path:
    """Explains the answers to the worst test rows of a run; returns ``attributions.json``, for its report.

    Args:
        directory: A run directory.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, or none with predictions.
        DataError: a task that is not explained.
        MissingExtraError: captum is not installed.
    """
    from hf_llm_recipes.assessing import attributions
    from hf_llm_recipes.reporting.rows import rankings

    run, read = RunDirectory.existing(directory), facts.read(directory)
    run.metrics()
    predictor = Predictor.load(directory, trust_code=trust_code)
    attributions.check(predictor.task)
    found = rankings(read.predictions)
    worst = found[0].rows[:EXPLAINED] if found else []
    if not worst:
        raise RunError("no test row is wrong, or none is kept", where=str(run / rundir.PREDICTIONS))
    rows = test_rows(run.recipe(), predictor).select(worst)
    labels = [read.predictions["label"][i] for i in worst]
    made = attributions.explain(predictor, rows)
    kept = [
        {"row": row, "label": _words(label), "explanation": one.to_dict()}
        for row, label, one in zip(worst, labels, made, strict=True)
    ]
    with writing(run.path, "copy the run to where you may write"):
        return run.write_json(facts.ATTRIBUTIONS, {"rows": kept})


def predict_file(
    directory: str | Path,
    source: str | Path,
    target: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    seed: int | None = None,
    calibrated: bool = False,
    trust_code: bool = False,
) -> int:
    """Answers every row of a file and writes rows with answers; returns how many.

    Args:
        directory: A run directory.
        source: Rows with the task's columns, in any format that ``data:`` reads, or a folder of them.
        target: ``.csv``, ``.jsonl`` or ``.parquet``; written to the side and renamed.
        settings: Of ``GenerationConfig``, for models that write text.
        seed: Where they sample.
        calibrated: Whether the run's temperature divides the logits.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, or a format that cannot be written.
        DataError: rows that cannot be used.
    """
    target = Path(target)
    if target.suffix not in WRITERS:
        raise RunError(f"cannot write `{target.suffix}` files", where=str(target), allowed=", ".join(WRITERS))
    predictor = Predictor.load(directory, trust_code=trust_code, calibrated=calibrated)
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
    rows = rows if target.suffix == ".parquet" else _with_file_names(rows)
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


def _with_file_names(rows: Any) -> Any:
    """Rows for a file of text: of an image its file's name, where it has one."""
    from datasets import Image

    for name, feature in dict(rows.features).items():
        if isinstance(feature, Image):
            images = rows.cast_column(name, Image(decode=False))[name]
            rows = rows.remove_columns([name]).add_column(name, [image["path"] for image in images])
    return rows


def _words(label: Any) -> str:
    return ", ".join(map(str, label)) or "none" if isinstance(label, list) else str(label)


def _same_rows(runs: list[facts.Facts]) -> None:
    for one in runs:
        if not one.predictions:
            raise RunError(
                f"has no {rundir.PREDICTIONS} to compare by", where=str(one.path), hint="add --data FILE"
            )
    lengths = [len(next(iter(one.predictions.values()))) for one in runs]
    if comparing.same_test_rows(runs) and len(set(lengths)) == 1:
        return
    splits = [one.environment.get("data", {}).get("splits", {}).get("test", {}) for one in runs]
    said = [f"{rows:,} rows, {one.get('fingerprint')}" for one, rows in zip(splits, lengths, strict=True)]
    raise RunError(
        f"the runs were judged on other test rows: {said[0]} and {said[1]}",
        where=f"{runs[0].path} and {runs[1].path}",
        allowed="runs with the same test split",
        hint="judge both on one labeled file: --data FILE",
    )


def _columns_of(run: Path, data: str | Path, trust_code: bool) -> dict[str, list[Any]]:
    """What a run says of the rows of a file, as its ``predictions.parquet`` would have it."""
    import pyarrow.parquet

    predictor = Predictor.load(run, trust_code=trust_code)
    rows, task, config = file_rows(RunDirectory(run).recipe(), data), predictor.task, predictor.model.config
    with _said_of(data), tempfile.TemporaryDirectory() as folder:
        if task.judges_model:
            features, _ = task.encode(rows, predictor.tokenizer, config, labeled=True)
            return task.judge_model(predictor.model, features, rows, predictor.tokenizer).columns
        path = Path(folder) / rundir.PREDICTIONS
        task.write_predictions(path, rows, *predictor.logits(rows, labeled=True), config)
        return pyarrow.parquet.read_table(path).to_pydict()


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


def explain_texts(
    directory: str | Path,
    texts: list[str],
    target: str | None = None,
    *,
    html: Path | None = None,
    trust_code: bool = False,
) -> Explanation:
    """Explains the answer to one text, or to a pair.

    Args:
        directory: A run directory, or its ``model/``.
        texts: As many as the task has columns of text.
        target: The class to explain; None takes the answer.
        html: A page to write.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, or another number of texts.
        DataError: no such class, or a task that is not explained.
        MissingExtraError: captum is not installed.
    """
    from datasets import Dataset

    from hf_llm_recipes.assessing import attributions
    from hf_llm_recipes.reporting import further

    predictor = Predictor.load(directory, trust_code=trust_code)
    attributions.check(predictor.task)
    names = predictor.task.input_columns
    if len(texts) != len(names):
        raise RunError(f"{len(texts)} texts were given", allowed=f"{len(names)}: {', '.join(names)}")
    rows = Dataset.from_list([dict(zip(names, texts, strict=True))])
    (found,) = attributions.explain(predictor, rows, target)
    if html is not None:
        with writing(html, "name another file"):
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(further.explanation_page(found), encoding="utf-8")
    return found


def lm_eval_run(
    directory: str | Path, tasks: list[str], *, trust_code: bool = False
) -> dict[str, dict[str, Any]]:
    """Returns the scores of lm-eval's tasks for a run's causal model; see ``harness.evaluate``."""
    from hf_llm_recipes.assessing import harness

    predictor = Predictor.load(directory, trust_code=trust_code)
    return harness.evaluate(predictor, tasks, trust_code=trust_code)


def test_rows(recipe: Recipe, predictor: Predictor) -> Any:
    """Returns the test split of a run's data."""
    return splits_of(recipe, predictor).test


def splits_of(recipe: Recipe, predictor: Predictor) -> Any:
    """Returns the labeled splits of a run's data, as ``data.loading.Loaded``."""
    from hf_llm_recipes.data.loading import Source, load

    source = recipe.build("data", cls=Source)
    task = predictor.task
    texts = task.input_columns if task.processor == "tokenizer" else ()
    return load(source, stratify_by=task.stratify_by, text_columns=texts)


def file_rows(recipe: Recipe, path: str | Path) -> Any:
    """Returns the rows of a file that has the columns of a run's data."""
    from hf_llm_recipes.data.loading import Source, read_rows

    source = recipe.build("data", cls=Source)
    return read_rows(path, source=source)
