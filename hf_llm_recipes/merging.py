"""An adapter and its base -> one plain model, whose answers are compared with the run's before it may stay.

Notable:
- A quantised base is dequantised first, so that the weights merged into are the ones the adapter was
  trained on. Merging into 4-bit weights would round them anew, merging into the published ones would
  meet other weights than in training.
- The parity gate looks at the model as it lies on the disk: loaded again, on real rows.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from hf_llm_recipes import rundir
from hf_llm_recipes.card import info_of_run, model_card
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.judging import file_rows, test_rows
from hf_llm_recipes.models.base import carry_code
from hf_llm_recipes.predictor import Predictor, read_record, save_record
from hf_llm_recipes.rundir import RunDirectory, full_disk_told, need_space, writing
from hf_llm_recipes.tuning._model import ModelSource

log = logging.getLogger("hf_llm_recipes")

MERGED, PARITY = "merged", "parity.json"
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}  # of logits, in standard deviations
INT8_TOLERANCE = 0.2  # 8-bit layers round their inputs too, which no merged model repeats
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WRITTEN_ROWS = 2  # texts written greedily by both


@dataclass(frozen=True)
class Parity:
    """How alike two models answer.

    Args:
        rows: That both were given.
        logits_max_difference: The largest of any logit.
        in_standard_deviations: The same, over the standard deviation of the run's logits.
        tolerance: What that may be.
        same_answer: Share of the rows (of a language model: of the tokens) with the same likeliest class.
        texts: Texts written greedily by both.
        same_texts: How many of them are equal.
    """

    rows: int
    logits_max_difference: float
    in_standard_deviations: float
    tolerance: float
    same_answer: float
    texts: int = 0
    same_texts: int = 0

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance; False where a logit is no number."""
        return self.in_standard_deviations <= self.tolerance

    def sentence(self) -> str:
        """All of it in words."""
        texts = f"; {self.same_texts} of {self.texts} texts written greedily are equal" if self.texts else ""
        return (
            f"on {self.rows} rows its logits differ from those of the run by at most "
            f"{self.logits_max_difference:.2g} ({self.in_standard_deviations:.2g} of their standard "
            f"deviation, {self.tolerance:.2g} allowed) and {100 * self.same_answer:.1f} % of the likeliest "
            f"answers are the same{texts}"
        )


def merge(
    directory: str | Path,
    out: str | Path | None = None,
    *,
    dtype: str = "float32",
    rows: int = 16,
    data: str | Path | None = None,
    trust_code: bool = False,
) -> tuple[Path, Parity]:
    """Merges a run's adapter into its base; returns the new folder, and how alike both answer.

    Args:
        directory: A finished run.
        out: A new folder; None: ``merged`` in the run.
        dtype: Of the saved weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        rows: Of the test split (or of ``data``) that both models answer, ≥ 1.
        data: A file with the columns of the run's data, in place of its test split.
        trust_code: Whether Python code that the run brings or names may run.

    Raises:
        RunError: no finished run, nothing to merge, too little space, or other answers than the run's.
        DataError: rows that cannot be used.
    """
    if dtype not in DTYPES:
        raise RunError(f"dtype is {dtype!r}", allowed=", ".join(DTYPES))
    if rows < 1:
        raise RunError(f"rows is {rows}", allowed="1 or more")
    run = RunDirectory.existing(directory)
    out = run / MERGED if out is None else Path(out)
    if out.exists():
        raise RunError("exists already; nothing was changed", where=str(out), hint="name another folder")
    source = rundir.model_folder(directory)
    _check_mergeable(source)
    theirs = Predictor.load(directory, trust_code=trust_code)
    given = test_rows(run.recipe(), theirs) if data is None else file_rows(run.recipe(), data)
    given = given.select(range(min(rows, len(given))))
    count = sum(parameter.numel() for parameter in theirs.model.parameters())
    need_space(out, 2 * count * BYTES[dtype], "the merged model and its twin beside it")  # 4-bit: 2 a byte
    log.info(f"the run's model answers {len(given)} rows")
    wanted = answers(theirs, given)
    int8 = getattr(theirs.model, "is_loaded_in_8bit", False)
    del theirs
    with writing(out, "name another folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
    advice = "free some space, or name a folder on another disk"
    with full_disk_told(out, advice), RunDirectory(out.parent).replacing(out.name) as side:
        _save_merged(directory, side, dtype, trust_code)
        log.info("the merged model, loaded again, answers them")
        tolerance = INT8_TOLERANCE if int8 else TOLERANCE[dtype]
        merged = Predictor.load(side, trust_code=trust_code)
        parity = compare(wanted, answers(merged, given), len(given), tolerance)
        if not parity.holds:
            raise RunError(
                f"the merged model gives other answers: {parity.sentence()}",
                where=str(directory),
                hint="nothing was kept; merge with dtype float32, or ship the adapter with its base",
            )
        (side / PARITY).write_text(json.dumps(asdict(parity), indent=2) + "\n", encoding="utf-8")
        card = f"{_card(run, merged)}\n## Parity\n\nMerged as {dtype}: {parity.sentence()}.\n"
        (side / rundir.CARD).write_text(card, encoding="utf-8")
    return out, parity


def answers(predictor: Predictor, rows: Dataset) -> tuple[np.ndarray, list[str]]:
    """Returns logits of rows, and the texts that the model writes greedily to the first of them."""
    task, model = predictor.task, predictor.model
    if not task.judges_model:
        return predictor.logits(rows, labeled=False)[0], []
    features, _ = task.encode(rows, predictor.tokenizer, model.config, labeled=True)
    logits = task.probe(model, features.select(range(min(len(features), len(rows)))), predictor.tokenizer)
    if not task.writes:
        return np.asarray(logits), []
    greedy = task.with_settings({"do_sample": False})
    few = rows.select(range(min(WRITTEN_ROWS, len(rows))))
    return np.asarray(logits), [row["generated"] for row in greedy.answer(model, few, predictor.tokenizer)]


def compare(
    wanted: tuple[np.ndarray, list[str]], found: tuple[np.ndarray, list[str]], rows: int, tolerance: float
) -> Parity:
    """Returns how alike two models' answers are.

    Args:
        wanted: Logits, classes on the last axis, and texts.
        found: Those of the other model, of the same shape.
        rows: That they are of.
        tolerance: In standard deviations of the wanted logits.
    """
    (ours, our_texts), (theirs, their_texts) = wanted, found
    largest = float(np.abs(ours.astype(np.float64) - theirs).max())
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
    )


def _check_mergeable(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() or read_record(folder)["quantization"]:
        return
    raise RunError(
        "there is nothing to merge: the run's model is whole, and not quantised",
        where=str(folder),
        hint="use it as it is",
    )


def _save_merged(directory: str | Path, folder: Path, dtype: str, trust_code: bool) -> None:
    merged = Predictor.load(directory, trust_code=trust_code, merged=True)
    model = merged.model.to(getattr(torch, dtype))
    if getattr(model.config, "model_type", "").startswith("hlr_"):
        carry_code(model)
    model.save_pretrained(folder)
    merged.tokenizer.save_pretrained(folder)
    record = read_record(rundir.model_folder(directory))
    save_record(
        folder, task=record["task"], config=record["config"], model=record["model"], quantization=None
    )


def _card(run: RunDirectory, merged: Predictor) -> str:
    """What the run's card says, of a whole model."""
    record = read_record(run / rundir.MODEL)
    return model_card(
        info_of_run(
            recipe=run.recipe(),
            recipe_text=(run / rundir.RECIPE).read_text(encoding="utf-8"),
            task=merged.task,
            config=merged.model.config,
            base_model=ModelSource(**record["model"]).label,
            quantization=record["quantization"],
            is_adapter=False,
            environment=json.loads((run / rundir.ENVIRONMENT).read_text(encoding="utf-8")),
            metrics=run.metrics(),
        )
    )
