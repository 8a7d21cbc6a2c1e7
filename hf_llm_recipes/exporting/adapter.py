"""The adapter alone: its weights and head, tokenizer and card; the base is named, not copied."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, ClassVar

from hf_llm_recipes.card import CardInfo
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.exporting.base import Job, Target
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import TARGETS


@TARGETS.register
class Adapter(Target):
    """What ``PeftModel`` and ``AutoPeftModel…`` load."""

    disk: ClassVar[int] = 0

    def check(self, job: Job) -> None:
        """Only runs with an adapter."""
        super().check(job)
        if not job.has_adapter:
            raise RunError(
                "the run's model is whole: it has no adapter to export",
                where=str(job.folder),
                allowed="runs with tuning: lora, dora, …",
            )

    def disk_bytes(self, job: Job, weights: int) -> int:
        """The size of the run's own files."""
        return sum(file.stat().st_size for file in job.folder.iterdir() if file.is_file())

    def write(self, job: Job, rows: Any, folder: Path) -> None:
        """Copies the run's files."""
        for file in sorted(job.folder.iterdir()):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)

    def card(self, job: Job, info: CardInfo, made: Predictor) -> CardInfo:
        """As the run's, which names the base."""
        return dataclasses.replace(info, weights_format="peft")
