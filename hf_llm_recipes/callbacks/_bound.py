"""Callbacks that need more than events hand over: the Trainer itself, or the run around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path

from transformers import Trainer, TrainerCallback

from hf_llm_recipes.callbacks._figures import ahead_of_trackers
from hf_llm_recipes.callbacks.training_guard import watch


class Bound(TrainerCallback, ABC):
    """Works only once it knows its Trainer, which ``bind`` tells it."""

    @abstractmethod
    def bind(self, trainer: Trainer) -> None:
        """Takes note of the Trainer, before its ``train()``."""


class HasVariants(TrainerCallback, ABC):
    """Holds other weights than those that are exported."""

    @abstractmethod
    def variants(self) -> dict[str, AbstractContextManager]:
        """Name -> a context in which the model has these weights; after ``train()``."""


@dataclass
class RunAround:
    """The run that a Trainer is part of.

    Args:
        directory: Of the run.
        write_report: Draws its ``report.html`` as of now.
    """

    directory: Path
    write_report: Callable[[], None]


class InRun(TrainerCallback, ABC):
    """Does more where there is a run around the Trainer."""

    @abstractmethod
    def enter(self, run: RunAround) -> None:
        """Takes note of the run, before the training."""


def bind(trainer: Trainer) -> Trainer:
    """Returns the Trainer with its callbacks bound to it, guards included, and figures ahead of trackers.

    A run does it by itself; in a program of your own: ``bind(Trainer(…, callbacks=[EMA()])).train()``.
    """
    load = trainer._load_callback_state

    @wraps(load)
    def loaded() -> None:
        load()  # puts new ones, made from the checkpoint, behind all others
        _show(trainer)

    trainer._load_callback_state = loaded
    return watch(_show(trainer))


def _show(trainer: Trainer) -> Trainer:
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, Bound):
            callback.bind(trainer)
    return ahead_of_trackers(trainer)


def variants_of(trainer: Trainer) -> dict[str, AbstractContextManager]:
    """Returns the weights that a Trainer's callbacks hold beside the exported ones."""
    found: dict[str, AbstractContextManager] = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, HasVariants):
            found |= callback.variants()
    return found


def enter_run(
    callbacks: list[TrainerCallback], directory: Path, write_report: Callable[[Path], None]
) -> None:
    """Tells callbacks of the run around them, whose report ``write_report`` draws."""
    for callback in callbacks:
        if isinstance(callback, InRun):
            callback.enter(RunAround(directory, partial(write_report, directory)))
