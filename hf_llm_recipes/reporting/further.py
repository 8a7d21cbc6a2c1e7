"""What was looked at once more: groups of rows, temperature, views of the rows, and what answers hang on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_llm_recipes.assessing.explanation import Explanation
from hf_llm_recipes.markup import (
    Html,
    bullets,
    details,
    element,
    interval,
    joined,
    name_of,
    note,
    number,
    section,
    shortened,
    table,
)
from hf_llm_recipes.reporting import charts
from hf_llm_recipes.reporting.facts import Facts
from hf_llm_recipes.reporting.page import page

MOST_DRAWN = 24  # groups of a chart
STRONGEST = 8  # pieces of a table


def slices(facts: Facts) -> Html:
    """How good the model is on each group of rows, and how far apart the groups are."""
    made = [_sliced(one) for one in facts.metrics.get("slices", {}).values()]
    return section("Groups of rows", *made, identity="slices") if made else Html("")


def temperature(facts: Facts) -> Html:
    """What one temperature does to the probabilities."""
    found = facts.metrics.get("temperature")
    if not found:
        return Html("")
    lines = [
        [name, *(number(found[name][key]) for key in ("loss", "ece", "brier"))]
        for name in ("before", "after")
    ]
    said = (
        f"Fitted on {number(found['fitted_rows'])} held-out rows (of tags: words), never on the test rows. "
        f"The loss changes by {found['loss_difference']:+.4f} "
        f"(95 %: {interval(found['loss_difference_95'])}); no decision does. "
    )
    return section(
        f"Temperature {number(found['temperature'], 3)}",
        element(
            "div",
            *(
                charts.reliability(f"Reliability {name}", found[name]["bins"], found[name]["ece"])
                for name in ("before", "after")
            ),
            class_="figures",
        ),
        table("On the test rows", ["temperature", "loss", "ece", "brier"], lines, numbers=[1, 2, 3]),
        element("p", said, element("code", "hf-llm-recipes predict RUN --calibrated"), " uses it."),
        *(note(one, "warning") for one in found["notes"]),
        identity="temperature",
    )


def robustness(facts: Facts) -> Html:
    """What the model loses when the rows are changed a little."""
    found = facts.metrics.get("robustness")
    if not found:
        return Html("")
    score = name_of(found["score"])
    lines = [["as they are", number(found["plain"]), "", "", ""]]
    lines += [
        [
            name_of(one["name"]),
            number(one["value"]),
            f"{one['difference']:+.4f}",
            interval(one["difference_95"]),
            "–" if "answers_changed" not in one else f"{100 * one['answers_changed']:.1f} %",
        ]
        for one in found["views"]
    ]
    points = {name_of(one["name"]): (one["difference"], one["difference_95"]) for one in found["views"]}
    title = f"{score}, under the change − as they are"
    drawn = charts.intervals(title, points, xlabel="difference, 95 %", all_alike=True)
    made = table(
        "Test rows under each augmentation, paired with the rows as they are",
        ["view", score, "difference", "95 %", "answers changed"],
        lines,
        numbers=[1, 2, 3, 4],
    )
    return section(
        "Changed rows",
        _beside(drawn, made),
        note("A change may take the very word that a label hangs on: the figures compare models."),
        bullets(found["notes"]),
        identity="robustness",
    )


def attributions(facts: Facts) -> Html:
    """What the answers to a few rows hang on, from ``attributions.json``."""
    if not facts.attributions:
        return Html("")
    made = []
    for one in facts.attributions:
        label = "" if one.get("label") is None else f", label {one['label']}"
        made.append(explained(Explanation.from_dict(one["explanation"]), f"Row {one['row']}{label}"))
    return section("What answers hang on", legend(), *made, identity="attributions")


def explanation_page(found: Explanation) -> str:
    """Returns a page of one explanation."""
    made = section("What the answer hangs on", legend(), explained(found, found.answer), identity="explained")
    lead = element("p", f"What the logit of {found.target} is made of.", class_="lead")
    return page(f"{found.answer}: explained", lead, [made], "This file loads nothing.")


def legend() -> Html:
    """Returns how to read ``explained``."""
    return element(
        "p",
        "Integrated gradients, from the text with every word masked: ",
        element("mark", "for the class", class_="for", style="--share:1.00"),
        " and ",
        element("mark", "against it", class_="against", style="--share:1.00"),
        " (underlined), stronger where it is more. They sum to the difference of logits. "
        "What the model did not see is struck through.",
        class_="attributed",
    )


def explained(found: Explanation, title: str) -> Html:
    """Returns the texts of an explanation with what each piece adds.

    Args:
        found: Of one row.
        title: Heading.
    """
    largest = max((abs(one.weight) for one in found.pieces), default=0.0) or 1.0
    texts = [_marked(found, i, largest) for i in range(len(found.texts))]
    strongest = sorted(found.pieces, key=lambda one: -abs(one.weight))[:STRONGEST]
    lines = [[found.words(one), f"{one.weight:+.3f}"] for one in strongest]
    missing = "" if found.complete else note(_missing(found), "warning")
    said = (
        f"Answer {found.answer}; logit of {found.target} {number(found.logit, 3)}, with every word masked "
        f"{number(found.masked_logit, 3)}."
    )
    return joined(
        [
            element("h3", title),
            element("p", said),
            *texts,
            missing,
            details(
                "The strongest pieces in figures",
                table(f"{title}: logits", ["piece", "adds"], lines, numbers=[1]),
            ),
        ]
    )


def _missing(found: Explanation) -> str:
    return f"After {found.steps} steps the figures miss the difference by {found.missing:+.3f}."


def _marked(found: Explanation, text: int, largest: float) -> Html:
    parts: list[Any] = []
    at, whole = 0, found.texts[text]
    for piece in found.pieces:
        if piece.text != text:
            continue
        parts.append(whole[at : piece.start])
        kind = "for" if piece.weight >= 0 else "against"
        parts.append(
            element(
                "mark",
                found.words(piece),
                class_=kind,
                style=f"--share:{abs(piece.weight) / largest:.2f}",
                title=f"{piece.weight:+.3f}",
            )
        )
        at = piece.end
    rest = whole[at:]
    if rest.strip():
        parts.append(element("s", shortened(rest)))
    return element("p", *parts, class_="attributed text")


def _sliced(found: Mapping[str, Any]) -> Html:
    score, groups = found["score"], found["groups"]
    lines = [
        [
            one["name"],
            number(one["rows"]) + (" (few)" if one["few"] else ""),
            number(one[score]),
            interval(one["intervals_95"].get(score)),
        ]
        for one in groups
    ]
    header = [name_of(found["by"]), "rows", name_of(score), "95 %"]
    made = table(f"{name_of(score)} by {name_of(found['by'])}", header, lines, numbers=[1, 2, 3])
    points = {one["name"]: (one[score], one["intervals_95"].get(score)) for one in groups[:MOST_DRAWN]}
    drawn = charts.intervals(f"By {name_of(found['by'])}", points, xlabel=name_of(score), all_alike=True)
    return joined([_beside(drawn, made), bullets(_said(found))])


def _beside(drawn: Html, made: Html) -> Html:
    return element("div", element("div", drawn), element("div", made), class_="beside")


def _said(found: Mapping[str, Any]) -> Sequence[str]:
    said, gap = [], found["gap"]
    if gap:
        of = "the only pair" if gap["pairs"] == 1 else f"chosen as the widest of {gap['pairs']} pairs"
        said.append(
            f"Gap of {name_of(found['score'])}: {number(gap['difference'])} "
            f"(95 %: {interval(gap['difference_95'])}) between {gap['highest']} (highest) and "
            f"{gap['lowest']} (lowest); {of}."
        )
    if "alike" in found:
        p = found["alike"]["p"]
        said.append(
            f"If all groups were alike, shares this far apart: p = {p:.3g} ({found['alike']['test']})."
        )
    return [*said, *found["notes"]]
