import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hf_llm_recipes.data.corpora import python_docstrings
from hf_llm_recipes.data.corpora.base import SPLITS, Corpus, fraction_of, local_corpora, split_of
from hf_llm_recipes.data.corpora.digits import Digits
from hf_llm_recipes.data.corpora.python_docstrings import LIBRARIES, PythonDocstrings, clean
from hf_llm_recipes.data.corpora.python_names import MAX_ROWS, TAGS, PythonNames, tagged
from hf_llm_recipes.data.corpora.python_source import MAX_TOTAL_BYTES, PythonSource
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import CORPORA


@pytest.fixture(scope="module")
def docstrings():
    return PythonDocstrings().build()


@pytest.fixture(scope="module")
def digits():
    return Digits().build()


class Counted(Corpus):
    summary, license, version, packages = "two rows", "CC0-1.0", 1, ("numpy",)
    made = 0

    def features(self):
        from datasets import Features, Value

        return Features({"n": Value("int64")})

    def rows(self):
        type(self).made += 1
        yield "train", {"n": 1}
        yield "test", {"n": 2}


class Failing(Counted):
    def rows(self):
        yield "train", {"n": 1}
        raise OSError("disk full")


def test_a_corpus_is_made_once_and_again_for_a_new_version(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path))
    first, again = Counted().build(), Counted().build()
    assert (Counted.made, first.sha256) == (1, again.sha256)
    assert {split: data["n"][:] for split, data in again.splits.items()} == {
        "train": [1],
        "validation": [],
        "test": [2],
    }
    assert again.made_from == {"numpy": np.__version__}
    monkeypatch.setattr(Counted, "version", 2)
    Counted().build()
    assert Counted.made == 2


def test_a_filled_cache_may_be_read_only_and_an_unusable_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "made", 0)
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path))
    Counted().build()
    (tmp_path / "corpora" / ".Counted.lock").unlink(missing_ok=True)
    Counted().build()
    assert not (tmp_path / "corpora" / ".Counted.lock").exists()  # nothing was written
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"corpora: cannot be written: .*\n  do: .* set HF_LLM_RECIPES_CACHE"):
        Counted().build()


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="disk full"):
        Failing().build()
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == [".Failing.lock"]


def test_hashes_are_the_same_on_every_machine():
    # sha256("") starts e3b0c44298fc1c14
    assert fraction_of("") == 0xE3B0C44298FC1C14 / 2**64
    counts = Counter(split_of(str(i)) for i in range(1000))
    assert counts["train"] > 750
    assert min(counts["validation"], counts["test"]) > 70


def test_every_corpus_has_a_line_and_a_licence():
    lines = local_corpora()
    assert list(lines) == [
        "local/dates",
        "local/digits",
        "local/python-docstrings",
        "local/python-names",
        "local/python-parameters",
        "local/python-questions",
        "local/python-signatures",
        "local/python-source",
    ]
    assert lines["local/digits"] == "8x8 images of handwritten digits (CC-BY-4.0)"
    seen = 0
    for name in CORPORA.names():
        corpus = CORPORA.get(name)
        assert corpus.summary
        assert corpus.license
        assert corpus.packages
        seen += 1
    assert seen == 8


CLEANED = {
    "sections": (
        "Compute the sum of all the values along one axis.\n\nParameters\n----------\na : array_like\n    X",
        "Compute the sum of all the values along one axis.",
    ),
    "google": (
        "Compute the sum of all the values along one axis.\n\nArgs:\n    a: Values.",
        "Compute the sum of all the values along one axis.",
    ),
    "doctest": (
        "Compute the sum of all the values along one axis.\n\n>>> import numpy",
        "Compute the sum of all the values along one axis.",
    ),
    "title": (
        "Sums (:mod:`numpy.sums`)\n====================\nCompute the sum of all the values along one axis.",
        "Compute the sum of all the values along one axis.",
    ),
    "names": (
        "Like `numpy.sum`, but for a pandas DataFrame or a torch.Tensor of scikit-learn's `n_samples` rows.",
        "Like sum, but for a library table or a array of library's n samples rows.",
    ),
    "markup": (
        "See www.numpy.org and :class:`~torch.nn.Linear` for :math:`x^2` i.e. ``a[0]=1`` the weights it has.",
        "See and Linear for i.e. the weights it has.",
    ),
    "licence": (
        "Copyright 2020 The SciPy authors.\nCompute the sum of all the values along one axis.",
        "Compute the sum of all the values along one axis.",
    ),
    "short": ("Return the sum.", ""),
    "no prose": ("Parameters\n----------\na : the values of which the sum is returned, or None", ""),
    "template": ("{klass} of {name} with %(axes)s over which the sum goes.", ""),
}


@pytest.mark.parametrize("case", CLEANED)
def test_clean(case):
    docstring, expected = CLEANED[case]
    assert clean(docstring) == expected


def test_near_duplicates_are_dropped():
    seen = set()
    text = "the sum of all the values along one axis of it"
    assert python_docstrings._is_new(text, seen)
    assert not python_docstrings._is_new("The sum, of all the values along one axis!", seen)
    assert python_docstrings._is_new("the product of some numbers that nobody has seen before", seen)


def test_docstrings_are_balanced_and_no_module_is_in_two_splits(docstrings):
    modules, labels = {}, Counter()
    for split in SPLITS:
        data = docstrings.splits[split]
        assert data.features["label"].names == list(LIBRARIES)
        labels.update(data["label"])
        modules[split] = set(data["path"])
    assert len(labels) == 8
    assert all(600 <= count <= 800 for count in labels.values())
    assert not modules["train"] & modules["test"]
    assert not modules["train"] & modules["validation"]
    assert not modules["validation"] & modules["test"]
    total = sum(labels.values())
    for split in ("validation", "test"):
        assert 0.08 < len(docstrings.splits[split]) / total < 0.13


def test_docstrings_do_not_name_their_library(docstrings):
    names = re.compile(
        r"\b(numpy|scipy|pandas|sklearn|scikit|pytorch|torch|sympy|networkx|python|np|pd|nx|ndarray|tensors?"
        r"|dataframes?|digraphs?)\b",
        re.IGNORECASE,
    )
    seen = 0
    for split in SPLITS:
        for text in docstrings.splits[split]["text"]:
            assert not names.search(text), text
            assert 8 <= len(text.split()) <= 80
            seen += 1
    assert seen >= 4800


def test_docstrings_can_be_learned_but_not_read_off(docstrings):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = docstrings.splits["train"], docstrings.splits["test"]
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10, max_iter=300))
    model.fit(list(train["text"]), list(train["label"]))
    accuracy = model.score(list(test["text"]), list(test["label"]))
    assert 0.5 < accuracy < 0.8  # chance is 0.125


def test_docstrings_are_the_same_when_made_again(docstrings, monkeypatch):
    monkeypatch.setattr(python_docstrings, "LIBRARIES", {"networkx": LIBRARIES["networkx"]})
    first = list(PythonDocstrings().rows())
    assert first == list(PythonDocstrings().rows())
    assert len(first) >= 600


def test_source_files_are_whole_and_apart():
    built = PythonSource().build()
    rows = [(split, row) for split in SPLITS for row in built.splits[split]]
    assert 3_000_000 < sum(len(row["text"].encode()) for _, row in rows) <= MAX_TOTAL_BYTES
    assert len({row["path"] for _, row in rows}) == len({row["text"] for _, row in rows}) == len(rows)
    assert all(split == split_of(row["path"]) for split, row in rows)
    texts = {row["path"]: row["text"] for _, row in rows}
    assert "class JSONDecoder" in texts["json/decoder.py"]
    assert not [path for path in texts if "/test" in f"/{path}" and "/tests/" in f"/{path}"]


def test_digits_are_images_with_equal_shares(digits):
    assert {split: len(data) for split, data in digits.splits.items()} == {
        "train": 1437,
        "validation": 180,
        "test": 180,
    }
    row = digits.splits["train"][0]
    assert (row["image"].size, row["image"].mode) == ((8, 8), "L")
    # The first digit of the file is a 0 whose first row of pixels is 0 0 5 13 9 1 0 0 of 16.
    assert np.asarray(row["image"])[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert row["label"] == 0
    assert set(Counter(digits.splits["test"]["label"]).values()) == {18}


def test_digits_have_the_pixels_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    totals = Counter()
    for split in SPLITS:
        for row in digits.splits[split]:
            totals[row["label"]] += int(np.rint(np.asarray(row["image"]) / 255 * 16).sum())
    images, labels = load_digits(return_X_y=True)
    assert totals == {digit: int(images[labels == digit].sum()) for digit in range(10)}


def test_building_imports_none_of_the_libraries(tmp_path):
    code = (
        "import sys\nfrom hf_llm_recipes.data.corpora import python_docstrings as corpus\n"
        "found = next(corpus._candidates(corpus.source_root('sympy')))\n"
        "assert found[1]\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"sympy", "torch", "pandas", "sklearn"}.isdisjoint(done.stdout.split())


@pytest.fixture(scope="module")
def names():
    return PythonNames().build()


SOURCE = '''
import os.path
import numpy as np
class Base:
    def read_all(self, path, *names, HTTPMode=None):
        """Doc of
        two lines."""
        # a comment
        found = os.path.join(path, "x") + str(3)
        raise MyError(found, names[0].size_of, np)
'''
WORDS_AND_TAGS = """
def read/B-function all/I-function ( self , path/B-parameter , * names/B-parameter , http/B-parameter
mode/I-parameter = none ) : ; found = os/B-module . path/B-attribute . join/B-function ( path/B-parameter ,
" ) + str/B-class ( 0 ) ; raise my/B-class error/I-class ( found , names/B-parameter [ 0 ] . size/B-attribute
of/I-attribute , np/B-module ) ;
"""


def test_names_are_tagged_with_what_they_are():
    ((words, tags),) = tagged(SOURCE)
    found = [word if tag == "O" else f"{word}/{tag}" for word, tag in zip(words, tags, strict=True)]
    assert found == WORDS_AND_TAGS.split()


PASSED_OVER = {
    "a decorator": "@cached\ndef f(one, two):\n    return one.first + two.second",
    "a nested function": "def f(one, two):\n    def g():\n        return one.first + two\n    return g",
    "an import": "def f(one, two):\n    import os\n    return one.first + two.second",
    "an f-string": "def f(one, two):\n    return f'{one}' + one.first + two.second",
    "letters beyond ASCII": "def f(one, two):\n    return 'é' + one.first + two.second",
    "few words": "def f(one):\n    return one",
    "no Python": "def f(:",
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_functions_that_are_passed_over(case):
    assert list(tagged(PASSED_OVER[case])) == []


def test_names_have_a_tag_a_word_and_no_file_is_in_two_splits(names):
    paths = {split: set(names.splits[split]["path"]) for split in SPLITS}
    assert not paths["train"] & paths["test"]
    assert not paths["train"] & paths["validation"]
    assert not paths["validation"] & paths["test"]
    rows = [row for split in SPLITS for row in names.splits[split]]
    assert 3000 < len(rows) <= MAX_ROWS
    assert len({tuple(row["tokens"]) for row in rows}) == len(rows)
    assert all(12 <= len(row["tokens"]) == len(row["label"]) <= 60 for row in rows)
    assert all(word == word.lower() and word.isascii() for row in rows for word in row["tokens"])
    assert names.splits["train"].features["label"].feature.names == TAGS
    counts = Counter(TAGS[number] for row in rows for number in row["label"])
    assert min(counts[tag] for tag in TAGS if tag.startswith("B-")) > 500
    for row in rows[:200]:  # an inside follows its own beginning
        tags = ["O", *(TAGS[number] for number in row["label"])]
        assert all(before[2:] == tag[2:] for before, tag in pairwise(tags) if tag.startswith("I-"))


def test_a_words_most_frequent_tag_is_not_enough(names):
    from hf_llm_recipes.token_evaluation import spans

    counts = {}
    for row in names.splits["train"]:
        for word, tag in zip(row["tokens"], row["label"], strict=True):
            counts.setdefault(word, Counter())[TAGS[tag]] += 1
    right = said = true = 0
    for row in names.splits["test"]:
        guess = [counts[w].most_common(1)[0][0] if w in counts else "O" for w in row["tokens"]]
        found, expected = set(spans(guess)), set(spans([TAGS[number] for number in row["label"]]))
        right, said, true = right + len(found & expected), said + len(found), true + len(expected)
    assert 0.3 < 2 * right / (said + true) < 0.6
