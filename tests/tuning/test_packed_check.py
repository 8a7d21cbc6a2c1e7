import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from hf_llm_recipes.errors import RunError
from hf_llm_recipes.models.decoder import HlrDecoderConfig, HlrDecoderForCausalLM
from hf_llm_recipes.tuning._model import _keep_4bit_arithmetic
from hf_llm_recipes.tuning._packed_check import (
    TOLERANCE,
    _in_8bit,
    _packed_logits,
    check_causal,
    check_packed,
    without_dropout,
)

SHAPE = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
HF = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
SMALL = {
    "Llama": HF,
    "Qwen2": HF,
    "GPT2": {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "OPT": {**SHAPE, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "Bloom": {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
HEADS = {"GPT2": "GPT2LMHeadModel"}
ROWS = [{"input_ids": list(range(3, 3 + n))} for n in (7, 1, 5, 12, 9)]


def model(name, attention=None):
    torch.manual_seed(0)
    if name == "hlr_decoder":
        made = HlrDecoderForCausalLM(HlrDecoderConfig(**HF))
    else:
        config = getattr(transformers, f"{name}Config")(**SMALL[name])
        made = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config)
    if attention:
        made.set_attn_implementation(attention)
    return made.train()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2", "OPT", "hlr_decoder"])
def test_models_that_keep_sequences_apart(name):
    made = model(name, "hlr_packed")
    assert check_packed(made, ROWS) < 1e-4
    assert made.training
    adapted = get_peft_model(made, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert check_packed(adapted, ROWS[:1]) < 1e-4


LEAKS = [
    ("OPT", "sdpa", "sequences see each other's tokens"),
    ("Bloom", None, "sequences see each other's tokens"),
    ("Mamba", None, "sequences see each other's tokens"),
]


@pytest.mark.parametrize(("name", "attention", "reason"), LEAKS)
def test_models_that_leak_are_refused_with_the_reason(name, attention, reason):
    with pytest.raises(
        RunError, match=rf"{name}ForCausalLM cannot .* packed rows: {reason} .*move by"
    ) as caught:
        check_packed(model(name, attention), ROWS)
    assert "task.packing: false" in caught.value.hint


def test_positions_that_count_on_are_found():
    made = model("GPT2", "hlr_packed")
    table = made.transformer.wpe.weight
    made.transformer.wpe.forward = lambda ids: table[: ids.shape[1]][None]
    with pytest.raises(RunError, match="positions count on across sequences"):
        check_packed(made, ROWS)


def test_a_model_without_positions_is_refused():
    class Bare(nn.Module):
        def forward(self, input_ids):
            raise AssertionError("not to be called")

    with pytest.raises(RunError, match=r"Bare cannot .* takes no position_ids, by which sequences are told"):
        check_packed(Bare(), ROWS)


def test_one_leaking_layer_is_enough():
    made = model("Llama", "hlr_packed")
    attention = made.model.layers[1].self_attn
    forward = attention.forward

    def leaking(*args, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    attention.forward = leaking
    with pytest.raises(RunError, match="see each other's tokens"):
        check_packed(made, ROWS)


@pytest.mark.parametrize("width", ["load_in_4bit", "load_in_8bit"])
def test_quantised(width, tiny_llama):
    made = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_llama,
        attn_implementation="hlr_packed",
        quantization_config=BitsAndBytesConfig(**{width: True}),
    )
    _keep_4bit_arithmetic(made)
    assert check_packed(made, ROWS) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("adapter", [False, True])
def test_outliers_of_other_rows_are_no_leak_in_8bit(tiny_llama, adapter):
    made = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_llama,
        attn_implementation="hlr_packed",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )
    for (
        layer
    ) in made.model.layers:  # columns that some rows bring above LLM.int8()'s threshold, and some do not
        layer.input_layernorm.weight.data[::4] = 4.0
        layer.post_attention_layernorm.weight.data[::4] = 4.0
    if adapter:
        made = get_peft_model(made, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    layers = _in_8bit(made)
    assert len(layers) == 2 * 7
    assert check_packed(made, ROWS) < 1e-4  # rows rounded apart do not know each other
    assert {layer.state.threshold for layer in layers} == {6.0}
    with torch.no_grad():
        pieces = [torch.tensor(row["input_ids"]) for row in ROWS if len(row["input_ids"]) > 1]
        packed = _packed_logits(made, pieces, {})[: len(pieces[0])]
        assert (packed - _packed_logits(made, pieces[:1], {})).abs().max() > 1e-3 * packed.std()


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mamba", "Bloom", "hlr_decoder"])
def test_decoders_do_not_read_what_they_guess(name):
    check_causal(model(name))


@pytest.mark.parametrize("is_decoder", [False, True])
def test_an_encoder_reads_what_it_should_guess(is_decoder):
    torch.manual_seed(0)
    made = transformers.BertLMHeadModel(
        transformers.BertConfig(**SHAPE, intermediate_size=48, is_decoder=is_decoder)
    )
    if is_decoder:
        check_causal(made)
        return
    with pytest.raises(RunError, match=r"BertLMHeadModel reads the tokens behind(.|\n)*`task: mlm`"):
        check_causal(made)


def test_nothing_to_check():
    with pytest.raises(ValueError, match="no row has two tokens"):
        check_packed(model("Llama"), ROWS[1:2])


def test_dropout_is_off_only_inside_and_4bit_layers_are_left_alone():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2), nn.Dropout(0.5))
    net[2].eval()
    net[1].support_avx512bf16_for_cpu = False
    with without_dropout(net):
        assert [m.training for m in net] == [False, True, False]
    assert [m.training for m in net] == [True, True, False]
    assert net.training
