"""Questions about functions whose answer stands in their documentation: no download, made on any machine."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, source_root, split_of
from hf_llm_recipes.data.corpora.python_docstrings import LIBRARIES, SKIPPED_FOLDERS
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

DOCUMENTED = ("networkx", "numpy", "pandas", "scikit-learn", "scipy")  # whose parameters are listed alike
FUNCTIONS_PER_LIBRARY = 320
FUNCTIONS_PER_FILE = 6
QUESTIONS = 2  # about a function at most
MIN_PARAMETERS = 2  # that are documented
MIN_WORDS, MAX_WORDS = 40, 180  # of a context
MAX_ANSWER_WORDS, MAX_DEFAULT = 16, 24  # words; characters
PLAIN_DEFAULTS = {"None", "True", "False"}  # asked for only where there is no other: too easily guessed
RECEIVERS = ("self", "cls")

ENTRY = re.compile(r"(\w+) ?: ?(\S.*)")
UNDERLINE = re.compile(r"\s*-{3,}\s*$")
KIND = re.compile(r"[\w .\-]+?(?=,|$| *\(default| *=| *\{| *default)")
ODD = re.compile(r":\w+:|\{\w*\}|%\(|>>>|\.\. |\\")
SENTENCE = re.compile(r"(.+?(?<!i\.e)(?<!e\.g)(?<!etc)\.)(\s|$)", re.DOTALL)
DEFAULT, TYPE, MEANING = (
    "What is the default value of {}?",
    "What type does {} have?",
    "What does {} stand for?",
)

Question = tuple[str, str, int]  # question, answer, its first character's place in the context
Function = ast.FunctionDef | ast.AsyncFunctionDef


@CORPORA.register
class PythonParameters(Corpus):
    """A function's signature and documentation, a question about a parameter, and where its answer stands.

    Columns: ``id``, ``context``, ``question``, ``answers`` (SQuAD's shape: ``text`` and ``answer_start``,
    lists of one), ``path`` (library and module). A question asks for a parameter's default value, which
    stands in the signature, for its type, or for the first sentence about it. The signature has no
    annotations; the text is the first paragraph and the documented parameters, without backticks, 40 to 180
    words. Two questions at most about a function; functions whose documentation stands in an earlier row are
    passed over. At most 6 functions a file and 320 a library, files in the order of a hash of their paths; no
    file is in two splits, about 80, 10 and 10 % of the files. The rows depend on the installed versions
    (`Built.made_from`).
    """

    summary = "questions about parameters of Python functions, answered by words of their documentation"
    license = "BSD-3-Clause"
    version = 1
    packages = tuple(LIBRARIES[name][0] for name in DOCUMENTED)

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import Features, List, Value

        answers = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
        texts = {name: Value("string") for name in ("id", "context", "question")}
        return Features({**texts, "answers": answers, "path": Value("string")})

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row); an order that mixes the libraries."""
        found, seen = [], set()
        for library in DOCUMENTED:
            of_library = _of_library(library, source_root(LIBRARIES[library][1]), seen)
            found += islice(of_library, FUNCTIONS_PER_LIBRARY)
        found.sort(key=lambda one: fraction_of(one[1].text))
        for path, passage in found:
            for number, (question, answer, start) in enumerate(passage.questions):
                yield (
                    split_of(path),
                    {
                        "id": f"{path}:{passage.name}:{number}",
                        "context": passage.text,
                        "question": question,
                        "answers": {"text": [answer], "answer_start": [start]},
                        "path": path,
                    },
                )


@dataclass
class Passage:
    """A function as it is shown.

    Args:
        name: Of the function.
        text: Signature and documentation.
        questions: About it.
    """

    name: str
    text: str
    questions: list[Question]


def _of_library(library: str, root: Path, seen: set[str]) -> Iterator[tuple[str, Passage]]:
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = [name for name in files if not SKIPPED_FOLDERS.intersection(name.split("/")[:-1])]
    for name in sorted(names, key=fraction_of):
        taken = 0
        for passage in passages(files[name].read_bytes()):
            body = passage.text.partition(")")[2]
            if taken < FUNCTIONS_PER_FILE and body not in seen:
                seen.add(body)
                taken += 1
                yield f"{library}/{name}", passage


def passages(source: bytes) -> Iterator[Passage]:
    """Yields what is shown of each function that is taken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in tree.body:
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(one, Function) and not one.name.startswith("_"):
                made = _passage(one)
                if made is not None and made.questions:
                    yield made


def _passage(node: Function) -> Passage | None:
    summary, entries = documented(ast.get_docstring(node, clean=False) or "")
    if len(entries) < MIN_PARAMETERS or node.args.posonlyargs:
        return None
    text, defaults = signature(node)
    text += f" {summary} Parameters:"
    asked: dict[str, list[Question]] = {DEFAULT: [], TYPE: [], MEANING: []}
    for name, kind, description in entries:
        if len(f"{text} {name} : {kind} {description}".split()) > MAX_WORDS:
            break
        text += f" {name} : "
        found = KIND.match(kind)
        if found and found[0].strip():
            asked[TYPE].append((TYPE.format(name), found[0].strip(), len(text)))
        text += f"{kind}. "
        sentence = SENTENCE.match(description)
        if sentence and len(sentence[1].split()) <= MAX_ANSWER_WORDS:
            asked[MEANING].append((MEANING.format(name), sentence[1].rstrip("."), len(text)))
        text += description
    others = [one for one in defaults if one[1] not in PLAIN_DEFAULTS]
    asked[DEFAULT] = [(DEFAULT.format(name), value, at) for name, value, at in others or defaults]
    if not text.isascii() or ODD.search(text) or len(text.split()) < MIN_WORDS:
        return None
    return Passage(node.name, text, _chosen(asked, f"{node.name} {text}"))


def _chosen(asked: dict[str, list[Question]], key: str) -> list[Question]:
    """Questions of different kinds; which, and about which parameter, hangs on the text alone."""
    kinds = sorted((kind for kind in asked if asked[kind]), key=lambda kind: fraction_of(kind + key))
    return [asked[kind][int(fraction_of(key + kind) * len(asked[kind]))] for kind in kinds[:QUESTIONS]]


def signature(node: Function) -> tuple[str, list[Question]]:
    """Returns a function's name and parameters without annotations, and (name, default, its place) of each.

    ``self`` and ``cls`` are left out, and defaults of more than 24 characters are no answers.
    """
    given = node.args
    plain = [None] * (len(given.args) - len(given.defaults))
    shown = list(zip(given.args, [*plain, *given.defaults], strict=True))
    shown = [(one.arg, value) for one, value in shown if one.arg not in RECEIVERS]
    if given.vararg:
        shown.append((f"*{given.vararg.arg}", None))
    shown += [(one.arg, value) for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        shown.append((f"**{given.kwarg.arg}", None))
    text, defaults = f"{node.name}(", []
    for number, (name, value) in enumerate(shown):
        text += f"{', ' if number else ''}{name}"
        if value is not None:
            text += "="
            default = ast.unparse(value)
            if len(default) <= MAX_DEFAULT:
                defaults.append((name, default, len(text)))
            text += default
    return f"{text})", defaults


def documented(docstring: str) -> tuple[str, list[tuple[str, str, str]]]:
    """Returns a docstring's first paragraph and (name, type, description's first paragraph) of parameters."""
    lines = inspect.cleandoc(docstring).splitlines()
    summary = _plain(" ".join(lines[: next((i for i, line in enumerate(lines) if not line), len(lines))]))
    heads = [i for i in range(len(lines) - 1) if lines[i].strip() and UNDERLINE.match(lines[i + 1])]
    begin = next((i for i in heads if lines[i].strip() == "Parameters"), None)
    if begin is None:
        return summary, []
    end = next((i for i in heads if i > begin), len(lines))
    entries: list[tuple[str, str, list[str]]] = []
    reading = False
    for line in lines[begin + 2 : end]:
        found = ENTRY.fullmatch(line.rstrip())
        if found:
            entries.append((found[1], _plain(found[2]).rstrip("."), []))
        elif line.strip() and not line.startswith(" "):
            entries.append(("", "", []))  # several names, or text that is none's
        reading = bool(found) or (reading and bool(line.strip()))
        if reading and not found and entries:
            entries[-1][2].append(line)
    made = [(name, kind, _plain(" ".join(rest))) for name, kind, rest in entries if name]
    return summary, [one for one in made if one[2]]


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())
