"""A model -> one traced program, by ``transformers.exporters``, with all that is needed to ask it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hf_llm_recipes.errors import RunError
from hf_llm_recipes.exporting.base import Job
from hf_llm_recipes.methods._forward import model_inputs
from hf_llm_recipes.parity import carry_record
from hf_llm_recipes.predictor import Predictor

CLASSES = (
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
)
ROWS, TOKENS = 2, 8  # of the example that is traced: torch.export takes a size of 1 for fixed
MOST_ROWS, MOST_TOKENS = 4096, 32_768  # that a program takes, where nothing else bounds it


def example_inputs(job: Job, made: Predictor, rows: Any, *, count: int) -> dict[str, torch.Tensor]:
    """Returns inputs to trace a model with: the names that its task gives it, some padding, short rows.

    Args:
        job: What is exported.
        made: The model.
        rows: Of the run's data.
        count: Rows of the example.
    """
    if job.task.processor == "tokenizer":
        ids = torch.arange(count * TOKENS).view(count, TOKENS) % (
            made.model.config.get_text_config().vocab_size
        )
        mask = torch.ones_like(ids)
        mask[-1, TOKENS // 2 :] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        if not job.task.judges_model and "token_type_ids" in made.tokenizer.model_input_names:
            given["token_type_ids"] = torch.zeros_like(ids)
        return model_inputs(made.model, given)
    features, _ = job.task.encode(rows.select([0] * count), made.tokenizer, made.model.config, labeled=False)
    batch = dict(job.task.collator(made.tokenizer)([features[i] for i in range(count)]))
    return model_inputs(made.model, batch)


def free_sizes(inputs: dict[str, torch.Tensor], longest: int, *, rows: bool) -> dict[str, Any]:
    """Returns which sizes of the inputs may change, for ``torch.export``.

    Args:
        inputs: Of the example.
        longest: Row of tokens.
        rows: Whether the number of rows may.
    """
    batch = {0: torch.export.Dim("batch", min=1, max=MOST_ROWS)} if rows else {}
    sequence = {1: torch.export.Dim("sequence", min=1, max=longest)}
    return {
        name: {**batch, **(sequence if value.dim() == 2 else {})} or None for name, value in inputs.items()
    }


def longest_row(made: Predictor) -> int:
    """Returns how many tokens a row may have."""
    config = made.model.config
    positions = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
    limit = getattr(made.tokenizer, "model_max_length", None) or MOST_TOKENS
    pad = getattr(config, "pad_token_id", None) or 0
    behind_padding = pad + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(min(positions - behind_padding, limit, MOST_TOKENS))


def save_program(job: Job, made: Predictor, exporter: Any, inputs: Any, config: Any, folder: Path) -> None:
    """Traces a model, and writes the program, the processor and what ``Predictor.load`` reads.

    Args:
        job: What is exported.
        made: The model.
        exporter: Of ``transformers.exporters``.
        inputs: Of the example.
        config: Of the exporter.
        folder: Where to.

    Raises:
        RunError: this architecture cannot be traced.
    """
    model = made.model
    if getattr(model.config, "use_cache", None):
        model.config.use_cache = False
    if model.config.model_type.startswith("hlr_"):
        vars(model.config).pop("auto_map", None)  # its code is not in the folder: none is needed
    try:
        with quiet():
            exporter.export(model, dict(inputs), config).save_pretrained(folder)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RunError(
            f"a {model.config.model_type} model could not be exported: {type(error).__name__}: "
            f"{(str(error).strip() or 'no message').splitlines()[0]}",
            where=str(job.directory),
            hint="merge it and use it with transformers, or tell the exporter's authors",
        ) from error
    made.tokenizer.save_pretrained(folder)
    carry_record(job.folder, folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of the exporters' progress and advice to developers; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
