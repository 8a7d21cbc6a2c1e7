"""Tiny models and data sets that the tests make themselves. Nothing here touches a network."""

from __future__ import annotations

import csv
import os
import random

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

WORDS = {
    "sport": ["ball", "team", "goal", "coach", "match", "score"],
    "food": ["bread", "soup", "salt", "oven", "taste", "plate"],
    "music": ["song", "drum", "tune", "choir", "chord", "band"],
}
FILLER = ["the", "a", "and", "was", "in", "of", "very", "new", "old", "good"]


def sentences(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of ``text`` and ``label``: two topic words among six fillers."""
    rng = random.Random(seed)
    made = []
    for i in range(rows):
        label = list(WORDS)[i % len(WORDS)]
        words = rng.choices(FILLER, k=6) + rng.choices(WORDS[label], k=2)
        rng.shuffle(words)
        made.append({"text": " ".join(words), "label": label})
    return made


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *(w for ws in WORDS.values() for w in ws)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A BERT of 2 layers and width 32 with random weights and no head, as a folder."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = make_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,  # at 0.02 so narrow a model takes hundreds of steps to begin to learn
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A Llama of 2 layers and width 32 with random weights, as a folder; its tokenizer has no padding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = make_tokenizer(folder)
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_csv(tmp_path):
    """240 labeled rows in three classes."""
    return write_csv(tmp_path / "rows.csv", sentences(240))


@pytest.fixture
def recipe(tiny_bert, rows_csv, tmp_path):
    """The values of a recipe that runs in seconds."""
    return {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "model": {"name": str(tiny_bert)},
        "data": {"name": str(rows_csv)},
        "task": {"name": "text_classification"},
        "trainer": {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
