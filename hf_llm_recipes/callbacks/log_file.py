"""Writes what the Trainer logs to a file, one JSON object a line."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from transformers import TrainerCallback

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
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= state.global_step] if state.global_step else []
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Appends one line."""
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "time": round(time.time(), 3), **_finite(logs)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # the torn last line of a killed run
        return 1 << 62


def _finite(logs: dict) -> dict:
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in logs.items()}
