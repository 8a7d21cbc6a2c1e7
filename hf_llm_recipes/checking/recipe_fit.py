"""Is the recipe valid, and do model, data and task fit? What a run itself would stop with, as findings."""

from __future__ import annotations

from hf_llm_recipes.checking.base import Finding, Report
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.errors import MissingExtraError, UserError
from hf_llm_recipes.planning import plan
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import registered_name

ERRORS = (UserError, MissingExtraError)
# Sentences of a run's log that parts of the check say with figures.
REPEATED = (
    *("are longer than", "are cut", "no row of class", "one row only of class", "no word is tagged"),
    *(
        "have an answer that no window holds",
        "cannot be used and are left out",
        "have a question that is cut",
        "which can never be given",
    ),
    *("training ", "rows of the pool are labeled rows", "are empty", "have fewer than"),
)


def bound(recipe: Recipe, report: Report) -> Subject | None:
    """Returns the run that a recipe describes; None, and a finding, where it describes none."""
    with report.timed("recipe"):
        try:
            subject = Subject(plan(recipe))
        except ERRORS as error:
            report.refused("recipe", error)
            return None
    made = subject.plan
    parts = {"task": made.task, "method": made.method, "tuning": made.tuning}
    words = [f"{key} {registered_name(type(one))}" for key, one in parts.items()]
    if made.quantization:
        words.append("4-bit" if made.quantization.get("load_in_4bit") else "8-bit")
    report.kind = ", ".join([*words, f"model {made.model.label}"])
    return subject


def prepare(subject: Subject, report: Report) -> bool:
    """Reads the data and makes features; returns whether that went well."""
    with report.timed("data"):
        try:
            subject.prepare_data()
        except ERRORS as error:
            report.refused("data", error)
    _note(subject, report)
    return subject.prepared is not None and not report.exit_code


def build(subject: Subject, report: Report) -> bool:
    """Builds the model; returns whether that went well."""
    with report.timed("model"):
        try:
            subject.prepare_model()
        except ERRORS as error:
            report.refused("model", error)
    _note(subject, report)
    return subject.built is not None and not report.exit_code


def sampled(subject: Subject) -> list[Finding]:
    """Says which splits were looked at in part."""
    if not subject.places:
        return []
    there = [split for split in subject.splits() if split in subject.places]
    words = [f"{split}: {subject.sampled(split).strip(' ()')}" for split in there]
    return [
        Finding(
            "info",
            "data",
            "lengths and tokens are those of a part of the rows: " + "; ".join(words),
            do="nothing: a run reads every row",
        )
    ]


def _note(subject: Subject, report: Report) -> None:
    """What other parts find with figures is not told twice."""
    said = [note for note in subject.notes if not any(words in note for words in REPEATED)]
    report.notes = list(dict.fromkeys(said))
