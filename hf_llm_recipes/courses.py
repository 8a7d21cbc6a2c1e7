"""What a run's minutes are made of, by method: steps of the method's own Trainer, and how many there will be.

Read top to bottom: the probe, what all methods have, one function a method, what they share.

Notable:
- Each kind of step is taken for real: with first labels, with guesses about the pool, with a teacher, with
  answers written. What happens once (features of all rows, their neighbours, trainings for first labels)
  is computed from a few batches of it.
- How many steps of each kind there will be is counted as the Trainers count.
- Nothing of it is kept: rates are 0, random states come back, algorithm and views are copies.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from hf_llm_recipes import probing, spans
from hf_llm_recipes.algorithms.pseudo_label import PseudoLabel
from hf_llm_recipes.callbacks.ema import EMA
from hf_llm_recipes.data import propagation as spreading
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods import _cross_fit, _features, _first_labels, _frozen, _selection
from hf_llm_recipes.methods._forward import take
from hf_llm_recipes.methods._joint_trainer import JointTrainer
from hf_llm_recipes.methods._semi_trainer import PIECE, Schedule, SemiSupervisedTrainer, WarmStart
from hf_llm_recipes.methods._teacher import untrained
from hf_llm_recipes.methods.distillation import RATIO, Distillation
from hf_llm_recipes.methods.dpo import DPO
from hf_llm_recipes.methods.grpo import GRPO
from hf_llm_recipes.methods.propagation import Propagation
from hf_llm_recipes.methods.self_training import SelfTraining
from hf_llm_recipes.methods.self_training_generation import SelfTrainingGeneration
from hf_llm_recipes.methods.semi_supervised import SemiSupervised
from hf_llm_recipes.methods.supervised import Supervised
from hf_llm_recipes.probing import Probed
from hf_llm_recipes.spans import Seconds, Span
from hf_llm_recipes.training import parts_of, trainer_of

UNKNOWN = "how long this method trains is not known before it begins"
FEW = 16  # test rows that a task which judges the model is timed on
FEW_OF_POOL = 64  # rows that are labeled for a round's first steps
TAUGHT_ROWS = 192  # of each split that a teacher is timed on
MOST_SPREAD = 3000  # rows that the neighbours' graph is timed on
STAGE_STEPS, STAGE_SECONDS = 4, 10.0  # of a stage: after so many steps or seconds its time is known
LABELED, FIRST, GUESSES = "labeled rows alone", "first labels", "guesses about the pool"


def probe(runner: Any, *, steps: int = 3, times: dict[str, float] | None = None) -> Probed:
    """Takes a few steps of a run and returns what they needed, and what the whole run will take.

    Args:
        runner: ``run._Runner`` with data and model.
        steps: On batches of middle length, ≥ 1, besides the longest.
        times: Split -> how many rows each of the runner's stands for, where they are a sample.
    """
    model = runner.built.model
    before = probing.host_bytes() - probing.model_bytes(model)
    with probing.untouched(model), tempfile.TemporaryDirectory() as folder:
        found = _Course(runner, Path(folder), steps, times or {}).run()
    if probing.device_here() == "cpu":
        found.base = max(before, 0)
    return found


class _Course:
    """One run, looked at beforehand.

    Args:
        runner: See ``probe``; its plan is copied.
        folder: For what the Trainers write.
        steps: See ``probe``.
        times: See ``probe``.
    """

    def __init__(self, runner: Any, folder: Path, steps: int, times: dict[str, float]) -> None:
        plan = runner.plan
        self.runner = copy.copy(runner)
        apart = {name: copy.deepcopy(getattr(plan, name)) for name in ("method", "algorithm", "augmentation")}
        self.plan = self.runner.plan = replace(plan, **apart)
        self.task, self.prepared = plan.task, runner.prepared
        self.folder, self.steps, self.times = folder, steps, times
        self.early = any(isinstance(callback, EarlyStoppingCallback) for callback in plan.callbacks)
        self.spans: list[Span] = []
        self.kept = self._kept_features()

    def run(self) -> Probed:
        """Probes the method, then adds what is around it."""
        method = self.plan.method
        course, why = COURSES.get(type(method)), UNKNOWN
        if isinstance(method, Distillation) and untrained(method.teacher) is not None:
            course, why = None, f"the teacher, {method.teacher}, is trained first: its estimate is its own"
        own = method.arguments_class() is not TrainingArguments
        if own and course is None:
            return Probed(notes=["this method makes its batches while it trains: nothing is known before"])
        if not own:
            trainer = self._trainer("supervised", method=Supervised())
            self.one = probing._Probe(trainer, probing.vocabulary_of(self.runner))
            self.found = self.one.run(self.steps if course is supervised else 1)
            if not self.found.took_steps:
                return self.found
        if course is None:
            self._judge_memory(self.one.trainer)
            self.found.notes.append(why)
            self.found.seconds_per_step = None
            return self.found
        self._around(course)
        return self.found

    def _around(self, course: Callable[[_Course], Any]) -> None:
        """Stages, the method, judging, the baseline."""
        self._stages()
        trainer = course(self)
        found = self.found
        if not found.took_steps:
            return
        found.peak = probing.peak_bytes()
        judging = self._judging(trainer)
        found.judging = probing.peak_bytes() - found.peak
        variants = _variants(trainer) + sum(isinstance(callback, EMA) for callback in self.plan.callbacks)
        self._add("judging", "test split", 1, judging)
        if variants:
            self._add("judging", "test split, with other weights", variants, judging)
        if self.task.judges_model and self.plan.model.architecture is None:
            self._add("judging", "test split before the training", 1, judging)
        self._add("judging", "the saved model, loaded again", 1, self.runner.building)
        if self.plan.recipe.get("compare"):
            self._baseline(judging)
        if self.plan.assessment.wanted:
            found.notes.append("what `evaluate:` asks for is not in the time")
        found.spans = self.spans
        found.seconds_per_step = float(spans.total(self._steps())[0]) / max(found.optimizer_steps, 1)

    def _steps(self) -> list[Span]:
        return [span for span in self.spans if span.part == "training" and span.what.startswith("steps")]

    def _baseline(self, judging: Seconds) -> None:
        """The supervised run beside it, of as many steps."""
        steps = self.found.optimizer_steps
        at_most = any(span.at_most for span in self._steps())
        self._add("baseline", "steps, supervised", steps, self.one.each, at_most)
        evaluations = self.one.evaluations(steps, self.rows("eval"))
        if evaluations is not None:
            self.spans.append(replace(evaluations, part="baseline"))
        self._add("baseline", "test split", 1, judging)
        self._add("baseline", "model, loaded twice", 2, self.runner.building)

    def _kept_features(self) -> set[str]:
        """The splits whose frozen features are in the cache; looked at before a Trainer sets the model."""
        if self.task.item_problem != "single_label" or self.prepared.unlabeled is None:
            return set()
        parts = parts_of(self.runner, self.folder / "own", [], **QUIET)
        folder = parts.cache / "features"
        given = splits_with_features(parts).items()
        return {split for split, rows in given if _features.are_kept(parts.model, rows, folder)}

    def rows(self, split: str) -> int:
        """Rows of a split, of which the runner's may be a sample."""
        features = getattr(self.prepared, split)
        return 0 if features is None else round(len(features) * self.times.get(split, 1.0))

    def all_steps(self, planned: int, split: str) -> int:
        """Optimizer steps, where those planned come from epochs over what may be a sample."""
        by_epochs = self.plan.trainer.get("max_steps", -1) <= 0
        return round(planned * self.times.get(split, 1.0)) if by_epochs else planned

    def own_trainer(self, method: Any = None, **changes: Any) -> Any:
        """Returns the method's Trainer; what building it takes counts as preparation."""
        begun = spans.now()
        trainer = self._trainer("own", method=method, **changes)
        self._add("preparation", "Trainer, and what it reads", 1, spans.now() - begun)
        return trainer

    def _trainer(self, name: str, **given: Any) -> Any:
        """A Trainer whose folder has this name; what does not fit is told as the run would tell it."""
        return self.plan.recipe.located(
            lambda: trainer_of(self.runner, self.folder / name, [], **QUIET, **given), "trainer"
        )

    def _add(self, part: str, what: str, count: float, each: Seconds, at_most: bool = False) -> None:
        if count:
            self.spans.append(Span(part, what, count, each, at_most))

    def train(self, one: Any, kinds: list[tuple[str, int, Seconds, bool]]) -> None:
        """Adds the steps of a training by kind, and its evaluations."""
        for what, count, each, at_most in kinds:
            self._add("training", f"steps{what and ': '}{what}", count, each, at_most or self.early)
        steps = sum(count for _, count, _, _ in kinds)
        evaluations = one.evaluations(steps, self.rows("eval"))
        if evaluations is not None:
            several = 1 + _has_average(one.trainer)  # both weights are judged
            self.spans.append(replace(evaluations, count=evaluations.count * several, at_most=self.early))

    def _judge_memory(self, trainer: Any) -> None:
        self._judging(trainer)
        self.found.judging = max(0, probing.peak_bytes() - self.found.peak)

    def _judging(self, trainer: Any) -> Seconds:
        """What one judgement of the test split takes; loads the libraries of scores."""
        import evaluate  # noqa: F401
        import sklearn.metrics  # noqa: F401

        test, model = self.prepared.test, trainer.model
        model.eval()
        times = self.times.get("test", 1.0)
        if self.task.judges_model:
            few = test.select(_spread_evenly(len(test), FEW))
            begun = spans.now()
            with contextlib.suppress(DataError):  # too few rows to judge anything by
                self.task.judge_model(model, few, self.runner.loaded.test, self.runner.tokenizer)
            return (spans.now() - begun) * times * len(test) / len(few)
        trainer.args.train_sampling_strategy = "sequential"

        def predict(rows: np.ndarray) -> None:
            batch = next(iter(trainer.get_test_dataloader(test.select(rows))))
            trainer.prediction_step(model, batch, prediction_loss_only=False)

        return times * spans.sweep(self.task.lengths(test), trainer.args.eval_batch_size, predict)

    def _stages(self) -> None:
        """Stages train the pool's raw rows before the method; a few steps of each are taken at rate 0."""
        from hf_llm_recipes.stages.base import StageParts
        from hf_llm_recipes.training import device_defaults

        pool = self.prepared.unlabeled
        for number, stage in enumerate(self.plan.stages if pool is not None else []):
            clock = _Clock()
            given = {**device_defaults(), **self.runner.precision.trainer, "disable_tqdm": True}
            parts = StageParts(
                model=self.runner.built.model,
                pool=pool,
                collator=self.prepared.collator,
                processing_class=self.runner.tokenizer,
                source=self.plan.model,
                output_dir=str(self.folder / f"stage-{number}"),
                seed=self.plan.seed,
                device_arguments={**given, "logging_first_step": False, "logging_strategy": "no"},
                callbacks=[clock],
            )
            begun = spans.now()
            with contextlib.redirect_stdout(io.StringIO()):
                stage.run(parts)
            whole = spans.now() - begun
            self.runner.built.model.zero_grad(set_to_none=True)
            steps = (
                clock.planned if stage.max_steps else round(clock.planned * self.times.get("unlabeled", 1))
            )
            name = type(stage).__name__.lower()
            self._add("stages", f"{name}: made ready", 1, np.maximum(whole - sum(clock.steps), 0))
            self._add("stages", f"{name}: steps", steps, clock.each())


class _Clock(TrainerCallback):
    """Times the first steps of a training at rate 0, then ends it."""

    def __init__(self) -> None:
        self.steps: list[Seconds] = []
        self.planned = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.planned = state.max_steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.begun = spans.now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **rest: Any):
        probing.without_rate(getattr(optimizer, "optimizer", optimizer))

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.steps.append(spans.now() - self.begun)
        if len(self.steps) >= STAGE_STEPS or sum(self.steps)[0] > STAGE_SECONDS:
            control.should_training_stop = True

    def each(self) -> Seconds:
        """Returns the mean of the steps, the first apart."""
        return np.mean(self.steps[1:] or self.steps, axis=0)


def supervised(course: _Course) -> Any:
    """The stock Trainer; returns it, as all of these do."""
    found = course.found
    found.optimizer_steps = course.all_steps(found.optimizer_steps, "train")
    course.train(course.one, [("", found.optimizer_steps, course.one.each, False)])
    return course.one.trainer


def own_steps(course: _Course) -> Any:
    """A Trainer whose steps are all of one kind: DPO, distillation without a pool."""
    method, model = course.plan.method, course.runner.built.model
    with _dropout_kept(model):
        trainer = course.own_trainer(method)
        one = probing._Probe(trainer, probing.vocabulary_of(course.runner))
        found = one.run(course.steps)
        second = getattr(trainer, "teacher", None) or getattr(trainer, "ref_model", None)
        found.teacher = 0 if second is None else probing.model_bytes(second)
        course.found = found
        if found.took_steps:
            found.optimizer_steps = course.all_steps(found.optimizer_steps, "train")
            course.train(one, [("", found.optimizer_steps, one.each, False)])
        method.finish(trainer)
    return trainer


def distilled(course: _Course) -> Any:
    """A teacher in each step; on a pool it answers every row once, beforehand."""
    if course.prepared.unlabeled is None:
        return own_steps(course)
    sizes = {split: course.rows(split) for split in ("train", "unlabeled", "test")}
    once, each, (parts, rows) = _teaching(course)
    trainer = course.plan.method.build(parts)
    one = probing._Probe(trainer)
    one.look()
    planned = one.found.optimizer_steps
    if trainer.args.max_steps <= 0:
        planned = round(planned * sizes["unlabeled"] / rows)
    course.found.optimizer_steps = planned
    course._add("preparation", "Trainer and teacher", 1, once)
    told = min(sizes["test"], _frozen.MOST_TEST_ROWS) + sizes["train"] + sizes["unlabeled"]
    course._add("preparation", "a row answered by the teacher, where that is not kept", told, each, True)
    course.train(one, [("", planned, one.measure(course.steps), False)])
    return trainer


def _teaching(course: _Course) -> tuple[Seconds, Seconds, tuple[Any, int]]:
    """What a teacher takes once and a row that it answers, and the parts of the larger of two samples.

    Two samples of the splits, each with a cache of its own, so that tokenizing a row counts as often as
    rows do; the smaller one is taken twice, since the first of all loads what the others find loaded.
    """
    runner, method = course.runner, course.plan.method
    prepared, loaded = runner.prepared, runner.loaded
    batch = course.plan.trainer.get("per_device_train_batch_size", 8)
    least = {"train": batch, "unlabeled": math.ceil(batch * (method.unlabeled_ratio or RATIO)), "test": 1}
    taken: list[tuple[int, Seconds]] = []
    for place, wanted in enumerate((TAUGHT_ROWS // 6, TAUGHT_ROWS // 6, TAUGHT_ROWS)):
        chosen = {
            split: _spread_evenly(len(getattr(prepared, split)), max(wanted, rows))
            for split, rows in least.items()
        }
        runner.prepared, runner.loaded = (
            replace(whole, **{split: getattr(whole, split).select(rows) for split, rows in chosen.items()})
            for whole in (prepared, loaded)
        )
        parts = parts_of(runner, course.folder / "own", [], **QUIET)
        parts = replace(parts, cache=course.folder / f"cache-{place}")
        seconds = spans.once(functools.partial(method.build, parts))
        taken.append((sum(map(len, chosen.values())), seconds))
    runner.prepared, runner.loaded = prepared, loaded
    (few, less), (many, more) = taken[1:]
    each = np.maximum(more - less, 0) / (many - few) if many > few else more / many
    return np.maximum(more - many * each, 0), each, (parts, len(chosen["unlabeled"]))


def grpo(course: _Course) -> Any:
    """Answers written at full length and learned from; some are learned from more than once."""
    method = course.plan.method
    with _dropout_kept(course.runner.built.model):
        trainer = course.own_trainer(method)
        _at_full_length(trainer)
        one = _Answers(trainer, probing.vocabulary_of(course.runner))
        course.found = found = one.run(course.steps)
        if found.took_steps:
            found.optimizer_steps = course.all_steps(found.optimizer_steps, "train")
            batches = found.optimizer_steps * one.every
            written = math.ceil(batches / one.generate_every)
            course._add("training", "steps: answers written, learned from", written, one.writing, True)
            more = batches - written
            course._add("training", "steps: answers learned from again", more, one.learning, True)
            course._add("training", "steps: optimizer", found.optimizer_steps, one.updating, course.early)
            length = trainer.args.max_completion_length
            found.notes.append(f"as if every answer had {length:,} tokens, the most there can be")
        method.finish(trainer)
    return trainer


class _Answers(probing._Probe):
    """GRPO's steps: the first of several writes answers, all of them learn from some."""

    @property
    def generate_every(self) -> int:
        """Batches between two writings."""
        return self.trainer.args.steps_per_generation * self.trainer.num_iterations

    def look(self) -> None:
        """Prompts only: how long the answers are is set."""
        loader = self.trainer.get_train_dataloader()
        found = self.trainer.set_initial_training_values(self.trainer.args, loader)
        self.found.optimizer_steps = found[-1]
        self.batches = [next(iter(loader))]

    def measure(self, steps: int, *, count: bool = False) -> Seconds:
        """Takes both kinds; returns the mean seconds of an optimizer step."""
        self._batch(0)
        self.updating = self._optimizer_step(keep_gradients=self.every > 1)
        self.writing = spans.taken(lambda: self._batch(0))
        held = self.trainer._buffered_inputs[0]
        ids = torch.cat([held["prompt_ids"], held["completion_ids"]], 1)
        self.longest = ids.numel()
        self.trainer.model.zero_grad()
        with self._counted({"input_ids": ids}):
            self._batch(1)
        self.learning = spans.taken(lambda: self._batch(1))
        share = 1 / self.generate_every
        return self.every * (share * self.writing + (1 - share) * self.learning) + self.updating

    def _batch(self, number: int) -> None:
        """One batch of a step; number 0 writes answers."""
        trainer = self.trainer
        trainer._step = number
        trainer.current_gradient_accumulation_steps = self.every
        if number == 0 or trainer._buffered_inputs is None or self.generate_every == 1:
            trainer._step = 0
        if number and self.generate_every == 1:  # only to count what is kept: the answers are those before
            held, trainer._prepare_inputs = trainer._prepare_inputs, lambda _: trainer._buffered_inputs[0]
            try:
                trainer.training_step(trainer.model, self.batches[0], None)
            finally:
                trainer._prepare_inputs = held
            return
        trainer.training_step(trainer.model, self.batches[0], None)


def semi_supervised(course: _Course) -> Any:
    """First labels, then two streams."""
    method = course.plan.method
    parts = parts_of(course.runner, course.folder / "own", [], **QUIET)
    first = method._uses_features(parts) and method.warm_start_fraction > 0
    trainer = _two_streams(course, method, first)
    steps = course.found.optimizer_steps
    if method._uses_features(parts):
        _features_spans(course, parts, "preparation", course.rows("train"))
        if first and method.warm_start != "propagation":
            _fine_tuned_spans(course, parts, method, trainer, steps)
        course._add("judging", "classifiers on frozen features", 1, _spreading(course, parts)[1])
    if method._cross_fits(parts):
        _cross_fit_spans(course, trainer, steps)
    return trainer


def propagated(course: _Course) -> Any:
    """Labels from the neighbours' graph, then two streams that learn from them alone."""
    given = course.plan.method
    parts = parts_of(course.runner, course.folder / "own", [], **QUIET)
    course.plan = course.runner.plan = replace(course.plan, algorithm=PseudoLabel())
    method = SemiSupervised(
        unlabeled_ratio=given.unlabeled_ratio, teacher=given.export, guard=False, warm_start_fraction=1.0
    )
    trainer = _two_streams(course, method, first=True)
    _features_spans(course, parts, "preparation", course.rows("train"))
    course._add("preparation", "classifiers on frozen features", 1, _spreading(course, parts)[1])
    return trainer


def _two_streams(course: _Course, method: SemiSupervised, first: bool) -> Any:
    """Adds the steps of semi-supervised training by kind; returns its Trainer."""
    bare = {"warm_start": "none", "warmup_fraction": 0.0, "ramp_fraction": 0.0, "prior": "uniform"}
    trainer = course.own_trainer(replace(method, **bare, guard=False))
    one, found = _TwoStreams(trainer), course.found
    one.look()
    found.optimizer_steps = steps = course.all_steps(one.found.optimizer_steps, "unlabeled")
    warmup = method.warmup_fraction if method.warmup_fraction is not None else (0.0 if first else 0.1)
    schedule = Schedule(method.weight, warmup, method.ramp_fraction)
    counts = kinds_of_steps(steps, schedule, method.warm_start_fraction if first else 0.0)
    kinds = []
    for kind, count in counts.items():
        if count:
            one.take(kind, method.weight or 1.0)
            kinds.append((kind, count, one.measure(1), kind == GUESSES and one.left_out))
    course.train(one, kinds)
    if method.guard and counts[GUESSES]:
        found.notes.append("where the guard waits or turns the pool down, steps are shorter")
    if trainer.lower is not None and trainer.lower.active:
        rows = _rows_seen(trainer, steps, counts[FIRST] + counts[LABELED], course)
        course._add("training", "steps: frozen lower layers, once a row", rows, one.lower_layers())
    views = max(one.width(view) for view in ("weak", "strong"))
    found.scale = max(1.0, views / course.one.longest)
    found.notes.append("memory as if every unlabeled row counted")
    return trainer


def kinds_of_steps(steps: int, schedule: Any, warm_until: float) -> dict[str, int]:
    """Returns how many steps of a semi-supervised training are of which kind.

    Args:
        steps: Of all.
        schedule: ``_semi_trainer.Schedule``.
        warm_until: Share of the steps that learn from first labels; 0 where there are none.
    """
    counts = dict.fromkeys((LABELED, FIRST, GUESSES), 0)
    for step in range(steps):
        progress = step / max(steps, 1)
        if schedule.at(progress) == 0:
            counts[LABELED] += 1
        else:
            counts[FIRST if progress < warm_until else GUESSES] += 1
    return counts


class _TwoStreams(probing._Probe):
    """Steps of semi-supervised training, as if every row of the pool counted."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.left_out = False  # whether the algorithm would leave rows out now
        self.guess, trainer.algorithm.guess = trainer.algorithm.guess, self._guess

    def take(self, kind: str, weight: float) -> None:
        """Chooses the kind of the steps to come."""
        trainer = self.trainer
        trainer.state.max_steps, trainer.state.global_step = self.found.optimizer_steps, 1
        trainer.schedule = Schedule(0.0 if kind == LABELED else weight, 0.0, 0.0)
        trainer.warm_start = None
        if kind == FIRST:
            classes, rows = len(trainer.prior_C), len(trainer.streams.unlabeled)
            target_NC = torch.full((rows, classes), 1 / classes)
            trainer.warm_start = WarmStart(target_NC, torch.ones(rows), 1.0)

    def _guess(self, given: Any) -> Any:
        made = self.guess(given)
        self.left_out = self.left_out or bool((made.weight_U <= 0).any())
        made.weight_U = made.weight_U.clamp(min=1e-9)
        return made

    def _timed(self, batch: Any, first: Seconds) -> Seconds:
        """Once more where the lower layers of its rows were computed just now; they count apart."""
        if self.trainer.lower is None:
            return super()._timed(batch, first)
        self.trainer.model.zero_grad()
        return np.minimum(first, self._step(batch))

    def _update(self, optimizer: Any) -> None:
        super()._update(optimizer)
        if self.trainer.teacher is not None:
            self.trainer.teacher.update(1)  # equal to the model as long as that does not change

    def width(self, view: str) -> int:
        """Returns the size of the largest batch of a view."""
        return max(
            (probing.size(b["unlabeled"][view]) for b in self.batches if view in b["unlabeled"]), default=0
        )

    def lower_layers(self) -> Seconds:
        """Returns what the frozen lower layers of a row take."""
        weak = self.batches[len(self.batches) // 2]["unlabeled"]["weak"]
        rows = len(next(iter(weak.values())))

        def compute() -> None:
            for chosen in torch.arange(rows).split(PIECE):
                self.trainer.lower._lower(take(weak, chosen), torch.no_grad)

        return spans.taken(compute) / rows


def _rows_seen(trainer: Any, steps: int, before: int, course: _Course) -> int:
    """Rows whose lower layers are computed: labeled ones, and those of the pool that are guessed about."""
    every = trainer.args.gradient_accumulation_steps
    batches = trainer.streams.batches
    labeled = min(course.rows("train"), steps * every * batches.labeled_size)
    an_epoch = max(len(batches), 1)
    first, last = before * every, steps * every
    pool = course.rows("unlabeled")
    if last - first >= 2 * an_epoch or course.times.get("unlabeled", 1.0) > 1:
        return labeled + min(pool, (last - first) * batches.unlabeled_size)
    seen: set[int] = set()
    for epoch in range(first // an_epoch, (last - 1) // an_epoch + 1):
        batches.set_epoch(epoch)
        for number, batch in enumerate(batches, start=epoch * an_epoch):
            if first <= number < last:
                seen |= {key.index for key in batch if key.unlabeled}
    batches.set_epoch(0)
    return labeled + len(seen)


def _features_spans(course: _Course, parts: Any, part: str, labeled: int) -> None:
    """Frozen features of labeled rows, pool and test rows, and what is made of them."""
    model, rows, each = parts.model, 0, spans.none()
    for split, features in splits_with_features(parts).items():
        if split in course.kept:
            continue

        def encode(chosen: np.ndarray) -> None:
            few = features.select(chosen)  # noqa: B023
            order, backbone = np.arange(len(few)), _features.backbone_of(model)
            _features._encode(model, backbone, few, parts.collator, order, _frozen.BATCH, None)

        times = labeled / len(features) if split == "train" else course.times.get(split, 1.0)
        lengths = _features._lengths_and_sha256(features)[0]
        each = each + times * spans.sweep(lengths, _frozen.BATCH, encode)
        rows += round(times * len(features))
    if rows:
        course._add(part, "frozen features of a row", rows, each / rows)
    course._add(part, "labels from neighbours", 1, _spreading(course, parts)[0])


def splits_with_features(parts: Any) -> dict[str, Any]:
    """Returns the rows whose frozen features are looked at."""
    return {"train": parts.train, "unlabeled": parts.unlabeled, "test": _frozen.first_test_rows(parts)}


def _spreading(course: _Course, parts: Any) -> tuple[Seconds, Seconds]:
    """Seconds of the neighbours' graph and the labels from it, and of classifiers on frozen features.

    On random vectors: the graph grows with the square of the rows, the rest with the rows.
    """
    labeled, pool = course.rows("train"), course.rows("unlabeled")
    classes, width = parts.model.config.num_labels, _width(parts.model)
    some = min(labeled + pool, MOST_SPREAD)
    seen = max(classes * 2, round(some * labeled / (labeled + pool)))
    random = np.random.default_rng(0)
    features_ND = random.standard_normal((some, width), dtype=np.float32)
    features_ND /= np.linalg.norm(features_ND, axis=1, keepdims=True)
    labels_N = np.where(np.arange(some) < seen, np.arange(some) % classes, -1)
    kept: dict[str, Any] = {}

    def graph() -> None:
        kept["graph"] = spreading.neighbor_graph(features_ND)

    def labels() -> None:
        kept["found"] = spreading.propagate(None, labels_N, classes, graph=kept["graph"])
        spreading.held_out_accuracy(features_ND, labels_N, classes, graph=kept["graph"])

    def classifiers() -> None:
        unseen_NC = kept["found"].probabilities_NC[labels_N < 0]
        test_MD = features_ND[: min(_frozen.MOST_TEST_ROWS, len(parts.test), some)]
        _frozen.Frozen(features_ND, labels_N, unseen_NC, np.ones(classes), "", {}, test_MD).baselines()

    more = (labeled + pool) / some
    making = more**2 * spans.once(graph) + more * spans.once(labels)
    return making, more * spans.once(classifiers)


def _width(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "hidden_size", 256))


def _fine_tuned_spans(course: _Course, parts: Any, method: SemiSupervised, trainer: Any, steps: int) -> None:
    """Three trainings on parts of the labeled rows; where their labels are used, one more and forwards."""
    labels = np.asarray(parts.train["labels"][:])
    if np.unique(labels, return_counts=True)[1].min() < 2:
        return
    labeled, folds = course.rows("train"), _cross_fit.FOLDS
    args, each = parts.arguments, course.one.each
    rest = labeled - labeled // folds
    fold = _first_labels.steps_of(args, rest, steps // 2)
    course._add("preparation", "first labels: steps on rows outside a fold", folds * fold, each)
    surely = method.warm_start == "fine_tuned"
    last = _first_labels.steps_of(args, labeled, steps)
    course._add("preparation", "first labels: steps on all labeled rows", last, each, not surely)
    batches = trainer.streams.batches
    accumulated = args.gradient_accumulation_steps * args.world_size
    count = math.ceil(method.warm_start_fraction * steps) * accumulated
    rows = _first_labels.visited(batches, count, len(parts.unlabeled))
    lengths = course.task.lengths(parts.unlabeled.select(rows))

    def label(chosen: np.ndarray) -> None:
        _first_labels._probabilities(parts, parts.unlabeled, rows[chosen], None)

    forward = spans.sweep(lengths, args.eval_batch_size, label) / max(len(rows), 1)
    course._add("preparation", "first labels: held-out rows labeled", labeled, forward)
    models = folds + 1
    course._add("preparation", "first labels: rows labeled", models * len(rows), forward, not surely)


def _cross_fit_spans(course: _Course, trainer: Any, steps: int) -> None:
    """All that was added so far, once a fold, and a supervised training as long; then the run itself."""
    folds = _cross_fit.FOLDS
    own = [span for span in course.spans if span.part in ("training", "preparation")]
    for span in own:
        if span.what != "evaluations":
            course._add(
                "preparation", f"cross-fitting: {span.what}", folds * span.count, span.each, span.at_most
            )
    course._add("preparation", "cross-fitting: steps, supervised", folds * steps, course.one.each)
    evaluate = course._judging(trainer) / max(course.rows("test"), 1)
    course._add("preparation", "cross-fitting: held-out rows judged", 2 * course.rows("train"), evaluate)
    course.found.notes.append("where cross-fitting finds harm, the run trains on the labeled rows alone")


def self_training(course: _Course) -> Any:
    """Rounds of labels for the pool and a training on them."""
    method = course.plan.method
    parts = parts_of(course.runner, course.folder / "own", [], **QUIET)
    trainer = course.own_trainer(method)
    writes = isinstance(method, SelfTrainingGeneration)
    labeled, pool = course.rows("train"), course.rows("unlabeled")
    labeling = _labeling(course, trainer, writes)
    sizes = rows_of_rounds(trainer.plan, labeled, pool, alone=trainer.first_labels is None)
    steps = [planned_steps(trainer, rows) for rows in sizes]
    one = _round_probe(course, trainer, labeled, pool)
    found = course.found
    found.optimizer_steps = sum(steps)
    alone = int(trainer.first_labels is None)
    if alone:
        course.train(course.one, [("labeled rows alone", steps[0], course.one.each, False)])
    by_epochs = trainer.args.max_steps <= 0  # a class may have fewer rows than its share
    course.train(one, [("first round", steps[alone], one.each, writes or by_epochs)])
    for count in steps[alone + 1 :]:
        course.train(one, [("later rounds", count, one.each, True)])
    if trainer.first_labels is not None:
        _features_spans(course, parts, "training", labeled)
        making, classifiers = _spreading(course, parts)
        course._add("judging", "labels from neighbours, once more", 1, making)
        course._add("judging", "classifiers on frozen features", 1, classifiers)
    times = len(steps) - 1
    kind = "answers written to the pool" if writes else "pool labeled"
    course._add("training", kind, times, labeling, writes or times > alone)
    _round_ends(course, trainer, len(steps))
    found.notes.append("where the labels settle, later rounds are left out")
    return trainer


def rows_of_rounds(plan: Any, labeled: int, pool: int, *, alone: bool) -> list[int]:
    """Returns how many rows each training of a self-training has, repeated ones counted as often.

    Args:
        plan: ``self_training.RoundPlan``.
        labeled: Labeled rows.
        pool: Rows of the pool.
        alone: Whether a training on the labeled rows alone comes first.
    """
    found = []
    for share in [0.0, *plan.shares] if alone else plan.shares:
        chosen = max(1, round(share * pool)) if share else 0
        found.append(_selection.repeats(labeled, chosen, plan.labeled_share) * labeled + chosen)
    return found


def planned_steps(trainer: Any, rows: int) -> int:
    """Returns the optimizer steps that a Trainer takes on so many rows."""
    args = trainer.args
    loader = DataLoader(
        range(rows), batch_size=trainer._train_batch_size, drop_last=args.dataloader_drop_last
    )
    return trainer.set_initial_training_values(args, loader)[-1]


def _labeling(course: _Course, trainer: Any, writes: bool) -> Seconds:
    """Seconds of one labeling of the pool."""
    pool = trainer.pool
    size, lengths = trainer.args.eval_batch_size, None
    if writes:
        method, task = trainer.method, trainer.task
        size, lengths = max(1, size // method.samples), np.ones(len(pool), np.int64)
        trainer.task = task.with_settings({"min_new_tokens": task.max_new_tokens})
        course.found.notes.append(
            f"as if every answer had {task.max_new_tokens:,} tokens, the most there can be"
        )
    else:
        lengths = course.task.lengths(pool)

    def label(rows: np.ndarray) -> None:
        trainer.pool = pool.select(rows)
        trainer._label_pool(1)

    try:
        return course.times.get("unlabeled", 1.0) * spans.sweep(lengths, size, label)
    finally:
        trainer.pool = pool


def _round_probe(course: _Course, trainer: Any, labeled: int, pool: int) -> Any:
    """Steps of a last round: on labeled rows and rows of the pool, as many of each as there will be."""
    few = trainer.pool.select(_spread_evenly(len(trainer.pool), FEW_OF_POOL))
    chosen = max(1, round(trainer.plan.shares[-1] * pool))
    times = _selection.repeats(labeled, chosen, trainer.plan.labeled_share)
    beside = max(1, round(len(few) * times * labeled / chosen))
    trainer.pool = few
    trainer.labeled = trainer.labeled.select(_spread_evenly(len(trainer.labeled), beside))
    if isinstance(course.plan.method, SelfTrainingGeneration):
        trainer.method = replace(trainer.method, accept="agreement", least=1e-9)
    trainer.labels = trainer._label_pool(1)
    trainer.labels.chosen = np.flatnonzero(np.isfinite(trainer.labels.confidence_N))
    trainer.train_dataset = trainer._rows_of_round(max(1, round(beside / len(trainer.labeled))))
    one = probing._Probe(trainer)
    one.look()
    one.each = one.measure(1)
    return one


def _round_ends(course: _Course, trainer: Any, rounds: int) -> None:
    """What is judged after each round."""
    eval_rows = course.prepared.eval
    if eval_rows is None:
        return
    if isinstance(course.plan.method, SelfTrainingGeneration):
        if course.plan.method.guard and course.runner.loaded.eval is not None:
            each = course._judging(trainer) / max(course.rows("test"), 1)
            course._add("training", "answers to the eval split, a row", rounds * course.rows("eval"), each)
        return
    batch = next(iter(trainer.get_eval_dataloader()))
    trainer.model.eval()
    each = spans.once(lambda: trainer.prediction_step(trainer.model, batch, prediction_loss_only=False))
    each = each / len(next(iter(batch.values())))
    course._add("training", "eval split after a round, a row", rounds * course.rows("eval"), each)


def _at_full_length(trainer: Any) -> None:
    """No answer ends before its time."""
    length = trainer.args.max_completion_length
    trainer.generation_config.min_new_tokens = length
    trainer.generation_kwargs = {**trainer.generation_kwargs, "min_new_tokens": length}


@contextlib.contextmanager
def _dropout_kept(model: Any) -> Iterator[None]:
    """trl takes a model's dropout away; it comes back."""
    held = [(m, m.p) for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    try:
        yield
    finally:
        for module, rate in held:
            module.p = rate


def _spread_evenly(count: int, wanted: int) -> list[int]:
    """Row numbers from the first to the last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted))})


def _variants(trainer: Any) -> int:
    """Other weights that are judged too."""
    return int(isinstance(trainer, JointTrainer) or _has_average(trainer))


def _has_average(trainer: Any) -> bool:
    return isinstance(trainer, SemiSupervisedTrainer) and trainer.teacher is not None


QUIET: dict[str, Any] = {"dataloader_num_workers": 0, "disable_tqdm": True}
COURSES: dict[type, Callable[[_Course], Any]] = {
    Supervised: supervised,
    SemiSupervised: semi_supervised,
    Propagation: propagated,
    SelfTraining: self_training,
    SelfTrainingGeneration: self_training,
    Distillation: distilled,
    DPO: own_steps,
    GRPO: grpo,
}
