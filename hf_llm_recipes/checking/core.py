"""A recipe -> a report, part by part: what can be known before a training, in seconds.

A part that does not apply to a task says nothing. What a run itself would stop with ends the check, with
what could be seen until then.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_llm_recipes.checking import (
    answers,
    duplicates,
    gradients,
    labels,
    lengths,
    loss_tokens,
    needs,
    probe,
    recipe_fit,
    reload,
    turns,
    unknown,
    weights,
    words,
)
from hf_llm_recipes.checking.base import Finding, Report
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.errors import UserError
from hf_llm_recipes.recipe import Recipe

OF_DATA: dict[str, Callable[[Subject, Report], list[Finding]]] = {
    "lengths": lengths.look,
    "labels": labels.look,
    "loss tokens": loss_tokens.look,
    "turns": turns.look,
    "words": words.look,
    "unknown": unknown.look,
    "answers": answers.look,
}


def check(recipe: Recipe, *, estimate: bool = True) -> Report:
    """Returns what there is to know of a recipe before it is run; nothing is trained or written.

    Args:
        recipe: As it was read.
        estimate: Whether memory and time are estimated, which takes a few steps more.
    """
    report = Report(recipe.name)
    subject = recipe_fit.bound(recipe, report)
    if subject is None:
        return report
    ready = recipe_fit.prepare(subject, report)
    built = ready and recipe_fit.build(subject, report)
    if built and estimate:  # first: it measures the process, which the other parts swell
        _run(report, "estimate", needs.look, subject, report)
    if ready:
        report.findings += recipe_fit.sampled(subject)
        for name, part in OF_DATA.items():
            _run(report, name, part, subject, report)
    if subject.whole is not None:
        with contextlib.nullcontext() if ready else contextlib.suppress(UserError):  # told already
            _run(report, "duplicates", duplicates.look, subject, report)
            _run(report, "answers", answers.look_at_rows, subject, report)
    if built:
        _of_model(subject, report)
    return report


def _of_model(subject: Subject, report: Report) -> None:
    _run(report, "weights", weights.look, subject, report)
    with tempfile.TemporaryDirectory(prefix="hf-llm-recipes-check-") as temporary:
        folder = Path(temporary)
        with report.timed("gradients"):
            try:
                made = probe.build(subject, folder)
            except recipe_fit.ERRORS as error:
                report.refused("trainer", error)
                return
        with probe.stirred(made.trainer.model):
            _run(report, "gradients", gradients.look, subject, made, report)
            if not any(one.part == "gradients" and one.level == "error" for one in report.findings):
                _run(report, "reload", reload.look, subject, folder, report)


def _run(report: Report, name: str, part: Callable[..., list[Finding]], *given: Any) -> None:
    with report.timed(name):
        report.findings += part(*given)
