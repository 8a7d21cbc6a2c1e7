"""What the guards of a run cost a step, beside the same training without them.

Two ways, both in CPU time, since cores may be shared: (1) the seconds spent inside the guards' own calls,
over those of the whole training; (2) trainings with and without them by turns, and the median of the ratios.

    python benchmarks/guards.py --out guards.json
    python benchmarks/guards.py --shapes minilm-lora --steps 60 --rounds 5
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SHAPES: dict[str, dict[str, Any]] = {
    "minilm-lora": {
        "recipe": "quickstart",
        "changes": ["trainer.per_device_train_batch_size=32"],
    },
    "minilm-full": {"recipe": "classify/full", "changes": ["trainer.per_device_train_batch_size=8"]},
    "tiny-chat-full": {
        "recipe": "chat/sft-full",
        "changes": [
            "model={architecture: hlr_decoder, preset: tiny, tokenizer: local/smollm2-135m}",
            "trainer.per_device_train_batch_size=4",
            "trainer.gradient_accumulation_steps=1",
            "task.max_length=256",
        ],
    },
}
QUIET = ["trainer.disable_tqdm=true", "trainer.save_strategy=no", "trainer.eval_strategy=no"]


class Clock:
    """Adds up the CPU seconds spent in some methods of an object."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, thing: Any, names: list[str]) -> None:
        """Wraps these methods of one instance."""
        for name in names:
            setattr(thing, name, self._timed(getattr(thing, name)))

    def _timed(self, call: Any) -> Any:
        def timed(*given: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*given, **named)
            finally:
                self.seconds += time.process_time() - begun

        return timed


def runner_of(shape: str, steps: int) -> Any:
    """Returns data and model of a shape, ready for its Trainers."""
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import _Runner, plan
    from hf_llm_recipes.shipped import find_recipe

    given = SHAPES[shape]
    changes = [*given["changes"], *QUIET, f"trainer.max_steps={steps}"]
    runner = _Runner(plan(Recipe.load(find_recipe(given["recipe"]), changes)))
    runner._prepare()
    return runner


def train(runner: Any, guarded: bool) -> dict[str, float]:
    """Trains from the same weights and returns CPU seconds of the training, and of the guards in it."""
    from hf_llm_recipes.callbacks.training_guard import TrainingGuard, default_guards, watch
    from hf_llm_recipes.training import trainer_of

    callbacks = default_guards([]) if guarded else []
    before = copy.deepcopy(runner.built.model.state_dict())
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = watch(trainer_of(runner, Path(folder), callbacks))
        for callback in callbacks:
            names = ["on_pre_optimizer_step", "on_log", "on_evaluate"]
            names += ["see_batch", "see_loss", "see_norm"] if isinstance(callback, TrainingGuard) else []
            clock.measure(callback, names)
        begun = time.process_time()
        trainer.train()
        seconds = time.process_time() - begun
    runner.built.model.load_state_dict(before)
    return {"seconds": seconds, "guards": clock.seconds}


def measure(shape: str, steps: int, rounds: int) -> dict[str, Any]:
    """Returns the figures of one shape."""
    runner = runner_of(shape, steps)
    train(runner, guarded=True)  # warms up
    shares, ratios, each = [], [], []
    for number in range(rounds):
        found = {kind: train(runner, kind) for kind in ((True, False) if number % 2 else (False, True))}
        shares.append(found[True]["guards"] / found[True]["seconds"])
        ratios.append(found[True]["seconds"] / found[False]["seconds"])
        each.append(1000 * found[True]["guards"] / steps)
    return {
        "shape": shape,
        "steps": steps,
        "rounds": rounds,
        "trained_weights": runner.parameters["trainable"],
        "seconds_per_step": found[False]["seconds"] / steps,
        "guard_milliseconds_per_step": statistics.median(each),
        "guard_share": statistics.median(shares),
        "with_over_without": statistics.median(ratios),
        "with_over_without_range": [min(ratios), max(ratios)],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| training | weights trained | CPU s a step | guards, ms a step | their share | with / without |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["with_over_without_range"]
        lines.append(
            f"| {row['shape']} | {row['trained_weights']:,} | {row['seconds_per_step']:.3f} "
            f"| {row['guard_milliseconds_per_step']:.2f} | {100 * row['guard_share']:.2f} % "
            f"| {row['with_over_without']:.4f} ({low:.3f}–{high:.3f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("guards.json"))
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        rows.append(measure(shape, options.steps, options.rounds))
        print(table(rows).splitlines()[-1], flush=True)
        options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; figures: {options.out}")


if __name__ == "__main__":
    main()
