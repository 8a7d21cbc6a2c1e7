"""Questions and contexts -> windows of tokens, where an answer stands in each, and answers out of scores.

Notable:
- A long context becomes windows that share ``stride`` tokens; each holds the whole question before it.
- A window that does not hold the whole answer is to answer with the place of its first token (``[CLS]``),
  as BERT's script has it (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, §4.2 and §4.3).
- All spans of a window are compared, not those of the best starts and ends alone.

Shapes: T tokens of a window, C of them of the context, L tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_llm_recipes.errors import DataError

Answer = tuple[str, int]  # text, its first character's place in the context
NO_LIMIT = 1 << 30


def read_answers(row: dict[str, Any], columns: Sequence[str], where: str) -> list[Answer]:
    """Returns the answers of a row; none where it has none.

    Args:
        row: As it was read.
        columns: One of SQuAD's shape (``text`` and ``answer_start``, lists of equal length, or a list of
            such pairs), or two: of the answer's text and of its place.
        where: For the message.

    Raises:
        DataError: another shape.
    """
    if len(columns) == 2:
        text, start = (row[column] for column in columns)
        if text is None or text == "":
            return []
        return [_answer(text, start, where)]
    value = row[columns[0]]
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        pairs = [(one.get("text"), one.get("answer_start")) for one in value]
    elif isinstance(value, dict) and isinstance(value.get("text"), list):
        starts = value.get("answer_start")
        if not isinstance(starts, list) or len(starts) != len(value["text"]):
            raise DataError(
                f"`{columns[0]}` has {len(value['text'])} texts and {starts!r} as their places",
                where=where,
                allowed="an `answer_start` a text",
            )
        pairs = list(zip(value["text"], starts, strict=True))
    else:
        raise DataError(
            f"`{columns[0]}` is {str(value)[:60]!r}",
            where=where,
            allowed="{text: [...], answer_start: [...]}",
        )
    return [_answer(text, start, where) for text, start in pairs if text not in (None, "")]


def _answer(text: Any, start: Any, where: str) -> Answer:
    if not isinstance(text, str):
        raise DataError(f"the answer is {text!r}, not text", where=where)
    if isinstance(start, str) and start.strip().isdecimal():  # CSV files hold text only
        start = int(start)
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if not isinstance(start, int) or isinstance(start, bool):
        raise DataError(
            f"`answer_start` of the answer {text[:60]!r} is {start!r}",
            where=where,
            allowed="the place of its first character in the context, counted from 0",
        )
    return text, start


def misplaced(answer: Answer, context: str, where: str) -> DataError | None:
    """Returns what is wrong with an answer's place; None where the context has it there."""
    text, start = answer
    if start >= 0 and context[start : start + len(text)] == text:
        return None
    stands = context[max(start, 0) : max(start, 0) + len(text)]
    near = nearest(text, start, context)
    return DataError(
        f"`answer_start` is {start}, where the context has {stands[:60]!r}, not the answer {text[:60]!r}",
        where=where,
        hint="the context does not hold the answer: mend the row"
        if near is None
        else f"the nearest place that has it is {near}: mend the row",
    )


def nearest(text: str, start: int, context: str) -> int | None:
    """Returns the place of a text that is nearest to another place; None where the context lacks it."""
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return min(places, key=lambda place: abs(place - start), default=None)


@dataclass(frozen=True)
class Place:
    """Where an answer stands among the tokens of a window.

    Args:
        first: Its first token, counted among the context's.
        last: Its last.
        exact: Whether it begins and ends where these tokens do.
    """

    first: int
    last: int
    exact: bool


def place_of(answer: Answer, starts_C: np.ndarray, ends_C: np.ndarray) -> Place | None:
    """Returns the tokens that cover an answer; None where a window does not hold all of it.

    Args:
        answer: Its spaces at either end are left out.
        starts_C: The first character of each token of the context in a window.
        ends_C: The one after the last.
    """
    begin, end = _bare(answer)
    if not len(starts_C) or starts_C[0] > begin or ends_C[-1] < end:
        return None
    first = int(np.searchsorted(ends_C, begin, side="right"))
    last = int(np.searchsorted(starts_C, end, side="left")) - 1
    if last < first:  # the answer stands between two tokens: it is nothing to the tokenizer
        return None
    return Place(first, last, bool(starts_C[first] == begin and ends_C[last] == end))


def touches(answer: Answer, starts_C: np.ndarray, ends_C: np.ndarray) -> bool:
    """Whether a window holds some of an answer."""
    begin, end = _bare(answer)
    return bool(len(starts_C) and starts_C[0] < end and ends_C[-1] > begin)


def _bare(answer: Answer) -> tuple[int, int]:
    text, start = answer
    begin = start + len(text) - len(text.lstrip())
    return begin, start + len(text.rstrip())


@dataclass
class Windows:
    """Questions and contexts -> windows.

    Args:
        tokenizer: A fast one.
        length: Tokens of a window, special ones included.
        stride: Tokens of the context that neighbouring windows share.
        question_length: Tokens of a question; what is behind is cut.

    Raises:
        DataError: a slow tokenizer, or no room for a context beside a question.
    """

    tokenizer: Any
    length: int
    stride: int
    question_length: int

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{type(self.tokenizer).__name__} does not say which characters a token stands for",
                hint="take a model with a tokenizer.json",
            )
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = self.length - self.question_length - special
        if room <= self.stride:
            raise DataError(
                f"windows of {self.length} tokens with questions of up to {self.question_length} leave "
                f"{room} for the context, of which {self.stride} would be shared",
                allowed="a `task.doc_stride` below the room for the context",
                hint="raise `task.max_length`, or lower `task.doc_stride` or `task.max_question_length`",
            )

    def __call__(self, questions: Sequence[str], contexts: Sequence[str]) -> tuple[Any, list[int]]:
        """Returns the encoding, several windows a row, and the tokens cut of each question."""
        shown, cut = self._cut(questions)
        encoded = self.tokenizer(
            shown,
            list(contexts),
            truncation="only_second",
            max_length=self.length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        return encoded, cut

    def _cut(self, questions: Sequence[str]) -> tuple[list[str], list[int]]:
        found = self.tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True)
        shown, cut = [], []
        for question, offsets in zip(questions, found["offset_mapping"], strict=True):
            more = max(0, len(offsets) - self.question_length)
            shown.append(question[: offsets[self.question_length - 1][1]] if more else question)
            cut.append(more)
        return shown, cut


def without_answer(ids: Sequence[int], tokenizer: Any) -> int:
    """Returns the place that says "no answer here": that of ``[CLS]``, or the first."""
    cls = tokenizer.cls_token_id
    return ids.index(cls) if cls is not None and cls in ids else 0


@dataclass(frozen=True)
class Candidate:
    """A span that a model may mean.

    Args:
        score: Its start's logit and its end's in sum.
        start: First character in the context.
        end: The one after the last.
    """

    score: float
    start: int
    end: int


def best_spans(
    start_C: np.ndarray, end_C: np.ndarray, starts_C: np.ndarray, ends_C: np.ndarray, longest: int, most: int
) -> list[Candidate]:
    """Returns the best spans of one window, in no order.

    Args:
        start_C: Logits of each token of the context as a start.
        end_C: As an end.
        starts_C: The first character of each token.
        ends_C: The one after the last.
        longest: Tokens of a span at most.
        most: Spans that are returned at most.
    """
    longest = min(longest, len(start_C))
    behind = np.pad(end_C, (0, longest - 1), constant_values=-np.inf)
    scores_CL = start_C[:, None] + np.lib.stride_tricks.sliding_window_view(behind, longest)
    flat = scores_CL.ravel()
    chosen = np.argpartition(-flat, min(most, len(flat)) - 1)[:most]
    made = []
    for place in chosen[np.isfinite(flat[chosen])].tolist():
        first, more = divmod(place, longest)
        made.append(Candidate(float(flat[place]), int(starts_C[first]), int(ends_C[first + more])))
    return made


def distinct(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """Returns the best of them, best first; a span that two windows hold is there once."""
    best: dict[tuple[int, int], Candidate] = {}
    for one in candidates:
        known = best.get((one.start, one.end))
        if known is None or one.score > known.score:
            best[one.start, one.end] = one
    return sorted(best.values(), key=lambda one: (-one.score, one.start, one.end))[:most]
