"""Lets the workers of a data loader outlive a Ctrl-C or SIGTERM that reaches a whole group of processes.

A terminal sends Ctrl-C to all processes of a job; schedulers and service managers do so with SIGTERM. A
worker that dies of it takes away the batches that the running step still needs, and with them the
checkpoint that ``GracefulStop`` would have saved behind it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader


class Steady:
    """A ``worker_init_fn`` that ignores SIGINT and the first SIGTERM, then does what stood there before.

    The second SIGTERM ends the worker: so a Trainer still gets rid of one that hangs. One whose Trainer is
    gone ends by itself (PyTorch's watchdog).

    Args:
        before: The loader's own ``worker_init_fn``; None: none.
    """

    def __init__(self, before: Callable[[int], Any] | None) -> None:
        self.before = before

    def __call__(self, worker: int) -> None:
        """In the worker, before its first row."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _once)
        if self.before is not None:
            self.before(worker)


def steady_workers(loader: DataLoader) -> DataLoader:
    """Returns the same loader (accelerate's, too), its workers deaf to the first stop; no effect without."""
    inner = vars(loader).get("base_dataloader", loader)  # accelerate's adapters iterate this one
    if inner.num_workers > 0 and not isinstance(inner.worker_init_fn, Steady):
        inner.worker_init_fn = Steady(inner.worker_init_fn)
    return loader


def _once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
