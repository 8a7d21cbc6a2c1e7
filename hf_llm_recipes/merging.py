"""An adapter and its base -> one plain model, whose answers are compared with the run's before it may stay.

Notable:
- A quantised base is dequantised first, so that the weights merged into are the ones the adapter was
  trained on. Merging into 4-bit weights would round them anew, merging into the published ones would
  meet other weights than in training.
- The parity gate looks at the model as it lies on the disk: loaded again, on real rows.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from hf_llm_recipes import rundir
from hf_llm_recipes.card import model_card
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.models.base import carry_code
from hf_llm_recipes.parity import (
    INT8_TOLERANCE,
    TOLERANCE,
    Parity,
    ask,
    card_info,
    carry_record,
    count_weights,
    keep_if_alike,
    need_memory,
)
from hf_llm_recipes.predictor import Predictor, read_record, saved_task
from hf_llm_recipes.rundir import RunDirectory, need_space

log = logging.getLogger("hf_llm_recipes")

MERGED = "merged"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MEMORY = 8  # bytes a weight at the peak: one model in float32, and what its file is read into


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
        RunError: no finished run, nothing to merge, too little space or memory, or other answers than the
            run's.
        DataError: rows that cannot be used.
    """
    if dtype not in BYTES:
        raise RunError(f"dtype is {dtype!r}", allowed=", ".join(BYTES))
    if rows < 1:
        raise RunError(f"rows is {rows}", allowed="1 or more")
    run = RunDirectory.existing(directory)
    out = run / MERGED if out is None else Path(out)
    if out.exists():
        raise RunError("exists already; nothing was changed", where=str(out), hint="name another folder")
    folder = rundir.model_folder(directory)
    _check_mergeable(folder)
    count = count_weights(folder, saved_task(folder, trust_code=trust_code).auto_class)
    need_space(out, 2 * count * BYTES[dtype], "the merged model and its twin beside it")
    need_memory(MEMORY * count, "merging")
    log.info(f"the run's model answers up to {rows} rows; then the merged one, loaded again")
    asked = ask(directory, rows, data, trust_code=trust_code)
    parity = keep_if_alike(
        asked,
        out,
        what="the merged model",
        write=lambda side: _save_merged(directory, side, dtype, trust_code),
        load=lambda side: Predictor.load(side, trust_code=trust_code),
        card=lambda merged, parity: (
            f"{model_card(card_info(asked.directory, merged))}\n"
            f"## Parity\n\nMerged as {dtype}: {parity.sentence()}.\n"
        ),
        tolerance=INT8_TOLERANCE if asked.noise == INT8_TOLERANCE else TOLERANCE[dtype],
        hint="merge with dtype float32, or ship the adapter with its base",
    )
    return out, parity


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
    carry_record(rundir.model_folder(directory), folder)
