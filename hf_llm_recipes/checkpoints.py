"""What makes a checkpoint whole: a manifest of its files with their hashes, and one rename.

Notable:
- A checkpoint is filled in a side folder, sealed with ``manifest.json``, forced to the disk and renamed
  once. What bears the name ``checkpoint-N`` was whole when it got it.
- Older ones go only after that; a kill at any moment leaves the last whole one.
- Before a run goes on, the newest checkpoint is held against its manifest; one that is torn or corrupt is
  named and passed over.
- Checkpoints of earlier versions have no manifest: they are taken where the Trainer's state file, which it
  writes last, is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST, STATE = "manifest.json", "trainer_state.json"
SIDE = ".writing"  # holds the checkpoint that is being written, and those that are being deleted
OLD = ".old"  # ending of a checkpoint while another of its number takes its place
SINCE = ".manifests"  # the first number that has a manifest, for the case that the manifest is lost
BLOCK = 1 << 20


@dataclass
class Found:
    """The checkpoint to go on from.

    Args:
        path: Its folder; None: there is no whole one.
        said: What a reader of the log should know of it and of those passed over.
    """

    path: Path | None
    said: list[str] = field(default_factory=list)


def seal(folder: Path) -> None:
    """Writes the manifest of everything in a folder and forces all of it to the disk."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _force(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"version": 1, "files": files}, indent=1), encoding="utf-8")
    _force(manifest)
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        _force(path)


def publish(side: Path, target: Path) -> None:
    """Gives a sealed folder its name; one of that name gives way."""
    since = target.parent / SINCE
    if not since.exists():
        part = target.parent / f"{SINCE}.part"
        part.write_text(f"{number_of(target)}\n", encoding="utf-8")
        os.replace(part, since)
    old = target.parent / f".{target.name}{OLD}"
    if target.exists():
        os.rename(target, old)
    os.rename(side, target)
    _force(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes checkpoints beside ``newest`` until ``limit`` are left; it and the best stay.

    Those with a higher number are of a try that this training did not go on from: they go first.
    """
    kept = {newest.name, Path(best).name if best else newest.name}
    found = _numbered(newest.parent)
    ahead = [p for p in found if _age(p) > _age(newest)]
    surplus = len(found) - len(ahead) - limit if limit and limit > 0 else 0
    behind = [p for p in found if p not in ahead and p.name not in kept]
    for path in ahead + behind[: max(0, surplus)]:
        discard(path)


def discard(path: Path) -> None:
    """Deletes a checkpoint; it loses its name before it loses a file."""
    gone = path.parent / SIDE / f"gone-{path.name}"
    gone.parent.mkdir(exist_ok=True)
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(OSError):
        gone.parent.rmdir()


def tidy(folder: Path) -> None:
    """Clears what a killed training left half-done in the folder of its checkpoints."""
    for old in folder.glob(f".checkpoint-*{OLD}"):
        target = folder / old.name[1 : -len(OLD)]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # killed between two renames
            os.rename(old, target)
    shutil.rmtree(folder / SIDE, ignore_errors=True)


def take_up(root: Path, *, needs_best: bool = False) -> Found:
    """Clears leftovers and returns the newest whole checkpoint of a training.

    Args:
        root: The folder of its checkpoints, or of its rounds' folders.
        needs_best: Whether the training loads its best checkpoint at the end, so that one whose best is
            lost cannot be gone on from.
    """
    for folder in (root, *_rounds(root)):
        tidy(folder)
    said: list[str] = []
    for path in sorted(_all(root), key=_age, reverse=True):
        problem = problem_of(path) or (needs_best and _problem_of_best(path)) or None
        if problem is None:
            if not (path / MANIFEST).exists():
                said.append(f"{_name(path, root)} has no {MANIFEST}: taken as it is, from an earlier version")
            if not any(path.glob("*optim*")) and not any(path.glob("global_step*")):
                said.append(
                    f"{_name(path, root)} has no state of the optimizer (`trainer.save_only_model`): "
                    "the training goes on, but to other bits"
                )
            return Found(path, said)
        said.append(f"{_name(path, root)} is not whole and is passed over: {problem}")
    if said:
        said.append("no checkpoint is whole")
    return Found(None, said)


def newest_checkpoint(root: Path) -> Path | None:
    """Returns the newest checkpoint of a training that has its state, unverified, or None.

    A training in rounds has its checkpoints one folder deeper: ``round-2/checkpoint-40`` comes after
    ``round-1/checkpoint-50``.
    """
    return max((p for p in _all(root) if (p / STATE).is_file()), key=_age, default=None)


def any_checkpoint(root: Path) -> bool:
    """Whether a folder or one below it holds a checkpoint that got its name."""
    return any(SIDE not in p.parts for p in root.rglob("checkpoint-*"))


def problem_of(path: Path) -> str | None:
    """Returns why a checkpoint is not whole; None where it is."""
    if not (path / STATE).is_file():
        return f"{STATE} is missing"
    manifest = path / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing" if _should_have_manifest(path) else None
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        listed = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error!r}"
    return next((said for name, entry in listed.items() if (said := _differs(path / name, *entry))), None)


def state_of(path: Path) -> dict[str, Any]:
    """Returns the Trainer's state in a checkpoint."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def number_of(path: Path) -> int | None:
    """Returns the number at the end of a name such as ``checkpoint-40``."""
    end = path.name.rpartition("-")[2]
    return int(end) if end.isdigit() else None


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _differs(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size:,} of {size:,} bytes"
    return None if sha256(path) == digest else f"{path.name} has other bytes than were written"


def _problem_of_best(path: Path) -> str | None:
    best = state_of(path).get("best_model_checkpoint")
    if best is None or Path(best).name == path.name:
        return None
    beside = path.parent / Path(best).name  # the run may have been moved
    problem = problem_of(beside) if beside.is_dir() else "it is missing"
    return f"its best checkpoint is {beside.name}: {problem}" if problem else None


def _should_have_manifest(path: Path) -> bool:
    since = path.parent / SINCE
    if not since.is_file():
        return False
    first = since.read_text(encoding="utf-8").strip()
    return first.isdigit() and (number_of(path) or 0) >= int(first)


def _all(root: Path) -> list[Path]:
    return [*_numbered(root), *(p for folder in _rounds(root) for p in _numbered(folder))]


def _numbered(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and number_of(p) is not None]
    return sorted(found, key=_age)


def _rounds(root: Path) -> Iterator[Path]:
    return (p for p in root.glob("round-*") if p.is_dir())


def _age(path: Path) -> tuple[int, int]:
    in_round = path.parent.name.startswith("round-")
    return (number_of(path.parent) or 0) if in_round else 0, number_of(path) or 0


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _force(path: Path) -> None:
    """Waits until a file or folder is on the disk; some file systems cannot say so for folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(handle)
