"""Rows of any usual form -> conversations: messages, ShareGPT, prompt and completion, Alpaca, plain text.

Notable:
- The form is told by the columns; a list's first message tells OpenAI's keys from ShareGPT's.
- A row that is no conversation raises ``BadRowError`` with the reason; the caller knows its number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_llm_recipes.errors import DataError

LISTS = ("messages", "conversations")  # columns of a whole conversation
FORMS = {
    "messages": "`messages` or `conversations`, a list of {role, content}",
    "sharegpt": "`conversations` or `messages`, a list of {from, value}",
    "prompt_completion": "`prompt` and `completion`, texts or lists of messages",
    "alpaca": "`instruction` and `output`, and `input` where there is one",
    "text": "`text`, plain",
}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
ROLES = ("system", "developer", "user", "assistant", "tool")
OPENING = ("system", "developer")


class BadRowError(ValueError):
    """A row that cannot be learnt from; says why."""


@dataclass
class Conversation:
    """What is said, in order.

    Args:
        messages: Dicts with ``role`` and ``content``, and whatever else the template reads.
        tools: What the assistant may call, as the chat template takes it.
        first: The first message that may be learnt from; those before it are given.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    first: int = 0


def find_form(names: Iterable[str], rows: Any, wanted: str, where: str, *, answered: bool) -> str:
    """Returns the form of a data set: a key of ``FORMS``.

    Args:
        names: Its columns.
        rows: The data set, whose first message is looked at.
        wanted: A form, or ``auto``.
        where: For messages.
        answered: Whether rows must hold the answers too.

    Raises:
        DataError: the columns have no known form, or not the wanted one.
    """
    names = list(names)
    found = _forms_of(names, rows, answered=answered)
    if wanted == "auto" and found:
        return found[0]
    if wanted in found:
        return wanted
    looks = f"; they look like {found[0]}" if found else ""
    lacking = (
        "the columns have no known form" if wanted == "auto" else f"the columns are not of the form {wanted}"
    )
    raise DataError(
        f"{lacking}: {', '.join(names)}{looks}",
        where=where,
        allowed="; ".join(f"{form}: {columns}" for form, columns in FORMS.items()),
        hint="rename them in `data.columns`, or set `task.format`",
    )


def _forms_of(names: list[str], rows: Any, *, answered: bool) -> list[str]:
    forms = []
    column = list_column(names)
    if column is not None:
        forms.append("sharegpt" if "from" in _first_message(rows, column) else "messages")
    for form, question, answer in (
        ("prompt_completion", "prompt", "completion"),
        ("alpaca", "instruction", "output"),
    ):
        if question in names and (answer in names or not answered):
            forms.append(form)
    return [*forms, "text"] if "text" in names else forms


def list_column(names: Iterable[str]) -> str | None:
    """Returns the column that holds whole conversations; None where there is none."""
    return next((name for name in LISTS if name in names), None)


def _first_message(rows: Any, column: str) -> Mapping[str, Any]:
    for at in range(min(len(rows), 100)):
        given = rows[at][column]
        if isinstance(given, list) and given and isinstance(given[0], dict):
            return given[0]
    return {}


def conversation(row: Mapping[str, Any], form: str, system: str | None) -> Conversation:
    """Returns the conversation of a row of any form but ``text``, checked.

    Args:
        row: With the form's columns.
        form: A key of ``FORMS``.
        system: Set before a conversation that opens without one.

    Raises:
        BadRowError: the row is no conversation.
    """
    read = {"prompt_completion": _from_prompt, "alpaca": _from_alpaca}.get(form)
    if read is None:
        messages = _listed(row[list_column(row)], list_column(row), sharegpt=form == "sharegpt")
        found = Conversation(messages, _tools(row.get("tools")))
    else:
        found = read(row)
    if not found.messages:
        raise BadRowError("the conversation is empty")
    if system is not None and found.messages[0]["role"] not in OPENING:
        found.messages.insert(0, {"role": "system", "content": system})
        found.first += bool(found.first)
    _check_order(found.messages)
    return found


def prompt(row: Mapping[str, Any], form: str, system: str | None) -> Conversation:
    """Returns a conversation that waits for the assistant: answers at its end are taken off.

    Raises:
        BadRowError: the row is no conversation, or no question is left.
    """
    found = conversation(row, form, system)
    while found.messages and found.messages[-1]["role"] == "assistant":
        found.messages.pop()
    if not found.messages or found.messages[-1]["role"] in OPENING:
        raise BadRowError("nobody asks anything")
    return found


def plain_text(row: Mapping[str, Any]) -> str:
    """Returns the text of a row of the form ``text``.

    Raises:
        BadRowError: it is none, or empty.
    """
    return _text(row["text"], "`text`")


def _from_prompt(row: Mapping[str, Any]) -> Conversation:
    asked, answered = row["prompt"], row.get("completion")
    if isinstance(asked, list):
        given = _listed(asked, "prompt", sharegpt=False)
    else:
        given = [_message("user", _text(asked, "`prompt`"))]
    if answered is None and "completion" not in row:
        return Conversation(given, _tools(row.get("tools")))
    if isinstance(answered, list):
        said = _listed(answered, "completion", sharegpt=False)
    else:
        said = [_message("assistant", _text(answered, "`completion`"))]
    return Conversation([*given, *said], _tools(row.get("tools")), first=len(given))


def _from_alpaca(row: Mapping[str, Any]) -> Conversation:
    asked = _text(row["instruction"], "`instruction`")
    if not is_missing(row.get("input")) and str(row["input"]).strip():
        asked = f"{asked}\n\n{row['input']}"
    messages = [_message("user", asked)]
    if not is_missing(row.get("system")) and row["system"].strip():
        messages.insert(0, _message("system", row["system"]))
    if "output" in row:
        messages.append(_message("assistant", _text(row["output"], "`output`")))
    return Conversation(messages)


def _listed(given: Any, column: str, *, sharegpt: bool) -> list[dict[str, Any]]:
    if is_missing(given):
        raise BadRowError(f"`{column}` is {given!r}")
    if not isinstance(given, list):
        raise BadRowError(f"`{column}` is {_short(given)}, not a list of messages")
    return [_from_sharegpt(one, at) if sharegpt else _from_openai(one, at) for at, one in enumerate(given)]


def _from_sharegpt(one: Any, at: int) -> dict[str, Any]:
    if not isinstance(one, dict) or "from" not in one or "value" not in one:
        raise BadRowError(f"message {at} is {_short(one)}; allowed: a mapping with `from` and `value`")
    role = SHAREGPT_ROLES.get(one["from"])
    if role is None:
        raise BadRowError(f"message {at} is from {one['from']!r}; allowed: {', '.join(SHAREGPT_ROLES)}")
    return _message(role, _text(one["value"], f"message {at} ({role})"))


def _from_openai(one: Any, at: int) -> dict[str, Any]:
    if not isinstance(one, dict) or "role" not in one:
        raise BadRowError(f"message {at} is {_short(one)}; allowed: a mapping with `role` and `content`")
    if one["role"] not in ROLES:
        raise BadRowError(f"message {at} has the role {one['role']!r}; allowed: {', '.join(ROLES)}")
    kept = without_none(one)  # a column of Arrow gives every message every key
    content = kept.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRowError(
                f"message {at} holds other content than text, which this task does not learn from"
            )
        content = "".join(part.get("text") or "" for part in content)
    if content is None and kept.get("tool_calls"):
        return {**kept, "content": ""}
    if kept.get("tool_calls") and content == "":
        return kept
    return {**kept, "content": _text(content, f"message {at} ({one['role']})")}


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {_short(value)}, not text")
    if not value.strip():
        raise BadRowError(f"{name} is empty")
    return value


def _tools(given: Any) -> list[Any] | None:
    """The ``tools`` column: a list, or one written as JSON."""
    if is_missing(given) or given in ("", []):
        return None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise BadRowError(f"`tools` is no JSON: {error}") from error
    if not isinstance(given, list):
        raise BadRowError(f"`tools` is {_short(given)}, not a list")
    return without_none(given) or None


def _check_order(messages: list[dict[str, Any]]) -> None:
    """Refuses what no chat model has been taught: who may speak after whom."""
    before: dict[str, Any] | None = None
    for at, message in enumerate(messages):
        role, last = message["role"], before["role"] if before else None
        if role in OPENING:
            if at:
                raise BadRowError(f"message {at} is of the {role}, which may only open a conversation")
        elif role == "user":
            if last == "user":
                raise BadRowError(f"messages {at - 1} and {at} are both the user's")
            if last == "tool":
                raise BadRowError(
                    f"message {at} is the user's, but the tool's answer before it awaits the assistant"
                )
        elif role == "assistant":
            if last is None or last in OPENING:
                raise BadRowError(f"message {at} is the assistant's, before any of the user")
            if last == "assistant":
                raise BadRowError(f"messages {at - 1} and {at} are both the assistant's")
        elif last != "tool" and not (last == "assistant" and before.get("tool_calls")):
            raise BadRowError(f"message {at} is a tool's, but the assistant called none before it")
        before = message


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, or NaN as pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_none(value: Any) -> Any:
    """Returns a value of JSON without the keys whose value is None, at every depth."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
