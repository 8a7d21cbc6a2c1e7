"""Semi-supervised fine-tuning against supervised training, on data sets of your own.

A resumable grid: one JSON line a run, appended to ``--out``; runs that are there already are skipped.
The table and the plot are made of whatever the file holds.

    python benchmarks/semi_supervised.py --data ../data --sets ag_news --labels 10 --seeds 5
    python benchmarks/semi_supervised.py --data ../data --sets ag_news --stress imbalanced foreign
    python benchmarks/semi_supervised.py --table-only

Notable:
- A data set is a folder under ``--data`` with ``train`` or ``pool`` and ``test`` as Parquet, columns
  ``text`` and ``label``; ``local/python-docstrings`` needs no folder.
- A seed draws the labeled rows, the pool and everything random; all methods of a seed share them. The
  labeled rows for 4 labels a class are among those for 10.
- The last weights are judged, once, on the first ``--test-rows`` rows of the test split.
- ``--stress`` spoils the pool, by seed: ``imbalanced`` keeps class c of C (in an order of the seed's) at
  10^(−c/(C−1)) of the commonest one's rows, so 10:1 between first and last; in ``foreign`` a quarter of
  the rows come from ``--foreign`` sets. The labeled rows are those of the same seed without stress.
- ``ceiling`` is the same model and tuning on the labels of all training rows. A gap closed by x % means
  (accuracy − supervised) / (ceiling − supervised).
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
    "jointmatch": {"method": SEMI, "algorithm": "jointmatch"},
    "softmatch, prior told": {"method": {**SEMI, "prior": "uniform"}, "algorithm": "softmatch"},
    "self-training": {"method": {"name": "self_training", "rounds": 2, "passes": 4}},
    "ceiling": {"method": "supervised"},
}
STRESS = ("none", "imbalanced", "foreign")
IMBALANCE = 10  # rows of the commonest class for one of the rarest
FOREIGN = 0.25  # of the pool


def recipe_of(
    name: str, data: str, labels: int, seed: int, options, pool: Path | None = None
) -> dict[str, Any]:
    """Returns the values of one run's recipe; ``pool`` is a file in place of the train rows left over."""
    source = source_of(data, options)
    if name != "ceiling":
        source |= {"labels_per_class": labels, "split_seed": seed}
        if name != "supervised":
            source |= {"unlabeled_limit": options.pool, "pool_overlap": "drop"}
            source |= {} if pool is None else {"unlabeled": str(pool)}
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


def stressed_pool(stress: str, data: str, labels: int, seed: int, options, folder: Path) -> Path | None:
    """Writes a spoilt pool and returns its file; None where there is no stress."""
    if stress == "none":
        return None
    import pyarrow
    import pyarrow.parquet

    from hf_llm_recipes.data.pool import few_labels

    train = pyarrow.parquet.read_table(options.data / data / source_of(data, options)["train"])
    classes = np.asarray(train["label"])
    rest = few_labels(classes.tolist(), labels, seed)[1]
    random = np.random.default_rng(seed)
    if stress == "imbalanced":
        pool = train.take(imbalanced(classes, rest, random)).select(["text"])
    else:
        others = [strangers(options.data / name) for name in options.foreign]
        strange = pyarrow.concat_tables(others)
        count = min(len(strange), round(FOREIGN * options.pool))
        own = random.permutation(rest)[: round(count * (1 - FOREIGN) / FOREIGN)]
        strange = strange.take(random.permutation(len(strange))[:count])
        pool = pyarrow.concat_tables([train.take(own).select(["text"]), strange])
    path = folder / "pool.parquet"
    pyarrow.parquet.write_table(pool, path)
    return path


def imbalanced(classes_N: np.ndarray, rest: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns numbers of rows among ``rest``, class by class at 10^(−c/(C−1)) of the first class's."""
    order = random.permutation(np.unique(classes_N))
    most = min((classes_N[rest] == label).sum() for label in order)
    chosen = []
    for place, label in enumerate(order):
        count = round(most * IMBALANCE ** (-place / (len(order) - 1)))
        chosen.append(random.permutation(rest[classes_N[rest] == label])[:count])
    return random.permutation(np.concatenate(chosen))


def strangers(folder: Path) -> Any:
    """Returns the texts of another set's train rows."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder / "train.parquet", columns=["text"])


def key_of(name: str, data: str, labels: int, seed: int, options, stress: str = "none") -> dict[str, Any]:
    """What tells one run from another."""
    ceiling = name == "ceiling"
    return {
        "set": data if stress == "none" else f"{data}, {stress}",
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
        "first_labels": method.get("first_labels"),
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
    parser.add_argument("--stress", nargs="+", default=["none"], choices=STRESS, help="what spoils the pool")
    parser.add_argument("--foreign", nargs="+", default=["trec6", "sst2"], help="sets of the foreign rows")
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
    names = ("set", "labels", "seed", "method", "steps", "pool")
    known = {tuple(line[name] for name in names) for line in lines}
    for seed, data, labels, stress, name in wanted(options):
        key = key_of(name, data, labels, seed, options, stress)
        if tuple(key[name] for name in names) in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            pool = stressed_pool(stress, data, labels, seed, options, Path(folder))
            line = measure(key, recipe_of(name, data, labels, seed, options, pool))
        lines.append(line)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{key['set']}, {labels} a class, seed {seed}, {name}: {100 * line['accuracy']:.1f} % "
            f"in {line['minutes']:.1f} minutes",
            file=sys.stderr,
        )


def wanted(options) -> Iterator[tuple[int, str, int, str, str]]:
    """Seed, set, labels a class, stress and method of each run; one ceiling a set."""
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for data, labels, stress, name in itertools.product(
            options.sets, options.labels, options.stress, options.methods
        ):
            again = seed != options.first_seed or labels != options.labels[0] or stress != options.stress[0]
            if not (name == "ceiling" and again):
                yield seed, data, labels, stress, name


if __name__ == "__main__":
    main()
