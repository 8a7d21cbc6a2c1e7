"""Tiny checkpoints, and a model built, trained for two steps, saved and loaded again."""

from types import SimpleNamespace

import torch
from conftest import make_tokenizer
from torch.nn.functional import cross_entropy

from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource, choose_precision

SMALL = {
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 34,
    "initializer_range": 0.2,
}
IDS = torch.tensor([[2, 5, 6, 15, 3], [2, 5, 6, 16, 3]])
CLASSES = {
    "num_labels": 3,
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "single_label_classification",
}
SHARED = {"auto_class": "AutoModelForSequenceClassification", "updates": CLASSES}
SAVED = {**SHARED, "pad_token_id": 0}


def save(folder, make):
    torch.manual_seed(0)
    make().save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def build(folder, tuning, *, quantization=None, dtype="auto"):
    torch.manual_seed(0)
    precision = choose_precision(dtype, frozen_base=tuning.uses_adapter, device="cpu")
    return _model.build(
        ModelSource(name=str(folder), dtype=dtype),
        task_type="SEQ_CLS",
        tokenizer=SimpleNamespace(pad_token_id=0),
        tuning=tuning,
        quantization=quantization,
        precision=precision,
        **SHARED,
    )


def trained(built):
    """Takes two steps; every trainable weight must move."""
    model = built.model.train()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.05)
    for _ in range(2):
        cross_entropy(model(input_ids=IDS).logits, torch.tensor([0, 1])).backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, p in weights.items() if torch.equal(p, before[name])]
    return still


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def reloaded(built, folder, source, *, dtype="auto"):
    built.model.save_pretrained(folder)
    return _model.load_saved(
        folder, source=ModelSource(name=str(source), dtype=dtype), quantization=built.quantization, **SAVED
    )


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}
