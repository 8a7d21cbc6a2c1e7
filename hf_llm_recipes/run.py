"""Recipe -> run directory: the one place where the axes meet and registries are looked up.

Notable:
- The run directory is made only once data and model are ready; a run that fails before its first
  checkpoint leaves none.
- The saved model is loaded again and must give the logits that were judged.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import shutil
import signal
import sys
import time
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_llm_recipes import checkpoints, evaluation, processes, pushing, report, rundir, secrets_scan, trust
from hf_llm_recipes.errors import InterruptedRunError, RecipeError, RunError
from hf_llm_recipes.estimate import predicted
from hf_llm_recipes.planning import Plan, plan, recipe_text
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import RunDirectory
from hf_llm_recipes.teachers import to_train
from hf_llm_recipes.training import device_defaults, trainer_of

log = logging.getLogger("hf_llm_recipes")

STAGE_FIGURES = "stages.json"  # beside the checkpoints: a run that is taken up again runs no stage
STAGE_KEYS = ("use_cpu", "bf16", "fp16", "disable_tqdm")  # of `trainer:`, that hold for stages too
RELOAD_TOLERANCE = {"float32": 1e-3, "half": 0.1, "int8": 1e-3}  # on logits


@dataclass
class Run:
    """A finished run.

    Args:
        path: Its directory.
        metrics: What ``metrics.json`` holds.
        pushed: ``url`` and ``commit`` on the Hub, or ``error`` and the ``command`` that pushes later; None
            where the recipe pushes nothing.
    """

    path: Path
    metrics: dict[str, Any]
    pushed: dict[str, Any] | None = None


def run(recipe: Recipe | str | Path, *overrides: str) -> Run:
    """Trains, evaluates and saves what a recipe describes.

    Args:
        recipe: A recipe, its file, or the name of a shipped one (``"quickstart"``).
        *overrides: ``"trainer.max_steps=20"`` and the like.

    Returns:
        The run with its directory and metrics.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: the data cannot be used.
        RunError: directory, disk, model or device.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    if not isinstance(recipe, Recipe):
        from hf_llm_recipes.shipped import find_recipe

        recipe = Recipe.load(find_recipe(str(recipe)), overrides)
    elif overrides:
        recipe = copy.deepcopy(recipe)
        for override in overrides:
            recipe.override(override)
    to = pushing.before_training(recipe)
    teacher = to_train(recipe)
    if teacher is not None:
        plan(recipe)  # a mistake in it costs seconds
        run(teacher)
    done = _with_baseline(recipe) if recipe.get("compare") else _Runner(plan(recipe)).run()
    done.pushed = pushing.after_run(done.path, to)
    return done


def estimate(recipe: Recipe, device: str | None = None) -> Any:
    """Returns the ``estimate.Estimate`` of a recipe's run, after a few steps that leave no trace.

    Raises:
        RecipeError: the recipe is wrong, or no such device.
        DataError: the data cannot be used.
        RunError: the model cannot be loaded.
    """
    from hf_llm_recipes.estimate import check_device, estimate_run

    check_device(device)
    runner = _Runner(plan(recipe))
    runner._prepare()
    return estimate_run(runner, device)


def preview_augmentation(recipe: Recipe, count: int = 10) -> Any:
    """Returns a table of pool rows before and after the recipe's augmentation, for a terminal.

    Args:
        recipe: With `method: semi_supervised`.
        count: Rows, spread over the pool.

    Raises:
        RecipeError: the recipe is wrong, or has no pool.
        DataError: the data cannot be used.
    """
    from hf_llm_recipes.data.augmentation.base import Pool
    from hf_llm_recipes.preview import format_preview, preview

    runner = _Runner(plan(recipe))
    runner.prepare_data()
    task, features = runner.plan.task, runner.prepared.unlabeled
    if features is None:
        raise RecipeError(
            "there are no unlabeled rows to change",
            where=recipe.source,
            hint="name them in `data.unlabeled`, or set `data.labels_per_class`",
        )
    pool = Pool(features, runner.loaded.unlabeled, runner.tokenizer, runner.encode, runner.plan.seed)
    chosen = [int(i) for i in np.linspace(0, len(features) - 1, min(count, len(features)))]
    kind = "image" if task.processor == "image_processor" else "text"
    pairs = recipe.located(
        lambda: preview(
            pool, runner.plan.augmentation, chosen, kind, same_length=task.item_problem == "tokens"
        ),
        "augmentation",
    )
    return format_preview(pairs, chosen)


def _with_baseline(recipe: Recipe) -> Run:
    """A run, then the supervised one that it is compared with, in a folder of its own."""
    from hf_llm_recipes.comparison import BASELINE, baseline_recipe, compare

    bound = plan(recipe)
    if not (bound.method.takes_unlabeled or bound.method.comparable or bound.stages):
        raise RecipeError(
            "compare has no effect: this run is the supervised baseline",
            where=recipe.where("compare"),
            hint="take it out, or set `method: semi_supervised`",
        )
    output = recipe.get("output")
    if recipe.get("resume") and output and (Path(output) / rundir.METRICS).is_file():
        done = _finished(bound, RunDirectory.existing(output))
    else:
        done = _Runner(bound).run()
    log.info("now the supervised baseline: the same labeled rows, tuning, seed and steps")
    theirs = baseline_recipe(recipe, done.path, done.metrics["training"]["steps"])
    folder = done.path / BASELINE
    finished = (folder / rundir.METRICS).is_file()
    with rundir.locked(done.path):
        base = Run(folder, RunDirectory(folder).metrics()) if finished else _Runner(plan(theirs)).run()
    found = compare(
        done.path / rundir.PREDICTIONS, base.path / rundir.PREDICTIONS, done.metrics, base.metrics
    )
    done.metrics["comparison"] = found
    evaluation.write_metrics(done.path / rundir.METRICS, done.metrics)
    report.write_at_end(done.path, plan)
    return done


def _finished(plan: Plan, directory: RunDirectory) -> Run:
    """A run whose baseline is still to come.

    Raises:
        RunError: it has its baseline already.
        RecipeError: it was another recipe.
    """
    _same_recipe(plan, directory)
    metrics = directory.metrics()
    if "comparison" in metrics:
        raise _finished_already(str(directory.path))
    return Run(directory.path, metrics)


class _Runner:
    """One run from plan to directory; holds what the steps hand on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.started = time.monotonic()
        self.notes: list[str] = []
        self.answers: tuple[np.ndarray, np.ndarray] | None = None  # to the test rows, with their labels

    def run(self) -> Run:
        """The steps in order."""
        with contextlib.ExitStack() as self.held:
            self._run_to_its_last_step()
            return self._finish()

    def train_only(self) -> None:
        """The steps up to the last one of the training; nothing is judged or saved then."""
        with contextlib.ExitStack() as self.held:
            self._run_to_its_last_step()

    def _run_to_its_last_step(self) -> None:
        output, resume = self.plan.recipe.get("output"), self.plan.recipe.get("resume", False)
        processes.begin(self.plan)
        main, self.resumed = processes.is_main(), False
        self.directory = _resumable(self.plan, output, self.held) if resume and main else None
        if output is not None and not resume and main:
            rundir.check_new(output)
        self._prepare()
        opened = (self._open(output), self.directory, self.resumed, self.plan.trainer) if main else None
        checkpoint, self.directory, self.resumed, self.plan.trainer = processes.shared(opened)
        self.predicted = None if checkpoint or processes.count() > 1 else predicted(self)
        self._train(checkpoint)

    def _prepare(self) -> None:
        """Data, features and model; nothing is written yet."""
        from transformers import set_seed

        from hf_llm_recipes import spans
        from hf_llm_recipes.tuning import _model
        from hf_llm_recipes.tuning._packed_check import check_causal

        plan = self.plan
        set_seed(plan.seed)
        with processes.main_first():
            self.prepare_data()
        self.precision = _model.choose_precision(plan.model.dtype, frozen_base=plan.tuning.uses_adapter)
        self._say([self.precision.reason])
        set_seed(plan.seed)  # the head's initial weights do not depend on how the data was read
        begun = spans.now()
        self.built = plan.recipe.located(self._build_model, "tuning")
        self.building = spans.now() - begun
        self._say(self.built.notes)
        self.parameters = _model.count_parameters(self.built.model)
        trainable, total = self.parameters["trainable"], self.parameters["total"]
        self._say([f"training {trainable:,} of {total:,} weights ({100 * trainable / total:.2f} %)"])
        said = plan.recipe.located(
            lambda: plan.task.check_model(self.built.model, self.prepared.train, self.tokenizer), "task"
        )
        if plan.task.shifted_labels:
            plan.recipe.located(lambda: check_causal(self.built.model), "task")
        self._say(said)

    def prepare_data(self) -> None:
        """Data and features."""
        from hf_llm_recipes.assessing.section import check
        from hf_llm_recipes.data.loading import load
        from hf_llm_recipes.tuning import _model

        plan = self.plan
        uses_pool = plan.method.takes_unlabeled or bool(plan.stages)
        inputs = plan.task.input_columns
        self.loaded = plan.recipe.located(
            lambda: load(
                plan.source,
                stratify_by=plan.task.stratify_by,
                input_columns=inputs if uses_pool else None,
                text_columns=inputs if plan.task.processor == "tokenizer" else (),
            ),
            "data",
        )
        if not uses_pool:
            self.loaded.unlabeled = None  # `labels_per_class` makes one for whoever wants it
        self._say(self.loaded.description.get("notes", []))
        asked, loaded = plan.assessment, self.loaded
        plan.recipe.located(lambda: check(asked, plan.task, loaded.test, loaded.eval), "evaluate")
        self.tokenizer = plan.recipe.located(
            lambda: _model.load_processor(plan.model, plan.task.processor, self.loaded.train, inputs), "model"
        )
        self._say(_model.tokenizer_notes(plan.model, self.tokenizer))
        plan.model = plan.recipe.located(lambda: plan.task.fit_model(plan.model), "task")
        base_config = plan.recipe.located(lambda: _model.load_config(plan.model, {}, self.tokenizer), "model")
        self.prepared = plan.recipe.located(
            lambda: plan.task.prepare(self.loaded, self.tokenizer, base_config), "task"
        )
        self._say(self.prepared.notes)
        if plan.stages and self.prepared.unlabeled is None:
            raise RecipeError(
                "stages train on unlabeled rows, and there are none",
                where=plan.recipe.where("stages"),
                hint="name them in `data.unlabeled`, or keep few labels with `data.labels_per_class`",
            )
        self.config = base_config

    def _build_model(self) -> Any:
        from hf_llm_recipes.tuning import _model

        return _model.build(
            self.plan.model,
            auto_class=self.plan.task.auto_class,
            task_type=self.plan.task.peft_task_type,
            updates=self.prepared.config,
            tokenizer=self.tokenizer,
            tuning=self.plan.tuning,
            quantization=self.plan.quantization,
            precision=self.precision,
            train_head=not self.plan.task.vocabulary_labels,
        )

    def _open(self, output: str | None) -> Path | None:
        """Makes (or takes up) the directory; returns the checkpoint to go on from."""
        place = Path(output) if output else Path("runs")
        rundir.need_space(place, self._bytes_on_disk(), "the checkpoints and the model")
        self.resumed = self.directory is not None
        if self.directory is None:
            self.directory = RunDirectory.create(output, self.plan.recipe.name)
            self.held.enter_context(rundir.locked(self.directory.path))
            self.directory.write_text(rundir.RECIPE, recipe_text(self.plan))
        checkpoint = self._taken_up() if self.resumed else None
        self.directory.write_json(rundir.ENVIRONMENT, self._environment())
        return checkpoint

    def _taken_up(self) -> Path | None:
        """The newest whole checkpoint; says what was passed over, and what is not as it was."""
        from hf_llm_recipes.out_of_memory import take_up

        needs_best = bool(self.plan.trainer.get("load_best_model_at_end"))
        found = self.directory.checkpoint(needs_best=needs_best)
        self._say(found.said)
        self._say([f"going on from {found.path.name}" if found.path else "no checkpoint yet: starting anew"])
        self._say(take_up(self, found.path))
        record = self.directory / rundir.ENVIRONMENT
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        changed = rundir.environment_differences(before, rundir.environment()) if before else []
        if changed:
            self._say(
                ["not as when the run began, so that the same bits are not certain: " + "; ".join(changed)]
            )
        return found.path

    def _bytes_on_disk(self) -> int:
        """A generous bound: each checkpoint has trained weights, two moments, an average; plus the model."""
        limit = self.plan.trainer.get("save_total_limit") or 2
        whole = 0 if self.plan.tuning.uses_adapter else self.parameters["total"]
        trained = self.parameters["trainable"]
        return 4 * ((limit + 1) * (max(whole, trained) + 3 * trained) + max(whole, trained))

    def _train(self, checkpoint: Path | None) -> None:
        from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
        from hf_llm_recipes.out_of_memory import Retry

        stop, self.before = GracefulStop(), None
        advice = "free some space; then " + self.directory.resume_command()
        try:
            with rundir.full_disk_told(self.directory.path, advice), trust.state_is_data(checkpoint):
                result = Retry(self, lambda found: self._begin(stop, found)).train(checkpoint)
        except BaseException:
            self._leave_nothing_empty()
            raise
        finally:
            stop.restore()
        self.train_result = result
        state = self.trainer.state
        if stop.received is not None and state.global_step < state.max_steps:
            raise InterruptedRunError(
                f"stopped by {signal.Signals(stop.received).name} after step "
                f"{state.global_step}; a checkpoint was saved",
                where=str(self.directory.path),
                hint=f"to go on: {self.directory.resume_command()}",
                number=stop.received,
            )
        self.plan.method.finish(self.trainer)

    def _begin(self, stop: Any, checkpoint: Path | None) -> None:
        """Runs the stages and builds the Trainer, for a first try or another one."""
        from hf_llm_recipes.callbacks._bound import enter_run
        from hf_llm_recipes.callbacks._figures import figures_first
        from hf_llm_recipes.callbacks.log_file import LogFile
        from hf_llm_recipes.callbacks.progress import default_progress
        from hf_llm_recipes.callbacks.training_guard import default_guards

        stop.restore()
        callbacks = [LogFile(str(self.directory / rundir.LOG)), stop]
        callbacks += [*self.prepared.callbacks, *self.plan.callbacks, *default_guards(self.plan.callbacks)]
        callbacks += default_progress(self.plan.callbacks, self.plan.trainer)
        enter_run(callbacks, self.directory.path, report.write_meanwhile)
        self.stage_figures = self._run_stages(stop, checkpoint)
        begun = time.monotonic()
        self.trainer = self.plan.recipe.located(lambda: self._trainer(figures_first(callbacks)), "trainer")
        self.preparing = time.monotonic() - begun
        begun = time.monotonic()
        self.before = self.before or self._judge_before()
        self.judging = time.monotonic() - begun

    def rebuild_model(self, said: str) -> None:
        """The model as it was at first, for another try of the training; keeps a note of why."""
        from transformers import set_seed

        set_seed(self.plan.seed)
        self.built = self.plan.recipe.located(self._build_model, "tuning")
        self._say([said])
        self.directory.write_json(rundir.ENVIRONMENT, self._environment())

    def _judge_before(self) -> dict[str, Any] | None:
        """What the model is worth untrained, for tasks that judge the model; None of random weights."""
        if not self.plan.task.judges_model or self.plan.model.architecture is not None:
            return None
        log.info("judging the model as it is, before any training")
        training = self.trainer.model.training
        metrics = self._judged(self.trainer.model).metrics
        self.trainer.model.train(training)
        return metrics

    def _trainer(self, callbacks: list[Any]) -> Any:
        from hf_llm_recipes.callbacks._bound import bind

        return bind(trainer_of(self, self.directory / rundir.CHECKPOINTS, callbacks))

    def encode(self, rows: Any) -> Any:
        """Rows like the pool's -> features like the pool's."""
        return self.plan.task.encode(rows, self.tokenizer, self.config, labeled=False)[0]

    def _run_stages(self, stop: Any, checkpoint: Path | None) -> list[dict[str, Any]]:
        """Trains the model on the pool's raw rows before the task, where the recipe says so.

        A checkpoint of the task's training holds what the stages did.
        """
        figures: list[dict[str, Any]] = []
        record = self.directory / rundir.CHECKPOINTS / STAGE_FIGURES
        if not self.plan.stages:
            return figures
        if checkpoint is not None:
            return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else figures
        from hf_llm_recipes.callbacks.log_file import LogFile
        from hf_llm_recipes.callbacks.progress import default_progress
        from hf_llm_recipes.callbacks.training_guard import TrainingGuard
        from hf_llm_recipes.stages.base import StageParts

        asked = {key: value for key, value in self.plan.trainer.items() if key in STAGE_KEYS}
        for number, stage in enumerate(self.plan.stages):
            folder = self.directory / rundir.CHECKPOINTS / f"stage-{number}"
            title = f"stage {number + 1} of {len(self.plan.stages)}"
            self._say([f"{title}: {type(stage).__name__}"])
            bar = default_progress(self.plan.callbacks, self.plan.trainer, title)
            log_file = LogFile(str(self.directory / f"stage-{number}.jsonl"))
            parts = StageParts(
                model=self.built.model,
                pool=self.prepared.unlabeled,
                collator=self.prepared.collator,
                processing_class=self.tokenizer,
                source=self.plan.model,
                output_dir=str(folder),
                seed=self.plan.seed,
                device_arguments={**device_defaults(), **self.precision.trainer, **asked},
                callbacks=[log_file, stop, TrainingGuard(dead_after=None), *bar],
                resume=checkpoints.take_up(folder).path if self.resumed else None,
            )
            figures.append(self.plan.recipe.located(lambda: stage.run(parts), "stages", number))  # noqa: B023
            if stop.received is not None:
                raise InterruptedRunError(
                    f"stopped by {signal.Signals(stop.received).name} in stage {number + 1}",
                    where=str(self.directory.path),
                    hint=f"to go on: {self.directory.resume_command()}",
                    number=stop.received,
                )
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps(figures), encoding="utf-8")
        return figures

    def _leave_nothing_empty(self) -> None:
        """Takes the directory away again where a new run failed before its first checkpoint."""
        kept = checkpoints.any_checkpoint(self.directory / rundir.CHECKPOINTS)
        if not self.resumed and not kept and processes.is_main():
            shutil.rmtree(self.directory.path, ignore_errors=True)

    def _finish(self) -> Run:
        """Saves the model, judges it on the test split, writes everything else."""
        directory, plan, begun = self.directory, self.plan, time.monotonic()
        if not processes.is_main():
            if not plan.task.judges_model:
                self._method_figures(self._predict_test()[1])
            return Run(directory.path, processes.shared(None))
        advice = "free some space; then " + directory.resume_command()
        with rundir.full_disk_told(directory.path, advice):
            with directory.replacing(rundir.MODEL) as folder:
                self._save_model(folder)
            metrics = self._judge_model() if plan.task.judges_model else self._judge_logits()
            metrics = self._assessed(metrics) if plan.assessment.wanted else metrics
            self._write_card(metrics)
            metrics["training"]["minutes_judging"] = (self.judging + time.monotonic() - begun) / 60
            evaluation.write_metrics(directory / rundir.METRICS, metrics)  # says that the run has finished
        self._write_report()
        secrets_scan.warn(directory.path)
        _check_reload(metrics["reload"], directory)
        return Run(directory.path, processes.shared(metrics))

    def _assessed(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The metrics, with what `evaluate:` asks for beyond them."""
        from hf_llm_recipes.assessing.engine import of_run
        from hf_llm_recipes.predictor import Predictor

        model = Predictor(self.trainer.model.eval(), self.tokenizer, self.plan.task)
        asked, folder = self.plan.assessment, self.directory / rundir.MODEL
        return of_run(model, asked, self.loaded, self.answers, metrics, folder)

    def _judge_logits(self) -> dict[str, Any]:
        """The metrics of a task with few outputs a row; writes the predictions."""
        plan, config = self.plan, self.built.model.config
        logits, labels = self.answers = self._predict_test()
        metrics = {
            "test": plan.task.judge(logits, labels, config),
            "training": self._training_figures(),
            "data": self.prepared.findings,
            "reload": self._reload(logits),
            **self._method_figures(labels),
        }
        plan.task.write_predictions(
            self.directory / rundir.PREDICTIONS, self.loaded.test, logits, labels, config
        )
        return metrics

    def _judge_model(self) -> dict[str, Any]:
        """The metrics of a task that judges the model itself; writes what it says of each row."""
        figures = self._training_figures()
        judged = self._judged(self.trainer.model)
        evaluation.write_columns(self.directory / rundir.PREDICTIONS, judged.columns)
        method = self.plan.method.report(self.trainer)
        method |= self._other_weights(lambda: self._judged(self.trainer.model).metrics)
        return {
            "test": judged.metrics,
            **({"before": evaluation.summary(self.before)} if self.before else {}),
            "training": figures,
            "data": self.prepared.findings,
            "reload": self._reload_probe(),
            **({"method": method} if method else {}),
            **({"stages": self.stage_figures} if self.stage_figures else {}),
        }

    def _judged(self, model: Any) -> Any:
        features, rows = self.prepared.test, self.loaded.test
        return self.plan.task.judge_model(model.eval(), features, rows, self.tokenizer)

    def _reload_probe(self) -> dict[str, Any]:
        """Loads ``model/`` as a user would and compares what the task looks at on the first test rows."""
        from hf_llm_recipes.predictor import Predictor

        few = self.prepared.test.select(range(min(4, len(self.prepared.test))))
        task, trained = self.plan.task, self.trainer.model.eval()
        again = Predictor.load(self.directory / rundir.MODEL).model
        found, wanted = (task.probe(model, few, self.tokenizer) for model in (again, trained))
        return {
            "rows": len(few),
            "logits_max_difference": float(np.abs(found - wanted).max()),
            "tolerance": RELOAD_TOLERANCE[self._arithmetic()],
        }

    def _arithmetic(self) -> str:
        """How exactly a reloaded model can be compared: a key of ``RELOAD_TOLERANCE``."""
        mixed = self.trainer.args.bf16 or self.trainer.args.fp16  # the reloaded model computes unmixed
        if mixed or str(self.precision.weights) != "torch.float32":
            return "half"
        return "int8" if (self.plan.quantization or {}).get("load_in_8bit") else "float32"

    def _predict_test(self) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of the test split in its own order, computed longest rows first.

        The Trainer (5.23) applies ``train_sampling_strategy: group_by_length`` to ``predict`` too and
        gives the answers back in the shuffled order, which would put them beside the wrong rows.
        """
        from hf_llm_recipes.predictor import stacked

        self.trainer.args.train_sampling_strategy = "sequential"
        features = self.prepared.test
        order = np.argsort(-self.plan.task.lengths(features), kind="stable")
        found = self.trainer.predict(features.select(order))
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        back = np.argsort(order, kind="stable")
        batch = {"labels": np.asarray(found.label_ids)[back]}
        logits, labels = self.plan.task.outcomes(np.asarray(logits)[back], batch)
        return stacked(logits), stacked(labels)

    def _save_model(self, folder: Path) -> None:
        from hf_llm_recipes.predictor import save_record

        model = self.trainer.model
        if getattr(model.config, "model_type", "").startswith("hlr_") and not self.plan.tuning.uses_adapter:
            from hf_llm_recipes.models.base import carry_code

            carry_code(model)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        values = self.plan.recipe.values
        task = {k: v for k, v in self.plan.recipe.section("task").items() if k != "examples"}
        save_record(
            folder,
            task=task | self.plan.task.read_as,
            config=self.prepared.config,
            model=values["model"],
            quantization=self.built.quantization,
        )

    def _method_figures(self, labels: Any) -> dict[str, Any]:
        """What the method reports, the weights that are not exported, and baselines that cost no training."""
        method, task, config = self.plan.method, self.plan.task, self.built.model.config
        figures: dict[str, Any] = {"method": method.report(self.trainer)}
        figures["method"] |= self._other_weights(lambda: task.judge(*self._predict_test(), config))
        baselines = {}
        for name, probabilities in method.baselines(self.trainer).items():
            logits = np.log(np.clip(probabilities, 1e-12, 1.0))
            judged = task.judge(logits, labels[: len(logits)], config)
            baselines[name] = {**evaluation.summary(judged), "rows": len(logits)}
        if baselines:
            figures["baselines"] = baselines
        if self.stage_figures:
            figures["stages"] = self.stage_figures
        return {key: value for key, value in figures.items() if value}

    def _other_weights(self, judge: Any) -> dict[str, Any]:
        """The scores of the weights that are not exported."""
        from hf_llm_recipes.callbacks._bound import variants_of

        found = {}
        for name, weights in (self.plan.method.variants(self.trainer) | variants_of(self.trainer)).items():
            with weights:
                found[f"test_{name}"] = evaluation.summary(judge())
        return found

    def _training_figures(self) -> dict[str, Any]:
        from hf_llm_recipes.callbacks._figures import in_metrics

        state, figures = self.trainer.state, self.train_result.metrics
        return {
            "steps": state.global_step,
            "epochs": round(state.epoch or 0.0, 3),
            "loss": figures.get("train_loss"),
            "minutes": figures.get("train_runtime", 0.0) / 60,
            "minutes_before": self.preparing / 60,  # of the method: first labels, held-out comparisons
            "samples_per_second": figures.get("train_samples_per_second"),
            "best_metric": state.best_metric,
            "peak_memory_gib": rundir.peak_memory_gib(),
            "parameters": self.parameters,
            **({"predicted": self.predicted} if self.predicted else {}),
            **in_metrics(self.trainer),
        }

    def _reload(self, logits: np.ndarray) -> dict[str, Any]:
        """Loads ``model/`` as a user would and compares logits on the first rows of the test split."""
        from hf_llm_recipes.predictor import Predictor

        rows = self.loaded.test.select(range(min(16, len(self.loaded.test))))
        again, _ = Predictor.load(self.directory / rundir.MODEL).logits(rows, labeled=False)
        kind = self._arithmetic()
        judged = logits[: len(again)]
        if judged.ndim == 3:  # words, padded to the longest of all test rows
            judged = judged[:, : again.shape[1]]
        judged = judged.reshape(again.shape)
        trained = judged
        if kind == "int8":  # its arithmetic depends on the batch: compare in the same batches
            in_memory = Predictor(self.trainer.model.eval(), self.tokenizer, self.plan.task)
            trained, _ = in_memory.logits(rows, labeled=False)
        return {
            "rows": len(again),
            "logits_max_difference": float(np.abs(again - trained).max()),
            "tolerance": RELOAD_TOLERANCE[kind],
            "judged_max_difference": float(np.abs(again - judged).max()),
        }

    def _write_report(self) -> None:
        report.write_at_end(self.directory.path, plan)

    def _write_card(self, metrics: dict[str, Any]) -> None:
        from hf_llm_recipes.card import info_of_run, model_card

        info = info_of_run(
            recipe=self.plan.recipe,
            recipe_text=recipe_text(self.plan),
            task=self.plan.task,
            config=self.built.model.config,
            base_model=self.plan.model.label,
            quantization=self.built.quantization,
            is_adapter=self.plan.tuning.uses_adapter,
            environment=json.loads((self.directory / rundir.ENVIRONMENT).read_text(encoding="utf-8")),
            metrics=metrics,
            processor=self.tokenizer,
        )
        self.directory.write_text(rundir.CARD, model_card(info))
        shutil.copy(self.directory / rundir.CARD, self.directory / rundir.MODEL / rundir.CARD)

    def _environment(self) -> dict[str, Any]:
        return {
            **rundir.environment(),
            "seed": self.plan.seed,
            "seeds": rundir.seeds(
                self.plan.seed, self.plan.source.split_seed, self.plan.trainer.get("data_seed")
            ),
            "dtype": str(self.precision.weights).removeprefix("torch."),
            "dtype_reason": self.precision.reason,
            "data": self.loaded.description,
            "model": {
                "name": self.plan.model.name,
                "fingerprint": self._weights_fingerprint(),
            },
            "notes": self.notes,
        }

    def _weights_fingerprint(self) -> str | None:
        return None if self.plan.model.architecture else _weights_fingerprint(self.plan.model.path)

    def _say(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            self.notes.append(sentence)
            log.info(sentence)


def _resumable(plan: Plan, output: str | None, held: contextlib.ExitStack) -> RunDirectory:
    if output is None:
        raise RecipeError("resume needs to know which run", hint="add output=DIR")
    directory = RunDirectory.existing(output)
    held.enter_context(rundir.locked(directory.path))
    if (directory / rundir.METRICS).is_file():
        raise _finished_already(output)
    _same_recipe(plan, directory)
    return directory


def _finished_already(output: str) -> RunError:
    return RunError("this run has finished already", where=output, hint="choose another output for a new one")


def _same_recipe(plan: Plan, directory: RunDirectory) -> None:
    differences = directory.recipe().differences(plan.recipe)
    if differences:
        raise RecipeError(
            "the run was started with another recipe:\n    " + "\n    ".join(differences),
            where=str(directory.path),
            hint=f"{directory.resume_command()}, or another output for a new run",
        )


def _check_reload(found: dict[str, Any], directory: RunDirectory) -> None:
    if not found["logits_max_difference"] <= found["tolerance"]:
        raise RunError(
            f"the saved model gives other answers than the trained one: logits differ by "
            f"{found['logits_max_difference']:.3g} (allowed: {found['tolerance']:.3g})",
            where=str(directory / rundir.MODEL),
            hint="do not ship it; the checkpoints hold the trained weights. Please report this recipe",
        )


def _weights_fingerprint(path: str) -> str | None:
    """SHA-256 over the safetensors files of a folder; None for a Hub id, whose commit stands for it."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


class _Callable(types.ModuleType):
    """Importing this module puts it in the place of the package's function ``run``: so it is one, too."""

    def __call__(self, *given: Any, **named: Any) -> Run:
        return run(*given, **named)


sys.modules[__name__].__class__ = _Callable
