"""A report as one HTML page: nothing is loaded from elsewhere, and everything from the data is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from hf_llm_recipes.checking.base import LEVELS, Finding, Report, Sample, readable, share

STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1b1f24; --dim: #5c6670; --line: #d8dee4;
  --loss: #c7f0d0; --note: #8a2be2; --error: #c62828; --warning: #a15c00; --info: #0b6b8f; --bar: #7aa7d9; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --ink: #e3e7ea; --dim: #96a0aa;
  --line: #30363d; --loss: #1d5130; --note: #d3a4ff; --error: #ff8a80; --warning: #ffc266; --info: #7fd4f5;
  --bar: #4b79ad; } }
body { background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.dim { color: var(--dim); } .error { color: var(--error); } .warning { color: var(--warning); }
.info { color: var(--info); }
table { border-collapse: collapse; } th { text-align: left; color: var(--dim); font-weight: 500; }
td, th { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.row { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; margin: .6rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.7 ui-monospace, monospace; }
mark { background: var(--loss); color: inherit; border-radius: 3px; padding: .1em 0; }
.note { color: var(--note); font-size: .85em; } .wide { overflow-x: auto; }
li { margin: .5rem 0; } svg { vertical-align: middle; } svg rect { fill: var(--bar); }
"""
SPLIT_COLUMNS = (
    *("split", "rows", "tokens", "median", "95 %", "longest", "lengths"),
    *("rows cut", "tokens cut", "with loss", "with loss, cut"),
)


def page(report: Report) -> str:
    """Returns the page."""
    report = readable(report)
    body = [
        f"<h1>{escape(report.name)}</h1>",
        f'<div class="dim">{escape(report.kind)}</div>',
        _findings(report),
        _splits(report),
        _labels(report),
        _samples(report),
        _model(report),
        _notes(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.name)}: check</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _findings(report: Report) -> str:
    items = [_finding(found) for level in LEVELS for found in report.of(level)]
    if not report.of("error") and not report.of("warning"):
        items.insert(0, "<li>nothing wrong was found</li>")
    return f"<h2>Findings</h2><ul>{''.join(items)}</ul>"


def _finding(found: Finding) -> str:
    made = f'<li><b class="{found.level}">{found.level}</b> {escape(found.what)}'
    if found.where:
        made += f' <span class="dim">[{escape(found.where)}]</span>'
    if found.do:
        made += f'<br><span class="dim">do: {escape(found.do)}</span>'
    return made + "</li>"


def _splits(report: Report) -> str:
    if not report.splits:
        return ""
    head = "".join(f"<th>{name}</th>" for name in SPLIT_COLUMNS)
    rows = "".join(f"<tr>{_split_cells(split, facts)}</tr>" for split, facts in report.splits.items())
    return f'<h2>Splits</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _split_cells(split: str, facts: dict[str, Any]) -> str:
    seen = "" if facts["looked_at"] == facts["rows"] else f" ({facts['looked_at']:,} looked at)"
    cells = [_number(f"{facts['rows']:,}{seen}")]
    if "length" in facts:
        length, counts = facts["length"], facts["histogram"]["counts"]
        cells += [_number(f"{facts['tokens']:,}")]
        cells += [_number(f"{length[name]:,.0f}") for name in ("median", "p95", "max")]
        cells += [f"<td>{_bars(counts)}</td>"]
        cells += [_number(f"{facts['rows_cut']:,} ({share(facts['rows_cut'], facts['looked_at'])})")]
        cells += [_number(f"{facts['tokens_cut']:,}")]
        learnt = facts["supervised_tokens"]
        cells += [_number("" if learnt is None else f"{learnt:,} ({share(learnt, facts['tokens'])})")]
        cells += [_number("" if learnt is None else f"{facts['supervised_tokens_cut']:,}")]
    return f"<td>{escape(split)}</td>" + "".join(cells)


def _number(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'


def _bars(counts: list[int]) -> str:
    most = max(counts, default=0) or 1
    heights = [max(1, round(24 * count / most)) if count else 0 for count in counts]
    bars = "".join(
        f'<rect x="{6 * i}" y="{24 - height}" width="5" height="{height}"/>'
        for i, height in enumerate(heights)
    )
    return f'<svg width="{6 * len(counts)}" height="24" role="img" aria-label="lengths">{bars}</svg>'


def _labels(report: Report) -> str:
    if not report.labels:
        return ""
    splits = list(report.labels)
    names = list(dict.fromkeys(name for counts in report.labels.values() for name in counts))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["label", *splits])
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td>"
        + "".join(_number(_figure(report.labels[split].get(name, 0))) for split in splits)
        + "</tr>"
        for name in names
    )
    return f'<h2>Labels</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _samples(report: Report) -> str:
    if not report.samples:
        return ""
    legend = '<p class="dim">What carries loss is <mark>marked</mark>.</p>'
    return f"<h2>Rows as the model gets them</h2>{legend}" + "".join(map(_sample, report.samples))


def _sample(sample: Sample) -> str:
    said = f"{sample.split} {sample.unit} {sample.row:,}"
    if sample.supervised is not None:
        said += f", {sample.supervised} of {sample.tokens} tokens carry loss"
    label = f' <span class="note">→ {escape(sample.label)}</span>' if sample.label is not None else ""
    text = ""
    for piece in sample.pieces:
        words = escape(piece.text)
        text += f"<mark>{words}</mark>" if piece.loss else words
        text += f'<span class="note">‹{escape(piece.note)}›</span>' if piece.note else ""
    return f'<div class="dim">{escape(said)}{label}</div><div class="row">{text}</div>'


def _model(report: Report) -> str:
    facts = dict(report.model)
    if report.estimate is not None:
        facts["needs"] = report.estimate.sentence()
    if not facts:
        return ""
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(_words(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<h2>Model</h2><table>{rows}</table>"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return " and ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _figure(value) if isinstance(value, int | float) else str(value)


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>"
