"""What a run was made of: data and what was found in it, recipe and how it differs, environment, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_llm_recipes.markup import (
    Html,
    bullets,
    details,
    element,
    joined,
    name_of,
    number,
    section,
    table,
    words,
)
from hf_llm_recipes.reporting.facts import Facts

WHAT = {
    "recipe.yaml": "the recipe as it was run, defaults written out",
    "metrics.json": "every figure, with intervals",
    "predictions.parquet": "each test row with what the model says of it",
    "environment.json": "versions, device, seeds, fingerprints",
    "log.jsonl": "what the training logged",
    "samples.jsonl": "what the model wrote to fixed texts",
    "model/": "the model, for from_pretrained",
    "README.md": "the model card",
    "report.html": "this page",
    "checkpoints/": "the training's states",
    "baseline/": "the supervised run that this one is compared with",
}


def data(facts: Facts) -> Html:
    """The splits, where they come from, and what was found in them."""
    described = facts.environment.get("data", {})
    findings = facts.metrics.get("data", {})
    plain = {
        name_of(key): words(described[key])
        for key in ("origin", "license", "revision", "made_from")
        if described.get(key)
    }
    return section(
        "Data",
        _definitions(plain),
        _splits(described.get("splits", {})),
        _findings(findings),
        _pool_findings(described.get("splits", {})),
        bullets(described.get("notes", [])),
        identity="data",
    )


def recipe(facts: Facts, shipped: tuple[str, Sequence[str]] | None) -> Html:
    """The recipe and its differences from the shipped one of that name.

    Args:
        facts: Of the run.
        shipped: Name and lines ``key: shipped -> run``; None where none has that name.
    """
    if facts.recipe is None:
        return Html("")
    parts: list[Any] = []
    if shipped is not None:
        name, differences = shipped
        said = (
            f"Differs from the shipped recipe {name} in {len(differences)} "
            f"{'place' if len(differences) == 1 else 'places'}:"
            if differences
            else f"The shipped recipe {name}, unchanged."
        )
        parts += [element("p", said), _differences(differences)]
    parts.append(details("The recipe as it was run", element("pre", facts.recipe.dump(), tabindex=0)))
    return section("Recipe", *parts, identity="recipe")


def environment(facts: Facts) -> Html:
    """Versions, device, seeds and what was told on the way."""
    found = facts.environment
    if not found:
        return Html("")
    device = found.get("device", {})
    model = found.get("model", {})
    plain = {
        "device": ", ".join(device.get("gpus") or []) or str(device.get("cpu", "")),
        "cores and threads": f"{device.get('cpu_cores')} cores, {device.get('torch_threads')} threads",
        "memory": f"{number(device.get('memory_gib'), 1)} GiB",
        "arithmetic": found.get("dtype_reason") or found.get("dtype", ""),
        "model": f"{model.get('name') or 'a new architecture'} {model.get('fingerprint') or ''}".strip(),
        "Python": found.get("python", ""),
        "platform": found.get("platform", ""),
        "git commit": found.get("git_commit") or "none",
    }
    packages = [[name, version] for name, version in found.get("packages", {}).items()]
    seeds = [[name_of(name), str(value)] for name, value in found.get("seeds", {}).items()]
    return section(
        "Environment",
        _definitions({key: value for key, value in plain.items() if value}),
        bullets(found.get("notes", [])),
        details("Packages", table("Installed versions", ["package", "version"], packages))
        if packages
        else "",
        details("Seeds", table("Seeds of every random source", ["source", "seed"], seeds)) if seeds else "",
        identity="environment",
    )


def files(facts: Facts) -> Html:
    """What lies in the run's folder."""
    names = {name: size for name, size in facts.files.items() if not name.startswith(".")}
    names["report.html"] = 0  # not yet as long as it will be
    rows = [[name, _size(size) if size else "–", WHAT.get(name, "")] for name, size in sorted(names.items())]
    made = table("Files of this run", ["file", "size", "what it is"], rows, numbers=[1], hidden_caption=True)
    return section("Files", made, identity="files")


def _definitions(plain: Mapping[str, Any]) -> Html:
    parts = [joined([element("dt", key), element("dd", str(value))]) for key, value in plain.items()]
    return element("dl", *parts, class_="facts") if parts else Html("")


def _splits(splits: Mapping[str, Mapping[str, Any]]) -> Html:
    if not splits:
        return Html("")
    rows = [
        [
            name,
            number(one.get("rows")),
            ", ".join(map(str, one.get("columns", []))),
            str(one.get("origin", "")),
            str(one.get("fingerprint", ""))[:12],
        ]
        for name, one in splits.items()
    ]
    header = ["split", "rows", "columns", "from", "fingerprint"]
    return table("Splits, as they were used", header, rows, numbers=[1])


def _findings(findings: Mapping[str, Any]) -> Html:
    splits = {name: one for name, one in findings.items() if isinstance(one, dict)}
    keys = list(dict.fromkeys(key for one in splits.values() for key in one))
    if not keys:
        return Html("")
    rows = [[name_of(key), *(number(one.get(key)) for one in splits.values())] for key in keys]
    return table("What was found in them", ["figure", *splits], rows, numbers=range(1, len(splits) + 1))


def _pool_findings(splits: Mapping[str, Mapping[str, Any]]) -> Html:
    found = splits.get("unlabeled", {}).get("pool")
    if not found:
        return Html("")
    rows = [[name_of(key), number(value)] for key, value in found.items()]
    return table("What was found in the pool", ["figure", "value"], rows, numbers=[1])


def _differences(lines: Sequence[str]) -> Html:
    if not lines:
        return Html("")
    rows = []
    for line in lines:
        key, _, change = line.partition(": ")
        before, _, after = change.partition(" -> ")
        rows.append([element("code", key), before, after])
    return table("Differences from the shipped recipe", ["key", "shipped", "this run"], rows)


def _size(size: int) -> str:
    for unit, width in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= width:
            return f"{size / width:.1f} {unit}"
    return f"{size} B"
