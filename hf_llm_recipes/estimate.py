"""Memory and time of a run before it: part by part, from the model as it was built and a few probe steps.

Notable:
- The probe takes real steps on batches that the run will see, in the run's own Trainer: the longest of
  those looked at, and some of middle length. It changes nothing: the optimizer's rate is 0, gradients
  are dropped, random states are put back.
- On a CPU the peak is that of the whole process, Python and libraries included, as ``metrics.json``
  reports it; on a GPU that of torch's allocator.
- Time is said by part, as ``courses`` finds it, and compared by part with what a run took.
- For a device that is not here, parts are computed from those measured here; its time is not known.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from hf_llm_recipes.errors import RecipeError, did_you_mean
from hf_llm_recipes.spans import PARTS, Span, minutes_of, total

log = logging.getLogger("hf_llm_recipes")

GIB = 2**30
# GiB that torch can take, which is less than what is printed on the card; 10^9 and 2^30 differ, too.
DEVICES = {
    **{"t4": 14.6, "v100-16gb": 15.8, "v100-32gb": 31.7, "l4": 22.0, "a10g": 22.0, "rtx3090": 23.6},
    **{"rtx4090": 23.5, "rtx5090": 31.3, "l40s": 44.4, "a6000": 47.5, "a100-40gb": 39.4, "a100-80gb": 79.2},
    **{"h100": 79.1, "h200": 139.8},
}
NO_BFLOAT16 = ("t4", "v100-16gb", "v100-32gb")
CONTEXT = int(0.6 * GIB)  # CUDA's own memory in a process
FRAGMENTS = 0.08  # of torch's allocator, of everything it holds
# Of what steps take on a CPU, by how much glibc's heap still grows where long batches follow short ones:
# after the probe's steps 10, 20, 22 and 37 % in four recipes, 0 and 2 % in two whose batches are alike
# (docs/lab.md, 2026-11-27).
HEAP = 0.2
HALVED = 0.6  # of activations in mixed precision: norms and softmax stay in float32
BYTES_PER_WEIGHT = {"sgd": 0, "adafactor": 0.1, "lion_32bit": 4, "rmsprop": 4, "adagrad": 4}
SHORTEST = 20  # steps of a training for which a probe is worth its time


@dataclass(frozen=True)
class Part:
    """One use of memory or disk.

    Args:
        name: What it is.
        bytes: How much of it.
        note: How it was found.
    """

    name: str
    bytes: int
    note: str = ""


@dataclass
class Estimate:
    """What a run will need.

    Args:
        device: ``cpu``, ``cuda``, or a name of ``DEVICES``.
        memory: Parts of the peak.
        disk: What the run directory will hold at most.
        steps: Optimizer steps; None where the data does not say.
        seconds_per_step: None where it is not known.
        spans: What the run's time is made of; none where it is not known.
        capacity: Bytes that the device has for it; None where that is not known.
        probed: Whether real steps were taken.
        notes: Sentences about what the figures leave out.
    """

    device: str
    memory: list[Part]
    disk: list[Part]
    steps: int | None = None
    seconds_per_step: float | None = None
    spans: list[Span] = field(default_factory=list)
    capacity: int | None = None
    probed: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes of memory at the peak."""
        return sum(part.bytes for part in self.memory)

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the capacity."""
        return None if self.capacity is None else self.peak <= self.capacity

    @property
    def seconds(self) -> float | None:
        """Of the training, its evaluations included, by the clock; None where it is not known."""
        return float(total(self.spans, "training")[0]) if self.spans else None

    @property
    def cpu_seconds(self) -> float | None:
        """The same as CPU time of all cores, which other processes do not lengthen."""
        return float(total(self.spans, "training")[1]) if self.spans else None

    @property
    def seconds_by_part(self) -> dict[str, float]:
        """Seconds of each part of the run that there is, by the clock."""
        parts = {part: float(total(self.spans, part)[0]) for part in PARTS}
        return {part: seconds for part, seconds in parts.items() if seconds}

    def at_most(self, part: str | None = None) -> bool:
        """Whether a part (None: any) may turn out to be shorter."""
        return any(span.at_most for span in self.spans if part in (None, span.part))

    def sentence(self) -> str:
        """Peak and time in one line."""
        said = f"about {self.peak / GIB:.2f} GiB of memory at the peak"
        if self.seconds is None:
            return said
        each = f"{self.steps:,} steps of {self.seconds_per_step:.3g} seconds"
        words = f"{self._about('training', self.seconds)} of training ({each})"
        others = {k: v for k, v in self.seconds_by_part.items() if k != "training"}
        around = ", ".join(f"{name} {self._about(name, seconds)}" for name, seconds in others.items())
        if around:
            whole = sum(self.seconds_by_part.values())
            words += f", {self._about(None, whole)} in all ({around})"
        return f"{words}, {said}"

    def _about(self, part: str | None, seconds: float) -> str:
        return f"{'at most' if self.at_most(part) else 'about'} {duration(seconds)}"

    def rows(self) -> list[tuple[str, int, str]]:
        """The parts of memory, then of disk, as (part, bytes, note)."""
        return [(p.name, p.bytes, p.note) for p in (*self.memory, *self.disk)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; sizes in bytes, times in seconds."""
        listed = {
            name: [{"part": p.name, "bytes": p.bytes, "note": p.note} for p in getattr(self, name)]
            for name in ("memory", "disk")
        }
        return {
            "device": self.device,
            "peak_bytes": self.peak,
            "capacity_bytes": self.capacity,
            "fits": self.fits,
            "steps": self.steps,
            "seconds_per_step": self.seconds_per_step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "seconds_by_part": self.seconds_by_part,
            "time": [span.to_dict() for span in self.spans],
            "probed": self.probed,
            **listed,
            "notes": self.notes,
        }

    def predicted(self) -> dict[str, Any]:
        """What stands beside the measured figures in ``metrics.json``."""
        kind = "gpu" if self.device != "cpu" else "host"
        said = {"minutes": None, "peak_memory_gib": {kind: round(self.peak / GIB, 3)}}
        if not self.spans:
            return said
        by_part = {part: seconds / 60 for part, seconds in self.seconds_by_part.items()}
        limits = [part for part in by_part if self.at_most(part)]
        return {**said, "minutes": self.seconds / 60, "minutes_by_part": by_part, "at_most": limits}


def duration(seconds: float) -> str:
    """Returns minutes, of less than one seconds."""
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} seconds"


def estimate_run(
    runner: Any,
    device: str | None = None,
    *,
    probe: bool = True,
    steps: int = 3,
    times: dict[str, float] | None = None,
) -> Estimate:
    """Returns what a run will need, before it.

    Args:
        runner: ``run._Runner`` with data and model (after ``_prepare``); nothing of it is changed.
        device: A name of ``DEVICES``; None: this machine.
        probe: Whether real steps may be taken; without, activations and time are left out.
        steps: Probe steps on batches of middle length, ≥ 1.
        times: Split -> how many rows each of the runner's stands for, where they are a sample.

    Raises:
        RecipeError: no such device.
    """
    from hf_llm_recipes import courses, probing

    check_device(device)
    here = probing.device_here()
    found = courses.probe(runner, steps=steps, times=times) if probe else probing.Probed()
    estimate = Estimate(here, [], [], steps=found.optimizer_steps, probed=found.took_steps)
    estimate.notes += found.notes
    estimate.memory = _parts_here(runner, found, here)
    estimate.disk = _disk(runner)
    estimate.capacity = probing.capacity_here()
    if device is None or device == here:
        estimate.seconds_per_step, estimate.spans = found.seconds_per_step, found.spans
        return estimate
    return _elsewhere(estimate, runner, device)


def check_device(device: str | None) -> None:
    """Refuses a device that is not known.

    Raises:
        RecipeError: names the nearest.
    """
    if device not in (None, "cpu", "cuda", *DEVICES):
        raise RecipeError(
            f"unknown device `{device}`{did_you_mean(str(device), DEVICES)}",
            allowed=", ".join(DEVICES),
            hint="leave it out for this machine",
        )


def _parts_here(runner: Any, found: Any, here: str) -> list[Part]:
    """The parts of the peak on this machine, largest first, and what no part explains."""
    plan, parameters = runner.plan, runner.parameters
    width = f"{parameters['total']:,} weights, {str(runner.precision.weights).removeprefix('torch.')}"
    if plan.quantization:
        width = (
            f"{parameters['total']:,} weights, {'4' if plan.quantization.get('load_in_4bit') else '8'}-bit"
        )
    trained = f"of {parameters['trainable']:,} trained weights"
    states = found.optimizer_bytes
    if states is None:
        states = optimizer_bytes(runner.built.model, plan.trainer.get("optim"))
    parts = [
        Part("weights", weight_bytes(runner.built.model), width),
        Part("gradients", gradient_bytes(runner.built.model), trained),
        Part("optimizer", states, f"states {trained}: {plan.trainer.get('optim') or 'adamw'}"),
        Part("activations", found.activations, found.longest),
        Part("logits", found.logits, "kept for the way back"),
        Part("buffers", buffer_bytes(runner.built.model), "of the model"),
    ]
    parts.append(Part("teacher", found.teacher or teacher_bytes(runner), "a second set of weights"))
    if found.scale > 1:
        more = int((found.scale - 1) * (found.activations + found.logits))
        parts.append(Part("pool", more, "what a batch of unlabeled rows keeps beyond that"))
    rest = found.peak - sum(part.bytes for part in parts)
    base = max(0, min(found.base, rest))
    parts.append(Part("process", base, "Python, its libraries and the data, before any step"))
    rest -= base
    if rest > 0:
        parts.append(Part("workspace", rest, "measured beyond the parts: temporaries, the allocator's slack"))
    if found.varies and here == "cpu":
        steps = found.peak - base - weight_bytes(runner.built.model) - buffer_bytes(runner.built.model)
        parts.append(
            Part("heap", int(HEAP * max(steps, 0)), "growth while lengths vary: a fifth of the steps'")
        )
    parts.append(Part("judging", found.judging, "the test split afterwards: its longest rows, and libraries"))
    parts = [part for part in parts if part.bytes]
    return sorted(parts, key=lambda part: -part.bytes)


def _elsewhere(estimate: Estimate, runner: Any, device: str) -> Estimate:
    """The parts as they will be on a named GPU."""
    half = "float16" if device in NO_BFLOAT16 else "bfloat16"
    kept = {"process", "workspace", "heap", "judging"}
    halved = runner.plan.model.dtype == "auto"
    parts = []
    for part in estimate.memory:
        if part.name in kept:
            continue
        count, note = part.bytes, part.note
        if halved and part.name == "activations":
            count, note = int(count * HALVED), f"{note}; in {half} where it can be"
        if halved and part.name == "weights" and runner.plan.tuning.uses_adapter:
            count, note = _model_bytes_halved(runner.built.model), f"{note}, frozen ones in half precision"
        parts.append(Part(part.name, count, note))
    parts.append(Part("fragments", int(FRAGMENTS * sum(p.bytes for p in parts)), "of the allocator, assumed"))
    parts.append(Part("context", CONTEXT, "CUDA's own, assumed"))
    notes = [*estimate.notes, f"the time on {device} is not known: run `estimate` there"]
    if not estimate.probed:
        notes.append("activations are not counted: the peak will be higher")
    capacity = int(DEVICES[device] * GIB) if device in DEVICES else None
    parts.sort(key=lambda part: -part.bytes)
    return Estimate(
        device, parts, estimate.disk, estimate.steps, capacity=capacity, probed=estimate.probed, notes=notes
    )


def weight_bytes(model: Any) -> int:
    """Returns the bytes of a model's weights as they are held, with the scales of quantised ones."""
    return sum(_held(parameter) for parameter in model.parameters())


def _held(parameter: Any) -> int:
    count = parameter.numel() * parameter.element_size()
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        inner = getattr(state, "state2", None)
        scales = [state.absmax, state.code, *([inner.absmax, inner.code] if inner is not None else [])]
        count += sum(s.numel() * s.element_size() for s in scales if s is not None)
    scale = getattr(parameter, "SCB", None)
    return count + (scale.numel() * scale.element_size() if scale is not None else 0)


def _model_bytes_halved(model: Any) -> int:
    """The same, where frozen float32 weights are held in 16 bits."""
    return sum(
        _held(p) // 2 if p.element_size() == 4 and p.is_floating_point() and not p.requires_grad else _held(p)
        for p in model.parameters()
    )


def gradient_bytes(model: Any) -> int:
    """Returns the bytes of all gradients."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def buffer_bytes(model: Any) -> int:
    """Returns the bytes of a model's buffers."""
    return sum(b.numel() * b.element_size() for b in model.buffers())


def optimizer_bytes(model: Any, name: str | None) -> int:
    """Returns the bytes of an optimizer's states, by its name in ``trainer.optim``; Adam's unless known."""
    name = str(name or "adamw_torch")
    if "8bit" in name:
        each = 1.0 if any(word in name for word in ("lion", "sgd", "rmsprop")) else 2.0
    else:
        each = next((b for start, b in BYTES_PER_WEIGHT.items() if name.startswith(start)), 8)
    return math.ceil(each * sum(p.numel() for p in model.parameters() if p.requires_grad))


def teacher_bytes(runner: Any) -> int:
    """Returns the bytes of a second set of the trained weights, where the method or `ema` keeps one."""
    from hf_llm_recipes.callbacks.ema import EMA

    if any(isinstance(callback, EMA) for callback in runner.plan.callbacks):
        return gradient_bytes(runner.built.model)
    kind = getattr(runner.plan.method, "teacher", None)
    if not runner.plan.method.takes_algorithm or kind == "student":
        return 0
    return gradient_bytes(runner.built.model)


def _disk(runner: Any) -> list[Part]:
    """The checkpoints that are kept at once, and the model."""
    model, trainer = runner.built.model, runner.plan.trainer
    trained = gradient_bytes(model)
    saved = trained if runner.plan.tuning.uses_adapter else weight_bytes(model)
    states = 0 if trainer.get("save_only_model") else optimizer_bytes(model, trainer.get("optim"))
    states += teacher_bytes(runner)
    kept = (trainer.get("save_total_limit") or 2) + 1  # a new one is written before an old one goes
    if trainer.get("save_strategy") == "no":
        kept = 0
    parts = [
        Part("checkpoints", kept * (saved + states), f"{kept} at once, {saved + states:,} bytes each"),
        Part("model/", saved, "adapter and head" if runner.plan.tuning.uses_adapter else "all weights"),
    ]
    return [part for part in parts if part.bytes]


def beside(metrics: dict[str, Any]) -> str | None:
    """Returns one line of predicted against measured figures, where a run has both.

    Args:
        metrics: Of ``metrics.json``.
    """
    training = metrics["training"]
    said = training.get("predicted")
    if not said:
        return None
    kind, peak = next(iter(said["peak_memory_gib"].items()))
    measured = training["peak_memory_gib"].get(kind)
    words = [f"peak memory {peak:.2f} GiB (was {measured:.2f})"] if measured else []
    took, limits = minutes_of(metrics), said.get("at_most", [])
    if said.get("minutes") is not None:
        bound = "at most " if "training" in limits else ""
        words.append(f"{bound}{said['minutes']:.2f} minutes of training (was {training['minutes']:.2f})")
    by_part = said.get("minutes_by_part", {})
    both = by_part.keys() & took.keys()
    if both > {"training"}:
        bound, sums = "at most " if limits else "", [sum(d[p] for p in both) for d in (by_part, took)]
        words.append(f"{bound}{sums[0]:.2f} in all (was {sums[1]:.2f})")
    return "predicted: " + ", ".join(words) if words else None


def predicted(runner: Any) -> dict[str, Any] | None:
    """Returns what a run is about to need, for its report; None of a training too short to be worth it."""
    steps = runner.plan.trainer.get("max_steps", -1)
    if 0 < steps < SHORTEST:
        return None
    estimate = estimate_run(runner)
    if not estimate.probed or (estimate.steps or 0) < SHORTEST:
        return None
    log.info("%s", estimate.sentence())
    return estimate.predicted()


def table(estimate: Estimate) -> Any:
    """Returns a rich table of an estimate's parts."""
    from rich.table import Table

    made = Table("part", "GiB", "how", box=None, pad_edge=False)
    made.columns[1].justify = "right"
    for part in estimate.memory:
        made.add_row(part.name, f"{part.bytes / GIB:.3f}", part.note)
    made.add_section()
    made.add_row("peak memory", f"{estimate.peak / GIB:.3f}", _room(estimate), style="bold")
    for part in estimate.disk:
        made.add_row(f"disk: {part.name}", f"{part.bytes / GIB:.3f}", part.note)
    return made


def time_table(estimate: Estimate) -> Any:
    """Returns a rich table of what the minutes are made of, in a run's order."""
    from rich.table import Table

    made = Table("minutes", "part", "what", "times", "seconds each", box=None, pad_edge=False)
    for column in (0, 3, 4):
        made.columns[column].justify = "right"
    for part in PARTS:
        for span in (span for span in estimate.spans if span.part == part):
            minutes = f"{'≤ ' if span.at_most else ''}{span.seconds / 60:.2f}"
            made.add_row(minutes, part, span.what, f"{span.count:,.0f}", f"{span.each[0]:.3g}")
    made.add_section()
    whole = sum(estimate.seconds_by_part.values()) / 60
    bound = "≤ " if estimate.at_most() else ""
    made.add_row(f"{bound}{whole:.2f}", "in all", "without reading data and loading the model", style="bold")
    return made


def _room(estimate: Estimate) -> str:
    if estimate.capacity is None:
        return f"on {estimate.device}"
    said = "fits" if estimate.fits else "DOES NOT FIT: smaller per_device_train_batch_size or max_length"
    return f"of {estimate.capacity / GIB:.1f} GiB on {estimate.device}: {said}"
