"""ONNX: one float32 graph with its weights beside it, for onnxruntime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from hf_llm_recipes.card import CardInfo
from hf_llm_recipes.exporting import _program, _usage
from hf_llm_recipes.exporting.base import Job, Target
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import TARGETS


@TARGETS.register
class Onnx(Target):
    """The model's forward without a cache, rows and tokens of any number."""

    needs: ClassVar = (("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx"))
    auto_classes: ClassVar = _program.CLASSES
    memory: ClassVar[int] = 16
    disk: ClassVar[int] = 8

    def write(self, job: Job, rows: Any, folder: Path) -> None:
        """Traces, translates and saves."""
        from transformers.exporters import OnnxConfig, OnnxExporter

        made = job.merged()
        inputs = _program.example_inputs(job, made, rows, count=_program.ROWS)
        config = OnnxConfig(
            dynamic=True,
            dynamic_shapes=_program.free_sizes(inputs, _program.longest_row(made), rows=True),
            prefer_deferred_runtime_asserts_over_guards=True,
            quantizer=self._quantizer(),
        )
        with _program.quiet():
            exporter = OnnxExporter()
        _program.save_program(job, made, exporter, inputs, config, folder)

    def _quantizer(self) -> Any:
        return None

    def card(self, job: Job, info: CardInfo, made: Predictor) -> CardInfo:
        """With code for onnxruntime."""
        code = _usage.onnx_code(
            info,
            job.name,
            _usage.stop_ids(job.task, made.tokenizer),
            _usage.channels(job.task, made.model.config),
        )
        return dataclasses.replace(info, weights_format="onnx", usage=("onnxruntime transformers", code))
