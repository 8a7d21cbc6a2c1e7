"""A report of a check as one page, of the same parts as a run's ``report.html``."""

from __future__ import annotations

from typing import Any

from hf_llm_recipes.checking.base import LEVELS, Finding, Report, Sample, readable, share
from hf_llm_recipes.markup import Html, bullets, element, joined, name_of, section, table
from hf_llm_recipes.reporting.page import page as whole_page

SPLIT_COLUMNS = (
    *("split", "rows", "tokens", "median", "95 %", "longest", "lengths"),
    *("rows cut", "tokens cut", "with loss", "with loss, cut"),
)
SPLIT_NUMBERS = tuple(i for i, name in enumerate(SPLIT_COLUMNS) if name not in ("split", "lengths"))
BAR, HEIGHT = 6, 24  # pixels
MARKS = {"error": "bad", "warning": "bad", "info": "lead"}


def page(report: Report) -> str:
    """Returns the page."""
    report = readable(report)
    sections = [_findings(report), _splits(report), _labels(report), _samples(report), _model(report)]
    notes = section("Notes", bullets(report.notes), identity="notes")
    lead = element("p", report.kind, class_="lead")
    return whole_page(f"{report.name}: check", lead, [*sections, notes], "This file loads nothing.")


def _findings(report: Report) -> Html:
    items = [_finding(found) for level in LEVELS for found in report.of(level)]
    if not report.of("error") and not report.of("warning"):
        items.insert(0, "nothing wrong was found")
    return section("Findings", bullets(items), identity="findings")


def _finding(found: Finding) -> Html:
    parts: list[Any] = [element("b", found.level, class_=MARKS[found.level]), f" {found.what}"]
    if found.where:
        parts.append(element("span", f" [{found.where}]", class_="lead"))
    if found.do:
        parts += [element("br"), element("span", f"do: {found.do}", class_="lead")]
    return joined(parts)


def _splits(report: Report) -> Html:
    if not report.splits:
        return Html("")
    rows = [_split_row(split, facts) for split, facts in report.splits.items()]
    made = table("Rows and tokens of each split", SPLIT_COLUMNS, rows, numbers=SPLIT_NUMBERS)
    return section("Splits", made, identity="splits")


def _split_row(split: str, facts: dict[str, Any]) -> list[Any]:
    seen = "" if facts["looked_at"] == facts["rows"] else f" ({facts['looked_at']:,} looked at)"
    cells: list[Any] = [split, f"{facts['rows']:,}{seen}"]
    if "length" in facts:
        length, learnt = facts["length"], facts["supervised_tokens"]
        cells += [f"{facts['tokens']:,}", *(f"{length[name]:,.0f}" for name in ("median", "p95", "max"))]
        cells.append(_bars(facts["histogram"]["counts"]))
        cells.append(f"{facts['rows_cut']:,} ({share(facts['rows_cut'], facts['looked_at'])})")
        cells.append(f"{facts['tokens_cut']:,}")
        cells.append("" if learnt is None else f"{learnt:,} ({share(learnt, facts['tokens_read'])})")
        cells.append("" if learnt is None else f"{facts['supervised_tokens_cut']:,}")
    return [*cells, *[""] * (len(SPLIT_COLUMNS) - len(cells))]


def _bars(counts: list[int]) -> Html:
    most = max(counts, default=0) or 1
    heights = [max(1, round(HEIGHT * count / most)) if count else 0 for count in counts]
    bars = (
        element("rect", x=BAR * i, y=HEIGHT - height, width=BAR - 1, height=height)
        for i, height in enumerate(heights)
    )
    said = f"histogram of lengths: {', '.join(map(str, counts))}"
    return element(
        "svg", *bars, class_="bars", width=BAR * len(counts), height=HEIGHT, role="img", aria_label=said
    )


def _labels(report: Report) -> Html:
    if not report.labels:
        return Html("")
    splits = list(report.labels)
    names = list(dict.fromkeys(name for counts in report.labels.values() for name in counts))
    rows = [[name, *(_figure(report.labels[split].get(name, 0)) for split in splits)] for name in names]
    made = table("Rows of each label", ["label", *splits], rows, numbers=range(1, len(splits) + 1))
    return section("Labels", made, identity="labels")


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _samples(report: Report) -> Html:
    if not report.samples:
        return Html("")
    legend = element("p", "What carries loss is ", element("mark", "marked"), ".")
    return section("Rows as the model gets them", legend, *map(_sample, report.samples), identity="samples")


def _sample(sample: Sample) -> Html:
    said = f"{sample.split} {sample.unit} {sample.row:,}"
    if sample.supervised is not None:
        said += f", {sample.supervised} of {sample.tokens} tokens carry loss"
    label = f" → {sample.label}" if sample.label is not None else ""
    text: list[Any] = []
    for piece in sample.pieces:
        text.append(element("mark", piece.text) if piece.loss else piece.text)
        text.append(element("small", f"‹{piece.note}›") if piece.note else None)
    return joined([element("p", said, label, class_="lead"), element("pre", *text, class_="row")])


def _model(report: Report) -> Html:
    facts = dict(report.model)
    if report.estimate is not None:
        facts["needs"] = report.estimate.sentence()
    parts = [part for name, value in facts.items() for part in _fact(name, value)]
    return section("Model", element("dl", *parts, class_="facts") if parts else None, identity="model")


def _fact(name: str, value: Any) -> tuple[Html, Html]:
    return element("dt", name_of(name)), element("dd", _words(value))


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name_of(name)} {_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " and ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _figure(value) if isinstance(value, int | float) else str(value)
