"""What every objective has: it makes its own labels, and judges the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset, IterableDataset

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks._rows import check_columns
from hf_llm_recipes.tasks.base import Task


class Objective(Task):
    """A task whose labels come out of its inputs; a subclass has a field for its input column."""

    problem: ClassVar[str] = "language"
    judges_model: ClassVar[bool] = True
    input_key: ClassVar[str] = "text"  # the field that names the input column

    @property
    def input_column(self) -> str:
        """The column that labels are made of."""
        return getattr(self, self.input_key)

    @property
    def stratify_by(self) -> str | None:
        """Nothing: there are no labels to stratify by."""
        return None

    @property
    def input_columns(self) -> list[str]:
        """The one input."""
        return [self.input_column]

    def check_rows(self, rows: Any, where: str) -> None:
        """Refuses rows without the column, streams and empty splits.

        Raises:
            DataError: one of these.
        """
        if isinstance(rows, IterableDataset):
            raise DataError(
                "an objective is not trained from a stream: a resumed run would not be exact",
                where=where,
                hint="set `data.streaming: false`",
            )
        check_columns(rows, [(self.input_key, self.input_column)], where)
        if not len(rows):
            raise DataError("there is no row", where=where)

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of bare texts.

        Raises:
            DataError: an input is no text.
        """
        for place, given in enumerate(inputs):
            if not isinstance(given, str):
                raise DataError(
                    f"{given!r} is no text",
                    where=f"row {place}",
                    allowed="only texts, or only dicts with the task's columns",
                )
        return Dataset.from_dict({self.input_column: inputs})

    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """None but the loss, which the Trainer has."""
        return {}

    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """Not from logits: see ``judge_model``."""
        raise TypeError(f"{type(self).__name__} judges the model itself")

    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """Not from logits: see ``answer``."""
        raise TypeError(f"{type(self).__name__} answers by the model itself")

    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Not from logits: see ``judge_model``."""
        raise TypeError(f"{type(self).__name__} judges the model itself")
