"""Files of one JSON object a line that a resumed run takes up again."""

from __future__ import annotations

import json
import os
from pathlib import Path


def cut_back(path: Path, step: int) -> None:
    """Takes out the lines after a step, and a torn last one; all of them at step 0."""
    if not path.exists():
        return
    _rewrite(path, [line for line in _lines(path) if _step(line) <= step] if step else [])


def keep_first(path: Path, count: int) -> None:
    """Takes out all lines but the first ``count``."""
    if path.exists():
        _rewrite(path, _lines(path)[:count])


def count_lines(path: Path) -> int:
    """Returns how many whole lines a file has; none where there is no file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _lines(path: Path) -> list[str]:
    """Lines by line feeds alone: a text may hold what ``str.splitlines`` takes for an end."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _rewrite(path: Path, lines: list[str]) -> None:
    """Writes to the side and renames, so that a kill loses no line."""
    side = path.with_name(f".{path.name}.part")
    side.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(side, path)


def append(path: Path, line: dict) -> None:
    """Writes one line behind the others."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # the torn last line of a killed run
        return 1 << 62
