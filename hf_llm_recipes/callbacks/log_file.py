"""Writes what the Trainer logs to a file, one JSON object a line."""

from __future__ import annotations

import math
import time
from pathlib import Path

from hf_llm_recipes.callbacks._lines import append, count_lines, cut_back, keep_first
from hf_llm_recipes.exact_resume import KeptFacts
from hf_llm_recipes.registry import CALLBACKS


@CALLBACKS.register
class LogFile(KeptFacts):
    """Appends every log of the Trainer to a JSON-lines file as it happens.

    Each line has ``step``, ``time`` (seconds since the epoch) and the logged values. A resumed run
    takes out the lines that came after its checkpoint, which are about to be written again. A value
    that is no finite number is written as text (``"nan"``), so that every line is valid JSON.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.taken_up = False

    def facts(self):
        """How many lines there are: at a checkpoint's step more may follow it."""
        return {"lines": count_lines(self.path)}

    def take_up(self, facts):
        """Cuts the file back to the lines that the checkpoint has seen."""
        keep_first(self.path, facts["lines"])
        self.taken_up = True

    def on_train_begin(self, args, state, control, **kwargs):
        """Cuts the file back to the step at which training begins, where no checkpoint told the lines."""
        if state.is_world_process_zero and not self.taken_up:
            cut_back(self.path, state.global_step)
        self.taken_up = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Appends one line."""
        if state.is_world_process_zero and logs:
            append(self.path, {"step": state.global_step, "time": round(time.time(), 3), **_finite(logs)})


def _finite(logs: dict) -> dict:
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
