"""The base of an export target: what it takes, what it writes, and how it is to be used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hf_llm_recipes.card import CardInfo
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.exported import require
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import registered_name


@dataclass(frozen=True)
class Job:
    """One export.

    Args:
        directory: The run.
        folder: Its ``model/``.
        task: Of the run.
        dtype: Of the saved weights.
        trust_code: Whether Python code that the run brings or names may run.
        name: Of the new folder.
    """

    directory: Path
    folder: Path
    task: Any
    dtype: str
    trust_code: bool
    name: str

    @property
    def has_adapter(self) -> bool:
        """Whether the run's weights are an adapter's."""
        return (self.folder / "adapter_config.json").is_file()

    def merged(self) -> Predictor:
        """The run's model as a whole, dequantised one, in float32 on the CPU."""
        made = Predictor.load(self.directory, trust_code=self.trust_code, merged=True)
        made.model.float().cpu()
        return made


class Target(ABC):
    """A form that a model is exported to."""

    needs: ClassVar[tuple[tuple[str, str], ...]] = ()  # modules, and the extras that bring them
    auto_classes: ClassVar[tuple[str, ...] | None] = None  # of tasks that it fits; None: all
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    rounded: ClassVar[bool] = False  # to fewer bits than the run's: see `Parity`
    tolerance: ClassVar[float] = 1e-3
    rows: ClassVar[int] = 16  # that the parity gate asks
    memory: ClassVar[int] = 8  # bytes a weight at the peak
    disk: ClassVar[int] = 4  # bytes a weight, what lies there for a while included
    hint: ClassVar[str] = "raise --tolerance if that is good enough for you, or ship the run's own model"

    def dtype(self, wanted: str | None) -> str:
        """Returns the dtype to save in.

        Raises:
            RunError: there is no such choice.
        """
        if wanted is None:
            return "float32"
        if len(self.dtypes) < 2:
            raise RunError(
                f"--dtype {wanted} has no effect on this target", hint="leave it out, or export to gguf"
            )
        if wanted not in self.dtypes:
            raise RunError(f"dtype is {wanted!r}", allowed=", ".join(self.dtypes))
        return wanted

    def check(self, job: Job) -> None:
        """Refuses what this target cannot take, before anything is loaded.

        Raises:
            RunError: the run's task does not fit.
            MissingExtraError: a package is not installed.
        """
        if self.auto_classes is not None and job.task.auto_class not in self.auto_classes:
            raise RunError(
                f"the run's task is {registered_name(type(job.task))}, whose {job.task.auto_class} is not "
                f"exported to {registered_name(type(self)).replace('_', '-')}",
                allowed=", ".join(self.auto_classes),
                hint="`hf-llm-recipes merge` makes one plain transformers model of any run with an adapter",
            )
        for module, extra in self.needs:
            require(module, extra)

    def disk_bytes(self, job: Job, weights: int) -> int:
        """Returns how much space is taken, at most."""
        return self.disk * weights

    @abstractmethod
    def write(self, job: Job, rows: Any, folder: Path) -> None:
        """Fills a folder.

        Args:
            job: What is exported.
            rows: Of the run's data.
            folder: Empty.

        Raises:
            RunError: this architecture cannot be exported so.
        """

    def load(self, job: Job, folder: Path) -> Predictor:
        """Returns what was written, ready to answer."""
        return Predictor.load(folder, trust_code=job.trust_code)

    @abstractmethod
    def card(self, job: Job, info: CardInfo, made: Predictor) -> CardInfo:
        """Returns what the card says, given what the run's says."""

    def more_card(self, job: Job) -> str:
        """Returns what stands at the card's end."""
        return ""
