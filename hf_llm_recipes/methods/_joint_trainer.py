"""Two students on one base that label the pool for each other (JointMatch, co-training).

The second student is a second set of values for the trained weights, with gradients and optimizer state
of its own, put into the model by pointer like a teacher. Under an adapter it costs the adapter and the
head once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_llm_recipes.algorithms.base import Given
from hf_llm_recipes.averaging import WeightSet
from hf_llm_recipes.methods._semi_trainer import SemiSupervisedTrainer


class Peer(WeightSet):
    """The second student.

    Args:
        model: The first.
        fresh: Parts of the names of the weights that both students start from at random: they are drawn
            again, with the mean and spread that they have.
        seed: Of the draw.
    """

    def __init__(self, model: nn.Module, fresh: list[str], seed: int) -> None:
        super().__init__(model)
        random = torch.Generator().manual_seed(seed)
        for name, value in self.values.items():
            if any(part in name for part in fresh) and value.numel() > 1:
                drawn = torch.randn(value.shape, generator=random).to(value)
                value.copy_(value.mean() + value.std() * drawn)
        self.values = {name: nn.Parameter(value) for name, value in self.values.items()}

    def swap(self) -> None:
        """Exchanges values and gradients with the model's."""
        for name, parameter in self.parameters.items():
            mine = self.values[name]
            parameter.data, mine.data = mine.data, parameter.data
            parameter.grad, mine.grad = mine.grad, parameter.grad

    def state_dict(self) -> dict[str, Tensor]:
        """The values by name, without gradients."""
        return {name: value.detach() for name, value in self.values.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes values back; see ``WeightSet``."""
        super().load_state_dict(state)


class JointTrainer(SemiSupervisedTrainer):
    """Each step trains both students; each learns from the other's guesses.

    Args:
        fresh: Of ``Peer``.
        **rest: Of ``SemiSupervisedTrainer``; its teacher is ``student``.

    Raises:
        ValueError: more than one process.
    """

    def __init__(self, *, fresh: list[str], **rest: Any) -> None:
        super().__init__(**rest)
        if self.args.world_size > 1:
            raise ValueError("two students need one process; use another algorithm on several")
        self.peer = Peer(self.model, fresh, self.args.seed + 1)
        self.add_callback(_PeerSteps(self))

    def create_optimizer(self, *arguments: Any, **named: Any) -> Any:
        """The first student's optimizer takes the second one's weights in."""
        optimizer = super().create_optimizer(*arguments, **named)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = list(self.peer.values.values())
        if not known & {id(p) for p in mine}:
            optimizer.add_param_group({"params": mine})
        return optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Both students' losses, forward and backward; returns the mean of the two."""
        unlabeled, strength = self._prepare_inputs(inputs.pop("unlabeled")), self.strength
        self._index = inputs.pop("index")
        losses, seen = [], []
        for weights in self._students():
            with weights:
                losses.append(Trainer.training_step(self, model, dict(inputs), num_items_in_batch))
                seen.append(self._labeled)
        if strength > 0:
            for number, loss in enumerate(self._unlabeled_steps(model, unlabeled, strength, seen)):
                losses[number] = losses[number] + loss
        return torch.stack(losses).mean()

    def _students(self) -> list[contextlib.AbstractContextManager]:
        return [contextlib.nullcontext(), self.peer.swapped()]

    def _unlabeled_steps(
        self, model: Any, unlabeled: dict[str, Any], strength: float, seen: list
    ) -> Iterator[Tensor]:
        """Each student's unlabeled loss, after its backward."""
        warm = self.warm_start is not None and self.progress < self.warm_start.until
        logits = []
        for weights in self._students() if not warm else []:
            with weights, self.compute_loss_context_manager():
                logits.append(self._teacher_logits(model, unlabeled["weak"], unlabeled["rows"]).float())
        for number, weights in enumerate(self._students()):
            self._labeled = seen[number]
            self._pair = None if warm else (logits[1 - number], logits[number])
            with weights:
                yield self._unlabeled_step(model, unlabeled, strength)

    def _given(self, model: Any, unlabeled: dict[str, Any]) -> tuple[Given, Tensor]:
        teaching_UC, taught_UC = self._pair
        labeled_BC, labels_B = self._labeled
        items_UC, item_rows = self.task.items(teaching_UC, unlabeled["weak"])
        peer_UC, _ = self.task.items(taught_UC, unlabeled["weak"])
        given = Given(
            weak_UC=items_UC,
            labeled_BC=labeled_BC,
            labels_B=labels_B,
            rows_U=unlabeled["rows"][item_rows],
            prior_C=self.prior_C,
            progress=self.progress,
            peer_UC=peer_UC,
        )
        return given, item_rows

    @contextlib.contextmanager
    def other_weights(self) -> Iterator[None]:
        """The model holds the second student; after ``train()``."""
        with self.peer.swapped():
            yield

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "peer": self.peer.state_dict()}

    def _read_state(self, folder: str) -> dict[str, Any]:
        state = super()._read_state(folder)
        self.peer.load_state_dict(state["peer"])
        return state


class _PeerSteps(TrainerCallback):
    """Clips and clears the second student's gradients where the Trainer does the first one's."""

    def __init__(self, trainer: JointTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if args.max_grad_norm:
            nn.utils.clip_grad_norm_(list(self.trainer.peer.values.values()), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        for value in self.trainer.peer.values.values():
            value.grad = None
