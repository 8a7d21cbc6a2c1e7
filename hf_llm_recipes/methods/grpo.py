"""Group relative policy optimization, by trl: the model learns from the rewards of what it writes.

task: {name: generation, reward: last_number}
method: grpo
trainer: {num_generations: 8, max_completion_length: 64}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hf_llm_recipes.methods import _trl
from hf_llm_recipes.methods.base import Method, Parts
from hf_llm_recipes.methods.supervised import frozen_quantised_base
from hf_llm_recipes.registry import METHODS


@METHODS.register
@dataclass(kw_only=True)
class GRPO(Method):
    """Write several answers to a prompt, and make the better ones likelier (Shao et al. 2024,
    https://arxiv.org/abs/2402.03300, §4.1); the reward is the task's.

    All else stands under ``trainer:``, as trl's ``GRPOConfig`` has it.
    """

    tasks: ClassVar[tuple[str, ...] | None] = ("generation",)

    @classmethod
    def arguments_class(cls) -> type:
        """``trl.GRPOConfig``."""
        return _trl.trl_class("GRPOConfig")

    @classmethod
    def argument_defaults(cls) -> dict[str, Any]:
        """Where trl's own would surprise; an evaluation would write answers of its own."""
        return {"gradient_checkpointing": False}

    def build(self, parts: Parts) -> Any:
        """Returns trl's ``GRPOTrainer``."""
        self.reward = TaskReward(parts.task, parts.train_rows)
        with frozen_quantised_base(parts.model):
            trainer = _trl.trl_class("GRPOTrainer")(
                model=parts.model,
                reward_funcs=self.reward,
                args=parts.arguments,
                train_dataset=parts.train.select_columns(["prompt", "row"]),
                processing_class=parts.processing_class,
                callbacks=parts.callbacks,
            )
        _trl.in_float32(trainer.model)
        return trainer

    def report(self, trainer: Any) -> dict[str, Any]:
        """The mean reward of what was written, in the first and the last tenth of the training."""
        rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
        if not rewards:
            return {}
        tenth = max(1, len(rewards) // 10)
        first, last = rewards[:tenth], rewards[-tenth:]
        return {"first_reward": sum(first) / len(first), "last_reward": sum(last) / len(last)}

    def finish(self, trainer: Any) -> None:
        """The frozen copy of the adapter, where ``beta`` wanted one, is not part of the model."""
        _trl.without_reference(trainer.model)


class TaskReward:
    """The task's reward as trl asks for it.

    Args:
        task: Has ``rewarded``.
        rows: The training rows as they were read.
    """

    __name__ = "reward"  # trl's logs call it so

    def __init__(self, task: Any, rows: Any) -> None:
        self.task, self.rows = task, rows

    def __call__(self, *, completions: list[Any], row: list[int], **rest: Any) -> list[float]:
        """Returns one reward a completion."""
        texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
        return [
            self.task.rewarded(text, self.rows[int(i)], int(i)) for text, i in zip(texts, row, strict=True)
        ]
