"""Self-training: label the pool, choose what is sure, train again from the base.

    method:
      name: self_training
    data:
      name: …
      unlabeled: pool.csv

Read top to bottom: the method, the Trainer that goes through the rounds, what they stand on.

Notable:
- A round is one ordinary ``train()``; ``trainer.max_steps`` or ``num_train_epochs`` is the length of each.
- A round's labels are written before it starts and its chance hangs on (seed, round) alone: a killed run
  goes on bit for bit, between two rounds or within one.
- The training on the labeled rows alone, where there is one, is that of `method: supervised` with the same
  ``trainer:`` section, bit for bit: rows, order, dropout.
- Labels are hard and go through the task's own loss; the labeled rows are repeated instead of weighted.
  Both are exact however a step is cut into batches.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from tqdm.auto import tqdm
from transformers import (
    DefaultFlowCallback,
    EarlyStoppingCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import TrainOutput

from hf_llm_recipes import checkpoints
from hf_llm_recipes.averaging import WeightSet
from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.data import propagation
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.exact_resume import read_progress
from hf_llm_recipes.methods import _frozen, _selection
from hf_llm_recipes.methods._forward import model_inputs, unwrapped
from hf_llm_recipes.methods._selection import PoolLabels, RoundRows
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import METHODS

log = logging.getLogger("hf_llm_recipes")

BASE, LABELS, RECORD = "base.pt", "labels.npz", "round.json"
SETTLED = 0.995  # agreement of two rounds' labels from which on another round would learn the same
PASSES = 10
TRAINING, LABELING = 0, 1  # domains of the random numbers


@METHODS.register
@dataclass(kw_only=True)
class SelfTraining(Method):
    """Rounds of label → choose → train from the base (Noisy Student: Xie et al. 2020,
    https://arxiv.org/abs/1911.04252; UST: Mukherjee & Awadallah 2020, https://arxiv.org/abs/2006.15315).

    Labels and their certainty come from several forwards with dropout on (UST, section 3). Departures:
    the surest rows are taken instead of a draw weighted by certainty, their labels are not weighted by
    variance, and classes are balanced to the pool's estimated shares instead of uniformly.

    Args:
        rounds: Trainings on labels of the pool, ≥ 1. Without a warm start, one on the labeled rows alone
            comes before them.
        passes: Forwards with dropout on a row; 0 or 1: one forward without. ``auto``: 10 where the model
            has dropout.
        confidence: What ranks the rows: ``bald`` (how little the passes disagree), ``entropy`` or
            ``probability`` of their mean. ``auto``: bald with passes, else probability. Has no meaning
            for regression, where the variance of the passes ranks.
        select_fraction: Share of the pool that the last round trains on, in (0, 1].
        growth: ``linear``: round k of R takes k/R of that; ``none``: all rounds take as much.
        prior: Class shares that the choice keeps to: ``estimated``, ``uniform``, ``labeled`` (those of
            the labeled rows), or one share a class. For single-label tasks; elsewhere the surest rows
            are taken.
        labeled_share: Share of a round's rows that are labeled ones, in [0, 1); they are repeated, whole,
            as often as comes nearest to it, and occur once at least.
        warm_start: Where the first round's labels come from: ``propagation`` (frozen features of labeled
            rows and pool), ``none`` (a model trained on the labeled rows), or ``auto``: propagation
            for single-label tasks.

    Raises:
        ValueError: a value out of range, or values that do not go together.
    """

    takes_unlabeled: ClassVar[bool] = True
    refused_callbacks: ClassVar[dict[str, str]] = {
        "ema": "ema has no place here: each round begins anew from the base"
    }
    for_task: ClassVar[dict[str, str]] = {"generation": "self_training_generation"}

    rounds: int = 3
    passes: int | Literal["auto"] = "auto"
    confidence: Literal["auto", "bald", "entropy", "probability"] = "auto"
    select_fraction: float = 1.0
    growth: Literal["linear", "none"] = "linear"
    prior: Literal["estimated", "uniform", "labeled"] | list[float] = "estimated"
    labeled_share: float = 0.25
    warm_start: Literal["auto", "propagation", "none"] = "auto"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; allowed: 1 or more")
        if self.passes != "auto" and self.passes < 0:
            raise ValueError(f"passes is {self.passes}; allowed: 0 or more, or auto")
        if self.confidence == "bald" and self.passes in (0, 1):
            raise ValueError(f"confidence is bald with passes: {self.passes}; allowed: 2 or more passes")
        if not 0 < self.select_fraction <= 1:
            raise ValueError(f"select_fraction is {self.select_fraction}; allowed: more than 0, at most 1")
        if not 0 <= self.labeled_share < 1:
            raise ValueError(f"labeled_share is {self.labeled_share}; allowed: 0 or more, less than 1")
        if isinstance(self.prior, list):
            fits = all(share > 0 for share in self.prior) and math.isclose(sum(self.prior), 1, abs_tol=1e-3)
            if not fits:
                raise ValueError(f"prior is {self.prior}; allowed: positive shares that sum to 1")

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        from transformers import TrainingArguments

        return TrainingArguments

    def build(self, parts: Parts) -> SelfTrainingTrainer:
        """Returns the Trainer; its ``train()`` goes through the rounds."""
        if parts.unlabeled is None or len(parts.unlabeled) == 0:
            raise DataError(
                "there are no unlabeled rows",
                where="data",
                hint="name them in `data.unlabeled`, or keep few labels with `data.labels_per_class`",
            )
        self._parts, problem = parts, parts.task.item_problem
        passes = self._passes(parts.model, problem)
        plan = RoundPlan(
            rounds=self.rounds,
            passes=passes,
            confidence=self._confidence(passes, problem),
            shares=[self._share(number) for number in range(1, self.rounds + 1)],
            prior=self._prior(parts, problem),
            labeled_share=self.labeled_share,
        )
        with frozen_quantised_base(parts.model):
            return SelfTrainingTrainer(
                task=parts.task,
                pool=parts.unlabeled,
                plan=plan,
                first_labels=self._first_labels if self._is_warm(problem) else None,
                model=parts.model,
                args=parts.arguments,
                train_dataset=parts.train,
                eval_dataset=parts.eval,
                data_collator=parts.collator,
                compute_metrics=parts.compute_metrics,
                compute_loss_func=parts.compute_loss,
                processing_class=parts.processing_class,
                callbacks=parts.callbacks,
            )

    def report(self, trainer: SelfTrainingTrainer) -> dict[str, Any]:
        """Every round's rows, class shares, agreement with the round before, and evaluation."""
        rounds = [{k: v for k, v in record.items() if k != "log"} for record in trainer.records]
        return {"rounds": rounds, "labels_settled": trainer.settled}

    def baselines(self, trainer: SelfTrainingTrainer) -> dict[str, np.ndarray]:
        """Classifiers on frozen features, on the test rows, where the first labels came from there."""
        if trainer.first_labels is None:
            return {}
        with trainer.base.swapped():
            return _frozen.look(self._parts).baselines()

    def _first_labels(self) -> tuple[np.ndarray, np.ndarray]:
        frozen = _frozen.look(self._parts)
        return frozen.target_NC, frozen.prior_C

    def _is_warm(self, problem: str) -> bool:
        if self.warm_start == "propagation" and problem != "single_label":
            raise ValueError(
                f"warm_start: propagation needs one class a row, not a {problem} task; allowed: auto, none"
            )
        return self.warm_start != "none" and problem == "single_label"

    def _passes(self, model: nn.Module, problem: str) -> int:
        has_dropout = _has_dropout(model)
        passes = (PASSES if has_dropout else 0) if self.passes == "auto" else self.passes
        if passes > 1 and not has_dropout:
            raise ValueError(f"passes is {passes}, but the model has no dropout; allowed: auto, 0")
        if problem == "regression" and passes < 2:
            raise ValueError(
                "a regression task ranks rows by the variance of passes with dropout; allowed: passes of 2 "
                "or more on a model with dropout (`tuning: lora` with `lora_dropout: 0.1` has some)"
            )
        return passes

    def _confidence(self, passes: int, problem: str) -> str:
        if problem == "regression":
            if self.confidence != "auto":
                raise ValueError(f"confidence: {self.confidence} has no effect on regression; allowed: auto")
            return "variance"
        if self.confidence == "bald" and passes < 2:
            raise ValueError("confidence is bald, but the model has no dropout; allowed: auto, probability")
        if self.confidence == "auto":
            return "bald" if passes > 1 else "probability"
        return self.confidence

    def _share(self, number: int) -> float:
        return self.select_fraction * (number / self.rounds if self.growth == "linear" else 1.0)

    def _prior(self, parts: Parts, problem: str) -> np.ndarray | None:
        """The class shares that are known before any label; None where they are estimated or not used."""
        if problem != "single_label" and self.prior != "estimated":
            raise ValueError(
                f"prior: {self.prior} has no effect on a {problem} task, where the surest rows are taken; "
                "allowed: estimated"
            )
        classes = parts.model.config.num_labels
        if isinstance(self.prior, list):
            if len(self.prior) != classes:
                raise ValueError(f"prior has {len(self.prior)} shares; allowed: {classes}, one a class")
            return np.asarray(self.prior)
        if self.prior == "uniform":
            return np.full(classes, 1 / classes)
        if self.prior == "labeled":
            counts_C = _label_counts(parts.train, classes) + 1  # a class without a label is not impossible
            return counts_C / counts_C.sum()
        return None


@dataclass(frozen=True)
class RoundPlan:
    """What the rounds do, all defaults resolved.

    Args:
        rounds: Trainings on labels of the pool.
        passes: Forwards with dropout; 0 or 1: one without.
        confidence: ``bald``, ``entropy``, ``probability``; ``variance`` for regression.
        shares: Of the pool, that each round chooses.
        prior: Class shares; None: estimated, or not used.
        labeled_share: Of a round's rows.
    """

    rounds: int
    passes: int
    confidence: str
    shares: list[float]
    prior: np.ndarray | None
    labeled_share: float


class SelfTrainingTrainer(Trainer):
    """A Trainer whose ``train()`` goes through the rounds.

    ``output_dir`` holds ``base.pt`` (the trained weights as they were at first) and, for each round,
    ``round-K/`` with ``labels.npz``, checkpoints and, once trained, ``round.json``. Earlier rounds'
    checkpoints are removed when a round has its first. While a round trains, ``state`` is the round's;
    callbacks other than transformers' own flow and progress see the steps of the whole run, and so
    does everybody after ``train()``.

    Args:
        task: Turns logits into items (``tasks.base.Task``).
        pool: Features without labels.
        plan: What the rounds do.
        first_labels: Gives probabilities (N, C) of the pool and its class shares, from the model as it was
            built; None: a first training on the labeled rows gives the first labels.
        **rest: Of ``Trainer``; ``train_dataset`` are the labeled rows.

    Raises:
        ValueError: FSDP or DeepSpeed, which hold the weights in pieces.
    """

    def __init__(
        self,
        *,
        task: Any,
        pool: Any,
        plan: RoundPlan,
        first_labels: Callable[[], tuple[np.ndarray, np.ndarray]] | None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("self_training restarts from whole weights; allowed: no FSDP and no DeepSpeed")
        self.task, self.pool, self.plan, self.first_labels = task, pool, plan, first_labels
        self.labeled, self.root = self.train_dataset, Path(self.args.output_dir)
        self.base = _Base(self.model)
        self.labels: PoolLabels | None = None  # of the present round
        self.number: int | None = None  # of the present round; None outside `train()`
        self.records: list[dict[str, Any]] = []  # one a finished round
        self.settled = False
        self.callback_handler = _WholeRun(self, self.callback_handler)
        self.add_callback(_OneRound(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Goes through the rounds; afterwards the model holds the last round's student.

        Args:
            resume_from_checkpoint: ``…/round-K/checkpoint-N``, or True for the newest.
            trial: Must be None: a search over rounds is none over steps.
            ignore_keys_for_eval: As in ``Trainer``.

        Raises:
            RunError: the checkpoint is no round's, or files of its run are missing.
        """
        if trial is not None:
            raise ValueError("a hyper-parameter search cannot drive rounds; allowed: trial=None")
        started, checkpoint = time.monotonic(), self._checkpoint(resume_from_checkpoint)
        first = self._start_anew() if checkpoint is None else self._take_up(checkpoint)
        complete = True
        for number in range(first, self.plan.rounds + 1):
            if not self._get_labels(number):
                break
            self.number = number
            try:
                mine = checkpoint if checkpoint is not None and _round_of(checkpoint) == number else None
                metrics = self._train_round(mine, ignore_keys_for_eval)
                if self._is_stopped():
                    complete = False
                    break
                self._close_round(metrics)
            finally:
                total = self._shown_steps
                self.number = None
        return self._finish(complete, total, {**(metrics or {}), "train_runtime": time.monotonic() - started})

    @property
    def _first(self) -> int:
        """The number of the first round: 0 where it has the labeled rows alone."""
        return 0 if self.first_labels is None else 1

    @property
    def _steps_before(self) -> int:
        return sum(record["steps"] for record in self.records if record["round"] < self.number)

    @property
    def _shown_steps(self) -> tuple[int, int]:
        """Steps of the whole run so far, and in all if the rounds to come are as long as this one."""
        left = self.plan.rounds - self.number + 1
        before = self._steps_before
        return before + self.state.global_step, before + left * self.state.max_steps

    def shown_state(self) -> TrainerState:
        """Returns the state as callbacks see it: that of the whole run."""
        if self.number is None:
            return self.state
        shown = copy.copy(self.state)
        shown.global_step, shown.max_steps = self._shown_steps
        return shown

    def _folder(self, number: int) -> Path:
        return self.root / f"round-{number}"

    def _checkpoint(self, given: str | bool | None) -> Path | None:
        if not given:
            return None
        path = checkpoints.newest_checkpoint(self.root) if given is True else Path(given)
        if path is None or _round_of(path) is None:
            raise RunError(
                f"no checkpoint of a round: {path}", where=str(self.root), allowed="…/round-K/checkpoint-N"
            )
        return path

    def _start_anew(self) -> int:
        """Makes ready for a run from the start; returns its first round."""
        self.records, self.labels, self.settled = [], None, False
        if self.args.should_save:  # what another run left here must not be taken for this one's
            for name in (LABELS, RECORD):
                for stale in self.root.glob(f"round-*/{name}"):
                    stale.unlink()
            if self.args.save_strategy != "no":
                self.root.mkdir(parents=True, exist_ok=True)
                with _aside(self.root / BASE) as side:
                    torch.save(self.base.state_dict(), side)
        self.accelerator.wait_for_everyone()
        return self._first

    def _take_up(self, checkpoint: Path) -> int:
        """Reads what a killed run has left; returns the round to go on with."""
        with _missing_told(self.root):
            saved = torch.load(self.root / BASE, map_location=self.args.device, weights_only=True)
            self.base.load_state_dict(saved)
            begun = [number for p in self.root.glob(f"round-*/{LABELS}") if (number := _number_of(p.parent))]
            first = max([_round_of(checkpoint), *begun])
            if first > 0:
                (self._folder(first) / LABELS).stat()
            self.records = [self._read_record(number) for number in range(self._first, first)]
        self.labels, self.settled = None, False
        return first

    def _read_record(self, number: int) -> dict[str, Any]:
        return json.loads((self._folder(number) / RECORD).read_text(encoding="utf-8"))

    def _get_labels(self, number: int) -> bool:
        """Takes the labels of a round, from disk or from the present model; False: there is no such round."""
        if number == 0:
            return True
        path = self._folder(number) / LABELS
        known = path.is_file()
        self.accelerator.wait_for_everyone()  # before one of them writes it
        if not known:
            before = self.labels
            made = self._make_labels(number)
            if before is not None:
                made.agreement = _selection.agreement(before.items_I, made.items_I)
                if made.agreement >= SETTLED:
                    share = f"{100 * made.agreement:.1f} %"
                    log.info(f"labels of the pool agree with the round before in {share}: no further round")
                    self.settled = True
                    return False
            if not self._choose(made, number, before):
                return False
            if self.args.should_save:
                path.parent.mkdir(parents=True, exist_ok=True)
                with _aside(path) as side, side.open("wb") as file:
                    np.savez(file, **asdict(made))
            self.accelerator.wait_for_everyone()
        with _missing_told(self.root), np.load(path) as stored:
            self.labels = PoolLabels(**{key: stored[key] for key in stored.files})
        return True

    def _make_labels(self, number: int) -> PoolLabels:
        if number > 1 or self.first_labels is None:
            return self._label_pool(number)
        self.base.copy_to_model()
        probabilities_NC, prior_C = self.first_labels()
        kind = "entropy" if self.plan.confidence == "entropy" else "probability"
        confidence_N = _selection.confidence_of(probabilities_NC[None], kind)
        counts_N = np.ones(len(probabilities_NC), np.int64)
        prior_C = prior_C if self.plan.prior is None else self.plan.prior
        return PoolLabels(probabilities_NC.argmax(1), counts_N, confidence_N, prior_C)

    def _choose(self, labels: PoolLabels, number: int, before: PoolLabels | None) -> bool:
        """Fills in the rows of a round, and the class shares where they are not there yet.

        Returns:
            Whether there are any.
        """
        count = max(1, round(self.plan.shares[number - 1] * len(self.pool)))
        if self.task.item_problem != "single_label":
            labels.chosen = _selection.surest(labels.confidence_N, count)
            return True
        if len(labels.prior_C) == 0:
            labels.prior_C = self._prior(labels, before)
        quota_C = _selection.quotas(labels.prior_C, count)
        labels.chosen = _selection.balanced(labels.items_I, labels.confidence_N, quota_C)
        return True

    def _prior(self, labels: PoolLabels, before: PoolLabels | None) -> np.ndarray:
        """Known shares; else those of the frozen features; else what the labels themselves say."""
        if self.plan.prior is not None:
            return self.plan.prior
        if before is not None and self.first_labels is not None:
            return before.prior_C
        classes = self.model.config.num_labels
        counts_C = _label_counts(self.labeled, classes)
        return propagation.estimate_prior(np.eye(classes)[labels.items_I], counts_C)

    @torch.no_grad()
    def _label_pool(self, number: int) -> PoolLabels:
        """Labels by the present model, longest rows first; each process labels the whole pool alike."""
        set_seed(round_seed(self.args.seed, number, LABELING))
        order = np.argsort(-self.task.lengths(self.pool), kind="stable")
        items: list[Any] = [None] * len(order)
        confidence_N = np.full(len(order), -np.inf)
        size = self.args.eval_batch_size
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()
        with _dropout(self.model, on=self.plan.passes > 1):
            for start in tqdm(range(0, len(order), size), f"labels for round {number}", disable=hidden):
                chosen = order[start : start + size]
                labels_I, confidence_I, rows_I = self._label_batch([self.pool[int(i)] for i in chosen])
                for place, row in enumerate(chosen):
                    own = rows_I == place
                    items[row] = labels_I[own]
                    if own.any():
                        confidence_N[row] = confidence_I[own].mean()
        counts_N = np.asarray([len(own) for own in items])
        return PoolLabels(np.concatenate(items), counts_N, confidence_N)

    def _label_batch(self, rows: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels of the items of some rows, how sure they are, and the row of each."""
        batch = self._prepare_inputs(self.data_collator(rows))
        passes = [self._forward(batch) for _ in range(max(1, self.plan.passes))]
        values_SIC = torch.stack([values for values, _ in passes]).double().cpu().numpy()
        rows_I = passes[0][1].cpu().numpy()
        if self.plan.confidence == "variance":
            return values_SIC.mean(0)[:, 0].astype(np.float32), -values_SIC.var(0)[:, 0], rows_I
        confidence_I = _selection.confidence_of(values_SIC, self.plan.confidence)
        return values_SIC.mean(0).argmax(-1), confidence_I, rows_I

    def _forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Probabilities of the items, or values (I, 1), and the row of each."""
        with self.accelerator.autocast():
            logits = self.model(**model_inputs(self.model, batch))["logits"]
        if self.task.item_problem == "regression":
            return logits.float().reshape(-1, 1), torch.arange(len(logits))
        items_IC, rows_I = self.task.items(logits, batch)
        return torch.softmax(items_IC, -1), rows_I

    def _train_round(self, checkpoint: Path | None, ignore_keys: list[str] | None) -> dict[str, float] | None:
        """One ordinary ``train()`` from the base, or what a checkpoint tells of one that is over already."""
        self.base.copy_to_model()
        self.optimizer, self.model_wrapped = None, self.model
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = 0
        chosen = 0 if self.labels is None else len(self.labels.chosen)
        times = _selection.repeats(len(self.labeled), chosen, self.plan.labeled_share)
        self.train_dataset = self.labeled if self.labels is None else self._rows_of_round(times)
        labeled = f"{times} x {len(self.labeled):,} labeled rows"
        log.info(f"round {self.number}: {labeled} and {chosen:,} of the pool")
        if self.number > 0:  # the one before them has the chance that a supervised training would have
            set_seed(round_seed(self.args.seed, self.number, TRAINING))
        with self._in_folder():
            if checkpoint is not None and self._is_over(checkpoint):
                return self._load_finished(checkpoint)
            given = None if checkpoint is None else str(checkpoint)
            return super().train(given, ignore_keys_for_eval=ignore_keys).metrics

    def _rows_of_round(self, times: int) -> Any:
        return RoundRows(self.labeled, times, self.pool, self.labels, self.task.item_problem)

    @contextmanager
    def _in_folder(self) -> Iterator[None]:
        """Checkpoints go to the round's folder inside the block."""
        self.args.output_dir = str(self._folder(self.number))
        try:
            yield
        finally:
            self.args.output_dir = str(self.root)

    def _is_over(self, checkpoint: Path) -> bool:
        """Whether a round of that checkpoint has no step left; the stock Trainer would take one more."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        ended_early = self.args.load_best_model_at_end and (checkpoint.parent / RECORD).is_file()
        return (
            state.global_step >= state.max_steps
            or ended_early
            or read_progress(checkpoint).get("over", False)
        )

    def _load_finished(self, checkpoint: Path) -> dict[str, float] | None:
        """Takes a finished round's student; returns its loss where the checkpoint tells it."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        progress = read_progress(checkpoint)
        return {"train_loss": progress["train_loss"]} if progress else None

    def _is_stopped(self) -> bool:
        """Whether somebody wants the run to end here, not just this round."""
        over = self.state.global_step >= self.state.max_steps
        callbacks = self.callback_handler.callbacks
        if any(isinstance(c, GracefulStop) and c.received is not None for c in callbacks):
            return not (over and self.number == self.plan.rounds)
        return not over and not any(
            isinstance(c, EarlyStoppingCallback)
            and c.early_stopping_patience_counter >= c.early_stopping_patience
            for c in callbacks
        )

    def _close_round(self, metrics: dict[str, float] | None) -> None:
        """Judges a round's student and writes down what the round was.

        A run that is taken up behind a round's last checkpoint judges and logs it again; what else was found
        out of the round is kept.
        """
        path = self._folder(self.number) / RECORD
        known = self._read_record(self.number) if path.is_file() else {}
        record = {
            **known,
            "round": self.number,
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "loss": (metrics or known).get("train_loss", known.get("loss")),
            **self._described(),
        }
        _write_json(path, record, self.args.should_save)
        if self.eval_dataset is not None:
            found = self.evaluate()
            timing = ("time", "per_second")
            record["eval"] = {k: v for k, v in found.items() if not k.endswith(timing)}
        before = self._steps_before
        made = [{**entry, "step": entry["step"] + before} for entry in self.state.log_history]
        record["log"] = known.get("log", made)  # that of a round which is judged again lacks its last line
        _write_json(path, record, self.args.should_save)
        self.records.append(record)

    def _described(self) -> dict[str, Any]:
        if self.labels is None:
            return {"pool_rows": 0}
        labels, problem = self.labels, self.task.item_problem
        found: dict[str, Any] = {
            "pool_rows": len(labels.chosen),
            "pool_share": round(len(labels.chosen) / len(self.pool), 4),
        }
        if problem == "single_label":
            counts_C = np.bincount(labels.items_I[labels.chosen], minlength=self.model.config.num_labels)
            found["classes"] = counts_C.tolist()
            found["prior"] = [round(float(share), 4) for share in labels.prior_C]
        if not math.isnan(labels.agreement):
            found["agreement"] = round(float(labels.agreement), 4)
        return found

    def _finish(self, complete: bool, shown: tuple[int, int], metrics: dict[str, float]) -> TrainOutput:
        """Makes the state that of the whole run."""
        before = self.records[:-1] if complete else self.records
        steps, planned = shown
        history = [entry for record in self.records for entry in record["log"]]
        if not complete:
            offset = steps - self.state.global_step
            history += [{**entry, "step": entry["step"] + offset} for entry in self.state.log_history]
        self.state.global_step, self.state.max_steps = steps, steps if complete else planned
        self.state.epoch = (self.state.epoch or 0) + sum(record["epochs"] or 0 for record in before)
        self.state.log_history = history
        if complete and self.records[-1]["loss"] is not None:
            metrics["train_loss"] = self.records[-1]["loss"]
        return TrainOutput(steps, metrics.get("train_loss", math.nan), metrics)

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        """Adds the number of the round."""
        super().log(logs if self.number is None else {**logs, "round": self.number}, *rest, **named)


class _OneRound(TrainerCallback):
    """Deletes earlier rounds' checkpoints once this one has its first: it is whole by then."""

    def __init__(self, trainer: SelfTrainingTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if args.should_save:
            for old in self.trainer.root.glob("round-*/checkpoint-*"):
                number = _round_of(old)
                if number is not None and number < self.trainer.number:
                    checkpoints.discard(old)


class _Base(WeightSet):
    """The trained weights as they were at first, and every buffer (batch norm's statistics change too)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for name, buffer in model.named_buffers():
            self.parameters[name], self.values[name] = buffer, buffer.detach().clone()


class _WholeRun(CallbackHandler):
    """Shows the steps of the whole run to all callbacks but those that steer or draw the round's loop."""

    def __init__(self, trainer: SelfTrainingTrainer, handler: CallbackHandler) -> None:
        self.__dict__.update(handler.__dict__)
        self.trainer = trainer

    def call_event(self, event: str, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """Calls them in order, as upstream does."""
        shown = self.trainer.shown_state() if state is self.trainer.state else state
        for callback in self.callbacks:
            own = isinstance(callback, DefaultFlowCallback | ProgressCallback)
            changed = getattr(callback, event)(
                args,
                state if own else shown,
                control,
                model=self.model,
                processing_class=self.processing_class,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                **more,
            )
            control = control if changed is None else changed
        return control


@contextmanager
def _dropout(model: nn.Module, *, on: bool) -> Iterator[None]:
    """Dropout on or off inside the block, batch norm's statistics fixed; every mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(on)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _has_dropout(model: nn.Module) -> bool:
    """Whether a forward in ``train()`` drops anything; some dropout is no module but an option."""
    if any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules()):
        return True
    values = unwrapped(model).config.to_dict().items()
    return any("drop" in key and type(value) is float and value > 0 for key, value in values)


def _label_counts(rows: Any, classes: int) -> np.ndarray:
    return np.bincount(np.asarray(rows["labels"][:], dtype=np.int64), minlength=classes)


def round_seed(*parts: int) -> int:
    """Returns a seed made of a run's, a round's number and what it is for."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _number_of(folder: Path) -> int | None:
    """The number of a round's folder."""
    found = re.fullmatch(r"round-(\d+)", folder.name)
    return int(found[1]) if found else None


def _round_of(checkpoint: Path) -> int | None:
    return _number_of(checkpoint.parent)


def _write_json(path: Path, values: dict[str, Any], wanted: bool) -> None:
    if wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path) as side:
            side.write_text(json.dumps(values, indent=2), encoding="utf-8")


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Gives a file to fill beside ``path``, and renames it once filled."""
    side = path.with_name(f".{path.name}.part")
    try:
        yield side
        with side.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(side, path)
    finally:
        side.unlink(missing_ok=True)


@contextmanager
def _missing_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(
            f"the run cannot go on: `{error.filename}` is missing",
            where=str(folder),
            hint="start a new run with another output",
        ) from error
