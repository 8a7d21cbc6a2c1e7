"""The guard: watches what the unlabeled rows do to a model, and turns them down when they do harm.

It looks at four things that need no extra forward:

- **histogram**: the total variation distance between the teacher's mean prediction on the pool and the
  estimated prior. A class that swallows the others (confirmation bias) shows here first.
- **what the likeliest class leaves to the others**, among the guesses as they would be learned (the
  likeliest class of each item), as a share of what it should leave them. Where nearly every item is of
  one class, as words are of no kind, a histogram hardly moves while all the others vanish; this does.
- **labeled accuracy**: the student's on the labeled rows it is trained on, the mean over classes. It must
  not fall while it is trained on them; where it does, the unlabeled loss pulls the other way.
- **evaluations**: the score on the eval split, whenever the Trainer evaluates; a fall below the best
  by more than two standard errors of a difference.

Where the likeliest class leaves too little, the unlabeled loss waits, step by step, until training on the
labeled rows has brought the other classes back: a teacher that knows one class has nothing to teach.
Each finding (waiting anew is one, not being ready yet is none) halves the unlabeled weight; after the
third it is zero and training goes on supervised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STRIKES = 3
MOMENTUM = 0.95  # of the averages: some twenty steps
QUICK = 0.8  # of the guesses' classes: what is learned in the meantime is hard to unlearn
STATE = (
    "factor",
    "mean_C",
    "guess_C",
    "hits_C",
    "waiting",
    "was_ready",
    "steps_waited",
    "best_accuracy",
    "best_eval",
    "seen",
    "findings",
)


@dataclass
class Guard:
    """Turns the unlabeled weight down.

    Args:
        prior_C: Estimated share of each class in the pool.
        eval_rows: Rows of the eval split.
        max_distance: Total variation distance, in [0, 1], that counts as a finding.
        max_drop: Fall of the labeled accuracy below its best average that counts as a finding.
        min_others: What the likeliest class must leave to the others, as a share of what the prior leaves
            them, in [0, 1]; below it the unlabeled loss waits.
        every: Steps between two looks.
    """

    prior_C: Tensor
    eval_rows: int
    max_distance: float = 0.3
    max_drop: float = 0.15
    min_others: float = 0.5
    every: int = 20
    factor: float = 1.0
    mean_C: Tensor | None = None
    guess_C: Tensor | None = None
    hits_C: Tensor | None = None
    waiting: bool = False
    was_ready: bool = False
    steps_waited: int = 0
    best_accuracy: float = 0.0
    best_eval: float = 0.0
    seen: int = 0
    findings: list[str] = field(default_factory=list)

    def observe(
        self, teacher_UC: Tensor, labeled_BC: Tensor, labels_B: Tensor, *, guesses: bool = True
    ) -> None:
        """Takes in one step's predictions.

        Args:
            teacher_UC: Probabilities of the pool's items.
            labeled_BC: The student's logits on the labeled ones.
            labels_B: Their classes.
            guesses: Whether the probabilities are a model's, and not given once and for all.
        """
        mean_C = teacher_UC.mean(0).cpu()
        self.mean_C = mean_C if self.mean_C is None else MOMENTUM * self.mean_C + (1 - MOMENTUM) * mean_C
        self._observe_hits(labeled_BC.argmax(-1).cpu(), labels_B.cpu())
        if guesses:
            self._observe_guesses(teacher_UC.argmax(-1).cpu())
        self.seen += 1

    def _observe_hits(self, predicted_B: Tensor, labels_B: Tensor) -> None:
        """Each class's own average: where one class is nearly all, a mean over items is that class's."""
        if self.hits_C is None:
            self.hits_C = torch.full((len(self.prior_C),), torch.nan)
        for label in labels_B.unique():
            now = (predicted_B[labels_B == label] == label).float().mean()
            before = self.hits_C[label]
            self.hits_C[label] = now if before.isnan() else MOMENTUM * before + (1 - MOMENTUM) * now

    def _observe_guesses(self, guessed_U: Tensor) -> None:
        count = len(self.prior_C)
        now_C = torch.bincount(guessed_U, minlength=count) / max(len(guessed_U), 1)
        self.guess_C = now_C if self.guess_C is None else QUICK * self.guess_C + (1 - QUICK) * now_C
        self.waiting = self._is_short(len(guessed_U))
        self.steps_waited += self.waiting
        self.was_ready = self.was_ready or not self.waiting

    def _is_short(self, items: int) -> bool:
        """Whether the other classes have too little, by more than the chance of so few items explains."""
        most = int(self.guess_C.argmax())
        least = self.min_others * (1 - self.prior_C[most].item())
        remembered = max(items, 1) * (1 + QUICK) / (1 - QUICK)  # as many items have a mean as certain
        spread = math.sqrt(max(least * (1 - least), 0.0) / remembered)
        return 1 - self.guess_C[most].item() < least - 2 * spread

    @property
    def accuracy(self) -> float | None:
        """The student's on the labeled items, the mean over the classes seen, in [0, 1]."""
        return None if self.hits_C is None else self.hits_C.nanmean().item()

    @property
    def distance(self) -> float:
        """Total variation distance between what is predicted for the pool and its prior, in [0, 1]."""
        return 0.0 if self.mean_C is None else 0.5 * (self.mean_C - self.prior_C.cpu()).abs().sum().item()

    def look(self, step: int) -> str | None:
        """Judges after a step; returns a sentence where the weight was turned down."""
        if self.accuracy is None or self.seen < self.every or step % self.every:
            return None
        self.best_accuracy = max(self.best_accuracy, self.accuracy)
        said = self._finding()
        return None if said is None else self._strike(step, said)

    def _finding(self) -> str | None:
        if self.waiting:  # not ready yet: nothing of it was learned, so nothing has done harm
            most = int(self.guess_C.argmax())
            return _swallows(most, self.guess_C, self.prior_C) if self.was_ready else None
        if self.distance > self.max_distance:
            return _swallows(int((self.mean_C - self.prior_C.cpu()).argmax()), self.mean_C, self.prior_C)
        if self.best_accuracy - self.accuracy > self.max_drop:
            return f"labeled accuracy fell from {self.best_accuracy:.2f} to {self.accuracy:.2f}"
        return None

    def evaluated(self, step: int, score: float, name: str = "accuracy") -> str | None:
        """Judges an evaluation's score, in [0, 1]; returns a sentence where the weight was turned down."""
        best, self.best_eval = self.best_eval, max(self.best_eval, score)
        spread = math.sqrt((best * (1 - best) + score * (1 - score)) / max(self.eval_rows, 1))
        if self.seen and best - score > 2 * spread and best > 0:
            return self._strike(step, f"{name} on the eval split fell from {best:.3f} to {score:.3f}")
        return None

    def _strike(self, step: int, said: str) -> str:
        self.seen, self.was_ready = 0, False  # look anew once the averages have followed
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
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back."""
        for name, value in state.items():
            setattr(self, name, value)


def _swallows(most: int, share_C: Tensor, prior_C: Tensor) -> str:
    share, expected = 100 * share_C[most].item(), 100 * prior_C[most].item()
    return f"class {most} gets {share:.0f} % of the pool (estimated: {expected:.0f} %)"


def even(num_classes: int) -> Tensor:
    """Returns the uniform prior, float32, (C,)."""
    return torch.full((num_classes,), 1 / num_classes)
