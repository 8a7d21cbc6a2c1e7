"""What a training is doing: a live display in a terminal, a line a minute elsewhere."""

from __future__ import annotations

import logging
import re
import sys
import time
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from hf_llm_recipes.callbacks._bound import Bound
from hf_llm_recipes.registry import CALLBACKS

REFRESHES = 2  # a second
SHOWN = {  # of a log of the training loss -> how it is shown
    "loss": "loss {:.4g}",
    "unlabeled/kept": "{:.0%} of the pool's rows kept",
    "unlabeled/weight": "λ {:.3g}",
    "reward": "reward {:.4g}",
    "throughput/tokens_per_second": "{:,.0f} tokens/s",
}
SPEEDS = ("runtime", "per_second", "time")  # ends of names of an evaluation that say nothing of the model
MOST_SCORES = 4
ROUND = re.compile(r"round-(\d+)")  # a folder of checkpoints


@CALLBACKS.register
class Progress(Bound):
    """Shows step, loss, speed, time left, the last scores, and of a pool its kept rows and weight λ.

    It takes the place of the Trainer's own bar and printed logs. In a terminal it is drawn twice a second
    below whatever else is written; elsewhere it is a line every few minutes, so that log files stay short. A
    run has it unless ``trainer.disable_tqdm`` is true. All of it goes to the standard error.

    In a Trainer of your own, ``bind(trainer)`` comes before ``train()``.

    Args:
        title: Stands before the bar, e.g. ``stage 1 of 2``.
        minutes: Between two lines where there is no terminal, ≥ 0; None: no lines.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, title: str = "", minutes: float | None = 1.0) -> None:
        if minutes is not None and minutes < 0:
            raise ValueError(f"minutes is {minutes}; allowed: 0 or more, or none at all")
        self.title, self.minutes = title, minutes
        self.console: Console | None = None  # the standard error's
        self._trainer: Any = None
        self._live: _Display | None = None
        self._facts: dict[str, str] = {}
        self._mark = (0, 0.0)  # step and time of the last speed
        self._said = 0.0  # when

    def bind(self, trainer: Trainer) -> None:
        """Takes the Trainer's bar away, and sees to it that an error leaves the terminal as it was."""
        if self._trainer is trainer:
            return
        self._trainer = trainer
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback) in (ProgressCallback, PrinterCallback):
                trainer.callback_handler.callbacks.remove(callback)
        train = trainer.train

        @wraps(train)
        def trained(*given: Any, **named: Any) -> Any:
            try:
                return train(*given, **named)
            finally:
                self._close()

        trainer.train = trained

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the display."""
        self._facts, self._mark, self._said = {}, (state.global_step, time.monotonic()), time.monotonic()
        if state.is_world_process_zero:
            found = ROUND.fullmatch(Path(args.output_dir).name)
            title = self.title or (f"round {found.group(1)}" if found else "training")
            self._open().begin(title, state.global_step, state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar; writes a line where it is time for one."""
        if self._live is None:
            return
        self._live.move(state.global_step)
        due = self.minutes is not None and time.monotonic() - self._said >= 60 * self.minutes
        if due and not self._live.drawn:
            self._said = time.monotonic()
            self._live.write(self._line(state))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Takes loss, speed and what the method says of the pool."""
        if not logs or "loss" not in logs or self._live is None:
            return
        facts = {name: form.format(logs[name]) for name, form in SHOWN.items() if name in logs}
        steps, seconds = state.global_step - self._mark[0], time.monotonic() - self._mark[1]
        if steps > 0 and seconds > 0:
            if "tokens" in logs and "throughput/tokens_per_second" not in logs:
                facts["tokens"] = f"{logs['tokens'] / seconds:,.0f} tokens/s"
            facts["speed"] = f"{steps / seconds:.3g} steps/s"
        self._mark = (state.global_step, time.monotonic())
        self._facts = facts
        self._live.say(", ".join(facts.values()))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Moves a second bar while rows are judged."""
        if state.is_world_process_zero and has_length(eval_dataloader):
            self._open().judge(len(eval_dataloader))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Shows the scores."""
        self._mark = (state.global_step, time.monotonic())
        if self._live is None:
            return
        scores = {
            name.removeprefix("eval_"): value
            for name, value in (metrics or {}).items()
            if isinstance(value, int | float) and name != "epoch" and not name.endswith(SPEEDS)
        }
        shown = [f"{name} {value:.4g}" for name, value in list(scores.items())[:MOST_SCORES]]
        self._live.judged(f"evaluation at step {state.global_step:,}: {', '.join(shown)}")
        self._close_if_idle()

    def on_predict(self, args, state, control, metrics, **kwargs):
        """Takes the second bar away."""
        if self._live is not None:
            self._live.judged(None)
            self._close_if_idle()

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the display; the last of it stays."""
        self._close()

    def _open(self) -> _Display:
        if self._live is None:
            self._live = _Display(self.console or Console(stderr=True))
        return self._live

    def _close_if_idle(self) -> None:
        if not self._live.training:
            self._close()

    def _close(self) -> None:
        if self._live is not None:
            self._live.close()
        self._live = None

    def _line(self, state: Any) -> str:
        begun, now = self._live.begun, time.monotonic()
        done = state.global_step - self._live.first
        left = (now - begun) / done * (state.max_steps - state.global_step) if done else 0.0
        facts = "".join(f", {fact}" for fact in self._facts.values())
        title, step = self._live.title, f"step {state.global_step:,} of {state.max_steps:,}"
        return f"{title}: {step}{facts}, {timedelta(seconds=round(left))} left"


class _Display:
    """Two bars and two lines of text in a terminal; nothing but ``write`` elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.drawn = console.is_terminal and not console.is_dumb_terminal
        self.title, self.first, self.begun, self.training = "", 0, time.monotonic(), False
        self.facts, self.scores = "", ""
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None
        self._judging: Any = None
        self._live = Live(get_renderable=self._page, console=console, refresh_per_second=REFRESHES)
        self._redirected: list[tuple[logging.StreamHandler, Any]] = []
        if self.drawn:
            self._start()

    def begin(self, title: str, first: int, steps: int) -> None:
        """Begins a training."""
        self.title, self.first, self.begun, self.training = title, first, time.monotonic(), True
        self._task = self._bars.add_task(title, total=steps, completed=first)

    def move(self, step: int) -> None:
        """Sets the bar of the training."""
        self.judged(None)
        self._bars.update(self._task, completed=step)

    def judge(self, batches: int) -> None:
        """Moves the bar of an evaluation by a batch."""
        if self._judging is not None and self._bars.tasks[-1].finished:  # other weights, or other rows
            self.judged(None)
        if self._judging is None:
            self._judging = self._bars.add_task("judging", total=batches)
        self._bars.advance(self._judging)

    def judged(self, said: str | None) -> None:
        """Takes the bar of an evaluation away."""
        if self._judging is not None:
            self._bars.remove_task(self._judging)
        self._judging = None
        self.scores = said or self.scores

    def say(self, facts: str) -> None:
        """Sets the line below the bars."""
        self.facts = facts

    def write(self, line: str) -> None:
        """Writes a line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self.drawn:
            self._live.stop()
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected = []

    def _page(self) -> Group:
        lines = [Text(line, style="dim") for line in (self.facts, self.scores) if line]
        return Group(self._bars.get_renderable(), *lines)

    def _start(self) -> None:
        """Draws; what our own log writes to the standard error goes above the display."""
        before = sys.stderr
        self._live.start()
        for handler in logging.getLogger("hf_llm_recipes").handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(sys.stderr)  # now the display's
                self._redirected.append((handler, before))


def default_progress(
    named: list[TrainerCallback], arguments: dict[str, Any], title: str = ""
) -> list[TrainerCallback]:
    """Returns a run's display; none where its recipe names one, wants none, or a notebook has its own."""
    from transformers import trainer

    own = trainer.DEFAULT_PROGRESS_CALLBACK is not ProgressCallback
    if own or arguments.get("disable_tqdm") or any(isinstance(callback, Progress) for callback in named):
        return []
    return [Progress(title)]
