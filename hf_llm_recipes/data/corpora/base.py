"""What every corpus under ``local/`` has: a cache, a fingerprint, a licence, one line for listings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_llm_recipes.assets import CACHE_ADVICE, cache_dir, written_beside
from hf_llm_recipes.registry import CORPORA
from hf_llm_recipes.rundir import writing

if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict, Features

SPLITS = ("train", "validation", "test")


@dataclass
class Built:
    """A corpus that lies in the cache.

    Args:
        splits: Its rows.
        sha256: Split -> sha256 of the rows' content.
        made_from: Package -> version of what the rows were read from.
    """

    splits: DatasetDict
    sha256: dict[str, str]
    made_from: dict[str, str]


class Corpus(ABC):
    """Rows made from files that an installation brings anyway.

    A subclass sets the class attributes and says how rows are made. The cache key
    holds the corpus's version and those of its packages, so a change of either
    builds anew.
    """

    summary: ClassVar[str]
    license: ClassVar[str]
    version: ClassVar[int]
    packages: ClassVar[tuple[str, ...]]

    @abstractmethod
    def features(self) -> Features:
        """Returns the columns and their types."""

    @abstractmethod
    def rows(self) -> Iterable[tuple[str, dict]]:
        """Yields (split, row), in the same order on every machine."""

    def build(self) -> Built:
        """Returns the corpus, made on first use and read from the cache afterwards."""
        from datasets import Dataset, DatasetDict
        from filelock import FileLock

        made_from = {package: installed_version(package) for package in self.packages}
        name = type(self).__name__
        key = json.dumps([name, self.version, made_from], sort_keys=True).encode()
        corpora = cache_dir() / "corpora"
        target = corpora / f"{name}-{hashlib.sha256(key).hexdigest()[:16]}"
        if not target.is_dir():  # a filled cache may be read-only
            with writing(corpora, CACHE_ADVICE):
                corpora.mkdir(parents=True, exist_ok=True)
                with FileLock(corpora / f".{name}.lock"):
                    if not target.is_dir():
                        with written_beside(target) as folder:
                            self._write(folder, made_from)
        facts = json.loads((target / "facts.json").read_text(encoding="utf-8"))
        splits = {s: Dataset.from_file(str(target / f"{s}.arrow")) for s in SPLITS}
        return Built(DatasetDict(splits), facts["sha256"], facts["made_from"])

    def _write(self, folder: Path, made_from: dict[str, str]) -> None:
        from datasets.arrow_writer import ArrowWriter

        features = self.features()
        digests = {split: hashlib.sha256() for split in SPLITS}
        writers = {
            split: ArrowWriter(path=str(folder / f"{split}.arrow"), features=features) for split in SPLITS
        }
        for split, row in self.rows():
            digests[split].update(json.dumps(row, sort_keys=True, default=_pixels).encode())
            writers[split].write(features.encode_example(row))
        for writer in writers.values():
            writer.finalize()
        facts = {"sha256": {s: d.hexdigest() for s, d in digests.items()}, "made_from": made_from}
        (folder / "facts.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def _pixels(image: np.ndarray) -> list:
    return image.tolist()


def installed_version(package: str) -> str:
    """Returns the version of a distribution; ``python`` is the interpreter's."""
    return platform.python_version() if package == "python" else importlib.metadata.version(package)


def source_root(module: str) -> Path:
    """Returns the folder of a package's files without importing it; ``python`` is the standard library."""
    if module == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {module}", name=module)
    return Path(spec.submodule_search_locations[0])


def fraction_of(text: str) -> float:
    """Returns a number in [0, 1) that depends on the text alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(key: str) -> str:
    """Returns train, validation or test for a key, about 80, 10 and 10 % of them."""
    at = fraction_of(f"split {key}")
    return "train" if at < 0.8 else "validation" if at < 0.9 else "test"


def local_corpora() -> dict[str, str]:
    """Returns name -> one line of each ``local/…`` corpus."""
    return {
        f"local/{name.replace('_', '-')}": f"{CORPORA.get(name).summary} ({CORPORA.get(name).license})"
        for name in CORPORA.names()
    }
