"""Is 8x1 the same step as 1x8 on this very model, and does every trainable tensor get a gradient?"""

from __future__ import annotations

import math
from typing import Any

import torch

from hf_llm_recipes.checking import probe
from hf_llm_recipes.checking.base import FAILURES, Finding, Report, named
from hf_llm_recipes.checking.probe import Gradient, Probe
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.methods.grpo import GRPO
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.objectives.contrastive import Contrastive
from hf_llm_recipes.tuning._packed_check import rows_rounded_apart

# Of two gradients' difference, as a share: what another order of sums may do to them.
TOLERANCE = {"float32": 1e-3, "half": 0.05, "int8": 0.15}


def look(subject: Subject, made: Probe, report: Report) -> list[Finding]:
    """Adds the comparison to the report; returns what is wrong with the gradient.

    GRPO has no loss of rows; the negatives of contrastive learning are those of one forward.
    """
    if isinstance(subject.plan.method, GRPO):
        return []
    try:
        with rows_rounded_apart(made.trainer.model):
            whole = probe.gradient(made, made.rows)
            one_by_one = None
            if not isinstance(subject.task, Contrastive):
                one_by_one = probe.gradient(made, 1)
    except FAILURES as error:
        return [failed(error, made.rows)]
    found = unusable(whole) + dead(whole)
    if isinstance(subject.task, Contrastive):
        return found + lonely(made.trainer.args.per_device_train_batch_size)
    if not found or found[0].level != "error":
        kind = subject._arithmetic()
        apart = probe.difference(whole, one_by_one)
        report.model["batch_split"] = {
            "rows": made.rows,
            "losses": [whole.loss, one_by_one.loss],
            "gradient_difference": apart,
            "tolerance": TOLERANCE[kind],
            "packed": _packs(made.trainer, subject),
            "own_method": made.own,
        }
        unpacked = "none" if isinstance(subject.task, Objective) else "false"
        packed = _packs(made.trainer, subject)
        found += split_matters(apart, TOLERANCE[kind], made.rows, packed=packed, unpacked=unpacked)
    return found


def failed(error: BaseException, rows: int) -> Finding:
    """Returns the finding of a step that did not get through."""
    said = str(error).strip().splitlines()
    return Finding(
        "error",
        "gradients",
        f"a training step on {rows} rows fails: {type(error).__name__}: {said[0] if said else ''}",
        "model",
        "tokenizer and model must belong together; where memory is short, lower "
        "`trainer.per_device_train_batch_size` or `task.max_length`",
    )


def unusable(found: Gradient) -> list[Finding]:
    """Returns an error where the loss is no number, or exactly zero."""
    if math.isfinite(found.loss) and found.loss != 0:
        return []
    what = "exactly zero" if found.loss == 0 else f"{found.loss}"
    return [
        Finding(
            "error",
            "gradients",
            f"the loss of the first rows is {what}",
            "model",
            "look whether any token carries loss (the samples show it), and whether the weights are finite",
        )
    ]


def dead(found: Gradient) -> list[Finding]:
    """Returns trainable tensors that get no gradient."""
    names = [name for name, g in found.of.items() if g is None or not bool(torch.any(g))]
    if not names:
        return []
    adapted = [name for name in names if "lora_" in name or "modules_to_save" in name]
    total = len(found.of)
    level = "error" if len(names) == total else "warning" if adapted else "info"
    return [
        Finding(
            level,
            "gradients",
            f"{len(names)} of {total} trainable tensors get no gradient: {named(_groups(names))}",
            "tuning",
            "name only modules that the task's output hangs on (`tuning.target_modules`, "
            "`tuning.modules_to_save`)"
            if adapted
            else "nothing: the task does not use them, and they stay as they are",
        )
    ]


def lonely(batch_size: int) -> list[Finding]:
    """Returns an error where contrastive learning has no other row to tell a row from."""
    if batch_size > 1:
        return []
    return [
        Finding(
            "error",
            "gradients",
            "a batch has one row: there is none to tell it from, and the loss is zero",
            "trainer.per_device_train_batch_size",
            "set 16 or more; accumulation does not help, the others must be in the same forward",
        )
    ]


def split_matters(
    apart: float, tolerance: float, rows: int, *, packed: bool, unpacked: str = "false"
) -> list[Finding]:
    """Returns an error where the cut into batches changes the step.

    Args:
        apart: Difference of the gradients, as a share.
        tolerance: The most that may be.
        rows: Of the step.
        packed: Whether they are laid end to end.
        unpacked: The value of `task.packing` with which they are not.
    """
    if apart <= tolerance:
        return []
    what = "packed end to end" if packed else "in one batch"
    return [
        Finding(
            "error",
            "gradients",
            f"{rows} rows {what} and one at a time give gradients that differ by {100 * apart:.2g} % "
            f"(allowed: {100 * tolerance:g} %): the result hangs on how a step is cut into batches",
            "model",
            f"set `task.packing: {unpacked}`; if it stays, take a batch that fits in one piece "
            "(`trainer.gradient_accumulation_steps: 1`), and report this model"
            if packed
            else "take a batch that fits in one piece (`trainer.gradient_accumulation_steps: 1`), and report "
            "this model",
        )
    ]


def _packs(trainer: Any, subject: Subject) -> bool:
    features = [trainer.train_dataset[i] for i in range(2)] if len(trainer.train_dataset) > 1 else []
    if not features or subject.prepared.collator is None or not subject.task.vocabulary_labels:
        return False
    return "position_ids" in subject.prepared.collator(features)


def _groups(names: list[str]) -> list[str]:
    """Names without the parts that only number or name layers' copies."""
    return list(dict.fromkeys(".".join(p for p in name.split(".") if not p.isdigit()) for name in names))
