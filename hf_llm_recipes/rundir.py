"""A run's directory: what lies in it, and that nothing in it is ever half-written or overwritten."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, EEXIST, ENOSPC, ENOTDIR, EPERM, EROFS
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hf_llm_recipes import checkpoints
from hf_llm_recipes.errors import RunError, UserError
from hf_llm_recipes.recipe import Recipe, home_as_tilde

RECIPE, METRICS, LOG, ENVIRONMENT = "recipe.yaml", "metrics.json", "log.jsonl", "environment.json"
MODEL, CARD, PREDICTIONS, CHECKPOINTS = "model", "README.md", "predictions.parquet", "checkpoints"
LOCK, HOLDER = ".lock", ".lock.json"
RECORD = "task.json"  # beside the weights: what a loader must know that the weights do not say
PACKAGES = (
    *("hf_llm_recipes", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate"),
    *("bitsandbytes", "tokenizers", "safetensors", "scikit-learn", "numpy", "pandas", "pyarrow"),
)


class RunDirectory:
    """Where one run's results lie.

    Args:
        path: The directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def create(cls, wanted: str | None, name: str) -> RunDirectory:
        """Makes a new directory: ``wanted``, else ``runs/<name>``, numbered where that exists.

        Raises:
            RunError: ``wanted`` exists and holds something, or cannot be made.
        """
        if wanted is not None:
            return cls(_make_exactly(Path(wanted)))
        for number in range(1, 100_000):
            path = Path("runs") / (name if number == 1 else f"{name}-{number}")
            if _make(path):
                return cls(path)
        raise RunError("has 100,000 runs of that name", where=f"runs/{name}")

    @classmethod
    def existing(cls, path: str | Path) -> RunDirectory:
        """A directory that a run has made.

        Raises:
            RunError: it is not there, or no run's.
        """
        path = path_of(path, tilde=False)
        if not path.is_dir():
            raise RunError("no such run directory", where=str(path), hint=_siblings(path))
        if not (path / RECIPE).is_file():
            raise RunError(
                f"is no run directory: there is no {RECIPE}",
                where=str(path),
                allowed="a directory that `run` made",
            )
        return cls(path)

    def recipe(self) -> Recipe:
        """The recipe as it was run."""
        return Recipe.load(self / RECIPE)

    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds.

        Raises:
            RunError: the run has not finished.
        """
        path = self / METRICS
        if not path.is_file():
            raise RunError(
                f"has no {METRICS}: the run has not finished",
                where=str(self.path),
                hint=self.resume_command(),
            )
        return json.loads(path.read_text(encoding="utf-8"))

    def lacks_something(self) -> bool:
        """Whether ``resume_command`` has something to do: training, or the baseline of ``compare: true``."""
        return not (self / METRICS).is_file() or (
            bool(self.recipe().get("compare")) and "comparison" not in self.metrics()
        )

    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"hf-llm-recipes run {self / RECIPE} output={self.path} resume=true"

    def checkpoint(self, *, needs_best: bool = False) -> checkpoints.Found:
        """The newest whole checkpoint, with what is to be said of it; see ``checkpoints.take_up``."""
        return checkpoints.take_up(self / CHECKPOINTS, needs_best=needs_best)

    def write_text(self, name: str, text: str) -> Path:
        """Writes a file to the side and renames it."""
        target, side = self / name, self / f".{name}.part"
        side.write_text(text, encoding="utf-8")
        os.replace(side, target)
        return target

    def write_json(self, name: str, values: Any) -> Path:
        """Writes JSON as ``write_text`` does, without the path of the home folder."""
        text = home_as_tilde(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        return self.write_text(name, text + "\n")

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Gives a folder to fill beside ``name``, and renames it once filled."""
        side, old = self / f".{name}.part", self / f".{name}.old"
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir()
        try:
            yield side
        except BaseException:
            shutil.rmtree(side, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.replace(self / name, old)
        os.replace(side, self / name)
        shutil.rmtree(old, ignore_errors=True)


def model_folder(path: str | Path) -> Path:
    """Returns the ``model/`` of a finished run, whether the run or that folder is named.

    Raises:
        RunError: no run, or an unfinished one.
    """
    path = path_of(path, tilde=False)
    if (path / RECORD).is_file():
        return path
    run = RunDirectory.existing(path)
    if not (run / MODEL / RECORD).is_file():
        raise RunError("has no model: the run has not finished", where=str(path), hint=run.resume_command())
    return run / MODEL


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps a run directory for this process; the lock of a process that was killed holds nobody up.

    Raises:
        RunError: another process has it.
    """
    lock = FileLock(path / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another run is going on in this directory: {_holder(path)}; nothing was changed",
            where=str(path),
            hint="wait for it, stop it, or choose another output",
        ) from error
    try:
        holder = {"pid": os.getpid(), "host": platform.node()}
        RunDirectory(path).write_json(HOLDER, holder)
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        found = json.loads((path / HOLDER).read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError):  # it has just begun or just ended
        return "a process that has not yet said its number"


@contextmanager
def full_disk_told(path: Path, advice: str) -> Iterator[None]:
    """Turns every form of "no space left" into one clear error.

    Raises:
        RunError: the disk (or a quota) is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch's writer
        if not _says_full(error, path):
            raise
        raise RunError(
            f"the disk is full ({_gib(free_bytes(path))} GiB left)", where=str(path), hint=advice
        ) from error


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Turns a place that cannot be written to into one clear error.

    Raises:
        RunError: the disk is full or read-only, the rights are missing, or a folder of the path is a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EROFS, EACCES, EPERM, ENOTDIR, EEXIST):
            raise
        raise RunError(f"cannot be written: {error.strerror}", where=str(path), hint=advice) from error


def need_space(path: Path, needed: int, what: str) -> None:
    """Checks the free space before anything is written.

    Args:
        path: A folder that exists, or whose nearest parent does.
        needed: Bytes.
        what: What they are for.

    Raises:
        RunError: less is free.
    """
    free = free_bytes(path)
    if free < needed:
        raise RunError(
            f"{what} need about {_gib(needed)} GiB, {_gib(free)} GiB are free",
            where=str(path),
            hint="free some space, or choose another disk with output=DIR",
        )


def free_bytes(path: Path) -> int:
    """Bytes free where ``path`` is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def environment() -> dict[str, Any]:
    """Returns versions, device and git commit; no path, user name or variable of the surroundings."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": _device(),
        "git_commit": _git_commit(),
    }


def seeds(seed: int, split_seed: int, row_order: int | None) -> dict[str, int]:
    """Returns the seed of every random source of a run.

    Args:
        seed: The recipe's.
        split_seed: Of `data`.
        row_order: ``trainer.data_seed``; None: the recipe's seed.
    """
    ours = ("python", "numpy", "torch", "cuda", "new_weights", "dropout", "masks", "augmentation", "streams")
    drawn = ("splits", "few_labels", "pool")
    return {
        **dict.fromkeys(ours, seed),
        "row_order": seed if row_order is None else row_order,
        **dict.fromkeys(drawn, split_seed),
        "bootstrap": 0,
    }


def environment_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns ``what: before -> now`` for versions and devices that can change the bits of a result."""
    flat = [{**e, **e.get("packages", {}), **e.get("device", {})} for e in (before, now)]
    looked_at = ("python", "platform", *PACKAGES, "cpu", "torch_threads", "gpus", "cuda")
    return [
        f"{name}: {flat[0].get(name)} -> {flat[1].get(name)}"
        for name in looked_at
        if flat[0].get(name) != flat[1].get(name)
    ]


def _device() -> dict[str, Any]:
    import psutil
    import torch

    found = {
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [],
    }
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["cuda"] = torch.version.cuda
    return found


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the folder the run was started in, with ``+changes`` where it is not clean."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_memory_bytes() -> dict[str, int]:
    """Returns the peak memory of this process since its start, host and GPU, in bytes."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks


def peak_memory_gib() -> dict[str, float]:
    """Returns the same in GiB."""
    return {name: round(value / 2**30, 3) for name, value in peak_memory_bytes().items()}


def path_of(name: str | Path, error: type[UserError] = RunError, *, tilde: bool = True) -> Path:
    """Returns a name as a path that can be looked at.

    Args:
        name: From a recipe or a command.
        error: What is raised.
        tilde: Whether ``~`` is written out.

    Raises:
        UserError: no path can be called so (too long, a NUL, an unknown user), or it may not be looked at.
    """
    text = str(name)
    try:
        if "\0" in text:
            raise ValueError("it holds a NUL")
        path = Path(text).expanduser() if tilde else Path(text)
        path.exists()
    except (OSError, RuntimeError, ValueError) as cause:
        short = repr(text if len(text) < 80 else text[:77] + "…")
        raise error(
            f"{short} cannot be looked for: {getattr(cause, 'strerror', None) or cause}",
            allowed="a name or a path",
        ) from None
    return path


def check_new(wanted: str | Path) -> None:
    """Checks that a run may use a directory of this name.

    Raises:
        RunError: it holds something already.
    """
    path = path_of(wanted, tilde=False)
    if (path / RECIPE).is_file():
        run = RunDirectory(path)
        if (path / HOLDER).exists():
            with locked(path):  # else somebody is at work in it, which is said
                pass
        state = "a finished run" if (path / METRICS).is_file() else "an unfinished run"
        go_on = f", or go on with it: {run.resume_command()}" if run.lacks_something() else ""
        raise RunError(
            f"holds {state} already; nothing was changed",
            where=str(path),
            hint=f"choose another output{go_on}",
        )
    if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - {LOCK, HOLDER}):
        raise RunError(
            "exists and is not empty; nothing was changed", where=str(path), hint="choose another output"
        )


def _make_exactly(path: Path) -> Path:
    check_new(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cannot be made: {error.strerror}", where=str(path), hint="choose another output"
        ) from error
    return path


def _make(path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # raises where the parent is a file
        if path.exists():
            return False
        path.mkdir()
    except OSError as error:
        if isinstance(error, FileExistsError) and path.parent.is_dir():
            return False  # another run was quicker
        raise RunError(f"cannot be made: {error.strerror}", where=str(path), hint="set output=DIR") from error
    return True


def _siblings(path: Path) -> str:
    parent = path.parent
    runs = sorted(p.name for p in parent.iterdir() if (p / RECIPE).is_file()) if parent.is_dir() else []
    return f"runs in {parent}: {', '.join(runs[:10])}" if runs else "`hf-llm-recipes run` makes one"


def _says_full(error: BaseException, path: Path) -> bool:
    """safetensors reports a full disk as text; torch's writer only that it could not go on."""
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return True
    text = str(error)
    vague = any(sign in text for sign in ("PytorchStreamWriter", "iostream error", "unexpected pos"))
    return "No space left on device" in text or "os error 28" in text or (vague and free_bytes(path) < 2**24)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"
