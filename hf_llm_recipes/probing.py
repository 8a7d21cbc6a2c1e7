"""A few real training steps before a run, timed and measured, that leave no trace.

Notable:
- The batches are the first that the run itself will see, in its order; sizes are their padded tokens.
- Time is fitted as a + b x size on the probed batches and averaged over all batches looked at.
- Methods that make their batches while they train are probed on labeled rows; the memory that a pool adds
  is computed from its sizes, as if every unlabeled row counted. Their time is not known: steps on labeled
  rows gave 28 to 59 % of it.
- What autograd keeps for the way back is counted tensor by tensor, each storage once, weights left out.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_llm_recipes.rundir import peak_memory_bytes

log = logging.getLogger("hf_llm_recipes")

LOOKED_AT = 64  # batches
SLOW = 8.0  # seconds: after a step that takes longer, no more steps of middle length are taken
WARM = 1.0  # seconds: shorter steps are taken twice and the faster counts, since a shape's first is slow


@dataclass
class Probed:
    """What the probe found; zeros and None where it could not look.

    Args:
        activations: Bytes that autograd keeps of the longest batch, without logits.
        logits: Bytes that it keeps of them.
        optimizer_bytes: Of the optimizer's states.
        peak: Bytes at the peak, of the process or of torch's allocator on a GPU.
        judging: By how much the judgement on the test split raises the peak.
        base: Bytes of the process before the probe, without the model; 0 on a GPU.
        optimizer_steps: Of the whole training.
        seconds_per_step: Of an optimizer step.
        seconds: Of the whole training, evaluations included.
        cpu_seconds: The same as CPU time of all cores, which other processes do not lengthen.
        scale: How much longer batches the method makes than those probed, ≥ 1.
        longest: What the longest batch was.
        notes: Sentences about what is left out.
    """

    activations: int = 0
    logits: int = 0
    optimizer_bytes: int | None = None
    peak: int = 0
    judging: int = 0
    base: int = 0
    optimizer_steps: int | None = None
    seconds_per_step: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    scale: float = 1.0
    longest: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def took_steps(self) -> bool:
        """Whether real steps were taken."""
        return self.peak > 0


def probe(runner: Any, *, steps: int = 3) -> Probed:
    """Takes a few steps of a run and returns what they needed.

    Args:
        runner: ``run._Runner`` with data and model.
        steps: On batches of middle length, ≥ 1, besides the longest.
    """
    from transformers import TrainingArguments

    from hf_llm_recipes.methods.supervised import Supervised
    from hf_llm_recipes.training import trainer_of

    method = runner.plan.method
    if method.arguments_class() is not TrainingArguments:
        said = "this method makes its batches while it trains: activations and time are not known before"
        return Probed(notes=[said])
    before = host_bytes() - _model_bytes(runner.built.model)
    with untouched(runner.built.model), tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(runner, Path(folder), [], method=Supervised(), dataloader_num_workers=0)
        one = _Probe(trainer, vocabulary=_vocabulary(runner))
        found = one.run(steps)
        if found.took_steps and not runner.plan.task.judges_model:
            _judge(runner, trainer)
            found.judging = peak_bytes() - found.peak
        if found.took_steps and not isinstance(method, Supervised):
            _add_method(runner, one, found)
    if device_here() == "cpu":
        found.base = max(before, 0)
    return found


def _judge(runner: Any, trainer: Any) -> None:
    """What comes after the training: the longest test rows without gradients, and the libraries of scores."""
    import evaluate  # noqa: F401
    import sklearn.metrics  # noqa: F401

    test = runner.prepared.test
    longest = np.argsort(-runner.plan.task.lengths(test), kind="stable")
    batches = trainer.get_test_dataloader(test.select(longest[: trainer.args.per_device_eval_batch_size]))
    trainer.model.eval()
    for batch in batches:
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)


def _add_method(runner: Any, one: _Probe, found: Probed) -> None:
    """What a method that is not supervised training alone adds to the steps on labeled rows."""
    method, task, pool = runner.plan.method, runner.plan.task, runner.prepared.unlabeled
    found.seconds = found.seconds_per_step = found.cpu_seconds = None
    found.notes.append("how long this method trains is not known before it begins")
    if not method.takes_algorithm or pool is None:
        return
    args = one.trainer.args
    rows = max(1, round(method.unlabeled_ratio * args.per_device_train_batch_size))
    if args.max_steps <= 0:
        every = args.gradient_accumulation_steps
        found.optimizer_steps = int(args.num_train_epochs * (len(pool) // rows) // every)
    collate = task.collator(runner.tokenizer)
    starts = range(0, len(pool) - rows + 1, max(rows, len(pool) // 16))
    sizes = [size(collate([pool[i] for i in range(start, start + rows)])) for start in starts]
    if sizes:
        found.scale = max(1.0, max(sizes) / one.longest)
        found.notes.append("memory as if every unlabeled row counted, without first labels and libraries")


class _Probe:
    """The steps of one probe.

    Args:
        trainer: Made for it.
        vocabulary: The width of logits that count as such, or None.
    """

    def __init__(self, trainer: Any, vocabulary: int | None) -> None:
        self.trainer, self.vocabulary = trainer, vocabulary
        self.found = Probed()
        self.points: list[tuple[int, float]] = []  # size, seconds
        self.cpu_points: list[tuple[int, float]] = []
        self.longest = 1

    def run(self, steps: int) -> Probed:
        """Middle batch, optimizer, longest batch, middle batches."""
        trainer, found = self.trainer, self.found
        loader = trainer.get_train_dataloader()
        found.optimizer_steps = trainer.set_initial_training_values(trainer.args, loader)[-1]
        every = trainer.args.gradient_accumulation_steps
        batches = list(itertools.islice(loader, min(LOOKED_AT, found.optimizer_steps * every)))
        order = sorted(batches, key=size)
        self.longest = size(order[-1])
        if trainer.args.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        try:
            updating = self._steps(order, steps)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            found.notes.append(f"a batch of {self.longest:,} tokens does not fit into memory")
            return found
        found.peak = peak_bytes()
        found.seconds_per_step, cpu = (
            every * float(np.mean([fitted(points, size(batch)) for batch in batches])) + more
            for points, more in zip((self.points, self.cpu_points), updating, strict=True)
        )
        wall_evaluating, cpu_evaluating = self._evaluations()
        found.seconds = found.seconds_per_step * found.optimizer_steps + wall_evaluating
        found.cpu_seconds = cpu * found.optimizer_steps + cpu_evaluating
        return found

    def _steps(self, order: list[Any], steps: int) -> tuple[float, float]:
        """The steps of the probe; returns seconds and CPU seconds of the optimizer's part."""
        middle = self._middle(order, steps + 1)
        first, _ = self._step(middle[0])
        accumulates = self.trainer.args.gradient_accumulation_steps > 1
        updating = self._optimizer_step(keep_gradients=accumulates)
        self._note(order[-1], self._timed(order[-1], self._step(order[-1], count=True)))
        for batch in middle[1:] if first < SLOW else []:
            self.trainer.model.zero_grad()
            self._note(batch, self._timed(batch, self._step(batch)))
        return updating

    def _timed(self, batch: Any, first: tuple[float, float]) -> tuple[float, float]:
        """Seconds and CPU seconds of a step on a batch that has just been taken once."""
        if first[0] >= WARM:
            return first
        self.trainer.model.zero_grad()
        return min(first, self._step(batch))

    def _note(self, batch: Any, taken: tuple[float, float]) -> None:
        self.points.append((size(batch), taken[0]))
        self.cpu_points.append((size(batch), taken[1]))

    def _evaluations(self) -> tuple[float, float]:
        """Seconds and CPU seconds of all evaluations of the training, from one batch."""
        trainer, args = self.trainer, self.trainer.args
        if args.eval_strategy == "no" or trainer.eval_dataset is None:
            return 0.0, 0.0
        batch = next(iter(trainer.get_eval_dataloader()))
        begun = _now()
        trainer.model.eval()
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=trainer.compute_metrics is None)
        taken = _since(begun)
        steps = self.found.optimizer_steps
        every = args.eval_steps or 1
        count = math.ceil(args.num_train_epochs)
        if args.eval_strategy == "steps":
            count = int(steps // (every if every >= 1 else max(1, math.ceil(every * steps))))
        rows = len(next(iter(batch.values())))
        times = count * len(trainer.eval_dataset) / rows
        return taken[0] * times, taken[1] * times

    def _middle(self, order: list[Any], count: int) -> list[Any]:
        """So many batches around the middle of the sizes, evenly from the lower to the upper quarter."""
        places = np.linspace(0.25, 0.75, count) if count > 1 else np.array([0.5])
        return [order[round(float(place) * (len(order) - 1))] for place in places]

    def _step(self, batch: Any, *, count: bool = False) -> tuple[float, float]:
        """Forward and backward; returns seconds and CPU seconds."""
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        batch = {key: value.clone() if torch.is_tensor(value) else value for key, value in batch.items()}
        begun = _now()
        with self._counted(batch) if count else contextlib.nullcontext():
            trainer.training_step(trainer.model, batch, items)
        return _since(begun)

    @contextlib.contextmanager
    def _counted(self, batch: Any) -> Iterator[None]:
        """Counts what is kept for the way back."""
        held = {p.untyped_storage().data_ptr() for p in _tensors(self.trainer.model)}
        seen: dict[int, tuple[int, bool]] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held:
                logits = self.vocabulary is not None and tensor.dim() > 1
                logits = logits and tensor.shape[-1] == self.vocabulary
                seen[storage.data_ptr()] = (storage.nbytes(), logits)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self.found.logits = sum(count for count, logits in seen.values() if logits)
        self.found.activations = sum(count for count, logits in seen.values() if not logits)
        rows = len(next(iter(batch.values())))
        self.found.longest = f"of a batch of {rows} rows, {size(batch):,} tokens with padding"

    def _optimizer_step(self, *, keep_gradients: bool) -> tuple[float, float]:
        """One step at rate 0: it makes the states and changes no weight; returns (CPU) seconds."""
        trainer = self.trainer
        optimizer = trainer.create_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if torch.is_tensor(group["lr"]) else 0.0
        taken = min(self._update(optimizer) for _ in range(2))  # the first one makes the states
        self.found.optimizer_bytes = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        )
        if not keep_gradients:
            trainer.model.zero_grad()
        return taken

    def _update(self, optimizer: Any) -> tuple[float, float]:
        """Clips and steps; returns (CPU) seconds."""
        begun = _now()
        if self.trainer.args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), self.trainer.args.max_grad_norm)
        optimizer.step()
        return _since(begun)


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Puts random states, modes and buffers back, and drops gradients, whatever is done to a model inside."""
    states = random_states()
    modes = {module: module.training for module in model.modules()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in buffers:
                    value.copy_(buffers[name])
        put_back(states)


def random_states() -> tuple[Any, ...]:
    """Returns the states of every random source."""
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_gpu


def put_back(states: tuple[Any, ...]) -> None:
    """Sets what ``random_states`` has returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3]:
        torch.cuda.set_rng_state_all(states[3])


def fitted(points: list[tuple[int, float]], wanted: int) -> float:
    """Returns the seconds of a batch of that size: a line through the probed ones, never falling."""
    sizes, seconds = np.array(points, dtype=float).T
    if np.ptp(sizes) == 0:
        return float(np.mean(seconds))
    slope, start = np.polyfit(sizes, seconds, 1)
    if slope < 0:
        return float(np.mean(seconds))
    if start < 0:
        return float(wanted * (sizes @ seconds) / (sizes @ sizes))
    return float(start + slope * wanted)


def size(batch: Any) -> int:
    """Returns how much a batch is: its padded tokens, else its numbers."""
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    return max(value.numel() for value in batch.values() if torch.is_tensor(value))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is at its end, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("can't allocate memory", "DefaultCPUAllocator", "CUDA out of memory")
    )


def device_here() -> str:
    """``cpu`` or ``cuda``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def capacity_here() -> int:
    """Returns the bytes of memory that this machine's device has."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().total


def host_bytes() -> int:
    """Returns the bytes of memory that this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Returns the peak since the process began: of torch's allocator on a GPU, else of the process."""
    peaks = peak_memory_bytes()
    return peaks.get("gpu", peaks["host"])


def _vocabulary(runner: Any) -> int | None:
    if not runner.plan.task.vocabulary_labels:
        return None
    return runner.built.model.config.get_text_config(decoder=True).vocab_size


def _model_bytes(model: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(model) if t.device.type == "cpu")


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _now() -> tuple[float, float]:
    """The time, and the CPU time of this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _since(begun: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - begun[0], now[1] - begun[1]
