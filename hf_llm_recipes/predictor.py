"""A finished run's model, ready to answer: loading, batching, decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoImageProcessor, AutoTokenizer, set_seed

from hf_llm_recipes import exported, trust
from hf_llm_recipes.assessing import temperature
from hf_llm_recipes.assets import LOCAL
from hf_llm_recipes.errors import DataError, RunError, UserError
from hf_llm_recipes.methods._forward import model_inputs
from hf_llm_recipes.recipe import without_home
from hf_llm_recipes.registry import TASKS, registered_name
from hf_llm_recipes.rundir import RECIPE, RECORD, model_folder
from hf_llm_recipes.tasks.base import Task
from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource

PADDING = -100
CALIBRATION = "for calibrated probabilities: `evaluate RUN --temperature`, then `predict --calibrated`"


class Predictor:
    """A trained model with its task and tokenizer.

    Args:
        model: In ``eval()``.
        tokenizer: Its tokenizer, or its image processor.
        task: What it predicts.
        temperature: Its logits are divided by it.
    """

    def __init__(self, model: Any, tokenizer: Any, task: Task, temperature: float = 1.0) -> None:
        self.model, self.tokenizer, self.task, self.temperature = model, tokenizer, task, temperature

    @classmethod
    def load(
        cls, path: str | Path, *, trust_code: bool = False, merged: bool = False, calibrated: bool = False
    ) -> Predictor:
        """Loads a run directory, the ``model/`` folder of one, or a folder that ``export`` wrote.

        Args:
            path: It.
            trust_code: Whether Python code that the run brings or names may run.
            merged: Whether an adapter becomes part of its base, a quantised one dequantised first.
            calibrated: Whether the run's temperature divides the logits.

        Raises:
            RunError: no run, an unfinished one, one whose code is not trusted, or its weights do not load;
                no temperature was fitted.
        """
        folder = model_folder(path)
        task, record = saved_task(folder, trust_code=trust_code), read_record(folder)
        trust.refuse_pickles(folder)
        heat = temperature.load(folder) if calibrated else 1.0
        tokenizer = _processor(folder, task, record["model"].get("trust_remote_code", False))
        if exported.is_exported(folder):
            trusted = bool(record["model"].get("trust_remote_code"))
            return cls(exported.load(folder, task.auto_class, trust_code=trusted), tokenizer, task, heat)
        model = _model.load_saved(
            folder,
            auto_class=task.auto_class,
            source=_of_record(lambda: ModelSource(**record["model"]), folder),
            updates=_with_int_keys(record["config"]),
            pad_token_id=getattr(tokenizer, "pad_token_id", None),  # an image processor has none
            quantization=record["quantization"],
            merged=merged,
        )
        return cls(model, tokenizer, task, heat)

    def write_with(self, settings: dict[str, Any], seed: int | None = None) -> None:
        """Changes how the model writes its answers.

        Args:
            settings: Of ``GenerationConfig``, in place of the run's.
            seed: Of what is drawn from now on, by any model in this process.

        Raises:
            RunError: the task writes no text, or nothing is drawn that a seed could change.
        """
        if not settings and seed is None:
            return
        if not self.task.takes_settings:
            raise RunError(
                f"the run's task is {registered_name(type(self.task))}, whose model writes no text: tokens, "
                "temperature, sampling and seed have no effect",
                allowed="runs of the tasks chat, generation, preference, clm and seq2seq",
                hint=CALIBRATION if self.task.problem in temperature.PROBLEMS else None,
            )
        self.task = self.task.with_settings(settings)
        if seed is None:
            return
        if not self.task.writing(self.tokenizer).settings.get("do_sample"):
            raise RunError(
                "a seed has no effect: the likeliest token is taken, none is drawn",
                hint="sample, or leave the seed out",
            )
        set_seed(seed)

    def asked_about(self, questions: Sequence[str], context: str) -> list[tuple[str, str]]:
        """Returns questions as ``predict`` takes them, each with the text that it is about.

        Args:
            questions: Texts.
            context: A text, or the name of a UTF-8 file that holds it.

        Raises:
            RunError: the task is no question answering, or the file cannot be read.
        """
        if self.task.problem != "answers":
            raise RunError(
                f"the run's task is {registered_name(type(self.task))}, which takes no context",
                allowed="runs of the task question_answering",
            )
        return [(question, _text_of(context)) for question in questions]

    def predict(self, rows: Sequence[Any] | Dataset, *, batch_size: int = 32) -> list[dict]:
        """Answers bare inputs, rows or a data set; one dict a row, in order.

        Args:
            rows: Inputs as the task takes them (texts; texts or lists of words; image files, arrays or
                Pillow images), dicts with the task's columns, or a ``Dataset``.
            batch_size: Rows a forward.

        Raises:
            DataError: a row lacks the task's columns, or is no such input.
        """
        if isinstance(rows, str):
            raise DataError("one text was given where a list of texts is taken", hint=f"[{rows[:40]!r}]")
        if len(rows) == 0:
            return []
        data = self._dataset(rows)
        if self.task.judges_model:
            return self.task.answer(self.model, data, self.tokenizer)
        logits, _ = self.logits(data, labeled=False, batch_size=batch_size)
        return self.task.answers(data, logits, self.model.config)

    def logits(
        self, data: Dataset, *, labeled: bool, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns logits of shape (rows, outputs) in float32, and the labels or None.

        Where rows have several outputs, such as words, both are padded to the longest with −100.
        """
        features, _ = self.task.encode(data, self.tokenizer, self.model.config, labeled=labeled)
        return self.feature_logits(features, labeled=labeled, batch_size=batch_size)

    def feature_logits(
        self, features: Any, *, labeled: bool, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As ``logits``, of rows that are features already."""
        order = np.argsort(-self.task.lengths(features), kind="stable")
        collate = self.task.collator(self.tokenizer)
        answers: list[Any] = [None] * len(features)
        labels: list[Any] = [None] * len(features)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = [int(i) for i in order[start : start + batch_size]]
                batch = dict(collate([features[i] for i in chosen]))
                inputs = {k: v.to(self.model.device) for k, v in model_inputs(self.model, batch).items()}
                logits = self.model(**inputs).logits.float().cpu().numpy()
                found = self.task.outcomes(logits, {key: value.numpy() for key, value in batch.items()})
                for i, place in enumerate(chosen):
                    answers[place] = found[0][i]
                    labels[place] = found[1][i] if labeled else None
        found = stacked(answers)
        if self.temperature != 1.0:
            found = temperature.divided(found, self.temperature)
        return found, stacked(labels) if labeled else None

    def judge(self, data: Dataset) -> dict[str, Any]:
        """Returns the full metrics on labeled rows.

        Raises:
            DataError: rows that cannot be used.
        """
        if not self.task.judges_model:
            logits, labels = self.logits(data, labeled=True)
            return self.task.judge(logits, labels, self.model.config)
        features, _ = self.task.encode(data, self.tokenizer, self.model.config, labeled=True)
        return self.task.judge_model(self.model, features, data, self.tokenizer).metrics

    def _dataset(self, rows: Any) -> Dataset:
        if isinstance(rows, Dataset):
            return rows
        rows = list(rows)
        if not isinstance(rows[0], dict):
            return self.task.read_inputs(rows)
        odd = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
        if odd is not None:
            raise DataError(
                f"{rows[odd]!r} is no row",
                where=f"row {odd}",
                allowed="only bare inputs, or only dicts with the task's columns",
            )
        return Dataset.from_list(rows)


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns arrays as one, (rows, …); of different lengths, padded behind with −100 as the Trainer pads."""
    if len({np.shape(row) for row in rows}) == 1:
        return np.stack(rows)
    made = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), PADDING, dtype=rows[0].dtype)
    for padded, row in zip(made, rows, strict=True):
        padded[: len(row)] = row
    return made


def saved_task(path: str | Path, *, trust_code: bool = False) -> Task:
    """Returns the task of a finished run, without its model.

    Args:
        path: A run directory, or its ``model/``.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, or code that is not trusted or cannot be imported.
    """
    folder = model_folder(path)
    record = read_record(folder)
    trust.check_run(record, folder.parent / RECIPE, trust_code=trust_code)
    fields = dict(record["task"])
    task = TASKS.get(fields.pop("name"))
    return _of_record(lambda: task(**fields), folder)


def check_writes(task: Task, what: str) -> None:
    """Refuses tasks whose model writes no text.

    Args:
        task: Of a run.
        what: Is asked of it, for the message.

    Raises:
        RunError: it writes none.
    """
    if not task.writes:
        does = "reads a source and writes a target: it" if task.takes_settings else "writes no text: it"
        raise RunError(
            f"the run's task is {registered_name(type(task))}, whose model {does} cannot {what}",
            allowed="runs of the tasks chat, generation, preference and clm",
        )


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
    record = without_home(record)
    _name_base(folder / "adapter_config.json", record["model"].get("name"))
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _name_base(adapter: Path, name: str | None) -> None:
    """Calls an adapter's base what the recipe calls it, where peft has written a path of this user's only."""
    if not adapter.is_file() or name is None:
        return
    values = json.loads(adapter.read_text(encoding="utf-8"))
    path = values.get("base_model_name_or_path")
    if name.startswith(("~", LOCAL)) and path != name:
        values["base_model_name_or_path"] = name
        adapter.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _text_of(given: str) -> str:
    """A file's content where there is such a file, else the text itself."""
    try:
        return Path(given).read_text(encoding="utf-8") if Path(given).is_file() else given
    except (OSError, ValueError) as error:  # too long for a name, or no UTF-8
        if isinstance(error, UnicodeDecodeError):
            raise RunError("the context is no UTF-8 text", where=given, hint="convert the file") from error
        return given


def _of_record(make: Callable[[], Any], folder: Path) -> Any:
    try:
        return make()
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise RunError(f"{RECORD} says what cannot be: {error}", where=str(folder)) from error


def read_record(folder: Path) -> dict[str, Any]:
    """Returns what ``save_record`` wrote.

    Raises:
        RunError: it is damaged.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        parts = [record[key] for key in ("task", "config", "model")]
        if all(isinstance(part, dict) for part in parts) and isinstance(record["task"]["name"], str):
            return {"quantization": None, **record}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise RunError(f"{RECORD} is damaged, or of something else", where=str(folder), hint="copy the run again")


def _processor(folder: Path, task: Task, trust_code: bool) -> Any:
    if task.processor == "tokenizer":
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_code)
    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust_code)


def _with_int_keys(config: dict[str, Any]) -> dict[str, Any]:
    """JSON makes the keys of ``id2label`` text."""
    if "id2label" in config:
        config = {**config, "id2label": {int(i): name for i, name in config["id2label"].items()}}
    return config
