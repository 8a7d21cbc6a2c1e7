"""Masked-language modelling: tokens that were hidden, from those around them.

Notable:
- Masks are new in each epoch and a function of seed, epoch and row: a killed run goes on to the same bits.
- Masks of eval and test are fixed, whatever the seed, so that models are judged by the same tokens.
- Documents are packed into blocks, each piece in the tokenizer's own frame ([CLS] … [SEP]), and attend
  within themselves.

Shapes: B rows, T tokens, K hidden tokens of a row, V vocabulary, D documents.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.models import packed
from hf_llm_recipes.objectives import _documents, _scores
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives._losses import token_loss
from hf_llm_recipes.objectives._masked_rows import masked_row, masked_rows
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language
from hf_llm_recipes.tasks._masking import IGNORED, TokenMasker
from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator
from hf_llm_recipes.tasks._rows import OFFSET_POSITIONS
from hf_llm_recipes.tasks.base import Judged, Prepared, splits


@TASKS.register
@dataclass(kw_only=True)
class Mlm(Objective):
    """Guess hidden tokens (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, §3.1).

    Of the chosen tokens 80 % become the mask token, 10 % a random one, 10 % stay.

    Args:
        text: Column of the text.
        document_start: A regular expression: rows that match it begin a document, and the others go on
            with the one before them. None: each row is a document.
        block_size: Tokens of a block, special ones included; 512, or what the model can, unless given.
        packing: ``best_fit`` packs whole documents where they fit; ``none`` has a document (or a piece of
            a long one) a row, padded: for models that cannot keep packed documents apart.
        mask_prob: Share of the tokens (or words) that are chosen, special ones apart, in (0, 1).
        whole_words: Whether the tokens of a word are chosen together.
        examples: Texts with mask tokens, which are filled and shown after the run.

    Raises:
        ValueError: a value out of its range.
    """

    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    peft_task_type: ClassVar[None] = None  # peft has no name for it
    pipeline_tag: ClassVar[str] = "fill-mask"

    text: str = "text"
    document_start: str | None = None
    block_size: int | None = None
    packing: Literal["best_fit", "none"] = "best_fit"
    mask_prob: float = 0.15
    whole_words: bool = False
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 4:
            raise ValueError(f"block_size is {self.block_size}; allowed: 4 or more tokens")
        if not 0 < self.mask_prob < 1:
            raise ValueError(f"mask_prob is {self.mask_prob}; allowed: above 0 and below 1")
        _documents.check_pattern(self.document_start)

    def fit_model(self, source: Any) -> Any:
        """Packed rows want attention that keeps documents apart."""
        if self.packing == "none" or source.attn_implementation:
            return source
        return dataclasses.replace(source, attn_implementation=packed.NAME)

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns blocks to be masked anew in each epoch, and masked rows to judge by."""
        masker = self._masker(tokenizer)
        made: dict[str, Any] = {"eval": None}
        findings, notes = {}, []
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            packing = self.packing if split == "train" else "none"
            made[split], findings[split], said = self._rows(rows, tokenizer, model_config, where, packing)
            notes += said
        held_out = {split: masked_rows(made[split], masker) for split in splits(loaded) if split != "train"}
        train = Draws(made["train"])
        return Prepared(
            **{**made, **held_out, "train": train},
            config={},
            collator=MaskingCollator(self._inner(tokenizer), masker, position_offset(model_config)),
            findings=findings,
            notes=notes,
            callbacks=[train.teller()],
        )

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Looks whether packed documents stay apart in this very model."""
        return [] if self.packing == "none" else _documents.check_kept_apart(model, features)

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns rows with fixed masks where ``labeled``, else as they are."""
        made, found, _ = self._rows(rows, tokenizer, model_config, "data", "none")
        return masked_rows(made, self._masker(tokenizer)) if labeled else made, found

    def collator(self, tokenizer: Any) -> Any:
        """Blocks -> one row of all documents end to end, or padded rows; positions from 0."""
        return MaskingCollator(self._inner(tokenizer), self._masker(tokenizer), 0)

    def loss(self, label_smoothing: float) -> Any:
        """The mean cross-entropy over the hidden tokens of an optimizer step."""
        return token_loss(shifted=False, label_smoothing=label_smoothing)

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Loss and accuracy on hidden tokens, with intervals over documents."""
        found = masked_outcomes(model, features, processor.pad_token_id)
        sums_D = _scores.sums_by(features["document"][:], found, int(max(features["document"])) + 1)
        kept = np.flatnonzero(sums_D["tokens"])
        if not len(kept):
            raise DataError("no token of the test split was chosen to be hidden", hint="give it longer texts")
        sums_D = {name: values[kept] for name, values in sums_D.items()}
        metrics = _scores.judged(sums_D, masked_scores, majority_baseline=majority(features["labels"]))
        texts = _documents.read_documents(rows, self.text, self.document_start, "test split")
        begins = [texts[i][:200] for i in kept]
        return Judged(metrics, {"begins": begins, "document": kept.tolist(), **as_lists(sums_D)})

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few masked rows."""
        return probe_rows(model, features, processor.pad_token_id)

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated", "probability"}`` a row: the text with its masks filled; the least sure one's."""
        self.check_rows(rows, "data")
        texts = _documents.read_documents(rows, self.text, None, "data")
        return [filled(model, text, place, processor) for place, text in enumerate(texts)]

    def _masker(self, tokenizer: Any) -> TokenMasker:
        return TokenMasker(tokenizer, self.mask_prob, self.whole_words)

    def _inner(self, tokenizer: Any) -> Any:
        if self.packing == "none":
            return PaddedCollator(pad_token_id=tokenizer.pad_token_id, shifted_labels=False)
        return PackedCollator(shifted_labels=False)

    def _rows(
        self, rows: Any, tokenizer: Any, model_config: Any, where: str, packing: str
    ) -> tuple[Any, dict[str, Any], list[str]]:
        self.check_rows(rows, where)
        size = _documents.checked_block_size(self.block_size, tokenizer, model_config)
        texts = _documents.read_documents(rows, self.text, self.document_start, where)
        documents = _documents.tokenize(texts, tokenizer, where, special=False)
        made, report, said = _documents.make_blocks(
            documents.tokens, packing, size, end=None, frame=_documents.frame_of(tokenizer)
        )
        return made, {**documents.findings, **report}, documents.notes + [f"{where}: {one}" for one in said]


@dataclass
class MaskingCollator:
    """Blocks with their draws -> a batch of hidden tokens and labels; rows with labels keep them.

    Args:
        collate: Sequences -> a batch.
        masker: Chooses and hides tokens.
        offset: Of the first position, for models that number from another than 0.
    """

    collate: Any
    masker: TokenMasker
    offset: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        batch = self.collate(_documents.pieces_of([masked_row(row, self.masker) for row in rows]))
        if self.offset and "position_ids" in batch:
            batch["position_ids"] = batch["position_ids"] + self.offset
        return batch


def position_offset(model_config: Any) -> int:
    """Returns the number of the first position: RoBERTa's family counts from ``pad_token_id + 1``."""
    if model_config.model_type not in OFFSET_POSITIONS:
        return 0
    return 1 + (1 if model_config.pad_token_id is None else model_config.pad_token_id)


def masked_outcomes(model: Any, features: Any, pad_token_id: int) -> dict[str, np.ndarray]:
    """Returns each row's ``losses`` (nats), number of hidden ``tokens``, and how many are ``right``.

    Args:
        model: In ``eval()``.
        features: Rows of ``input_ids`` and ``labels``.
        pad_token_id: Fills shorter rows.
    """
    lengths = np.asarray([len(ids) for ids in features["input_ids"]])
    order, at = np.argsort(-lengths, kind="stable"), 0
    found = {name: np.zeros(len(lengths)) for name in ("losses", "tokens", "right")}
    vocabulary = model.get_output_embeddings().weight.shape[0]
    while at < len(order):
        count = max(1, _language.LOGITS_AT_ONCE // (vocabulary * int(lengths[order[at]])))
        chosen, at = order[at : at + count], at + count
        rows = features[chosen]
        ids_BT, mask_BT = _language.padded(rows["input_ids"], pad_token_id, model.device)
        labels_BT, _ = _language.padded(rows["labels"], IGNORED, model.device)
        with torch.inference_mode():
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT)["logits"].float()
        losses_BT = _language.token_losses(logits_BTV, labels_BT)
        right_BT = (logits_BTV.argmax(-1) == labels_BT) & (labels_BT != IGNORED)
        found["losses"][chosen] = losses_BT.double().sum(1).cpu().numpy()
        found["tokens"][chosen] = (labels_BT != IGNORED).sum(1).cpu().numpy()
        found["right"][chosen] = right_BT.sum(1).cpu().numpy()
    return found


def masked_scores(sums: Any) -> dict[str, float]:
    """Returns loss, perplexity and accuracy of hidden tokens."""
    loss = _scores.ratio(sums["losses"], sums["tokens"])
    return {
        "loss": loss,
        "masked_perplexity": _scores.exp(loss),
        "masked_accuracy": _scores.ratio(sums["right"], sums["tokens"]),
    }


def majority(labels: Any) -> float:
    """Returns the share of the commonest hidden token, right if it is always guessed."""
    every = np.concatenate([np.asarray(row) for row in labels])
    _, counts = np.unique(every[every != IGNORED], return_counts=True)
    return float(counts.max() / counts.sum())


def as_lists(sums_D: dict[str, np.ndarray]) -> dict[str, list]:
    """Returns columns for a file; whole numbers as such."""
    whole = {name: name != "losses" for name in sums_D}
    return {name: (v.astype(np.int64) if whole[name] else v).tolist() for name, v in sums_D.items()}


def probe_rows(model: Any, features: Any, pad_token_id: int) -> np.ndarray:
    """Returns the logits of the first tokens of a few rows, (tokens, V)."""
    found = []
    for row in features:
        ids_BT, mask_BT = _language.padded([row["input_ids"][:64]], pad_token_id, model.device)
        with torch.inference_mode():
            found.append(model(input_ids=ids_BT, attention_mask=mask_BT)["logits"][0].float().cpu().numpy())
    return np.concatenate(found)


def filled(model: Any, text: str, place: int, tokenizer: Any, *, key: str = "logits") -> dict[str, Any]:
    """Returns a text with the likeliest token in the place of each mask.

    Args:
        model: In ``eval()``.
        text: With mask tokens.
        place: Its number, for messages.
        tokenizer: Of the model.
        key: What the model calls its logits.

    Raises:
        DataError: it has no mask.
    """
    ids = tokenizer(text)["input_ids"]
    masks = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
    if not masks:
        raise DataError(
            f"{text[:60]!r} has no {tokenizer.mask_token}",
            where=f"row {place}",
            hint="put one where to guess",
        )
    ids_BT, mask_BT = _language.padded([ids], tokenizer.pad_token_id, model.device)
    with torch.inference_mode():
        logits_KV = model(input_ids=ids_BT, attention_mask=mask_BT)[key][0, masks].float()
    best = logits_KV.softmax(-1).max(-1)
    for i, token in zip(masks, best.indices.tolist(), strict=True):
        ids[i] = token
    return {
        "generated": tokenizer.decode(ids, skip_special_tokens=True),
        "probability": float(best.values.min()),
    }
