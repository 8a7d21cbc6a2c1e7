"""Frozen features: one vector a row from the backbone as it was loaded, kept on disk.

Shape suffixes: N rows  D hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from hf_llm_recipes.assets import cache_dir
from hf_llm_recipes.methods._forward import model_inputs, unwrapped
from hf_llm_recipes.rundir import full_disk_told, need_space

VERSION = 1  # of what is computed; a new one forgets old caches
UNSEEN = ("labels", "label")  # keys of a row that have no part in its features


def frozen_features(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    collator: Callable[[list[dict]], Mapping[str, Any]],
    *,
    batch_size: int,
    label: str | None = "features",
    directory: str | Path | None = None,
) -> np.ndarray:
    """Returns the mean of each row's last hidden states, normalised to length 1, (N, D) float32.

    Computed by the backbone without adapters, in ``eval()``. The mean is over the attended tokens; for
    images over the patches. An encoder-decoder's features are its encoder's.

    Args:
        model: A transformers model, bare or under peft; its modes come back as they were.
        rows: Features of the task, one or more, labeled or not.
        collator: Rows -> a padded batch.
        batch_size: Rows a forward, ≥ 1.
        label: Beside the progress bar; None for no bar.
        directory: Of the cache; None: ``features`` in the package's cache directory.

    Raises:
        ValueError: no rows, a batch size below 1, or states that the mask does not belong to (audio).
        RunError: the disk is full.
    """
    if len(rows) == 0:
        raise ValueError("there are no rows to make features of")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed: 1 or more")
    backbone = backbone_of(model)
    lengths, digest = _lengths_and_sha256(rows)
    path = _place(model, backbone, digest, directory)
    cached = _cached(path, len(rows))
    if cached is not None:
        return cached
    order = np.argsort(-lengths, kind="stable")  # longest first: a batch too large fails at once
    features_ND = _encode(model, backbone, rows, collator, order, batch_size, label)
    keep(path, features_ND, "the frozen features")
    return features_ND


def are_kept(model: nn.Module, rows: Sequence[Mapping[str, Any]], directory: str | Path | None) -> bool:
    """Returns whether rows' features lie in the cache already; see ``frozen_features``."""
    digest = _lengths_and_sha256(rows)[1]
    return _cached(_place(model, backbone_of(model), digest, directory), len(rows)) is not None


def _place(model: nn.Module, backbone: nn.Module, digest: str, directory: str | Path | None) -> Path:
    """The file of the cache that rows' features are kept in."""
    name = hashlib.sha256(f"{VERSION} {features_sha256(backbone)} {digest} {_dtype(model)}".encode())
    folder = Path(directory) if directory is not None else cache_dir() / "features"
    return folder / f"{name.hexdigest()}.npy"


def backbone_of(model: nn.Module) -> nn.Module:
    """Returns the part of a model that gives hidden states, of an encoder-decoder the encoder."""
    inner = unwrapped(model)
    backbone = getattr(inner, inner.base_model_prefix, inner) if inner.base_model_prefix else inner
    return backbone.get_encoder() if getattr(inner.config, "is_encoder_decoder", False) else backbone


def rows_sha256(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the sha256 of rows' content in their order, labels apart."""
    return _lengths_and_sha256(rows)[1]


def weights_sha256(module: nn.Module, *, adapters: bool) -> str:
    """Returns the sha256 of a module's weights, quantisation constants among them.

    Args:
        module: Any module.
        adapters: Whether peft's weights beside the base's count.
    """
    left_out = () if adapters else _adapter_prefixes(module)
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if name.startswith(left_out):
            continue
        digest.update(name.replace("base_layer.", "").replace("original_module.", "").encode())
        if torch.is_tensor(value):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def features_sha256(backbone: nn.Module) -> str:
    """Returns the sha256 of a backbone's configuration and weights."""
    return hashlib.sha256(
        config_bytes(backbone) + weights_sha256(backbone, adapters=False).encode()
    ).hexdigest()


def config_bytes(model: nn.Module) -> bytes:
    """Returns what of a configuration changes hidden states: all of it but names and labels."""
    unrelated = {"_name_or_path", "id2label", "label2id", "problem_type", "architectures", "torch_dtype"}
    known = {k: v for k, v in model.config.to_dict().items() if k not in unrelated}
    known["attention"] = model.config._attn_implementation
    return json.dumps(known, sort_keys=True, default=str).encode()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in ``eval()`` inside the block; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _adapter_prefixes(module: nn.Module) -> tuple[str, ...]:
    """Where the state dict of a module holds peft's weights beside the base's."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = []
    for name, part in module.named_modules():
        names: tuple[str, ...] = ()
        if isinstance(part, BaseTunerLayer):
            names = (*part.adapter_layer_names, *part.other_param_names)
        elif isinstance(part, AuxiliaryTrainingWrapper):
            names = ("modules_to_save", "token_adapter")
        found += [f"{name}.{inner}." if name else f"{inner}." for inner in names]
    return tuple(found)


def _lengths_and_sha256(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, str]:
    """How many tokens each row has, (N,) (equal for images), and the sha256 of all content."""
    lengths, digest = np.ones(len(rows), np.int64), hashlib.sha256()
    for number in range(len(rows)):
        row = rows[number]
        if "input_ids" in row:
            lengths[number] = len(row["input_ids"])
        for key in sorted(row.keys() - set(UNSEEN)):
            digest.update(_bytes(key, row[key]))
    return lengths, digest.hexdigest()


def _bytes(key: str, value: Any) -> bytes:
    try:
        return f"{key} {json.dumps(value)} ".encode()
    except TypeError:  # arrays, tensors and lists of them
        array = np.ascontiguousarray(value)
        return f"{key} {array.dtype} {array.shape} ".encode() + array.tobytes()


def _dtype(model: nn.Module) -> str:
    parameter = next(model.parameters())
    return f"{unwrapped(model).dtype} {parameter.device.type}"


def _encode(
    model: nn.Module,
    backbone: nn.Module,
    rows: Sequence,
    collator: Callable,
    order: np.ndarray,
    batch_size: int,
    label: str | None,
) -> np.ndarray:
    device = next(backbone.parameters()).device
    features_ND = None
    hidden = True if label is None else None  # None: shown in a terminal only
    starts = tqdm(range(0, len(order), batch_size), desc=label, unit="batch", disable=hidden)
    with torch.no_grad(), evaluating(model), _without_adapters(model):
        for start in starts:
            chosen = order[start : start + batch_size]
            batch = collator([_unlabeled(rows[int(i)]) for i in chosen])
            batch = {k: v.to(device) for k, v in batch.items() if torch.is_tensor(v)}
            made = _pooled(backbone, batch).cpu().numpy()
            if features_ND is None:
                features_ND = np.empty((len(order), made.shape[1]), np.float32)
            features_ND[chosen] = made
    return features_ND


def _unlabeled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in UNSEEN}


def _without_adapters(model: nn.Module) -> AbstractContextManager:
    outer = getattr(model, "module", model)
    return outer.disable_adapter() if hasattr(outer, "peft_config") else nullcontext()


def _pooled(backbone: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The normalised means of a batch, (B, D)."""
    inputs = model_inputs(backbone, {**batch, "use_cache": False})  # where the model takes it
    hidden = backbone(**inputs).last_hidden_state.float()
    if hidden.dim() == 4:  # convolutional backbones: (B, D, rows, columns)
        hidden = hidden.flatten(2).transpose(1, 2)
    if "pixel_values" in batch:
        return normalize(
            hidden[:, _num_extra(backbone, batch["pixel_values"], hidden.shape[1]) :].mean(1), dim=-1
        )
    mask = batch.get("attention_mask")
    if mask is None:
        return normalize(hidden.mean(1), dim=-1)
    if mask.shape != hidden.shape[:2]:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the states are {tuple(hidden.shape[:2])}")
    weight = mask[..., None].float()
    return normalize((hidden * weight).sum(1) / weight.sum(1).clamp(min=1), dim=-1)


def _num_extra(backbone: nn.Module, pixels: Tensor, tokens: int) -> int:
    """How many states before the patches stand for no patch: [CLS], registers."""
    size = getattr(backbone.config, "patch_size", None)
    if not isinstance(size, int):
        return 0
    patches = (pixels.shape[-2] // size) * (pixels.shape[-1] // size)
    return max(0, tokens - patches) if tokens < 2 * patches else 0


def _cached(path: Path, num_rows: int) -> np.ndarray | None:
    """What a file holds; None where there is none or it is damaged or foreign."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if (
        not isinstance(found, np.ndarray)
        or found.ndim != 2
        or found.dtype != np.float32
        or len(found) != num_rows
    ):
        return None
    lengths = np.linalg.norm(found, axis=1)
    return found if np.all(np.abs(lengths - 1) < 1e-3) else None


def keep(path: Path, array: np.ndarray, what: str) -> None:
    """Puts an array into the cache: a file beside it, renamed once.

    Args:
        path: Its file.
        array: Of any shape.
        what: It is, for messages.

    Raises:
        RunError: the disk is full.
    """
    need_space(path, array.nbytes, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with full_disk_told(path, "free some space, or set HF_LLM_RECIPES_CACHE to another disk"):
            with side.open("wb") as file:
                np.save(file, array)
            os.replace(side, path)
    finally:
        side.unlink(missing_ok=True)
