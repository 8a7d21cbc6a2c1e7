"""What a run is worth: its scores with intervals, what stands beside it, confusion, calibration, rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_llm_recipes.comparison import not_exported
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
    scrolling,
    section,
    table,
)
from hf_llm_recipes.reporting import charts, rows
from hf_llm_recipes.reporting.facts import Facts

NO_SCORES = ("rows", "bootstrap", "seed", "threshold")
MOST_CLASSES = 30  # of a confusion matrix that is shown whole
MOST_PAIRS = 20


def result(facts: Facts) -> Html:
    """The scores, the baseline's, the difference, and every weighting that was judged."""
    if not facts.test:
        return Html("")
    return section(
        "Result",
        _tiles(facts),
        _pair(_drawn(facts), _scores(facts.test)),
        _beside(facts),
        _classes(facts.test),
        bullets(facts.test.get("notes", [])),
        identity="result",
    )


def confusion(facts: Facts) -> Html:
    """The confusion matrix; of many classes the pairs that are mixed up most."""
    matrix, names = facts.test.get("confusion_matrix"), facts.test.get("labels")
    if not matrix or not names:
        return Html("")
    whole = len(names) <= MOST_CLASSES
    shown = _matrix(matrix, names) if whole else note(f"{len(names):,} classes: only pairs are shown.")
    return section("Confusion", shown, _pairs(matrix, names), identity="confusion")


def calibration(facts: Facts) -> Html:
    """Whether the probabilities can be believed."""
    found = facts.test.get("calibration")
    if not found or not any(one["count"] for one in found["bins"]):
        return Html("")
    lines = [
        [
            f"{number(one['low'], 2)} – {number(one['high'], 2)}",
            number(one["count"]),
            number(one["confidence"], 3),
            number(one["accuracy"], 3),
        ]
        for one in found["bins"]
    ]
    return section(
        "Calibration",
        element("div", charts.reliability("Reliability", found["bins"], found["ece"]), class_="figures"),
        details(
            "The bins in figures",
            table(
                "Decisions by the probability of the answer",
                ["probability", "decisions", "mean probability", "share right"],
                lines,
                numbers=[1, 2, 3],
            ),
        ),
        element("p", f"Brier score {number(found['brier'])}; lower is better."),
        identity="calibration",
    )


def remarkable_rows(facts: Facts) -> Html:
    """The rows worth reading."""
    return section("Rows worth reading", *rows.tables(facts.predictions), identity="rows")


def beside(facts: Facts) -> dict[str, Mapping[str, Any]]:
    """Returns every score that was measured on the same test rows, by what it is of; this run's first."""
    metrics = facts.metrics
    comparison = metrics.get("comparison", {})
    found = {
        "this run": facts.test,
        "supervised baseline": comparison.get("supervised"),
        "before training": metrics.get("before"),
    }
    for name, scores in not_exported(metrics).items():
        found[f"{name_of(name)}, not exported"] = scores
    for name, scores in metrics.get("baselines", {}).items():
        found["the teacher" if name == "teacher" else f"{name_of(name)}, frozen features"] = scores
    return {name: scores for name, scores in found.items() if scores}


def _tiles(facts: Facts) -> Html:
    test, training = facts.test, facts.metrics.get("training", {})
    tiles = []
    score = facts.score
    if score is not None:
        edges = interval(test["intervals_95"][score])
        tiles.append(_tile(name_of(score), number(test[score]), f"95 %: {edges}"))
    comparison = facts.metrics.get("comparison", {})
    if "difference" in comparison:
        low, high = (100 * edge for edge in comparison["difference_95"])
        tiles.append(
            _tile(
                "against supervised",
                f"{100 * comparison['difference']:+.1f} points",
                f"95 %: {low:+.1f} to {high:+.1f}",
            )
        )
    before = facts.metrics.get("before", {})
    if isinstance(before.get(score), float):
        edges = interval(before.get("intervals_95", {}).get(score))
        tiles.append(_tile("before training", number(before[score]), f"95 %: {edges}"))
    baseline = test.get("majority_baseline")
    if baseline is not None:
        tiles.append(_tile("always the commonest answer", number(baseline), "of the same rows"))
    if "rows" in test:
        tiles.append(_tile("test rows", number(test["rows"]), ""))
    if training:
        minutes = training.get("minutes", 0.0) + training.get("minutes_before", 0.0)
        tiles.append(_tile("training", f"{minutes:.1f} min", f"{training.get('steps', 0):,} steps"))
    return element("dl", *tiles, class_="tiles")


def _tile(name: str, value: str, below: str) -> Html:
    return element(
        "div",
        element("dt", name),
        element("dd", value, class_="big"),
        element("dd", below, class_="small") if below else "",
    )


def _pair(*parts: Html) -> Html:
    """Parts side by side where there is room."""
    kept = [element("div", part) for part in parts if part]
    return element("div", *kept, class_="beside")


def _drawn(facts: Facts) -> Html:
    """The first score of everything that was measured on the same rows."""
    score = facts.score
    found = {name: one for name, one in beside(facts).items() if isinstance(one.get(score), float)}
    if score is None or len(found) < 2:
        return Html("")
    points = {name: (one[score], one.get("intervals_95", {}).get(score)) for name, one in found.items()}
    return charts.intervals(f"{name_of(score)} with 95 % interval", points, xlabel=name_of(score))


def _beside(facts: Facts) -> Html:
    """The table of everything that was measured on the same rows."""
    found = beside(facts)
    if len(found) < 2 or facts.score is None:
        return Html("")
    scores = [name for name in facts.test["intervals_95"] if sum(name in one for one in found.values()) > 1]
    lines = [
        [name, *(_cell(one, score) for score in scores), number(one.get("rows", facts.test.get("rows")))]
        for name, one in found.items()
    ]
    comparison = facts.metrics.get("comparison", {})
    spent = ""
    if "supervised_minutes" in comparison:
        spent = element(
            "p",
            f"{comparison['minutes']:.2f} minutes of training, {comparison['supervised_minutes']:.2f} of the "
            "supervised baseline: the same labeled rows, tuning, seed and steps.",
        )
    caption = "On the same test rows, 95 % interval below each score"
    header = ["of", *map(name_of, scores), "rows"]
    made = table(caption, header, lines, numbers=range(1, len(scores) + 2))
    return joined([element("h3", "What stands beside it"), made, spent])


def _cell(scores: Mapping[str, Any], name: str) -> Any:
    value = scores.get(name)
    edges = scores.get("intervals_95", {}).get(name)
    if not isinstance(value, float) or not edges:
        return number(value)
    return joined([number(value), element("br"), interval(edges)])


def _scores(test: Mapping[str, Any]) -> Html:
    edges = test.get("intervals_95", {})
    values = {name: value for name, value in test.items() if _is_score(name, value)}
    calibrated = test.get("calibration", {})
    values |= {name: calibrated[name] for name in ("ece", "brier") if name in calibrated}
    lines = [[name_of(name), number(value), interval(edges.get(name))] for name, value in values.items()]
    counts = test.get("counts", {})
    lines += [[f"{name_of(name)}, counted", number(value), "–"] for name, value in counts.items()]
    return joined(
        [
            element("h3", "Every score"),
            table(
                f"Scores on {number(test.get('rows'))} test rows; "
                f"{number(test.get('bootstrap'))} bootstrap resamples",
                ["score", "value", "95 % interval"],
                lines,
                numbers=[1, 2],
            ),
        ]
    )


def _is_score(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in NO_SCORES


def _classes(test: Mapping[str, Any]) -> Html:
    found = test.get("per_class")
    if not found:
        return Html("")
    keys = list(dict.fromkeys(key for one in found.values() for key in one))
    lines = [[name, *(number(one.get(key)) for key in keys)] for name, one in found.items()]
    made = table("Scores of each class", ["class", *keys], lines, numbers=range(1, len(keys) + 1))
    return joined([element("h3", "Classes"), made])


def _matrix(matrix: list[list[int]], names: list[str]) -> Html:
    head = element(
        "tr", element("th", "label ↓ answer →", scope="col"), *(element("th", n, scope="col") for n in names)
    )
    lines = []
    for i, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        whole = sum(counts) or 1
        cells = [
            element(
                "td",
                number(count),
                class_="right" if i == j else None,
                style=f"--share:{count / whole:.2f}",
            )
            for j, count in enumerate(counts)
        ]
        lines.append(element("tr", element("th", name, scope="row"), *cells))
    caption = "Rows by label and answer; a darker cell is a larger share of its label"
    made = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *lines),
        class_="confusion",
    )
    return scrolling(made, caption)


def _pairs(matrix: list[list[int]], names: list[str]) -> Html:
    mixed = [
        (count, names[i], names[j], sum(counts))
        for i, counts in enumerate(matrix)
        for j, count in enumerate(counts)
        if i != j and count
    ]
    mixed.sort(key=lambda one: -one[0])
    if not mixed:
        return note("No row is wrong.")
    most = MOST_PAIRS if len(names) > MOST_CLASSES else 5
    lines = [
        [label, answer, number(count), f"{100 * count / whole:.1f} %"]
        for count, label, answer, whole in mixed[:most]
    ]
    header = ["label", "answer", "rows", "of the label"]
    return table("Mixed up most", header, lines, numbers=[2, 3])
