"""The base of a semi-supervised algorithm: what to learn from unlabeled items, and how much.

Notable:
- Pure functions of logits: no Trainer, no model, no I/O. State is a few tensors in ``state_dict``.
- Two halves, where the papers have one: ``guess`` looks at the teacher's logits on the weak views and
  gives targets and weights; ``loss`` looks at the student's logits on the strong views of those items
  whose weight is not zero. So an item of weight zero costs no strong forward and no backward, and the
  loss is the same: its mean is over **all** unlabeled items.

An item is a row; for token classification a token; for several labels a row one of its classes, seen
as a choice of two (no, yes), so that every threshold on the largest probability is two-sided.

Shapes: U unlabeled items of the step, K those of them that are kept, B labeled items, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


@dataclass
class Given:
    """What an algorithm may look at in one step; all of it detached, logits in float32.

    Args:
        weak_UC: The teacher's logits on the weak views.
        labeled_BC: The student's logits on the labeled items.
        labels_B: Their classes.
        rows_U: The number of each item's row in the pool.
        prior_C: The estimated share of each class among the unlabeled items; sums to 1.
        progress: Share of the training that is over, in [0, 1].
        peer_UC: With two students: the logits of the student that is being taught, whose teacher is
            the other one; None otherwise.
    """

    weak_UC: Tensor
    labeled_BC: Tensor
    labels_B: Tensor
    rows_U: Tensor
    prior_C: Tensor
    progress: float = 0.0
    peer_UC: Tensor | None = None


@dataclass
class Guess:
    """What the unlabeled items should become.

    Args:
        target_UC: Probabilities, detached.
        weight_U: ≥ 0; an item of weight zero is not computed at all.
        stats: Scalars for the log, e.g. ``{"threshold": 0.83}``.
    """

    target_UC: Tensor
    weight_U: Tensor
    stats: dict[str, float] = field(default_factory=dict)

    def keep(self, kept_K: Tensor) -> Guess:
        """Returns the guess of some items, by their numbers."""
        return Guess(self.target_UC[kept_K], self.weight_U[kept_K], self.stats)


class Forward(Protocol):
    """What ``loss_through`` may do with the student besides asking for logits.

    Rows are the step's unlabeled weak views in their order, then (``mixed`` only) its labeled rows.
    """

    def embeddings(self, rows_K: Tensor) -> Tensor:
        """The input embeddings of some rows, shape (K, T, D)."""

    def logits(self, rows_K: Tensor, embeddings_KTD: Tensor) -> Tensor:
        """The student's logits of some rows on given embeddings, with gradients, dropout off."""

    def token_mask(self, rows_K: Tensor) -> Tensor:
        """1 for tokens, 0 for padding, shape (K, T), float."""

    def mixed(self, rows_K: Tensor, others_K: Tensor, share: float, layer: int | None) -> Tensor:
        """The student's logits where the hidden states behind ``layer`` are mixed.

        ``share`` × the row's own + (1 − ``share``) × the other row's; None takes a middle layer.
        """


class Algorithm(ABC):
    """Turns the teacher's logits into targets and weights; a subclass's fields are recipe keys."""

    teacher: ClassVar[str] = "ema"  # the default of `method.teacher`: "ema" or "student"
    teacher_dropout: ClassVar[bool] = False  # whether the teacher's forward keeps its dropout
    through_model: ClassVar[bool] = False  # whether `loss_through` replaces `loss`
    strong_view: ClassVar[bool] = True  # False: the student sees the weak view
    students: ClassVar[int] = 1
    problems: ClassVar[tuple[str, ...]] = ("single_label", "multi_label", "tokens")

    def start(self, num_classes: int, num_rows: int) -> None:  # noqa: B027  a hook that may stay empty
        """Makes the state, once before training.

        Args:
            num_classes: C.
            num_rows: Rows in the pool.
        """

    @abstractmethod
    def guess(self, given: Given) -> Guess:
        """Returns targets and weights of the step's unlabeled items; updates the state."""

    def loss(self, strong_KC: Tensor, guess: Guess, num_items: int) -> Tensor:
        """Returns the weighted sum of ``item_losses`` over the mean's denominator.

        Args:
            strong_KC: The student's logits on the kept items, with gradients.
            guess: Of the kept items.
            num_items: U, kept or not; without any the loss is zero.
        """
        losses_K = self.item_losses(strong_KC.float(), guess.target_UC)
        return (guess.weight_U * losses_K).sum() / max(num_items, 1)

    def item_losses(self, strong_KC: Tensor, target_KC: Tensor) -> Tensor:
        """Returns the loss of each item, shape (K,); cross-entropy unless overridden."""
        return -(target_KC * torch.log_softmax(strong_KC, dim=-1)).sum(-1)

    def loss_through(self, forward: Forward, given: Given, guess: Guess) -> Tensor:
        """Returns the loss where it needs the model (``through_model``)."""
        raise TypeError(f"{type(self).__name__} needs no model: call `loss`")

    def keep_labeled(self, labeled_BC: Tensor, labels_B: Tensor, progress: float) -> Tensor | None:
        """Which labeled items take part in the supervised loss (bool, (B,)); None: all of them."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {', '.join(state)}")
