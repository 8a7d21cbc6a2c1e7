"""Semi-supervised fine-tuning against supervised training, on data sets of your own.

A resumable grid: one JSON line a run, appended to ``--out``; runs that are there already are skipped.
The table and the plot are made of whatever the file holds.

    python benchmarks/semi_supervised.py --data ../data --sets ag_news --labels 10 --seeds 5
    python benchmarks/semi_supervised.py --table-only

Notable:
- A data set is a folder under ``--data`` with ``train`` or ``pool`` and ``test`` as Parquet, columns
  ``text`` and ``label``; ``local/python-docstrings`` needs no folder.
- A seed draws the labeled rows, the pool and everything random; all methods of a seed share them. The
  labeled rows for 4 labels a class are among those for 10.
- The last weights are judged, once, on the first ``--test-rows`` rows of the test split.
- ``ceiling`` is the same model and tuning on the labels of all training rows. A gap closed by x % means
  (accuracy − supervised) / (ceiling − supervised).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TUNING = {
    "name": "lora",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["query", "key", "value", "dense"],
    "layers_to_transform": [3, 4, 5],
    "modules_to_save": ["pooler"],
}
SEMI = {"name": "semi_supervised"}
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"method": "supervised"},
    "adamatch": {"method": SEMI, "algorithm": "adamatch"},
    "softmatch": {"method": SEMI, "algorithm": "softmatch"},
    "freematch": {"method": SEMI, "algorithm": "freematch"},
    "flexmatch": {"method": SEMI, "algorithm": "flexmatch"},
    "fixmatch": {"method": SEMI, "algorithm": "fixmatch"},
    "softmatch, cold start": {"method": {**SEMI, "warm_start": "none"}, "algorithm": "softmatch"},
    "propagation": {"method": {**SEMI, "warm_start_fraction": 1.0}, "algorithm": "softmatch"},
    "ceiling": {"method": "supervised"},
}


def recipe_of(name: str, data: str, labels: int, seed: int, options) -> dict[str, Any]:
    """Returns the values of one run's recipe."""
    source = source_of(data, options)
    if name != "ceiling":
        source |= {"labels_per_class": labels, "split_seed": seed}
        if name != "supervised":
            source |= {"unlabeled_limit": options.pool, "pool_overlap": "drop"}
    steps = options.ceiling_steps if name == "ceiling" else options.steps
    return {
        "name": "run",
        "seed": seed,
        "model": {"name": options.model},
        "tuning": TUNING,
        "data": source,
        "task": {"name": "text_classification", "max_length": options.max_length},
        **METHODS[name],
        "trainer": {
            "max_steps": steps,
            "per_device_train_batch_size": 32 if name == "ceiling" else 8,
            "learning_rate": options.learning_rate,
            "warmup_steps": steps // 10,
            "save_strategy": "no",
            "logging_steps": 50,
            "disable_tqdm": True,
        },
    }


def source_of(data: str, options) -> dict[str, Any]:
    """Returns the ``data:`` section of one data set."""
    if data.startswith("local/"):
        return {"name": data, "train": "train", "test": "test", "eval_fraction": 0}
    folder = options.data / data
    train = "pool.parquet" if (folder / "pool.parquet").is_file() else "train.parquet"
    import pyarrow.parquet

    fewer = pyarrow.parquet.read_metadata(folder / "test.parquet").num_rows <= options.test_rows
    return {
        "name": str(folder),
        "train": train,
        "test": "test.parquet" if fewer else f"test.parquet[:{options.test_rows}]",
        "eval_fraction": 0,
    }


def key_of(name: str, data: str, labels: int, seed: int, options) -> dict[str, Any]:
    """What tells one run from another."""
    ceiling = name == "ceiling"
    return {
        "set": data,
        "labels": 0 if ceiling else labels,
        "seed": seed,
        "method": name,
        "steps": options.ceiling_steps if ceiling else options.steps,
        "pool": options.pool,
        "test_rows": options.test_rows,
    }


def measure(key: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Runs one recipe and returns its line."""
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import run

    folder = Path(tempfile.mkdtemp())
    started = time.monotonic()
    try:
        done = run(Recipe.from_dict({**values, "output": str(folder / "out")}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    method = done.metrics.get("method", {})
    return {
        **key,
        "accuracy": done.metrics["test"]["accuracy"],
        "student": method.get("test_student", {}).get("accuracy"),
        "baselines": {name: found["accuracy"] for name, found in done.metrics.get("baselines", {}).items()},
        "guard": method.get("guard"),
        "strong_rows_computed": method.get("strong_rows_computed"),
        "unlabeled_rows_seen": method.get("unlabeled_rows_seen"),
        "training_minutes": done.metrics["training"]["minutes"],
        "minutes": (time.monotonic() - started) / 60,
        "peak_gib": done.metrics["training"]["peak_memory_gib"],
        "machine": platform.processor() or platform.machine(),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a grid; a torn last line is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"a torn line of {path} is left out", file=sys.stderr)
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """The grid as Markdown: a row for each set, number of labels and method."""
    head = "| set | labels a class | method | accuracy, % | sd | seeds | to supervised, points | worse seeds "
    rows = [head + "| gap closed | minutes |", "|---" * 10 + "|"]
    for data in dict.fromkeys(line["set"] for line in lines):
        mine = [line for line in lines if line["set"] == data]
        ceiling = [line["accuracy"] for line in mine if line["method"] == "ceiling"]
        for labels in sorted({line["labels"] for line in mine if line["method"] != "ceiling"}):
            cell = [line for line in mine if line["labels"] == labels and line["method"] != "ceiling"]
            rows += cell_rows(data, labels, cell, ceiling)
        if ceiling:
            mean = 100 * statistics.mean(ceiling)
            rows.append(f"| {data} | all of the pool | ceiling | {mean:.1f} | | {len(ceiling)} | | | | |")
    return "\n".join(rows)


def cell_rows(data: str, labels: int, cell: list[dict], ceiling: list[float]) -> list[str]:
    """The rows of one set and number of labels; baselines on frozen features among them."""
    scores = {}
    for line in cell:
        scores.setdefault(line["method"], {})[line["seed"]] = (line["accuracy"], line["training_minutes"])
    for line in cell:
        for name, accuracy in line["baselines"].items():
            scores.setdefault(f"{name}, frozen features", {}).setdefault(line["seed"], (accuracy, 0.0))
    base = scores.get("supervised", {})
    rows = []
    for method, by_seed in scores.items():
        accuracies = [100 * accuracy for accuracy, _ in by_seed.values()]
        spread = f"{statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        paired = [100 * (by_seed[s][0] - base[s][0]) for s in by_seed if s in base]
        difference = worse = gap = ""
        if paired and method != "supervised":
            difference = f"{statistics.mean(paired):+.1f} ({min(paired):+.1f} to {max(paired):+.1f})"
            worse = f"{sum(d < 0 for d in paired)} of {len(paired)}"
            room = (
                100 * (statistics.mean(ceiling) - statistics.mean(a for a, _ in base.values()))
                if ceiling
                else 0
            )
            gap = f"{100 * statistics.mean(paired) / room:.0f} %" if room > 0 else ""
        minutes = statistics.mean(m for _, m in by_seed.values())
        mean = statistics.mean(accuracies)
        rows.append(
            f"| {data} | {labels} | {method} | {mean:.1f} | {spread} | {len(accuracies)} "
            f"| {difference} | {worse} | {gap} | {minutes:.1f} |"
        )
    return rows


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Draws accuracy per method, a point a seed, one panel for each set and number of labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = sorted({(line["set"], line["labels"]) for line in lines if line["method"] != "ceiling"})
    figure, axes = plt.subplots(1, len(cells), figsize=(4 * len(cells), 4), squeeze=False)
    for axis, (data, labels) in zip(axes[0], cells, strict=True):
        mine = [line for line in lines if (line["set"], line["labels"]) == (data, labels)]
        names = list(dict.fromkeys(line["method"] for line in mine))
        for at, name in enumerate(names):
            values = [100 * line["accuracy"] for line in mine if line["method"] == name]
            axis.plot([at] * len(values), values, "o", alpha=0.6)
            axis.plot([at - 0.2, at + 0.2], [statistics.mean(values)] * 2, "k-")
        for line in lines:
            if line["set"] == data and line["method"] == "ceiling":
                axis.axhline(100 * line["accuracy"], linestyle=":", color="gray")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_title(f"{data}, {labels} labels a class")
        axis.set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing of the grid, then prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=["local/python-docstrings"])
    parser.add_argument("--labels", nargs="+", type=int, default=[10], help="labels a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--methods", nargs="+", default=["supervised", "adamatch", "softmatch"], choices=METHODS
    )
    parser.add_argument("--model", default="local/minilm")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--ceiling-steps", type=int, default=300)
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--test-rows", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("semi_supervised.jsonl"))
    parser.add_argument("--table-only", action="store_true")
    options = parser.parse_args(arguments)
    lines = read(options.out)
    if not options.table_only:
        run_grid(options, lines)
    print(table(lines))
    if lines:
        plot(lines, options.out.with_suffix(".png"))
        print(f"\nfigures: {options.out}\nplot: {options.out.with_suffix('.png')}")


def run_grid(options, lines: list[dict[str, Any]]) -> None:
    """Appends the runs that the file lacks, seed by seed so that every seed is whole early."""
    known = [{k: line[k] for k in ("set", "labels", "seed", "method", "steps", "pool")} for line in lines]
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for data in options.sets:
            for labels in options.labels:
                for name in options.methods:
                    if name == "ceiling" and (seed != options.first_seed or labels != options.labels[0]):
                        continue
                    key = key_of(name, data, labels, seed, options)
                    if {k: key[k] for k in known[0]} in known if known else False:
                        continue
                    line = measure(key, recipe_of(name, data, labels, seed, options))
                    lines.append(line)
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(
                        f"{data}, {labels} a class, seed {seed}, {name}: {100 * line['accuracy']:.1f} % "
                        f"in {line['minutes']:.1f} minutes",
                        file=sys.stderr,
                    )


if __name__ == "__main__":
    main()
