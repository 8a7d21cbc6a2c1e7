"""Questions about Python signatures with one right and one wrong answer: no download, made on any machine."""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, source_root, split_of
from hf_llm_recipes.data.corpora.python_docstrings import LIBRARIES, SKIPPED_FOLDERS
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

ROWS_PER_LIBRARY = 400
ROWS_PER_FILE = 6
MAX_CHARACTERS = 80  # of a signature
MIN_PLAIN, MAX_PLAIN = 1, 4  # parameters without a default, `self` and `cls` aside
MAX_DEFAULTS = 3
RECEIVERS = ("self", "cls")
OPENING = [  # of every prompt: what is asked, and one answered example
    {"role": "system", "content": "Name the parameters with a default value."},
    {"role": "user", "content": "def read(path, mode=None, size=0)"},
    {"role": "assistant", "content": "mode, size"},
]


@CORPORA.register
class PythonSignatures(Corpus):
    """Which parameters of a function have a default value? A prompt, the right answer and a wrong one.

    Columns: ``prompt``, messages that say what is asked, show one answered example and end with the
    signature; ``answer``, the names in order with commas, the only right one; ``rejected``, a
    wrong one of names that stand there too: the parameters without a default, all of them, or all but one
    of the right ones; ``path`` (library and module).

    A signature is shown without annotations, at most 80 characters, with 1 to 3 defaults and 1 to 4
    parameters without one besides ``self`` and ``cls``. Functions with ``*``, ``**`` or ``/``, and those
    whose parameters are word for word those of an earlier row, are passed over. At most 6 rows a file and
    400 a library, files in the order of a hash of their paths; no file is in two splits, about 80, 10 and
    10 % of the files. The rows depend on the installed versions (`Built.made_from`).
    """

    summary = "which parameters of a Python function have a default: prompts, right and wrong answers"
    license = "BSD-3-Clause; PSF-2.0 for python"
    version = 1
    packages = tuple(distribution for distribution, _ in LIBRARIES.values())

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import Features, List, Value

        message = {"role": Value("string"), "content": Value("string")}
        texts = {name: Value("string") for name in ("answer", "rejected", "path")}
        return Features({"prompt": List(message), **texts})

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row); an order that mixes the libraries."""
        found, seen = [], set()
        for library, (_, module) in LIBRARIES.items():
            found += islice(_of_library(library, source_root(module), seen), ROWS_PER_LIBRARY)
        found.sort(key=lambda row: fraction_of(row["prompt"][-1]["content"]))
        for row in found:
            yield split_of(row["path"]), row


def _of_library(library: str, root: Path, seen: set[str]) -> Iterator[dict]:
    """Yields rows whose parameters are new, files in hash order."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = [name for name in files if not SKIPPED_FOLDERS.intersection(name.split("/")[:-1])]
    for name in sorted(names, key=fraction_of):
        taken = 0
        for signature, plain, defaults in signatures(files[name].read_bytes()):
            parameters = signature.partition("(")[2]
            if taken < ROWS_PER_FILE and parameters not in seen:
                seen.add(parameters)
                taken += 1
                yield {
                    "prompt": [*OPENING, {"role": "user", "content": signature}],
                    "answer": ", ".join(defaults),
                    "rejected": ", ".join(wrong(signature, plain, defaults)),
                    "path": f"{library}/{name}",
                }


def signatures(source: bytes) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yields (signature, parameters without a default, those with one) of each function taken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.args.posonlyargs:
            continue
        if node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
            continue
        named = [one.arg for one in node.args.args]
        first = len(named) - len(node.args.defaults)
        plain, defaults = [name for name in named[:first] if name not in RECEIVERS], named[first:]
        signature = f"def {node.name}({ast.unparse(_without_annotations(node.args))})"
        if (
            MIN_PLAIN <= len(plain) <= MAX_PLAIN
            and 1 <= len(defaults) <= MAX_DEFAULTS
            and len(signature) <= MAX_CHARACTERS
            and signature.isascii()
        ):
            yield signature, plain, defaults


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    bare = copy.deepcopy(arguments)
    for one in bare.args:
        one.annotation = None
    return bare


def wrong(signature: str, plain: list[str], defaults: list[str]) -> list[str]:
    """Returns a wrong answer; which kind hangs on the signature alone."""
    kinds = [plain, [*plain, *defaults]]
    if len(defaults) > 1:
        kinds.append(defaults[:-1])
    return kinds[int(fraction_of(f"wrong {signature}") * len(kinds))]
