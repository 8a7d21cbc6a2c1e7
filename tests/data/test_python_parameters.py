"""The corpus of questions about parameters: passages worked by hand, and what holds for every row."""

from collections import defaultdict

from hf_llm_recipes.data.corpora.python_parameters import (
    MAX_WORDS,
    MIN_WORDS,
    PythonParameters,
    documented,
    passages,
    signature,
)

SOURCE = b'''
import ast

def resize(image, width: int = 64, *rest, mode="nearest", **more):
    """
    Return an image of another size,
    its colours kept as they are.

    More about it.

    Parameters
    ----------
    image : array_like
        The image that is to be given another size. It is not changed.
    width : int, optional
        Number of pixels of a row in what is returned, its height
        follows.

        A second paragraph.
    a, b : float
        Two at once are passed over.
    mode : {'nearest', 'linear'}, default 'nearest'
        How values between the pixels are found in the image that was given
    more : keywords, whatever is not known here. No description

    Returns
    -------
    out : ndarray
        The result.
    """

def _private(a=1):
    """x"""

def bare(a=1):
    """No parameters are documented here."""
'''


def test_a_passage_and_its_questions():
    (passage,) = passages(SOURCE)
    assert passage.name == "resize"
    assert passage.text == (
        "resize(image, width=64, *rest, mode='nearest', **more) Return an image of another size, its colours "
        "kept as they are. Parameters: image : array_like. The image that is to be given another size. It is "
        "not changed. width : int, optional. Number of pixels of a row in what is returned, its height "
        "follows. mode : {'nearest', 'linear'}, default 'nearest'. How values between the pixels are found "
        "in the image that was given"
    )
    answers = {
        "What is the default value of width?": "64",
        "What is the default value of mode?": "'nearest'",
        "What type does image have?": "array_like",
        "What type does width have?": "int",
        "What does image stand for?": "The image that is to be given another size",
        "What does width stand for?": "Number of pixels of a row in what is returned, its height follows",
    }
    assert len(passage.questions) == 2
    for question, answer, start in passage.questions:
        assert answers[question] == answer
        assert passage.text[start : start + len(answer)] == answer
    assert len({question.split()[1] + question.split()[-1] for question, _, _ in passage.questions}) == 2


def test_the_documented_parameters():
    summary, entries = documented(
        "A title\n\nParameters\n----------\nx : int\n    One.\ny :\n    Two.\nz : str\n"
    )
    assert summary == "A title"
    assert entries == [("x", "int", "One.")]  # y has no type, z no description
    assert documented("Text without a section.") == ("Text without a section.", [])


def test_defaults_and_their_places():
    import ast

    node = ast.parse("def f(self, a, b: int = -1, *, c, d=None, e='" + "x" * 30 + "'): ...").body[0]
    text, defaults = signature(node)
    assert text == "f(a, b=-1, c, d=None, e='" + "x" * 30 + "')"
    assert defaults == [("b", "-1", 7), ("d", "None", 16)]
    assert all(text[at : at + len(value)] == value for _, value, at in defaults)


def test_a_file_that_is_no_python():
    assert list(passages(b"def (")) == []


def test_every_row():
    splits, seen = defaultdict(set), 0
    for split, row in PythonParameters().rows():
        seen += 1
        splits[split].add(row["path"])
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(text)] == text
        assert MIN_WORDS <= len(row["context"].split()) <= MAX_WORDS
        assert row["context"].isascii()
    assert seen > 1000
    assert not splits["train"] & (splits["test"] | splits["validation"])
    assert not splits["test"] & splits["validation"]
