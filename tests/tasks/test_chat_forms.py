import pytest
from datasets import Dataset

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks._chat_forms import (
    BadRowError,
    conversation,
    find_form,
    plain_text,
    prompt,
    without_none,
)

ASKED = {"role": "user", "content": "hello"}
ANSWERED = {"role": "assistant", "content": "hi"}
SYSTEM = {"role": "system", "content": "be kind"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "sum"}}]}
TOOL = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("row", "form", "first"),
    [
        ({"messages": [ASKED, ANSWERED]}, "messages", 0),
        ({"conversations": [ASKED, ANSWERED], "id": "7"}, "messages", 0),
        (
            {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
            "sharegpt",
            0,
        ),
        ({"messages": [{"from": "user", "value": "hello"}, {"from": "bot", "value": "hi"}]}, "sharegpt", 0),
        ({"prompt": "hello", "completion": "hi"}, "prompt_completion", 1),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, "prompt_completion", 1),
        ({"instruction": "hello", "input": "", "output": "hi"}, "alpaca", 0),
        ({"instruction": "hello", "input": None, "output": "hi"}, "alpaca", 0),
        ({"instruction": "hello", "output": "hi", "text": "### both"}, "alpaca", 0),
    ],
)
def test_every_form_is_told_by_its_columns(row, form, first):
    rows = Dataset.from_list([row])
    assert find_form(rows.column_names, rows, "auto", "data", answered=True) == form
    assert find_form(rows.column_names, rows, form, "data", answered=True) == form
    made = conversation(rows[0], form, None)
    assert made.messages == [ASKED, ANSWERED]
    assert made.first == first
    asked = prompt(rows[0], form, "be kind")
    assert asked.messages == [SYSTEM, ASKED]


def test_alpacas_input_stands_below_its_instruction():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "be kind"}
    messages = conversation(row, "alpaca", None).messages
    assert messages[:2] == [SYSTEM, {"role": "user", "content": "Add.\n\n1, 2"}]


def test_questions_alone():
    for row in ({"prompt": "hello"}, {"instruction": "hello"}, {"messages": [ASKED]}):
        rows = Dataset.from_list([row])
        form = find_form(rows.column_names, rows, "auto", "data", answered=False)
        assert prompt(row, form, None).messages == [ASKED]
    with pytest.raises(DataError, match="no known form: prompt"):
        find_form(["prompt"], Dataset.from_list([{"prompt": "hello"}]), "auto", "data", answered=True)


def test_unknown_columns_name_the_forms():
    rows = Dataset.from_list([{"question": "hello", "answer": "hi"}])
    with pytest.raises(DataError) as told:
        find_form(rows.column_names, rows, "auto", "train split", answered=True)
    said = str(told.value)
    assert said.startswith("train split: the columns have no known form: question, answer\n")
    for word in (
        "messages",
        "sharegpt",
        "prompt_completion",
        "alpaca",
        "text: `text`, plain",
        "data.columns",
    ):
        assert word in said
    rows = Dataset.from_list([{"instruction": "hello", "output": "hi"}])
    with pytest.raises(
        DataError, match="not of the form messages: instruction, output; they look like alpaca"
    ):
        find_form(rows.column_names, rows, "messages", "train split", answered=True)


def test_a_system_is_put_before_and_never_twice():
    row = {"messages": [ASKED, ANSWERED]}
    assert conversation(row, "messages", "be kind").messages == [SYSTEM, ASKED, ANSWERED]
    own = {"messages": [{"role": "system", "content": "be brief"}, ASKED, ANSWERED]}
    assert conversation(own, "messages", "be kind").messages[0]["content"] == "be brief"
    given = conversation({"prompt": "hello", "completion": "hi"}, "prompt_completion", "be kind")
    assert given.first == 2


def test_tools_and_their_calls():
    # Arrow fills in every key of every message
    rows = Dataset.from_list(
        [{"messages": [ASKED, CALLS, TOOL, ANSWERED], "tools": '[{"name": "sum", "arguments": null}]'}]
    )
    made = conversation(rows[0], "messages", None)
    assert made.messages == [ASKED, {**CALLS, "content": ""}, TOOL, ANSWERED]
    assert made.tools == [{"name": "sum"}]
    assert conversation({"messages": [ASKED, ANSWERED], "tools": []}, "messages", None).tools is None


def test_texts_in_parts_are_joined():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    row = {"messages": [{"role": "user", "content": parts}, ANSWERED]}
    assert conversation(row, "messages", None).messages[0] == ASKED


NAN = float("nan")
BAD = {
    "empty": ([], "the conversation is empty"),
    "missing": (None, "`messages` is None"),
    "nan": (NAN, "`messages` is nan"),
    "text": ("hello", "`messages` is 'hello', not a list of messages"),
    "no mapping": ([ASKED, "hi"], "message 1 is 'hi'; allowed: a mapping with `role` and `content`"),
    "role": ([{"role": "usr", "content": "x"}], "message 0 has the role 'usr'; allowed: system, developer"),
    "None": ([ASKED, {"role": "assistant", "content": None}], r"message 1 \(assistant\) is None, not text"),
    "NaN": ([ASKED, {"role": "assistant", "content": NAN}], r"message 1 \(assistant\) is nan, not text"),
    "blank": ([ASKED, {"role": "assistant", "content": " \n"}], r"message 1 \(assistant\) is empty"),
    "system in the middle": ([ASKED, SYSTEM, ANSWERED], "message 1 is of the system, which may only open"),
    "assistant first": ([ANSWERED, ASKED], "message 0 is the assistant's, before any of the user"),
    "assistant after system": ([SYSTEM, ANSWERED], "message 1 is the assistant's, before any of the user"),
    "two users": ([ASKED, ASKED, ANSWERED], "messages 0 and 1 are both the user's"),
    "two assistants": ([ASKED, ANSWERED, ANSWERED], "messages 1 and 2 are both the assistant's"),
    "tool uncalled": ([ASKED, ANSWERED, TOOL], "message 2 is a tool's, but the assistant called none"),
    "user after tool": ([ASKED, CALLS, TOOL, ASKED], "message 3 is the user's, but the tool's answer"),
    "image": ([{"role": "user", "content": [{"type": "image"}]}], "other content than text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_conversations_say_why(name):
    messages, why = BAD[name]
    with pytest.raises(BadRowError, match=why):
        conversation({"messages": messages}, "messages", None)


@pytest.mark.parametrize(
    ("row", "form", "why"),
    [
        ({"prompt": "hello", "completion": None}, "prompt_completion", "`completion` is None, not text"),
        ({"prompt": NAN, "completion": "hi"}, "prompt_completion", "`prompt` is nan, not text"),
        ({"instruction": "hello", "output": ""}, "alpaca", "`output` is empty"),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            "sharegpt",
            "message 0 is from 'alien'; allowed: human",
        ),
        ({"conversations": [{"role": "user"}]}, "sharegpt", "a mapping with `from` and `value`"),
        ({"messages": [ASKED, ANSWERED], "tools": "{"}, "messages", "`tools` is no JSON"),
        ({"messages": [ASKED, ANSWERED], "tools": "{}"}, "messages", "`tools` is {}, not a list"),
    ],
)
def test_bad_rows_of_other_forms(row, form, why):
    with pytest.raises(BadRowError, match=why):
        conversation(row, form, None)


def test_nobody_asks():
    with pytest.raises(BadRowError, match="nobody asks anything"):
        prompt({"messages": [SYSTEM]}, "messages", None)


def test_plain_text():
    assert plain_text({"text": "so it is"}) == "so it is"
    for bad in (None, NAN, "", 3):
        with pytest.raises(BadRowError, match="`text` is"):
            plain_text({"text": bad})


def test_none_is_taken_out_at_every_depth():
    assert without_none({"a": None, "b": [{"c": None, "d": 1}]}) == {"b": [{"d": 1}]}
