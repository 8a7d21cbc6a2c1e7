"""An architecture on one screen: its parts, how often they repeat, and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 6


def draw(model: Any) -> str:
    """Returns a model's tree with parameter counts; equal neighbours are drawn once, as ``6 × Block``.

    Args:
        model: Any ``torch.nn.Module``; on the meta device no weight is needed.
    """
    total = _count(model)
    lines = [f"{type(model).__name__}: {total:,} parameters", *_children(model, "", total, 0)]
    tied = sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False)) - total
    if tied:
        lines.append(f"({tied:,} of the parts' parameters are tied: counted once in the total)")
    return "\n".join(lines)


def _children(module: Any, indent: str, total: int, depth: int) -> Iterator[str]:
    groups = list(_groups(module))
    for i, (name, child, times) in enumerate(groups):
        last = i == len(groups) - 1
        count = _count(child)
        kind = f"{times} × {type(child).__name__}" if times > 1 else type(child).__name__
        shape = _shape(child)
        size = f"  {times * count:,} ({100 * times * count / total:.1f} %)" if count else ""
        yield f"{indent}{'└─' if last else '├─'} {name}: {kind}{shape}{size}"
        if depth < MAX_DEPTH:
            yield from _children(child, indent + ("   " if last else "│  "), total, depth + 1)


def _groups(module: Any) -> Iterator[tuple[str, Any, int]]:
    """Children, runs of the same structure joined: (name or range, first of the run, length)."""
    run: list[tuple[str, Any]] = []
    for name, child in module.named_children():
        if run and (not name.isdigit() or _signature(child) != _signature(run[0][1])):
            yield _joined(run)
            run = []
        run.append((name, child))
    if run:
        yield _joined(run)


def _joined(run: list[tuple[str, Any]]) -> tuple[str, Any, int]:
    name = run[0][0] if len(run) == 1 else f"{run[0][0]}–{run[-1][0]}"
    return name, run[0][1], len(run)


def _signature(module: Any) -> tuple:
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
    return type(module).__name__, shapes


def _shape(module: Any) -> str:
    weight = getattr(module, "weight", None)
    if weight is None or next(module.children(), None) is not None:
        return ""
    return " " + "×".join(str(size) for size in weight.shape)


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())
