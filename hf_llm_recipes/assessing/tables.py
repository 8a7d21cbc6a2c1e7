"""Slices, temperatures, views and tests as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hf_llm_recipes.assessing.explanation import Explanation
from hf_llm_recipes.errors import visible

STRONGEST = 10  # pieces of a table
FAINT, STRONG = 0.05, 0.5  # of the largest weight: not coloured below, bold above


def tables(found: Mapping[str, Any]) -> Group:
    """Returns whatever ``assess`` and ``compare_runs`` have found, one table below the other."""
    parts: list[Any] = [_slices(one) for one in found.get("slices", {}).values()]
    if "metrics" in found:
        parts.append(_scores(found["metrics"]))
    for name, scores in found.get("lm_eval", {}).items():
        parts.append(_lm_eval(name, scores))
    for key, make in (("temperature", _temperature), ("robustness", _robustness), ("against", _against)):
        if key in found:
            parts.append(make(found[key]))
    return Group(*parts)


def explanation(found: Explanation) -> Group:
    """Returns an explained text: the pieces that speak for the class in green, those against it in red."""
    largest = max((abs(one.weight) for one in found.pieces), default=0.0) or 1.0
    marked = []
    for number, whole in enumerate(found.texts):
        text, at = Text(), 0
        for piece in (one for one in found.pieces if one.text == number):
            text.append(visible(whole[at : piece.start]))
            text.append(visible(found.words(piece)), _style(piece.weight / largest))
            at = piece.end
        text.append(visible(whole[at:]), "strike dim")
        marked.append(text)
    table = Table("piece")
    table.add_column(f"adds to {visible(found.target)}", justify="right", no_wrap=True)
    for piece in sorted(found.pieces, key=lambda one: -abs(one.weight))[:STRONGEST]:
        table.add_row(Text(visible(found.words(piece))), f"{piece.weight:+.3f}")
    said = [
        f"answer: {found.answer}; logit of {found.target} {found.logit:.3f}, with every word masked "
        f"{found.masked_logit:.3f}"
    ]
    if not found.complete:
        said.append(f"after {found.steps} steps the figures miss the difference by {found.missing:+.3f}")
    return Group(*marked, *(Text(visible(one)) for one in said), table)


def _style(share: float) -> str:
    if abs(share) < FAINT:
        return ""
    strength = "bold " if abs(share) > STRONG else ""
    return f"{strength}green" if share > 0 else f"{strength}red underline"


def _scores(found: Mapping[str, Any]) -> Table:
    table = Table("metric")
    for name in ("value", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, value in found.items():
        if name != "intervals_95":
            shown = "–" if value is None else f"{value:.4f}"
            table.add_row(name, shown, _interval(found["intervals_95"].get(name)))
    return table


def _lm_eval(name: str, scores: Mapping[str, Any]) -> Table:
    rows = scores.get("rows")
    table = Table("figure", title=visible(name) + ("" if rows is None else f", {rows:,} rows"))
    for column in ("value", "standard error"):
        table.add_column(column, justify="right", no_wrap=True)
    for key, value in scores.items():
        if key == "rows" or "_stderr" in key:
            continue
        error = scores.get(f"{key}_stderr")
        table.add_row(Text(visible(key)), f"{value:.4f}", "" if error is None else f"{error:.4f}")
    return table


def _slices(found: Mapping[str, Any]) -> Group:
    score = found["score"]
    table = Table(visible(f"by {found['by']}"))
    for name in ("rows", score, "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found["groups"]:
        edges = one["intervals_95"].get(score)
        rows = f"{one['rows']:,}" + (" (few)" if one["few"] else "")
        table.add_row(Text(visible(one["name"])), rows, f"{one[score]:.4f}", _interval(edges))
    said = []
    gap = found["gap"]
    if gap:
        pairs = "1 pair" if gap["pairs"] == 1 else f"{gap['pairs']} pairs"
        said.append(
            f"widest gap of {score}: {gap['difference']:.4f} (95 %: {_interval(gap['difference_95'])}), "
            f"{gap['lowest']} to {gap['highest']}, of {pairs}"
        )
    if "alike" in found:
        said.append(f"all groups alike? {found['alike']['test']}: p = {found['alike']['p']:.3g}")
    return _with_sentences(table, [*said, *found["notes"]])


def _temperature(found: Mapping[str, Any]) -> Group:
    table = Table("test rows", title=f"temperature {found['temperature']:.4f}")
    for name in ("loss", "ece", "brier"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("before", "after"):
        table.add_row(name, *(f"{found[name][key]:.4f}" for key in ("loss", "ece", "brier")))
    said = (
        f"fitted on {found['fitted_rows']:,} held-out rows or words; loss {found['loss_difference']:+.4f} "
        f"(95 %: {_interval(found['loss_difference_95'])}). No decision changes"
    )
    return _with_sentences(table, [said, *found["notes"]])


def _robustness(found: Mapping[str, Any]) -> Group:
    score = found["score"]
    table = Table("view")
    for name in (score, "difference", "95 % interval", "answers changed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("as they are", f"{found['plain']:.4f}", "", "", "")
    for one in found["views"]:
        changed = one.get("answers_changed")
        table.add_row(
            one["name"],
            f"{one['value']:.4f}",
            f"{one['difference']:+.4f}",
            _interval(one["difference_95"]),
            "" if changed is None else f"{100 * changed:.1f} %",
        )
    return _with_sentences(table, found["notes"])


def _against(found: Mapping[str, Any]) -> Group:
    table = Table("run", title=f"{found['figure']}, {found['rows']:,} rows")
    table.add_column("mean", justify="right", no_wrap=True)
    counted = "only_first" in found
    if counted:
        table.add_column("only this one right", justify="right", no_wrap=True)
    for name, mean, only in (("first", "first", "only_first"), ("second", "second", "only_second")):
        cells = [f"{found[mean]:.4f}", *([f"{found[only]:,}"] if counted else [])]
        table.add_row(Text(visible(found["runs"][name])), *cells)
    said = [
        f"{found['test']}: p = {found['p']:.3g}",
        f"second − first: {found['difference']:+.4f} (95 %: {_interval(found['difference_95'])})",
    ]
    return _with_sentences(table, said)


def _interval(edges: Any) -> str:
    if not edges:
        return ""
    low, high = (f"{edge:.4f}" for edge in edges)
    return f"{low} to {high}" if edges[0] < 0 else f"{low} – {high}"


def _with_sentences(table: Table, said: list[str]) -> Group:
    return Group(table, *(Text(visible(one)) for one in said))
