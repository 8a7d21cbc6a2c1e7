"""Where the splits of a data set come from: files, folders, a saved data set, a corpus or the Hub.

Notable:
- An `Origin` is one split or file that nobody has read yet; only what a recipe uses is read.
- Two origins that share a file are known to overlap.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm_recipes.assets import file_sha256
from hf_llm_recipes.data.folders import ClassFolders, class_folders
from hf_llm_recipes.data.reading import (
    READERS,
    Table,
    check_is_file,
    first_line,
    missing_path,
    read_table,
)
from hf_llm_recipes.errors import DataError, did_you_mean
from hf_llm_recipes.registry import CORPORA
from hf_llm_recipes.rundir import path_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

EVAL_NAMES = ("validation", "valid", "dev", "eval")
SPLIT_STEM = re.compile(r"^(train|validation|valid|dev|eval|test)([-_.]\d+.*)?$", re.IGNORECASE)
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
LOCAL = "local/"


@dataclass
class Origin:
    """One split or file.

    Args:
        name: As a user would write it.
        keys: What identifies its rows: the files, or the split's name.
        reader: Reads it.
    """

    name: str
    keys: frozenset[str]
    reader: Callable[[], Table]

    @cached_property
    def table(self) -> Table:
        """Its rows, read once."""
        return self.reader()


@dataclass
class Opened:
    """What the `name` of a data section stands for.

    Args:
        kind: ``"hub"``, ``"corpus"``, ``"saved"``, ``"folder"`` or ``"file"``.
        splits: Split -> where its rows come from.
        description: JSON-able facts: origin, licence.
        notes: What a user should know.
        folder: What relative files in train, eval and test may be relative to.
        loose: Files beside the splits that name no split.
    """

    kind: str
    splits: dict[str, Origin]
    description: dict
    notes: list[str]
    folder: Path | None = None
    loose: list[Path] = field(default_factory=list)


def open_source(
    name: str,
    *,
    config: str | None,
    revision: str | None,
    encoding: str,
    delimiter: str | None,
    streaming: bool,
) -> Opened:
    """Returns the splits behind a name, mostly unread.

    Raises:
        DataError: no such corpus, path or Hub data set; a folder without rows; an option
            that would have no effect.
    """
    path = path_of(name, DataError)
    opened: Opened
    if name.startswith(LOCAL):
        opened = _open_corpus(name)
    elif path.is_file():
        origin = file_origin(path, name, encoding, delimiter)
        opened = Opened("file", {"train": origin}, {"origin": f"file {name}"}, [], path.parent)
    elif path.is_dir():
        opened = _open_folder(path, name, encoding, delimiter)
    elif any(mark in name for mark in "*?["):
        opened = _open_glob(path, name, encoding, delimiter)
    elif _is_path(name):
        raise missing_path(path)
    else:
        opened = _open_hub(name, config, revision, streaming)
    _refuse_idle_options(opened.kind, name, config, revision, encoding, delimiter)
    return opened


def _refuse_idle_options(
    kind: str, name: str, config: str | None, revision: str | None, encoding: str, delimiter: str | None
) -> None:
    of_hub, of_files = (kind == "hub"), (kind in ("file", "folder"))
    options = {
        "config": (config, of_hub, "data sets of the Hub"),
        "revision": (revision, of_hub, "data sets of the Hub"),
        "encoding": (None if encoding == "utf-8" else encoding, of_files, "text files"),
        "delimiter": (delimiter, of_files, "CSV files"),
    }
    for key, (value, works, scope) in options.items():
        if value is not None and not works:
            raise DataError(
                f"`{key}: {value}` would have no effect on `{name}`",
                allowed=f"{key} for {scope}",
                hint=f"remove `{key}`",
            )


def _is_path(name: str) -> bool:
    marked = name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name
    return marked or Path(name).suffix.lower() in READERS or not HUB_ID.match(name)


def file_origin(path: Path, name: str, encoding: str, delimiter: str | None) -> Origin:
    """Returns the origin of one file, checked to be there and of a known format."""
    check_is_file(path)
    return _files_origin(name, [path], encoding, delimiter)


def _files_origin(name: str, paths: list[Path], encoding: str, delimiter: str | None) -> Origin:
    keys = frozenset(str(path.resolve()) for path in paths)
    return Origin(name, keys, lambda: _read_files(paths, encoding, delimiter))


def _read_files(paths: list[Path], encoding: str, delimiter: str | None) -> Table:
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise DataError(
            f"files of several formats would make one split: {', '.join(path.name for path in paths[:8])}",
            where=str(paths[0].parent),
            allowed="one format for the files of a split",
            hint="name one file, or use a glob such as " + str(paths[0].parent / f"*{suffixes[0]}"),
        )
    tables = [read_table(path, encoding=encoding, delimiter=delimiter) for path in paths]
    if len(tables) == 1:
        return tables[0]
    sha256 = hashlib.sha256("".join(table.fingerprint for table in tables).encode()).hexdigest()
    notes = [note for table in tables for note in table.notes]
    if suffixes == [".txt"]:
        notes.append(f"{paths[0].parent}: {len(paths):,} text files, of which each line is a row")
    return Table(_joined(paths, tables), sha256, notes)


def _joined(paths: list[Path], tables: list[Table]) -> Dataset:
    from datasets import concatenate_datasets

    first = tables[0].data
    for path, table in zip(paths, tables, strict=True):
        if set(table.data.column_names) != set(first.column_names):
            raise DataError(
                f"the columns {', '.join(table.data.column_names)} differ from those of {paths[0].name}",
                where=str(path),
                allowed=", ".join(first.column_names),
            )
    try:
        return concatenate_datasets([table.data for table in tables])
    except ValueError as error:
        raise DataError(f"the files' column types differ ({error})", where=str(paths[0].parent)) from None


def _open_folder(path: Path, name: str, encoding: str, delimiter: str | None) -> Opened:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(path, name)
    files = _row_files(path)
    if not files:
        splits, loose = _splits_of_classes(path, encoding)
        if not splits:
            raise _without_rows(path, name)
        return Opened("folder", splits, {"origin": f"folder {name}"}, [], path, loose)
    splits, loose = _named_splits(files, encoding, delimiter)
    return Opened("folder", splits, {"origin": f"folder {name}"}, [], path, loose)


def folder_origin(path: Path, name: str, encoding: str, delimiter: str | None) -> Origin:
    """Returns the origin of a folder that is one split: files of rows, or one folder a class.

    Raises:
        DataError: it holds neither.
    """
    files = _row_files(path)
    if files:
        return _files_origin(name, files, encoding, delimiter)
    found = class_folders(path)
    if found is None:
        raise _without_rows(path, name)
    return _classes_origin(name, found, encoding)


def _row_files(path: Path) -> list[Path]:
    entries = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return [entry for entry in entries if entry.suffix.lower() in READERS]


def _splits_of_classes(path: Path, encoding: str) -> tuple[dict[str, Origin], list[Path]]:
    """The splits of `photos/train/cat/1.png`, or of `photos/cat/1.png`, and folders that name none."""
    folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    named = {folder.name.lower(): folder for folder in folders if SPLIT_STEM.match(folder.name)}
    found = {split: class_folders(folder) for split, folder in (named or {"train": path}).items()}
    origins = {
        split: _classes_origin(split, classes, encoding)
        for split, classes in found.items()
        if classes is not None
    }
    return origins, [folder for folder in folders if named and folder not in named.values()]


def _classes_origin(name: str, found: ClassFolders, encoding: str) -> Origin:
    return Origin(name, frozenset([str(found.root.resolve())]), lambda: found.read(encoding))


def _without_rows(path: Path, name: str) -> DataError:
    return DataError(
        f"the folder holds no file of rows; it holds {_contents(path)}",
        where=name,
        allowed=", ".join(READERS) + ", a folder written by save_to_disk, or one folder of images or of .txt "
        "a class",
        hint=f"name the folder inside it, or use a glob such as {name}/**/*.parquet",
    )


def _contents(path: Path) -> str:
    kinds = Counter(
        f"folder {entry.name}/" if entry.is_dir() else f"*{entry.suffix or entry.name}"
        for entry in sorted(path.iterdir())
    )
    return ", ".join(f"{count} {kind}" for kind, count in list(kinds.items())[:8]) or "nothing"


def _open_glob(path: Path, name: str, encoding: str, delimiter: str | None) -> Opened:
    found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not found:
        raise DataError(f"`{name}` matches no file", hint="check the pattern and the working directory")
    for file in found:
        check_is_file(file)
    splits, loose = _named_splits(found, encoding, delimiter)
    return Opened("folder", splits, {"origin": f"files {name}"}, [], found[0].parent, loose)


def _named_splits(
    files: list[Path], encoding: str, delimiter: str | None
) -> tuple[dict[str, Origin], list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        match = SPLIT_STEM.match(file.stem)
        if match:
            groups.setdefault(match[1].lower(), []).append(file)
    if not groups:
        return {"train": _files_origin("train", files, encoding, delimiter)}, []
    for split, members in groups.items():
        whole = [member.name for member in members if member.stem.lower() == split]
        if whole and len(members) > 1:
            raise DataError(
                f"several files are the split `{split}`: {', '.join(member.name for member in members)}",
                where=str(members[0].parent),
                allowed=f"one {split}.*, or numbered parts such as {split}-00000.parquet",
            )
    used = {member for members in groups.values() for member in members}
    loose = [file for file in files if file not in used]
    return {split: _files_origin(split, found, encoding, delimiter) for split, found in groups.items()}, loose


def _open_saved(path: Path, name: str) -> Opened:
    import pyarrow as pa
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (pa.ArrowException, OSError, json.JSONDecodeError, KeyError, ValueError) as error:
        raise DataError(
            f"the saved data set is damaged ({type(error).__name__}: {first_line(error)})",
            where=name,
            hint="write it again with save_to_disk",
        ) from None
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    origins = {}
    for split, data in splits.items():
        part = path / split if isinstance(loaded, DatasetDict) else path
        digests = "".join(file_sha256(file) for file in sorted(part.glob("*.arrow")))
        table = Table(data, hashlib.sha256(digests.encode()).hexdigest())
        origins[split] = Origin(split, frozenset([str(part.resolve())]), lambda table=table: table)
    return Opened("saved", origins, {"origin": f"saved data set {name}"}, [], path)


def _open_corpus(name: str) -> Opened:
    from hf_llm_recipes.data.corpora.base import local_corpora

    key = name.removeprefix(LOCAL).replace("-", "_")
    if key not in CORPORA.names():
        known = local_corpora()
        raise DataError(
            f"unknown local corpus `{name}`{did_you_mean(name, known)}", allowed=", ".join(sorted(known))
        )
    corpus = CORPORA.get(key)()
    built = corpus.build()
    origins = {
        split: Origin(
            split, frozenset([split]), lambda split=split, data=data: Table(data, built.sha256[split])
        )
        for split, data in built.splits.items()
    }
    description = {"origin": f"corpus {name}", "license": corpus.license, "made_from": built.made_from}
    return Opened("corpus", origins, description, [])


def _open_hub(name: str, config: str | None, revision: str | None, streaming: bool) -> Opened:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        splits = load_dataset(name, config, revision=revision, streaming=streaming)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"`{name}` is no file or folder here, and the Hub did not give it: {first_line(error)}",
            allowed="a file, a folder, a glob, local/<corpus>, or a data set id of the Hub "
            "(with `config:` where it has several)",
            hint="check the name and the network (HF_HUB_OFFLINE, HF_TOKEN for gated data), "
            "or save it elsewhere with save_to_disk and name that folder",
        ) from error
    info = next(iter(splits.values())).info
    commit = revision or "main"
    if info.download_checksums:
        found = re.search(r"@([0-9a-f]{40})", " ".join(info.download_checksums))
        commit = found[1] if found else commit
    origins = {
        split: Origin(
            split, frozenset([split]), lambda data=data: Table(data, _hub_fingerprint(data, commit))
        )
        for split, data in splits.items()
    }
    description = {
        "origin": f"Hub {name}",
        "config": config,
        "revision": commit,
        "license": info.license or None,
    }
    return Opened("hub", origins, description, [])


def _hub_fingerprint(data: Dataset | IterableDataset, commit: str) -> str:
    return f"{commit}:{getattr(data, '_fingerprint', 'streamed')}"
