"""The perplexity beside each loss of a language model."""

from __future__ import annotations

import math
from typing import ClassVar

from hf_llm_recipes.callbacks._figures import Figures
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import CALLBACKS

MOST = 700.0  # nats: e to it is the largest number that fits


@CALLBACKS.register
class Perplexity(Figures):
    """Adds ``perplexity``, e to the loss a token, to each log of the training loss, and ``eval_perplexity``.

    Raises:
        RunError: the model has no vocabulary to be perplexed by.
    """

    added_to: ClassVar[set[str]] = {"loss", "eval_loss"}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Refuses models whose loss is none of tokens."""
        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise RunError(
                f"the loss of {type(model).__name__} is none of tokens",
                allowed="the callback perplexity with a language model",
                hint="take it out of `callbacks`",
            )

    def figures(self, args, state, logs):
        """The perplexity of each loss."""
        names = {"loss": "perplexity", "eval_loss": "eval_perplexity"}
        return {new: math.exp(min(logs[old], MOST)) for old, new in names.items() if old in logs}

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Puts it among the metrics, where the best model is chosen by them."""
        if metrics and "eval_loss" in metrics:
            metrics["eval_perplexity"] = math.exp(min(metrics["eval_loss"], MOST))
