"""Token classification: words -> a tag each, as in named entity recognition.

Notable:
- A word's tag is learned and read at its first subword. Words that are cut are counted, and are neither
  learned nor judged.
- A word that the tokenizer drops (control characters, for one) is fed as its unknown token, so that every
  word keeps its place.
- ``token_items`` marks the tokens that are items. It is no argument of any model's ``forward``: the stock
  Trainer takes it out, and whoever builds batches otherwise must.

Shapes: N rows, T tokens, W words, C tags, B rows of a batch, U items of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForTokenClassification

from hf_llm_recipes import token_evaluation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _labels
from hf_llm_recipes.tasks._rows import bar_if_long, check_columns, column_names, input_length
from hf_llm_recipes.tasks.base import Prepared, Task, splits
from hf_llm_recipes.token_evaluation import PADDING

FEATURES = ["input_ids", "attention_mask", "token_type_ids"]
COUNTS = ["_words", "_lost", "_replaced"]
ALONE = {"add_special_tokens": False, "return_attention_mask": False}


@TASKS.register
@dataclass(kw_only=True)
class TokenClassification(Task):
    """A tag for every word of a row.

    Args:
        tokens: Column of the words, a list of texts a row.
        label: Column of the tags, a list as long: names (``B-x``, ``I-x`` and ``O``, or any classes) or
            their numbers.
        labels: Tag names in order. None takes the data's own names, else the sorted values.
        label_all_subwords: Learn a word's tag at all of its subwords (``I-x`` behind the first of a
            ``B-x``), not at the first alone. Evaluation reads the first alone either way.
        max_length: Tokens a row may have, special ones included; words behind are cut and counted. None
            takes what the model can.
        examples: New texts that are answered and shown after the run, split at white space.

    Raises:
        ValueError: ``labels`` or ``max_length`` out of range.
    """

    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_task_type: ClassVar[str] = "TOKEN_CLS"
    pipeline_tag: ClassVar[str] = "token-classification"
    problem: ClassVar[str] = "tokens"

    tokens: str = "tokens"
    label: str = "label"
    labels: list[str] | None = None
    label_all_subwords: bool = False
    max_length: int | None = None
    examples: list[str] | None = None
    _tags: list[str] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) != len(self.labels)):
            raise ValueError(f"labels is {self.labels}; allowed: two or more different names")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; allowed: 3 or more tokens")

    @property
    def stratify_by(self) -> None:
        """A row has no one class."""
        return None

    @property
    def input_columns(self) -> list[str]:
        """The words."""
        return [self.tokens]

    @property
    def item_problem(self) -> str:
        """Every word is an item."""
        return "tokens"

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns token ids and tag numbers of every split; see ``Task.prepare``."""
        for split in splits(loaded):
            wanted = [("tokens", self.tokens), ("label", self.label)]
            check_columns(getattr(loaded, split), wanted, f"{split} split")
        self._tags = self._names(loaded)
        length = input_length(self.max_length, tokenizer, model_config)
        made, findings, notes = {}, {}, []
        for split in splits(loaded):
            made[split], findings[split] = self._features(
                getattr(loaded, split),
                tokenizer,
                length,
                self._tags,
                f"{split} split",
                all_subwords=self.label_all_subwords and split == "train",
            )
            notes += _sentences(split, findings[split], length)
        if loaded.unlabeled is not None:
            check_columns(loaded.unlabeled, [("tokens", self.tokens)], "unlabeled rows")
            made["unlabeled"], findings["unlabeled"] = self._features(
                loaded.unlabeled, tokenizer, length, None, "unlabeled rows", all_subwords=False
            )
            notes += _sentences("unlabeled", findings["unlabeled"], length)
        if not isinstance(made["train"], IterableDataset):
            notes += self._check_tags(made["train"])
        made.setdefault("eval", None)
        return Prepared(
            **made,
            config={
                "num_labels": len(self._tags),
                "id2label": dict(enumerate(self._tags)),
                "label2id": {name: i for i, name in enumerate(self._tags)},
            },
            collator=self.collator(tokenizer),
            findings=findings,
            notes=notes,
        )

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns features of new rows under a trained model's own tags."""
        check_columns(rows, [("tokens", self.tokens), *([("label", self.label)] if labeled else [])], "data")
        names = _own_names(model_config) if labeled else None
        length = input_length(self.max_length, tokenizer, model_config)
        return self._features(rows, tokenizer, length, names, "data", all_subwords=False)

    def collator(self, tokenizer: Any) -> TokenCollator:
        """Rows -> a padded batch."""
        return TokenCollator(tokenizer)

    def loss(self, label_smoothing: float) -> Any:
        """The mean cross-entropy over all labeled tokens of an optimizer step."""
        return partial(_mean_loss, label_smoothing=label_smoothing)

    def items(self, logits: Tensor, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Returns the logits (U, C), in float32, and the rows (U,) of a batch's items, row by row."""
        items_BT = batch["token_items"].bool()
        return logits[items_BT].float(), items_BT.nonzero()[:, 0]

    def item_labels(self, labels: Tensor, batch: dict[str, Any]) -> Tensor:
        """Returns the tag numbers (U,) of the items in the order of ``items``."""
        return labels[batch["token_items"].bool()]

    def outcomes(self, logits: Any, batch: dict[str, Any]) -> tuple[list, list | None]:
        """Returns each row's logits (W, C) and labels (W,) of its words, from those of tokens."""
        labels = batch.get("labels")
        items = batch["token_items"].astype(bool) if "token_items" in batch else labels != PADDING
        of_words = [row[mask] for row, mask in zip(logits, items, strict=True)]
        if labels is None:
            return of_words, None
        return of_words, [row[mask] for row, mask in zip(labels, items, strict=True)]

    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """Span F1 (where tags mark spans), macro F1 and accuracy of a Trainer's ``EvalPrediction``."""
        return token_evaluation.quick_metrics(
            _logits(prediction.predictions), prediction.label_ids, self._tags
        )

    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """The full metrics of ``token_evaluation``."""
        return token_evaluation.tagging(_logits(logits), labels, _own_names(model_config))

    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """``{"tags", "probabilities"}`` a row and, where tags mark spans, ``"spans"``; a value a word."""
        names = _own_names(model_config)
        return [token_evaluation.answer(row, names) for row in np.asarray(logits)]

    def answers(self, rows: Any, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """As ``decode``, with the words as ``"tokens"``; a word that was cut has None for its tag.

        A span also has its words as ``"text"``.
        """
        names, made = _own_names(model_config), []
        for words, row in zip(rows[self.tokens], np.asarray(logits), strict=True):
            found = token_evaluation.answer(row, names, len(words))
            for span in found.get("spans", []):
                span["text"] = " ".join(words[span["start"] : span["end"]])
            made.append({"tokens": list(words), **found})
        return made

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of bare inputs: texts, which are split at white space, or lists of words.

        Raises:
            DataError: an input is neither.
        """
        for place, given in enumerate(inputs):
            if not isinstance(given, (str, list, tuple)):
                raise DataError(
                    f"{given!r} is no text", where=f"row {place}", allowed="a text, or a list of words"
                )
        return Dataset.from_dict(
            {self.tokens: [i.split() if isinstance(i, str) else list(i) for i in inputs]}
        )

    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Writes the words with tags, predicted tags, probabilities and spans."""
        token_evaluation.write_predictions(
            path,
            tokens=rows[self.tokens][:],
            logits_NWC=np.asarray(logits),
            labels_NW=labels,
            label_names=_own_names(model_config),
        )

    def _names(self, loaded: Any) -> list[str]:
        if self.labels:
            return list(self.labels)
        declared = _labels.declared_names(loaded.train, self.label)
        if declared:
            return declared
        if isinstance(loaded.train, IterableDataset):
            raise DataError("a stream does not tell its tags", hint="name them under `task.labels`")
        places = [f"train split, row {row}" for row in range(len(loaded.train))]
        column = loaded.train[self.label][:]
        rows = [_listed(value, self.label, place) for value, place in zip(column, places, strict=True)]
        names = _labels.found_names(value for value in chain.from_iterable(rows) if value not in (None, ""))
        words = sum(map(len, rows))
        if len(names) > max(10, words // 2):
            raise DataError(
                f"column `{self.label}` has {len(names):,} different values in {words:,} words",
                where="train split",
                hint="is it the column of the tags?",
            )
        return names

    def _features(
        self,
        rows: Any,
        tokenizer: Any,
        length: int,
        names: list[str] | None,
        where: str,
        *,
        all_subwords: bool,
    ) -> tuple[Any, dict]:
        """Features and counts of one split; a stream is encoded as it is read and not counted."""
        tag_number = self._tag_numbers(rows, names) if names is not None else None
        words_to_ids = _WordTokenizer(tokenizer, length)
        inside = _inside(names) if names is not None and all_subwords else None

        def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            places = [f"{where}, row {index}" for index in indices]
            words = [_words(v, self.tokens, p) for v, p in zip(batch[self.tokens], places, strict=True)]
            encoded, replaced = words_to_ids(words, places)
            word_ids = [encoded.word_ids(row) for row in range(len(words))]
            made = {key: encoded[key] for key in FEATURES if key in encoded}
            made["token_items"] = [_items(ids, all_subwords) for ids in word_ids]
            made["_words"] = [len(row) for row in words]
            seen = [1 + max((i for i in ids if i is not None), default=-1) for ids in word_ids]
            made["_lost"] = [len(row) - count for row, count in zip(words, seen, strict=True)]
            made["_replaced"] = replaced
            if tag_number is not None:
                tags = [
                    _tags(value, self.label, len(row), tag_number, place)
                    for value, row, place in zip(batch[self.label], words, places, strict=True)
                ]
                made["labels"] = [_at_items(t, ids, inside) for t, ids in zip(tags, word_ids, strict=True)]
            return made

        if isinstance(rows, IterableDataset):
            made = rows.map(encode, with_indices=True, batched=True, remove_columns=column_names(rows))
            return made.remove_columns(COUNTS), {"rows": "a stream"}
        with bar_if_long(len(rows)):
            made = rows.map(
                encode,
                with_indices=True,
                batched=True,
                remove_columns=rows.column_names,
                load_from_cache_file=False,
                desc=f"tokenizing the {where}",
            )
        return made.remove_columns(COUNTS), self._count(made, where)

    def _tag_numbers(self, rows: Any, names: list[str]) -> Callable[[Any, str], int]:
        """Returns ``(value, place) -> tag number``; each distinct value is looked up once."""
        integers = _labels.integer_names(_labels.declared_names(rows, self.label), self.labels)
        known: dict[Any, int] = {}

        def number(value: Any, place: str) -> int:
            key = (type(value), value)
            if key not in known:
                known[key] = _labels.to_class(
                    value, names, integers=integers, numbers=bool(self.labels), where=place
                )
            return known[key]

        return number

    def _count(self, made: Any, where: str) -> dict[str, Any]:
        words, lost, replaced = (np.asarray(made[key][:]) for key in COUNTS)
        lengths = np.asarray([len(ids) for ids in made["input_ids"]])
        if not words.any():
            raise DataError(f"all {len(words):,} rows are empty", where=where, hint="check `task.tokens`")
        return {
            "rows": len(made),
            "rows_cut": int((lost > 0).sum()),
            "rows_empty": int((words == 0).sum()),
            "words": int(words.sum()),
            "words_cut": int(lost.sum()),
            "words_unknown": int(replaced.sum()),
            "tokens": int(lengths.sum()),
            "tokens_per_row_median": float(np.median(lengths)),
            "tokens_per_row_max": int(lengths.max()),
        }

    def _check_tags(self, train: Any) -> list[str]:
        labels = chain.from_iterable(train["labels"])
        counts = np.bincount([i for i in labels if i != PADDING], minlength=len(self._tags))
        if (counts > 0).sum() < 2:
            raise DataError(
                f"all {counts.sum():,} words have one tag: there is nothing to learn",
                where="train split",
                hint="check `task.label` and the split expression",
            )
        absent = [name for name, count in zip(self._tags, counts, strict=True) if not count]
        return [f"train split: no word is tagged {', '.join(absent)}"] if absent else []


class TokenCollator:
    """Rows of token ids -> a padded batch; labels are padded with −100, ``token_items`` with 0.

    Args:
        tokenizer: Pads on its own side.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.pad = DataCollatorForTokenClassification(tokenizer)
        self.left = tokenizer.padding_side == "left"

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Returns the batch."""
        batch = self.pad([{k: v for k, v in row.items() if k != "token_items"} for row in rows])
        if "token_items" in rows[0]:
            items_BT = torch.zeros_like(batch["input_ids"])
            for items_T, row in zip(items_BT, rows, strict=True):
                own_T = torch.as_tensor(row["token_items"])
                start = len(items_T) - len(own_T) if self.left else 0
                items_T[start : start + len(own_T)] = own_T
            batch["token_items"] = items_BT
        return batch


class _WordTokenizer:
    """Lists of words -> token ids, with the word of each token.

    Args:
        tokenizer: A fast one: only these say which word a token belongs to.
        length: Tokens a row may have.

    Raises:
        DataError: a slow tokenizer.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} does not say which word a token belongs to",
                hint="take a model with a tokenizer.json",
            )
        self.tokenizer, self.length = tokenizer, length
        self.space = " " if _needs_spaces(tokenizer) else ""
        self.dropped: dict[str, bool] = {}

    def __call__(self, rows: list[list[str]], places: list[str]) -> tuple[Any, list[int]]:
        """Returns the encoding, and how many words of each row are fed as the unknown token.

        Raises:
            DataError: a word is nothing to a tokenizer without an unknown token.
        """
        self._learn({word for row in rows for word in row})
        replaced = [sum(self.dropped[word] for word in row) for row in rows]
        unknown = self.tokenizer.unk_token
        if unknown is None and any(replaced):
            at = next(i for i, count in enumerate(replaced) if count)
            word = next(word for word in rows[at] if self.dropped[word])
            raise DataError(
                f"the word {word!r} is nothing to the tokenizer", where=places[at], hint="take it out"
            )
        fed = [
            [
                unknown if self.dropped[word] else (self.space if i else "") + word
                for i, word in enumerate(row)
            ]
            for row in rows
        ]
        encoded = self.tokenizer(fed, is_split_into_words=True, truncation=True, max_length=self.length)
        return encoded, replaced

    def _learn(self, words: set[str]) -> None:
        new = sorted(words - self.dropped.keys())
        if new:
            ids = self.tokenizer([[self.space + w] for w in new], is_split_into_words=True, **ALONE)
            self.dropped |= {word: not found for word, found in zip(new, ids["input_ids"], strict=True)}


def _needs_spaces(tokenizer: Any) -> bool:
    """Whether words have to bring the space before them, as for byte-level BPE without its prefix option."""
    text = tokenizer("a a", **ALONE)["input_ids"]
    split, spaced = (
        tokenizer(words, is_split_into_words=True, **ALONE)["input_ids"]
        for words in (["a", "a"], ["a", " a"])
    )
    return split != text and spaced == text


def _mean_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Any = None, *, label_smoothing: float
) -> Tensor:
    """The summed loss over the labeled tokens of the step; over this batch's where their number is not given.

    Args:
        outputs: With ``logits`` of shape (B, T, C).
        labels: (B, T), −100 where there is nothing to learn.
        num_items_in_batch: Labeled tokens in all micro-batches of the step, as the Trainer counts them.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.
    """
    logits = outputs["logits"].float()
    total = cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
    )
    number = (labels != PADDING).sum() if num_items_in_batch is None else num_items_in_batch
    return total / max(number, 1)


def _words(value: Any, column: str, place: str) -> list[str]:
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"`{column}` is {value!r}, not a list of words",
            where=place,
            hint="rows are counted from 0; texts have to be split into words first",
        )
    for at, word in enumerate(value):
        if not isinstance(word, str):
            raise DataError(f"word {at} of `{column}` is {word!r}, not text", where=place)
    return list(value)


def _listed(value: Any, column: str, place: str) -> list:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"`{column}` is {value!r}, not a list of tags", where=place, allowed="a tag a word")
    return list(value)


def _tags(value: Any, column: str, words: int, number: Callable[[Any, str], int], place: str) -> list[int]:
    tags = _listed(value, column, place)
    if len(tags) != words:
        raise DataError(f"{len(tags)} tags for {words} words", where=place, allowed="a tag a word")
    return [number(tag, f"{place}, word {at}") for at, tag in enumerate(tags)]


def _items(word_ids: list[int | None], all_subwords: bool) -> list[int]:
    """1 for the first subword of each word, or for all of them; 0 elsewhere."""
    before = [None, *word_ids]
    return [
        int(own is not None and (all_subwords or own != last))
        for own, last in zip(word_ids, before, strict=False)
    ]


def _at_items(tags: list[int], word_ids: list[int | None], inside: list[int] | None) -> list[int]:
    """The words' tags at their first subwords, ``inside``'s at the others (None: −100 there)."""
    labels = []
    for own, last in zip(word_ids, [None, *word_ids], strict=False):
        if own is None or (own == last and inside is None):
            labels.append(PADDING)
        else:
            labels.append(inside[tags[own]] if own == last else tags[own])
    return labels


def _inside(names: Sequence[str]) -> list[int]:
    """For each tag the one of a word's further subwords: ``I-x`` for ``B-x`` where it exists."""
    numbers = {name: i for i, name in enumerate(names)}
    return [numbers.get(f"I-{n[2:]}", i) if n.startswith("B-") else i for i, n in enumerate(names)]


def _own_names(model_config: Any) -> list[str]:
    return [model_config.id2label[i] for i in range(model_config.num_labels)]


def _logits(predictions: Any) -> np.ndarray:
    """Some models return hidden states behind the logits; the Trainer then gives a tuple."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _sentences(split: str, found: dict[str, Any], length: int) -> list[str]:
    if not isinstance(found["rows"], int):
        return []
    said = []
    if found["words_cut"]:
        said.append(
            f"{split}: {found['rows_cut']:,} of {found['rows']:,} rows are longer than {length} tokens; "
            f"{found['words_cut']:,} of {found['words']:,} words are cut: neither learned nor judged"
        )
    if found["rows_empty"]:
        said.append(f"{split}: {found['rows_empty']:,} of {found['rows']:,} rows have no word")
    if found["words_unknown"]:
        said.append(
            f"{split}: {found['words_unknown']:,} words are nothing to the tokenizer and are fed as unknown"
        )
    return said
