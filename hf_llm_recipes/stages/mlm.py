"""Masked-language modelling on the pool.

Shape suffixes: B rows  T tokens  K masked tokens of a batch  D hidden size  V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM

from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import STAGES
from hf_llm_recipes.stages._training import StageModule, accepted_inputs, backbone_of, left_as_found, train
from hf_llm_recipes.stages.base import Stage, StageParts
from hf_llm_recipes.tasks._masking import IGNORED, TokenMasker, generator_of

RATE = 1e-4  # Gururangan et al. 2020, appendix
ADAPTER_RATE = 1e-3


@STAGES.register
@dataclass(kw_only=True)
class Mlm(Stage):
    """Guess masked tokens (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, §3.1).

    Of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay; the choice is new in
    each epoch. The loss is the mean over all masked tokens of the optimizer step. The head is the
    checkpoint's own. Its output layer, where tied, reads the backbone's input embeddings (of adapted
    embeddings the base's values). The learning rate is 1e-4 unless given, that of TAPT's paper; under an
    adapter ten times that (Schulman et al. 2025, https://thinkingmachines.ai/blog/lora/).

    Args:
        mask_prob: Share of the tokens that are chosen, special ones apart, in (0, 1).
        train_head: Whether the head's own weights learn too; they are thrown away afterwards.

    Raises:
        ValueError: ``mask_prob`` out of range.
    """

    mask_prob: float = 0.15
    train_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_prob < 1:
            raise ValueError(f"mask_prob is {self.mask_prob}; allowed: above 0 and below 1")

    def run(self, parts: StageParts) -> dict[str, Any]:
        """Trains on masked tokens; see ``Stage.run``.

        Raises:
            RunError: no masked-LM head in the checkpoint, no mask token, an encoder-decoder, or a
                backbone of which nothing is trained.
            DataError: the pool is empty.
        """
        tokenizer = parts.processing_class
        if tokenizer.mask_token is None:
            raise RunError("the tokenizer has no mask token", hint="use the stage `contrastive`")
        backbone = backbone_of(parts.model)
        with left_as_found(parts.model):
            head = masked_lm(parts.source, backbone, train_head=self.train_head)
            return train(
                self,
                parts,
                module=MaskedTokens(head),
                collate=MaskingCollator(
                    parts.collator, tokenizer, self.mask_prob, parts.seed, accepted_inputs(backbone)
                ),
                loss=masked_loss,
                default_rate=ADAPTER_RATE if hasattr(parts.model, "peft_config") else RATE,
                whole_batches=False,
            )


class MaskedTokens(StageModule):
    """A masked-LM model whose head sees the masked tokens only: the same loss for a fraction of the work.

    Args:
        model: Of transformers, with our backbone in it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, masked: Tensor, **inputs: Tensor) -> Tensor:
        """Returns the logits of the masked tokens, row after row, (K, V).

        Args:
            masked: Which tokens count, bool, (B, T).
            **inputs: Of the backbone.
        """

        def keep_masked(module: nn.Module, given: Any, output: Any) -> Any:
            output["last_hidden_state"] = output["last_hidden_state"][masked][None]  # (1, K, D)
            return output

        hook = self.model.base_model.register_forward_hook(keep_masked)
        try:
            return self.model(**inputs).logits[0]
        finally:
            hook.remove()


class MaskingCollator:
    """Draws -> a padded batch with masked ``input_ids``, ``labels`` and ``masked`` (both (B, T)).

    A row's mask is a function of seed and draw, whatever rows stand beside it, so that neither the batch
    size nor a resume changes it.

    Args:
        collate: Rows -> a padded batch.
        tokenizer: Knows the mask token and the special ones.
        mask_prob: Share of chosen tokens.
        seed: Of the masks.
        accepted: Names that the backbone takes; others are left out.
    """

    def __init__(
        self,
        collate: Callable[[list[dict]], Any],
        tokenizer: Any,
        mask_prob: float,
        seed: int,
        accepted: frozenset[str],
    ) -> None:
        self.collate, self.seed, self.accepted = collate, seed, accepted
        self.masker = TokenMasker(tokenizer, mask_prob)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        batch = self.collate([{k: v for k, v in row.items() if k != "draw"} for row in rows])
        ids_BT = batch["input_ids"].clone()
        labels_BT = torch.full_like(ids_BT, IGNORED)
        attended_BT = batch.get("attention_mask", torch.ones_like(ids_BT)).bool()
        for i, row in enumerate(rows):
            where = attended_BT[i]
            ids, labels = self.masker(ids_BT[i, where], generator_of(self.seed, row["draw"]))
            ids_BT[i, where], labels_BT[i, where] = ids, labels
        kept = {key: value for key, value in batch.items() if key in self.accepted}
        return {**kept, "input_ids": ids_BT, "labels": labels_BT, "masked": labels_BT != IGNORED}


def masked_loss(logits_KV: Tensor, labels_BT: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """Returns this forward's share of the mean cross-entropy over the optimizer step's masked tokens."""
    labels_K = labels_BT[labels_BT != IGNORED]
    return cross_entropy(logits_KV.float(), labels_K, reduction="sum") / num_items_in_batch.clamp(min=1)


def masked_lm(source: Any, backbone: nn.Module, *, train_head: bool) -> nn.Module:
    """Returns the checkpoint's masked-LM model with ``backbone`` in the place of its own.

    Args:
        source: A ``tuning._model.ModelSource``.
        backbone: Adapted or not; it is not changed.
        train_head: Whether the head's own weights get a gradient.

    Raises:
        RunError: there is no such head for the architecture, or not in the checkpoint.
    """
    if source.name is None:
        raise _no_head(source, "it starts from random weights")
    embeddings = backbone.get_input_embeddings()
    dtype = torch.float32 if train_head else embeddings.weight.dtype
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            source.path,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **source.hub_arguments(),
        )
    except ValueError as error:
        raise _no_head(source, str(error).splitlines()[0]) from error
    prefix = f"{model.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(prefix))
    if missing:
        raise _no_head(source, f"`{missing[0]}` is not in it")
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    model.requires_grad_(train_head)
    setattr(model, model.base_model_prefix, backbone)
    if tied:
        output.weight = embeddings.weight
    return model


def _no_head(source: Any, why: str) -> RunError:
    return RunError(
        f"this checkpoint has no masked-LM head: {why}",
        where=source.label,
        hint="use the stage `contrastive`, which needs none",
    )
