"""ONNX with 8-bit weights; the inputs of its layers are rounded to 8 bits as they come (dynamic)."""

from __future__ import annotations

from typing import Any, ClassVar

from hf_llm_recipes.exporting.onnx import Onnx
from hf_llm_recipes.registry import TARGETS


@TARGETS.register
class OnnxInt8(Onnx):
    """A quarter of the float32 graph's size; needs no calibration rows."""

    rounded: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.1
    rows: ClassVar[int] = 64  # one changed answer of 16 would be 6 %
    memory: ClassVar[int] = 28
    disk: ClassVar[int] = 4

    def _quantizer(self) -> Any:
        from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

        # 7 bits: with 8, processors without VNNI (AVX2) may overflow 16-bit sums and answer otherwise.
        # One scale a channel: with one a tensor the errors of `classify/lora` are four times as large.
        return OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True))
