"""Tokens, secrets of the environment and home paths in a folder, before anybody else reads it.

Notable:
- A finding names file, line and kind; the value itself is never shown or kept.
- What a training needs to go on holds paths of this machine: under ``checkpoints`` they are passed over.
- Text is read as bytes, Parquet by its columns, what torch saves by the pickle inside (as bytes: nothing is
  loaded), safetensors by their header.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("hf_llm_recipes")

SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)(?:$|_)",
    re.IGNORECASE,
)
HOME, CHECKPOINTS = "the path of your home folder", "checkpoints"
BINARY = (".onnx", ".data", ".pte", ".gguf")  # programs and weights, as large as a model
PIECE, OVERLAP = 1 << 26, 1 << 12  # bytes read at once, and how much of them again
SHORTEST = 8  # characters of a variable's value that is looked for: "true" or "1" is no secret
# kind, what its bytes hold for certain (so that most files need no pattern), pattern
PATTERNS = (
    ("a Hugging Face token", b"hf_", rb"\bhf_[A-Za-z0-9]{30,}\b"),
    ("a Hugging Face token", b"api_org_", rb"\bapi_org_[A-Za-z0-9]{30,}\b"),
    ("an API key (sk-…)", b"sk-", rb"\bsk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}"),
    ("an AWS key", b"AKIA", rb"\bAKIA[0-9A-Z]{16}\b"),
    ("an AWS key", b"ASIA", rb"\bASIA[0-9A-Z]{16}\b"),
    ("a GitHub token", b"gh", rb"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    ("a GitHub token", b"github_pat_", rb"\bgithub_pat_[A-Za-z0-9_]{22,}\b"),
    ("a GitLab token", b"glpat-", rb"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", b"xox", rb"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    ("a Google API key", b"AIza", rb"\bAIza[A-Za-z0-9_-]{35}"),
    ("a private key", b"PRIVATE KEY", rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
)


@dataclass(frozen=True)
class Finding:
    """Something that should not be passed on.

    Args:
        file: Relative to the folder.
        line: Of a text file, a row of a table; None where a file has neither.
        kind: What it is.
    """

    file: str
    line: int | None
    kind: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'} holds {self.kind}"


def scan(
    folder: str | Path, *, environment: Mapping[str, str] | None = None, home: str | Path | None = None
) -> list[Finding]:
    """Returns what in a folder's files should not be passed on.

    Args:
        folder: Of a run or a model, read with all its folders.
        environment: Whose secrets are looked for; this process's when None.
        home: Whose path is looked for; this user's when None.
    """
    folder = Path(folder)
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return scan_files(files, environment=environment, home=home)


def scan_files(
    files: Mapping[str, Path],
    *,
    environment: Mapping[str, str] | None = None,
    home: str | Path | None = None,
) -> list[Finding]:
    """Returns what in some files should not be passed on.

    Args:
        files: What findings call each file -> the file.
        environment: As ``scan`` has it.
        home: The same.
    """
    looked_for = _looked_for(
        os.environ if environment is None else environment, Path.home() if home is None else Path(home)
    )
    found: dict[Finding, None] = {}
    for name, file in files.items():
        for line, text in _contents(file):
            for kind, start in _matches(text, looked_for):
                if kind == HOME and CHECKPOINTS in file.parts:
                    continue
                at = text.count(b"\n", 0, start) + 1 if line is None and _is_text(file) else line
                found[Finding(name, at, kind)] = None
    return list(found)


def warn(folder: str | Path) -> None:
    """Says what ``scan`` finds in a run's directory."""
    found = scan(folder)
    for one in found[:10]:
        log.warning(f"careful: {one}: look at it before you pass the run on")
    if len(found) > 10:
        log.warning(f"careful: {len(found) - 10} more such places")


def _looked_for(environment: Mapping[str, str], home: Path) -> list[tuple[str, bytes, re.Pattern[bytes]]]:
    made = [(kind, sign, re.compile(pattern)) for kind, sign, pattern in PATTERNS]
    for name, value in environment.items():
        value = value.strip()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST:
            raw = value.encode("utf-8", "surrogateescape")
            made.append((f"the value of the variable {name}", raw, re.compile(re.escape(raw))))
    path = str(home).rstrip("/\\").encode("utf-8", "surrogateescape")
    if len(path) > 1:
        made.append(
            (
                HOME,
                path,
                re.compile(rb"(?<![\w.-])" + re.escape(path) + rb"(?![\w.-])"),
            )
        )
    return made


def _matches(
    text: bytes, looked_for: list[tuple[str, bytes, re.Pattern[bytes]]]
) -> Iterator[tuple[str, int]]:
    for kind, sign, pattern in looked_for:
        if sign in text:
            for found in pattern.finditer(text):
                yield kind, found.start()


def _is_text(file: Path) -> bool:
    return file.suffix not in (".safetensors", ".parquet", ".bin", ".pt", ".pth", ".npz", ".npy", *BINARY)


# What zipfile and pyarrow raise over bytes that are none of theirs; ArrowInvalid is a ValueError.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(ValueError, OverflowError, RuntimeError, OSError),
)


def _contents(file: Path) -> Iterator[tuple[int | None, bytes]]:
    """Pieces of a file with their row, or None; of a damaged one the bytes that lie there."""
    try:
        yield from _inside(file)
    except DAMAGED:  # one that cannot be read raises again
        for piece in _pieces(file):
            yield None, piece


def _inside(file: Path) -> Iterator[tuple[int | None, bytes]]:
    if file.suffix == ".parquet":
        yield from _rows(file)
    elif file.suffix == ".safetensors":
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            yield None, opened.read(min(size, 100_000_000))
    elif file.suffix in BINARY:
        for piece in _pieces(file):
            yield None, piece
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            for member in packed.namelist():
                if member.endswith(".pkl"):
                    yield None, packed.read(member)
    elif file.suffix not in (".npz", ".npy"):
        yield None, file.read_bytes()


def _pieces(file: Path) -> Iterator[bytes]:
    """A large file bit by bit; what lies across two pieces is whole in the second."""
    last = b""
    with file.open("rb") as opened:
        while block := opened.read(PIECE):
            yield last + block
            last = (last + block)[-OVERLAP:]


def _rows(file: Path) -> Iterator[tuple[int, bytes]]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    for name in table.column_names:
        for number, value in enumerate(table[name].to_pylist()):
            if isinstance(value, (str, list, dict)):
                yield number, str(value).encode("utf-8", "surrogatepass")
