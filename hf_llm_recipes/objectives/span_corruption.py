"""Span corruption: an encoder-decoder gives back the spans that sentinels stand for.

Notable:
- The mask is that of the reference code (``random_spans_noise_mask`` of text-to-text-transfer-transformer):
  the number of noise tokens and spans is a function of the length, only where they lie is chance. It
  begins with a kept span and ends with a hidden one.
- "a b c d e f" with c and e f hidden: the encoder reads "a b <0> d <1> </s>", the decoder is to write
  "<0> c <1> e f </s>".
- Spans are new in each epoch and a function of seed, epoch and row; those of eval and test are fixed.

Shapes: B rows, S source tokens, T target tokens, V vocabulary, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.objectives import _documents, _scores
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives._losses import IGNORED, token_loss
from hf_llm_recipes.objectives._masked_rows import SEED
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language
from hf_llm_recipes.tasks._masking import generator_of
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

MOST_NOISE = 0.5  # above, there may be fewer kept tokens than spans to keep apart
ROWS_AT_ONCE = 16


@TASKS.register
@dataclass(kw_only=True)
class SpanCorruption(Objective):
    """Give hidden spans back (T5; Raffel et al. 2020, https://arxiv.org/abs/1910.10683, §3.1.4).

    Args:
        text: Column of the text.
        document_start: A regular expression: rows that match it begin a document, and the others go on
            with the one before them. None: each row is a document.
        block_size: Tokens of a row before spans are hidden; 512, or what the model can, unless given.
        packing: ``none`` has a document (or a piece of a long one) a row; ``concat`` fills every row with
            documents one behind the other, which see each other, as in the reference.
        noise_density: Share of the tokens that are hidden, in (0, 0.5].
        mean_span_length: Tokens of a hidden span, on average, ≥ 1.
        sentinel: What the tokenizer calls its sentinels, ``{}`` in the place of their number.
        examples: Texts with sentinels, which are filled and shown after the run.

    Raises:
        ValueError: a value out of its range.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    pipeline_tag: ClassVar[str] = "text2text-generation"

    text: str = "text"
    document_start: str | None = None
    block_size: int | None = None
    packing: Literal["none", "concat"] = "none"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    sentinel: str = "<extra_id_{}>"
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 4:
            raise ValueError(f"block_size is {self.block_size}; allowed: 4 or more tokens")
        if not 0 < self.noise_density <= MOST_NOISE:
            raise ValueError(f"noise_density is {self.noise_density}; allowed: above 0, up to {MOST_NOISE}")
        if self.mean_span_length < 1:
            raise ValueError(f"mean_span_length is {self.mean_span_length}; allowed: 1 or more tokens")
        if "{}" not in self.sentinel:
            raise ValueError(f"sentinel is {self.sentinel!r}; allowed: a name with {{}} for its number")
        _documents.check_pattern(self.document_start)

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns rows to be corrupted anew in each epoch, and corrupted rows to judge by."""
        corrupter = self._corrupter(tokenizer, model_config)
        made: dict[str, Any] = {"eval": None}
        findings, notes = {}, []
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            packing = "none" if split == "test" else self.packing
            made[split], findings[split], said = self._rows(rows, tokenizer, model_config, where, packing)
            notes += said
            if split != "train":
                made[split] = corrupted_rows(made[split], corrupter)
        made["train"] = Draws(made["train"])
        return Prepared(
            **made,
            config={},
            collator=CorruptingCollator(corrupter, tokenizer.pad_token_id),
            findings=findings,
            notes=notes,
            callbacks=[made["train"].teller()],
        )

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns rows with fixed spans hidden where ``labeled``, else as they are."""
        made, found, _ = self._rows(rows, tokenizer, model_config, "data", "none")
        return corrupted_rows(made, self._corrupter(tokenizer, model_config)) if labeled else made, found

    def collator(self, tokenizer: Any) -> Any:
        """Rows -> padded sources and targets."""
        size = _documents.checked_block_size(self.block_size, tokenizer, None)
        return CorruptingCollator(self._corrupter(tokenizer, None, size), tokenizer.pad_token_id)

    def loss(self, label_smoothing: float) -> Any:
        """The mean cross-entropy over the target tokens of an optimizer step."""
        return token_loss(shifted=False, label_smoothing=label_smoothing)

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Loss over targets, and accuracy on hidden tokens given those before, over documents."""
        sentinels = set(sentinel_ids(processor, self.sentinel))
        found = target_outcomes(model, features, processor.pad_token_id, sentinels)
        sums_D = _scores.sums_by(features["document"][:], found, int(max(features["document"])) + 1)
        kept = np.flatnonzero(sums_D["targets"])
        sums_D = {name: values[kept] for name, values in sums_D.items()}
        metrics = _scores.judged(sums_D, _span_scores)
        texts = _documents.read_documents(rows, self.text, self.document_start, "test split")
        columns = {name: values.tolist() for name, values in sums_D.items()}
        return Judged(
            metrics, {"begins": [texts[i][:200] for i in kept], "document": kept.tolist(), **columns}
        )

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few targets."""
        found = []
        for row in features:
            logits, _ = target_logits(model, [row], processor.pad_token_id)
            found.append(logits[0].float().cpu().numpy())
        return np.concatenate(found)

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated"}`` a row: the text with what the model writes in the place of its sentinels."""
        self.check_rows(rows, "data")
        texts = _documents.read_documents(rows, self.text, None, "data")
        sentinels = sentinel_ids(processor, self.sentinel)
        return [self._filled(model, text, place, processor, sentinels) for place, text in enumerate(texts)]

    def _filled(
        self, model: Any, text: str, place: int, tokenizer: Any, sentinels: list[int]
    ) -> dict[str, Any]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not set(ids) & set(sentinels):
            name = self.sentinel.format(0)
            raise DataError(
                f"{text[:60]!r} has no sentinel", where=f"row {place}", hint=f"put {name} where to fill"
            )
        end = end_of_text(tokenizer)
        source = torch.tensor([[*ids, end]], device=model.device)
        with torch.inference_mode():
            made = model.generate(
                input_ids=source,
                attention_mask=torch.ones_like(source),
                max_new_tokens=64,
                do_sample=False,
                use_cache=True,
                eos_token_id=end,
            )
        written = fill_spans(ids, made[0].tolist(), sentinels, end)
        return {"generated": tokenizer.decode(written, skip_special_tokens=True)}

    def _corrupter(self, tokenizer: Any, model_config: Any, size: int | None = None) -> Corrupter:
        size = size or _documents.checked_block_size(self.block_size, tokenizer, model_config)
        sentinels = sentinel_ids(tokenizer, self.sentinel)
        _, spans = noise_counts(size, self.noise_density, self.mean_span_length)
        if len(sentinels) < spans:
            raise DataError(
                f"the tokenizer has {len(sentinels)} sentinels {self.sentinel!r}; rows of {size} tokens need "
                f"{spans}",
                hint="name them in `task.sentinel`, take a tokenizer that has them, or smaller blocks",
            )
        return Corrupter(sentinels, end_of_text(tokenizer), self.noise_density, self.mean_span_length)

    def _rows(
        self, rows: Any, tokenizer: Any, model_config: Any, where: str, packing: str
    ) -> tuple[Any, dict[str, Any], list[str]]:
        self.check_rows(rows, where)
        size = _documents.checked_block_size(self.block_size, tokenizer, model_config)
        texts = _documents.read_documents(rows, self.text, self.document_start, where)
        documents = _documents.tokenize(texts, tokenizer, where, special=False)
        end = end_of_text(tokenizer) if packing == "concat" else None
        made, report, said = _documents.make_blocks(documents.tokens, packing, size, end=end)
        made = made.filter(lambda ids: len(ids) >= _documents.MIN_TOKENS, input_columns="input_ids")
        return made, {**documents.findings, **report}, documents.notes + [f"{where}: {one}" for one in said]


@dataclass
class Corrupter:
    """A row of tokens -> source and target.

    Args:
        sentinels: Their ids, the first first.
        end: Token behind source and target.
        density: Share of hidden tokens.
        mean_length: Of hidden spans, tokens.
    """

    sentinels: list[int]
    end: int
    density: float
    mean_length: float

    def __call__(self, ids: list[int], generator: torch.Generator) -> tuple[list[int], list[int]]:
        """Returns source and target of a row of two tokens or more."""
        noise = noise_mask(len(ids), self.density, self.mean_length, generator).tolist()
        return (
            [*self._marked(ids, noise), self.end],
            [*self._marked(ids, [not hidden for hidden in noise]), self.end],
        )

    def _marked(self, ids: list[int], hidden: list[bool]) -> list[int]:
        """The tokens with a sentinel in the place of each hidden run."""
        made, number = [], 0
        for place, token in enumerate(ids):
            if not hidden[place]:
                made.append(token)
            elif place == 0 or not hidden[place - 1]:
                made.append(self.sentinels[number])
                number += 1
        return made


@dataclass
class CorruptingCollator:
    """Rows with their draws -> padded sources and targets; rows with labels are corrupted already.

    Args:
        corrupter: Hides spans.
        pad_token_id: Fills the sources.
    """

    corrupter: Corrupter
    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        pairs = [self._pair(row) for row in rows]
        ids_BS, mask_BS = _language.padded([source for source, _ in pairs], self.pad_token_id, "cpu")
        labels_BT, _ = _language.padded([target for _, target in pairs], IGNORED, "cpu")
        return {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": labels_BT}

    def _pair(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        if row.get("labels") is not None:
            return row["input_ids"], row["labels"]
        return self.corrupter(list(row["input_ids"]), generator_of(*row["draw"]))


def noise_counts(length: int, density: float, mean_length: float) -> tuple[int, int]:
    """Returns how many tokens of a row are hidden, and in how many spans, which as many kept tokens part.

    The reference has no such bound: of 3 tokens, half of them hidden one by one, it would part 2 by 1.
    """
    tokens = min(max(round(length * density), 1), length - 1)
    return tokens, min(max(round(tokens / mean_length), 1), length - tokens)


def noise_mask(length: int, density: float, mean_length: float, generator: torch.Generator) -> Tensor:
    """Returns which tokens are hidden, (length,), as the reference code does.

    Args:
        length: ≥ 2.
        density: Share of hidden tokens.
        mean_length: Of hidden spans, tokens.
        generator: Where the spans lie.
    """
    tokens, spans = noise_counts(length, density, mean_length)
    hidden = _segments(tokens, spans, generator)
    kept = _segments(length - tokens, spans, generator)
    lengths = torch.stack([kept, hidden], dim=1).flatten()
    return (torch.arange(2 * spans) % 2 == 1).repeat_interleave(lengths)


def _segments(items: int, segments: int, generator: torch.Generator) -> Tensor:
    """Lengths ≥ 1 of so many segments of the items, each way to cut them equally likely."""
    cuts = torch.arange(items - 1) < segments - 1
    cuts = cuts[torch.randperm(items - 1, generator=generator)]
    number = torch.cat([torch.zeros(1, dtype=torch.long), cuts.long().cumsum(0)])
    return torch.bincount(number, minlength=segments)


def sentinel_ids(tokenizer: Any, name: str) -> list[int]:
    """Returns the ids of the sentinels 0, 1, …, as far as the tokenizer has them."""
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (token := name.format(len(found))) in vocabulary:
        found.append(vocabulary[token])
    return found


def end_of_text(tokenizer: Any) -> int:
    """Returns the token that ends source and target.

    Raises:
        DataError: the tokenizer has none.
    """
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise DataError("the tokenizer has neither an end nor a separator token", hint="take another one")
    return found


def corrupted_rows(rows: Dataset, corrupter: Corrupter) -> Dataset:
    """Returns rows whose spans are hidden once and for all."""
    pairs = [corrupter(ids, generator_of(SEED, number)) for number, ids in enumerate(rows["input_ids"])]
    made = {"input_ids": [source for source, _ in pairs], "labels": [target for _, target in pairs]}
    others = {name: rows[name][:] for name in rows.column_names if name not in made}
    return Dataset.from_dict({**made, **others})


def target_logits(model: Any, rows: list[dict[str, Any]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Returns logits (B, T, V) and labels (B, T) of corrupted rows."""
    ids_BS, mask_BS = _language.padded([row["input_ids"] for row in rows], pad_token_id, model.device)
    labels_BT, _ = _language.padded([row["labels"] for row in rows], IGNORED, model.device)
    with torch.inference_mode():
        outputs = model(input_ids=ids_BS, attention_mask=mask_BS, labels=labels_BT)
    return outputs["logits"], labels_BT


def target_outcomes(
    model: Any, features: Any, pad_token_id: int, sentinels: set[int]
) -> dict[str, np.ndarray]:
    """Returns each row's ``losses`` over its ``targets``, and nats and ``right`` of hidden ``tokens``."""
    order = np.argsort([-len(ids) for ids in features["input_ids"]], kind="stable")
    names = ("losses", "targets", "hidden_losses", "tokens", "right")
    found = {name: np.zeros(len(order)) for name in names}
    for at in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        logits_BTV, labels_BT = target_logits(model, list(features.select(chosen)), pad_token_id)
        losses_BT = _language.token_losses(logits_BTV, labels_BT).double()
        target_BT = labels_BT != IGNORED
        others = torch.tensor([*sentinels, IGNORED], device=labels_BT.device)
        hidden_BT = target_BT & ~torch.isin(labels_BT, others)
        hidden_BT &= target_BT.cumsum(1) < target_BT.sum(1, keepdim=True)  # the last one is the end token
        right_BT = (logits_BTV.argmax(-1) == labels_BT) & hidden_BT
        values = (losses_BT, target_BT, losses_BT * hidden_BT, hidden_BT, right_BT)
        for name, value_BT in zip(names, values, strict=True):
            found[name][chosen] = value_BT.double().sum(1).cpu().numpy()
    return found


def _span_scores(sums: Any) -> dict[str, float]:
    return {
        "loss": _scores.ratio(sums["losses"], sums["targets"]),
        "masked_perplexity": _scores.exp(_scores.ratio(sums["hidden_losses"], sums["tokens"])),
        "masked_accuracy": _scores.ratio(sums["right"], sums["tokens"]),
    }


def fill_spans(ids: list[int], written: list[int], sentinels: list[int], end: int) -> list[int]:
    """Returns a source with what was written behind each sentinel in its place, nothing where nothing was."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in written:
        if token in sentinels:
            current = spans.setdefault(token, [])
        elif token == end:
            break
        else:
            current.append(token)
    return [one for token in ids for one in (spans.get(token, []) if token in sentinels else [token])]
