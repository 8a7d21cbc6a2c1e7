"""Prompts and answers as columns hold them -> messages, text and token ids.

A prompt is a text, or a list of messages ``{"role", "content"}``. Where the tokenizer has a chat template,
a text becomes one message of the user; where it has none, messages are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset, IterableDataset

from hf_llm_recipes.errors import DataError


def as_prompt(value: Any, tokenizer: Any, where: str, system: str | None = None) -> str | list[dict]:
    """Returns messages where the tokenizer has a chat template, else text.

    Args:
        value: A text or messages.
        tokenizer: Of the model.
        where: Of the row, for messages.
        system: Put before the others, where there is no such message.

    Raises:
        DataError: neither, an empty one, one that ends with an answer, or messages without a template.
    """
    if isinstance(value, str):
        if not value.strip():
            raise DataError("the prompt is empty", where=where)
        if tokenizer.chat_template is None:
            return value if system is None else f"{system}\n{value}"
        value = [{"role": "user", "content": value}]
    messages = _checked(value, where)
    if tokenizer.chat_template is None:
        raise DataError(
            "the prompt is a list of messages, and the tokenizer has no chat template",
            where=where,
            hint="take a chat model, or give prompts as text",
        )
    if messages[-1]["role"] == "assistant":
        raise DataError("the prompt ends with the assistant's turn", where=where, allowed="user or tool last")
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def as_answer(value: Any, prompt: str | list[dict], where: str) -> str | list[dict]:
    """Returns an answer in the form of its prompt: text, or one message of the assistant.

    A whole conversation that ends with the answer is taken too, where it begins with the prompt.

    Raises:
        DataError: it is empty, no such thing, or a conversation about another prompt.
    """
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        _check_begins_with(value[:-1], prompt, where)
        value = value[-1].get("content")
    elif isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"the answer is {value!r}", where=where, allowed="a text, or one message")
    return value if isinstance(prompt, str) else [{"role": "assistant", "content": value}]


def _check_begins_with(messages: list[dict], prompt: str | list[dict], where: str) -> None:
    asked = [{"content": prompt}] if isinstance(prompt, str) else prompt
    texts = [[one.get("content") for one in few if one.get("role") != "system"] for few in (messages, asked)]
    if messages and texts[0] != texts[1]:
        raise DataError(
            f"the answer is one of {len(messages) + 1} messages that do not begin with the prompt",
            where=where,
            allowed="a text, one message, or the prompt's messages with the answer behind them",
        )


def prompt_ids(prompt: str | list[dict], tokenizer: Any) -> list[int]:
    """Returns the ids that an answer follows; the template's own special tokens only."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        while len(ids) > 1 and ids[-1] in ends:  # a tokenizer that ends texts itself
            ids = ids[:-1]
        return ids
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(prompt: str | list[dict], answer: str | list[dict], tokenizer: Any, where: str) -> list[int]:
    """Returns the ids of an answer behind its prompt, its end token included.

    Raises:
        DataError: the template does not write the conversation so that it goes on from the prompt.
    """
    if isinstance(prompt, str):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
    if not whole.startswith(before):
        raise DataError(
            "the chat template writes the prompt differently once there is an answer",
            where=where,
            hint="its answers cannot be told from its prompts: give another template, or prompts as text",
        )
    ids = tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    if eos is not None and eos in ids:  # what a template writes behind the end is not the answer's
        ids = ids[: len(ids) - ids[::-1].index(eos)]
    return ids


def rows_within(
    rows: Any,
    limit: int,
    where: str,
    make: Callable[[dict, str], dict],
    length: Callable[[dict], int],
    *,
    drop_bad: bool = False,
) -> tuple[Dataset, dict[str, int]]:
    """Returns the features of the rows that fit, each with its number as ``row``, and counts.

    Args:
        rows: As they were read.
        limit: Tokens that a row may have.
        where: For messages.
        make: A row and where it is -> its features.
        length: Features -> tokens.
        drop_bad: Whether rows of which ``make`` complains are counted and left out.

    Raises:
        DataError: a stream, no row that fits, or whatever ``make`` says of one.
    """
    if isinstance(rows, IterableDataset):
        raise DataError("prompts are read whole", where=where, hint="set `data.streaming: false`")
    made, complaints = [], []
    for i, row in enumerate(rows):
        try:
            made.append({**make(row, f"{where}, row {i}"), "row": i})
        except DataError as error:
            if not drop_bad:
                raise
            complaints.append(error)
    if not made:
        raise complaints[0]
    kept = [one for one in made if length(one) <= limit]
    if not kept:
        raise DataError(
            f"none of {len(made):,} rows has {limit:,} tokens or fewer",
            where=where,
            hint="raise `task.max_length`, or take a model that reads more",
        )
    return Dataset.from_list(kept), {
        "rows": len(rows),
        "left_out": len(made) - len(kept),
        "max_length": limit,
        **({"bad": len(complaints)} if drop_bad else {}),
    }


def left_out_notes(findings: dict[str, dict[str, int]]) -> list[str]:
    """Returns a sentence for each split of which rows were left out."""
    return [
        f"{split}: {found['left_out']:,} of {found['rows']:,} rows are longer than "
        f"{found['max_length']:,} tokens and are left out"
        for split, found in findings.items()
        if found["left_out"]
    ] + [
        f"{split}: {found['bad']:,} of {found['rows']:,} rows cannot be used and are dropped"
        for split, found in findings.items()
        if found.get("bad")
    ]


def _checked(value: Any, where: str) -> list[dict]:
    fits = isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    )
    if not fits or not value:
        shown = str(value)[:60]
        raise DataError(
            f"the prompt is {shown!r}", where=where, allowed="a text, or messages with role and content"
        )
    return [{"role": one["role"], "content": one["content"]} for one in value]
