"""A folder with one folder a class -> rows: images, or texts of one file each.

Notable:
- ``photos/cat/1.png``, or with splits ``photos/train/cat/1.png``; files further below belong to the class.
- Images stay files until the task reads them; a text is its whole file.
- What is no image (or no text) among them is counted and said.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hf_llm_recipes.assets import file_sha256
from hf_llm_recipes.data.reading import Table, decoded
from hf_llm_recipes.errors import DataError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
TEXTS = frozenset({".txt"})


@dataclass
class ClassFolders:
    """The files of one split, by class.

    Args:
        root: The folder that holds the classes.
        kind: ``"image"`` or ``"text"``: the column of what a file holds.
        files: Class -> its files, in order; the class None where images lie in the root itself.
        others: Files that are neither.
    """

    root: Path
    kind: str
    files: dict[str | None, list[Path]]
    others: list[Path]

    def read(self, encoding: str) -> Table:
        """Returns the rows: what a file holds, and its class.

        Raises:
            DataError: a text in another encoding.
        """
        from datasets import Dataset, Features, Image, Value

        pairs = [(path, name) for name, paths in self.files.items() for path in paths]
        columns: dict[str, list] = {"label": [name for _, name in pairs]}
        features = {"label": Value("string")}
        if None in self.files:
            columns, features = {}, {}
        if self.kind == "image":
            columns = {"image": [{"bytes": None, "path": str(path)} for path, _ in pairs], **columns}
            features = {"image": Image(decode=False), **features}
        else:
            columns = {"text": [decoded(path, path.read_bytes(), encoding) for path, _ in pairs], **columns}
            features = {"text": Value("string"), **features}
        told = "".join(f"{path.relative_to(self.root).as_posix()} {file_sha256(path)}\n" for path, _ in pairs)
        data = Dataset.from_dict(columns, features=Features(features))
        return Table(data, hashlib.sha256(told.encode()).hexdigest(), self._notes(len(pairs)))

    def _notes(self, rows: int) -> list[str]:
        classes = "" if None in self.files else f", classes named by their folders: {len(self.files)}"
        notes = [f"{self.root}: {self.kind} files: {rows:,}{classes}"]
        if self.others:
            names = ", ".join(path.name for path in self.others[:5]) + ", …" * (len(self.others) > 5)
            notes.append(
                f"{self.root}: not used, since no {self.kind}: {names} ({len(self.others):,} in all)"
            )
        return notes


def class_folders(root: Path) -> ClassFolders | None:
    """Returns the files below a folder by class; None where its folders hold neither images nor texts.

    Raises:
        DataError: classes of images beside classes of texts, or a class without a file.
    """
    held = {folder.name: _below(folder) for folder in _visible(root) if folder.is_dir()}
    if not held and any(path.suffix.lower() in IMAGES for path in _visible(root)):
        files = [path for path in _visible(root) if path.is_file()]
        return _of_one_kind(root, "image", {None: files})
    suffixes = {path.suffix.lower() for files in held.values() for path in files}
    if suffixes & IMAGES and suffixes & TEXTS:
        raise DataError(
            "folders of classes hold images and texts",
            where=str(root),
            allowed="one kind of file for one split",
            hint="move one of them away",
        )
    if not suffixes & (IMAGES | TEXTS):
        return None
    return _of_one_kind(root, "image" if suffixes & IMAGES else "text", dict(held))


def _of_one_kind(root: Path, kind: str, held: dict[str | None, list[Path]]) -> ClassFolders:
    wanted = IMAGES if kind == "image" else TEXTS
    files = {name: [path for path in paths if path.suffix.lower() in wanted] for name, paths in held.items()}
    others = [path for paths in held.values() for path in paths if path.suffix.lower() not in wanted]
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"the folder of the class `{empty[0]}` holds no {kind}",
            where=str(root),
            allowed=", ".join(sorted(wanted)),
            hint="put files into it, or move it away",
        )
    return ClassFolders(root, kind, files, others)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__")))


def _below(folder: Path) -> list[Path]:
    """Every visible file below a folder, in order."""
    found: list[Path] = []
    for entry in _visible(folder):
        found += _below(entry) if entry.is_dir() else [entry]
    return found
