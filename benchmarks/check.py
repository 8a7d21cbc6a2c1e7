"""How long `check` takes on many rows, part by part.

Rows are made up of words of the model's own vocabulary: as many characters as real ones, and nothing to
download. Each kind runs in a process of its own. Prints a table and writes JSON.

    python benchmarks/check.py --rows 100000 --out check.json
    python benchmarks/check.py --kinds classification --no-estimate
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENCODER, DECODER = "local/minilm", "local/smollm2-135m"
LORA = {"name": "lora", "r": 8}
STEPS = {"max_steps": 100, "per_device_train_batch_size": 8}
KINDS = ("classification", "tags", "chat", "generation", "clm")
CLASSES = ("sport", "food", "music", "law", "trade", "health", "travel", "games")
WORDS = 30  # a text, on average
REPEATED = 0.002  # of the rows


def words(count: int) -> list[str]:
    """Returns pronounceable words, the same on every machine."""
    rng = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count)]


def make_rows(kind: str, count: int, path: Path) -> None:
    """Writes a JSONL file of rows; a few repeat earlier ones."""
    rng, known, made = random.Random(1), words(20_000), []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = make_row(kind, rng.choices(known, k=rng.randint(5, 2 * WORDS - 5)), number)
            if made and rng.random() < REPEATED:
                row = rng.choice(made)
            if len(made) < 1000:
                made.append(row)
            file.write(json.dumps(row) + "\n")


def make_row(kind: str, text: list[str], number: int) -> dict:
    """Returns a row of a kind."""
    if kind == "classification":
        return {"text": " ".join(text), "label": CLASSES[number % len(CLASSES)]}
    if kind == "tags":
        return {"tokens": text, "label": ["B-x" if len(word) > 6 else "O" for word in text]}
    if kind == "clm":
        return {"text": " ".join(text)}
    question, answer = " ".join(text[:-3]), " ".join(text[-3:])
    if kind == "generation":
        return {"prompt": question, "answer": answer}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def recipe(kind: str, path: Path) -> dict:
    """Returns a recipe for the rows."""
    tasks = {
        "classification": {"name": "text_classification", "max_length": 128},
        "tags": {"name": "token_classification", "max_length": 128},
        "chat": {"name": "chat", "max_length": 512},
        "generation": {"name": "generation", "max_length": 512},
        "clm": {"name": "clm", "block_size": 128},
    }
    model = ENCODER if kind in ("classification", "tags") else DECODER
    return {
        "model": {"name": model},
        "tuning": LORA,
        "data": {"name": str(path)},
        "task": tasks[kind],
        "trainer": STEPS,
    }


def measure(kind: str, count: int, options: list[str], folder: Path) -> dict:
    """Checks one recipe and returns its figures."""
    rows, file = folder / f"{kind}.jsonl", folder / f"{kind}.yaml"
    make_rows(kind, count, rows)
    file.write_text(json.dumps(recipe(kind, rows)), encoding="utf-8")
    command = [sys.executable, "-m", "hf_llm_recipes.cli", "check", str(file), "--json", *options]
    begun, used = time.monotonic(), cpu()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    report = json.loads(done.stdout)
    return {
        "kind": kind,
        "rows": count,
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(cpu() - used, 1),
        "parts": report["seconds"],
        "splits": {name: [facts["rows"], facts["looked_at"]] for name, facts in report["splits"].items()},
        "findings": report["counts"],
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def cpu() -> float:
    """Returns the CPU seconds of the processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| kind | rows | seconds, all in all | of CPU | parts | rows looked at | errors, warnings |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in row["parts"].items() if seconds >= 0.5)
        looked = ", ".join(f"{split} {seen:,} of {total:,}" for split, (total, seen) in row["splits"].items())
        counts = f"{row['findings']['error']}, {row['findings']['warning']}"
        seconds = f"{row['seconds']:.0f} | {row['cpu_seconds']:.0f}"
        lines.append(f"| {row['kind']} | {row['rows']:,} | {seconds} | {parts} | {looked} | {counts} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--no-estimate", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("check.json"))
    options = parser.parse_args()
    more = ["--no-estimate"] if options.no_estimate else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            print(f"checking {kind} …", file=sys.stderr, flush=True)
            rows.append(measure(kind, options.rows, more, Path(folder)))
            options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    print(f"\nfigures: {options.out}")


if __name__ == "__main__":
    main()
