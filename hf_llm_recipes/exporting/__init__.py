"""A finished run's model in a form that other programs run, kept only if it answers as the run does.

One file a target: ``onnx``, ``onnx_int8``, ``executorch``, ``gguf``, ``adapter``.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hf_llm_recipes import rundir
from hf_llm_recipes.card import model_card
from hf_llm_recipes.errors import RunError, did_you_mean
from hf_llm_recipes.exporting.base import Job, Target
from hf_llm_recipes.parity import Parity, ask, card_info, count_weights, keep_if_alike, need_memory
from hf_llm_recipes.predictor import saved_task
from hf_llm_recipes.registry import TARGETS
from hf_llm_recipes.rundir import RunDirectory, need_space

log = logging.getLogger("hf_llm_recipes")


def target_names() -> list[str]:
    """Returns what ``to`` may be."""
    return [name.replace("_", "-") for name in TARGETS.names()]


def export(
    directory: str | Path,
    out: str | Path,
    to: str,
    *,
    tolerance: float | None = None,
    rows: int | None = None,
    dtype: str | None = None,
    data: str | Path | None = None,
    trust_code: bool = False,
) -> tuple[Path, Parity]:
    """Exports a run's model; returns the new folder, and how alike both answer.

    Args:
        directory: A finished run.
        out: A new or empty folder.
        to: One of ``target_names``.
        tolerance: Of the parity gate, > 0, in standard deviations of the run's logits (and, with rounded
            weights, as a share of changed answers); None: the target's.
        rows: Of the test split (or of ``data``) that both models answer, ≥ 1; None: the target's.
        dtype: Of the saved weights, where the target has a choice; None: float32.
        data: A file with the columns of the run's data, in place of its test split.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, an unknown target or one that does not fit the run, a folder that holds
            something, too little space or memory, or other answers than the run's.
        DataError: rows that cannot be used.
        MissingExtraError: the target's packages are not installed.
    """
    target, out = _target(to), Path(out)
    _check_numbers(tolerance, rows)
    folder = rundir.model_folder(directory)
    RunDirectory.existing(directory).metrics()  # the card needs them: said before anything is loaded
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            "exists and is not empty; nothing was changed", where=str(out), hint="name another folder"
        )
    task = saved_task(folder, trust_code=trust_code)
    job = Job(Path(directory), folder, task, target.dtype(dtype), trust_code, out.resolve().name)
    target.check(job)
    count = count_weights(folder, task.auto_class)
    need_space(out, target.disk_bytes(job, count), f"the {to} export")
    need_memory(target.memory * count, f"the {to} export")
    rows = rows or target.rows
    log.info(f"the run's model answers up to {rows} rows; then the {to} export, loaded again")
    asked = ask(directory, rows, data, trust_code=trust_code)
    parity = keep_if_alike(
        asked,
        out,
        what=f"the {to} export",
        write=lambda side: target.write(job, asked.rows, side),
        load=lambda side: target.load(job, side),
        card=lambda made, parity: (
            f"{model_card(target.card(job, card_info(asked.directory, made), made))}\n"
            f"## Parity\n\nExported to {to}: {parity.sentence()}.\n{target.more_card(job)}"
        ),
        tolerance=tolerance or max(target.tolerance, asked.noise),
        rounded=target.rounded,
        hint=target.hint,
    )
    return out, parity


def _target(name: str) -> Target:
    known = target_names()
    if name.replace("_", "-") not in known:
        raise RunError(f"no target `{name}`{did_you_mean(name, known)}", allowed=", ".join(known))
    return TARGETS.get(name.replace("-", "_"))()


def _check_numbers(tolerance: float | None, rows: int | None) -> None:
    if rows is not None and rows < 1:
        raise RunError(f"rows is {rows}", allowed="1 or more")
    if tolerance is not None and not tolerance > 0:
        raise RunError(f"tolerance is {tolerance}", allowed="a number above 0")
