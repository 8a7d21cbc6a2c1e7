"""Semi-supervised fine-tuning: a labeled and an unlabeled loss on the stock Trainer.

    method:
      name: semi_supervised
    algorithm: softmatch
    data:
      name: …
      unlabeled: pool.csv

Works with every tuning (full, frozen layers, LoRA and its kin, 8-bit and 4-bit bases): teacher and
economy only look at which weights are trained.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from hf_llm_recipes.algorithms.pi_model import PiModel
from hf_llm_recipes.algorithms.uda import UDA
from hf_llm_recipes.data.augmentation._choose import OneOf, check_kinds, default_views
from hf_llm_recipes.data.augmentation.base import Pool
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods import _features, _first_labels, _frozen
from hf_llm_recipes.methods._cross_fit import Verdict, cross_fit
from hf_llm_recipes.methods._forward import unwrapped
from hf_llm_recipes.methods._guard import Guard
from hf_llm_recipes.methods._joint_trainer import JointTrainer
from hf_llm_recipes.methods._lower_layers import LowerLayers, first_trainable_layer
from hf_llm_recipes.methods._semi_trainer import Schedule, SemiSupervisedTrainer, WarmStart
from hf_llm_recipes.methods._streams import TwoStreamBatches, TwoStreams
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import ALGORITHMS, METHODS
from hf_llm_recipes.tuning._model import head_modules
from hf_llm_recipes.tuning.freeze import layer_stack

log = logging.getLogger("hf_llm_recipes")

LEAST_CROSS_FIT = 12  # tagged rows, four a fold


@METHODS.register
@dataclass(kw_only=True)
class SemiSupervised(Method):
    """Labeled rows and a pool of unlabeled ones, a teacher's guesses, a student's strong views.

    A step takes ``trainer.per_device_train_batch_size`` labeled rows and ``unlabeled_ratio`` times as
    many unlabeled ones. An epoch is one pass over the pool.

    Args:
        unlabeled_ratio: Unlabeled rows for each labeled one, > 0.
        teacher: ``ema`` (the moving average of the student's trained weights), ``student``, or
            ``default``: what suits the algorithm.
        ema_decay: Of the teacher, in [0, 1); None: 1 − 14/T over T steps.
        weight: λ of the unlabeled loss, ≥ 0; 0 trains on the labeled rows alone at their cost.
        warmup_fraction: Share of the steps without unlabeled loss, in [0, 1). None: 0 with a warm
            start, else 0.1.
        ramp_fraction: Share of the steps over which λ grows after that, in [0, 1].
        warm_start: Where the first guesses come from: ``propagation`` (label propagation, or a probe where
            it is better, on frozen features of labeled rows and pool), ``fine_tuned`` (three supervised
            models, each on two thirds of the labeled rows, and one on all), ``none``, or ``auto``: for
            single-label tasks whichever is right more often on labeled rows held out, else none.
        warm_start_fraction: Share of the steps that learn from them, in [0, 1].
        prior: Class shares of the pool: ``estimated``, ``uniform``, ``labeled`` (those of the labeled
            rows), or one share a class.
        export: Whose weights are judged and saved; ``auto``: the teacher's where it is an average.
        guard: Whether the unlabeled weight is turned down when it does harm. ``cross_fit``: before that,
            semi-supervised and supervised training are compared on labeled rows held out in turn, three
            trainings of each; where the pool does harm, the run trains without it. ``auto``: cross_fit
            for tags of words, where harm was found that nothing else sees, else true.
        reuse_lower_layers: Whether frozen lower layers are computed once a row (their dropout is then
            off); ``auto``: where half of the layers or more are frozen.

    Raises:
        ValueError: a value out of range.
    """

    takes_unlabeled: ClassVar[bool] = True
    refused_callbacks: ClassVar[dict[str, str]] = {
        "ema": "ema has no place here: it keeps an average of its own (method.teacher, method.export)"
    }
    takes_algorithm: ClassVar[bool] = True

    unlabeled_ratio: float = 3.0
    teacher: Literal["default", "ema", "student"] = "default"
    ema_decay: float | None = None
    weight: float = 1.0
    warmup_fraction: float | None = None
    ramp_fraction: float = 0.0
    warm_start: Literal["auto", "propagation", "fine_tuned", "none"] = "auto"
    warm_start_fraction: float = 0.5
    prior: Literal["estimated", "uniform", "labeled"] | list[float] = "estimated"
    export: Literal["auto", "teacher", "student"] = "auto"
    guard: bool | Literal["auto", "cross_fit"] = "auto"
    reuse_lower_layers: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check("unlabeled_ratio", self.unlabeled_ratio, above=0.0)
        _check("weight", self.weight, least=0.0)
        for name in ("warm_start_fraction", "ramp_fraction"):
            _check(name, getattr(self, name), least=0.0, most=1.0)
        if self.warmup_fraction is not None:
            _check("warmup_fraction", self.warmup_fraction, least=0.0, below=1.0)
        if self.ema_decay is not None:
            _check("ema_decay", self.ema_decay, least=0.0, below=1.0)
        if isinstance(self.prior, list):
            fits = all(share > 0 for share in self.prior) and math.isclose(sum(self.prior), 1, abs_tol=1e-3)
            if not fits:
                raise ValueError(f"prior is {self.prior}; allowed: positive shares that sum to 1")

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        from transformers import TrainingArguments

        return TrainingArguments

    def build(self, parts: Parts) -> SemiSupervisedTrainer:
        """Returns the Trainer; frozen features are computed here where the recipe uses them."""
        self._check_parts(parts)
        self.frozen, self.first, self.verdict = None, None, None
        if not self._cross_fits(parts):
            return self._build(parts)
        guarded = replace(self, guard=True)
        self.verdict = cross_fit(parts, lambda some: guarded.build(some))
        _tell(self.verdict)
        if not self.verdict.harms:
            return self._build(parts)
        labeled_alone = replace(self, guard=False, weight=0.0, teacher="default", export="auto")
        return labeled_alone._build(replace(parts, algorithm=PiModel()))

    def _cross_fits(self, parts: Parts) -> bool:
        if self.guard == "auto":
            if self.weight == 0 or parts.task.item_problem != "tokens":
                return False
            if len(parts.train) < LEAST_CROSS_FIT:
                log.warning(
                    f"{len(parts.train)} labeled rows are too few to hold some out: whether the pool does "
                    "harm to the tags is not looked at beforehand"
                )
                return False
            return True
        return self.guard == "cross_fit" and self.weight > 0

    def _build(self, parts: Parts) -> SemiSupervisedTrainer:
        algorithm, task, arguments = parts.algorithm, parts.task, parts.arguments
        kind = self._teacher_kind(algorithm)
        if self.export == "teacher" and kind == "student":
            raise ValueError("export is teacher, but the student is its own teacher; allowed: auto, student")
        batch, size = self._sizes(parts)
        num_classes = task.num_item_classes(parts.model.config)
        batches = TwoStreamBatches(len(parts.train), len(parts.unlabeled), batch, size, arguments.seed)
        self.frozen = _frozen.look(parts) if self._uses_features(parts) else None
        self.first, self.fine_tuned_held_out = self._first_labels(parts, batches)
        prior_C = self._prior(parts, num_classes)
        algorithm.start(num_classes, len(parts.unlabeled))
        streams = TwoStreams(parts.train, parts.unlabeled, self._strong_view(parts), batches)
        trainer, more = SemiSupervisedTrainer, {}
        if algorithm.students == 2:
            trainer, more = JointTrainer, {"fresh": ["lora_A", *head_modules(unwrapped(parts.model))]}
        with frozen_quantised_base(parts.model):
            return trainer(
                **more,
                task=task,
                algorithm=algorithm,
                streams=streams,
                teacher_kind=kind,
                decay=self.ema_decay,
                schedule=self._schedule(),
                prior_C=prior_C,
                warm_start=self._warm_start(),
                guard=Guard(prior_C, len(parts.eval or [])) if self.guard else None,
                export="student" if kind == "student" or self.export == "student" else "teacher",
                lower=self._lower_layers(parts),
                model=parts.model,
                args=arguments,
                eval_dataset=parts.eval,
                data_collator=parts.collator,
                compute_metrics=parts.compute_metrics,
                compute_loss_func=parts.compute_loss,
                processing_class=parts.processing_class,
                callbacks=parts.callbacks,
            )

    def variants(self, trainer: SemiSupervisedTrainer) -> dict[str, AbstractContextManager]:
        """The student beside an exported teacher, or the other way round."""
        if isinstance(trainer, JointTrainer):
            return {"second_student": trainer.other_weights()}
        if trainer.teacher is None:
            return {}
        other = "student" if trainer.export == "teacher" else "teacher"
        return {other: trainer.other_weights()}

    def report(self, trainer: SemiSupervisedTrainer) -> dict[str, Any]:
        """What was exported, what the economy saved, what the guard did."""
        computed = trainer.computed
        said: dict[str, Any] = {} if self.verdict is None else {"cross_fit": asdict(self.verdict)}
        if self.frozen is not None and self.first is not None:
            held_out = dict(self.frozen.held_out)
            if self.fine_tuned_held_out is not None:
                held_out["fine_tuned"] = self.fine_tuned_held_out
            said["first_labels"] = {"used": self.first.source, "held_out": held_out}
        return {
            **said,
            "exported": trainer.export,
            "strong_rows_computed": computed["strong_rows"],
            "unlabeled_rows_seen": computed["rows"],
            "prior": [round(float(share), 4) for share in trainer.prior_C],
            "guard": trainer.guard.findings if trainer.guard else None,
            "guard_steps_waited": trainer.guard.steps_waited if trainer.guard else None,
        }

    def baselines(self, trainer: SemiSupervisedTrainer) -> dict[str, np.ndarray]:
        """Probe and propagation on frozen features, on the test rows."""
        return {} if self.frozen is None else self.frozen.baselines()

    def _teacher_kind(self, algorithm: Any) -> str:
        if algorithm.students == 2:
            if self.teacher == "ema":
                raise ValueError(
                    "teacher is ema, but two students teach each other; allowed: default, student"
                )
            return "student"
        return algorithm.teacher if self.teacher == "default" else self.teacher

    def _check_parts(self, parts: Parts) -> None:
        if parts.unlabeled is None or len(parts.unlabeled) == 0:
            raise DataError(
                "there are no unlabeled rows",
                where="data",
                hint="name them in `data.unlabeled`, or keep few labels with `data.labels_per_class`",
            )
        problem = parts.task.item_problem
        if problem not in parts.algorithm.problems:
            raise ValueError(
                f"the algorithm {type(parts.algorithm).__name__} does not fit a {problem} task; "
                f"allowed: {', '.join(_fitting(problem)) or 'method: self_training'}"
            )
        annealed = isinstance(parts.algorithm, UDA) and parts.algorithm.training_signal_annealing != "none"
        if annealed and problem != "single_label":
            raise ValueError(f"training_signal_annealing has no effect on a {problem} task; allowed: none")
        if parts.arguments.train_sampling_strategy != "random":
            raise ValueError("train_sampling_strategy has no effect on two streams: take it out")

    def _sizes(self, parts: Parts) -> tuple[int, int]:
        """Labeled and unlabeled rows a batch."""
        batch = parts.arguments.train_batch_size
        size = max(1, round(batch * self.unlabeled_ratio))
        if len(parts.unlabeled) < size * parts.arguments.world_size:
            raise DataError(
                f"the pool has {len(parts.unlabeled)} rows, fewer than a batch of {size}",
                where="data.unlabeled",
                hint="add rows, or lower `method.unlabeled_ratio` or `trainer.per_device_train_batch_size`",
            )
        return batch, size

    def _uses_features(self, parts: Parts) -> bool:
        single = parts.task.item_problem == "single_label"
        if self.warm_start in ("propagation", "fine_tuned") and not single:
            raise ValueError(
                f"warm_start: {self.warm_start} needs one class a row, not a {parts.task.item_problem} task; "
                "allowed: auto, none"
            )
        return self.weight > 0 and single and self.warm_start != "none"

    def _first_labels(
        self, parts: Parts, batches: TwoStreamBatches
    ) -> tuple[_first_labels.FirstLabels | None, float | None]:
        """The labels of the first steps, and how often fine-tuned models are right on rows held out."""
        if self.frozen is None or self.warm_start_fraction == 0:
            return None, None
        frozen = _first_labels.FirstLabels(
            self.frozen.target_NC,
            np.ones(len(self.frozen.target_NC)),
            self.frozen.prior_C,
            self.frozen.source,
        )
        if self.warm_start == "propagation":
            return frozen, None
        if not self.frozen.held_out:  # a class with one labeled row
            if self.warm_start == "fine_tuned":
                raise DataError(
                    "a class has one labeled row: none can be held out",
                    where="data",
                    hint="label another row of it, or set `method.warm_start: propagation`",
                )
            return frozen, None
        arguments = parts.arguments
        accumulated = arguments.gradient_accumulation_steps
        an_epoch = max(1, len(batches) // arguments.world_size // accumulated)
        steps = arguments.max_steps
        if steps <= 0:
            steps = math.ceil(arguments.num_train_epochs * an_epoch)
        first = math.ceil(self.warm_start_fraction * steps) * accumulated * arguments.world_size
        to_beat = -1.0 if self.warm_start == "fine_tuned" else self.frozen.held_out[self.frozen.source]
        found = _first_labels.fine_tuned(
            parts,
            steps=steps,
            to_beat=to_beat,
            rows=_first_labels.visited(batches, first, len(parts.unlabeled)),
        )
        source = self.frozen.source if found.labels is None else "fine-tuned models"
        log.info(
            f"first labels: fine-tuned models are right in {100 * found.held_out:.0f} % of the labeled rows "
            f"they did not see; used: {source}"
        )
        return found.labels or frozen, found.held_out

    def _schedule(self) -> Schedule:
        warmup = self.warmup_fraction
        if warmup is None:
            warmup = 0.0 if self.first is not None else 0.1
        return Schedule(self.weight, warmup, self.ramp_fraction)

    def _warm_start(self) -> WarmStart | None:
        if self.first is None:
            return None
        target_NC = torch.from_numpy(self.first.target_NC).float()
        weight_N = torch.from_numpy(self.first.weight_N).float()
        return WarmStart(target_NC, weight_N, self.warm_start_fraction)

    def _prior(self, parts: Parts, num_classes: int) -> Tensor:
        if isinstance(self.prior, list):
            if len(self.prior) != num_classes:
                raise ValueError(f"prior has {len(self.prior)} shares; allowed: {num_classes}, one a class")
            return torch.tensor(self.prior)
        if self.prior == "uniform":
            return torch.full((num_classes,), 1 / num_classes)
        source = self.first or self.frozen
        if self.prior == "estimated" and source is not None:
            return torch.from_numpy(source.prior_C).float()
        return _labeled_shares(parts, num_classes)

    def _strong_view(self, parts: Parts) -> Any:
        kind = "image" if parts.task.processor == "image_processor" else "text"
        views = parts.augmentation or default_views(kind)
        check_kinds(views, kind, same_length=parts.task.item_problem == "tokens")
        pool = Pool(
            features=parts.unlabeled,
            rows=parts.unlabeled_rows,
            processor=parts.processing_class,
            encode=parts.encode,
            seed=parts.arguments.seed,
        )
        for view in views:
            view.fit(pool)
        return OneOf(views)

    def _lower_layers(self, parts: Parts) -> LowerLayers | None:
        first = first_trainable_layer(parts.model)
        if self.reuse_lower_layers == "auto":
            wanted = first > 0 and 2 * first >= _num_layers(parts.model)
        else:
            wanted = self.reuse_lower_layers
            if wanted and first == 0:
                raise ValueError("reuse_lower_layers is true, but the lowest layer is trained")
        if not wanted:
            return None
        log.info(f"the lower {first} layers are frozen: their states are computed once a row")
        rows = {"labeled": parts.train, "unlabeled": parts.unlabeled}
        fingerprint = "-".join(_features.rows_sha256(some) for some in rows.values())
        folder = Path(parts.arguments.output_dir) / "lower_layers"
        return LowerLayers(parts.model, folder, fingerprint, {k: len(v) for k, v in rows.items()})


def _tell(verdict: Verdict) -> None:
    scores = (
        f"{verdict.metric} on labeled rows held out in turn: semi-supervised "
        f"{100 * verdict.semi_supervised:.1f} %, supervised {100 * verdict.supervised:.1f} %"
    )
    if verdict.harms:
        log.warning(f"{scores}: the pool does harm here, so the run trains without it")
    else:
        log.info(scores)


def _check(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    bounds = [
        (least, value >= (least or 0.0), f"{least} or more"),
        (above, value > (above or 0.0), f"more than {above}"),
        (most, value <= (most or 0.0), f"at most {most}"),
        (below, value < (below or 0.0), f"less than {below}"),
    ]
    given = [(fits, words) for bound, fits, words in bounds if bound is not None]
    if not all(fits for fits, _ in given) or not math.isfinite(value):
        raise ValueError(f"{name} is {value}; allowed: {', '.join(words for _, words in given)}")


def _fitting(problem: str) -> list[str]:
    return [name for name in ALGORITHMS.names() if problem in ALGORITHMS.get(name).problems]


def _num_layers(model: Any) -> int:
    return len(layer_stack(unwrapped(model))[1])


def _labeled_shares(parts: Parts, num_classes: int) -> Tensor:
    """Class shares of the labeled items, each class counted once more than it occurs."""
    counts = torch.ones(num_classes)
    for start in range(0, len(parts.train), 64):
        rows = [parts.train[i] for i in range(start, min(start + 64, len(parts.train)))]
        batch = dict(parts.collator(rows))
        labels = parts.task.item_labels(batch["labels"], batch)
        counts += torch.bincount(labels[labels >= 0].long(), minlength=num_classes)
    return counts / counts.sum()
