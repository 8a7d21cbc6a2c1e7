"""An exported model (ONNX, ExecuTorch) in the clothes of the transformers model that it came from.

Notable:
- Its weights lie on the meta device: what it answers can come from the exported program only.
- A program keeps no cache, so that ``generate`` gives it all tokens at each step.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from hf_llm_recipes.errors import MissingExtraError, RunError

MANIFEST = "export.json"  # of transformers.exporters, beside the program
PACKAGES = {"onnx": ("onnxruntime", "onnx"), "executorch": ("executorch", "executorch")}  # module, extra
ROWS_AT_ONCE = {"executorch": 1}  # a program for devices has its memory planned for one row


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported program instead of weights."""
    return (folder / MANIFEST).is_file()


def load(folder: Path, auto_class: str, *, trust_code: bool = False) -> PreTrainedModel:
    """Returns a model whose ``forward`` and ``generate`` run the exported program of a folder.

    Args:
        folder: With the program, its manifest and the model's configuration.
        auto_class: Of the model it came from, e.g. ``"AutoModelForSequenceClassification"``.
        trust_code: Whether the configuration's own Python code may run.

    Raises:
        RunError: the folder is damaged.
        MissingExtraError: the runtime is not installed.
    """
    from transformers.exporters import ExportedModel

    kind = _kind(folder)
    require(*PACKAGES[kind])
    try:
        program = ExportedModel.from_pretrained(folder, **_session(kind))
    except _unreadable(kind) as error:
        raise RunError(
            f"the exported program could not be loaded: {str(error).splitlines()[0]}",
            where=str(folder),
            hint="export the run again",
        ) from error
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_code)
    with torch.device("meta"):
        shell = getattr(transformers, auto_class).from_config(config, trust_remote_code=trust_code)
    shell.__class__ = _dressed(type(shell), _in_rows(program, ROWS_AT_ONCE.get(kind)))
    return shell.eval()


def require(module: str, extra: str) -> None:
    """Checks that a package is installed.

    Raises:
        MissingExtraError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module, extra)


def _kind(folder: Path) -> str:
    try:
        kind = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["export_format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{MANIFEST} is damaged", where=str(folder), hint="export the run again") from error
    if kind not in PACKAGES:
        raise RunError(f"holds a program for {kind!r}", where=str(folder), allowed=", ".join(PACKAGES))
    return kind


def _unreadable(kind: str) -> tuple[type[Exception], ...]:
    """What a damaged program raises."""
    known: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, RuntimeError)
    if kind != "onnx":
        return known
    from google.protobuf.message import DecodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (*known, DecodeError, state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile)


def _session(kind: str) -> dict[str, Any]:
    """As many threads as torch may use: onnxruntime would take every core of the machine."""
    if kind != "onnx":
        return {}
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return {"session_options": options}


def _in_rows(program: Any, rows: int | None) -> Callable[..., Any]:
    """Gives a program as many rows as it takes, and rows that are padded on the left without the padding.

    It counts positions from the first token, where ``generate`` would hand them over.
    """

    def run(**inputs: torch.Tensor) -> Any:
        try:
            return answered(inputs)
        except RuntimeError as error:
            shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
            raise RunError(
                f"the exported program did not take {shapes}: {str(error).splitlines()[0]}",
                hint="shorten the rows: it takes as many tokens as the model has positions, at most",
            ) from error

    def answered(inputs: dict[str, torch.Tensor]) -> Any:
        mask = inputs.get("attention_mask")
        if mask is not None and not mask[:, 0].all():
            return _joined([_without_padding(program, row) for row in _cut(inputs, 1)])
        count = len(next(iter(inputs.values())))
        if rows is None or count <= rows:
            return program(**inputs)
        return _joined([program(**part) for part in _cut(inputs, rows)])

    return run


def _cut(inputs: dict[str, torch.Tensor], rows: int) -> list[dict[str, torch.Tensor]]:
    count = len(next(iter(inputs.values())))
    return [{key: value[at : at + rows] for key, value in inputs.items()} for at in range(0, count, rows)]


def _without_padding(program: Any, row: dict[str, torch.Tensor]) -> Any:
    first = int(row["attention_mask"][0].argmax())
    made = program(**{key: value[:, first:] for key, value in row.items()})
    made["logits"] = torch.nn.functional.pad(made["logits"], (0, 0, first, 0))
    return made


def _joined(parts: list[Any]) -> Any:
    return type(parts[0])(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})


def _dressed(cls: type[PreTrainedModel], run: Callable[..., Any]) -> type[PreTrainedModel]:
    class Exported(cls):
        @functools.wraps(cls.forward)
        def forward(self, **inputs: Any) -> Any:
            return run(**{key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)})

        @property
        def device(self) -> torch.device:
            return torch.device("cpu")

        def prepare_inputs_for_generation(
            self, input_ids: Any, attention_mask: Any = None, **kwargs: Any
        ) -> dict[str, Any]:
            if attention_mask is None:  # `generate` drops one without padding
                attention_mask = torch.ones_like(input_ids)
            return {"input_ids": input_ids, "attention_mask": attention_mask}

        def generate(self, *given: Any, use_cache: bool | None = None, **more: Any) -> Any:
            return super().generate(*given, use_cache=False, **more)

    return Exported
