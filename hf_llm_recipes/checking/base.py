"""What a check says: findings with a level and what to do, and the facts behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from time import monotonic
from typing import Any, Literal

from hf_llm_recipes.errors import UserError, visible

Level = Literal["error", "warning", "info"]
# What a forward or backward raises on rows or weights that do not fit it.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError)
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know before training.

    Args:
        level: ``error``: it would spoil the training or break a promise; ``warning``: it may cost
            quality or time; ``info``: good to know.
        part: Of the check, that found it.
        what: One sentence with the figures in it.
        where: File, split and row, or the recipe's key.
        do: What to do now.
    """

    level: Level
    part: str
    what: str
    where: str | None = None
    do: str | None = None


@dataclass(frozen=True)
class Piece:
    """A stretch of a sample row.

    Args:
        text: As the tokenizer decodes it.
        loss: Whether its tokens carry loss.
        note: What is to be predicted there, where that is not the text itself.
    """

    text: str
    loss: bool = False
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """A row as the collator hands it to the model.

    Args:
        split: Its split.
        row: Its number there, as it was read.
        pieces: In order.
        label: Of the whole row, where it has one.
        tokens: Of the row.
        supervised: How many of them carry loss; None where the loss is not one of tokens.
        unit: ``row``, or ``block`` of packed documents.
    """

    split: str
    row: int
    pieces: list[Piece]
    label: str | None = None
    tokens: int | None = None
    supervised: int | None = None
    unit: str = "row"


@dataclass
class Report:
    """Everything that was found, JSON-able through ``to_dict``.

    Args:
        name: Of the recipe.
        kind: Task, method, tuning and model in one line.
        splits: Split -> rows, tokens, lengths, what truncation cuts.
        labels: Split -> label -> count; or figures of a number.
        samples: Rows with the tokens that carry loss.
        model: Weights, adapter, gradient and reload.
        estimate: Of memory and time; None where it was not made.
        findings: In the order they were found.
        notes: What reading the data and building the model had to say.
        seconds: Part -> how long it took.
    """

    name: str
    kind: str = ""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    estimate: Any = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 where something is an error, else 0."""
        return int(any(finding.level == "error" for finding in self.findings))

    def of(self, level: Level) -> list[Finding]:
        """Returns the findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def refused(self, part: str, error: UserError | ImportError) -> None:
        """Adds what a run would stop with."""
        if isinstance(error, UserError):
            allowed = f"allowed: {error.allowed}" if error.allowed else None
            do = "; ".join(said for said in (error.hint, allowed) if said) or None
            self.findings.append(Finding("error", part, error.what, error.where, do))
        else:
            what, _, do = str(error).partition("\n  do: ")
            self.findings.append(Finding("error", part, what, None, do or None))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the seconds that the block takes to the part's."""
        begun = monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + monotonic() - begun

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON takes it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "exit_code": self.exit_code,
            "counts": {level: len(self.of(level)) for level in LEVELS},
            "findings": [asdict(finding) for finding in self.findings],
            "splits": self.splits,
            "labels": self.labels,
            "samples": [asdict(sample) for sample in self.samples],
            "model": self.model,
            "estimate": None if self.estimate is None else self.estimate.to_dict(),
            "notes": self.notes,
            "seconds": {part: round(seconds, 2) for part, seconds in self.seconds.items()},
        }


def readable(value: Any) -> Any:
    """Returns a report, or a part of one, in which no text steers the terminal or the page that shows it."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [readable(one) for one in value]
    if isinstance(value, dict):
        return {readable(key): readable(one) for key, one in value.items()}
    if is_dataclass(value):
        return replace(value, **{one.name: readable(getattr(value, one.name)) for one in fields(value)})
    return value


def share(part: float, whole: float) -> str:
    """Returns a share in per cent, with a digit more where it is small."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent >= 0.1 or percent == 0 else f"{percent:.2g} %"


def named(items: list[Any], most: int = 6) -> str:
    """Returns the first few in words, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f", … ({len(items) - most:,} more)" if len(items) > most else "")
