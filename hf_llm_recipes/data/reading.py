"""One file of rows -> a Dataset, losslessly or with an error that names the line.

Notable:
- CSV columns are text: "NA", "null", "" and "007" stay what they are. The readers of
  pandas and datasets turn them into nulls and numbers.
- A quote that is never closed, a row with a field too many, a byte of another
  encoding: each is an error with its line, never a shorter or shifted table.
- JSON keeps its types; a column that mixes them is an error with its first odd row.
- A hostile file is an error too: nested without end, thousands of columns, or so few bytes for so
  many rows that they would fill the memory. Nothing is unpacked, and nothing in a file runs.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.assets import file_sha256
from hf_llm_recipes.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

MAX_COLUMNS = 10_000
NOT_ENCODINGS = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "utf-7"}


@dataclass
class Table:
    """A file that was read.

    Args:
        data: Its rows.
        fingerprint: sha256 of the file's bytes (a Hub split has a revision and a hash).
        notes: What a user should know about it.
    """

    data: Dataset
    fingerprint: str
    notes: list[str] = field(default_factory=list)


def read_table(path: str | Path, *, encoding: str = "utf-8", delimiter: str | None = None) -> Table:
    """Returns the rows of one file with its fingerprint.

    Raises:
        DataError: a missing, empty or unsupported file; bytes of another encoding; a NUL;
            a broken row, quote, line of JSON or container; a column of mixed types; no rows.
    """
    path = Path(path)
    check_is_file(path)
    if path.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path), hint="write rows into it")
    table = READERS[path.suffix.lower()](path, encoding, delimiter)
    if len(table.data) == 0:
        raise DataError("the file has columns but no rows", where=str(path), hint="add rows below the header")
    return table


def check_is_file(path: Path) -> None:
    """Checks that a path is a file of a format that is read here.

    Raises:
        DataError: it is missing, a folder, or of another format.
    """
    if not path.exists():
        raise missing_path(path)
    if path.is_dir():
        raise DataError(f"`{path}` is a folder", allowed="a file here", hint="name a file in it")
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"`{path.name}` has the unsupported extension `{path.suffix}`",
            where=str(path),
            allowed=", ".join(READERS),
            hint="rename or convert it (a compressed file: unpack it first)",
        )


def missing_path(path: Path) -> DataError:
    """Returns the error for a path that is not there, with its nearest neighbours."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    held = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, held, n=3) or held[:8]
    return DataError(
        f"`{path}` does not exist",
        allowed="a file or folder that exists, relative to the working directory",
        hint=f"in {folder} there is: {', '.join(near) or 'nothing'}",
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type's name."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def decoded(path: Path, raw: bytes, encoding: str) -> str:
    """Returns a file's text.

    Raises:
        DataError: an unknown encoding, a byte that is not of it, or a NUL.
    """
    try:
        found = codecs.lookup(encoding)
        codec = found.name
        if not found._is_text_encoding or codec.replace("_", "-") in NOT_ENCODINGS:
            raise LookupError
    except (LookupError, ValueError):
        raise DataError(
            f"unknown encoding `{encoding[:40]}`",
            where=str(path),
            allowed="utf-8, utf-16, cp1252, latin-1, gb18030, …",
        ) from None
    try:
        text = raw.decode("utf-8-sig" if codec == "utf-8" else codec)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte 0x{raw[error.start]:02x} at offset {error.start} is not {encoding}",
            where=f"{path}:{line}",
            allowed=f"a file in {encoding}",
            hint=f"set `encoding:` to the file's own, e.g. {_guess_encoding(raw)}",
        ) from None
    if "\0" in text:
        raise DataError(
            "a NUL byte: this is binary data, or text in another encoding",
            where=f"{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}",
            allowed=f"text in {encoding}",
            hint="set `encoding: utf-16`, or remove the byte",
        )
    return text


def _guess_encoding(raw: bytes) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "`encoding: utf-16`"
    return "`encoding: cp1252` (Western Windows) or `encoding: gb18030` (Chinese)"


def _read_csv(path: Path, encoding: str, delimiter: str | None) -> Table:
    raw = path.read_bytes()
    text = decoded(path, raw, encoding)
    separator = delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    if len(separator) != 1 or separator in '"\r\n':
        raise DataError(
            f"the delimiter {separator[:40]!r} cannot part columns",
            where=str(path),
            allowed="one character, no quote and no line break",
        )
    records = _csv_records(path, text, separator)
    header_line, header = next(records, (1, []))
    notes: list[str] = []
    header = _checked_header(path, header_line, header, separator if delimiter else None, notes)
    columns: list[list[str]] = [[] for _ in header]
    multiline = 0
    for line, fields in records:
        if len(fields) != len(header):
            raise DataError(
                f"{len(fields)} field{'s' * (len(fields) != 1)} where the header has {len(header)}",
                where=f"{path}:{line}",
                allowed=f"one for each column: {', '.join(header)}",
                hint=f"quote a field that holds `{separator}`, or set `delimiter:`",
            )
        multiline += any("\n" in value for value in fields)
        for column, value in zip(columns, fields, strict=True):
            column.append(value)
    if multiline:
        notes.append(f"{path}: {multiline} rows hold a line break inside quotes")
    return Table(_text_dataset(header, columns), hashlib.sha256(raw).hexdigest(), notes)


def _csv_records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (first line number, fields) of each record; blank lines are no records."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    with _unlimited_fields():
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"a quoted field that starts in this row does not end as it should ({error})",
                    where=f"{path}:{line}",
                    allowed='fields in "…" with a quote inside written twice ("")',
                    hint="close or double the quote, or save the rows as JSONL",
                ) from None
            if fields is None:
                return
            if fields:
                yield line, fields


@contextmanager
def _unlimited_fields() -> Iterator[None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _checked_header(
    path: Path, line: int, header: list[str], chosen: str | None, notes: list[str]
) -> list[str]:
    if not header:
        raise DataError("the file holds only blank lines", where=str(path), hint="write a header and rows")
    _check_width(len(header), f"{path}:{line}")
    twice = sorted(name for name, times in Counter(header).items() if times > 1)
    if twice:
        raise DataError(
            f"the header names `{twice[0]}` twice",
            where=f"{path}:{line}",
            allowed="a different name for each column",
        )
    other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
    if other and not chosen:
        raise DataError(
            f"the header is one column, `{header[0]}`, with {other!r} inside",
            where=f"{path}:{line}",
            hint=f'set `delimiter: "{chr(92) + "t" if other == chr(9) else other}"`',
        )
    if "" in header:
        at = header.index("")
        notes.append(f"{path}: the unnamed column {at + 1} is called `Unnamed: {at}`")
        header[at] = f"Unnamed: {at}"
    return header


def _text_dataset(names: list[str], columns: list[list[str]]) -> Dataset:
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)}))


def _read_text(path: Path, encoding: str, delimiter: str | None) -> Table:
    raw = path.read_bytes()
    lines = decoded(path, raw, encoding).split("\n")
    if lines[-1] == "":
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    blank = sum(not line.strip() for line in lines)
    if blank == len(lines):
        raise DataError("the file holds only blank lines", where=str(path), hint="write one row per line")
    notes = [f"{path}: {blank} blank lines are rows with no text"] if blank else []
    return Table(_text_dataset(["text"], [lines]), hashlib.sha256(raw).hexdigest(), notes)


def _read_json(path: Path, encoding: str, delimiter: str | None) -> Table:
    import pyarrow as pa
    from datasets import Dataset

    raw = path.read_bytes()
    text = decoded(path, raw, encoding)
    start = text.lstrip()[:1] if path.suffix.lower() == ".json" else ""
    if start == "[":
        rows = _json_list(path, text)
    elif start == "{" and _is_one_object(text):
        rows = _json_object(path, text)
    else:
        rows = _json_lines(path, text)
    if not rows:
        raise DataError("the file holds no rows", where=str(path), hint="write at least one object")
    notes: list[str] = []
    try:
        data = Dataset(_typed_table(path, rows, notes))
    except (RecursionError, pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"a column's type cannot be held, e.g. of lists in lists in lists ({first_line(error)[:120]})",
            where=str(path),
            allowed="some levels of lists and objects",
        ) from None
    return Table(data, hashlib.sha256(raw).hexdigest(), notes)


def _check_width(columns: int, where: str) -> None:
    if columns > MAX_COLUMNS:
        raise DataError(f"{columns:,} columns", where=where, allowed=f"{MAX_COLUMNS:,} at most")


def _is_one_object(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    except (RecursionError, ValueError):
        pass
    return True


def _json_object(path: Path, text: str) -> list[tuple[str, dict]]:
    row = _object(str(path), _parse_json(path, text, first_line=1))
    for name, value in row.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            raise DataError(
                f"the file is one object, with a list of objects under `{name}`",
                where=str(path),
                allowed="one list of objects, or one object a line",
                hint=f"save the list under `{name}` as a file of its own",
            )
    return [(str(path), row)]


def _json_list(path: Path, text: str) -> list[tuple[str, dict]]:
    items = _parse_json(path, text, first_line=1)
    return [(f"{path}: item {i}", _object(f"{path}: item {i}", item)) for i, item in enumerate(items)]


def _json_lines(path: Path, text: str) -> list[tuple[str, dict]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            rows.append((where, _object(where, _parse_json(path, line, first_line=number))))
    return rows


def _parse_json(path: Path, text: str, *, first_line: int) -> object:
    allowed = "one object a line, or (in .json) one list of objects"
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20]
        raise DataError(
            f"invalid JSON: {error.msg} at column {error.colno}: `{near}`",
            where=f"{path}:{first_line + error.lineno - 1}",
            allowed=allowed,
        ) from None
    except (KeyError, RecursionError, ValueError) as error:
        said = "the JSON is nested too deep"
        if not isinstance(error, RecursionError):
            twice = isinstance(error, KeyError)
            said = (
                f"an object has the key `{error.args[0]}` twice" if twice else "a number of too many digits"
            )
        raise DataError(
            said,
            where=f"{path}:{first_line}",
            allowed=allowed,
        ) from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(Counter(names).most_common(1)[0][0])
    return made


def _object(where: str, item: object) -> dict:
    if isinstance(item, dict):
        return item
    raise DataError(
        f"`{_short(item)}` is not an object",
        where=where,
        allowed='a row such as {"text": "…", "label": "…"}',
    )


def _short(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[:60]
    except (RecursionError, ValueError):
        return "…"


def _typed_table(path: Path, rows: list[tuple[str, dict]], notes: list[str]) -> pa.Table:
    import pyarrow as pa

    names = list(dict.fromkeys(name for _, row in rows for name in row))
    if not names:
        raise DataError("every object is empty", where=str(path), allowed='rows such as {"text": "…"}')
    _check_width(len(names), str(path))
    odd = next((name for name in names if not _is_text(name)), None)
    if odd is not None:
        raise DataError(f"the key {odd[:60]!r} is no text in UTF-8", where=str(path))
    for name in names:
        absent = sum(name not in row for _, row in rows)
        if absent:
            notes.append(f"{path}: `{name}` is absent in {absent} of {len(rows)} rows and is null there")
    return pa.table({name: _typed_column(name, rows) for name in names})


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)  # half of a surrogate pair


def _typed_column(name: str, rows: list[tuple[str, dict]]) -> pa.Array:
    import pyarrow as pa

    values = [row.get(name) for _, row in rows]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, RecursionError) as error:
        at = _first_odd(values)
        raise DataError(
            f"the column `{name}` mixes types, or holds what no column can: "
            f"`{_short(values[at])}` does not fit the rows before it ({error})",
            where=rows[at][0],
            allowed="one type for a column, or null",
        ) from None


def _first_odd(values: list) -> int:
    """Returns the first index whose value cannot join those before it, by bisection."""
    import pyarrow as pa

    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, RecursionError):
            high = middle
    return high - 1


def _read_parquet(path: Path, encoding: str, delimiter: str | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read() -> pa.Table:
        file = pq.ParquetFile(pa.memory_map(str(path)))
        _check_fits(path, file.metadata)
        return file.read()

    return _read_container(path, read)


def _check_fits(path: Path, about: pq.FileMetaData) -> None:
    """Refuses a file of some bytes that says it holds more rows than the memory: one value repeated."""
    import psutil

    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    rows = max(0, sum(group.num_rows for group in groups))
    needed = max(rows * max(1, about.num_columns), sum(group.total_byte_size for group in groups))
    if needed > psutil.virtual_memory().available:
        raise DataError(
            f"{rows:,} rows of {about.num_columns} columns do not fit into the memory "
            f"(the file has {path.stat().st_size:,} bytes)",
            where=str(path),
            hint="take a part of it, or `data.streaming: true` from the Hub",
        )


def _read_arrow(path: Path, encoding: str, delimiter: str | None) -> Table:
    import pyarrow as pa

    def read() -> pa.Table:
        source = pa.memory_map(str(path))
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        opened = pa.ipc.open_file(source) if is_file_format else pa.ipc.open_stream(source)
        return opened.read_all()

    return _read_container(path, read)


def _read_container(path: Path, read: Callable[[], pa.Table]) -> Table:
    import pyarrow as pa
    from datasets import Dataset

    try:
        table = read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(
            f"the {path.suffix[1:]} file is damaged or of another format ({first_line(error)})",
            where=str(path),
            hint="write or copy the file again",
        ) from None
    _check_width(len(table.column_names), str(path))
    twice = [name for name, times in Counter(table.column_names).items() if times > 1]
    if twice:
        raise DataError(f"two columns are called `{twice[0]}`", where=str(path))
    try:
        data = Dataset(table)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise DataError(
            f"a column has a type that is not read here ({first_line(error)})", where=str(path)
        ) from None
    return Table(data, file_sha256(path))


READERS: dict[str, Callable[[Path, str, str | None], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_text,
}
