from collections import Counter

from hf_llm_recipes.data.corpora.base import SPLITS, split_of
from hf_llm_recipes.data.corpora.python_signatures import OPENING, PythonSignatures, signatures, wrong

SOURCE = b"""
def add(a: int, b: float = 1.5):
    return a + b

class Box:
    def open(self, key, force=False, by=None):
        return key

def none(a, b): ...
def only(a=1): ...
def star(a, *b, c=1): ...
def many(a, b=1, c=2, d=3, e=4): ...
def keyword(a, *, b=1): ...
"""


def test_signatures_are_shown_without_annotations_and_sorted_by_defaults():
    assert list(signatures(SOURCE)) == [
        ("def add(a, b=1.5)", ["a"], ["b"]),
        ("def open(self, key, force=False, by=None)", ["key"], ["force", "by"]),
    ]
    assert list(signatures(b"def broken(:")) == []


def test_wrong_answers_are_of_three_kinds():
    found = Counter(tuple(wrong(f"def f{i}", ["a"], ["b", "c"])) for i in range(300))
    assert set(found) == {("a",), ("a", "b", "c"), ("b",)}
    assert min(found.values()) > 60
    assert {tuple(wrong(f"def f{i}", ["a"], ["b"])) for i in range(50)} == {("a",), ("a", "b")}


def test_the_corpus():
    splits = PythonSignatures().build().splits
    assert len(splits["train"]) > 1500
    assert min(len(splits["validation"]), len(splits["test"])) > 150
    parameters = Counter()
    for split in SPLITS:
        for row in splits[split]:
            assert split_of(row["path"]) == split
            *opening, last = row["prompt"]
            signature = last["content"]
            assert (opening, last["role"]) == (OPENING, "user")
            parameters[signature.partition("(")[2]] += 1
            assert all(f"{name}=" in signature for name in row["answer"].split(", "))
            assert row["answer"] != row["rejected"]
    assert set(parameters.values()) == {1}
