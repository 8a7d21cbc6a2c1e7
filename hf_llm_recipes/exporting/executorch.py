"""ExecuTorch: one file for phones and small devices, run by XNNPACK on their CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from hf_llm_recipes.card import CardInfo
from hf_llm_recipes.exporting import _program, _usage
from hf_llm_recipes.exporting.base import Job, Target
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import TARGETS

MOST_TOKENS = 2048  # its memory is planned for the longest row


@TARGETS.register
class Executorch(Target):
    """The model's forward without a cache, one row at a time, any number of tokens that the run allows."""

    needs: ClassVar = (("executorch", "executorch"),)
    auto_classes: ClassVar = _program.CLASSES
    memory: ClassVar[int] = 24
    disk: ClassVar[int] = 8

    def write(self, job: Job, rows: Any, folder: Path) -> None:
        """Traces, lowers and saves."""
        from transformers.exporters import ExecutorchConfig, ExecutorchExporter

        made = job.merged()
        inputs = _program.example_inputs(job, made, rows, count=1)
        sizes = _program.free_sizes(inputs, min(_program.longest_row(made), MOST_TOKENS), rows=False)
        config = ExecutorchConfig(
            dynamic=any(sizes.values()),
            dynamic_shapes=sizes if any(sizes.values()) else None,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        with _program.quiet():
            exporter = ExecutorchExporter()
        _program.save_program(job, made, exporter, inputs, config, folder)

    def card(self, job: Job, info: CardInfo, made: Predictor) -> CardInfo:
        """With code for ExecuTorch's Python runtime."""
        code = _usage.executorch_code(
            info,
            job.name,
            _usage.traced_inputs(job.task, made),
            _usage.stop_ids(job.task, made.tokenizer),
            _usage.channels(job.task, made.model.config),
        )
        return dataclasses.replace(
            info, weights_format="executorch", usage=("executorch torch transformers", code)
        )
