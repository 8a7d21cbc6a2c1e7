"""What a run's time is made of: so many times so many seconds, each with a name.

Notable:
- Seconds are pairs: wall clock, and CPU time of all cores, which other processes do not lengthen.
- Rows that are looked at once, longest first, are timed by a few of their batches (``sweep``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

PARTS = ("stages", "preparation", "training", "judging", "baseline")  # in a run's order
WARM = 1.0  # seconds: what is shorter is done twice and the faster counts, since a shape's first is slow
SEEN = (1 / 2, 1 / 6, 5 / 6)  # which batches of a sweep are timed, as shares of all
ENOUGH = 4.0  # seconds: after a batch of a sweep that takes longer no other one is timed

Seconds = np.ndarray  # (wall clock, CPU time)


@dataclass(frozen=True)
class Span:
    """One kind of work of a run.

    Args:
        part: Of ``PARTS``.
        what: What is done.
        count: How often; of steps, optimizer steps.
        each: Seconds and CPU seconds of each.
        at_most: Whether it can turn out to be less, such as where a training may end early.
    """

    part: str
    what: str
    count: float
    each: Seconds
    at_most: bool = False

    @property
    def seconds(self) -> float:
        """Of all of it, by the clock."""
        return float(self.count * self.each[0])

    @property
    def cpu_seconds(self) -> float:
        """Of all of it, as CPU time of all cores."""
        return float(self.count * self.each[1])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        given = {"part": self.part, "what": self.what, "count": round(float(self.count), 3)}
        return {**given, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "at_most": self.at_most}


def none() -> Seconds:
    """Returns no time at all."""
    return np.zeros(2)


def total(spans: Iterable[Span], part: str | None = None) -> Seconds:
    """Returns the sum of spans, of one part or of all."""
    chosen = [span for span in spans if part in (None, span.part)]
    return sum((span.count * span.each for span in chosen), none())


def now() -> Seconds:
    """Returns the time, and the CPU time of this process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def taken(work: Callable[[], Any]) -> Seconds:
    """Returns what a piece of work takes; short work is done twice and the faster counts."""
    first = once(work)
    return first if first[0] >= WARM else np.minimum(first, once(work))


def once(work: Callable[[], Any]) -> Seconds:
    """Returns what a piece of work takes."""
    begun = now()
    work()
    return now() - begun


def fitted(points: list[tuple[int, float]], wanted: float) -> float:
    """Returns the seconds of a batch of that size: a line through the probed ones, never falling."""
    sizes, seconds = np.array(points, dtype=float).T
    if np.ptp(sizes) == 0:
        return float(np.mean(seconds))
    slope, start = np.polyfit(sizes, seconds, 1)
    if slope < 0:
        return float(np.mean(seconds))
    if start < 0:
        return float(wanted * (sizes @ seconds) / (sizes @ sizes))
    return float(start + slope * wanted)


def both_fitted(points: list[tuple[int, Seconds]], wanted: Iterable[float]) -> Seconds:
    """Returns the mean seconds of batches of those sizes; see ``fitted``."""
    wanted = list(wanted)
    columns = [[(size, float(seconds[i])) for size, seconds in points] for i in (0, 1)]
    return np.array([np.mean([fitted(column, size) for size in wanted]) for column in columns])


def sweep(lengths_N: np.ndarray, batch: int, work: Callable[[np.ndarray], Any]) -> Seconds:
    """Returns what a pass over rows takes, longest first in batches, from a few of the batches.

    Args:
        lengths_N: Of the rows, in tokens.
        batch: Rows a batch.
        work: Does one batch; gets the numbers of its rows.
    """
    order = np.argsort(-lengths_N, kind="stable")
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    if not batches:
        return none()
    sizes = [len(rows) * int(lengths_N[rows].max()) for rows in batches]
    points: list[tuple[int, Seconds]] = []
    for place in dict.fromkeys(int(share * len(batches)) for share in SEEN):
        points.append((sizes[place], taken(lambda: work(batches[place]))))  # noqa: B023
        if points[-1][1][0] > ENOUGH:
            break
    if len(points) == 1:
        return points[0][1] * sum(sizes) / points[0][0]
    return len(sizes) * both_fitted(points, sizes)


def minutes_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns the minutes that a run took, by the parts that are predicted.

    Args:
        metrics: Of ``metrics.json``.
    """
    training = metrics.get("training", {})
    parts = {
        "stages": sum(stage.get("seconds", 0.0) for stage in metrics.get("stages", [])) / 60,
        "preparation": training.get("minutes_before"),
        "training": training.get("minutes"),
        "judging": training.get("minutes_judging"),
        "baseline": metrics.get("comparison", {}).get("supervised_minutes_in_all"),
    }
    return {part: minutes for part, minutes in parts.items() if minutes is not None}
