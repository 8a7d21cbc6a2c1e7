"""Rows of text -> documents -> token lists, with a count of whatever is left out.

A document is a row, or the rows from one that matches a pattern to the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from hf_llm_recipes.data.blocks import Blocks, best_fit, concat
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.tasks import _tokens
from hf_llm_recipes.tasks._rows import input_length
from hf_llm_recipes.tuning._packed_check import check_packed

MIN_TOKENS = 2  # one to see and one to guess


@dataclass
class Documents:
    """The documents of a split that are long enough to learn from; D of them.

    Args:
        tokens: Number of a document, counted from 0 over all -> its tokens as the tokenizer makes them.
        findings: Counts, JSON-able.
        notes: The same in sentences.
    """

    tokens: dict[int, np.ndarray]
    findings: dict[str, Any]
    notes: list[str]


def read_documents(rows: Any, column: str, starts: str | None, where: str) -> list[str]:
    """Returns the documents of a split.

    Args:
        rows: A data set.
        column: Of the text.
        starts: A regular expression; rows in which it is found at the beginning begin a document, and
            the others go on with the one before them. None: each row is a document.
        where: For messages.

    Raises:
        DataError: a row is no text.
    """
    texts = rows[column][:]
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(
                f"`{column}` is {text!r}, not text",
                where=f"{where}, row {place}",
                hint="take the row out or fill it; rows are counted from 0",
            )
    return texts if starts is None else ["".join(lines) for lines in _joined(texts, re.compile(starts))]


def check_pattern(pattern: str | None) -> None:
    """Refuses what is no regular expression.

    Raises:
        ValueError: says where it breaks.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"document_start is {pattern!r}, no regular expression: {error}") from error


def _joined(texts: list[str], starts: re.Pattern[str]) -> Iterator[list[str]]:
    lines: list[str] = []
    for text in texts:
        if starts.match(text) and lines:
            yield lines
            lines = []
        lines.append(text if text.endswith("\n") else f"{text}\n")
    if lines:
        yield lines


def tokenize(texts: list[str], tokenizer: Any, where: str, *, special: bool = True) -> Documents:
    """Returns the documents of two tokens or more.

    Args:
        texts: One a document.
        tokenizer: Of the model.
        where: The split, for messages.
        special: Whether the tokenizer puts its own special tokens around a document.

    Raises:
        DataError: none has two tokens.
    """

    added = tokenizer.num_special_tokens_to_add() if special else 0
    made = _tokens.tokenize(texts, tokenizer, where, special=special)
    tokens = {i: ids for i, ids in enumerate(made) if len(ids) - added >= MIN_TOKENS}
    if not tokens:
        raise DataError(
            f"none of {len(texts):,} documents has {MIN_TOKENS} tokens or more",
            where=where,
            hint="check `task.text`",
        )
    short = len(texts) - len(tokens)
    findings = {"documents_too_short": short, "documents": len(tokens), "tokens": _total(tokens.values())}
    said = f"{where}: {short:,} of {len(texts):,} documents have fewer than {MIN_TOKENS} tokens; left out"
    return Documents(tokens, findings, [said] if short else [])


def _total(tokens: Iterable[Sequence[int]]) -> int:
    return sum(map(len, tokens))


def end_token(tokenizer: Any) -> int | None:
    """Returns the token to put behind a document; None where the tokenizer has none or puts it itself."""
    eos = tokenizer.eos_token_id
    ids = tokenizer("a")["input_ids"]
    return None if eos is None or (ids and ids[-1] == eos) else eos


def frame_of(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that a tokenizer puts before and behind a text."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def checked_block_size(wanted: int | None, tokenizer: Any, model_config: Any, *, default: int = 512) -> int:
    """Returns the tokens of a block: what is wanted, else ``default`` or what the model can.

    Raises:
        DataError: more is wanted than tokenizer and model take.
    """
    if wanted is not None:
        return input_length(wanted, tokenizer, model_config, key="block_size")
    return min(default, input_length(None, tokenizer, model_config))


def make_blocks(
    tokens: dict[int, np.ndarray],
    packing: str,
    block_size: int,
    *,
    end: int | None,
    frame: tuple[list[int], list[int]] = ((), ()),
    keep_tail: bool = False,
) -> tuple[Dataset, dict[str, Any], list[str]]:
    """Returns blocks as rows of ``input_ids`` and ``seq_lengths``, counts, and sentences.

    With ``none``, rows also name their ``document``.

    Args:
        tokens: Number of a document -> its tokens.
        packing: ``best_fit``, ``concat``, or ``none`` (a row is one document, or a piece of a long one).
        block_size: Tokens of a row at most.
        end: Token behind each document, or None.
        frame: Tokens around each piece; ``concat`` takes none.
        keep_tail: Of ``concat``: the tokens that fill no block are kept.

    Raises:
        DataError: nothing fills a block.
    """
    if packing == "none":
        return _pieces(tokens, block_size, end, frame)
    if packing == "concat":
        blocks: Blocks = concat(
            tokens.values(), block_size, end_token=end, tail="keep" if keep_tail else "drop"
        )
    else:
        blocks = best_fit(tokens.values(), block_size, end_token=end, frame=frame)
    return blocks.dataset().remove_columns("documents"), blocks.report, blocks.notes


def _pieces(
    tokens: dict[int, np.ndarray], block_size: int, end: int | None, frame: tuple[list[int], list[int]]
) -> tuple[Dataset, dict[str, Any], list[str]]:
    room = block_size - len(frame[0]) - len(frame[1])
    rows, numbers, cut = [], [], 0
    for document, ids in tokens.items():
        whole = [*ids, *([] if end is None else [end])]
        pieces = [[*frame[0], *whole[at : at + room], *frame[1]] for at in range(0, len(whole), room)]
        rows += pieces
        numbers += [document] * len(pieces)
        cut += len(pieces) > 1
    lengths = [[len(row)] for row in rows]
    made = Dataset.from_dict({"input_ids": rows, "seq_lengths": lengths, "document": numbers})
    notes = [f"{cut:,} of {len(tokens):,} documents are cut into several pieces"] if cut else []
    report = {"documents": len(tokens), "cut_documents": cut, "pieces": len(rows), "blocks": len(rows)}
    return made, {**report, "tokens_in_blocks": _total(rows)}, notes


def pieces_of(rows: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Returns each piece of some blocks as a row of its own, labels included where there are some."""
    made = []
    for row in rows:
        keys = [key for key in ("input_ids", "labels") if row.get(key) is not None]
        ends = np.cumsum(row["seq_lengths"])
        for start, stop in zip(ends - row["seq_lengths"], ends, strict=True):
            made.append({key: list(row[key][start:stop]) for key in keys})
    return made


def check_kept_apart(model: Any, blocks: Any) -> list[str]:
    """Looks whether the model keeps the documents of a block apart; returns a sentence for the log.

    Raises:
        RunError: it does not.
    """
    few = pieces_of([blocks[i] for i in range(min(3, len(blocks)))])
    try:
        difference = check_packed(model, few)
    except RunError as error:
        raise RunError(error.what, hint="set `task.packing: none`: rows are padded then") from error
    return [f"packed documents do not see each other (their logits move by {difference:.1g} sd)"]
