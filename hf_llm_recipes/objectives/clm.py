"""Causal language modelling: the next token, within documents.

Notable:
- Documents are packed into blocks and attend within themselves; no T×T mask is built (``hlr_packed``).
- The test split is judged in overlapping windows: every token but a document's first is guessed once, so
  that sums over documents are true sums, and figures per byte and word compare tokenizers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hf_llm_recipes import language_evaluation
from hf_llm_recipes.models import packed
from hf_llm_recipes.objectives import _documents
from hf_llm_recipes.objectives._losses import token_loss
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language
from hf_llm_recipes.tasks._language_task import Writing
from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

SHOWN = 200  # characters of a document, in predictions.parquet
GENERATION = {"max_new_tokens": 64, "do_sample": False}


@TASKS.register
@dataclass(kw_only=True)
class Clm(Objective):
    """The next token of each document (Radford et al. 2019).

    Pretraining from random weights and continued pretraining are the same task; through LoRA too.

    Args:
        text: Column of the text.
        document_start: A regular expression: rows that match it begin a document, and the others go on
            with the one before them. None: each row is a document.
        block_size: Tokens of a block; 512, or what the model can, unless given.
        packing: ``best_fit`` keeps documents whole where they fit; ``concat`` fills every block and cuts
            documents at its edges; ``none`` has a document (or a piece of a long one) a row, padded: for
            models that cannot keep packed documents apart.
        eval_context: Tokens of context that each further window of a long test document repeats; more
            give a lower perplexity and cost time.
        generation: Of transformers' ``GenerationConfig``, for ``examples`` and ``predict``.
        examples: Beginnings that are continued and shown after the run.

    Raises:
        ValueError: a value out of its range, or an unknown key of ``generation``.
    """

    shifted_labels: ClassVar[bool] = True
    writes: ClassVar[bool] = True

    text: str = "text"
    document_start: str | None = None
    block_size: int | None = None
    packing: Literal["best_fit", "concat", "none"] = "best_fit"
    eval_context: int = 1
    generation: dict[str, Any] | None = None
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 2:
            raise ValueError(f"block_size is {self.block_size}; allowed: 2 or more tokens")
        if self.eval_context < 1 or (self.block_size is not None and self.eval_context >= self.block_size):
            raise ValueError(f"eval_context is {self.eval_context}; allowed: from 1 to below block_size")
        _documents.check_pattern(self.document_start)
        _language.check_generation(self.generation)

    def fit_model(self, source: Any) -> Any:
        """Packed rows want attention that keeps documents apart."""
        if self.packing == "none" or source.attn_implementation:
            return source
        return dataclasses.replace(source, attn_implementation=packed.NAME)

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns blocks to train on and windows to judge by; see ``Task.prepare``."""
        size = _documents.checked_block_size(self.block_size, tokenizer, model_config)
        end = _documents.end_token(tokenizer)
        made: dict[str, Any] = {"eval": None}
        findings, notes = {}, []
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            documents = self._documents(rows, tokenizer, where)
            findings[split], said = documents.findings, documents.notes
            if split == "test":
                made[split] = self._windows(documents, tokenizer, size)
            else:
                made[split], report, more = _documents.make_blocks(
                    documents.tokens, self.packing, size, end=end, keep_tail=split == "eval"
                )
                findings[split] = {**findings[split], **report}
                said = [*said, *(f"{where}: {one}" for one in more)]
            notes += said
        return Prepared(**made, config={}, collator=self.collator(tokenizer), findings=findings, notes=notes)

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Looks whether packed documents stay apart in this very model."""
        return [] if self.packing == "none" else _documents.check_kept_apart(model, features)

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns windows of new rows."""
        size = _documents.checked_block_size(self.block_size, tokenizer, model_config)
        documents = self._documents(rows, tokenizer, "data")
        return self._windows(documents, tokenizer, size), documents.findings

    def collator(self, tokenizer: Any) -> Any:
        """Blocks -> one row of all documents end to end, or padded rows."""
        inner = (
            PaddedCollator(pad_token_id=tokenizer.pad_token_id)
            if self.packing == "none"
            else PackedCollator()
        )
        return CausalCollator(inner)

    def loss(self, label_smoothing: float) -> Any:
        """The mean cross-entropy over the guessed tokens of an optimizer step."""
        return token_loss(shifted=True, label_smoothing=label_smoothing)

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Perplexity a token and a word, bits a byte, with intervals over documents."""
        texts = _documents.read_documents(rows, self.text, self.document_start, "test split")
        losses_D, tokens_D = _language.document_losses(model, features, len(texts), processor.pad_token_id)
        kept = np.flatnonzero(tokens_D)
        texts, losses_D, tokens_D = [texts[i] for i in kept], losses_D[kept], tokens_D[kept]
        bytes_D, words_D = language_evaluation.text_sizes(texts)
        bytes_D = bytes_D - self._first_bytes(features, texts, processor)
        metrics = language_evaluation.language(losses_D, tokens_D, bytes_D=bytes_D, words_D=words_D)
        columns = {"document": kept, "loss": losses_D, "tokens": tokens_D, "bytes": bytes_D}
        begins = [text[:SHOWN] for text in texts]
        return Judged(metrics, {"begins": begins, **{name: v.tolist() for name, v in columns.items()}})

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few windows."""
        return _language.probe_causal(model, features, processor.pad_token_id)

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated"}`` a row: what the model writes behind the text."""
        self.check_rows(rows, "data")
        texts = _documents.read_documents(rows, self.text, None, "data")
        given = self.writing(processor).settings
        return [{"generated": made} for made in _language.continuations(model, texts, processor, given)]

    def writing(self, processor: Any) -> Writing:
        """Goes on with a text."""
        return Writing({**GENERATION, **(self.generation or {})}, chats=False)

    def _documents(self, rows: Any, tokenizer: Any, where: str) -> _documents.Documents:
        self.check_rows(rows, where)
        texts = _documents.read_documents(rows, self.text, self.document_start, where)
        return _documents.tokenize(texts, tokenizer, where)

    def _windows(self, documents: _documents.Documents, tokenizer: Any, size: int) -> Any:
        end = _documents.end_token(tokenizer)
        behind = [] if end is None else [end]
        whole = {i: [*ids, *behind] for i, ids in documents.tokens.items()}
        return _language.windows(whole, size, min(self.eval_context, size - 1))

    def _first_bytes(self, features: Any, texts: list[str], tokenizer: Any) -> np.ndarray:
        """Of each document that has a window, in order."""
        changes = np.diff(np.asarray(features["document"][:]), prepend=-1)
        begins = features.select(np.flatnonzero(changes))
        pairs = zip(texts, begins["input_ids"], strict=True)
        return np.asarray([_language.first_bytes(text, ids, tokenizer) for text, ids in pairs])


@dataclass
class CausalCollator:
    """Blocks -> a batch whose labels are the tokens themselves, the first of each document apart.

    Args:
        collate: Sequences -> a batch.
    """

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch."""
        pieces = _documents.pieces_of(rows)
        return self.collate([{**piece, "labels": piece["input_ids"]} for piece in pieces])
