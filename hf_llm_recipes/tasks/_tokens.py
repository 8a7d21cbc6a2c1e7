"""Many texts -> token ids, in parallel, and kept on disk where that took long.

Fast tokenizers spread a batch over all cores; slow ones get processes. A corpus of ``CACHED_FROM``
characters or more is tokenised once for each tokenizer: a run that goes on, or the next one, reads it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_llm_recipes.assets import CACHE_ADVICE, cache_dir
from hf_llm_recipes.rundir import full_disk_told
from hf_llm_recipes.tasks._rows import bar_if_long

CACHED_FROM = 20_000_000  # characters: some ten seconds of work
ROWS_A_PROCESS = 2000  # of a slow tokenizer
VERSION = 1


def tokenize(texts: Sequence[str], tokenizer: Any, where: str, *, special: bool = True) -> list[np.ndarray]:
    """Returns the token ids of each text, int32.

    Args:
        texts: One a document.
        tokenizer: Of transformers.
        where: The split, beside the progress bar.
        special: Whether the tokenizer puts its own special tokens around a text.

    Raises:
        RunError: the disk is full.
    """
    path = None
    if tokenizer.is_fast and sum(map(len, texts)) >= CACHED_FROM:
        path = cache_dir() / "tokens" / f"{_sha256(texts, tokenizer, special=special)}.npz"
        kept = _read(path, len(texts))
        if kept is not None:
            return kept
    made = _tokenized(texts, tokenizer, where, special=special)
    if path is not None:
        _keep(path, made)
    return made


def _tokenized(texts: Sequence[str], tokenizer: Any, where: str, *, special: bool) -> list[np.ndarray]:
    def encode(batch: dict[str, list]) -> dict[str, list]:
        made = tokenizer(batch["text"], add_special_tokens=special, verbose=False)
        return {"input_ids": made["input_ids"]}

    if not len(texts):
        return []
    processes = 1 if tokenizer.is_fast else min(os.cpu_count() or 1, len(texts) // ROWS_A_PROCESS)
    with bar_if_long(len(texts)):
        made = Dataset.from_dict({"text": texts}).map(
            encode,
            batched=True,
            remove_columns=["text"],
            num_proc=processes if processes > 1 else None,
            load_from_cache_file=False,
            desc=f"tokenizing the {where}",
        )
    ids = made.with_format("numpy")["input_ids"]  # 4 bytes a token; Python's own numbers take 36
    return [np.asarray(row, dtype=np.int32) for row in ids]


def _sha256(texts: Iterable[str], tokenizer: Any, *, special: bool) -> str:
    digest = hashlib.sha256(f"{VERSION} {special} {tokenizer.backend_tokenizer.to_str()}".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _read(path: Path, count: int) -> list[np.ndarray] | None:
    """What is kept; None where nothing is, or not whole."""
    try:
        with np.load(path) as kept:
            flat, lengths = kept["tokens"], kept["lengths"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(lengths) != count or lengths.sum() != len(flat):
        return None
    return np.split(flat, np.cumsum(lengths)[:-1])


def _keep(path: Path, made: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    lengths = np.asarray([len(ids) for ids in made], dtype=np.int64)
    try:
        with full_disk_told(path, CACHE_ADVICE):
            np.savez(beside, tokens=np.concatenate(made), lengths=lengths)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
