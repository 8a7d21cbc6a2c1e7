"""Turns Ctrl-C and SIGTERM into a checkpoint at the end of the running step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
from transformers import TrainerCallback

from hf_llm_recipes.registry import CALLBACKS

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@CALLBACKS.register
class GracefulStop(TrainerCallback):
    """At the first SIGINT or SIGTERM: finish the step, save a checkpoint, stop training.

    Within an epoch its end is not run: an evaluation there is none that the run would have had. A second
    signal ends the process at once, as without this callback. Afterwards ``received``
    holds the first signal's number, or None. Handlers are set from the main thread only (Python
    allows no other) and are given back when training ends.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes the signals over."""
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for a checkpoint and the end of training once a signal came, to any of several processes."""
        if args.world_size > 1:  # all must stop behind the same step
            number = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.received = int(number) or None
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Leaves out what an epoch's end logs, judges and saves where the epoch has not ended."""
        if self.received is not None and control.should_training_stop and state.epoch != int(state.epoch):
            control.should_log = control.should_evaluate = control.should_save = False

    def on_train_end(self, args, state, control, **kwargs):
        """Gives the signals back."""
        self.restore()

    def restore(self) -> None:
        """Gives the signals back; harmless when called twice."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set outside Python
        self._before = {}

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.restore()
