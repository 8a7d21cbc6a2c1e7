"""Several runs on one page: scores with intervals, paired tests, curves over each other, recipes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_llm_recipes.assessing import significance
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.markup import (
    Html,
    element,
    interval,
    joined,
    name_of,
    note,
    number,
    section,
    table,
)
from hf_llm_recipes.reporting import charts
from hf_llm_recipes.reporting.facts import Facts, points
from hf_llm_recipes.reporting.rows import OURS, PROBABILITY
from hf_llm_recipes.reporting.training import steps_per_second

MOST_PAIRS = 15
MOST_CURVES = 12
ABSENT = "–"
DIFFERENT_ROWS = (
    "The runs were not all judged on the same test rows: their scores say little beside each other."
)


def names_of(runs: Sequence[Facts]) -> list[str]:
    """Returns a short name for each run: the folder's where no other has it, else the path."""
    short = [run.path.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run.path) for name, run in zip(short, runs, strict=True)]


def scores(runs: Sequence[Facts], names: Sequence[str]) -> Html:
    """Every score that has an interval, run by run."""
    found = list(dict.fromkeys(key for run in runs for key in run.test.get("intervals_95", {})))
    rows = [
        [name, *(_cell(run, key) for key in found), number(run.test.get("rows"))]
        for name, run in _zip(names, runs)
    ]
    spent = [[name, *_who(run), *_spent(run)] for name, run in _zip(names, runs)]
    drawn = []
    for key in found:
        values = {
            name: (run.test[key], run.test["intervals_95"].get(key))
            for name, run in _zip(names, runs)
            if isinstance(run.test.get(key), int | float)
        }
        if len(values) > 1:
            drawn.append(charts.intervals(f"{name_of(key)}, 95 % interval", values, xlabel=name_of(key)))
    return section(
        "Scores",
        None if same_test_rows(runs) else note(DIFFERENT_ROWS, "warning"),
        element("div", *drawn[:6], class_="figures") if drawn else "",
        table(
            "Scores on each run's test rows, 95 % interval below",
            ["run", *map(name_of, found), "test rows"],
            rows,
            numbers=range(1, len(found) + 2),
        ),
        table(
            "What was run, and what it cost",
            ["run", "task", "method", "tuning", "steps", "minutes", "peak memory, GiB", "weights trained"],
            spent,
            numbers=range(4, 8),
        ),
        identity="scores",
    )


def paired(runs: Sequence[Facts], names: Sequence[str]) -> Html:
    """Row by row: a test that both are as good, for each pair of runs with the same test rows."""
    lines = []
    for (a, one), (b, other) in itertools.combinations(_zip(names, runs), 2):
        found = tested(one, other)
        if found is not None:
            lines.append([f"{a} and {b}", *found])
    if not lines:
        return Html("")
    header = ["runs", "compared", "only the first right", "only the second right", "test", "p"]
    header += ["second − first", "95 %"]
    more = (
        note(f"{len(lines):,} pairs; the first {MOST_PAIRS} are shown.") if len(lines) > MOST_PAIRS else None
    )
    return section(
        "Row by row",
        element(
            "p",
            "How likely is a difference this large, row by row, if both runs are as good? McNemar's test "
            "looks at the rows that only one of them has right, Wilcoxon's at a number of each row. The "
            "p-values are not corrected for the number of pairs.",
        ),
        table("Pairs of runs on the same test rows", header, lines[:MOST_PAIRS], numbers=(2, 3, 5, 6, 7)),
        more,
        identity="paired",
    )


def tested(one: Facts, other: Facts) -> list[Any] | None:
    """Returns the cells of a pair, from ``significance.compare``; None where their rows cannot be paired."""
    both = (one.predictions, other.predictions)
    if not all(both) or not same_test_rows([one, other]):
        return None
    if len({len(next(iter(columns.values()))) for columns in both}) > 1:
        return None
    try:
        found = significance.compare(*both)
    except DataError:  # the task keeps no figure of a row
        return None
    return [
        found["figure"],
        number(found.get("only_first")),
        number(found.get("only_second")),
        found["test"],
        f"{found['p']:.3g}",
        f"{found['difference']:+.4f}",
        interval(found["difference_95"]),
    ]


def same_test_rows(runs: Sequence[Facts]) -> bool:
    """Whether all runs were judged on the same rows: fingerprints, texts and labels."""
    prints = {
        run.environment.get("data", {}).get("splits", {}).get("test", {}).get("fingerprint") for run in runs
    }
    return len(prints - {None}) <= 1 and all(
        _given(run.predictions) == _given(runs[0].predictions) for run in runs
    )


def curves(runs: Sequence[Facts], names: Sequence[str]) -> Html:
    """What at least two runs have logged, over each other."""
    keys = list(dict.fromkeys(key for run in runs for one in run.log for key in one))
    drawn = []
    for key in (key for key in keys if _is_curve(key)):
        series = {name: points(run.log, key) for name, run in _zip(names, runs)}
        drawn.append(_overlaid(name_of(key).replace("/", ": ").capitalize(), series))
    drawn.insert(
        2, _overlaid("Steps a second", {n: steps_per_second(run.log) for n, run in _zip(names, runs)})
    )
    kept = [one for one in drawn if one]
    return section(
        "Curves", element("div", *kept[:MOST_CURVES], class_="figures") if kept else "", identity="curves"
    )


def recipes(runs: Sequence[Facts], names: Sequence[str]) -> Html:
    """The keys in which the recipes differ."""
    known = [(name, run.recipe) for name, run in _zip(names, runs) if run.recipe is not None]
    flat = [dict(_flat(recipe.values)) for _, recipe in known]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if key not in ("name", "output")]
    differing = [key for key in keys if len({_shown(one, key) for one in flat}) > 1]
    if not differing:
        return section("Recipes", element("p", "They do not differ."), identity="recipes")
    rows = [[element("code", key), *(_shown(one, key) for one in flat)] for key in differing]
    same = f"{len(keys) - len(differing):,} other keys are alike."
    return section(
        "Recipes",
        table("Keys in which the recipes differ", ["key", *(name for name, _ in known)], rows),
        element("p", same),
        identity="recipes",
    )


def _overlaid(title: str, series: Mapping[str, Any]) -> Html:
    """Curves of at least two runs that are not all one straight line."""
    drawn = {name: xy for name, xy in series.items() if xy[0]}
    moves = len({value for _, y in drawn.values() for value in y}) > 1
    return charts.lines(title, drawn) if len(drawn) > 1 and moves else Html("")


def _is_curve(key: str) -> bool:
    left_out = ("step", "time", "epoch", "round", "total_flos")
    return (
        key not in left_out
        and not key.startswith(("train_", "unlabeled/class_"))
        and not (key.startswith("eval_") and key.endswith(("_runtime", "_per_second")))
    )


def _zip(names: Sequence[str], runs: Sequence[Facts]) -> Iterable[tuple[str, Facts]]:
    return list(zip(names, runs, strict=True))


def _who(run: Facts) -> list[str]:
    method = run.section("method").get("name", "supervised")
    algorithm = run.section("algorithm").get("name")
    return [
        run.section("task").get("name", ABSENT),
        f"{method} ({algorithm})" if algorithm else method,
        run.section("tuning").get("name", "full"),
    ]


def _spent(run: Facts) -> list[str]:
    training = run.metrics.get("training", {})
    if not training:
        return ["not finished", ABSENT, ABSENT, ABSENT]
    minutes = training.get("minutes", 0.0) + training.get("minutes_before", 0.0)
    peaks = [float(peak) for peak in training.get("peak_memory_gib", {}).values()]
    return [
        number(training.get("steps")),
        number(minutes, 2),
        number(max(peaks), 2) if peaks else ABSENT,
        number(training.get("parameters", {}).get("trainable")),
    ]


def _cell(run: Facts, key: str) -> Any:
    value, edges = run.test.get(key), run.test.get("intervals_95", {}).get(key)
    return joined([number(value), element("br"), interval(edges)]) if edges else number(value)


def _given(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What came with the rows: everything the model did not say."""
    return {
        name: values
        for name, values in columns.items()
        if name == "label"
        or (
            name in ("tokens", "row", "text", "image")
            and name not in OURS
            and not name.startswith(PROBABILITY)
        )
    }


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[str, Any]]:
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield ".".join(path), value
        return
    for key, one in items:
        yield from _flat(one, (*path, str(key)))


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return str(flat[key]) if flat.get(key) is not None else ABSENT
