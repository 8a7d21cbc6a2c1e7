"""Python code for language modelling: the standard library's own files."""

from __future__ import annotations

import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.data.corpora.base import Corpus, fraction_of, source_root, split_of
from hf_llm_recipes.registry import CORPORA

if TYPE_CHECKING:
    from datasets import Features

SKIPPED_FOLDERS = {
    "site-packages", "dist-packages", "tests", "test", "idle_test", "lib2to3", "pydoc_data", "encodings"
}  # fmt: skip
MAX_TOTAL_BYTES = 12_000_000
MAX_FILE_BYTES = 150_000


@CORPORA.register
class PythonSource(Corpus):
    """Files of the standard library, whole, as text.

    Columns: ``text``, ``path`` (in the library). Test suites, code tables, files over 150 kB, copies and
    files that are not valid in their declared encoding are left out; files are taken in the order
    of a hash of their path up to 12 MB. Train, validation and test by that path, about 80, 10 and
    10 % of the files. The rows depend on the interpreter's version (`Built.made_from`).
    """

    summary = "source files of the Python standard library"
    license = "PSF-2.0"
    version = 1
    packages = ("python",)

    def features(self) -> Features:
        """Returns the columns and their types."""
        from datasets import Features, Value

        return Features({"text": Value("string"), "path": Value("string")})

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields (split, row) in hash order."""
        total, seen = 0, set()
        for name, path in source_files(source_root("python")):
            text = source_text(path)
            if not text.strip() or text in seen:
                continue
            total += len(text.encode())
            if total > MAX_TOTAL_BYTES:
                return
            seen.add(text)
            yield split_of(name), {"text": text, "path": name}


def source_files(root: Path) -> list[tuple[str, Path]]:
    """Returns (path in the library, file) of the files that are taken, in the order of a hash."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = [
        name
        for name, path in files.items()
        if not SKIPPED_FOLDERS.intersection(name.split("/")[:-1]) and path.stat().st_size <= MAX_FILE_BYTES
    ]
    return [(name, files[name]) for name in sorted(names, key=fraction_of)]


def source_text(path: Path) -> str:
    """Returns a file's text, ``""`` where it is not valid in its declared encoding."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return ""
