"""What both stages share: the model's backbone, the order of the rows, the Trainer around them.

Notable:
- One epoch of the Trainer is the whole stage: a map-style data set of *draws*, each of which names its
  row and seeds its mask. Row order and masks are functions of (seed, draw), so that a resume, which
  skips draws, is exact.
- Checkpoints hold the trained weights only.
"""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hf_llm_recipes.callbacks._bound import bind
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.exact_resume import resume_exactly
from hf_llm_recipes.stages.base import Stage, StageParts

NOT_INPUTS = ("labels", "label")  # columns that a pool should not have and no stage may see


class StageModule(nn.Module):
    """A backbone and what a stage puts on it, for a Trainer; its state is its trained weights."""

    accepts_loss_kwargs = False  # the loss is computed outside, where autocast is off

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The trained weights, each once where several names share it."""
        return {name: p.detach().contiguous() for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copies the trained weights back into the same parameters.

        Raises:
            RunError: other weights than those that are trained now.
        """
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        other = sorted(trained.keys() ^ state_dict.keys())
        other += [n for n in trained.keys() & state_dict.keys() if trained[n].shape != state_dict[n].shape]
        if other:
            raise RunError(
                f"the checkpoint of the stage and the model differ in `{other[0]}`",
                hint="resume with the recipe that the run began with",
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state_dict[name])
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])  # what the Trainer looks at


class Draws(Dataset):
    """Rows of a pool in a random order, anew each time all were drawn, as one long list.

    Args:
        pool: Features.
        count: How many rows are drawn in all.
        per_epoch: Rows drawn before the next order begins, at most all of them.
        seed: Of the orders.
    """

    def __init__(self, pool: Any, count: int, per_epoch: int, seed: int) -> None:
        self.pool, self.count, self.per_epoch, self.seed = pool, count, per_epoch, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: int) -> dict[str, Any]:
        epoch, place = divmod(draw, self.per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pool))
            self._epoch, self._order = epoch, order
        row = self.pool[int(self._order[place])]
        return {**{key: value for key, value in row.items() if key not in NOT_INPUTS}, "draw": draw}


def backbone_of(model: nn.Module) -> nn.Module:
    """Returns the part of a model that gives hidden states, adapters inside it included.

    Args:
        model: A transformers model, bare or under peft.

    Raises:
        RunError: it is an encoder-decoder, or nothing of the backbone is trained.
    """
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if inner.config.is_encoder_decoder:
        raise RunError(
            f"{type(inner).__name__} has an encoder and a decoder; a stage trains one stack",
            hint="take `stages` out, or choose an encoder",
        )
    backbone = inner.base_model
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    if all(
        name.startswith("pooler.") for name in trained
    ):  # it reads the hidden states, which a stage ends at
        raise RunError(
            "only the task's head is trained, which a stage leaves alone",
            allowed="tuning: lora, full, or freeze with trained layers",
        )
    return backbone


def accepted_inputs(backbone: nn.Module) -> frozenset[str]:
    """Returns the names of what a backbone's forward takes."""
    return frozenset(inspect.signature(type(backbone).forward).parameters)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Every module's mode and the global random states are the same after the block as before it."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training


def train(
    stage: Stage,
    parts: StageParts,
    *,
    module: StageModule,
    collate: Callable[[list[dict]], dict[str, Tensor]],
    loss: Callable[..., Tensor],
    default_rate: float,
    whole_batches: bool,
) -> dict[str, Any]:
    """Runs a Trainer over ``module`` and returns the figures of ``Stage.run``.

    Args:
        stage: The recipe's block.
        parts: Of the run.
        module: Holds the backbone; ``module(**batch)`` without ``labels`` gives the loss its outputs.
        collate: Draws -> a batch with ``labels``.
        loss: ``(outputs, labels, num_items_in_batch) -> loss``, where the last is how many labels of all
            forwards of the optimizer step are not −100.
        default_rate: Learning rate where the recipe gives none.
        whole_batches: Never fewer rows in a forward than in the others, nor one row twice.

    Raises:
        DataError: the pool is empty.
    """
    arguments = _arguments(stage, parts, default_rate, whole_batches)
    if not getattr(parts.model, "is_quantized", False):  # a quantised one is where it was loaded
        parts.model.to(arguments.device)  # its head too: no model is left on two devices
    begun = time.monotonic()
    trainer = Trainer(
        model=module,
        args=arguments,
        train_dataset=_draws(stage, parts, arguments, whole_batches),
        data_collator=collate,
        compute_loss_func=loss,
        callbacks=parts.callbacks,
    )
    bind(resume_exactly(trainer))
    trainer.train(resume_from_checkpoint=str(parts.resume) if parts.resume else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "seconds": round(time.monotonic() - begun, 3),
    }


def _arguments(
    stage: Stage, parts: StageParts, default_rate: float, whole_batches: bool
) -> TrainingArguments:
    if len(parts.pool) == 0:
        raise DataError("the pool has no rows to train on", where="data.unlabeled")
    return TrainingArguments(
        **{
            "output_dir": parts.output_dir,
            "seed": parts.seed,
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "per_device_train_batch_size": min(stage.batch_size, len(parts.pool))
            if whole_batches
            else stage.batch_size,
            "gradient_accumulation_steps": stage.gradient_accumulation_steps,
            "learning_rate": stage.learning_rate or default_rate,
            "warmup_steps": stage.warmup_fraction,
            "logging_steps": stage.logging_steps,
            "logging_first_step": True,
            "logging_nan_inf_filter": False,  # else a NaN is shown as 0
            "save_strategy": "no" if stage.save_steps is None else "steps",
            "save_steps": stage.save_steps or 500,
            "save_total_limit": 2,
            "restore_callback_states_from_checkpoint": True,
            "remove_unused_columns": False,  # the collators hand over what the backbone takes
            "label_names": ["labels"],
            "report_to": "none",
            **parts.device_arguments,
        }
    )


def _draws(stage: Stage, parts: StageParts, arguments: TrainingArguments, whole_batches: bool) -> Draws:
    batch, rows = arguments.per_device_train_batch_size, len(parts.pool)
    per_epoch = rows - rows % batch if whole_batches else rows
    if stage.max_steps is not None:
        count = stage.max_steps * batch * arguments.gradient_accumulation_steps * arguments.world_size
    else:
        count = max(1, round((stage.epochs or 1) * per_epoch))
    if whole_batches:
        count = math.ceil(count / batch) * batch
    return Draws(parts.pool, count, per_epoch, parts.seed)
