"""Rows whose masks are made once: what a model is judged by must be the same for every model.

Shapes: T tokens of a row.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from hf_llm_recipes.tasks._masking import TokenMasker, generator_of

SEED = 0  # of the masks of eval and test, whatever the run's


def masked_rows(rows: Dataset, masker: TokenMasker) -> Dataset:
    """Returns rows with hidden tokens in ``input_ids`` and what they were in ``labels``."""
    made: dict[str, list] = {"input_ids": [], "labels": []}
    for number, ids in enumerate(rows["input_ids"]):
        hidden_T, labels_T = masker(torch.tensor(ids), generator_of(SEED, number))
        made["input_ids"].append(hidden_T.tolist())
        made["labels"].append(labels_T.tolist())
    others = {name: rows[name][:] for name in rows.column_names if name not in made}
    return Dataset.from_dict({**made, **others})


def masked_row(row: dict[str, Any], masker: TokenMasker) -> dict[str, Any]:
    """Returns a row of ``Draws`` with hidden tokens and labels; one that has labels as it is."""
    if row.get("labels") is not None:
        return row
    hidden_T, labels_T = masker(torch.as_tensor(row["input_ids"]), generator_of(*row["draw"]))
    return {**row, "input_ids": hidden_T.tolist(), "labels": labels_T.tolist()}
