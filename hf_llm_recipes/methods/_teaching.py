"""What every Trainer with a teacher has: the difference of two answers, and how near they come.

Shape suffixes: K items (rows, words or supervised tokens)  C classes or vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import Trainer

NEARNESS = ("teacher/kl", "teacher/agreement")  # logged


class TaughtTrainer(Trainer):
    """A Trainer that compares a student's answers with a teacher's.

    Args:
        settings: The method (``Distillation``).
        task: Turns logits into items.
        **rest: Of ``Trainer``.
    """

    loss_is_scaled_for_ga = True  # every term is a sum over items by the items of the whole step

    def __init__(self, *, settings: Any, task: Any, **rest: Any) -> None:
        self.settings, self.task = settings, task
        self._near = torch.zeros(3)  # KL, same answers, items since the last log
        super().__init__(**rest)

    def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:
        """Adds how near the student is to its teacher, on this process's items."""
        kl, same, items = self._near.tolist()
        if "loss" in logs and items:
            logs = {**logs, **dict(zip(NEARNESS, (kl / items, same / items), strict=True))}
            self._near.zero_()
        super().log(logs, *given, **named)

    def _note_nearness(self, student_KC: Tensor, teacher_KC: Tensor) -> None:
        if self.task.item_problem != "regression":
            self._near = self._near.to(student_KC.device) + nearness(student_KC.detach(), teacher_KC)

    def _difference(self, student_KC: Tensor, teacher_KC: Tensor) -> Tensor:
        """w · T² · KL(teacher ‖ student), summed over items (Hinton et al. 2015, §2)."""
        weight, temperature = self.settings.weight, self.settings.temperature
        if self.task.item_problem == "regression":
            return weight * (student_KC - teacher_KC).square().sum()
        student, teacher = (log_softmax(x / temperature, dim=-1) for x in (student_KC, teacher_KC))
        return weight * temperature**2 * kl_div(student, teacher, reduction="sum", log_target=True)


def nearness(student_KC: Tensor, teacher_KC: Tensor) -> Tensor:
    """Returns the summed KL(teacher ‖ student), items with the same likeliest class, and items."""
    student, teacher = (log_softmax(x, dim=-1) for x in (student_KC, teacher_KC))
    kl = kl_div(student, teacher, reduction="sum", log_target=True)
    same = (student_KC.argmax(-1) == teacher_KC.argmax(-1)).sum()
    return torch.stack([kl, same, torch.tensor(len(student_KC), device=kl.device)])
