"""Every task that a recipe can name is judged with at least one score that has an interval."""

import numpy as np
import pytest
import torch
import transformers
from conftest import make_tokenizer, sentences
from datasets import Dataset
from PIL import Image

from hf_llm_recipes import evaluation
from hf_llm_recipes.models.vision import HlrVisionConfig
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import TASKS

TEXTS = [row["text"] for row in sentences(24)]
LABELS = ["food", "music", "sport"]
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
CLASSES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}


def texts(**columns):
    return Dataset.from_dict({"text": TEXTS, **columns})


def images(**columns):
    draw = np.random.default_rng(0).integers(0, 255, size=(8, 16, 16), dtype=np.uint8)
    return Dataset.from_dict({"image": [Image.fromarray(one) for one in draw], **columns})


def conversations():
    return [
        [{"role": "user", "content": text[:12]}, {"role": "assistant", "content": text}] for text in TEXTS
    ]


TASKS_AND_ROWS = {
    "text_classification": ({}, lambda: texts(label=[LABELS[i % 3] for i in range(24)])),
    "token_classification": (
        {},
        lambda: Dataset.from_dict(
            {"tokens": [t.split() for t in TEXTS], "label": [["food"] * len(t.split()) for t in TEXTS]}
        ),
    ),
    "image_classification": ({}, lambda: images(label=[LABELS[i % 3] for i in range(8)])),
    "question_answering": (
        {},
        lambda: Dataset.from_dict(
            {
                "question": ["the ball"] * 8,
                "context": TEXTS[:8],
                "answers": [{"text": [t.split()[0]], "answer_start": [0]} for t in TEXTS[:8]],
            }
        ),
    ),
    "chat": ({}, lambda: Dataset.from_dict({"messages": conversations()})),
    "generation": (
        {"reward": "token_f1", "max_new_tokens": 4},
        lambda: Dataset.from_dict({"prompt": TEXTS[:8], "answer": TEXTS[8:16]}),
    ),
    "preference": (
        {},
        lambda: Dataset.from_dict(
            {"prompt": ["the"] * 24, "chosen": TEXTS, "rejected": TEXTS[1:] + TEXTS[:1]}
        ),
    ),
    "seq2seq": ({"max_new_tokens": 4}, lambda: Dataset.from_dict({"source": TEXTS[:8], "target": TEXTS[:8]})),
    "clm": ({"block_size": 16}, texts),
    "mlm": ({"block_size": 16, "mask_prob": 0.5}, texts),
    "mlm_nsp": ({"block_size": 16, "mask_prob": 0.5}, texts),
    "span_corruption": ({"block_size": 16}, texts),
    "contrastive": ({"label": "label"}, lambda: texts(label=[LABELS[i % 3] for i in range(24)])),
    "masked_image": ({}, images),
}


def test_no_task_is_left_out():
    ours = {name for name in TASKS.names() if TASKS.get(name).__module__.startswith("hf_llm_recipes.")}
    assert ours == set(TASKS_AND_ROWS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    fast = make_tokenizer(tmp_path_factory.mktemp("words"))
    fast.add_special_tokens(
        {"eos_token": "[SEP]", "additional_special_tokens": [f"<extra_id_{i}>" for i in range(9)]}
    )
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[CLS] {{ m.content }} [SEP]{% else %}"
        "{% generation %}{{ m.content }} [SEP]{% endgeneration %}{% endif %}{% endfor %}"
    )
    return fast


def model_of(auto_class, words):
    torch.manual_seed(0)
    if auto_class == "AutoModelForCausalLM":
        config = transformers.LlamaConfig(vocab_size=words, max_position_embeddings=64, **TINY)
    elif auto_class == "AutoModelForSeq2SeqLM":
        config = transformers.T5Config(
            vocab_size=words,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    elif "Image" in auto_class:
        config = HlrVisionConfig(image_size=16, patch_size=4, num_channels=1, **TINY, **CLASSES)
    else:
        config = transformers.BertConfig(vocab_size=words, max_position_embeddings=32, **TINY, **CLASSES)
    if auto_class == "AutoModelForQuestionAnswering":
        config.num_labels = 2
    return getattr(transformers, auto_class).from_config(config).eval()


@pytest.mark.parametrize("name", TASKS_AND_ROWS)
def test_it_has_a_score_with_an_interval(name, tokenizer):
    fields, rows = TASKS_AND_ROWS[name]
    task = TASKS.get(name)(**fields)
    processor = tokenizer
    if task.processor == "image_processor":
        processor = transformers.ViTImageProcessor(
            size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5]
        )
    predictor = Predictor(model_of(task.auto_class, len(tokenizer)), processor, task)
    metrics = predictor.judge(rows())
    scores = evaluation.summary(metrics)
    assert scores["intervals_95"], metrics
    for score, (low, high) in scores["intervals_95"].items():
        assert np.isfinite([low, high]).all()
        assert low <= high
        assert isinstance(scores[score], float)
