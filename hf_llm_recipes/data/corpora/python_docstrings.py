"""Which library does a docstring come from? Eight classes, no download, known labels."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, source_root
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

# label -> (distribution, import name)
LIBRARIES = {
    "networkx": ("networkx", "networkx"),
    "numpy": ("numpy", "numpy"),
    "pandas": ("pandas", "pandas"),
    "python": ("python", "python"),
    "scikit-learn": ("scikit-learn", "sklearn"),
    "scipy": ("scipy", "scipy"),
    "sympy": ("sympy", "sympy"),
    "torch": ("torch", "torch"),
}
SKIPPED_FOLDERS = {
    "site-packages", "tests", "test", "testing", "_testing", "idle_test", "_internal", "lib2to3",
    "pydoc_data", "externals", "_external", "extern", "vendor", "_vendor", "_vendored", "third_party",
    "array_api_compat", "array_api_extra", "_highspy", "uarray", "cobyqa", "pyprima", "benchmarks",
}  # fmt: skip
ROWS_PER_CLASS = 800
CANDIDATES_PER_CLASS = 1200
CANDIDATES_PER_FILE = 20
MIN_WORDS, MAX_WORDS = 8, 80
SHINGLE = 4
MAX_SHARED = 0.4

STOP_LINE = re.compile(
    r"""^\s*(
        >>> | \.\.\s | :(param|type|returns?|rtype|raises?|arg|keyword|ivar|cvar|attr)\b | @(param|return)\b
        | (args?|arguments?|keyword\ args?|parameters?|returns?|yields?|raises?|examples?|notes?|references?
           |attributes?|methods?|see\ also|warnings?|usage|shape|inputs?|outputs?|explanation|todo|doctest
           |syntax|exceptions?|kwargs|warns|options|constants|functions|classes|contents)\s*:{0,2}\s*$
        | (args?|arguments?|parameters?|returns?|raises?|examples?|usage|note|warning|todo|synopsis|see\ also)
          \s*::?\s
        | ```
    )""",
    re.IGNORECASE | re.VERBOSE,
)
UNDERLINE = re.compile(r"^\s*[-=~^*#]{3,}\s*$")
REMOVED = re.compile(
    r"""https?://\S+ | www\.\S+ | \S+@\S+\.\w+ | :math:`[^`]*` | \$[^$]*\$ | \\\w+(\{[^}]*\})*
        | \[\d+\]_? | `+<[^>]*>`_+ | %\([^)]*\)s | \{[^}]*\} | :pep:`\d+` | :rfc:`\d+`
        | read\ more\ in\ the\s+:\w+:`[^`]*`\.? | <[^>\s]+>""",
    re.IGNORECASE | re.VERBOSE,
)
ROLE = re.compile(r":[\w:+-]+:`(?:[^`<]*<)?[~!]?(?P<target>[^`<>]*)>?`")
INLINE_CODE = re.compile(r"(?P<mark>`+)(?P<code>[^`]+)(?P=mark)_*")
PLAIN_NAME = re.compile(r"^[~!]?[A-Za-z_][\w.]*(\(\))?$")
DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*\.[A-Za-z_]\w\w+(\(\))?")
CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
LEGAL = re.compile(
    r"copyright|licen[sc]e|all rights reserved|redistribut|warranty|author:|spdx", re.IGNORECASE
)

LIBRARY_NAMES = re.compile(
    r"""\b(networkx|nx|numpy|np|numarray|pandas|pd|c?python\d*|py|stdlib|scikit[\s-]*learn|sklearn|scikits?
        |scipy|sp|sympy|mpmath|torch\w*|pytorch|libtorch|aten|tensorflow|tf|jax|flax|keras|matplotlib|pyplot|plt
        |cython|transformers?|hugging\s*face|pyarrow|arrow|cupy|dask|array[\s_]api|pep\s*\d+|guido|lapack|blas|f2py
        |networks?\s*x|sci\s+py|sym\s+py|num\s+py|py\s+torch|(tensor|array)\s+flow)\b""",
    re.IGNORECASE | re.VERBOSE,
)
TYPE_NAMES = [
    (re.compile(r"\b(nd\s*arrays?|tensors?|d?type\s+tensors?|arrays?)\b", re.IGNORECASE), "array"),
    (re.compile(r"\b(data\s*frames?)\b", re.IGNORECASE), "table"),
    (re.compile(r"\b(multi\s*index|index\s*es|indexes)\b", re.IGNORECASE), "index"),
    (re.compile(r"\b(di\s*graphs?|multi\s*(di\s*)?graphs?|multi\s+di\s+graphs?)\b", re.IGNORECASE), "graph"),
    (
        re.compile(r"\b(nn|autograd|inductor|dynamo|fx|xp|sympify|groupby|ufuncs?|dtypes?)\b", re.IGNORECASE),
        "it",
    ),
]


@CORPORA.register
class PythonDocstrings(Corpus):
    """Prose of docstrings, labeled with the library it was written for.

    Columns: ``text``, ``label`` (a `ClassLabel`), ``path`` (the module's path in its package).

    What was done, so that the label is not simply printed in the text:

    - Only the prose before the first section, doctest, directive or field list is kept;
      at most 80 words of it.
    - URLs, mathematics, footnotes, templates, licence and author lines are removed. Inline code and
      roles that are one name become words (``n_samples`` -> "n samples"); other code is removed.
    - Every library's name and alias, in any text, is replaced by "library"; names of types that give a
      library away (ndarray, Tensor, DataFrame, DiGraph, …) by a common word.
    - Texts under 8 words, and texts of which more than 40 % of the 4-word sequences were seen before,
      are dropped, whatever their class or split: no near-duplicates between splits.
    - At most 800 rows a class; no module is in two splits: in the order of a hash of their paths, the
      modules of a class fill test to a tenth, then validation, then train.

    The rows depend on the installed versions of the libraries (`Built.made_from`): compare figures
    only between equal fingerprints. Domain words (node, gradient, polynomial) stay: they are the task.
    """

    summary = "docstrings of eight Python libraries, the library as the label"
    license = "BSD-3-Clause; PSF-2.0 for python"
    version = 1
    packages = tuple(distribution for distribution, _ in LIBRARIES.values())

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import ClassLabel, Features, Value

        return Features(
            {"text": Value("string"), "label": ClassLabel(names=list(LIBRARIES)), "path": Value("string")}
        )

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row); an order that mixes the classes."""
        candidates = [
            (label, path, text)
            for label, (_, module) in LIBRARIES.items()
            for path, text in _candidates(source_root(module))
        ]
        candidates.sort(key=lambda found: fraction_of("\n".join(found)))
        counts, seen, kept = Counter(), set(), []
        for label, path, text in candidates:
            if counts[label] < ROWS_PER_CLASS and _is_new(text, seen):
                counts[label] += 1
                kept.append((label, path, text))
        splits = _splits_of_modules(Counter((label, path) for label, path, _ in kept), counts)
        names = list(LIBRARIES)
        for label, path, text in kept:
            row = {"text": text, "label": names.index(label), "path": f"{label}/{path}"}
            yield splits[label, path], row


def _splits_of_modules(
    modules: dict[tuple[str, str], int], counts: dict[str, int]
) -> dict[tuple[str, str], str]:
    """Returns a split for each (label, path): per label, in hash order, a tenth test, a tenth validation."""
    splits, placed = {}, Counter()
    for module in sorted(modules, key=fraction_of_module):
        label = module[0]
        tenth = placed[label] * 10 // counts[label]
        splits[module] = ("test", "validation")[tenth] if tenth < 2 else "train"
        placed[label] += modules[module]
    return splits


def fraction_of_module(module: tuple[str, str]) -> float:
    """Returns the place of a (label, path) in hash order."""
    return fraction_of("split " + "/".join(module))


def _candidates(root: Path) -> Iterator[tuple[str, str]]:
    """Yields (module path, cleaned text) from files in hash order, until there are enough."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = [name for name in files if not SKIPPED_FOLDERS.intersection(name.split("/")[:-1])]
    found = 0
    for name in sorted(names, key=fraction_of):
        for text in islice(_prose_of_file(files[name]), CANDIDATES_PER_FILE):
            yield name, text
            found += 1
        if found >= CANDIDATES_PER_CLASS:
            return


def _prose_of_file(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    docstrings = (ast.get_docstring(node) for node in _documented(tree))
    texts = (clean(docstring) for docstring in docstrings if docstring)
    yield from (text for text in texts if text)


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[ast.AST]:
    """Yields a module, its classes, functions and methods; nothing inside a function."""
    yield node
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _documented(child)


def clean(docstring: str) -> str:
    """Returns the prose of a docstring without what gives its library away, or ``""``."""
    text = " ".join(_prose_lines(docstring))
    text = REMOVED.sub(" ", text)
    text = ROLE.sub(lambda found: f"`{found['target']}`", text)
    text = INLINE_CODE.sub(lambda found: _words_of_code(found["code"]), text)
    text = DOTTED.sub(lambda found: found[0].rsplit(".", 1)[-1], text)
    text = CAMEL.sub(" ", re.sub(r"[_*`|~#\"\\()\[\]{}=<>]+", " ", text))
    text = LIBRARY_NAMES.sub("library", text)
    for names, word in TYPE_NAMES:
        text = names.sub(word, text)
    words = text.split()[:MAX_WORDS]
    letters = sum(map(str.isalpha, text)) + text.count(" ")
    if len(words) < MIN_WORDS or letters < 0.85 * len(text):
        return ""
    return " ".join(words)


def _prose_lines(docstring: str) -> list[str]:
    """Returns the lines before the first section; a title at the top is passed over."""
    kept: list[str] = []
    for line in docstring.splitlines():
        if UNDERLINE.match(line):
            kept = kept[:-1]
            if kept:
                break
        elif STOP_LINE.match(line):
            break
        elif not LEGAL.search(line):
            kept.append(line.strip().removesuffix("::"))
    return kept


def _words_of_code(code: str) -> str:
    if not PLAIN_NAME.match(code.strip()):
        return " "
    return code.strip("~! ").removesuffix("()").rsplit(".", 1)[-1].replace("_", " ")


def _is_new(text: str, seen: set[tuple[str, ...]]) -> bool:
    """Whether few of a text's word sequences were seen; remembers them if so."""
    words = re.findall(r"\w+", text.lower())
    shingles = {tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}
    if not shingles or len(shingles & seen) > MAX_SHARED * len(shingles):
        return False
    seen |= shingles
    return True
