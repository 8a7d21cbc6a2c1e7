"""Generation: a prompt -> a text, worth what a reward says.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_llm_recipes import evaluation
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language, _prompts, _rewards
from hf_llm_recipes.tasks._language_task import LanguageTask, Writing
from hf_llm_recipes.tasks._packing import IGNORED, PaddedCollator
from hf_llm_recipes.tasks._rows import check_columns, input_length
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

BOOTSTRAP = 1000
KEPT = ("input_ids", "labels")  # of a row's features, what a supervised batch is made of


@TASKS.register
@dataclass(kw_only=True)
class Generation(LanguageTask):
    """Prompts with known answers, or with a reward that needs none; for supervised training and GRPO.

    Judged by the mean reward of what the model writes to the test prompts. In `method: supervised` the
    answers are learned, prompts are not; a row without an answer can be judged and rewarded only.

    Args:
        prompt: Column of the prompt: a text, or messages.
        answer: Column of the answer; None where the reward needs none.
        reward: ``exact_match``, ``contains``, ``last_number``, ``token_f1``, or ``module:function``, a
            function of the text and the row as it was read, which gives a number.
        system: A system message before each prompt that has none.
        max_length: Tokens that a prompt with its answer may have; longer rows are left out and counted.
            None: what the model can.
        max_new_tokens: Of what the model writes when it is judged.
        generation: More of transformers' ``GenerationConfig``; greedy unless it says otherwise.
        examples: Prompts that are answered and shown after the run.

    Raises:
        ValueError: a value out of range, an unknown reward or key of ``generation``.
    """

    methods: ClassVar[tuple[str, ...] | None] = (
        *("supervised", "self_training", "self_training_generation"),
        *("grpo", "distillation"),
    )

    writes: ClassVar[bool] = True

    prompt: str = "prompt"
    answer_column: str | None = "answer"
    reward: str = "exact_match"
    system: str | None = None
    max_length: int | None = None
    max_new_tokens: int = 64
    generation: dict[str, Any] | None = None
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_length", 8), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; allowed: {least} or more tokens")
        if "max_new_tokens" in (self.generation or {}):
            raise ValueError("generation.max_new_tokens stands in the key `max_new_tokens`")
        _language.check_generation(self.generation)
        if self.answer_column is None and self.reward in _rewards.NAMED:
            raise ValueError(f"reward is {self.reward}, which needs an answer: name `answer_column`")
        self.reward_function = _rewards.reward_of(self.reward)

    @property
    def input_columns(self) -> list[str]:
        """The prompt."""
        return [self.prompt]

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns prompts with their answers as ids of every split; see ``Task.prepare``."""
        made: dict[str, Any] = {"eval": None}
        findings = {}
        for split in [*splits(loaded), *(["unlabeled"] if loaded.unlabeled is not None else [])]:
            where = "unlabeled rows" if split == "unlabeled" else f"{split} split"
            made[split], findings[split] = self._features(
                *(getattr(loaded, split), tokenizer, model_config, where), labeled=split != "unlabeled"
            )
        notes = _prompts.left_out_notes(findings)
        collator = self.collator(tokenizer)
        return Prepared(**made, config={}, collator=collator, findings=findings, notes=notes)

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns features of new rows."""
        return self._features(rows, tokenizer, model_config, "data", labeled=labeled)

    def collator(self, tokenizer: Any) -> Any:
        """Rows -> a padded batch."""
        return AnswerCollator(PaddedCollator(pad_token_id=tokenizer.pad_token_id))

    def loss(self, label_smoothing: float) -> Any:
        """None: the Trainer of language models has it."""
        return None

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """The mean reward of what the model writes, with its interval over rows."""
        texts = self._written(model, features["prompt_ids"], processor)
        asked = rows.select(features["row"])
        rewards_N = np.asarray(
            [self.rewarded(text, row, i) for text, row, i in zip(texts, asked, features["row"], strict=True)]
        )
        columns = {"row": list(features["row"]), "generated": texts, "reward": rewards_N.tolist()}
        return Judged(_scores(rewards_N), columns)

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few prompts."""
        made = Dataset.from_dict({"input_ids": [ids[-64:] for ids in features["prompt_ids"]]})
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
        ids = [_prompts.prompt_ids(prompt, processor) for prompt in prompts]
        return [{"generated": text} for text in self._written(model, ids, processor)]

    def rewarded(self, text: str, row: dict[str, Any], place: int) -> float:
        """Returns what a text is worth as an answer to a row.

        Args:
            text: What a model wrote.
            row: As it was read.
            place: Its number.

        Raises:
            DataError: the reward function raised, or gave no finite number.
        """
        seen = row if self.answer_column is None else {**row, "answer": row[self.answer_column]}
        return _rewards.rewarded(self.reward, self.reward_function, text, seen, f"row {place}")

    def answer_key(self, text: str) -> str | None:
        """Returns what a text answers, as the reward reads it; None where it answers nothing."""
        return _rewards.answer_key(self.reward, text)

    def sampled(
        self, model: Any, prompts: list[list[int]], processor: Any, *, samples: int, temperature: float
    ) -> list[list[str]]:
        """Returns several answers that the model writes to each prompt.

        Args:
            model: In ``eval()``, on its device.
            prompts: Token ids.
            processor: The tokenizer.
            samples: Answers of each prompt.
            temperature: > 0.
        """
        given = {
            **(self.generation or {}),
            "do_sample": True,
            "temperature": temperature,
            "max_new_tokens": self.max_new_tokens,
        }
        repeated = [ids for ids in prompts for _ in range(samples)]
        texts = _language.written(model, repeated, processor, given)
        return [texts[at : at + samples] for at in range(0, len(texts), samples)]

    def learned(self, row: dict[str, Any], text: str, processor: Any) -> dict[str, Any]:
        """Returns a pool row's features with a text as its answer."""
        prompt, before = row["prompt"], row["prompt_ids"]
        answer = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        behind = _prompts.answer_ids(prompt, answer, processor, f"row {row['row']}")
        return {"input_ids": [*before, *behind], "labels": [IGNORED] * len(before) + behind}

    def writing(self, processor: Any) -> Writing:
        """Answers messages where the tokenizer has a chat template, else goes on with a text."""
        settings = {"do_sample": False, **(self.generation or {}), "max_new_tokens": self.max_new_tokens}
        return Writing(settings, chats=bool(processor.chat_template), system=self.system)

    def with_settings(self, given: dict[str, Any]) -> Generation:
        """Returns a copy that writes with other values of ``GenerationConfig``; what is not given stays."""
        more = {key: value for key, value in given.items() if key != "max_new_tokens"}
        most = given.get("max_new_tokens", self.max_new_tokens)
        return dataclasses.replace(self, max_new_tokens=most, generation={**(self.generation or {}), **more})

    def _written(self, model: Any, ids: list[list[int]], processor: Any) -> list[str]:
        return _language.written(model, ids, processor, self.writing(processor).settings)

    def _features(
        self, rows: Any, tokenizer: Any, config: Any, where: str, *, labeled: bool = True
    ) -> tuple[Dataset, dict]:
        answer = self.answer_column if labeled else None
        check_columns(rows, [("prompt", self.prompt), ("answer_column", answer)], where)
        return _prompts.rows_within(
            rows,
            input_length(self.max_length, tokenizer, config),
            where,
            lambda row, place: self._row(row, answer, tokenizer, place),
            lambda made: len(made["input_ids"]),
        )

    def _row(self, row: dict, answer_column: str | None, tokenizer: Any, where: str) -> dict[str, Any]:
        prompt = _prompts.as_prompt(row[self.prompt], tokenizer, where, self.system)
        before, behind = _prompts.prompt_ids(prompt, tokenizer), []
        if answer_column is not None:
            answer = _prompts.as_answer(row[answer_column], prompt, where)
            behind = _prompts.answer_ids(prompt, answer, tokenizer, where)
        return {
            "prompt": prompt,
            "prompt_ids": before,
            "input_ids": [*before, *behind],
            "labels": [IGNORED] * len(before) + behind,
        }


@dataclass
class AnswerCollator:
    """Rows of features -> a batch of their ids and labels.

    Args:
        collate: Sequences -> a batch.
    """

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch."""
        return self.collate([{key: row[key] for key in KEPT} for row in rows])


def _scores(rewards_N: np.ndarray, seed: int = 0) -> dict[str, Any]:
    def statistics(weights_N: np.ndarray) -> dict[str, float]:
        return {"reward": float(weights_N @ rewards_N / weights_N.sum())}

    rows = len(rewards_N)
    return {
        "problem": "language",
        "rows": rows,
        **statistics(np.ones(rows)),
        "intervals_95": evaluation.bootstrap_intervals(statistics, rows, BOOTSTRAP, seed),
        "notes": [],
        "bootstrap": BOOTSTRAP,
        "seed": seed,
    }
