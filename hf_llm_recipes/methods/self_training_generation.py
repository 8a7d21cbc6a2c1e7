"""Self-training for generation: sample answers to unlabeled prompts, keep what agrees, train again.

    task: {name: generation, reward: last_number}
    method: self_training
    data: {name: …, unlabeled: prompts.jsonl}

`method: self_training` is this class where the task is `generation`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.methods import _selection
from hf_llm_recipes.methods._language_trainer import LanguageTrainer
from hf_llm_recipes.methods._selection import PoolLabels
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.self_training import (
    LABELING,
    RECORD,
    RoundPlan,
    SelfTrainingTrainer,
    _aside,
    _missing_told,
    _write_json,
    round_seed,
)
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import METHODS
from hf_llm_recipes.rundir import full_disk_told

log = logging.getLogger("hf_llm_recipes")

FIRST = "first.pt"  # the weights after the training on the labeled rows alone
BEST = "best.pt"  # those after the round whose answers are worth most, where one is worth more


@METHODS.register
@dataclass(kw_only=True)
class SelfTrainingGeneration(Method):
    """Rounds of sample → agree → keep the confident → train from the base, labeled rows mixed in
    (SemiEvol: Luo et al. 2024, https://arxiv.org/abs/2410.14745; ReST-EM: Singh et al. 2023,
    https://arxiv.org/abs/2312.06585).

    A first training on the labeled rows makes the model that answers the prompts of the pool. It is that of
    `method: supervised` with the same ``trainer:`` section, bit for bit: the floor that the guard falls back
    on. Each round takes as many steps again. Departures
    from SemiEvol: one model with several samples in place of several models, no retrieved examples, and
    agreement in place of the entropy of the answer's tokens.

    Args:
        rounds: Trainings on answers to the pool after the first one on the labeled rows, ≥ 1.
        samples: Answers written to each prompt, ≥ 2.
        temperature: Of the samples, > 0.
        accept: ``agreement``: the commonest answer of a prompt, as the task's reward reads answers
            (its last number, its text); or ``reward``: the best of a reward that needs no answer.
        least: What an answer needs to be taken: share of the samples that agree, in (0, 1], or a reward.
        select_fraction: Share of the prompts with such an answer, the surest, that is trained on, in
            (0, 1].
        strata: Of how many parts of the pool the surest are taken, each as large a share of them as it is
            of the pool; a part holds answers of alike length in words (quantiles). The surest of the pool
            as a whole (1) are mostly short ones.
        labeled_share: Share of a round's rows that are labeled ones, in [0, 1); they are repeated, whole.
        guard: Whether the weights of the training whose answers to the eval split's prompts are worth most
            are kept at the end, the first training among them; of equals the earlier: the pool has to show
            that it helps. Without an eval split the last round's are.

    Raises:
        ValueError: a value out of range.
    """

    takes_unlabeled: ClassVar[bool] = True
    refused_callbacks: ClassVar[dict[str, str]] = {
        "ema": "ema has no place here: each round begins anew from the base"
    }
    comparable: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...] | None] = ("generation",)

    rounds: int = 2
    samples: int = 4
    temperature: float = 0.8
    accept: Literal["agreement", "reward"] = "agreement"
    least: float = 0.5
    select_fraction: float = 0.5
    strata: int = 4
    labeled_share: float = 0.3
    guard: bool = True

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("samples", 2), ("strata", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: above 0")
        if self.accept == "agreement" and not 0 < self.least <= 1:
            raise ValueError(f"least is {self.least}; allowed: more than 0, at most 1")
        if not 0 < self.select_fraction <= 1:
            raise ValueError(f"select_fraction is {self.select_fraction}; allowed: more than 0, at most 1")
        if not 0 <= self.labeled_share < 1:
            raise ValueError(f"labeled_share is {self.labeled_share}; allowed: 0 or more, less than 1")

    @classmethod
    def arguments_class(cls) -> type:
        """``transformers.TrainingArguments``."""
        from transformers import TrainingArguments

        return TrainingArguments

    def build(self, parts: Parts) -> WritingRounds:
        """Returns the Trainer; its ``train()`` goes through the rounds.

        Raises:
            DataError: there is no pool.
            ValueError: a reward that needs answers cannot accept them.
        """
        if parts.unlabeled is None or len(parts.unlabeled) == 0:
            raise DataError(
                "there are no unlabeled prompts", where="data", hint="name them: `data.unlabeled`"
            )
        if self.accept == "reward" and parts.task.answer_column is not None:
            raise ValueError(
                f"accept is reward, but the reward {parts.task.reward} needs the answer; allowed: agreement"
            )
        plan = RoundPlan(
            rounds=self.rounds,
            passes=0,
            confidence="probability",
            shares=[self.select_fraction] * self.rounds,
            prior=None,
            labeled_share=self.labeled_share,
        )
        with frozen_quantised_base(parts.model):
            return WritingRounds(
                method=self,
                pool_rows=parts.unlabeled_rows,
                eval_rows=parts.eval_rows,
                task=parts.task,
                pool=parts.unlabeled,
                plan=plan,
                first_labels=None,
                model=parts.model,
                args=parts.arguments,
                train_dataset=parts.train,
                eval_dataset=parts.eval,
                data_collator=parts.collator,
                processing_class=parts.processing_class,
                callbacks=parts.callbacks,
            )

    def variants(self, trainer: WritingRounds) -> dict[str, AbstractContextManager]:
        """The first training's weights, where a round's are kept."""
        first = trainer.kept_round == 0 or len(trainer.records) == 1
        return {} if first else {"first_training": trainer.first_weights()}

    def report(self, trainer: WritingRounds) -> dict[str, Any]:
        """Every round's prompts, how many had an answer that was taken, and how sure they were."""
        rounds = [{k: v for k, v in record.items() if k != "log"} for record in trainer.records]
        kept = {} if trainer.kept_round is None else {"kept_round": trainer.kept_round}
        none = {} if trainer.nothing_taken is None else {"nothing_taken_in_round": trainer.nothing_taken}
        return {"rounds": rounds, "labels_settled": trainer.settled, **none, **kept}


class WritingRounds(SelfTrainingTrainer, LanguageTrainer):
    """A Trainer that goes through rounds whose labels of the pool are texts.

    ``PoolLabels.items_I`` holds a text for each prompt, empty where none answers, and ``confidence_N`` the
    share of samples that agree, or the reward, −inf where that is too little.

    Args:
        method: Its settings.
        pool_rows: The pool as it was read.
        eval_rows: The eval split as it was read, or None.
        **rest: Of ``SelfTrainingTrainer``.
    """

    def __init__(
        self, *, method: SelfTrainingGeneration, pool_rows: Any, eval_rows: Any, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.method, self.pool_rows, self.eval_rows = method, pool_rows, eval_rows
        self.nothing_taken: int | None = None  # round for which no answer could be taken
        self.kept_round: int | None = None  # whose weights the model holds, where the guard chose
        if method.guard and not self._guarded:
            log.warning(
                "without an eval split nobody looks whether the pool's answers do harm: the last round's "
                "weights are kept"
            )

    @property
    def _guarded(self) -> bool:
        return self.method.guard and self.eval_dataset is not None and self.eval_rows is not None

    def _close_round(self, metrics: dict[str, float] | None) -> None:
        """Also judges what the round's student answers; keeps the first one's and the best one's weights."""
        super()._close_round(metrics)
        record = self.records[-1]
        if record["round"] == 0:
            self._write_weights(FIRST, 0)
        if not self._guarded or "eval_reward" in record:
            return
        self.model.eval()
        given = (self.model, self.eval_dataset, self.eval_rows, self.processing_class)
        record["eval_reward"] = self.task.judge_model(*given).metrics["reward"]
        log.info(f"round {record['round']}: answers to the eval split are worth {record['eval_reward']:.3f}")
        if self.args.should_save:
            if self._best()["round"] == record["round"] > 0:
                self._write_weights(BEST, record["round"])
            _write_json(self._folder(record["round"]) / RECORD, record, True)

    def _write_weights(self, name: str, number: int) -> None:
        """Puts the model's weights on disk."""
        if self.args.should_save:
            values = {name: p.detach().cpu() for name, p in self.base.parameters.items()}
            with _aside(self.root / name) as side, full_disk_told(side, "free some space"):
                torch.save({"round": number, "values": values}, side)

    @torch.no_grad()
    def _take_weights(self, name: str) -> None:
        """Gives the model the weights on disk."""
        self.accelerator.wait_for_everyone()
        with _missing_told(self.root):
            saved = torch.load(self.root / name, map_location="cpu", weights_only=True)
        for name, parameter in self.base.parameters.items():
            parameter.copy_(saved["values"][name])

    @contextmanager
    def first_weights(self) -> Iterator[None]:
        """The model has the first training's weights inside the block."""
        own = {name: p.detach().clone() for name, p in self.base.parameters.items()}
        self._take_weights(FIRST)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.base.parameters.items():
                    parameter.copy_(own[name])

    def _best(self) -> dict[str, Any]:
        """The record of the round whose answers are worth most; of equals the earliest."""
        return max(self.records, key=lambda record: (record["eval_reward"], -record["round"]))

    def _finish(self, complete: bool, shown: tuple[int, int], metrics: dict[str, float]) -> TrainOutput:
        """Also gives the model the best round's weights."""
        if complete and self._guarded:
            self.kept_round, last = self._best()["round"], self.records[-1]["round"]
            if self.kept_round != last:
                self._take_weights(BEST if self.kept_round else FIRST)
                before = "the labeled rows alone" if self.kept_round == 0 else f"round {self.kept_round}"
                log.warning(
                    f"the eval split's answers are worth {self._best()['eval_reward']:.3f} after {before}, "
                    f"{self.records[-1]['eval_reward']:.3f} after round {last}: the former are kept"
                )
        return super()._finish(complete, shown, metrics)

    def _label_pool(self, number: int) -> PoolLabels:
        set_seed(round_seed(self.args.seed, number, LABELING))
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()
        training = self.model.training
        self.model.eval()
        size = max(1, self.args.eval_batch_size // self.method.samples)
        texts, confidence = [], []
        for start in tqdm(range(0, len(self.pool), size), f"answers for round {number}", disable=hidden):
            rows = self.pool[start : start + size]
            written = self.task.sampled(
                *(self.model, rows["prompt_ids"], self.processing_class),
                samples=self.method.samples,
                temperature=self.method.temperature,
            )
            for place, few in zip(rows["row"], written, strict=True):
                text, sure = self._accepted_answer(few, int(place))
                texts.append(text)
                confidence.append(sure)
        self.model.train(training)
        return PoolLabels(np.asarray(texts), np.ones(len(texts), np.int64), np.asarray(confidence))

    def _accepted_answer(self, written: list[str], place: int) -> tuple[str, float]:
        """The best answer and how sure it is, −inf where it must not be taken."""
        if self.method.accept == "agreement":
            text, sure = agreed(written, self.task.answer_key)
        else:
            row = self.pool_rows[place]
            rewards = [self.task.rewarded(text, row, place) if text.strip() else -np.inf for text in written]
            best = int(np.argmax(rewards))
            text, sure = written[best], rewards[best]
        text = text if text.strip() else ""
        return text, (sure if text and sure >= self.method.least else -np.inf)

    def _choose(self, labels: PoolLabels, number: int, before: PoolLabels | None) -> bool:
        taken = int(np.isfinite(labels.confidence_N).sum())
        if taken == 0:
            self.nothing_taken = number
            log.warning(
                f"round {number}: no prompt of the pool has an answer that could be taken, so the training "
                "ends with the one before; lower `method.least`, train longer on the labeled rows, or add "
                "labeled rows"
            )
            return False
        count = max(1, round(self.plan.shares[number - 1] * taken))
        given = (_words(labels), labels.confidence_N, count)
        labels.chosen = _selection.surest_of_strata(*given, self.method.strata)
        return True

    def _rows_of_round(self, times: int) -> Dataset:
        return WrittenRows(self.labeled, times, self.pool, self.labels, self.task, self.processing_class)

    def _described(self) -> dict[str, Any]:
        if self.labels is None:
            return {"pool_rows": 0}
        labels = self.labels
        return {
            "pool_rows": len(labels.chosen),
            "answers_taken": int(np.isfinite(labels.confidence_N).sum()),
            "mean_confidence": round(float(labels.confidence_N[labels.chosen].mean()), 4),
            "mean_words": round(float(_words(labels)[labels.chosen].mean()), 4),
        }


def _words(labels: PoolLabels) -> np.ndarray:
    """The number of words of each text, (N,); 0 where no text answers."""
    return np.asarray([len(str(text).split()) for text in labels.items_I])


class WrittenRows(Dataset):
    """The labeled rows, as often as wanted, then the chosen prompts of the pool with their texts."""

    def __init__(
        self, labeled: Any, times: int, pool: Any, labels: PoolLabels | None, task: Any, processor: Any
    ) -> None:
        self.labeled, self.pool, self.labels = labeled, pool, labels
        self.task, self.processor = task, processor
        self.num_labeled = times * len(labeled)

    def __len__(self) -> int:
        """Rows, repeated ones counted as often as they occur."""
        return self.num_labeled + (0 if self.labels is None else len(self.labels.chosen))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a row with its labels."""
        if index < self.num_labeled:
            return self.labeled[index % len(self.labeled)]
        number = int(self.labels.chosen[index - self.num_labeled])
        text = str(self.labels.items_I[number])
        return self.task.learned(self.pool[number], text, self.processor)


def agreed(written: list[str], key_of: Any) -> tuple[str, float]:
    """Returns the first text of the commonest answer, and the share of all texts that give it.

    Args:
        written: Samples of one prompt.
        key_of: A text -> what it answers, None where it answers nothing. Ties go to the earlier answer.
    """
    keys = [key_of(text) for text in written]
    counts = Counter(key for key in keys if key is not None)
    if not counts:
        return "", 0.0
    commonest, count = counts.most_common(1)[0]
    return written[keys.index(commonest)], count / len(written)
