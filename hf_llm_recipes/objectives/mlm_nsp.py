"""Masked tokens and next sentence: does the second part follow the first, or is it of another document?

Notable:
- Documents are cut into chunks of whole sentences. Each time a chunk is drawn it is parted at a random
  sentence; then its second part stays (0: it follows), or is replaced by sentences of another document (1).
- Parts, replacements and masks are new in each epoch and a function of seed, epoch and row; those of eval
  and test are fixed.
- The two losses are added. Each row's next-sentence term is weighted by its share of the hidden tokens,
  so that every way to cut an optimizer step into batches gives the same loss (``models.base``); with
  equally many in each row it is the sum of two means, as in the paper.

Shapes: B rows, T tokens, K hidden tokens, V vocabulary, D documents.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives import _documents, _scores, mlm
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives._masked_rows import SEED
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language, _tokens
from hf_llm_recipes.tasks._masking import IGNORED, TokenMasker, generator_of
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
RANDOM_SHARE = 0.5  # of second parts (Devlin et al. 2018, §3.1)
ROWS_AT_ONCE = 16
SPECIAL = 3  # [CLS] first [SEP] second [SEP]


@TASKS.register
@dataclass(kw_only=True)
class MlmNsp(Objective):
    """BERT's pretraining (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, §3.1).

    Sentences end at ``.``, ``!``, ``?`` before white space, and at line ends.

    Args:
        text: Column of the text.
        document_start: A regular expression: rows that match it begin a document, and the others go on
            with the one before them. None: each row is a document.
        block_size: Tokens of a pair at most, special ones included; 512, or what the model can, unless
            given.
        mask_prob: Share of the tokens (or words) that are chosen, special ones apart, in (0, 1).
        whole_words: Whether the tokens of a word are chosen together.
        examples: Texts with mask tokens, which are filled and shown after the run.

    Raises:
        ValueError: a value out of its range.
    """

    auto_class: ClassVar[str] = "AutoModelForPreTraining"
    peft_task_type: ClassVar[None] = None
    pipeline_tag: ClassVar[str] = "fill-mask"
    vocabulary_labels: ClassVar[bool] = False  # two losses, of which the Trainer of language models has one

    text: str = "text"
    document_start: str | None = None
    block_size: int | None = None
    mask_prob: float = 0.15
    whole_words: bool = False
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 8:
            raise ValueError(f"block_size is {self.block_size}; allowed: 8 or more tokens")
        if not 0 < self.mask_prob < 1:
            raise ValueError(f"mask_prob is {self.mask_prob}; allowed: above 0 and below 1")
        _documents.check_pattern(self.document_start)

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns chunks to be parted anew in each epoch, and pairs to judge by."""
        if getattr(model_config, "type_vocab_size", 0) < 2:
            raise DataError(
                f"a {model_config.model_type} model tells first and second part not apart (type_vocab_size "
                f"{getattr(model_config, 'type_vocab_size', 0)})",
                allowed="a model with two token types, such as BERT or hlr_encoder",
                hint="or the objective `mlm`",
            )
        size = _documents.checked_block_size(self.block_size, tokenizer, model_config)
        made: dict[str, Any] = {"eval": None}
        findings, notes = {}, []
        for split in splits(loaded):
            chunks, findings[split], said = self._chunks(
                getattr(loaded, split), tokenizer, size, f"{split} split"
            )
            notes += said
            maker = self._maker(chunks, tokenizer, size)
            if split == "train":
                made[split], collator = Draws(chunks), PairCollator(maker, tokenizer.pad_token_id)
            else:
                made[split] = fixed_pairs(chunks, maker)
        return Prepared(
            **made,
            config={},
            collator=collator,
            findings=findings,
            notes=notes,
            callbacks=[made["train"].teller()],
        )

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Refuses a model that has no next-sentence head.

        Raises:
            RunError: its class is another one.
        """
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        if "next_sentence_label" not in inspect.signature(type(base).forward).parameters:
            raise RunError(
                f"{type(base).__name__} has no next-sentence head",
                allowed="BERT and its kin, or hlr_encoder",
                hint="use the objective `mlm`, or `clm` for a decoder",
            )
        return []

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns fixed pairs of new rows."""
        size = _documents.checked_block_size(self.block_size, tokenizer, model_config)
        chunks, found, _ = self._chunks(rows, tokenizer, size, "data")
        return fixed_pairs(chunks, self._maker(chunks, tokenizer, size)), found

    def collator(self, tokenizer: Any) -> Any:
        """Pairs -> a padded batch."""
        return PairCollator(None, tokenizer.pad_token_id)

    def loss(self, label_smoothing: float) -> Any:
        """The sum of both cross-entropies over the hidden tokens of an optimizer step."""
        if label_smoothing:
            raise ValueError("label_smoothing_factor has no meaning for two losses")
        return pair_loss

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Both losses and accuracies, with intervals over documents."""
        found = pair_outcomes(model, features, processor.pad_token_id)
        sums_D = _scores.sums_by(features["document"][:], found, int(max(features["document"])) + 1)
        kept = np.flatnonzero(sums_D["pairs"])
        sums_D = {name: values[kept] for name, values in sums_D.items()}
        metrics = _scores.judged(sums_D, _pair_scores, majority_baseline=mlm.majority(features["labels"]))
        texts = _documents.read_documents(rows, self.text, self.document_start, "test split")
        columns = {name: values.tolist() for name, values in sums_D.items()}
        return Judged(
            metrics, {"begins": [texts[i][:200] for i in kept], "document": kept.tolist(), **columns}
        )

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few pairs: of tokens, and behind them of the pair."""
        found = []
        for row in features:
            outputs = pair_outputs(model, [row], processor.pad_token_id)[0]
            found += [outputs["prediction_logits"][0, :64].flatten(), outputs["seq_relationship_logits"][0]]
        return torch.cat(found).float().cpu().numpy()

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated", "probability"}`` a row: the text with its masks filled; the least sure one's."""
        self.check_rows(rows, "data")
        texts = _documents.read_documents(rows, self.text, None, "data")
        key = "prediction_logits"
        return [mlm.filled(model, text, place, processor, key=key) for place, text in enumerate(texts)]

    def _maker(self, chunks: Dataset, tokenizer: Any, size: int) -> PairMaker:
        masker = TokenMasker(tokenizer, self.mask_prob, self.whole_words)
        return PairMaker(chunks, np.asarray(chunks["document"][:]), masker, size)

    def _chunks(
        self, rows: Any, tokenizer: Any, size: int, where: str
    ) -> tuple[Dataset, dict[str, Any], list[str]]:
        self.check_rows(rows, where)
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise DataError(
                "the tokenizer has no class or separator token",
                hint="take BERT's kind, or the objective `mlm`",
            )
        texts = _documents.read_documents(rows, self.text, self.document_start, where)
        return sentence_chunks(texts, tokenizer, size - SPECIAL, where)


@dataclass
class PairMaker:
    """A chunk and random numbers -> a pair with hidden tokens.

    Args:
        chunks: Rows of ``input_ids``, ``seq_lengths`` (of its sentences) and ``document``.
        document_N: Of each chunk; the chunks of a document lie side by side.
        masker: Hides tokens.
        size: Tokens of a pair at most.
    """

    chunks: Any
    document_N: np.ndarray
    masker: TokenMasker
    size: int

    def __call__(self, chunk: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Returns ``input_ids``, ``token_type_ids``, ``labels`` and ``next_sentence_label``."""
        ids, lengths = list(chunk["input_ids"]), list(chunk["seq_lengths"])
        parted = sum(lengths[: 1 + _below(len(lengths) - 1, generator)])
        first, second = ids[:parted], ids[parted:]
        is_random = float(torch.rand((), generator=generator)) < RANDOM_SHARE
        if is_random:
            second = self._other(int(chunk["document"]), generator)[: self.size - SPECIAL - parted]
        tokenizer = self.masker.tokenizer
        whole = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id, *second, tokenizer.sep_token_id]
        hidden_T, labels_T = self.masker(torch.tensor(whole), generator)
        return {
            "input_ids": hidden_T.tolist(),
            "token_type_ids": [0] * (len(first) + 2) + [1] * (len(second) + 1),
            "labels": labels_T.tolist(),
            "next_sentence_label": int(is_random),
        }

    def _other(self, document: int, generator: torch.Generator) -> list[int]:
        """Sentences of another document, from a random one to the end of its chunk."""
        low, high = np.searchsorted(self.document_N, [document, document + 1])
        place = _below(len(self.document_N) - int(high - low), generator)
        chunk = self.chunks[place if place < low else place + int(high - low)]
        begin = sum(chunk["seq_lengths"][: _below(len(chunk["seq_lengths"]), generator)])
        return list(chunk["input_ids"][begin:])


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


@dataclass
class PairCollator:
    """Chunks with their draws, or pairs -> a padded batch.

    ``labels`` are (B, T, 2): at each hidden token the token and its row's next-sentence label, −100
    elsewhere, so that the Trainer counts what the loss divides by.

    Args:
        maker: Chunks -> pairs; None where only pairs come.
        pad_token_id: Fills rows.
    """

    maker: PairMaker | None
    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        pairs = [row if "labels" in row else self.maker(row, generator_of(*row["draw"])) for row in rows]
        ids_BT, mask_BT = _language.padded([pair["input_ids"] for pair in pairs], self.pad_token_id, "cpu")
        types_BT, _ = _language.padded([pair["token_type_ids"] for pair in pairs], 0, "cpu")
        tokens_BT, _ = _language.padded([pair["labels"] for pair in pairs], IGNORED, "cpu")
        next_B = torch.tensor([pair["next_sentence_label"] for pair in pairs])
        next_BT = torch.where(tokens_BT == IGNORED, IGNORED, next_B[:, None])
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "token_type_ids": types_BT,
            "labels": torch.stack([tokens_BT, next_BT], dim=-1),
            "next_sentence_label": next_B,
        }


def pair_loss(outputs: Any, labels_BT2: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Returns this batch's share of the mean, over a step's hidden tokens, of both cross-entropies.

    Args:
        outputs: With ``prediction_logits`` (B, T, V) and ``seq_relationship_logits`` (B, 2).
        labels_BT2: As ``PairCollator`` makes them.
        num_items_in_batch: Labels of all batches of the step, two a hidden token.
    """
    hidden_BT = labels_BT2[..., 0] != IGNORED
    token_K, next_K = labels_BT2[hidden_BT].unbind(-1)
    rows_K = hidden_BT.nonzero()[:, 0]
    tokens = cross_entropy(outputs["prediction_logits"][hidden_BT].float(), token_K, reduction="sum")
    pairs = cross_entropy(outputs["seq_relationship_logits"][rows_K].float(), next_K, reduction="sum")
    items = 2 * len(token_K) if num_items_in_batch is None else num_items_in_batch
    return (tokens + pairs) / (torch.as_tensor(items, device=tokens.device) / 2).clamp(min=1)


def sentence_chunks(
    texts: list[str], tokenizer: Any, room: int, where: str
) -> tuple[Dataset, dict[str, Any], list[str]]:
    """Returns chunks of two sentences or more, counts, and sentences for the log.

    Args:
        texts: One a document.
        tokenizer: Of the model.
        room: Tokens of a chunk at most; a sentence of more than half of it is cut in pieces.
        where: The split, for messages.

    Raises:
        DataError: fewer than two documents with two sentences.
    """
    parts = [[s for s in SENTENCE_END.split(text) if s.strip()] for text in texts]
    sentences = [sentence for part in parts for sentence in part]
    tokens = [ids.tolist() for ids in _tokens.tokenize(sentences, tokenizer, where, special=False)]
    rows: dict[str, list] = {"input_ids": [], "seq_lengths": [], "document": []}
    at = left_out = 0
    for document, sentences in enumerate(parts):
        own = tokens[at : at + len(sentences)]
        at += len(sentences)
        for chunk in _chunked(own, room):
            if len(chunk) < 2:
                left_out += sum(map(len, chunk))
                continue
            rows["input_ids"].append([token for sentence in chunk for token in sentence])
            rows["seq_lengths"].append([len(sentence) for sentence in chunk])
            rows["document"].append(document)
    usable = len(set(rows["document"]))
    if usable < 2:
        raise DataError(
            f"{usable} of {len(texts):,} documents have two sentences or more",
            where=where,
            allowed="two or more: random second parts come from another document",
            hint="check `task.text`, or use the objective `mlm`",
        )
    findings = {
        "documents": usable,
        "documents_too_short": len(texts) - usable,
        "chunks": len(rows["document"]),
        "tokens": sum(map(len, rows["input_ids"])),
        "tokens_left_out": left_out,
    }
    notes = []
    if usable < len(texts):
        short = len(texts) - usable
        notes.append(f"{where}: {short:,} of {len(texts):,} documents have fewer than 2 sentences; left out")
    return Dataset.from_dict(rows), findings, notes


def _chunked(sentences: list[list[int]], room: int) -> Iterator[list[list[int]]]:
    """Whole sentences, as many as fit."""
    most, chunk, size = room // 2, [], 0
    for sentence in sentences:
        for start in range(0, len(sentence), most):
            piece = sentence[start : start + most]
            if size + len(piece) > room:
                yield chunk
                chunk, size = [], 0
            chunk.append(piece)
            size += len(piece)
    if chunk:
        yield chunk


def fixed_pairs(chunks: Dataset, maker: PairMaker) -> Dataset:
    """Returns pairs that are made once, each with the document of its first part."""
    pairs = [maker(chunk, generator_of(SEED, number)) for number, chunk in enumerate(chunks)]
    made = {name: [pair[name] for pair in pairs] for name in pairs[0]}
    return Dataset.from_dict({**made, "document": chunks["document"][:]})


def pair_outputs(model: Any, rows: list[dict[str, Any]], pad_token_id: int) -> tuple[Any, dict[str, Tensor]]:
    """Returns the model's outputs and the batch, on its device."""
    batch = {key: value.to(model.device) for key, value in PairCollator(None, pad_token_id)(rows).items()}
    given = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        return model(**given), batch


def pair_outcomes(model: Any, features: Any, pad_token_id: int) -> dict[str, np.ndarray]:
    """Returns each pair's ``losses`` and ``right`` of hidden ``tokens``; ``next_losses``, ``next_right``."""
    order = np.argsort([-len(ids) for ids in features["input_ids"]], kind="stable")
    names = ("losses", "tokens", "right", "next_losses", "next_right")
    found = {name: np.zeros(len(order)) for name in names}
    for at in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        outputs, batch = pair_outputs(model, list(features.select(chosen)), pad_token_id)
        tokens_BT, next_B = batch["labels"][..., 0], batch["next_sentence_label"]
        logits_BTV = outputs["prediction_logits"].float()
        next_B2 = outputs["seq_relationship_logits"].float()
        values = (
            _language.token_losses(logits_BTV, tokens_BT).double().sum(1),
            (tokens_BT != IGNORED).sum(1),
            (logits_BTV.argmax(-1) == tokens_BT).sum(1),
            cross_entropy(next_B2, next_B, reduction="none"),
            next_B2.argmax(1) == next_B,
        )
        for name, value_B in zip(names, values, strict=True):
            found[name][chosen] = value_B.double().cpu().numpy()
    return {**found, "pairs": np.ones(len(order))}


def _pair_scores(sums: Any) -> dict[str, float]:
    next_loss = _scores.ratio(sums["next_losses"], sums["pairs"])
    masked = mlm.masked_scores(sums)
    return {
        "loss": masked["loss"] + next_loss,
        "masked_perplexity": masked["masked_perplexity"],
        "masked_accuracy": masked["masked_accuracy"],
        "next_sentence_loss": next_loss,
        "next_sentence_accuracy": _scores.ratio(sums["next_right"], sums["pairs"]),
    }
