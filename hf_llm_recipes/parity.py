"""The parity gate: a model that was made of a run's may stay only where it answers as the run's does.

Notable:
- It looks at the model as it lies on the disk: loaded again, on real rows, logits and texts written greedily.
- A model of the same arithmetic is held to its largest difference. One with rounded weights (int8) differs
  everywhere a little: it is held to the size of its errors and to how many answers they change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset

from hf_llm_recipes import rundir
from hf_llm_recipes.assessing import temperature
from hf_llm_recipes.card import CardInfo, info_of_run
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.judging import file_rows, test_rows
from hf_llm_recipes.predictor import PADDING, Predictor, read_record, save_record
from hf_llm_recipes.rundir import RunDirectory, full_disk_told, writing
from hf_llm_recipes.tuning._model import ModelSource, load_config

PARITY = "parity.json"
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}  # of logits, in standard deviations
INT8_TOLERANCE = 0.2  # a run's 8-bit layers round their inputs too, which no other model repeats
WRITTEN_ROWS, WRITTEN_TOKENS = 2, 32  # texts written greedily by both, and how long at most


@dataclass(frozen=True)
class Parity:
    """How alike two models answer.

    Args:
        rows: That both were given.
        logits_max_difference: The largest of any logit.
        in_standard_deviations: The same, over the standard deviation of the run's logits.
        tolerance: What that may be; with ``rounded``, what ``rms_in_standard_deviations`` and the share of
            changed answers may be, each.
        same_answer: Share of the rows (of a language or tagging model: of the tokens) with the same
            likeliest class.
        texts: Texts written greedily by both.
        same_texts: How many of them are equal.
        rms_in_standard_deviations: The root mean square of all differences, over the same.
        rounded: Whether the weights were rounded to fewer bits.
    """

    rows: int
    logits_max_difference: float
    in_standard_deviations: float
    tolerance: float
    same_answer: float
    texts: int = 0
    same_texts: int = 0
    rms_in_standard_deviations: float = 0.0
    rounded: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance; False where a logit is no number."""
        if self.rounded:
            return max(self.rms_in_standard_deviations, 1 - self.same_answer) <= self.tolerance
        return self.in_standard_deviations <= self.tolerance

    def sentence(self) -> str:
        """All of it in words."""
        texts = f"; {self.same_texts} of {self.texts} texts written greedily are equal" if self.texts else ""
        same = f"{100 * self.same_answer:.1f} % of the likeliest answers are the same"
        if self.rounded:
            return (
                f"on {self.rows} rows its logits differ from those of the run by "
                f"{self.rms_in_standard_deviations:.2g} of their standard deviation (root mean square; "
                f"{self.tolerance:.2g} allowed), at most by {self.logits_max_difference:.2g}, and {same} "
                f"({100 * (1 - self.tolerance):.3g} % asked for){texts}"
            )
        return (
            f"on {self.rows} rows its logits differ from those of the run by at most "
            f"{self.logits_max_difference:.2g} ({self.in_standard_deviations:.2g} of their standard "
            f"deviation, {self.tolerance:.2g} allowed) and {same}{texts}"
        )


@dataclass(frozen=True)
class Asked:
    """What a run's model answered.

    Args:
        directory: Of the run.
        rows: That it was given.
        answers: Logits, and texts written greedily.
        noise: What the arithmetic of the run's own model makes of its logits, in their standard deviations.
    """

    directory: Path
    rows: Dataset
    answers: tuple[np.ndarray, list[str]]
    noise: float


def ask(directory: str | Path, rows: int, data: str | Path | None, *, trust_code: bool) -> Asked:
    """Returns what a run's model answers to rows of its test split, or of a file.

    Args:
        directory: A finished run.
        rows: At most, ≥ 1.
        data: A file with the columns of the run's data, in place of its test split.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run.
        DataError: rows that cannot be used.
    """
    run = RunDirectory.existing(directory)
    predictor = Predictor.load(directory, trust_code=trust_code)
    given = test_rows(run.recipe(), predictor) if data is None else file_rows(run.recipe(), data)
    given = given.select(range(min(rows, len(given))))
    int8 = getattr(predictor.model, "is_loaded_in_8bit", False)
    dtype = str(predictor.model.dtype).removeprefix("torch.")
    noise = INT8_TOLERANCE if int8 else TOLERANCE.get(dtype, TOLERANCE["float32"])
    return Asked(run.path, given, answers(predictor, given), noise)


def keep_if_alike(
    asked: Asked,
    out: Path,
    *,
    what: str,
    write: Callable[[Path], None],
    load: Callable[[Path], Predictor],
    card: Callable[[Predictor, Parity], str],
    tolerance: float,
    rounded: bool = False,
    hint: str,
) -> Parity:
    """Writes a model to the side, asks it the same rows, and gives it its name where it answers alike.

    Args:
        asked: Of the run.
        out: The new folder.
        what: The model is called, e.g. ``"the merged model"``.
        write: Fills a folder.
        load: Of that folder.
        card: The README.md beside it, given the loaded model.
        tolerance: See ``Parity``.
        rounded: See ``Parity``.
        hint: What to do where it does not.

    Raises:
        RunError: other answers than the run's (nothing is kept), or a place that cannot be written to.
    """
    with writing(out, "name another folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
    advice = "free some space, or name a folder on another disk"
    with full_disk_told(out, advice), RunDirectory(out.parent).replacing(out.name) as side:
        write(side)
        made = load(side)
        found = answers(made, asked.rows)
        parity = compare(asked.answers, found, len(asked.rows), tolerance, rounded=rounded)
        if not parity.holds:
            raise RunError(
                f"{what} gives other answers: {parity.sentence()}",
                where=str(asked.directory),
                hint=f"nothing was kept; {hint}",
            )
        (side / PARITY).write_text(json.dumps(asdict(parity), indent=2) + "\n", encoding="utf-8")
        (side / rundir.CARD).write_text(card(made, parity), encoding="utf-8")
    return parity


def answers(predictor: Predictor, rows: Dataset) -> tuple[np.ndarray, list[str]]:
    """Returns logits of rows, and the texts that the model writes greedily to the first of them."""
    task, logits = predictor.task, logits_of(predictor, rows)
    if not (task.judges_model and task.writes):
        return logits, []
    most = task.writing(predictor.tokenizer).settings.get("max_new_tokens") or WRITTEN_TOKENS
    greedy = task.with_settings({"do_sample": False, "max_new_tokens": min(most, WRITTEN_TOKENS)})
    few = rows.select(range(min(WRITTEN_ROWS, len(rows))))
    return logits, [row["generated"] for row in greedy.answer(predictor.model, few, predictor.tokenizer)]


def logits_of(predictor: Predictor, rows: Dataset) -> np.ndarray:
    """Returns the logits of rows, classes on the last axis; of taggers and language models, of all tokens."""
    task, model = predictor.task, predictor.model
    if not task.judges_model:
        logits = predictor.logits(rows, labeled=False)[0]
        return logits[~(logits == PADDING).all(-1)] if logits.ndim > 2 else logits
    features, _ = task.encode(rows, predictor.tokenizer, model.config, labeled=True)
    few = features.select(range(min(len(features), len(rows))))
    return np.asarray(task.probe(model, few, predictor.tokenizer))


def compare(
    wanted: tuple[np.ndarray, list[str]],
    found: tuple[np.ndarray, list[str]],
    rows: int,
    tolerance: float,
    *,
    rounded: bool = False,
) -> Parity:
    """Returns how alike two models' answers are.

    Args:
        wanted: Logits, classes on the last axis, and texts.
        found: Those of the other model, of the same shape.
        rows: That they are of.
        tolerance: In standard deviations of the wanted logits.
        rounded: See ``Parity``.
    """
    (ours, our_texts), (theirs, their_texts) = wanted, found
    differences = ours.astype(np.float64) - theirs
    largest = float(np.abs(differences).max())
    spread = float(ours.astype(np.float64).std()) or 1.0
    one_output = ours.ndim < 2 or ours.shape[-1] == 1
    same = np.isclose(ours, theirs, rtol=1e-2) if one_output else ours.argmax(-1) == theirs.argmax(-1)
    return Parity(
        rows=rows,
        logits_max_difference=largest,
        in_standard_deviations=largest / spread,
        tolerance=tolerance,
        same_answer=float(same.mean()),
        texts=len(our_texts),
        same_texts=sum(a == b for a, b in zip(our_texts, their_texts, strict=True)),
        rms_in_standard_deviations=float(np.sqrt((differences**2).mean())) / spread,
        rounded=rounded,
    )


def saved_config(folder: Path) -> Any:
    """Returns the configuration of a run's model, or of its adapter's base; nothing is loaded.

    Args:
        folder: The run's ``model/``.

    Raises:
        RunError: the base of an adapter is gone.
    """
    model = read_record(folder)["model"]
    if (folder / "adapter_config.json").is_file():
        try:
            return load_config(ModelSource(**model), {})
        except RunError as error:
            raise RunError(
                f"the base of the run's adapter cannot be found: {error.what}",
                where=str(folder),
                allowed=error.allowed,
                hint=f"put it back where the run found it: {model.get('name')}",
            ) from error
    trusted = bool(model.get("trust_remote_code"))
    return load_config(ModelSource(name=str(folder), trust_remote_code=trusted), {})


def count_weights(folder: Path, auto_class: str) -> int:
    """Returns how many weights a run's model has, its base included; nothing is loaded.

    Args:
        folder: The run's ``model/``, of trusted code.
        auto_class: Of its task.

    Raises:
        RunError: the base of an adapter is gone.
    """
    config = saved_config(folder)
    remote = bool(getattr(config, "auto_map", None))
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(config, trust_remote_code=remote)
    return sum(parameter.numel() for parameter in model.parameters())


def need_memory(needed: int, what: str) -> None:
    """Checks the free memory before a model is loaded.

    Args:
        needed: Bytes.
        what: Needs them.

    Raises:
        RunError: less is free.
    """
    free = free_memory()
    if free < needed:
        raise RunError(
            f"{what} needs about {needed / 2**30:.2f} GiB of memory, {free / 2**30:.2f} GiB are free",
            hint="end other programs, or do it on a machine with more memory",
        )


def free_memory() -> int:
    """Bytes of memory that a program may still take."""
    import psutil

    return psutil.virtual_memory().available


def card_info(directory: Path, predictor: Predictor) -> CardInfo:
    """Returns what the run's card says, of a model made of it.

    Args:
        directory: Of the run.
        predictor: With that model, a whole one.
    """
    run = RunDirectory(directory)
    record = read_record(run / rundir.MODEL)
    return info_of_run(
        recipe=run.recipe(),
        recipe_text=(run / rundir.RECIPE).read_text(encoding="utf-8"),
        task=predictor.task,
        config=predictor.model.config,
        base_model=ModelSource(**record["model"]).label,
        quantization=record["quantization"],
        is_adapter=False,
        environment=json.loads((run / rundir.ENVIRONMENT).read_text(encoding="utf-8")),
        metrics=run.metrics(),
        processor=predictor.tokenizer,
    )


def carry_record(source: Path, folder: Path) -> None:
    """Writes what a loader must know beside a model that was made of a run's, a whole and unquantised one.

    Args:
        source: The run's ``model/``.
        folder: Of the new model.
    """
    record = read_record(source)
    save_record(
        folder, task=record["task"], config=record["config"], model=record["model"], quantization=None
    )
    if (source / temperature.FILE).is_file():
        shutil.copyfile(source / temperature.FILE, folder / temperature.FILE)
