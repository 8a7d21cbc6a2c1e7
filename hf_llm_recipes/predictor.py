"""A finished run's model, ready to answer: loading, batching, decoding."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.rundir import MODEL, RECIPE, RunDirectory
from hf_llm_recipes.tasks.base import Task
from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource

RECORD = "task.json"  # beside the weights: what a loader must know that the weights do not say


class Predictor:
    """A trained model with its task and tokenizer.

    Args:
        model: In ``eval()``.
        tokenizer: Its tokenizer.
        task: What it predicts.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task) -> None:
        self.model, self.tokenizer, self.task = model, tokenizer, task

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Loads a run directory, or the ``model/`` folder of one.

        Raises:
            RunError: no run, an unfinished one, or its weights do not load.
        """
        folder = _model_folder(Path(path))
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        fields = dict(record["task"])
        _import_user_modules(fields["name"], folder.parent)
        task = TASKS.get(fields.pop("name"))(**fields)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = _model.load_saved(
            folder,
            auto_class=task.auto_class,
            source=ModelSource(**record["model"]),
            updates=_with_int_keys(record["config"]),
            pad_token_id=tokenizer.pad_token_id,
            quantization=record["quantization"],
        )
        return cls(model, tokenizer, task)

    def predict(self, rows: Sequence[str] | Sequence[dict] | Dataset, *, batch_size: int = 32) -> list[dict]:
        """Answers texts, rows or a data set; one dict a row, in order.

        Args:
            rows: Texts, dicts with the task's columns, or a ``Dataset``.
            batch_size: Rows a forward.

        Raises:
            DataError: a row lacks the task's columns or is no text.
        """
        if isinstance(rows, str):
            raise DataError("one text was given where a list of texts is taken", hint=f"[{rows[:40]!r}]")
        if len(rows) == 0:
            return []
        data = self._dataset(rows)
        logits, _ = self.logits(data, labeled=False, batch_size=batch_size)
        return self.task.decode(logits, self.model.config)

    def logits(self, data: Dataset, *, labeled: bool, batch_size: int = 32) -> tuple[np.ndarray, Any]:
        """Returns logits of shape (rows, outputs) in float32, and the labels or None."""
        features, _ = self.task.encode(data, self.tokenizer, self.model.config, labeled=labeled)
        labels = np.asarray(features["labels"][:]) if labeled else None
        inputs = features.remove_columns([c for c in features.column_names if c == "labels"])
        order = np.argsort([-len(ids) for ids in inputs["input_ids"]], kind="stable")
        collate = DataCollatorWithPadding(self.tokenizer)
        answers: list[Any] = [None] * len(inputs)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = collate([inputs[int(i)] for i in chosen]).to(self.model.device)
                for i, row in zip(chosen, self.model(**batch).logits.float().cpu().numpy(), strict=True):
                    answers[int(i)] = row
        return np.stack(answers), labels

    def _dataset(self, rows: Any) -> Dataset:
        if isinstance(rows, Dataset):
            return rows
        rows = list(rows)
        kind = str if isinstance(rows[0], str) else dict
        odd = next((i for i, row in enumerate(rows) if not isinstance(row, kind)), None)
        if odd is not None:
            raise DataError(
                f"{rows[odd]!r} is no {'text' if kind is str else 'row'}",
                where=f"row {odd}",
                allowed="only texts, or only dicts with the task's columns",
            )
        return Dataset.from_dict({self.task.text: rows}) if kind is str else Dataset.from_list(rows)


def save_record(
    folder: Path,
    *,
    task: dict[str, Any],
    config: dict[str, Any],
    model: dict[str, Any],
    quantization: dict[str, Any] | None,
) -> None:
    """Writes what ``Predictor.load`` reads.

    Args:
        folder: The run's ``model/``.
        task: The resolved ``task:`` section.
        config: Configuration values that the task set.
        model: The resolved ``model:`` section.
        quantization: ``Built.quantization``.
    """
    record = {"task": task, "config": config, "model": model, "quantization": quantization}
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _model_folder(path: Path) -> Path:
    if (path / RECORD).is_file():
        return path
    run = RunDirectory.existing(path)
    if not (run / MODEL / RECORD).is_file():
        raise RunError("has no model: the run has not finished", where=str(path), hint=run.resume_command())
    return run / MODEL


def _import_user_modules(task: str, run: Path) -> None:
    """Imports the recipe's ``imports`` where the task is not one of ours."""
    if task in TASKS.names() or not (run / RECIPE).is_file():
        return
    for module in Recipe.load(run / RECIPE).get("imports", []):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RunError(
                f"the task `{task}` needs the module `{module}`, which cannot be imported: {error}",
                where=str(run / RECIPE),
                hint="start from the folder that holds it",
            ) from error


def _with_int_keys(config: dict[str, Any]) -> dict[str, Any]:
    """JSON makes the keys of ``id2label`` text."""
    if "id2label" in config:
        config = {**config, "id2label": {int(i): name for i, name in config["id2label"].items()}}
    return config
