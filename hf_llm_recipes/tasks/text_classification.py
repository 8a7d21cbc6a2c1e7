"""Text classification: one text or a pair -> one class, several classes, or a number.

Notable:
- Every row that is cut, empty or wrongly labeled is counted or refused with its number.
- Class numbers follow the data's own names; words are sorted, numbers are sorted by value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import DataCollatorWithPadding

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _labels
from hf_llm_recipes.tasks._rows import bar_if_long, check_columns, column_names, input_length
from hf_llm_recipes.tasks.base import Prepared, Task, splits

FEATURES = ["input_ids", "attention_mask", "token_type_ids", "labels"]


@TASKS.register
@dataclass(kw_only=True)
class TextClassification(Task):
    """One text, or a pair, -> its class.

    Args:
        text: Column of the text.
        text_pair: Column of the second text, for pairs.
        label: Column of the label; for ``multi_label`` also a list of 0/1 columns, one a class.
        labels: Class names in order. None takes the data's own names, else the sorted values.
        problem: ``single_label``; ``multi_label`` (any number of classes a row); ``regression``.
        separator: Between the labels of a ``multi_label`` text column, ``","`` if not given.
        max_length: Tokens a row may have; longer ones are cut and counted. None takes what the
            model can.
        examples: New texts that are answered and shown after the run.

    Raises:
        ValueError: fields that do not go together.
    """

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str] = "SEQ_CLS"
    pipeline_tag: ClassVar[str] = "text-classification"

    text: str = "text"
    text_pair: str | None = None
    label: str | list[str] = "label"
    labels: list[str] | None = None
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    separator: str | None = None
    max_length: int | None = None
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        columns = isinstance(self.label, list)
        if columns and self.problem != "multi_label":
            raise ValueError(f"label is a list of columns, which goes with multi_label, not {self.problem}")
        if columns and self.labels:
            raise ValueError("labels has no effect where label is a list of columns: they are the names")
        if self.separator is not None and (self.problem != "multi_label" or columns):
            raise ValueError("separator has an effect only on a multi_label text column")
        if self.problem == "regression" and self.labels:
            raise ValueError("labels has no effect on regression")
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) != len(self.labels)):
            raise ValueError(f"labels is {self.labels}; allowed: two or more different names")
        if self.examples and self.text_pair:
            raise ValueError("examples are single texts, and text_pair makes every row two")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; allowed: 3 or more tokens")

    @property
    def stratify_by(self) -> str | None:
        """The label column of a single-label problem."""
        return self.label if self.problem == "single_label" and isinstance(self.label, str) else None

    @property
    def input_columns(self) -> list[str]:
        """The text, or both texts."""
        return [column for column in (self.text, self.text_pair) if column]

    @property
    def item_problem(self) -> str:
        """The problem; a ``multi_label`` row is one item a class."""
        return self.problem

    def items(self, logits: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Returns one item a row; for ``multi_label`` one a row and class, a choice of no (0) and yes."""
        if self.problem == "regression":
            raise ValueError("a regression task has no classes to guess; use `method: self_training`")
        if self.problem == "single_label":
            return super().items(logits, batch)
        flat = logits.float().reshape(-1)
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(logits.shape[1])
        return torch.stack([torch.zeros_like(flat), flat], dim=-1), rows

    def item_labels(self, labels: Any, batch: dict[str, Any]) -> Tensor:
        """Returns the class of each item; for ``multi_label`` 0 or 1."""
        return labels if self.problem == "single_label" else labels.reshape(-1).long()

    def num_item_classes(self, model_config: Any) -> int:
        """The classes; two for ``multi_label``."""
        return 2 if self.problem == "multi_label" else model_config.num_labels

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns token ids and labels of every split; see ``Task.prepare``."""
        for split in splits(loaded):
            self._check_columns(getattr(loaded, split), f"{split} split", labeled=True)
        names = self._names(loaded)
        length = self._length(tokenizer, model_config)
        made, findings, notes = {}, {}, []
        for split in splits(loaded):
            rows = getattr(loaded, split)
            where = f"{split} split"
            made[split], found = self._features(rows, tokenizer, length, names, where)
            findings[split] = found
            notes += _sentences(split, found, length)
        if loaded.unlabeled is not None:
            self._check_columns(loaded.unlabeled, "unlabeled rows", labeled=False)
            made["unlabeled"], found = self._features(
                loaded.unlabeled, tokenizer, length, None, "unlabeled rows"
            )
            findings["unlabeled"] = found
            notes += _sentences("unlabeled", found, length)
        if self.problem == "single_label" and not isinstance(made["train"], IterableDataset):
            classes = made["train"]["labels"][:]
            unseen = _labels.check_classes(classes, names, where="train split")
            if loaded.unlabeled is not None:
                unseen = [f"{said}: no row of the pool can be taken for one either" for said in unseen]
                notes += _lone_labels(classes, names)
            notes += unseen
        made.setdefault("eval", None)
        return Prepared(
            **made,
            config=self._model_values(names),
            collator=self.collator(tokenizer),
            findings=findings,
            notes=notes,
        )

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns features of new rows under a trained model's own classes."""
        self._check_columns(rows, "data", labeled=labeled)
        names = [model_config.id2label[i] for i in range(model_config.num_labels)] if labeled else None
        return self._features(rows, tokenizer, self._length(tokenizer, model_config), names, "data")

    def collator(self, tokenizer: Any) -> Any:
        """Rows -> a padded batch."""
        return DataCollatorWithPadding(tokenizer)

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of bare texts.

        Raises:
            DataError: an input is no text, or the run reads pairs.
        """
        if self.text_pair:
            raise DataError(
                f"one text, where the run reads pairs (`{self.text}` and `{self.text_pair}`)",
                allowed=f"rows with both columns, e.g. {{{self.text!r}: …, {self.text_pair!r}: …}}",
                hint="write them into a file: predict RUN --file PAIRS.csv --output ANSWERS.csv",
            )
        for place, given in enumerate(inputs):
            if not isinstance(given, str):
                raise DataError(
                    f"{given!r} is no text",
                    where=f"row {place}",
                    allowed="only texts, or only dicts with the task's columns",
                )
        return Dataset.from_dict({self.text: inputs})

    def loss(self, label_smoothing: float) -> Any:
        """The mean cross-entropy, binary cross-entropy or squared error over a whole optimizer step.

        transformers' classification heads take the mean of each micro-batch themselves while its
        Trainer (5.23) believes that they divided by the step's rows: under accumulation over n
        micro-batches both the logged loss and the gradient come out n times too large.
        """
        if label_smoothing and self.problem != "single_label":
            raise ValueError(f"label_smoothing_factor has no meaning for a {self.problem} task")
        return partial(_mean_loss, problem=self.problem, label_smoothing=label_smoothing)

    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """Accuracy and F1, or errors and correlations, of a Trainer's ``EvalPrediction``."""
        return evaluation.quick_metrics(_logits(prediction.predictions), prediction.label_ids, self.problem)

    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """The full metrics of ``evaluation``."""
        if self.problem == "regression":
            return evaluation.regression(np.asarray(_logits(logits)).reshape(-1), labels)
        names = [model_config.id2label[i] for i in range(model_config.num_labels)]
        return evaluation.classification(_logits(logits), labels, names, problem=self.problem)

    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """``{"label", "probability"}``, ``{"labels", "probabilities"}`` or ``{"value"}`` a row."""
        logits = np.asarray(_logits(logits), dtype=np.float64)
        if self.problem == "regression":
            return [{"value": float(value)} for value in logits.reshape(-1)]
        names = [model_config.id2label[i] for i in range(model_config.num_labels)]
        probabilities_NC = evaluation.probabilities(logits, self.problem)
        if self.problem == "multi_label":
            return [
                {
                    "labels": [n for n, p in zip(names, row, strict=True) if p >= 0.5],
                    "probabilities": dict(zip(names, map(float, row), strict=True)),
                }
                for row in probabilities_NC
            ]
        return [
            {"label": names[int(row.argmax())], "probability": float(row.max())} for row in probabilities_NC
        ]

    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Writes the texts with labels, predictions and one probability a class."""
        columns = [c for c in (self.text, self.text_pair) if c]
        names = None
        if self.problem != "regression":
            names = [model_config.id2label[i] for i in range(model_config.num_labels)]
        evaluation.write_predictions(
            path,
            columns={c: list(rows[c]) for c in columns},
            logits=_logits(logits),
            labels=labels,
            label_names=names,
            problem=self.problem,
        )

    def _check_columns(self, rows: Any, where: str, *, labeled: bool) -> None:
        labels = self.label if isinstance(self.label, list) else [self.label]
        wanted = [("text", self.text), ("text_pair", self.text_pair)]
        wanted += [("label", name) for name in labels] if labeled else []
        check_columns(rows, wanted, where)

    def _names(self, loaded: Any) -> list[str]:
        if self.problem == "regression":
            return ["value"]
        if isinstance(self.label, list):
            return list(self.label)
        if self.labels:
            return list(self.labels)
        declared = _labels.declared_names(loaded.train, self.label)
        if declared:
            return declared
        if isinstance(loaded.train, IterableDataset):
            raise DataError("a stream does not tell its classes", hint="name them under `task.labels`")
        values = (value for value in loaded.train[self.label] if value not in (None, ""))
        if self.problem == "multi_label":
            values = (one for v in values for one in _labels.to_set(v, self._separator, where="train split"))
        names = _labels.found_names(values)
        if not names:
            raise DataError(
                f"column `{self.label}` holds no label in any of {len(loaded.train):,} rows",
                where="train split",
                hint="check `task.label`",
            )
        limit = max(2, len(loaded.train) // 2)
        if len(names) > limit:
            raise DataError(
                f"column `{self.label}` has {len(names):,} different values in {len(loaded.train):,} rows",
                where="train split",
                hint="is it the label? for numbers set `task.problem: regression`",
            )
        return names

    @property
    def _separator(self) -> str:
        return self.separator or ","

    def _model_values(self, names: list[str]) -> dict[str, Any]:
        kind = {"regression": "regression"}.get(self.problem, f"{self.problem}_classification")
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            "problem_type": kind,
        }

    def _length(self, tokenizer: Any, model_config: Any) -> int:
        return input_length(self.max_length, tokenizer, model_config)

    def _features(
        self, rows: Any, tokenizer: Any, length: int, names: list[str] | None, where: str
    ) -> tuple[Any, dict]:
        """Features and counts of one split; a stream is encoded as it is read and not counted."""
        declared = _labels.declared_names(rows, self.label) if isinstance(self.label, str) else None
        integers = _labels.integer_names(declared, self.labels)

        def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
            texts = self._texts(batch, indices, where)
            encoded = tokenizer(*texts, truncation=True, max_length=length)
            made = {key: encoded[key] for key in FEATURES if key in encoded}
            made["_cut"] = _tokens_cut(tokenizer, texts, encoded["input_ids"], length)
            made["_empty"] = [not first.strip() for first in texts[0]]
            if names is not None:
                made["labels"] = self._encode_labels(batch, indices, names, integers, where)
            return made

        if isinstance(rows, IterableDataset):
            made = rows.map(encode, with_indices=True, batched=True, remove_columns=column_names(rows))
            return made.remove_columns(["_cut", "_empty"]), {"rows": "a stream"}
        if names is not None and self.stratify_by is not None:
            _labels.refuse_missing(rows[self.stratify_by], rows[self.text], where=where)
        with bar_if_long(len(rows)):
            made = rows.map(
                encode,
                with_indices=True,
                batched=True,
                remove_columns=rows.column_names,
                load_from_cache_file=False,
                desc=f"tokenizing the {where}",
            )
        found = self._count(made, where)
        return made.remove_columns(["_cut", "_empty"]), found

    def _texts(self, batch: dict[str, list], indices: list[int], where: str) -> list[list[str]]:
        columns = [c for c in (self.text, self.text_pair) if c]
        for column in columns:
            for value, index in zip(batch[column], indices, strict=True):
                if not isinstance(value, str):
                    raise DataError(
                        f"`{column}` is {value!r}, not text",
                        where=f"{where}, row {index}",
                        hint="take the row out or fill it; rows are counted from 0",
                    )
        return [batch[column] for column in columns]

    def _encode_labels(
        self,
        batch: dict[str, list],
        indices: list[int],
        names: list[str],
        integers: Sequence[str] | None,
        where: str,
    ) -> list:
        made = []
        for at, index in enumerate(indices):
            row = {column: values[at] for column, values in batch.items()}
            try:
                made.append(self._encode_label(row, names, integers, f"{where}, row {index}"))
            except DataError as error:  # the row has another number in its file: its text says which it is
                raise DataError(
                    f"{error.what}; the row is {_labels.quoted(row[self.text])}",
                    where=error.where,
                    allowed=error.allowed,
                    hint=error.hint,
                ) from None
        return made

    def _encode_label(
        self, row: dict[str, Any], names: list[str], integers: Sequence[str] | None, place: str
    ) -> Any:
        if isinstance(self.label, list):
            return [_flag(row[column], where=place) for column in self.label]
        value = row[self.label]
        if self.problem == "regression":
            return _labels.to_number(value, where=place)
        to_class = partial(
            _labels.to_class, names=names, integers=integers, numbers=bool(self.labels), where=place
        )
        if self.problem == "single_label":
            return to_class(value)
        chosen = {to_class(one) for one in _labels.to_set(value, self._separator, where=place)}
        return [float(i in chosen) for i in range(len(names))]

    def _count(self, made: Any, where: str) -> dict[str, Any]:
        cut, empty = np.asarray(made["_cut"][:]), np.asarray(made["_empty"][:])
        lengths = np.asarray([len(ids) for ids in made["input_ids"]])
        if empty.all():
            raise DataError(f"all {len(empty):,} texts are empty", where=where, hint="check `task.text`")
        return {
            "rows": len(made),
            "rows_cut": int((cut > 0).sum()),
            "tokens_cut": int(cut.sum()),
            "rows_empty": int(empty.sum()),
            "tokens": int(lengths.sum()),
            "tokens_per_row_median": float(np.median(lengths)),
            "tokens_per_row_max": int(lengths.max()),
        }


def _mean_loss(
    outputs: Any, labels: Any, num_items_in_batch: Any = None, *, problem: str, label_smoothing: float
) -> Any:
    """The summed loss over the items of the step; over this batch's where their number is not given.

    Args:
        outputs: With ``logits`` of shape (rows, outputs).
        labels: (rows,) classes or targets, or (rows, classes) flags.
        num_items_in_batch: Labels in all micro-batches of the step, as the Trainer counts them.
        problem: As in ``TextClassification``.
        label_smoothing: As in ``torch.nn.functional.cross_entropy``.
    """
    logits = outputs["logits"].float()
    if problem == "single_label":
        total = cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    elif problem == "multi_label":
        total = binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    else:
        total = mse_loss(logits.reshape(labels.shape), labels.float(), reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def _tokens_cut(tokenizer: Any, texts: list[list[str]], kept: list[list[int]], length: int) -> list[int]:
    """How many tokens of each row truncation took; only rows of the full length are tokenized again.

    The tokenizer's own overflow repeats the special tokens, and for pairs every combination.
    """
    full = [row for row, ids in enumerate(kept) if len(ids) >= length]
    cut = [0] * len(kept)
    if full:
        whole = tokenizer(*([column[row] for row in full] for column in texts), verbose=False)["input_ids"]
        for row, ids in zip(full, whole, strict=True):
            cut[row] = len(ids) - len(kept[row])
    return cut


def _logits(predictions: Any) -> np.ndarray:
    """Some models return hidden states behind the logits; the Trainer then gives a tuple."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _lone_labels(classes: Sequence[int], names: Sequence[str]) -> list[str]:
    counts = Counter(classes)
    lone = [name for i, name in enumerate(names) if counts[i] == 1]
    if not lone:
        return []
    shown = ", ".join(lone[:20]) + (f", … ({len(lone) - 20} more)" if len(lone) > 20 else "")
    return [f"train split: one row only of class {shown}: what the pool teaches of it hangs on that row"]


def _flag(value: Any, *, where: str) -> float:
    if value in (0, 1, "0", "1", True, False):
        return float(int(value))
    raise DataError(f"label {value!r} is no flag", where=where, allowed="0 or 1")


def _sentences(split: str, found: dict[str, Any], length: int) -> list[str]:
    if not isinstance(found["rows"], int):
        return []
    said = []
    if found["rows_cut"]:
        share = 100 * found["rows_cut"] / found["rows"]
        said.append(
            f"{split}: {found['rows_cut']:,} of {found['rows']:,} rows ({share:.1f} %) are longer than "
            f"{length} tokens and are cut; {found['tokens_cut']:,} tokens are not seen"
        )
    if found["rows_empty"]:
        said.append(f"{split}: {found['rows_empty']:,} of {found['rows']:,} texts are empty")
    return said
