"""How much memory and time the run will need; see ``estimate``."""

from __future__ import annotations

from hf_llm_recipes.checking.base import FAILURES, Finding, Report
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.errors import UserError
from hf_llm_recipes.estimate import GIB, Estimate, estimate_run

WHERE = "trainer"


def look(subject: Subject, report: Report) -> list[Finding]:
    """Adds the estimate to the report; returns whether it fits."""
    try:
        report.estimate = found = estimate_run(subject, times=times(subject))
    except FAILURES as error:
        if isinstance(error, UserError):
            return [Finding("error", "estimate", error.what, error.where, error.hint)]
        return [untold(error)]
    if any(more > 1 for more in times(subject).values()):
        found.notes.append("steps and time are those of a sample of the rows, multiplied")
    return too_much(found)


def untold(error: BaseException) -> Finding:
    """Returns why there is no estimate: a step fails, which the part on gradients looks into."""
    first = next(iter(str(error).strip().splitlines()), "")
    return Finding(
        "warning",
        "estimate",
        f"memory and time are not known: a training step fails ({type(error).__name__}: {first})",
        WHERE,
        "mend what the gradients say, then check again",
    )


def times(subject: Subject) -> dict[str, float]:
    """Returns how many rows of a split each one of the sample stands for."""
    return {split: len(subject.all_rows(split)) / len(subject.rows(split)) for split in subject.splits()}


def too_much(found: Estimate) -> list[Finding]:
    """Returns an error where the memory does not suffice."""
    if found.fits is not False:
        return []
    return [
        Finding(
            "error",
            "estimate",
            f"about {found.peak / GIB:.2f} GiB of memory are needed, and {found.device} has "
            f"{found.capacity / GIB:.2f} GiB",
            WHERE,
            "lower `trainer.per_device_train_batch_size` and raise `gradient_accumulation_steps` as much, "
            "shorten the rows, or train an adapter on a 4-bit base",
        )
    ]
