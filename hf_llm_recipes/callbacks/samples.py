"""What the model says of fixed texts after each evaluation, so that one can read it learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_llm_recipes.callbacks._lines import append, cut_back
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.registry import CALLBACKS

FILE = "samples.jsonl"
REFUSED = {
    "allowed": "samples with a causal model, an encoder-decoder, or a classifier of texts or their words",
    "hint": "take it out of `callbacks`",
}


@CALLBACKS.register
class Samples(TrainerCallback):
    """Asks the model about fixed texts and appends its answers to ``samples.jsonl`` in the run's directory.

    A model that writes continues them greedily. A classifier tells the likeliest class and its probability,
    of several labels all from 0.5, of a regression the number, of tags each token's. A line has ``step``,
    ``text`` and ``written``. A resumed run takes out the lines after its checkpoint's step. Nothing is drawn
    at random, so that a run is the same with and without it.

    Args:
        texts: Beginnings, or texts to classify; one or more.
        max_new_tokens: Tokens written behind each, ≥ 1.

    Raises:
        ValueError: no text, or fewer than one token.
        RunError: the model neither writes nor classifies texts.
    """

    def __init__(self, texts: list[str], max_new_tokens: int = 32) -> None:
        if not texts or not all(texts):
            raise ValueError(f"texts is {texts}; allowed: one or more that are not empty")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; allowed: 1 or more")
        self.texts, self.max_new_tokens = list(texts), max_new_tokens

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Cuts the file back to the step at which training begins."""
        if not _writes(model):
            self._answers(model, processing_class, self.texts[:1])  # refused now, not after an hour
        if state.is_world_process_zero:
            cut_back(_file(args), state.global_step)

    def on_evaluate(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Appends a line for each text."""
        if not state.is_world_process_zero:
            return
        answers = self._answers(model, processing_class, self.texts)
        for text, written in zip(self.texts, answers, strict=True):
            append(_file(args), {"step": state.global_step, "text": text, "written": written})

    def _answers(self, model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
        """What the model says of each text; leaves its mode as it was."""
        say, training = self._written if _writes(model) else _classified, model.training
        model.eval()
        try:
            return [say(model, tokenizer, text) for text in texts]
        finally:
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


def _writes(model: Any) -> bool:
    return hasattr(model, "generate") and model.can_generate()


def _classified(model: Any, tokenizer: Any, text: str) -> str:
    """The answer of a classifier in words.

    Raises:
        RunError: it is none, or of something else than texts.
    """
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise RunError(f"{type(model).__name__} reads no texts", **REFUSED)
    given = tokenizer(text, truncation=True, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        logits = getattr(model(**given), "logits", None)
    names = model.config.id2label
    if logits is None or (logits.dim() == 3 and logits.shape[-1] != len(names)) or logits.dim() > 3:
        raise RunError(f"{type(model).__name__} neither writes nor classifies texts", **REFUSED)
    row = logits[0].float()
    if logits.dim() == 3:
        tokens = tokenizer.convert_ids_to_tokens(given["input_ids"][0])
        special = set(tokenizer.all_special_tokens)
        tagged = zip(tokens, row.argmax(-1).tolist(), strict=True)
        return " ".join(f"{token}/{names[best]}" for token, best in tagged if token not in special)
    if len(row) == 1:
        return f"{row.item():.4g}"
    if model.config.problem_type == "multi_label_classification":
        told = [(names[i], p) for i, p in enumerate(row.sigmoid().tolist()) if p >= 0.5]
        return ", ".join(f"{name} ({p:.2f})" for name, p in told) or "none"
    best = int(row.argmax())
    return f"{names[best]} ({row.softmax(-1)[best].item():.2f})"


def _file(args) -> Path:
    return Path(args.output_dir).parent / FILE
