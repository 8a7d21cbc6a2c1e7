"""What the model writes to fixed texts after each evaluation, so that one can read it learn."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_llm_recipes.callbacks._lines import append, cut_back
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import CALLBACKS

FILE = "samples.jsonl"


@CALLBACKS.register
class Samples(TrainerCallback):
    """Continues fixed texts greedily and appends them to ``samples.jsonl`` in the run's directory.

    Each line has ``step``, ``text`` and ``written``. A resumed run takes out the lines after its
    checkpoint's step. Writing draws nothing at random, so that a run is the same with and without it.

    Args:
        texts: Beginnings, one or more.
        max_new_tokens: Tokens written behind each, ≥ 1.

    Raises:
        ValueError: no text, or fewer than one token.
        RunError: the model cannot write.
    """

    def __init__(self, texts: list[str], max_new_tokens: int = 32) -> None:
        if not texts or not all(texts):
            raise ValueError(f"texts is {texts}; allowed: one or more that are not empty")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; allowed: 1 or more")
        self.texts, self.max_new_tokens = list(texts), max_new_tokens

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Cuts the file back to the step at which training begins."""
        if not (hasattr(model, "generate") and model.can_generate()):
            raise RunError(
                f"{type(model).__name__} writes no text",
                allowed="the callback samples with a causal model or an encoder-decoder",
                hint="take it out of `callbacks`",
            )
        if state.is_world_process_zero:
            cut_back(_file(args), state.global_step)

    def on_evaluate(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Appends a line for each text."""
        if not state.is_world_process_zero:
            return
        training = model.training
        model.eval()
        for text in self.texts:
            written = self._written(model, processing_class, text)
            append(_file(args), {"step": state.global_step, "text": text, "written": written})
        model.train(training)

    def _written(self, model, tokenizer, text: str) -> str:
        ids = tokenizer(text)["input_ids"]
        if not model.config.is_encoder_decoder:
            ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
            while len(ids) > 1 and ids[-1] in ends:  # a tokenizer that ends texts itself
                ids = ids[:-1]
        given = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            made = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )[0]
        behind = made if model.config.is_encoder_decoder else made[len(ids) :]
        return tokenizer.decode(behind, skip_special_tokens=True)


def _file(args) -> Path:
    return Path(args.output_dir).parent / FILE
