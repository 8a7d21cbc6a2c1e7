"""Tiny checkpoints with and without a masked-LM head, and the parts of a stage."""

import json
from types import SimpleNamespace

import torch
from conftest import make_tokenizer, sentences
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_llm_recipes.stages.base import StageParts
from hf_llm_recipes.tuning._model import ModelSource, build, choose_precision
from hf_llm_recipes.tuning.lora import Lora

WIDTHS = {
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 36,
    "initializer_range": 0.2,
}
DISTIL = {
    "vocab_size": 33,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "max_position_embeddings": 36,
    "initializer_range": 0.2,
}
QUIET = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}


def folder_of(made, model):
    model.save_pretrained(made)
    make_tokenizer(made)
    return made


def masked_lm_folder(made, name="Bert", **config):
    """A checkpoint with a masked-LM head; ``name`` as in ``BertForMaskedLM``."""
    import transformers

    from hf_llm_recipes.models import encoder

    torch.manual_seed(0)
    if name == "HlrEncoder":
        return folder_of(made, encoder.HlrEncoderForMaskedLM(encoder.HlrEncoderConfig(**WIDTHS, **config)))
    widths = DISTIL if name == "DistilBert" else {**WIDTHS, "pad_token_id": 0}
    cls = getattr(transformers, f"{name}ForMaskedLM")
    return folder_of(made, cls(cls.config_class(**widths, **config)))


def classifier(folder):
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


def quantised(folder):
    """A 4-bit base under an adapter, as a run builds it."""
    return build(
        ModelSource(name=str(folder)),
        auto_class="AutoModelForSequenceClassification",
        task_type="SEQ_CLS",
        updates={"num_labels": 3},
        tokenizer=SimpleNamespace(pad_token_id=0),
        tuning=Lora(r=8),
        quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        precision=choose_precision("auto", frozen_base=True, device="cpu"),
    ).model


def with_lora(folder, **config):
    model = classifier(folder)
    head = [name for name, _ in model.named_children() if "classifier" in name]
    torch.manual_seed(2)
    return Lora(r=8, lora_alpha=32, **config).apply(model, head=head, task_type="SEQ_CLS")


def stage_parts(model, folder, out, *, rows=48, device_arguments=None, **changes):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pool = Dataset.from_list([dict(tokenizer(row["text"])) for row in sentences(rows)])
    values = {
        "model": model,
        "pool": pool,
        "collator": DataCollatorWithPadding(tokenizer),
        "processing_class": tokenizer,
        "source": ModelSource(name=str(folder)),
        "output_dir": str(out),
        "seed": 7,
        "device_arguments": {**QUIET, **(device_arguments or {})},
    }
    return StageParts(**{**values, **changes})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, model):
    """Names of the weights that are no longer the same bits."""
    after = model.state_dict()
    assert list(before) == list(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def logged_steps(folder):
    state = json.loads((folder / "trainer_state.json").read_text())
    return [entry["step"] for entry in state["log_history"] if "loss" in entry]
