"""Preferences: a prompt with a better and a worse answer.

Shapes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language, _prompts
from hf_llm_recipes.tasks._language_task import LanguageTask, Writing
from hf_llm_recipes.tasks._rows import check_columns, input_length
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

BOOTSTRAP = 1000
GENERATION = {"max_new_tokens": 64, "do_sample": False}


@TASKS.register
@dataclass(kw_only=True)
class Preference(LanguageTask):
    """A prompt, a chosen answer and a rejected one; for `method: dpo`.

    Judged by how often the model finds the chosen answer likelier: by the sum of its log-probabilities,
    ``preference_accuracy``, and by their mean a token, which does not favour short answers,
    ``preference_accuracy_per_token``.

    Args:
        prompt: Column of the prompt: a text, or messages.
        chosen: Column of the better answer: a text, one message, or the whole conversation up to it.
        rejected: Column of the worse one.
        system: A system message before each prompt that has none.
        max_length: Tokens that a prompt with an answer may have; longer rows are left out and counted.
            None: what the model can.
        bad_rows: Rows in which nothing is preferred (an empty answer, or twice the same): ``refuse``
            stops and names the first, ``drop`` counts them.
        generation: Of transformers' ``GenerationConfig``, for ``examples`` and ``predict``.
        examples: Prompts that are answered and shown after the run.

    Raises:
        ValueError: ``max_length`` too small, or an unknown key of ``generation``.
    """

    methods: ClassVar[tuple[str, ...] | None] = ("dpo",)
    writes: ClassVar[bool] = True

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str | None = None
    max_length: int | None = None
    bad_rows: Literal["refuse", "drop"] = "refuse"
    generation: dict[str, Any] | None = None
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 8:
            raise ValueError(f"max_length is {self.max_length}; allowed: 8 or more tokens")
        _language.check_generation(self.generation)

    @property
    def input_columns(self) -> list[str]:
        """The prompt."""
        return [self.prompt]

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns pairs of every split, as text or messages and as token ids; see ``Task.prepare``."""
        made: dict[str, Any] = {"eval": None}
        findings = {}
        for split in splits(loaded):
            made[split], findings[split] = self._pairs(
                getattr(loaded, split), tokenizer, model_config, f"{split} split"
            )
        notes = _prompts.left_out_notes(findings)
        return Prepared(**made, config={}, collator=None, findings=findings, notes=notes)

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns pairs of new rows."""
        return self._pairs(rows, tokenizer, model_config, "data")

    def collator(self, tokenizer: Any) -> Any:
        """None: trl makes the batches."""
        return None

    def loss(self, label_smoothing: float) -> Any:
        """The method's own.

        Raises:
            ValueError: label smoothing is `trainer.label_smoothing` here.
        """
        if label_smoothing:
            raise ValueError("label_smoothing_factor has no effect; trl's key is `label_smoothing`")

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """How often the chosen answer is likelier, with intervals over rows."""
        sums_N2, tokens_N2 = _answers(model, features)
        means_N2 = sums_N2 / tokens_N2
        columns = {
            "row": features["row"],
            "chosen_logprob": sums_N2[:, 0].tolist(),
            "rejected_logprob": sums_N2[:, 1].tolist(),
            "chosen_tokens": tokens_N2[:, 0].tolist(),
            "rejected_tokens": tokens_N2[:, 1].tolist(),
        }
        return Judged(preference_scores(sums_N2, means_N2), columns)

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few chosen answers."""
        ids = [(p + a)[:64] for p, a in zip(features["prompt_ids"], features["chosen_ids"], strict=True)]
        made = Dataset.from_dict({"input_ids": ids})
        return _language.probe_causal(model, made, processor.pad_token_id)

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of bare prompts."""
        return Dataset.from_dict({self.prompt: list(inputs)})

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated"}`` a row."""
        check_columns(rows, [("prompt", self.prompt)], "data")
        prompts = [
            _prompts.as_prompt(value, processor, f"data, row {i}", self.system)
            for i, value in enumerate(rows[self.prompt])
        ]
        given = self.writing(processor).settings
        ids = [_prompts.prompt_ids(prompt, processor) for prompt in prompts]
        return [{"generated": text} for text in _language.written(model, ids, processor, given)]

    def writing(self, processor: Any) -> Writing:
        """Answers messages where the tokenizer has a chat template, else goes on with a text."""
        settings = {**GENERATION, **(self.generation or {})}
        return Writing(settings, chats=bool(processor.chat_template), system=self.system)

    def _pairs(self, rows: Any, tokenizer: Any, config: Any, where: str) -> tuple[Dataset, dict]:
        wanted = [("prompt", self.prompt), ("chosen", self.chosen), ("rejected", self.rejected)]
        check_columns(rows, wanted, where)
        return _prompts.rows_within(
            rows,
            input_length(self.max_length, tokenizer, config),
            where,
            lambda row, place: self._pair(row, tokenizer, place),
            lambda pair: len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])),
            drop_bad=self.bad_rows == "drop",
        )

    def _pair(self, row: dict, tokenizer: Any, where: str) -> dict[str, Any]:
        prompt = _prompts.as_prompt(row[self.prompt], tokenizer, where, self.system)
        answers = {
            name: _prompts.as_answer(row[column], prompt, f"{where}, {column}")
            for name, column in (("chosen", self.chosen), ("rejected", self.rejected))
        }
        if answers["chosen"] == answers["rejected"]:
            raise DataError(
                "both answers are the same: nothing is preferred", where=where, hint="drop the row"
            )
        ids = {
            f"{name}_ids": _prompts.answer_ids(prompt, answer, tokenizer, where)
            for name, answer in answers.items()
        }
        return {"prompt": prompt, **answers, "prompt_ids": _prompts.prompt_ids(prompt, tokenizer), **ids}


def preference_scores(sums_N2: np.ndarray, means_N2: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Returns scores of log-probabilities, chosen answers in the first column; a tie counts half.

    ``margin`` is the mean difference of the answers' mean log-probabilities, in nats a token.
    """
    hits_N3 = np.stack(
        [
            0.5 + 0.5 * np.sign(sums_N2[:, 0] - sums_N2[:, 1]),
            0.5 + 0.5 * np.sign(means_N2[:, 0] - means_N2[:, 1]),
            means_N2[:, 0] - means_N2[:, 1],
        ],
        axis=1,
    )
    names = ("preference_accuracy", "preference_accuracy_per_token", "margin")

    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        return dict(zip(names, map(float, weights_N @ hits_N3 / weights_N.sum()), strict=True))

    rows = len(sums_N2)
    return {
        "problem": "language",
        "rows": rows,
        **statistics(np.ones(rows)),
        "intervals_95": evaluation.bootstrap_intervals(statistics, rows, BOOTSTRAP, seed),
        "notes": [],
        "bootstrap": BOOTSTRAP,
        "seed": seed,
    }


def _answers(model: Any, features: Any) -> tuple[np.ndarray, np.ndarray]:
    """The summed log-probability of each answer behind its prompt and its number of tokens, (N, 2)."""
    sums, counts = [], []
    for row in features:
        pair = [answer_logprob(model, row["prompt_ids"], row[f"{n}_ids"]) for n in ("chosen", "rejected")]
        sums.append(pair)
        counts.append([len(row["chosen_ids"]), len(row["rejected_ids"])])
    return np.asarray(sums), np.asarray(counts)


def answer_logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Returns log p(answer | prompt) in nats."""
    ids_1T = torch.tensor([[*prompt, *answer]], device=model.device)
    losses_1T = _language.next_token_losses(model, ids_1T, torch.ones_like(ids_1T))
    return -float(losses_1T[0, len(prompt) - 1 :].double().sum())
