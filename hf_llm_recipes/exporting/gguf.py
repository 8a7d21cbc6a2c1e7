"""A folder that llama.cpp's ``convert_hf_to_gguf.py`` takes: whole weights and the tokenizer's files.

Notable:
- A decoder of ours becomes the Llama (or whatever it was converted from) that it is equal to.
- What llama.cpp does not know is refused before anything is loaded, by the names in the ``gguf`` package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch

from hf_llm_recipes.card import CardInfo
from hf_llm_recipes.convert import to_theirs
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.exporting.base import Job, Target
from hf_llm_recipes.parity import TOLERANCE, carry_record, saved_config
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import TARGETS

OURS = {"hlr_decoder": "LlamaForCausalLM"}
TOKENIZERS = ("BPE", "Unigram", "WordPiece")  # models of tokenizer.json that the converter reads
ALIASES = {  # model_type -> llama.cpp's name, where it is another word
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gemma3_text": "gemma3",
    "gpt_bigcode": "starcoder",
    "mistral": "llama",
    "mixtral": "llama",
    "phi": "phi2",
}


@TARGETS.register
class Gguf(Target):
    """Safetensors, config and tokenizer of a causal model, ready for llama.cpp's converter."""

    needs: ClassVar = (("gguf", "gguf"),)
    auto_classes: ClassVar = ("AutoModelForCausalLM",)
    dtypes: ClassVar = ("float32", "bfloat16", "float16")
    memory: ClassVar[int] = 8

    def dtype(self, wanted: str | None) -> str:
        """Also sets what the rounding may change."""
        chosen = super().dtype(wanted)
        self.tolerance = TOLERANCE[chosen]  # type: ignore[misc]
        return chosen

    def check(self, job: Job) -> None:
        """Refuses architectures and tokenizers that llama.cpp does not know."""
        super().check(job)
        model_type = saved_config(job.folder).model_type
        if model_type not in OURS and not known_to_llama_cpp(model_type):
            raise RunError(
                f"llama.cpp knows no architecture `{model_type}`",
                where=str(job.folder),
                allowed=", ".join((*OURS, *_names())),
                hint="export to onnx, or merge and use transformers",
            )
        _check_tokenizer(job.folder)

    def disk_bytes(self, job: Job, weights: int) -> int:
        """Of that dtype."""
        return weights * (4 if job.dtype == "float32" else 2)

    def write(self, job: Job, rows: Any, folder: Path) -> None:
        """Merges, converts what is ours, and saves."""
        made = job.merged()
        model = made.model
        if model.config.model_type in OURS:
            named = None if model.config.converted_from else OURS[model.config.model_type]
            try:
                model = to_theirs(model, named)
            except ValueError as error:
                raise RunError(
                    f"this {made.model.config.model_type} is no model that llama.cpp knows: {error}",
                    where=str(job.folder),
                    hint="export to onnx",
                ) from error
        model.to(getattr(torch, job.dtype)).save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        carry_record(job.folder, folder)

    def card(self, job: Job, info: CardInfo, made: Predictor) -> CardInfo:
        """As of any whole model."""
        return info

    def more_card(self, job: Job) -> str:
        """How it becomes a GGUF file."""
        return (
            "\n## llama.cpp\n\n```bash\npython convert_hf_to_gguf.py FOLDER --outfile model.gguf\n"
            "llama-cli -m model.gguf\n```\n\nThe first script comes with llama.cpp; FOLDER holds this file. "
            "The GGUF file itself was not compared.\n"
        )


def known_to_llama_cpp(model_type: str) -> bool:
    """Whether the ``gguf`` package has a name for an architecture of transformers."""
    plain = ALIASES.get(model_type, model_type).replace("_", "").replace("-", "")
    return plain in {name.replace("_", "").replace("-", "") for name in _names()}


def _names() -> list[str]:
    import gguf

    return sorted(gguf.MODEL_ARCH_NAMES.values())


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    kind = None
    if path.is_file():
        kind = (json.loads(path.read_text(encoding="utf-8")).get("model") or {}).get("type")
    if kind not in TOKENIZERS:
        raise RunError(
            f"llama.cpp reads no {kind or 'slow'} tokenizer",
            where=str(folder),
            allowed=f"a tokenizer.json of {', '.join(TOKENIZERS)}",
        )
