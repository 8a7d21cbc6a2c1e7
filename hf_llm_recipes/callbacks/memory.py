"""The peak memory of the process, on the host and on the GPU, while it trains."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import ExportableState

from hf_llm_recipes.callbacks._figures import Figures
from hf_llm_recipes.registry import CALLBACKS
from hf_llm_recipes.rundir import peak_memory_gib


@CALLBACKS.register
class Memory(Figures, ExportableState):
    """Adds ``memory/host_peak_gib`` and, on a GPU, ``memory/gpu_peak_gib`` to each log of the training loss.

    The host's is that of resident memory since the process began, loading the model included; the GPU's
    that of tensors. A resumed training goes on with the larger of both processes'.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """The peaks, for the checkpoint."""
        return {"args": {}, "attributes": {"peaks": self.peaks}}

    def figures(self, args, state, logs):
        """The peaks until now."""
        for name, value in peak_memory_gib().items():
            self.peaks[name] = max(value, self.peaks.get(name, 0.0))
        return {f"memory/{name}_peak_gib": value for name, value in self.peaks.items()}
