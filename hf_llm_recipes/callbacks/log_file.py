"""Writes what the Trainer logs to a file, one JSON object a line."""

from __future__ import annotations

import math
import time
from pathlib import Path

from transformers import TrainerCallback

from hf_llm_recipes.callbacks._lines import append, cut_back
from hf_llm_recipes.registry import CALLBACKS


@CALLBACKS.register
class LogFile(TrainerCallback):
    """Appends every log of the Trainer to a JSON-lines file as it happens.

    Each line has ``step``, ``time`` (seconds since the epoch) and the logged values. A resumed run
    takes out the lines after its checkpoint's step, which are about to be written again. A value
    that is no finite number is written as text (``"nan"``), so that every line is valid JSON.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_begin(self, args, state, control, **kwargs):
        """Cuts the file back to the step at which training begins."""
        if state.is_world_process_zero:
            cut_back(self.path, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Appends one line."""
        if state.is_world_process_zero and logs:
            append(self.path, {"step": state.global_step, "time": round(time.time(), 3), **_finite(logs)})


def _finite(logs: dict) -> dict:
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
