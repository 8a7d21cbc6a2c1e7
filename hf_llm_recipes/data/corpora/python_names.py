"""What is each name in a piece of Python? A tagging task with known answers, made on any machine."""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, source_root, split_of
from hf_llm_recipes.data.corpora.python_source import source_files, source_text
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

ROLES = ("attribute", "class", "function", "module", "parameter")
TAGS = ["O", *(f"{mark}-{role}" for role in ROLES for mark in "BI")]
MAX_ROWS = 5000
ROWS_PER_FILE = 15
MIN_WORDS, MAX_WORDS = 12, 60
STRING, NUMBER, LINE_END = '"', "0", ";"

CAMEL = re.compile(r"_?[A-Z]+[a-z0-9]\w*")  # a class, as PEP 8 names it
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
CLASSES = {name for name, value in vars(builtins).items() if isinstance(value, type)}
SKIPPED_TOKENS = {
    tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING
}  # fmt: skip

Place = tuple[int, int]  # line from 1, column from 0


@CORPORA.register
class PythonNames(Corpus):
    """Beginnings of functions of the standard library, each name tagged with what it is.

    Columns: ``tokens``, ``label`` (BIO tags as `ClassLabel` numbers), ``path``. A name becomes its words in
    lower case (``HTTPServer`` -> http server, ``read_all`` -> read all), all of them one span, so that
    neither case nor underscores tell a class from a function. Strings are ``"``, numbers ``0``, line ends
    ``;``; docstrings, comments and annotations' quotes are left out. The tags:

    - ``function``: the name defined, a name or attribute that is called and is no class;
    - ``class``: a class of the module or of the built-ins, or a name written like one;
    - ``module``: bound by an ``import`` of the file;
    - ``parameter``: of this function, where it is declared and wherever it is used; not ``self``, ``cls``;
    - ``attribute``: behind a dot, neither called nor a class;
    - ``O``: the rest; local variables too, which look like parameters until the declaration is read.

    At most 60 words a row, 15 rows a file and 5,000 rows, files in the order of a hash of their paths.
    Functions with decorators, imports, f-strings, letters beyond ASCII or functions in them are passed
    over, and rows of the same words are taken once. No file is in two splits, about 80, 10 and 10 % of
    the files. The rows depend on the interpreter's version (`Built.made_from`).
    """

    summary = "words of Python functions tagged function, class, module, parameter, attribute"
    license = "PSF-2.0"
    version = 1
    packages = ("python",)

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import ClassLabel, Features, List, Value

        return Features(
            {"tokens": List(Value("string")), "label": List(ClassLabel(names=TAGS)), "path": Value("string")}
        )

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row) in hash order."""
        seen: set[tuple[str, ...]] = set()
        for name, path in source_files(source_root("python")):
            found = [row for row in tagged(source_text(path)) if tuple(row[0]) not in seen]
            found.sort(key=lambda row: fraction_of(" ".join(row[0])))
            for words, tags in found[:ROWS_PER_FILE]:
                if len(seen) == MAX_ROWS:
                    return
                if tuple(words) not in seen:
                    seen.add(tuple(words))
                    numbers = [TAGS.index(tag) for tag in tags]
                    yield split_of(name), {"tokens": words, "label": numbers, "path": name}


def tagged(source: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yields (words, tags) of each function of a file that is taken; nothing where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    modules = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    classes = CLASSES | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    lines = source.splitlines(keepends=True)
    for node in _functions(tree):
        if _is_taken(node):
            text = "".join(lines[node.lineno - 1 : node.end_lineno])
            row = _row(text, node, _roles(node, modules, classes)) if text.isascii() else None
            if row is not None and len(row[0]) >= MIN_WORDS:
                yield row


def _functions(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Yields functions and methods; none inside a function, which may use the outer one's parameters."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            yield child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child)


def _is_taken(function: ast.FunctionDef) -> bool:
    odd = (
        ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
        ast.Import, ast.ImportFrom, ast.JoinedStr,
    )  # fmt: skip
    inside = (node for node in ast.walk(function) if node is not function)
    return not function.decorator_list and not any(isinstance(node, odd) for node in inside)


def _roles(function: ast.FunctionDef, modules: set[str], classes: set[str]) -> dict[Place, str]:
    """The role of each name of a function by its place in the file."""
    given = function.args
    declared = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    parameters = [one for one in declared if one is not None and one.arg not in ("self", "cls")]
    names = {one.arg for one in parameters}
    roles = {(one.lineno, one.col_offset): "parameter" for one in parameters}
    called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            place = (node.end_lineno, node.end_col_offset - len(node.attr))
            rest = "function" if id(node) in called else "attribute"
            roles[place] = "class" if CAMEL.fullmatch(node.attr) else rest
        elif isinstance(node, ast.Name):
            role = _role_of_name(node.id, id(node) in called, names, modules, classes)
            if role is not None:
                roles[node.lineno, node.col_offset] = role
    return roles


def _role_of_name(
    name: str, called: bool, parameters: set[str], modules: set[str], classes: set[str]
) -> str | None:
    if name in parameters:
        return "parameter"
    if name in modules:
        return "module"
    if name in classes or CAMEL.fullmatch(name):
        return "class"
    return "function" if called else None


def _row(text: str, function: ast.FunctionDef, roles: dict[Place, str]) -> tuple[list, list] | None:
    """Words and tags of a function's beginning; None where its lines alone do not tokenize."""
    docstring = ast.get_docstring(function, clean=False) is not None
    skipped = range(function.body[0].lineno, function.body[0].end_lineno + 1) if docstring else range(0)
    first, words, tags, before = function.lineno - 1, [], [], ""
    try:
        found = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return None
    for token in found:
        line = token.start[0] + first
        if token.type in SKIPPED_TOKENS or line in skipped:
            continue
        role = "function" if before == "def" else roles.get((line, token.start[1]))
        before = token.string
        parts = _words(token)
        if len(words) + len(parts) > MAX_WORDS:
            break
        marked = role is not None and token.type == tokenize.NAME
        words += parts
        tags += chain([f"B-{role}"], [f"I-{role}"] * (len(parts) - 1)) if marked else ["O"] * len(parts)
    return words, tags


def _words(token: tokenize.TokenInfo) -> list[str]:
    plain = {tokenize.STRING: STRING, tokenize.NUMBER: NUMBER, tokenize.NEWLINE: LINE_END}
    if token.type in plain:
        return [plain[token.type]]
    if token.type == tokenize.NAME:
        return [part.lower() for part in PARTS.findall(token.string)] or ["_"]
    return [token.string]
