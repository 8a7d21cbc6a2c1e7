"""What every task does with rows: their columns, a progress bar, the longest input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets

from hf_llm_recipes.errors import DataError, did_you_mean

OFFSET_POSITIONS = {  # number positions from pad_token_id + 1
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod"),
    *("longformer", "mpnet", "data2vec-text", "ibert"),
}


def column_names(rows: Any) -> list[str]:
    """Returns the columns; a stream may not know them before its first row."""
    return rows.column_names or list(next(iter(rows), {}))


def check_columns(rows: Any, wanted: Sequence[tuple[str, str | None]], where: str) -> None:
    """Refuses rows that lack a column.

    Args:
        rows: A data set or a stream.
        wanted: (key of ``task:``, column); a column of None is not wanted.
        where: For the message.

    Raises:
        DataError: names the first column that is not there.
    """
    names = column_names(rows)
    for key, column in wanted:
        if column is not None and column not in names:
            raise DataError(
                f"there is no column `{column}`{did_you_mean(column, names)}",
                where=where,
                allowed=", ".join(names),
                hint=f"name it in `task.{key}`, or rename it in `data.columns`",
            )


@contextmanager
def bar_if_long(rows: int) -> Iterator[None]:
    """Shows the progress bar of ``map`` only where it can be seen to move."""
    hide = rows < 2000 and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def input_length(wanted: int | None, tokenizer: Any, model_config: Any, *, key: str = "max_length") -> int:
    """Returns how many tokens a row may have: what is wanted, else what tokenizer and model take.

    Raises:
        DataError: more is wanted than they take.
    """
    most = min(tokenizer.model_max_length, _positions(model_config))
    if wanted is not None and wanted > most:
        raise DataError(
            f"{key} is {wanted}, but the model takes {most} tokens",
            allowed=f"3 to {most}",
        )
    return wanted or most


def _positions(model_config: Any) -> int:
    """The longest input of a model; RoBERTa's family spends ``pad_token_id + 1`` positions."""
    most = getattr(model_config, "max_position_embeddings", None) or getattr(
        model_config, "n_positions", None
    )
    if most is None or most <= 0:  # relative positions: no bound of its own
        return 1 << 20
    if model_config.model_type in OFFSET_POSITIONS:
        return most - (1 if model_config.pad_token_id is None else model_config.pad_token_id) - 1
    return most
