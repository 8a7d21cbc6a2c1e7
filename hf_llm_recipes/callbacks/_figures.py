"""The bases of callbacks that add figures: to what the Trainer logs, and to a run's ``metrics.json``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from transformers import Trainer, TrainerCallback


class Figures(TrainerCallback, ABC):
    """Adds figures to each log of the training loss, and to the Trainer's history.

    The Trainer asks its trackers first, so that they see the figures only after ``ahead_of_trackers``; a run
    calls it.
    """

    added_to: ClassVar[set[str]] = {"loss"}  # logs that hold one of these

    @abstractmethod
    def figures(self, args: Any, state: Any, logs: dict[str, Any]) -> dict[str, float]:
        """The figures since the last log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Adds the figures."""
        if not logs or not self.added_to & logs.keys():
            return
        found = self.figures(args, state, logs)
        logs |= found
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1] |= found


class InMetrics(TrainerCallback, ABC):
    """Has figures for ``metrics.json``, under ``training`` and there under ``section``."""

    section: ClassVar[str]

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """What is to be said after the training, JSON-able; empty where there is nothing."""


def in_metrics(trainer: Trainer) -> dict[str, Any]:
    """Returns what a Trainer's callbacks have for ``metrics.json``, by section."""
    found: dict[str, Any] = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, InMetrics) and (said := callback.report()):
            found.setdefault(callback.section, {}).update(said)
    return found


def figures_first(callbacks: list[TrainerCallback]) -> list[TrainerCallback]:
    """Returns callbacks with those that add figures before those that pass them on."""
    return sorted(callbacks, key=lambda one: not isinstance(one, Figures))


def ahead_of_trackers(trainer: Trainer) -> Trainer:
    """Returns the Trainer with the callbacks that add figures before the trackers."""
    trainer.callback_handler.callbacks = figures_first(trainer.callback_handler.callbacks)
    return trainer
