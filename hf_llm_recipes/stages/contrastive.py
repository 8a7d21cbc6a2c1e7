"""Unsupervised contrastive training on the pool.

Shape suffixes: B rows  T tokens  D hidden size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import STAGES
from hf_llm_recipes.stages._training import StageModule, accepted_inputs, backbone_of, left_as_found, train
from hf_llm_recipes.stages.base import Stage, StageParts
from hf_llm_recipes.tasks._contrastive import check_dropout, mean_vectors, view_losses

RATE = 3e-5  # Gao et al. 2021, appendix A
SOLVED = 0.01  # of the loss of a blind guess, log B
NO_DROPOUT = "give the adapter one (`tuning.lora_dropout`), or use the stage `mlm`"

log = logging.getLogger("hf_llm_recipes")


@STAGES.register
@dataclass(kw_only=True)
class Contrastive(Stage):
    """Two dropout passes of a row are each other's match (SimCSE, Gao et al. 2021, eq. 4).

    https://arxiv.org/abs/2104.08821. A row's vector is the mean over its attended tokens, as in this
    package's frozen features, where the paper takes the first token's under an extra layer. The negatives
    are the other rows of the same forward: with ``gradient_accumulation_steps`` their number does not grow,
    while the loss stays the mean over all rows of the optimizer step. Numerics in float32.

    For an encoder that was not trained this way before. One that was (sentence-transformers' models) tells
    the rows apart from the first step on; its vanishing gradients still move the weights, since AdamW
    divides by their size, and make it worse: hence the paper's low rate, 3e-5, under an adapter too, and a
    warning in the log.

    Args:
        temperature: Cosine similarities are divided by it, > 0.

    Raises:
        ValueError: ``temperature`` out of range, or a ``batch_size`` without negatives.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: above 0")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size is {self.batch_size}; allowed: 2 or more, for the other rows are the negatives"
            )

    def run(self, parts: StageParts) -> dict[str, Any]:
        """Trains on pairs of passes; see ``Stage.run``.

        Raises:
            RunError: a model without dropout, an encoder-decoder, a pool of one row, or a backbone of which
                nothing is trained.
            DataError: the pool is empty.
        """
        backbone = backbone_of(parts.model)
        check_dropout(backbone, hint=NO_DROPOUT)
        if len(parts.pool) == 1:
            raise RunError("the pool has one row: nothing to tell it from", where="data.unlabeled")
        with left_as_found(parts.model):
            figures = train(
                self,
                parts,
                module=TwoPasses(backbone),
                collate=PairCollator(parts.collator, accepted_inputs(backbone)),
                loss=partial(contrastive_loss, temperature=self.temperature),
                default_rate=RATE,
                whole_batches=True,
            )
        _warn_if_solved(figures["first_loss"], min(self.batch_size, len(parts.pool)))
        return figures


class TwoPasses(StageModule):
    """Both dropout passes of a batch, in one forward of twice its rows.

    Args:
        backbone: Gives hidden states.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns the rows' vectors of both passes, (2, B, D)."""
        twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
        states = self.backbone(**twice).last_hidden_state
        mask = twice.get("attention_mask", torch.ones(states.shape[:2], device=states.device))
        return mean_vectors(states, mask).unflatten(0, (2, -1))


class PairCollator:
    """Draws -> a padded batch with ``labels``, (B,): the row of the second pass that each row matches.

    Args:
        collate: Rows -> a padded batch.
        accepted: Names that the backbone takes; others are left out.
    """

    def __init__(self, collate: Callable[[list[dict]], Any], accepted: frozenset[str]) -> None:
        self.collate, self.accepted = collate, accepted

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        batch = self.collate([{k: v for k, v in row.items() if k != "draw"} for row in rows])
        kept = {key: value for key, value in batch.items() if key in self.accepted}
        return {**kept, "labels": torch.arange(len(rows))}


def contrastive_loss(
    vectors_2BD: Tensor, labels_B: Tensor, num_items_in_batch: Tensor, *, temperature: float
) -> Tensor:
    """Returns this forward's share of the mean loss over the optimizer step's rows (``view_losses``)."""
    return view_losses(vectors_2BD, temperature).sum() / num_items_in_batch


def _warn_if_solved(first_loss: float | None, rows: int) -> None:
    if first_loss is not None and first_loss < SOLVED * math.log(rows):
        log.warning(
            "contrastive: the first loss was %.2g (a blind guess: %.2g). The model told the rows apart "
            "before the stage, which had nothing to teach it: take it out, or raise `temperature`",
            first_loss,
            math.log(rows),
        )
