"""Full, frozen, LoRA, DoRA, 4-bit and 8-bit on the same rows, side by side.

Each recipe runs in a process of its own, so that its peak memory is its own, and alone on the
machine. Prints a table and writes JSON.

    python benchmarks/tuning.py --out tuning.json
    python benchmarks/tuning.py --recipes lora qlora-4bit -- trainer.max_steps=20
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = ["full", "freeze", "lora", "dora", "qlora-4bit", "qlora-8bit"]


def measure(recipe: str, overrides: list[str], folder: Path) -> dict:
    """Runs one recipe and returns its figures."""
    output = folder / recipe
    command = [sys.executable, "-m", "hf_llm_recipes.cli", "run", f"classify/{recipe}", f"output={output}"]
    subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    environment = json.loads((output / "environment.json").read_text(encoding="utf-8"))
    test, training = metrics["test"], metrics["training"]
    return {
        "recipe": recipe,
        "accuracy": test["accuracy"],
        "accuracy_95": test["intervals_95"]["accuracy"],
        "minutes": training["minutes"],
        "steps": training["steps"],
        "peak_memory_gib": training["peak_memory_gib"],
        "trainable": training["parameters"]["trainable"],
        "model_bytes": sum(p.stat().st_size for p in (output / "model").iterdir()),
        "reload_difference": metrics["reload"]["logits_max_difference"],
        "device": environment["device"],
        "packages": environment["packages"],
    }


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| recipe | test accuracy (95 %) | minutes | peak memory, GiB | weights trained | model/, MB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["accuracy_95"]
        memory = row["peak_memory_gib"].get("gpu", row["peak_memory_gib"]["host"])
        lines.append(
            f"| {row['recipe']} | {100 * row['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f}) "
            f"| {row['minutes']:.1f} | {memory:.2f} | {row['trainable']:,} | {row['model_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path("tuning.json"))
    parser.add_argument("overrides", nargs="*", help="key=value for every recipe")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes:
            print(f"running {recipe} …", file=sys.stderr, flush=True)
            rows.append(measure(recipe, options.overrides, Path(folder)))
            options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    print(f"\nfigures: {options.out}")


if __name__ == "__main__":
    main()
