"""A report on one screen of a terminal; without colours, tokens with loss stand between brackets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hf_llm_recipes.checking.base import LEVELS, Finding, Report, Sample, named, readable, share

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "cyan"}
LOSS, PLAIN, NOTE, DIM = "bold green", "", "italic magenta", "dim"
OPEN, CLOSE = "⟦", "⟧"
BARS = " ▁▂▃▄▅▆▇█"
MOST_SAMPLES = 2
MOST_CHARACTERS = 420  # of a shown sample
MOST_CLASSES = 8
MOST_NOTES = 8
BALANCED = 1.1  # times the smallest class


def show(report: Report, console: Console) -> None:
    """Prints a report."""
    console.print(screen(readable(report), colours=console.is_terminal), highlight=False)


def screen(report: Report, *, colours: bool) -> RenderableType:
    """Returns what the terminal shows.

    Args:
        report: To be shown.
        colours: Whether it may be told by colour which tokens carry loss.
    """
    parts: list[RenderableType] = [Text(report.name, "bold") + Text(f"  {report.kind}", DIM)]
    if report.splits:
        parts += [Text(), _splits(report)]
    parts += [line for line in (_labels(report), _weights(report), _needs(report)) if line is not None]
    samples = report.samples[:MOST_SAMPLES]
    if samples:
        parts += [Text(), _legend(samples, colours=colours)]
        parts += [_sample(sample, colours=colours) for sample in samples]
    if report.notes:
        parts += [Text(), *_notes(report.notes)]
    parts += [Text(), *(_finding(one) for level in LEVELS for one in report.of(level)), _verdict(report)]
    return Group(*parts)


def sparkline(counts: list[int]) -> str:
    """Returns a histogram in one line; a bin with a row is never empty."""
    most = max(counts, default=0)
    if not most:
        return ""
    return "".join(BARS[0 if not n else max(1, round(n / most * (len(BARS) - 1)))] for n in counts)


def _splits(report: Report) -> Table:
    every = report.splits.values()
    measured = any("length" in facts for facts in every)
    supervised = any(facts.get("supervised_tokens") is not None for facts in every)
    names = ["split", "rows"]
    names += ["tokens", "median", "95 %", "longest", "", "cut"] if measured else []
    made = Table(*names, *(["with loss"] if supervised else []), box=None, pad_edge=False)
    for column in made.columns[1:6]:
        column.justify = "right"
    for column in made.columns[6:7]:
        column.no_wrap = True
    for split, facts in report.splits.items():
        looked = "" if facts["looked_at"] == facts["rows"] else f" ({facts['looked_at']:,} seen)"
        cells = [split, f"{facts['rows']:,}{looked}"]
        if measured:
            cells += _length_cells(facts) if "length" in facts else [""] * 6
        made.add_row(*cells, *([_with_loss(facts)] if supervised else []))
    return made


def _length_cells(facts: dict[str, Any]) -> list[str]:
    length, cut = facts["length"], facts["rows_cut"]
    looked = facts["looked_at"]
    a_unit = "" if length["unit"] == "rows" else f" a {length['unit'].removesuffix('s')}"
    tokens = share(facts["tokens_cut"], facts["tokens"] + facts["tokens_cut"])
    return [
        f"{facts['tokens']:,}",
        f"{length['median']:,.0f}",
        f"{length['p95']:,.0f}",
        f"{length['max']:,}{a_unit}",
        sparkline(facts["histogram"]["counts"]),
        f"{share(cut, looked)} rows, {tokens} tokens" if cut else "none",
    ]


def _with_loss(facts: dict[str, Any]) -> str:
    count = facts.get("supervised_tokens")
    if count is None:
        return ""
    said = f"{count:,} ({share(count, facts['tokens_read'])})"
    lost = facts["supervised_tokens_cut"]
    return said + (f", {lost:,} cut" if lost else "")


def _apart(name: str) -> str:
    """A class's name before its count; that of a number is not to be taken for one."""
    return f"{name}:" if name[-1:].isdigit() else name


def _labels(report: Report) -> Text | None:
    counts = report.labels.get("train")
    if not counts:
        return None
    total = sum(counts.values())
    if set(counts) == {"min", "mean", "max", "deviation"}:
        said = ", ".join(f"{name} {value:.4g}" for name, value in counts.items())
        return Text.assemble("targets  ", (said, ""))
    some = [count for count in counts.values() if count]
    if len(some) == len(counts) and max(some) <= BALANCED * min(some):
        each = f"{max(some):,}" if max(some) == min(some) else f"{min(some):,} to {max(some):,}"
        return Text(f"labels   {len(counts)} classes of {each} rows: {named(list(counts), MOST_CLASSES)}")
    order = sorted(counts.items(), key=lambda pair: -pair[1])
    shown = [f"{_apart(name)} {count:,} ({share(count, total)})" for name, count in order[:MOST_CLASSES]]
    more = [f"… {len(order) - MOST_CLASSES} more, rarest {order[-1][0]}: {order[-1][1]:,}"]
    return Text("labels   " + ", ".join(shown + (more if len(order) > MOST_CLASSES else [])))


def _weights(report: Report) -> Text | None:
    model = report.model
    if "total" not in model:
        return None
    said = f"weights  {model['trainable']:,} of {model['total']:,} trained "
    said += f"({share(model['trainable'], model['total'])})"
    if model.get("adapter"):
        said += ", adapter on " + ", ".join(f"{name} x{n}" for name, n in model["adapter"].items())
    split = model.get("batch_split")
    if split:
        packed = ", packed" if split["packed"] else ""
        n, apart = split["rows"], split["gradient_difference"]
        equals = "=" if apart <= split["tolerance"] else "IS NOT"
        said += f"; {n}x1 {equals} 1x{n}{packed} (gradients: {apart:.0e})"
    if "reload" in model:
        said += f"; saved and loaded again, logits differ by {model['reload']['logits_max_difference']:.2g}"
    return Text(said)


def _needs(report: Report) -> Text | None:
    return None if report.estimate is None else Text(f"needs    {report.estimate.sentence()}")


def _legend(samples: list[Sample], *, colours: bool) -> Text:
    if not any(piece.loss for sample in samples for piece in sample.pieces):
        return Text("rows as the model gets them:", DIM)
    mark = ("green", LOSS) if colours else (f"{OPEN}between brackets{CLOSE}", "")
    return Text.assemble(("tokens that carry loss are ", DIM), mark, (":", DIM))


def _sample(sample: Sample, *, colours: bool) -> Text:
    made = Text.assemble((f"{sample.split} {sample.unit} {sample.row:,}", DIM))
    if sample.supervised is not None:
        made.append(f", {sample.supervised} of {sample.tokens} tokens", DIM)
    if sample.label is not None:
        made.append(f" → {sample.label}", NOTE)
    made.append("\n  ")
    left = MOST_CHARACTERS
    for piece in _around_loss(sample):
        text = piece.text.replace("\n", "⏎")
        text = text if len(text) <= left else text[:left] + "…"
        left -= len(text)
        if piece.loss and not colours:
            text = f"{OPEN}{text}{CLOSE}"
        made.append(text, LOSS if piece.loss else PLAIN)
        if piece.note:
            made.append(f"‹{piece.note}›", NOTE)
        if left <= 0:
            break
    return made


def _around_loss(sample: Sample) -> Iterator[Any]:
    """The pieces, with the middle of what comes before the first loss left out where it is long."""
    first = next((i for i, piece in enumerate(sample.pieces) if piece.loss), None)
    for i, piece in enumerate(sample.pieces):
        if first is not None and i < first and len(piece.text) > MOST_CHARACTERS // 2:
            side = MOST_CHARACTERS // 5
            piece = type(piece)(f"{piece.text[:side]} … {piece.text[-side:]}", piece.loss, piece.note)
        yield piece


def _notes(notes: list[str]) -> list[Text]:
    shown = [Text(f"· {note}", DIM) for note in notes[:MOST_NOTES]]
    more = len(notes) - MOST_NOTES
    return shown + ([Text(f"· … {more} more with --json", DIM)] if more > 0 else [])


def _finding(found: Finding) -> Text:
    made = Text.assemble((f"{found.level:<8}", STYLES[found.level]), found.what)
    if found.where:
        made.append(f"  [{found.where}]", DIM)
    if found.do:
        made.append(f"\n         do: {found.do}", DIM)
    return made


def _verdict(report: Report) -> Text:
    counts = {level: len(report.of(level)) for level in LEVELS}
    seconds = f" ({sum(report.seconds.values()):.0f} seconds)"
    if not counts["error"] and not counts["warning"]:
        return Text(f"nothing wrong was found{seconds}", "bold green")
    words = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n and level != "info"]
    return Text(", ".join(words) + seconds, STYLES["error" if counts["error"] else "warning"])
