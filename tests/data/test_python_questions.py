from collections import Counter

import pytest

from hf_llm_recipes.data.corpora.base import split_of
from hf_llm_recipes.data.corpora.python_questions import (
    ASKING,
    ASKING_DEFAULTS,
    PythonQuestions,
    conversation,
    first_sentence,
    questions,
)

SOURCE = b'''
def add(a, /, b, c=1, *, d, e=2):
    """Add the numbers that are given. Then rest.

    More.
    """
    # a comment
    total = a + b
    return total

class Box:
    async def open(self):
        """Open the box   for good
        and all."""
        self.lid = None
        return self

    def _hidden(self):
        """Hide what nobody should ever see."""
        x = 1
        return x

@cached
def once(a):
    """Return it only once or so."""
    b = a
    return b

def short():
    """Return nothing at all, ever."""
    return None

def plain():
    """Too short."""
    b = 1
    return b
'''


def test_functions_become_questions_without_their_docstrings():
    found = list(questions(SOURCE))
    assert found == [
        (
            "def add(a, /, b, c=1, *, d, e=2):\n    total = a + b\n    return total",
            "Add the numbers that are given.",
            ["c", "e"],
        ),
        ("async def open(self):\n    self.lid = None\n    return self", "Open the box for good and all.", []),
    ]
    assert list(questions(b"def broken(:")) == []


@pytest.mark.parametrize(
    ("docstring", "answer"),
    [
        ("Return the sum of both.", "Return the sum of both."),
        ("Return ``x``, i.e. the sum. And more.", "Return `x`, i.e. the sum."),
        ("Return the sum of both", ""),
        ("Too short.", ""),
        ("return the sum of both.", ""),
        ("Return the :class:`Sum` of both.", ""),
        ("Copyright of the sum of both.", ""),
        ("", ""),
    ],
)
def test_answers_are_whole_sentences_of_prose(docstring, answer):
    assert first_sentence(docstring) == answer


def test_conversations_go_on_where_a_parameter_has_a_default():
    messages = conversation("def f(a, b=1): ...", "Do it for all.", ["b", "c"])
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"].endswith("\n\n```python\ndef f(a, b=1): ...\n```")
    assert messages[0]["content"].split("\n")[0] in ASKING
    assert messages[1:] == [
        {"role": "assistant", "content": "Do it for all."},
        {"role": "user", "content": ASKING_DEFAULTS},
        {"role": "assistant", "content": "`b, c`."},
    ]
    more = [len(conversation(f"def f(a{i}): ...", "Do it for all.", [])) for i in range(400)]
    assert 60 < Counter(more)[4] < 140  # a quarter


def test_the_corpus():
    splits = PythonQuestions().build().splits
    assert len(splits["train"]) > 2000
    assert min(len(splits["validation"]), len(splits["test"])) > 200
    answers = Counter(m[1]["content"].lower() for rows in splits.values() for m in rows["messages"])
    assert set(answers.values()) == {1}
    paths = {path: {split_of(path)} for rows in splits.values() for path in rows["path"]}
    for split, rows in splits.items():
        for path in rows["path"]:
            paths[path].add(split)
    assert all(len(found) == 1 for found in paths.values())
    for messages in splits["test"]["messages"]:
        assert [m["role"] for m in messages] in (["user", "assistant"], ["user", "assistant"] * 2)
        assert '"""' not in messages[0]["content"]
