"""Files of one JSON object a line that a resumed run takes up again."""

from __future__ import annotations

import json
from pathlib import Path


def cut_back(path: Path, step: int) -> None:
    """Takes out the lines after a step, and a torn last one; all of them at step 0."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step(line) <= step] if step else []
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def append(path: Path, line: dict) -> None:
    """Writes one line behind the others."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # the torn last line of a killed run
        return 1 << 62
