"""A few real training steps before a run, timed and measured, that leave no trace.

Notable:
- The batches are the first that the run itself will see, in its order; sizes are their padded tokens.
- Time is fitted as a + b x size on the probed batches and averaged over all batches looked at.
- What autograd keeps for the way back is counted tensor by tensor, each storage once, weights left out.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_llm_recipes import spans
from hf_llm_recipes.rundir import peak_memory_bytes
from hf_llm_recipes.spans import Seconds, Span, fitted

__all__ = ["fitted"]

LOOKED_AT = 64  # batches
SLOW = 8.0  # seconds: after a step that takes longer, no more steps of middle length are taken


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
        teacher: Bytes of a second model.
        optimizer_steps: Of the whole training.
        seconds_per_step: Of an optimizer step, evaluations apart.
        spans: What the run's time is made of; none where it is not known.
        scale: How much longer batches the method makes than those whose activations were counted, ≥ 1.
        longest: What the longest batch was.
        varies: Whether some batches are half as long as the longest, or less.
        notes: Sentences about what is left out.
    """

    activations: int = 0
    logits: int = 0
    optimizer_bytes: int | None = None
    peak: int = 0
    judging: int = 0
    base: int = 0
    teacher: int = 0
    optimizer_steps: int | None = None
    seconds_per_step: float | None = None
    spans: list[Span] = field(default_factory=list)
    scale: float = 1.0
    longest: str = ""
    varies: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def took_steps(self) -> bool:
        """Whether real steps were taken."""
        return self.peak > 0


class _Probe:
    """The steps of one probe.

    Args:
        trainer: Made for it.
        vocabulary: The width of logits that count as such, or None.
    """

    def __init__(self, trainer: Any, vocabulary: int | None = None) -> None:
        self.trainer, self.vocabulary = trainer, vocabulary
        self.found = Probed()
        self.batches: list[Any] = []
        self.loading = spans.none()  # of a batch
        self.updating = spans.none()  # of the optimizer's part of a step
        self.longest = 1

    @property
    def every(self) -> int:
        """Batches of an optimizer step."""
        return self.trainer.args.gradient_accumulation_steps

    def run(self, steps: int) -> Probed:
        """Middle batch, optimizer, longest batch, middle batches."""
        trainer, found = self.trainer, self.found
        self.look()
        if trainer.args.gradient_checkpointing:
            trainer.model.gradient_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
        try:
            self.each = self.measure(steps, count=True)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            found.notes.append(f"a batch of {self.longest:,} tokens does not fit into memory")
            return found
        found.peak = peak_bytes()
        found.seconds_per_step = float(self.each[0])
        return found

    def look(self) -> None:
        """Makes the first batches of the run, and notes how many optimizer steps there will be."""
        trainer = self.trainer
        loader = trainer.get_train_dataloader()
        self.found.optimizer_steps = trainer.set_initial_training_values(trainer.args, loader)[-1]
        count = min(LOOKED_AT, self.found.optimizer_steps * self.every)
        times, batches = [], iter(loader)
        while len(self.batches) < count:
            begun = spans.now()
            batch = next(batches, None)
            if batch is None:
                break
            times.append(spans.now() - begun)
            self.batches.append(batch)
        self.loading = np.median(times, axis=0)  # the first one may have made an order of all rows
        sizes = [size(batch) for batch in self.batches]
        self.longest, self.found.varies = max(sizes), 2 * min(sizes) <= max(sizes)

    def measure(self, steps: int, *, count: bool = False) -> Seconds:
        """Takes steps of one kind; returns the mean seconds of an optimizer step.

        Args:
            steps: On batches of middle length.
            count: Whether what autograd keeps is counted.
        """
        order = sorted(self.batches, key=size)
        middle = self._middle(order, steps + 1)
        first = self._step(middle[0])
        if not self.updating.any():
            self.updating = self._optimizer_step(keep_gradients=self.every > 1)
        points = [(size(order[-1]), self._timed(order[-1], self._step(order[-1], count=count)))]
        for batch in middle[1:] if first[0] < SLOW else []:
            self.trainer.model.zero_grad()
            points.append((size(batch), self._timed(batch, self._step(batch))))
        mean = spans.both_fitted(points, [size(batch) for batch in self.batches])
        return self.every * (mean + self.loading) + self.updating

    def _timed(self, batch: Any, first: Seconds) -> Seconds:
        """Seconds of a step on a batch that has just been taken once."""
        if first[0] >= spans.WARM:
            return first
        self.trainer.model.zero_grad()
        return np.minimum(first, self._step(batch))

    def evaluations(self, optimizer_steps: int, rows: int) -> Span | None:
        """Returns the evaluations of so many steps, from one batch.

        Args:
            optimizer_steps: Of one training.
            rows: Of the eval split.
        """
        trainer, args = self.trainer, self.trainer.args
        if args.eval_strategy == "no" or trainer.eval_dataset is None:
            return None
        batch = next(iter(trainer.get_eval_dataloader()))
        trainer.model.eval()
        each = spans.once(
            lambda: trainer.prediction_step(
                trainer.model, batch, prediction_loss_only=trainer.compute_metrics is None
            )
        )
        trainer.model.train()
        every = args.eval_steps or 1
        count = math.ceil(args.num_train_epochs)
        if args.eval_strategy == "steps":
            count = int(
                optimizer_steps // (every if every >= 1 else max(1, math.ceil(every * optimizer_steps)))
            )
        return Span("training", "evaluations", count, each * rows / len(next(iter(batch.values()))))

    def _middle(self, order: list[Any], count: int) -> list[Any]:
        """So many batches around the middle of the sizes, evenly from the lower to the upper quarter."""
        places = np.linspace(0.25, 0.75, count) if count > 1 else np.array([0.5])
        return [order[round(float(place) * (len(order) - 1))] for place in places]

    def _step(self, batch: Any, *, count: bool = False) -> Seconds:
        """Forward and backward; returns the seconds."""
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = self.every
        items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        batch = {key: value.clone() if torch.is_tensor(value) else value for key, value in batch.items()}
        begun = spans.now()
        with self._counted(batch) if count else contextlib.nullcontext():
            trainer.training_step(trainer.model, batch, items)
        return spans.now() - begun

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

    def _optimizer_step(self, *, keep_gradients: bool) -> Seconds:
        """One step at rate 0: it makes the states and changes no weight; returns the seconds."""
        trainer = self.trainer
        optimizer = trainer.create_optimizer()
        without_rate(optimizer)
        taken = np.minimum(*(spans.once(lambda: self._update(optimizer)) for _ in range(2)))
        self.found.optimizer_bytes = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        )
        if not keep_gradients:
            trainer.model.zero_grad()
        return taken

    def _update(self, optimizer: Any) -> None:
        """Clips and steps; the first time makes the states."""
        if self.trainer.args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), self.trainer.args.max_grad_norm)
        optimizer.step()


def without_rate(optimizer: Any) -> None:
    """Sets an optimizer's rates to 0: its steps change no weight."""
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if torch.is_tensor(group["lr"]) else 0.0


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Puts random states, modes, buffers and settings back, and drops gradients, whatever is done inside."""
    states = random_states()
    configs = [vars(one) for one in (model.config, getattr(model, "generation_config", None)) if one]
    settings = [dict(values) for values in configs]
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
        for values, before in zip(configs, settings, strict=True):
            values.clear()
            values.update(before)
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


def size(batch: Any) -> int:
    """Returns how much a batch is: its padded tokens, else its numbers."""
    views = sum(size(view) for view in batch.get("unlabeled", {}).values() if not torch.is_tensor(view))
    if "input_ids" in batch:
        return batch["input_ids"].numel() + views
    return views + max(value.numel() for value in batch.values() if torch.is_tensor(value))


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


def vocabulary_of(runner: Any) -> int | None:
    if not runner.plan.task.vocabulary_labels:
        return None
    return runner.built.model.config.get_text_config(decoder=True).vocab_size


def model_bytes(model: Any) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(model) if t.device.type == "cpu")


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
