"""What every objective has: it makes its own labels, and judges the model itself."""

from __future__ import annotations

from typing import Any, ClassVar

from datasets import Dataset, IterableDataset

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks._language_task import LanguageTask
from hf_llm_recipes.tasks._rows import check_columns


class Objective(LanguageTask):
    """A task whose labels come out of its inputs; a subclass has a field for its input column."""

    shifted_labels: ClassVar[bool] = False
    methods: ClassVar[tuple[str, ...] | None] = ("supervised",)
    input_key: ClassVar[str] = "text"  # the field that names the input column

    @property
    def input_column(self) -> str:
        """The column that labels are made of."""
        return getattr(self, self.input_key)

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
