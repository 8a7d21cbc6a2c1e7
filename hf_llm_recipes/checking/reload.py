"""Does the model that would be saved, loaded as a user would, give the same answers?"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from hf_llm_recipes.checking.base import Finding, Report
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.errors import UserError
from hf_llm_recipes.methods._trl import without_reference
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.run import RELOAD_TOLERANCE

ROWS = 4
LARGEST_BYTES = 4 << 30  # that are written to the temporary folder


def look(subject: Subject, folder: Path, report: Report) -> list[Finding]:
    """Saves the untrained model, loads it again and compares; adds the difference to the report."""
    weights = subject.parameters["trainable" if subject.plan.tuning.uses_adapter else "total"]
    if 4 * weights > min(LARGEST_BYTES, shutil.disk_usage(folder).free // 2):
        return [_too_large(4 * weights)]
    if subject.trainer is None:
        subject.trainer = SimpleNamespace(model=subject.built.model)
    without_reference(subject.trainer.model)
    saved = folder / "model"
    saved.mkdir()
    subject._save_model(saved)
    try:
        again = Predictor.load(saved)
    except UserError as error:
        return [Finding("error", "reload", error.what, error.where, error.hint)]
    model = subject.trainer.model.eval()
    apart = float(np.abs(_answers(subject, again.model) - _answers(subject, model)).max())
    tolerance = RELOAD_TOLERANCE[subject._arithmetic()]
    report.model["reload"] = {"logits_max_difference": apart, "tolerance": tolerance}
    return differs(apart, tolerance)


def differs(apart: float, tolerance: float) -> list[Finding]:
    """Returns an error where a reloaded model answers otherwise."""
    if apart <= tolerance:
        return []
    return [
        Finding(
            "error",
            "reload",
            f"saved and loaded again, the model gives other logits: they differ by {apart:.3g} (allowed: "
            f"{tolerance:.3g})",
            "model",
            "some trained weights are not saved: name their modules in `tuning.modules_to_save`, and report "
            "this recipe",
        )
    ]


def _answers(subject: Subject, model: Any) -> np.ndarray:
    task, tokenizer = subject.task, subject.tokenizer
    features, rows = subject.prepared.test, subject.loaded.test
    if task.judges_model:
        return task.probe(model, features.select(range(min(ROWS, len(features)))), tokenizer)
    few = rows.select(range(min(ROWS, len(rows))))
    return Predictor(model, tokenizer, task).logits(few, labeled=False, batch_size=ROWS)[0]


def _too_large(size: int) -> Finding:
    return Finding(
        "info",
        "reload",
        f"saving and loading again was not tried: {size / 2**30:.1f} GiB would be written",
        "model",
        "nothing: the run compares them at its end",
    )
