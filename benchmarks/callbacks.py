"""What each callback costs a step, and all of them together, beside the same training without them.

Three ways, all in CPU time, since cores may be shared: (1) the seconds spent inside a callback's own calls,
over those of the steps; (2) trainings with and without it by turns, and the median of the ratios; (3) what
its threads take of a core while nothing else runs, for those that have threads. What is done once, at the
beginning and the end of a training, is not in them.

    python benchmarks/callbacks.py --out callbacks.json
    python benchmarks/callbacks.py --shapes minilm-lora --steps 60 --rounds 5
    python benchmarks/callbacks.py --shapes tiny-chat-full --ema-every 4
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from guards import SHAPES, Clock, runner_of
from rich.console import Console
from transformers import TrainerCallback

NONE, ALL = "none", "all of them"
EVENTS = (  # of a step; what is done once, at the beginning and the end, is no step's
    *("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step"),
    *("on_step_end", "on_log"),
)
THREADED = ("energy", "progress")
PAUSE = 20.0  # seconds for which a thread is watched


def made(kind: str, ema_every: int = 1) -> list[Any]:
    """Returns the callbacks of a kind; ``ema`` moves after so many steps."""
    from hf_llm_recipes.callbacks import EMA, Energy, Gradients, Memory, Progress, Throughput

    progress = Progress()
    progress.console = Console(force_terminal=True, file=io.StringIO(), width=120)
    every = {
        "throughput": Throughput(),
        "memory": Memory(),
        "gradients": Gradients(),
        "ema": EMA(every=ema_every),
        "energy": Energy("FRA"),
        "progress": progress,
    }
    return list(every.values()) if kind == ALL else [] if kind == NONE else [every[kind]]


KINDS = [NONE, "throughput", "memory", "gradients", "ema", "energy", "progress", ALL]


class Ticks(TrainerCallback):
    """CPU seconds from the first step's beginning to the last one's end."""

    def __init__(self) -> None:
        self.begun, self.ended = None, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        """Starts."""
        self.begun = self.begun or time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        """Stops."""
        self.ended = time.process_time()


def train(runner: Any, kind: str, ema_every: int) -> dict[str, float]:
    """Trains from the same weights and returns CPU seconds of the steps, and of the callbacks in them."""
    from hf_llm_recipes.callbacks import bind
    from hf_llm_recipes.training import trainer_of

    callbacks = made(kind, ema_every)
    before = copy.deepcopy(runner.built.model.state_dict())
    clock, ticks = Clock(), Ticks()
    with tempfile.TemporaryDirectory() as folder:
        trainer = bind(trainer_of(runner, Path(folder), callbacks))
        for callback in callbacks:
            clock.measure(callback, list(EVENTS))
        trainer.callback_handler.callbacks.insert(0, ticks)  # its end comes before theirs
        trainer.train()
    runner.built.model.load_state_dict(before)
    return {"seconds": ticks.ended - ticks.begun, "callbacks": clock.seconds}


def measure(shape: str, steps: int, rounds: int, ema_every: int) -> list[dict[str, Any]]:
    """Returns the figures of one shape, a row each kind."""
    runner = runner_of(shape, steps)
    train(runner, ALL, ema_every)  # warms up
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        turn = number * 3 % len(KINDS)  # another order each round
        for kind in KINDS[turn:] + KINDS[:turn]:
            found[kind].append(train(runner, kind, ema_every))
    rows = []
    for kind in KINDS[1:]:
        pairs = list(zip(found[kind], found[NONE], strict=True))
        ratios = [mine["seconds"] / plain["seconds"] for mine, plain in pairs]
        rows.append(
            {
                "shape": shape,
                "callback": kind,
                "steps": steps,
                "rounds": rounds,
                "ema_every": ema_every,
                "plain_seconds_per_step": statistics.median(one["seconds"] for one in found[NONE]) / steps,
                "milliseconds_per_step": 1000
                * statistics.median(one["callbacks"] for one in found[kind])
                / steps,
                "share": statistics.median(one["callbacks"] / one["seconds"] for one in found[kind]),
                "with_over_without": statistics.median(ratios),
                "with_over_without_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def background(kind: str) -> float:
    """Returns what share of a core a callback's threads take while nothing else runs."""
    (callback,) = made(kind)
    state = SimpleNamespace(global_step=0, max_steps=100, is_world_process_zero=True)
    with tempfile.TemporaryDirectory() as folder:
        args = SimpleNamespace(output_dir=folder)
        callback.on_train_begin(args, state, None)
        time.sleep(1)
        begun, cpu = time.monotonic(), time.process_time()
        time.sleep(PAUSE)
        share = (time.process_time() - cpu) / (time.monotonic() - begun)
        callback.on_train_end(args, state, None)
    return share


def table(rows: list[dict[str, Any]], threads: dict[str, float]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| training | callback | CPU ms a step without | its calls, ms a step | share | with / without |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["with_over_without_range"]
        lines.append(
            f"| {row['shape']} | {row['callback']} | {1000 * row['plain_seconds_per_step']:.0f} "
            f"| {row['milliseconds_per_step']:.2f} | {100 * row['share']:.2f} % "
            f"| {row['with_over_without']:.3f} ({low:.3f}–{high:.3f}) |"
        )
    said = ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in threads.items())
    return "\n".join([*lines, "", f"Threads, of one core: {said}."])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes", nargs="+", default=["minilm-lora", "tiny-chat-full"], choices=list(SHAPES)
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--ema-every", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("callbacks.json"))
    options = parser.parse_args()
    threads = {kind: background(kind) for kind in THREADED}
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        rows += measure(shape, options.steps, options.rounds, options.ema_every)
        options.out.write_text(
            json.dumps({"rows": rows, "threads": threads}, indent=2) + "\n", encoding="utf-8"
        )
    print(table(rows, threads))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; figures: {options.out}")


if __name__ == "__main__":
    main()
