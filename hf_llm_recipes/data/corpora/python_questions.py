"""Conversations about Python functions, with answers that are known: no download, made on any machine."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, source_root, split_of
from hf_llm_recipes.data.corpora.python_docstrings import LEGAL, LIBRARIES, SKIPPED_FOLDERS
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

ROWS_PER_LIBRARY = 600
ROWS_PER_FILE = 15
MIN_WORDS, MAX_WORDS = 4, 25  # of an answer
MIN_LINES, MAX_LINES, MAX_CHARACTERS = 3, 10, 450  # of a function
ASKING = (
    "What does this Python function do?",
    "Say in one sentence what this function does.",
    "Explain this function briefly.",
)
ASKING_DEFAULTS = "Which of its parameters have a default value?"
NO_DEFAULTS = "None of them."
ASKED_WITHOUT_DEFAULTS = 0.25  # share; most functions have none, and always "None" would be right too often
# what a sentence of prose does not hold: roles, doctests, templates, references, addresses
ODD = re.compile(r">>>|:\w+:|\{|\}|\[\d+\]|http|@|\\|\||\.\. |\bTODO\b|%\(")
SENTENCE = re.compile(r"(.+?(?<!i\.e)(?<!e\.g)(?<!etc)[.!?])(\s|$)", re.DOTALL)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@CORPORA.register
class PythonQuestions(Corpus):
    """One or two questions about a short function, the docstring's first sentence as the first answer.

    Columns: ``messages`` (``role`` and ``content``), ``path`` (library and module). Conversations about
    functions whose parameters have defaults, and a quarter of the others, go on: which of them have one,
    answered with their names in order, or "None of them."; that answer is the only right one.

    The function is shown as ``ast.unparse`` writes it, without docstring and comments; 3 to 10 lines.
    Functions with decorators, private ones, those whose first sentence has under 4 or over 25 words, is no
    plain prose or stands in an earlier row, are passed over. At most 15 rows a file and 600 a library,
    files in the order of a hash of their paths; no file is in two splits, about 80, 10 and 10 % of the
    files. The rows depend on the installed versions (`Built.made_from`).
    """

    summary = "questions about short Python functions and their answers, as conversations"
    license = "BSD-3-Clause; PSF-2.0 for python"
    version = 1
    packages = tuple(distribution for distribution, _ in LIBRARIES.values())

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import Features, List, Value

        message = {"role": Value("string"), "content": Value("string")}
        return Features({"messages": List(message), "path": Value("string")})

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row); an order that mixes the libraries."""
        found, seen = [], set()
        for library, (_, module) in LIBRARIES.items():
            found += islice(_of_library(library, source_root(module), seen), ROWS_PER_LIBRARY)
        found.sort(key=lambda row: fraction_of(row["messages"][0]["content"]))
        for row in found:
            yield split_of(row["path"]), row


def _of_library(library: str, root: Path, seen: set[str]) -> Iterator[dict]:
    """Yields rows of new answers, files in hash order."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = [name for name in files if not SKIPPED_FOLDERS.intersection(name.split("/")[:-1])]
    for name in sorted(names, key=fraction_of):
        taken = 0
        for code, answer, defaults in questions(files[name].read_bytes()):
            if taken < ROWS_PER_FILE and answer.lower() not in seen:
                seen.add(answer.lower())
                taken += 1
                yield {"messages": conversation(code, answer, defaults), "path": f"{library}/{name}"}


def questions(source: bytes) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (code, its docstring's first sentence, parameters with a default) of each function taken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in _functions(tree):
        answer = first_sentence(ast.get_docstring(node) or "")
        if answer and not node.decorator_list and not node.name.startswith("_"):
            code = _without_docstring(node)
            lines = code.count("\n") + 1
            if MIN_LINES <= lines <= MAX_LINES and len(code) <= MAX_CHARACTERS and code.isascii():
                yield code, answer, _with_default(node.args)


def _functions(tree: ast.Module) -> Iterator[Function]:
    """Yields the functions of a module and the methods of its classes, in order."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        yield from (one for one in inner if isinstance(one, Function))


def _without_docstring(node: Function) -> str:
    bare = type(node)(**{field: getattr(node, field, None) for field in node._fields})
    bare.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(ast.copy_location(bare, node)))


def _with_default(arguments: ast.arguments) -> list[str]:
    named = [*arguments.posonlyargs, *arguments.args]
    last = named[len(named) - len(arguments.defaults) :]
    only = [a for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    return [one.arg for one in (*last, *only)]


def first_sentence(docstring: str) -> str:
    """Returns the first sentence of a docstring where it is plain prose of a usual length, else ``""``."""
    found = SENTENCE.match(docstring.strip().split("\n\n")[0])
    text = " ".join(found[1].replace("``", "`").split()) if found else ""
    plain = text.isascii() and text[:1].isupper() and not ODD.search(text) and not LEGAL.search(text)
    return text if plain and MIN_WORDS <= len(text.split()) <= MAX_WORDS else ""


def conversation(code: str, answer: str, defaults: list[str]) -> list[dict[str, str]]:
    """Returns the messages; how they ask, and whether they go on, hangs on the code alone."""
    asked = ASKING[int(fraction_of(f"ask {code}") * len(ASKING))]
    messages = [("user", f"{asked}\n\n```python\n{code}\n```"), ("assistant", answer)]
    if defaults or fraction_of(f"more {code}") < ASKED_WITHOUT_DEFAULTS:
        named = f"`{', '.join(defaults)}`." if defaults else NO_DEFAULTS
        messages += [("user", ASKING_DEFAULTS), ("assistant", named)]
    return [{"role": role, "content": content} for role, content in messages]
