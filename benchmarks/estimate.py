"""Memory and time predicted before a run against those measured after it: tuning x base x task.

Each cell is two processes: one estimates, the other runs, without a probe of its own. Memory is the peak of
the whole process as ``metrics.json`` reports it. Time is that of ``Trainer.train`` alone, as wall clock
and as CPU time; where other processes share the cores, only the second can be compared.

    python benchmarks/estimate.py --out estimate.json
    python benchmarks/estimate.py --tasks classify --tunings lora full --bases float32 --steps 30
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LORA = "tuning={name: lora, r: 16, lora_alpha: 32}"
TUNINGS = {"full": "tuning=full", "freeze": "tuning={name: freeze, last: 2}", "lora": LORA}
BASES = {
    "float32": [],
    "8-bit": ["quantization={load_in_8bit: true}"],
    "4-bit": ["quantization={load_in_4bit: true, bnb_4bit_quant_type: nf4}"],
}
TASKS = {
    "classify": ("classify/full", ["task.max_length=64", "trainer.per_device_train_batch_size=16"]),
    "chat": (
        "chat/sft-full",
        [
            *("task.max_length=256", "task.generation.max_new_tokens=4", "task.examples=null"),
            *("data.test=test[:8]", "trainer.per_device_train_batch_size=4"),
        ],
    ),
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
    import resource
    from transformers import Trainer

    engine.predicted = lambda runner: None
    train, taken = Trainer.train, {}

    def timed(self, *given, **named):
        begun = time.perf_counter(), time.process_time()
        try:
            return train(self, *given, **named)
        finally:
            taken["seconds"] = time.perf_counter() - begun[0]
            taken["cpu_seconds"] = time.process_time() - begun[1]

    Trainer.train = timed
    done = engine.run(recipe)
    gib = done.metrics["training"]["peak_memory_gib"]
    print("FOUND" + json.dumps({**taken, "peak_bytes": gib.get("gpu", gib["host"]) * 2**30}))
"""


def child(kind: str, name: str, changes: list[str]) -> dict[str, Any] | str:
    """Returns what a process found, or its last line where it failed."""
    command = [sys.executable, "-c", CHILD, kind, name, *changes]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("FOUND"):
            return json.loads(line.removeprefix("FOUND"))
    return (done.stderr.strip().splitlines() or ["no answer"])[-1]


def measure(task: str, tuning: str, base: str, steps: int, folder: Path) -> dict[str, Any]:
    """Estimates and runs one cell."""
    recipe, changes = TASKS[task]
    changes = [*changes, TUNINGS[tuning], *BASES[base], f"trainer.max_steps={steps}"]
    changes += ["trainer.save_strategy=no", "trainer.disable_tqdm=true"]
    cell = {"task": task, "tuning": tuning, "base": base, "steps": steps}
    said = child("estimate", recipe, changes)
    if isinstance(said, str):
        return {**cell, "error": said}
    was = child("run", recipe, [*changes, f"output={folder / f'{task}-{tuning}-{base}'}"])
    if isinstance(was, str):
        return {**cell, "error": was}
    return {**cell, "predicted": said, "measured": was}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| task | tuning | base | peak GiB: predicted, measured, off by | CPU s | wall s |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        named = f"| {row['task']} | {row['tuning']} | {row['base']} "
        if "error" in row:
            lines.append(f"{named}| {row['error'][:80]} | | |")
            continue
        said, was = row["predicted"], row["measured"]
        cells = [_cell(said["peak_bytes"] / 2**30, was["peak_bytes"] / 2**30)]
        cells += [_cell(said[key], was[key]) for key in ("cpu_seconds", "seconds")]
        lines.append(f"{named}| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(said: float, was: float) -> str:
    return f"{said:.3g}, {was:.3g}, {100 * (said / was - 1):+.1f} %"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--tunings", nargs="+", default=list(TUNINGS), choices=list(TUNINGS))
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("estimate.json"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            for tuning in options.tunings:
                for base in options.bases:
                    if tuning == "full" and base != "float32":
                        continue  # refused: integer weights have no gradient
                    rows.append(measure(task, tuning, base, options.steps, Path(folder)))
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
                    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"\nfigures: {options.out}")


if __name__ == "__main__":
    main()
