import pytest
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModel

import hf_llm_recipes.models  # noqa: F401  registers the architectures


@pytest.mark.parametrize("model_type", ["hlr_encoder", "hlr_decoder", "hlr_encoder_decoder", "hlr_vision"])
def test_peft_finds_queries_and_values_by_itself(model_type):
    config = CONFIG_MAPPING[model_type].preset("tiny")
    wrapped = get_peft_model(AutoModel.from_config(config), LoraConfig(r=2))
    adapted = {name.split(".")[-2] for name, _ in wrapped.named_modules() if name.endswith("lora_A")}
    assert adapted == {"q_proj", "v_proj"}
