"""How a run learned: curves, learning rate, speed and memory, what the method says, samples over time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_llm_recipes.markup import (
    Html,
    bullets,
    element,
    joined,
    name_of,
    number,
    section,
    shortened,
    table,
    words,
)
from hf_llm_recipes.reporting import charts
from hf_llm_recipes.reporting.facts import Facts, Lines, points
from hf_llm_recipes.spans import minutes_of

UNLABELED, CLASS = "unlabeled/", "unlabeled/class_"
SHARES = {  # of the unlabeled stream, within [0, 1]
    "kept": "kept (weight above zero)",
    "agreement": "agreement, weak and strong view",
    "confidence": "confidence",
    "threshold": "threshold",
    "item_weight": "mean weight",
    "waiting": "guard waits",
}
LOSSES = ("loss", "eval_loss")
NOT_DRAWN = ("step", "time", "epoch", "round", "total_flos", *LOSSES, "learning_rate", "grad_norm")
SPEED, PARTS = ("throughput/", "memory/", "energy/"), "gradients/"  # of the callbacks of these names
MOST_CHARTS = 18  # of what a method logs
MOST_SAMPLES = 60
Curves = dict[str, tuple[list[int], list[float]]]
LAST_SHARE = 0.25  # of the logs that the histogram of pseudo-labels is taken from


def curves(facts: Facts) -> Html:
    """Losses, evaluations and learning rate, of the stages too."""
    made = _loss_and_rate(facts.log, "")
    evaluations = [key for key in _keys(facts.log) if key.startswith("eval_") and _is_score(key)]
    for key in evaluations:
        label = name_of(key.removeprefix("eval_"))
        made.append(
            charts.lines(f"Evaluation: {label}", {label: points(facts.log, key)}, ylabel=_unit(label))
        )
    parts = [key for key in _keys(facts.log) if key.startswith(PARTS)]
    norms = {name_of(key.removeprefix(PARTS)): points(facts.log, key) for key in parts}
    made.append(charts.lines("Gradient norms of the parts", norms, logarithmic=True))
    for number_, lines in facts.stages.items():
        made += _loss_and_rate(lines, f"Stage {number_ + 1}: ")
    return section("Learning curves", _figures(made), identity="curves")


def speed_and_memory(facts: Facts) -> Html:
    """Steps a second over time, memory and minutes, predicted and measured."""
    training = facts.metrics.get("training", {})
    made = [charts.lines("Steps a second", {"steps/s": steps_per_second(facts.log)}, ylabel="steps/s")]
    for key in _keys(facts.log):
        if key.startswith(SPEED):
            label = name_of(key.partition("/")[2])
            made.append(
                charts.lines(label.capitalize(), {label: points(facts.log, key)}, ylabel=_unit(label))
            )
    return section(
        "Throughput and memory",
        _measured(training, minutes_of(facts.metrics)),
        _figures(made),
        _cost(training),
        identity="speed",
    )


def method(facts: Facts) -> Html:
    """What the method says: pseudo-labels, guard, first labels, rounds, and whatever else it logs."""
    said = facts.metrics.get("method", {})
    names = facts.test.get("labels", [])
    return section(
        "What the method did",
        _pool(facts.log, said, names),
        _guard(facts),
        _first_labels(said),
        _cross_fit(said),
        _rounds(said, names),
        _other_curves(facts.log),
        _stage_figures(facts.metrics.get("stages", [])),
        _other(said),
        identity="method",
    )


def samples(facts: Facts) -> Html:
    """What the model wrote to the same texts over time."""
    if not facts.samples:
        return Html("")
    texts = list(dict.fromkeys(str(one.get("text")) for one in facts.samples))
    made = []
    for text in texts:
        lines = [one for one in facts.samples if str(one.get("text")) == text]
        rows = [
            [number(one["step"]), element("div", shortened(one.get("written", "")), class_="text")]
            for one in _spread(lines, max(2, MOST_SAMPLES // len(texts)))
        ]
        made.append(table(f"Behind {shortened(repr(text), 200)}", ["step", "written"], rows))
    return section("Samples over time", *made, identity="samples")


def steps_per_second(log: Lines) -> tuple[list[int], list[float]]:
    """Returns the speed between two logs of the training loss, from their times.

    A span with an evaluation in it counts the evaluation too, and a resumed run the time it did not run:
    both are left out, a span slower than a tenth of the median among them.
    """
    marks = [i for i, one in enumerate(log) if "loss" in one and isinstance(one.get("time"), int | float)]
    found = []
    for before, after in itertools.pairwise(marks):
        steps, seconds = log[after]["step"] - log[before]["step"], log[after]["time"] - log[before]["time"]
        if after == before + 1 and steps > 0 and seconds > 0:
            found.append((log[after]["step"], steps / seconds))
    speeds = sorted(speed for _, speed in found)
    least = speeds[len(speeds) // 2] / 10 if speeds else 0.0
    kept = [(step, speed) for step, speed in found if speed >= least]
    return [step for step, _ in kept], [speed for _, speed in kept]


def _loss_and_rate(log: Lines, before: str) -> list[Html]:
    losses = {name: points(log, key) for key, name in zip(LOSSES, ("training", "evaluation"), strict=True)}
    return [
        charts.lines(f"{before}Loss", losses, ylabel="loss"),
        charts.lines(f"{before}Learning rate", {"learning rate": points(log, "learning_rate")}),
        charts.lines(f"{before}Gradient norm", {"gradient norm": points(log, "grad_norm")}, logarithmic=True),
    ]


def _figures(made: Iterable[Html]) -> Html:
    kept = [one for one in made if one]
    return element("div", *kept, class_="figures") if kept else Html("")


def _keys(log: Lines) -> list[str]:
    return list(dict.fromkeys(key for one in log for key in one))


def _is_score(key: str) -> bool:
    return key not in LOSSES and not key.endswith(("_runtime", "_per_second"))


def _unit(label: str) -> str:
    return label if len(label) < 34 else ""


def _measured(training: Mapping[str, Any], took: Mapping[str, float]) -> Html:
    """Predicted beside measured; only measured where nothing was predicted."""
    if not training:
        return Html("")
    predicted = training.get("predicted", {})
    pairs = [("minutes of training", training.get("minutes"), predicted.get("minutes"))]
    for part, said in predicted.get("minutes_by_part", {}).items():
        if part != "training":
            pairs.append((f"minutes of {part}", took.get(part), said))
    for kind, peak in training.get("peak_memory_gib", {}).items():
        pairs.append((f"peak memory, {kind}, GiB", peak, predicted.get("peak_memory_gib", {}).get(kind)))
    rows = [
        [name, number(was, 2), number(said, 2), _ratio(said, was)]
        for name, was, said in pairs
        if was is not None
    ]
    if not predicted:
        return table("Measured", ["figure", "measured"], [row[:2] for row in rows], numbers=[1])
    return table(
        "Predicted before the training, and measured",
        ["figure", "measured", "predicted", "predicted ÷ measured"],
        rows,
        numbers=[1, 2, 3],
    )


def _ratio(said: float | None, was: float | None) -> str:
    return f"{said / was:.2f}" if said and was else "–"


def _cost(training: Mapping[str, Any]) -> Html:
    weights = training.get("parameters", {})
    said = []
    if weights.get("total"):
        share = 100 * weights["trainable"] / weights["total"]
        said.append(f"{weights['trainable']:,} of {weights['total']:,} weights trained ({share:.2f} %)")
    if training.get("minutes_before", 0) >= 0.005:
        said.append(f"{training['minutes_before']:.2f} minutes of first labels or comparisons before it")
    if training.get("samples_per_second"):
        said.append(f"{number(training['samples_per_second'], 2)} rows a second, as the Trainer counts them")
    energy, average = training.get("energy", {}), training.get("ema", {})
    if energy:
        said.append(
            f"{energy['kwh']:.3g} kWh, {energy['co2e_kg']:.3g} kg CO₂e by the electricity mix of "
            f"{energy['country']} ({energy['how']})"
        )
    if average:
        said.append(
            f"The {name_of(average['exported'])} are judged and saved, the {name_of(average['beside'])} "
            f"judged beside them (an average over {average['updates']:,} steps, decay {average['decay']:.4g})"
        )
    return bullets(said)


def _pool(log: Lines, said: Mapping[str, Any], names: Sequence[str]) -> Html:
    shares = {label: points(log, UNLABELED + key) for key, label in SHARES.items()}
    made = [
        charts.lines("The pool's rows", shares, ylabel="share", bounds=(0, 1)),
        charts.lines(
            "Loss on the pool",
            {"unlabeled loss": points(log, UNLABELED + "loss")},
            ylabel="loss",
        ),
        charts.lines(
            "Distance of pseudo-labels from the prior",
            {"distance": points(log, UNLABELED + "histogram_distance")},
            ylabel="distance",
        ),
        _histogram(log, said, names),
    ]
    figures = _figures(made)
    if not figures:
        return Html("")
    seen = said.get("unlabeled_rows_seen")
    counted = (
        f"{seen:,} rows of the pool seen, {said.get('strong_rows_computed', 0):,} of them computed in their "
        "strong view; the others had no weight."
        if seen
        else None
    )
    head = element("h3", "Pseudo-labels")
    return joined([head, element("p", counted) if counted else "", figures])


def _histogram(log: Lines, said: Mapping[str, Any], names: Sequence[str]) -> Html:
    """The classes of the pseudo-labels late in the training, beside the prior."""
    keys = [key for key in _keys(log) if key.startswith(CLASS)]
    prior = said.get("prior", [])
    logged = [one for one in log if keys and keys[0] in one]
    if not logged or (prior and len(prior) != len(keys)):
        return Html("")
    keys.sort(key=lambda key: int(key.removeprefix(CLASS)))
    late = logged[-max(1, round(LAST_SHARE * len(logged))) :]
    found = [sum(float(one.get(key, 0.0)) for one in late) / len(late) for key in keys]
    series = {"pseudo-labels": found} | ({"prior": prior} if prior else {})
    labels = list(names) if len(names) == len(keys) else [key.removeprefix(CLASS) for key in keys]
    return charts.bars(
        "Classes of the pseudo-labels, last quarter of the logs", labels, series, ylabel="share"
    )


def _guard(facts: Facts) -> Html:
    """What the guards of the pool and of the training found."""
    said = facts.metrics.get("method", {})
    found = list(said.get("guard") or [])
    waited = said.get("guard_steps_waited")
    if waited:
        found.append(f"the unlabeled loss waited for {waited:,} steps")
    for name, what in facts.metrics.get("training", {}).get("guard", {}).items():
        found.append(f"{name_of(name)}: {words(what)}")
    if not found and said.get("guard") is None:
        return Html("")
    return joined([element("h3", "Guard"), bullets(found or ["it found nothing"])])


def _first_labels(said: Mapping[str, Any]) -> Html:
    first = said.get("first_labels", {})
    held_out = first.get("held_out") or said.get("held_out_accuracy")
    if not held_out:
        return Html("")
    powers = first.get("powers", {})
    rows = [
        [name_of(name), number(float(value), 3), number(powers.get(name), 3)]
        for name, value in held_out.items()
    ]
    used = f"; used: {name_of(first['used'])}" if "used" in first else ""
    made = table(
        f"Sources of the pool's first labels, on labeled rows held out in turn{used}",
        ["source", "accuracy", "power in the mixture"] if powers else ["source", "accuracy"],
        rows if powers else [row[:2] for row in rows],
        numbers=[1, 2],
    )
    return joined([element("h3", "First labels"), made])


def _cross_fit(said: Mapping[str, Any]) -> Html:
    found = said.get("cross_fit")
    if not found:
        return Html("")
    semi, supervised = found["semi_supervised"], found["supervised"]
    used = "trained without the pool" if semi < supervised else "used the pool"
    text = (
        f"On {found['rows']:,} labeled rows held out in turn ({found['folds']} folds), {found['metric']} was "
        f"{semi:.4f} with the pool and {supervised:.4f} without: the run {used}."
    )
    return joined([element("h3", "With the pool or without"), element("p", text)])


def _rounds(said: Mapping[str, Any], names: Sequence[str]) -> Html:
    rounds = said.get("rounds") or []
    if not rounds:
        return Html("")
    flat = [_flat(one) for one in rounds]
    keys = [key for key in dict.fromkeys(k for one in flat for k in one) if key != "round"]
    header = ["round", *map(name_of, keys)]
    lines = [[number(one.get("round")), *(number(one.get(key)) for key in keys)] for one in flat]
    last = rounds[-1]
    classes, prior = last.get("classes"), last.get("prior")
    drawn = Html("")
    if classes and prior and len(classes) == len(prior) and sum(classes):
        labels = list(names) if len(names) == len(classes) else [str(i) for i in range(len(classes))]
        series = {"pseudo-labels": [count / sum(classes) for count in classes], "prior": prior}
        drawn = charts.bars("Classes of the last round's pseudo-labels", labels, series, ylabel="share")
    kept = f" Kept: round {said['kept_round']}." if "kept_round" in said else ""
    settled = "The labels had settled." if said.get("labels_settled") else "The labels had not settled."
    if said.get("nothing_taken_in_round"):
        settled = f"No answer could be taken for round {said['nothing_taken_in_round']}."
    return joined(
        [
            element("h3", "Rounds"),
            table("What each round took and reached", header, lines, numbers=range(len(header))),
            element("p", settled + kept),
            _figures([drawn]),
        ]
    )


def _flat(one: Mapping[str, Any]) -> dict[str, Any]:
    """A round's figures; those of its evaluation by their own names, lists left to the drawing."""
    evaluated = one.get("eval") if isinstance(one.get("eval"), dict) else {}
    whole = {k: v for k, v in one.items() if k != "eval"} | {
        k if str(k).startswith("eval") else f"eval_{k}": v for k, v in evaluated.items()
    }
    return {key: value for key, value in whole.items() if isinstance(value, int | float | str)}


def _other_curves(log: Lines) -> Html:
    """Whatever else is logged: one figure a word before the slash where sizes are alike, else one a key."""
    groups: dict[str, Curves] = {}
    constant = []
    for key in _keys(log):
        if key in NOT_DRAWN or key.startswith((UNLABELED, "eval_", "train_", *SPEED, PARTS)):
            continue
        steps, values = points(log, key)
        if len(steps) > 1 and min(values) == max(values):
            constant.append(f"{name_of(key)} {number(values[0])}")
        elif len(steps) > 1:
            group = key.rpartition("/")[0] or key
            groups.setdefault(group, {})[name_of(key.rpartition("/")[2])] = (steps, values)
    made = []
    for group, series in sorted(groups.items(), key=lambda pair: "reward" not in pair[0]):
        for part in [series] if _like(series) else [{name: xy} for name, xy in series.items()]:
            made.append(charts.lines(_title(group, list(part)), part))
    drawn = _figures(made[:MOST_CHARTS])
    still = element("p", f"The same at every log: {'; '.join(constant)}.") if constant else ""
    return joined([element("h3", "Logged by the method"), drawn, still]) if drawn or still else Html("")


def _title(group: str, names: Sequence[str]) -> str:
    whole = name_of(group).replace("/", ": ")
    title = whole if len(names) > 1 or names[0] == whole else f"{whole}: {names[0]}"
    return title[:1].upper() + title[1:]


def _like(series: Curves) -> bool:
    """Whether curves can share an axis: none is more than thirty times another's size."""
    sizes = [max(abs(value) for value in y) for _, y in series.values()]
    return len(sizes) <= 4 and max(sizes) <= 30 * max(min(sizes), 1e-12)


def _stage_figures(stages: Sequence[Mapping[str, Any]]) -> Html:
    if not stages:
        return Html("")
    keys = list(dict.fromkeys(key for one in stages for key in one))
    lines = [[str(i + 1), *(number(one.get(key)) for key in keys)] for i, one in enumerate(stages)]
    made = table(
        "Stages before the task", ["stage", *map(name_of, keys)], lines, numbers=range(len(keys) + 1)
    )
    return joined([element("h3", "Stages"), made])


def _other(said: Mapping[str, Any]) -> Html:
    """Plain figures of the method that no other part shows."""
    shown = ("guard_steps_waited", "unlabeled_rows_seen", "strong_rows_computed", "kept_round")
    rest = {
        key: value
        for key, value in said.items()
        if key not in (*shown, "labels_settled") and isinstance(value, int | float | str)
    }
    parts = [joined([element("dt", name_of(key)), element("dd", number(v))]) for key, v in rest.items()]
    return element("dl", *parts, class_="facts") if parts else Html("")


def _spread(lines: Lines, most: int) -> Lines:
    if len(lines) <= most:
        return lines
    return [lines[round(i * (len(lines) - 1) / (most - 1))] for i in range(most)]
