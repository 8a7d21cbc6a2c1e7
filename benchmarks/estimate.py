"""Memory and time predicted before a run against those measured after it: method or task x tuning x base.

Each cell is two processes: one estimates, the other runs, without a probe of its own. Memory is the peak of
the whole process as ``metrics.json`` reports it. Time is that of the training, and of all that is predicted
(stages, preparation, training, judging, baseline), as wall clock and as CPU time; where other processes
share the cores, only the second can be compared. Features that a run before has kept are read, not made:
each process has an empty cache of its own.

    python benchmarks/estimate.py --out estimate.json
    python benchmarks/estimate.py --runs classify --tunings lora full --bases float32 --steps 30
    python benchmarks/estimate.py --runs semi_supervised self_training dpo --tunings lora --bases float32
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hf_llm_recipes import assets

LORA = "tuning={name: lora, r: 16, lora_alpha: 32}"
TUNINGS = {
    "recipe": [],  # as the recipe has it
    "full": ["tuning=full"],
    "freeze": ["tuning={name: freeze, last: 2}"],
    "lora": [LORA],
}
BASES = {
    "float32": [],
    "8-bit": ["quantization={load_in_8bit: true}"],
    "4-bit": ["quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}"],
}
FEW_ROWS = "data.test=test[:8]"
RUNS = {
    "classify": ("classify/full", ["task.max_length=64", "trainer.per_device_train_batch_size=16"]),
    "chat": (
        "chat/sft-full",
        [
            *("task.max_length=256", "task.generation.max_new_tokens=4", "task.examples=null"),
            *(FEW_ROWS, "trainer.per_device_train_batch_size=4"),
        ],
    ),
    "semi_supervised": ("semi_supervised/softmatch-lora", ["compare=true"]),
    "jointmatch": ("semi_supervised/jointmatch", ["compare=null"]),
    "adamatch": ("semi_supervised/adamatch-lora", ["compare=null"]),
    "propagation": ("semi_supervised/propagation", ["compare=null"]),
    "self_training": ("semi_supervised/self-training", ["compare=null"]),
    "stages": ("semi_supervised/tapt-softmatch", ["compare=null", "stages.0.max_steps=20"]),
    "distillation": ("chat/distill", ["compare=null", "task.max_length=256", "task.examples=null", FEW_ROWS]),
    "dpo": ("chat/dpo", [FEW_ROWS]),
    "grpo": ("chat/grpo", [FEW_ROWS]),
    "answers": ("chat/self-training", ["compare=null", "data.unlabeled=train[16:48]", FEW_ROWS]),
}
CHILD = """
import json, sys, time
import hf_llm_recipes.run as engine
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.shipped import find_recipe

kind, name, *changes = sys.argv[1:]
recipe = Recipe.load(find_recipe(name), changes)
if kind == "estimate":
    print("FOUND" + json.dumps(engine.estimate(recipe).to_dict()))
else:
    engine.predicted = lambda runner: None
    taken = {}

    def timed(name):
        called = getattr(engine._Runner, name)

        def timing(self, *given, **named):
            begun = time.perf_counter(), time.process_time()
            try:
                return called(self, *given, **named)
            finally:
                baseline = self.plan.recipe.name.endswith("-supervised")
                times = taken.setdefault(baseline, {}).setdefault(name, [0.0, 0.0])
                times[0] += time.perf_counter() - begun[0]
                times[1] += time.process_time() - begun[1]

        setattr(engine._Runner, name, timing)

    parts = ("_run_stages", "_trainer", "_judge_before", "_train", "_finish", "_write_report")
    for part in parts:
        timed(part)
    done = engine.run(recipe)

    def by_part(of):
        stages, before, judged, train, finish, report = (of.get(part, [0.0, 0.0]) for part in parts)
        found = {"stages": stages, "preparation": before}
        found["training"] = [t - s - b - j for t, s, b, j in zip(train, stages, before, judged)]
        found["judging"] = [j + f - r for j, f, r in zip(judged, finish, report)]
        return found

    found = by_part(taken[False])
    if True in taken:
        found["baseline"] = [sum(values) for values in zip(*by_part(taken[True]).values())]
    gib = done.metrics["training"]["peak_memory_gib"]
    print("FOUND" + json.dumps({"parts": found, "peak_bytes": gib.get("gpu", gib["host"]) * 2**30}))
"""


def child(kind: str, name: str, changes: list[str]) -> dict[str, Any] | str:
    """Returns what a process found, or its last line where it failed."""
    command = [sys.executable, "-c", CHILD, kind, name, *changes]
    with tempfile.TemporaryDirectory() as cache:
        for kept in ("models", "corpora"):  # what `local/…` recipes read is no part of the time
            source = assets.cache_dir() / kept
            if source.exists():
                (Path(cache) / kept).symlink_to(source)
        named = {**os.environ, "HF_LLM_RECIPES_CACHE": cache}
        done = subprocess.run(command, capture_output=True, text=True, env=named, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("FOUND"):
            return json.loads(line.removeprefix("FOUND"))
    return (done.stderr.strip().splitlines() or ["no answer"])[-1]


def measure(name: str, tuning: str, base: str, steps: int, folder: Path) -> dict[str, Any]:
    """Estimates and runs one cell."""
    recipe, changes = RUNS[name]
    changes = [*changes, *TUNINGS[tuning], *BASES[base], f"trainer.max_steps={steps}"]
    changes += ["trainer.save_strategy=no", "trainer.disable_tqdm=true"]
    cell = {"run": name, "tuning": tuning, "base": base, "steps": steps}
    said = child("estimate", recipe, changes)
    if isinstance(said, str):
        return {**cell, "error": said}
    was = child("run", recipe, [*changes, f"output={folder / f'{name}-{tuning}-{base}'}"])
    if isinstance(was, str):
        return {**cell, "error": was}
    return {**cell, "predicted": said, "measured": was}


def predicted_seconds(said: dict[str, Any], clock: int, parts: list[str]) -> float:
    """Returns the predicted seconds of some parts.

    Args:
        said: Of ``Estimate.to_dict``.
        clock: 0: by the clock; 1: CPU time.
        parts: Which.
    """
    key = ("seconds", "cpu_seconds")[clock]
    return sum(span[key] for span in said["time"] if span["part"] in parts)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; where a time is a bound, ≤."""
    head = ["run", "tuning", "base", "peak GiB: predicted, measured, off by"]
    lines = [f"| {' | '.join([*head, 'training, CPU s', 'all, CPU s', 'all, s'])} |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        named = f"| {row['run']} | {row['tuning']} | {row['base']} "
        if "error" in row:
            lines.append(f"{named}| {row['error'][:80]} | | | |")
            continue
        said, was = row["predicted"], row["measured"]
        cells = [_cell(said["peak_bytes"] / 2**30, was["peak_bytes"] / 2**30)]
        for parts, clock in ((["training"], 1), (list(was["parts"]), 1), (list(was["parts"]), 0)):
            bound = any(span["at_most"] for span in said["time"] if span["part"] in parts)
            seconds = sum(was["parts"][part][clock] for part in parts)
            cells.append("≤ " * bound + _cell(predicted_seconds(said, clock, parts), seconds))
        lines.append(f"{named}| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(said: float, was: float) -> str:
    return f"{said:.3g}, {was:.3g}, {100 * (said / was - 1):+.1f} %"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--tunings", nargs="+", default=list(TUNINGS), choices=list(TUNINGS))
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("estimate.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for run, tuning, base in itertools.product(options.runs, options.tunings, options.bases):
            if tuning == "full" and base != "float32":
                continue  # refused: integer weights have no gradient
            rows.append(measure(run, tuning, base, options.steps, Path(folder)))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"\nfigures: {options.out}")


if __name__ == "__main__":
    main()
