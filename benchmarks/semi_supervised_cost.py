"""What a semi-supervised step costs: ours, the plain way, and supervised at the same labeled batch.

Three trainings of the same model on the same rows take turns, step by step, in one process: supervised;
ours (adapter teacher, rows of weight zero not computed, frozen lower layers computed once a row); and
the plain way (a second whole model as teacher, every strong row computed, all layers every time).

    python benchmarks/semi_supervised_cost.py --steps 40 --out cost.json

Notable:
- The algorithm is AdaMatch from a cold start, so the mask is as the training makes it.
- Seconds are of ``training_step`` (forward and backward) alone. "first pass" are the steps that see each
  pool row for the first time, where nothing is cached yet; "later" the rest.
- Bytes of weights are those of model and teacher; peak bytes what tensors allocate during a step beyond them.
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

TUNING = {
    "name": "lora",
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["query", "key", "value", "dense"],
    "layers_to_transform": [3, 4, 5],
    "modules_to_save": ["pooler"],
}


def trainer_of(kind: str, folder: Path, options) -> Any:
    """Returns a Trainer that is ready to step."""
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import _Runner, plan

    method: dict[str, Any] = {"name": "semi_supervised", "warm_start": "none", "warmup_fraction": 0.0}
    method |= {"reuse_lower_layers": kind == "ours", "weight": 0.0 if kind == "supervised" else 1.0}
    recipe = Recipe.from_dict(
        {
            "name": kind,
            "model": {"name": options.model},
            "tuning": TUNING,
            "data": {
                "name": options.data,
                "labels_per_class": 10,
                "unlabeled_limit": options.pool,
                "pool_overlap": "drop",
            },
            "task": {"name": "text_classification", "max_length": 64},
            "method": method,
            "algorithm": "adamatch",
            "trainer": {
                "max_steps": 10 * options.steps,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-3,
                "disable_tqdm": True,
                "save_strategy": "no",
            },
        }
    )
    runner = _Runner(plan(recipe))
    runner._prepare()
    runner.directory = folder / kind
    trainer = runner._trainer([])
    trainer.create_optimizer_and_scheduler(10 * options.steps)
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps = 10 * options.steps
    if trainer.teacher is not None:
        trainer.teacher.decay = 0.9
    return trainer


def make_plain(trainer: Any) -> None:
    """Makes a trainer do what a plain implementation does."""
    teacher = copy.deepcopy(trainer.model).eval()
    trainer.plain_teacher = teacher
    guess = trainer.algorithm.guess

    def teacher_logits(model: Any, weak: dict, rows: Any) -> Any:
        with torch.no_grad():
            return teacher(**{k: v for k, v in weak.items() if k != "labels"}).logits

    def view_loss(model: Any, unlabeled: dict, found: Any, item_rows: Any, warm: bool) -> Any:
        trainer.computed["strong_rows"] += len(unlabeled["rows"])
        logits = model(**unlabeled["strong"]).logits
        return trainer.algorithm.loss(logits, found, len(unlabeled["rows"]))

    trainer._teacher_logits, trainer._view_loss, trainer.algorithm.guess = teacher_logits, view_loss, guess


def follow(trainer: Any, step: int) -> None:
    """Moves the plain teacher as the adapter teacher moves."""
    decay = min(1 - 1 / (step + 1), 0.9)
    with torch.no_grad():
        for mine, theirs in zip(trainer.plain_teacher.parameters(), trainer.model.parameters(), strict=True):
            if theirs.requires_grad:
                mine.lerp_(theirs, 1 - decay)


def one_step(kind: str, trainer: Any, batch: dict, step: int) -> float:
    """One optimizer step; returns the seconds of its ``training_step``."""
    trainer.state.global_step = step
    count = torch.tensor(len(batch["labels"]))
    started = time.perf_counter()
    trainer.training_step(trainer.model, copy.copy(batch), count)
    taken = time.perf_counter() - started
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    if kind == "plain":
        follow(trainer, step + 1)
    elif kind == "ours":
        trainer.teacher.update(step + 1)
    return taken


def peak_bytes(call: Any) -> int:
    """Returns the most bytes of tensors alive at once during a call, beyond those before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def weight_bytes(kind: str, trainer: Any) -> int:
    """Bytes of the model and of its teacher."""
    total = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    if kind == "plain":
        return 2 * total
    if kind == "ours":
        total += sum(v.numel() * v.element_size() for v in trainer.teacher.values.values())
    return total


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="local/minilm")
    parser.add_argument("--data", default="local/python-docstrings")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pool", type=int, default=480, help="rows; an epoch is pool / 24 steps")
    parser.add_argument("--out", type=Path, default=Path("semi_supervised_cost.json"))
    options = parser.parse_args(arguments)
    kinds = ("supervised", "ours", "plain")
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: trainer_of(kind, Path(folder), options) for kind in kinds}
        make_plain(trainers["plain"])
        rows = measure(trainers, options)
    print("| | seconds a step, first pass | later | weights, MiB | peak beyond them, MiB | strong rows |")
    print("|---" * 6 + "|")
    for kind, row in rows.items():
        print(
            f"| {kind} | {row['first_pass_seconds']:.2f} | {row['later_seconds']:.2f} "
            f"| {row['weight_mib']:.1f} | {row['peak_mib']:.0f} | {row['strong_share']:.2f} |"
        )
    later = {kind: row["later_seconds"] for kind, row in rows.items()}
    print(f"\nplain / ours: {later['plain'] / later['ours']:.2f}; ours / supervised: ", end="")
    print(f"{later['ours'] / later['supervised']:.2f}")
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"figures: {options.out}")


def measure(trainers: dict[str, Any], options) -> dict[str, dict[str, float]]:
    """Returns the figures of each kind."""
    streams = {kind: endless(trainer) for kind, trainer in trainers.items()}
    taken: dict[str, list[float]] = {kind: [] for kind in trainers}
    for step in range(options.steps):
        for kind, trainer in trainers.items():
            taken[kind].append(one_step(kind, trainer, next(streams[kind]), step))
    found = {}
    first = options.pool // 24
    for kind, trainer in trainers.items():
        batch = next(streams[kind])
        peak = peak_bytes(lambda k=kind, t=trainer, b=batch: one_step(k, t, b, options.steps))
        seen = max(trainer.computed["rows"], 1) if kind == "ours" else (options.steps + 1) * 24
        found[kind] = {
            "first_pass_seconds": statistics.median(taken[kind][:first]),
            "later_seconds": statistics.median(taken[kind][first:] or taken[kind]),
            "weight_mib": weight_bytes(kind, trainer) / 2**20,
            "peak_mib": peak / 2**20,
            "strong_share": trainer.computed["strong_rows"] / seen,
        }
    return found


def endless(trainer: Any) -> Any:
    """Batches of one epoch after the other."""
    loader = trainer.get_train_dataloader()
    epoch = 0
    while True:
        trainer.streams.set_epoch(epoch)
        yield from loader
        epoch += 1


if __name__ == "__main__":
    main()
