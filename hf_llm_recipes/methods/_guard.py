"""The guard: watches what the unlabeled rows do to a model, and turns them down when they do harm.

It looks at three things that need no extra forward:

- **histogram**: the total variation distance between the teacher's mean prediction on the pool and the
  estimated prior. A class that swallows the others (confirmation bias) shows here first.
- **labeled accuracy**: the student's on the labeled rows it is trained on. It must not fall while it is
  trained on them; where it does, the unlabeled loss pulls the other way.
- **evaluations**: the accuracy on the eval split, whenever the Trainer evaluates; a fall below the best
  by more than two standard errors of a difference.

Each finding halves the unlabeled weight; after the third it is zero and training goes on supervised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STRIKES = 3
MOMENTUM = 0.95  # of the averages: some twenty steps


@dataclass
class Guard:
    """Turns the unlabeled weight down.

    Args:
        prior_C: Estimated share of each class in the pool.
        eval_rows: Rows of the eval split.
        max_distance: Total variation distance, in [0, 1], that counts as a finding.
        max_drop: Fall of the labeled accuracy below its best average that counts as a finding.
        every: Steps between two looks.
    """

    prior_C: Tensor
    eval_rows: int
    max_distance: float = 0.3
    max_drop: float = 0.15
    every: int = 20
    factor: float = 1.0
    mean_C: Tensor | None = None
    accuracy: float | None = None
    best_accuracy: float = 0.0
    best_eval: float = 0.0
    seen: int = 0
    findings: list[str] = field(default_factory=list)

    def observe(self, teacher_UC: Tensor, labeled_BC: Tensor, labels_B: Tensor) -> None:
        """Takes in one step's predictions: probabilities of the teacher, the student's labeled logits."""
        mean_C = teacher_UC.mean(0).cpu()
        self.mean_C = mean_C if self.mean_C is None else MOMENTUM * self.mean_C + (1 - MOMENTUM) * mean_C
        hits = (labeled_BC.argmax(-1) == labels_B).float().mean().item()
        self.accuracy = hits if self.accuracy is None else MOMENTUM * self.accuracy + (1 - MOMENTUM) * hits
        self.seen += 1

    @property
    def distance(self) -> float:
        """Total variation distance between what is predicted for the pool and its prior, in [0, 1]."""
        return 0.0 if self.mean_C is None else 0.5 * (self.mean_C - self.prior_C.cpu()).abs().sum().item()

    def look(self, step: int) -> str | None:
        """Judges after a step; returns a sentence where the weight was turned down."""
        if self.accuracy is None or self.seen < self.every or step % self.every:
            return None
        self.best_accuracy = max(self.best_accuracy, self.accuracy)
        if self.distance > self.max_distance:
            most = int((self.mean_C - self.prior_C.cpu()).argmax())
            said = (
                f"class {most} gets {100 * self.mean_C[most].item():.0f} % of the pool "
                f"(estimated: {100 * self.prior_C[most].item():.0f} %)"
            )
        elif self.best_accuracy - self.accuracy > self.max_drop:
            said = f"labeled accuracy fell from {self.best_accuracy:.2f} to {self.accuracy:.2f}"
        else:
            return None
        return self._strike(step, said)

    def evaluated(self, step: int, accuracy: float) -> str | None:
        """Judges an evaluation's accuracy; returns a sentence where the weight was turned down."""
        best, self.best_eval = self.best_eval, max(self.best_eval, accuracy)
        spread = math.sqrt((best * (1 - best) + accuracy * (1 - accuracy)) / max(self.eval_rows, 1))
        if self.seen and best - accuracy > 2 * spread and best > 0:
            return self._strike(step, f"accuracy on the eval split fell from {best:.3f} to {accuracy:.3f}")
        return None

    def _strike(self, step: int, said: str) -> str:
        self.seen = 0  # look anew once the averages have followed
        self.best_accuracy = self.best_eval = 0.0
        number = len(self.findings) + 1
        self.factor = 0.0 if number >= STRIKES else self.factor / 2
        action = f"its weight is now {self.factor:g} of what the recipe says"
        if self.factor == 0:
            action = "it is switched off and training goes on supervised"
        sentence = f"step {step}: the unlabeled loss does harm ({said}); {action}"
        self.findings.append(sentence)
        return sentence

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        names = ("factor", "mean_C", "accuracy", "best_accuracy", "best_eval", "seen", "findings")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back."""
        for name, value in state.items():
            setattr(self, name, value)


def even(num_classes: int) -> Tensor:
    """Returns the uniform prior, float32, (C,)."""
    return torch.full((num_classes,), 1 / num_classes)
