"""What the model makes of a few fixed texts while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_llm_recipes.callbacks._lines import append, cut_back
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.registry import CALLBACKS

FILE = "samples.jsonl"  # in the run's directory


@CALLBACKS.register
class Samples(TrainerCallback, ExportableState):
    """Lets the model go on with texts, or fill their masks, at evaluations; one line a text in a file.

    A model that generates continues each text with its likeliest tokens; one of masked tokens fills the
    text's masks. Lines of ``samples.jsonl`` have ``step``, ``text`` and ``sample``. Nothing of the training
    changes: no random number is drawn. A resumed run goes on counting and takes out the lines after its
    checkpoint.

    Args:
        texts: What to go on with.
        every: Evaluations from one time to the next, ≥ 1.
        max_new_tokens: Of a continuation.

    Raises:
        ValueError: no text, or a number below its bound.
    """

    def __init__(self, texts: list[str], every: int = 1, max_new_tokens: int = 32) -> None:
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts is {texts!r}; allowed: a list of one text or more")
        if every < 1 or max_new_tokens < 1:
            raise ValueError(
                f"every is {every} and max_new_tokens {max_new_tokens}; allowed: 1 or more of both"
            )
        self.texts, self.every, self.max_new_tokens = texts, every, max_new_tokens
        self.evaluations = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        arguments = {"texts": self.texts, "every": self.every, "max_new_tokens": self.max_new_tokens}
        return {"args": arguments, "attributes": {"evaluations": self.evaluations}}

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Checks that there is something to sample from, and cuts the file back.

        Raises:
            RecipeError: no evaluations, no tokenizer, or masks that the texts lack.
        """
        if args.eval_strategy == "no":
            raise RecipeError(
                "samples are made at evaluations, and there are none",
                hint="under `trainer:` add eval_strategy: steps, and eval_steps",
            )
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise RecipeError("samples are of texts, and this task has none", hint="take `samples` out")
        if not _generates(model):
            mask = processing_class.mask_token
            lacking = [text for text in self.texts if mask is None or mask not in text]
            if lacking:
                raise RecipeError(
                    f"samples: {lacking[0]!r} has no mask token to fill",
                    allowed="texts with a mask token, or a model that generates",
                    hint=f"put {mask} where to fill" if mask else "take `samples` out",
                )
        if state.is_world_process_zero:
            cut_back(self._file(args), state.global_step)

    def on_evaluate(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Writes one line a text."""
        self.evaluations += 1
        if self.evaluations % self.every or not state.is_world_process_zero:
            return
        training = model.training
        model.eval()
        try:
            for text in self.texts:
                made = self._made(model, text, processing_class)
                append(self._file(args), {"step": state.global_step, "text": text, "sample": made})
        finally:
            model.train(training)

    def _file(self, args: Any) -> Path:
        return Path(args.output_dir).parent / FILE

    @torch.inference_mode()
    def _made(self, model: Any, text: str, tokenizer: Any) -> str:
        batch = tokenizer(text, return_tensors="pt").to(model.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if not _generates(model):
            outputs = model(input_ids=ids, attention_mask=mask)
            logits = outputs["logits"] if "logits" in outputs else outputs["prediction_logits"]
            filled = torch.where(ids == tokenizer.mask_token_id, logits.argmax(-1), ids)
            return tokenizer.decode(filled[0], skip_special_tokens=True)
        encodes = model.config.is_encoder_decoder
        if not encodes:  # a tokenizer that ends texts itself: nothing would follow
            ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
            while ids.shape[1] > 1 and int(ids[0, -1]) in ends:
                ids, mask = ids[:, :-1], mask[:, :-1]
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
        )[0]
        written = made[1:] if encodes else made[ids.shape[1] :]
        return tokenizer.decode(written, skip_special_tokens=not encodes)  # a T5's sentinels are special


def _generates(model: Any) -> bool:
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner.can_generate()
