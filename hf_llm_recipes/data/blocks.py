"""Documents as token lists -> blocks of ``block_size`` tokens that know where each document begins.

Notable:
- Nothing is lost uncounted: ``Blocks.report`` balances, tokens in = tokens out + what was dropped.
- ``concat`` fills every block and cuts documents at its edges, as ``run_clm`` does; ``best_fit`` keeps
  documents whole and leaves room at the end of a block (Ding et al. 2024,
  https://arxiv.org/abs/2404.10830, §3).
- The lengths of a block's pieces go to attention as restarting position ids (`position_ids`), so that
  ``hlr_packed`` stays within documents.
- All tokens lie in one int32 array, 4 bytes a token. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_llm_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Blocks", "best_fit", "concat", "position_ids"]


@dataclass
class Blocks:
    """Blocks of tokens; ``blocks[i]`` is a row, ``len(blocks)`` their number.

    P pieces, each a run of tokens of one document, lie block after block.

    Args:
        tokens: All blocks end to end, int32.
        lengths: Tokens of each piece, (P,).
        documents: Which document each piece is of, counted from 0, (P,).
        first_piece: Of each block, and P, (blocks + 1,).
        report: JSON-able. ``documents``; ``empty_documents`` (they give no piece); ``cut_documents`` (they
            lie in several pieces); ``pieces``; ``blocks``; ``tokens`` (of the documents);
            ``added_tokens`` (end and framing tokens); ``dropped_tokens`` (of the tail, end tokens
            included); ``tokens_in_blocks``; ``fill`` (of the blocks' room, in [0, 1]).
    """

    tokens: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray
    first_piece: np.ndarray
    report: dict[str, Any]

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns ``input_ids``, ``seq_lengths`` and ``documents`` (both one a piece) of a block."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        index %= len(self)
        first, last = self.first_piece[index : index + 2]
        start, stop = self._ends[[first, last]]
        return {
            "input_ids": self.tokens[start:stop],
            "seq_lengths": self.lengths[first:last],
            "documents": self.documents[first:last],
        }

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def __post_init__(self) -> None:
        self._ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def dataset(self) -> Dataset:
        """Returns the blocks as a data set with the columns of a row, each a list of int32."""
        import pyarrow as pa
        from datasets import Dataset

        token_ends = pa.array(self._ends[self.first_piece], pa.int64())
        piece_ends = pa.array(self.first_piece, pa.int64())
        columns = {
            "input_ids": pa.LargeListArray.from_arrays(token_ends, pa.array(self.tokens, pa.int32())),
            "seq_lengths": pa.LargeListArray.from_arrays(piece_ends, pa.array(self.lengths, pa.int32())),
            "documents": pa.LargeListArray.from_arrays(piece_ends, pa.array(self.documents, pa.int32())),
        }
        return Dataset(pa.table(columns))

    @property
    def notes(self) -> list[str]:
        """What a user should know of the report."""
        found, notes = self.report, []
        if found["empty_documents"]:
            notes.append(f"{found['empty_documents']:,} empty documents are in no block")
        if found["cut_documents"]:
            notes.append(
                f"{found['cut_documents']:,} of {found['documents']:,} documents are cut into several pieces"
            )
        if found["dropped_tokens"]:
            notes.append(
                f"the last {found['dropped_tokens']:,} tokens fill no block and are dropped "
                f"({100 * found['dropped_tokens'] / (found['tokens'] + found['added_tokens']):.2f} %)"
            )
        return notes


@dataclass
class _Stream:
    """All documents' tokens end to end, (T,), and the length of each, (D,)."""

    tokens: np.ndarray
    lengths: np.ndarray
    raw_tokens: int
    empty: int


def position_ids(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns positions that begin anew with each piece, int32.

    >>> position_ids([2, 3]).tolist()
    [0, 1, 0, 1, 2]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    return (np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)).astype(np.int32)


def concat(
    documents: Iterable[Sequence[int]],
    block_size: int,
    *,
    end_token: int | None,
    tail: Literal["drop", "keep"] = "drop",
) -> Blocks:
    """Returns the documents joined and cut every ``block_size`` tokens.

    Args:
        documents: Token lists, in the order they are joined.
        block_size: Tokens of a block, ≥ 1.
        end_token: Put behind each document; None where the documents end by themselves.
        tail: What is done with the tokens that fill no block: dropped, or kept as a short last block.

    Raises:
        DataError: ``block_size`` below 1, a document that is no list of token numbers, another
            ``tail``, or no block at all.
    """
    _check_block_size(block_size)
    if tail not in ("drop", "keep"):
        raise DataError(f"tail is {tail!r}", allowed="drop, keep")
    stream = _joined(documents, end_token)
    total = len(stream.tokens)
    kept = total if tail == "keep" else total - total % block_size
    if not kept:
        raise DataError(
            f"{len(stream.lengths):,} documents of {total:,} tokens fill no block of {block_size:,}",
            hint="take a smaller block_size, keep the tail, or add documents",
        )
    edges = np.unique(np.concatenate([np.arange(0, kept, block_size), [kept], _ends(stream.lengths)]))
    edges = edges[edges <= kept]
    starts = edges[:-1]
    documents_P = np.searchsorted(_ends(stream.lengths), starts, side="right") - 1
    first_piece = np.concatenate([np.flatnonzero(starts % block_size == 0), [len(starts)]])
    return _blocks(
        stream,
        stream.tokens[:kept],
        np.diff(edges),
        documents_P,
        first_piece,
        block_size,
        added=total - stream.raw_tokens,
        dropped=total - kept,
    )


def best_fit(
    documents: Iterable[Sequence[int]],
    block_size: int,
    *,
    end_token: int | None = None,
    frame: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> Blocks:
    """Returns blocks of whole documents: the longest first, each into the fullest block it fits in.

    A document longer than a block is cut into pieces that fill blocks, and a last one of what is left.
    Blocks are in the order of their first document, the pieces of a block in that of the documents.

    Args:
        documents: Token lists.
        block_size: Tokens of a block at most, ≥ 1.
        end_token: Put behind each document (not behind each piece); None where they end by themselves.
        frame: Tokens put before and behind each piece, e.g. ``([cls], [sep])`` for an encoder; they
            count towards ``block_size``.

    Raises:
        DataError: ``block_size`` without room for a token, a document that is no list of token
            numbers, or no token at all.
    """
    before, behind = (np.asarray(part, dtype=np.int32) for part in frame)
    room = block_size - len(before) - len(behind)
    _check_block_size(room, needed=len(before) + len(behind))
    stream = _joined(documents, end_token)
    if not len(stream.tokens):
        raise DataError(f"{len(stream.lengths):,} documents have no token", hint="add documents")
    starts_P, bodies_P, documents_P = _cut(stream.lengths, room)
    lengths_P = bodies_P + len(before) + len(behind)
    order_P, first_piece = _bins(lengths_P, block_size)
    lengths_P = lengths_P[order_P]
    tokens = _framed(stream.tokens, starts_P[order_P], bodies_P[order_P], before, behind)
    return _blocks(
        stream,
        tokens,
        lengths_P,
        documents_P[order_P],
        first_piece,
        block_size,
        added=len(tokens) - stream.raw_tokens,
        dropped=0,
    )


def _check_block_size(room: int, needed: int = 0) -> None:
    if room < 1:
        raise DataError(
            f"block_size is {room + needed}",
            where="block_size",
            allowed=f"{needed + 1} or more" + (f": {needed} tokens frame each piece" if needed else ""),
        )


def _joined(documents: Iterable[Sequence[int]], end_token: int | None) -> _Stream:
    parts = [_document(tokens, row) for row, tokens in enumerate(documents)]
    sizes = np.asarray([len(part) for part in parts], dtype=np.int64)
    if end_token is not None:
        end = np.asarray([end_token], dtype=np.int32)
        parts = [np.concatenate([part, end]) if len(part) else part for part in parts]
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    lengths = sizes + (sizes > 0) * (end_token is not None)
    return _Stream(tokens, lengths, int(sizes.sum()), int((sizes == 0).sum()))


def _document(tokens: Sequence[int], row: int) -> np.ndarray:
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(
            f"document {row} is {str(tokens)[:60]!r}, no list of token numbers",
            where=f"row {row}",
            allowed="the `input_ids` of one document",
        )
    return array.astype(np.int32)


def _ends(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _cut(lengths_D: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each piece starts in the stream, its length, and its document; documents in order, (P,)."""
    pieces_D = -(-lengths_D // room)
    documents_P = np.repeat(np.arange(len(lengths_D)), pieces_D)
    within_P = position_ids(pieces_D).astype(np.int64) * room
    starts_P = _ends(lengths_D)[documents_P] + within_P
    return starts_P, np.minimum(room, lengths_D[documents_P] - within_P), documents_P


def _bins(lengths_P: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Best fit decreasing: the pieces in the order they lie in blocks, and each block's first."""
    block_P = np.empty(len(lengths_P), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(block_size + 1)]  # blocks by their free room
    present = 0  # bit r is set where a block with r free exists: the tightest fit is one bit trick away
    num_blocks = 0
    for piece in np.argsort(-lengths_P, kind="stable").tolist():
        length = int(lengths_P[piece])
        fitting = present >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            block = with_room[free].pop()
            if not with_room[free]:
                present ^= 1 << free
        else:
            free, block = block_size, num_blocks
            num_blocks += 1
        block_P[piece] = block
        if free > length:
            with_room[free - length].append(block)
            present |= 1 << (free - length)
    first_B = np.full(num_blocks, len(lengths_P))
    np.minimum.at(first_B, block_P, np.arange(len(lengths_P)))
    rank_B = np.empty(num_blocks, dtype=np.int64)
    rank_B[np.argsort(first_B)] = np.arange(num_blocks)
    order_P = np.argsort(rank_B[block_P], kind="stable")
    return order_P, _ends(np.bincount(rank_B[block_P], minlength=num_blocks))


def _framed(
    tokens_T: np.ndarray, starts_P: np.ndarray, bodies_P: np.ndarray, before: np.ndarray, behind: np.ndarray
) -> np.ndarray:
    """The pieces end to end, each in its frame."""
    ends_P = np.cumsum(bodies_P + len(before) + len(behind))
    out = np.empty(ends_P[-1], dtype=np.int32)
    body_starts_P = ends_P - len(behind) - bodies_P
    within = position_ids(bodies_P).astype(np.int64)
    out[np.repeat(body_starts_P, bodies_P) + within] = tokens_T[np.repeat(starts_P, bodies_P) + within]
    for place, token in enumerate(before):
        out[body_starts_P - len(before) + place] = token
    for place, token in enumerate(behind):
        out[ends_P - len(behind) + place] = token
    return out


def _blocks(
    stream: _Stream,
    tokens: np.ndarray,
    lengths_P: np.ndarray,
    documents_P: np.ndarray,
    first_piece: np.ndarray,
    block_size: int,
    *,
    added: int,
    dropped: int,
) -> Blocks:
    num_blocks = len(first_piece) - 1
    report = {
        "documents": len(stream.lengths),
        "empty_documents": stream.empty,
        "cut_documents": int((np.bincount(documents_P) > 1).sum()),
        "pieces": len(lengths_P),
        "blocks": num_blocks,
        "tokens": stream.raw_tokens,
        "added_tokens": added,
        "dropped_tokens": dropped,
        "tokens_in_blocks": len(tokens),
        "fill": len(tokens) / (num_blocks * block_size),
    }
    return Blocks(tokens, lengths_P, documents_P, first_piece, report)
