"""Sequence to sequence: an encoder-decoder reads a source and writes a target, as in translation.

Notable:
- Every token of a target carries loss, its end token too: without that a model does not learn to stop.
- It is judged by what it writes: chrF, ROUGE-L, exact match; and by the loss of the wanted text.

Shapes: B rows, S source tokens, T target tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollatorForSeq2Seq

from hf_llm_recipes import text_evaluation
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language
from hf_llm_recipes.tasks._language_task import LanguageTask, Writing
from hf_llm_recipes.tasks._rows import bar_if_long, check_columns, input_length
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

IGNORED = -100
ROWS_AT_ONCE = 16
KEPT = ("input_ids", "labels")


@TASKS.register
@dataclass(kw_only=True)
class Seq2Seq(LanguageTask):
    """A source -> a target, by an encoder-decoder.

    Args:
        source: Column of the text that is read.
        target: Column of the text that is to be written.
        prefix: Said before every source, such as ``"summarize: "``.
        max_length: Tokens of a source; what is behind is cut and counted. None takes what the model can.
        max_target_length: Tokens of a target, its end included; the same.
        max_new_tokens: Tokens that the model may write.
        generation: More of ``GenerationConfig``, e.g. ``{num_beams: 4}``; greedy without.
        examples: New sources that are answered and shown after the run.

    Raises:
        ValueError: a value out of range, or an unknown key of ``generation``.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    pipeline_tag: ClassVar[str] = "text2text-generation"
    shifted_labels: ClassVar[bool] = False
    methods: ClassVar[tuple[str, ...] | None] = ("supervised",)

    source: str = "source"
    target: str = "target"
    prefix: str = ""
    max_length: int | None = None
    max_target_length: int | None = None
    max_new_tokens: int = 64
    generation: dict[str, Any] | None = None
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_length", 3), ("max_target_length", 3), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; allowed: {least} or more tokens")
        if "max_new_tokens" in (self.generation or {}):
            raise ValueError("generation.max_new_tokens stands in the key `max_new_tokens`")
        _language.check_generation(self.generation)

    @property
    def input_columns(self) -> list[str]:
        """The source."""
        return [self.source]

    @property
    def takes_settings(self) -> bool:
        """Always: it writes, though it goes on with no text."""
        return True

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns sources and targets as ids of every split; see ``Task.prepare``."""
        made: dict[str, Any] = {"eval": None}
        findings: dict[str, Any] = {}
        notes: list[str] = []
        for split in splits(loaded):
            rows = getattr(loaded, split)
            made[split], findings[split] = self._features(rows, tokenizer, model_config, f"{split} split")
            notes += _sentences(split, findings[split])
        return Prepared(**made, config={}, collator=self.collator(tokenizer), findings=findings, notes=notes)

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns ids of new rows, of their targets where ``labeled``."""
        return self._features(rows, tokenizer, model_config, "data", labeled=labeled)

    def collator(self, tokenizer: Any) -> Any:
        """Rows -> padded sources and targets; targets are padded with −100."""
        return PairCollator(DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED))

    def loss(self, label_smoothing: float) -> Any:
        """None: the Trainer of language models has it."""
        return None

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Refuses a model that does not say what its decoder begins with.

        Raises:
            RunError: it does not.
        """
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None or model.config.pad_token_id is None:
            raise RunError(
                f"decoder_start_token_id is {start} and pad_token_id is {model.config.pad_token_id}: the "
                "decoder has nothing to begin with",
                hint="set both in the checkpoint's config.json, or in `model.config`",
            )
        return [f"the decoder begins with {processor.convert_ids_to_tokens(start)!r}"]

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Scores of what the model writes, and the loss of what it should write, over rows."""
        written = self._written(model, features["input_ids"], processor)
        wanted = rows.select(features["row"])[self.target][:]
        losses, tokens = _target_losses(model, features, self.collator(processor))
        columns = {
            "row": list(features["row"]),
            "source": rows.select(features["row"])[self.source][:],
            "target": wanted,
            "generated": written,
            "rouge_l": [text_evaluation.rouge_l(*pair) for pair in zip(written, wanted, strict=True)],
            "loss": losses.tolist(),
            "tokens": tokens.tolist(),
        }
        return Judged(text_evaluation.scores(written, wanted, losses_N=losses, tokens_N=tokens), columns)

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few targets, (tokens, vocabulary)."""
        collate = self.collator(processor)
        found = [_logits(model, collate([row]))[0].float().cpu().numpy() for row in features]
        return np.concatenate(found)

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of bare sources."""
        return Dataset.from_dict({self.source: list(inputs)})

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated"}`` a row."""
        features, _ = self.encode(rows, processor, model.config, labeled=False)
        return [{"generated": text} for text in self._written(model, features["input_ids"], processor)]

    def writing(self, processor: Any) -> Writing:
        """Answers a source behind the prefix."""
        settings = {"do_sample": False, **(self.generation or {}), "max_new_tokens": self.max_new_tokens}
        return Writing(settings, chats=False, prefix=self.prefix)

    def with_settings(self, given: dict[str, Any]) -> Seq2Seq:
        """Returns a copy that writes with other values of ``GenerationConfig``; what is not given stays."""
        more = {key: value for key, value in given.items() if key != "max_new_tokens"}
        most = given.get("max_new_tokens", self.max_new_tokens)
        return dataclasses.replace(self, max_new_tokens=most, generation={**(self.generation or {}), **more})

    def _written(self, model: Any, sources: Any, tokenizer: Any) -> list[str]:
        """What the model writes to each source, the longest first."""
        sources = list(sources)
        order = np.argsort([-len(ids) for ids in sources], kind="stable")
        settings = self.writing(tokenizer).settings
        texts = [""] * len(sources)
        for at in range(0, len(order), ROWS_AT_ONCE):
            chosen = [int(place) for place in order[at : at + ROWS_AT_ONCE]]
            ids_BS, mask_BS = _language.padded(
                [sources[place] for place in chosen], tokenizer.pad_token_id, model.device
            )
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids_BS,
                    attention_mask=mask_BS,
                    use_cache=True,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=end_token(tokenizer),
                    **settings,
                )
            for place, text in zip(
                chosen, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True
            ):
                texts[place] = text.strip()
        return texts

    def _features(
        self, rows: Any, tokenizer: Any, config: Any, where: str, *, labeled: bool = True
    ) -> tuple[Any, dict]:
        if isinstance(rows, IterableDataset):
            raise DataError("pairs are read whole", where=where, hint="set `data.streaming: false`")
        check_columns(rows, [("source", self.source), ("target", self.target if labeled else None)], where)
        limit = input_length(self.max_length, tokenizer, config)
        most = input_length(self.max_target_length, tokenizer, config, key="max_target_length")
        end = end_token(tokenizer)
        counts = {"rows": len(rows), "rows_cut": 0, "targets_cut": 0, "supervised_tokens_lost": 0}

        def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
            texts = _texts(batch[self.source], self.source, where, numbers)
            texts = [self.prefix + text for text in texts]
            read = tokenizer(texts)["input_ids"]
            for place, text in enumerate(texts):
                if len(read[place]) > limit:
                    counts["rows_cut"] += 1
                    read[place] = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            made = {"input_ids": read, "row": numbers}
            if labeled:
                wanted = _texts(batch[self.target], self.target, where, numbers)
                targets = [_ended(ids, end) for ids in tokenizer(text_target=wanted)["input_ids"]]
                long = [len(ids) - most for ids in targets if len(ids) > most]
                counts["targets_cut"] += len(long)
                counts["supervised_tokens_lost"] += sum(long)
                made["labels"] = [ids if len(ids) <= most else [*ids[: most - 1], end] for ids in targets]
            return made

        with bar_if_long(len(rows)):
            made = rows.map(
                encode,
                with_indices=True,
                batched=True,
                remove_columns=rows.column_names,
                load_from_cache_file=False,
                desc=f"tokenizing the {where}",
            )
        return made, {**counts, "max_length": limit, "max_target_length": most}


@dataclass
class PairCollator:
    """Rows of features -> a batch of their sources and targets.

    Args:
        collate: transformers' own.
    """

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch."""
        return dict(self.collate([{key: row[key] for key in KEPT if key in row} for row in rows]))


def end_token(tokenizer: Any) -> int:
    """Returns the token that ends a target.

    Raises:
        DataError: the tokenizer has none.
    """
    found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if found is None:
        raise DataError("the tokenizer has neither an end nor a separator token", hint="take another one")
    return found


def _ended(ids: list[int], end: int) -> list[int]:
    """Ids with the end token, which some tokenizers write; a language's may stand behind it."""
    return ids if end in ids[-2:] else [*ids, end]


def _texts(values: list[Any], column: str, where: str, numbers: list[int]) -> list[str]:
    for value, number in zip(values, numbers, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"`{column}` is {value!r}", where=f"{where}, row {number}", allowed="a text that is not empty"
            )
    return values


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    given = {key: value.to(model.device) for key, value in batch.items()}
    with torch.inference_mode():
        return model(**given)["logits"]


def _target_losses(model: Any, features: Any, collate: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each row's nats over its target, and the target's tokens."""
    order = np.argsort([-len(ids) for ids in features["labels"]], kind="stable")
    losses_N, tokens_N = np.zeros(len(order)), np.zeros(len(order), dtype=np.int64)
    for at in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        batch = collate(list(features.select(chosen)))
        labels_BT = batch["labels"]
        found_BT = _language.token_losses(_logits(model, batch).cpu(), labels_BT).double()
        losses_N[chosen] = found_BT.sum(1).numpy()
        tokens_N[chosen] = (labels_BT != IGNORED).sum(1).numpy()
    return losses_N, tokens_N


def _sentences(split: str, found: dict[str, Any]) -> list[str]:
    said = []
    if found["rows_cut"]:
        said.append(
            f"{split}: {found['rows_cut']:,} of {found['rows']:,} rows have a source that is longer than "
            f"{found['max_length']:,} tokens and is cut"
        )
    if found["targets_cut"]:
        said.append(
            f"{split}: {found['targets_cut']:,} of {found['rows']:,} rows have a target that is longer than "
            f"{found['max_target_length']:,} tokens and is cut; its end is learnt where it was cut"
        )
    return said
