"""Predictors of tiny random models, for the panels of the page."""

import torch
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.tasks.image_classification import ImageClassification
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tasks.token_classification import TokenClassification

NAMES = ["food", "music", "sport"]
TAGS = ["O", "B-x", "I-x"]


def named(names):
    return {"num_labels": len(names), "id2label": dict(enumerate(names))}


def text_predictor(folder, names=NAMES, **task):
    """A BERT with a random head."""
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(folder, **named(names)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return Predictor(model, PreTrainedTokenizerFast.from_pretrained(folder), TextClassification(**task))


def token_predictor(folder):
    """The same for tags."""
    torch.manual_seed(1)
    model = BertForTokenClassification.from_pretrained(folder, **named(TAGS)).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return Predictor(model, tokenizer, TokenClassification(tokens="words", label="tags"))


def image_predictor():
    """A ViT of 8 by 8 pixels."""
    torch.manual_seed(1)
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1}
    config = ViTConfig(
        **sizes, num_attention_heads=2, intermediate_size=16, num_channels=3, **named(["dark", "light"])
    )
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    return Predictor(ViTForImageClassification(config).eval(), processor, ImageClassification())
