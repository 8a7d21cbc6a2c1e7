"""The tokenizer of the tests of augmentation, a plugin of theirs."""

import pytest
from transformers import AutoTokenizer


@pytest.fixture
def tokenizer(tiny_bert):
    """Words as tokens, in pairs with segments."""
    made = AutoTokenizer.from_pretrained(tiny_bert)
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return made
