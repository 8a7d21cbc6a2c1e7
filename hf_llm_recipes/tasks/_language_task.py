"""What tasks share that judge a causal model itself, rows of text in and text out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hf_llm_recipes.tasks.base import Task


@dataclass(frozen=True)
class Writing:
    """How a task's model writes: the same for ``predict``, in the terminal and behind the server.

    Args:
        settings: Of ``GenerationConfig``.
        chats: Whether it answers messages, through the chat template; else it goes on with a text.
        system: What the system says in conversations that open without it.
        prefix: What stands before every text.
    """

    settings: dict[str, Any]
    chats: bool
    system: str | None = None
    prefix: str = ""


class LanguageTask(Task):
    """A task for a causal language model; a subclass writes ``prepare``, ``judge_model`` and ``answer``.

    One whose class has ``writes`` has a field ``generation``, and a method ``writing``.
    """

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str] = "CAUSAL_LM"
    pipeline_tag: ClassVar[str] = "text-generation"
    problem: ClassVar[str] = "language"
    vocabulary_labels: ClassVar[bool] = True
    shifted_labels: ClassVar[bool] = True
    judges_model: ClassVar[bool] = True

    @property
    def stratify_by(self) -> str | None:
        """Nothing: texts have no shares to keep."""
        return None

    @property
    def item_problem(self) -> str:
        """``text``: an unlabeled item is a prompt, and its label a text."""
        return "text"

    def writing(self, processor: Any) -> Writing:
        """Returns how the model writes its answers.

        Args:
            processor: The tokenizer that was saved with it.

        Raises:
            TypeError: it writes none.
        """
        raise TypeError(f"{type(self).__name__} writes no text")

    def with_settings(self, given: dict[str, Any]) -> LanguageTask:
        """Returns a copy that writes with other values of ``GenerationConfig``; what is not given stays."""
        return dataclasses.replace(self, generation={**(self.generation or {}), **given})

    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """None but the loss, which the Trainer has."""
        return {}

    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """Not from logits: see ``judge_model``."""
        raise TypeError(f"{type(self).__name__} judges the model itself")

    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """Not from logits: see ``answer``."""
        raise TypeError(f"{type(self).__name__} answers by the model itself")

    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Not from logits: see ``judge_model``."""
        raise TypeError(f"{type(self).__name__} judges the model itself")
