"""The frozen lower layers, computed once a row: exact economy where only the top layers are trained.

Notable:
- With adapters in the top layers only (or frozen lower layers, or only a head to train), the hidden
  states that enter the first trained layer are the same at every visit of a fixed view, as long as the
  dropout below is off. They are computed at a row's first visit, kept on disk without padding and put
  into the layers' place later.
- Nothing is believed of a model: at the first use the cached forward is compared with the whole one, and
  where they differ (layers that hand on more than hidden states, heads that read lower layers) every
  layer is computed every time, with a warning.
- A row on disk carries a checksum; what is torn, foreign or from other weights is computed anew.

Shape suffixes: B batch  T tokens  D hidden size.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from hf_llm_recipes.methods._features import config_bytes, evaluating, weights_sha256
from hf_llm_recipes.methods._forward import model_inputs, take, unwrapped
from hf_llm_recipes.rundir import full_disk_told, need_space
from hf_llm_recipes.tuning.freeze import layer_stack

log = logging.getLogger("hf_llm_recipes")

TOLERANCE = 1e-5  # of the logits with and without the cache, relative to the largest of them
ADVICE = "the hidden states of frozen layers fill it: free some space, or do without them"


def first_trainable_layer(model: nn.Module) -> int:
    """Returns how many of the lowest layers never change in training; 0 where nothing can be saved.

    The number of all layers where only what stands behind them is trained. Encoder-decoders count as 0.

    Args:
        model: A transformers model, bare or under peft, with its trainable weights chosen.
    """
    inner = unwrapped(model)
    if getattr(inner.config, "is_encoder_decoder", False):
        return 0
    try:
        stack_name, stack = layer_stack(inner)
    except ValueError:  # no list of layers, e.g. one shared layer
        return 0
    behind = _names_behind(inner, stack_name)
    inside = f"{stack_name}."
    names = {id(parameter): name for name, parameter in inner.named_parameters()}
    first = len(stack)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        name = names.get(id(parameter), "")  # "": of a wrapper, e.g. a learned prompt
        if name.startswith(inside):
            first = min(first, int(name.removeprefix(inside).partition(".")[0]))
        elif not name.startswith(behind):
            return 0
    return first


def quiet_lower_layers(model: nn.Module) -> None:
    """Puts the embeddings and the layers below the first trained one into ``eval()``: no dropout there.

    ``model.train()`` undoes it, so it is called after that.
    """
    inner, first = unwrapped(model), first_trainable_layer(model)
    if first:
        for module in _below(inner, first):
            module.eval()


class LowerLayers:
    """The hidden states behind the frozen lower layers, by row, on disk.

    Args:
        model: A transformers model, bare or under peft, with its trainable weights chosen.
        directory: Where the states lie; may be shared by several runs, one after the other or at once.
        fingerprint: Of the rows' content and order; with other weights or rows the states are others.
        num_rows: Stream -> how many rows it has, e.g. ``{"labeled": 40, "unlabeled": 8000}``.

    Raises:
        ValueError: every layer is trained, or a stream has no rows.
    """

    def __init__(
        self, model: nn.Module, directory: str | Path, fingerprint: str, num_rows: Mapping[str, int]
    ) -> None:
        self.model = getattr(model, "module", model)  # not a parallel wrapper: ranks have rows of their own
        self.inner, self.layer = unwrapped(model), first_trainable_layer(model)
        if self.layer == 0:
            raise ValueError("no layer can be saved: the lowest one or the embeddings are trained")
        if not num_rows or min(num_rows.values()) < 1:
            raise ValueError(f"num_rows is {dict(num_rows)}; allowed: one or more rows in every stream")
        self.directory, self.fingerprint, self.num_rows = Path(directory), fingerprint, dict(num_rows)
        self.stack = layer_stack(self.inner)[1]
        self.below = _below(self.inner, self.layer)
        self.active = True
        self.computed = 0  # rows that went through the lower layers
        self._store: _Store | None = None
        self._arity: int | None = None  # of the tuple that a layer returns; None: it returns a tensor
        self._arithmetic = ""  # of the states: device and autocast

    def quiet(self) -> None:
        """Puts the embeddings and the frozen lower layers into ``eval()``; ``model.train()`` undoes it."""
        if self.active:
            for module in self.below:
                module.eval()

    def states(self, key: tuple[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
        """Returns the hidden states that enter the first trained layer, (B, T, D), zeros on padding.

        Args:
            key: The stream and the numbers of the batch's rows in it, (B,).
            batch: The rows as the collator gives them, padded on the right.

        Raises:
            ValueError: a row is padded on the left, has another length than at its first visit, or is
                not one of the stream's; or the model's layers cannot be replaced (``active`` is False).
            RunError: the disk is or would be full.
        """
        stream, rows = key[0], [int(row) for row in key[1]]
        self._check_rows(stream, rows, batch)
        if not self._usable(batch):
            raise ValueError("this model's lower layers cannot be replaced; see the warning")
        found = {row: self._store.read(stream, row) for row in set(rows)}
        missing = [place for row, place in _first_places(rows).items() if found[row] is None]
        if missing:
            found |= self._compute(stream, rows, missing, batch)
        return _padded([found[row] for row in rows], batch, rows)

    @contextmanager
    def forward(self, states_BTD: Tensor) -> Iterator[None]:
        """Inside the block the model's frozen lower layers give these states, whatever they are fed with.

        The embeddings and the masks are computed as ever. ``hidden_states`` and ``attentions`` of the
        lower layers, where asked for, mean nothing.
        """
        given = states_BTD if self._arity is None else (states_BTD, *[None] * (self._arity - 1))
        with _forwards(self.stack[: self.layer], lambda *_, **__: given):
            yield

    @contextmanager
    def replaced(self, key: tuple[str, Tensor], batch: Mapping[str, Any]) -> Iterator[None]:
        """Inside the block ``model(**batch)`` skips the frozen lower layers; see ``states``."""
        if not self._usable(batch):
            yield
            return
        with self.forward(self.states(key, batch)):
            yield

    def close(self) -> None:
        """Lets another process have the file."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _check_rows(self, stream: str, rows: list[int], batch: Mapping[str, Any]) -> None:
        count = self.num_rows.get(stream)
        if count is None:
            raise ValueError(f"no stream `{stream}`; allowed: {', '.join(self.num_rows)}")
        if not rows or min(rows) < 0 or max(rows) >= count:
            raise ValueError(f"rows are {rows}; allowed: 0 to {count - 1} of `{stream}`")
        mask = batch.get("attention_mask")
        if mask is not None and not bool(mask[:, 0].all()):
            raise ValueError("a row is padded on the left, where its states depend on the padding's width")

    def _usable(self, batch: Mapping[str, Any]) -> bool:
        """Whether the layers can be replaced; finds out, and opens the file, at the first call."""
        if self.active and self._store is None:
            self._agree(batch)
            if self.active:
                self._store = _Store(self.directory, self._fingerprint(), list(self.num_rows))
        return self.active

    def _fingerprint(self) -> str:
        """Of these weights, rows, layers and this arithmetic."""
        digest = hashlib.sha256(config_bytes(self.inner))
        for part in (self.fingerprint, self.layer, self.num_rows, self._arithmetic):
            digest.update(f"{part}\n".encode())
        for module in self.below:
            digest.update(weights_sha256(module, adapters=True).encode())
        return digest.hexdigest()

    def _compute(
        self, stream: str, rows: list[int], missing: list[int], batch: Mapping[str, Any]
    ) -> dict[int, Tensor]:
        """Runs the lower layers on some places of a batch and keeps what comes out."""
        inputs = {k: v for k, v in model_inputs(self.model, batch).items() if torch.is_tensor(v)}
        part = take(inputs, torch.tensor(missing, device=_device(batch)))
        hidden_BTD = self._lower(part, torch.no_grad)
        mask = part.get("attention_mask")
        kept = [
            hidden_TD if mask is None else hidden_TD[mask[place].bool()]
            for place, hidden_TD in enumerate(hidden_BTD)
        ]
        self.computed += len(kept)
        total, tokens = sum(self.num_rows.values()), sum(len(row) for row in kept)
        each = tokens / len(kept) * hidden_BTD.shape[-1] * hidden_BTD.element_size()
        made = {rows[place]: state for place, state in zip(missing, kept, strict=True)}
        self._store.write(stream, made, expected_bytes=int(total * each))
        return made

    def _lower(self, batch: Mapping[str, Any], gradients: Callable) -> Tensor:
        """The output of the last frozen layer, dropout off; what is above does not run."""
        caught: list[Any] = []

        def stop(module: nn.Module, given: Any, output: Any) -> None:
            caught.append(output)
            kind = _device(batch).type  # autocast may begin in the model's forward
            cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            self._arithmetic = f"{kind} {cast}"
            raise _StopForwardError

        hook = self.stack[self.layer - 1].register_forward_hook(stop)
        try:
            with evaluating(self.model), gradients(), suppress(_StopForwardError):
                self.model(**model_inputs(self.model, batch))
        finally:
            hook.remove()
        output = caught[0]
        self._arity = len(output) if isinstance(output, tuple) else None
        if self._arity is None:
            return output
        if any(torch.is_tensor(more) for more in output[1:]):
            self._give_up("its layers hand on more than hidden states")
        return output[0]

    def _agree(self, batch: Mapping[str, Any]) -> None:
        """Compares the cached forward with the whole one on one batch; gives up where they differ."""
        hidden = self._lower(batch, torch.enable_grad)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if hidden.requires_grad and trained:  # input embeddings are made to, under activation checkpointing
            gradients = torch.autograd.grad(hidden.float().sum(), trained, allow_unused=True)
            if any(gradient is not None for gradient in gradients):
                self._give_up("trained weights act below the first trained layer")
        if not self.active:
            return
        mask, states_BTD = batch.get("attention_mask"), hidden.detach()
        if mask is not None:
            states_BTD = states_BTD * mask[..., None].to(states_BTD.dtype)
        with evaluating(self.model), torch.no_grad():
            whole = self._output(batch)
            with self.forward(states_BTD):
                short = self._output(batch)
        difference = float((whole - short).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(whole.abs().max())):
            self._give_up(f"the outputs differ by {difference:.1e}")

    def _output(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits (or the first output) of a batch, of tokens only where there are some."""
        outputs = self.model(**model_inputs(self.model, batch))
        first = (outputs["logits"] if "logits" in outputs else outputs[0]).float()
        mask = batch.get("attention_mask")
        return first[mask.bool()] if mask is not None and first.shape[:2] == mask.shape else first

    def _give_up(self, reason: str) -> None:
        self.active = False
        log.warning("the frozen lower layers are computed every time: %s", reason)


class _StopForwardError(Exception):
    """Leaves a forward once the wanted layer is through."""


class _Store:
    """Rows of hidden states in two growing files: the states, and one record a row.

    A record is written after its states, so that a torn tail loses the last row only. Two processes with
    the same fingerprint take different numbers.

    Args:
        directory: Where both lie.
        fingerprint: 64 hexadecimal digits; in the names, and at the head of the records.
        streams: Names, in the order of their numbers on disk.
    """

    RECORD = np.dtype(
        [("stream", "<u4"), ("row", "<u4"), ("offset", "<u8"), ("tokens", "<u4"), ("sum", "<u4")]
    )
    HEAD = 256

    def __init__(self, directory: Path, fingerprint: str, streams: list[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.streams, self.fingerprint = {name: number for number, name in enumerate(streams)}, fingerprint
        self._places: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._num_records = 0  # whole ones; a row computed anew has several
        self.shape: tuple[torch.dtype, int] | None = None
        self._lock, stem = _first_free(directory, fingerprint[:24])
        self.path, self.index_path = stem.with_suffix(".states"), stem.with_suffix(".rows")
        known = self.path.is_file() and self._take_up()
        mode = "r+b" if known else "w+b"
        self._data, self._index = self.path.open(mode), self.index_path.open(mode)
        self._index.seek(
            self.HEAD + self._num_records * self.RECORD.itemsize if known else 0
        )  # torn tails go
        self._checked = False

    def read(self, stream: str, row: int) -> Tensor | None:
        """Returns the states of a row, (T, D); None where there are none or they are damaged."""
        place = self._places.get((self.streams[stream], row))
        if place is None:
            return None
        offset, tokens, expected = place
        dtype, width = self.shape
        self._data.seek(offset)
        data = bytearray(self._data.read(tokens * width * dtype.itemsize))
        if len(data) != tokens * width * dtype.itemsize or zlib.crc32(data) != expected:
            del self._places[(self.streams[stream], row)]
            return None
        return torch.frombuffer(data, dtype=dtype).view(tokens, width)

    def write(self, stream: str, made: Mapping[int, Tensor], expected_bytes: int) -> None:
        """Appends rows.

        Args:
            stream: Theirs.
            made: Row -> states, (T, D).
            expected_bytes: What all rows of all streams will take, for a look at the disk beforehand.
        """
        if not self._checked:
            held = self.path.stat().st_size
            need_space(self.path, max(0, expected_bytes - held), "the hidden states of frozen layers")
            self._checked = True
        with full_disk_told(self.path, ADVICE):
            self._append(self.streams[stream], made)

    def _append(self, stream: int, made: Mapping[int, Tensor]) -> None:
        first = next(iter(made.values()))
        if self.shape is None:
            self.shape = first.dtype, first.shape[1]
            self._index.write(self._head())
        elif self.shape != (first.dtype, first.shape[1]):
            raise ValueError(f"states are {first.dtype} × {first.shape[1]}, those on disk {self.shape}")
        records = []
        offset = self._data.seek(0, 2)
        for row, state_TD in made.items():
            data = state_TD.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            self._data.write(data)
            records.append((stream, row, offset, len(state_TD), zlib.crc32(data)))
            offset += len(data)
        self._data.flush()
        self._index.write(np.array(records, self.RECORD).tobytes())
        self._index.flush()
        self._places |= {(s, row): (at, tokens, total) for s, row, at, tokens, total in records}

    def _head(self) -> bytes:
        dtype, width = self.shape
        return f"{self.fingerprint} {str(dtype).removeprefix('torch.')} {width}".encode().ljust(self.HEAD)

    def _take_up(self) -> bool:
        """Reads the records of an earlier process; False where they are not ours."""
        with suppress(FileNotFoundError):
            held = self.index_path.read_bytes()
            words = held[: self.HEAD].decode("ascii", "replace").split()
            dtype = getattr(torch, words[1], None) if len(words) == 3 else None
            if len(held) < self.HEAD or words[:1] != [self.fingerprint] or not isinstance(dtype, torch.dtype):
                return False
            if not words[2].isdecimal():
                return False
            self.shape = dtype, int(words[2])
            self._num_records = (len(held) - self.HEAD) // self.RECORD.itemsize
            records = np.frombuffer(held, self.RECORD, self._num_records, self.HEAD)
            self._places = {(s, row): (at, tokens, total) for s, row, at, tokens, total in records.tolist()}
            return True
        return False

    def close(self) -> None:
        """Closes both files and gives the lock back."""
        self._data.close()
        self._index.close()
        self._lock.release()


def _first_free(directory: Path, name: str) -> tuple[FileLock, Path]:
    """The first pair of files of that name which no other process holds, locked."""
    number = 0
    while True:
        stem = directory / f"{name}-{number}"
        lock = FileLock(stem.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
            return lock, stem
        except Timeout:
            number += 1


@contextmanager
def _forwards(layers: nn.ModuleList, replacement: Callable) -> Iterator[None]:
    """Gives layers another ``forward``, and theirs back."""
    own = [layer.__dict__.get("forward") for layer in layers]  # set where accelerate placed the layer
    for layer in layers:
        layer.forward = replacement
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            if before is None:
                del layer.__dict__["forward"]
            else:
                layer.forward = before


def _names_behind(inner: nn.Module, stack_name: str) -> tuple[str, ...]:
    """Prefixes of what is registered after the stack: norms, poolers, heads."""
    return tuple(f"{name}." for name in _siblings(inner, stack_name, behind=True))


def _below(inner: nn.Module, first: int) -> list[nn.Module]:
    """What runs before the first trained layer: everything registered before the stack, the layers below."""
    stack_name, stack = layer_stack(inner)
    before = [inner.get_submodule(name) for name in _siblings(inner, stack_name, behind=False)]
    return [*before, *stack[:first]]


def _siblings(inner: nn.Module, stack_name: str, *, behind: bool) -> list[str]:
    """Names of the modules beside the stack and beside its parents, on one side of it."""
    parts, found = stack_name.split("."), []
    for depth in range(len(parts)):
        parent = ".".join(parts[:depth])
        names = [name for name, _ in inner.get_submodule(parent).named_children()]
        place = names.index(parts[depth])
        chosen = names[place + 1 :] if behind else names[:place]
        found += [f"{parent}.{name}" if parent else name for name in chosen]
    return found


def _first_places(rows: list[int]) -> dict[int, int]:
    """Row -> where a batch holds it first."""
    return {row: place for place, row in reversed(list(enumerate(rows)))}


def _device(batch: Mapping[str, Any]) -> torch.device:
    return next(value for value in batch.values() if torch.is_tensor(value)).device


def _padded(states: list[Tensor], batch: Mapping[str, Any], rows: list[int]) -> Tensor:
    """Stored rows as a batch, (B, T, D), on the batch's device."""
    device, mask = _device(batch), batch.get("attention_mask")
    if mask is None:
        return torch.stack([state.to(device) for state in states])
    padded = torch.zeros(*mask.shape, states[0].shape[-1], dtype=states[0].dtype, device=device)
    for place, state_TD in enumerate(states):
        used = mask[place].bool()
        if int(used.sum()) != len(state_TD):
            raise ValueError(
                f"row {rows[place]} has {int(used.sum())} tokens, {len(state_TD)} at its first visit: "
                "only fixed views have lasting states"
            )
        padded[place, used] = state_TD.to(device)
    return padded
