"""What each export of a run costs and keeps: parity, size and time beside the run's own model.

    python benchmarks/export.py --out export.json
    python benchmarks/export.py --cases classify --targets onnx onnx-int8

Notable:
- The runs are made here, with a few steps of the shipped recipes: ``classify/lora`` and ``chat/sft-lora``.
- Times are medians of rounds that take turns over the contenders, on the same rows, one thread; only their
  ratios to the adapter in torch are told. Of the chat model: whole rows without a cache, as exports run.
- A size is that of the files with weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

RECIPES = {
    "classify": ("classify/lora", ["trainer.max_steps=40"]),
    "chat": ("chat/sft-lora", ["trainer.max_steps=6", "data.test=test[:24]"]),
}
TARGETS = ("merged", "onnx", "onnx-int8", "executorch", "gguf", "adapter")
WEIGHTS = ("*.safetensors", "model.onnx*", "*.pte")


def main() -> None:
    """Makes the runs, exports them, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--rows", type=int, default=64, help="that the parity gate asks")
    parser.add_argument("--timed-rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=Path, help="a folder to keep the runs in, or that holds them")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in given.cases:
            run = made_run(case, given.runs or Path(scratch))
            found += measured(case, run, Path(scratch) / f"{case}-exports", given)
    print_table(found)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def made_run(case: str, folder: Path) -> Path:
    """Returns the run of a case, trained unless it is there."""
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import run
    from hf_llm_recipes.shipped import find_recipe

    path = folder / case
    if not (path / "metrics.json").is_file():
        name, overrides = RECIPES[case]
        run(Recipe.load(find_recipe(name), [*overrides, f"output={path}"]))
    return path


def measured(case: str, run: Path, folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one dict a contender: parity, bytes, seconds of the export and of an answer."""
    from hf_llm_recipes.errors import MissingExtraError, UserError
    from hf_llm_recipes.exporting import export
    from hf_llm_recipes.merging import merge
    from hf_llm_recipes.predictor import Predictor

    made: list[dict[str, Any]] = [
        {"case": case, "form": "the run (adapter, torch)", "bytes": base_bytes(run)}
    ]
    loaded = [Predictor.load(run)]
    for target in given.targets:
        out, start = folder / target, time.perf_counter()
        try:
            if target == "merged":
                _, parity = merge(run, out, rows=given.rows)
            else:
                _, parity = export(run, out, target, rows=given.rows, tolerance=1e9)
        except (UserError, MissingExtraError) as error:
            print(f"{case}, {target}: left out: {str(error).splitlines()[0]}")
            continue
        made.append(
            {
                "case": case,
                "form": target,
                "bytes": sum(file.stat().st_size for mask in WEIGHTS for file in out.glob(mask)),
                "export_seconds": time.perf_counter() - start,
                "rows": parity.rows,
                "max_in_sd": parity.in_standard_deviations,
                "rms_in_sd": parity.rms_in_standard_deviations,
                "same_answer": parity.same_answer,
                "texts": f"{parity.same_texts}/{parity.texts}",
            }
        )
        loaded.append(Predictor.load(out))
    for one, seconds in zip(made, timed(run, loaded, given), strict=True):
        one["seconds"] = seconds
    return made


def base_bytes(run: Path) -> int:
    """The adapter's file, and its base's in float32."""
    from hf_llm_recipes.parity import count_weights
    from hf_llm_recipes.predictor import saved_task

    adapter = sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))
    return adapter + 4 * count_weights(run / "model", saved_task(run).auto_class)


def timed(run: Path, predictors: list[Any], given: argparse.Namespace) -> list[float]:
    """Returns the median seconds that each takes for the same rows."""
    import torch

    from hf_llm_recipes.judging import test_rows
    from hf_llm_recipes.parity import logits_of
    from hf_llm_recipes.rundir import RunDirectory

    torch.set_num_threads(1)
    rows = test_rows(RunDirectory.existing(run).recipe(), predictors[0])
    rows = rows.select(range(min(given.timed_rows, len(rows))))
    times: list[list[float]] = [[] for _ in predictors]
    for round_number in range(given.rounds + 1):
        for place, predictor in enumerate(predictors):
            start = time.perf_counter()
            logits_of(predictor, rows)
            if round_number:  # the first warms up
                times[place].append(time.perf_counter() - start)
    return [statistics.median(one) for one in times]


def print_table(found: list[dict[str, Any]]) -> None:
    """Prints Markdown."""
    print("| case | form | largest, sd | rms, sd | same answers | same texts | MiB | time to the run's |")
    print("|---|---|---|---|---|---|---|---|")
    for one in found:
        first = next(other for other in found if other["case"] == one["case"])
        parity = ["", "", "", ""]
        if "rows" in one:
            parity = [f"{one['max_in_sd']:.2g}", f"{one['rms_in_sd']:.2g}"]
            parity += [f"{100 * one['same_answer']:.2f} %", one["texts"]]
        size, ratio = f"{one['bytes'] / 2**20:.1f}", f"{one['seconds'] / first['seconds']:.2f}"
        print("| " + " | ".join([one["case"], one["form"], *parity, size, ratio]) + " |")


if __name__ == "__main__":
    main()
