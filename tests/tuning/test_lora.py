import pytest
from _tiny import SMALL, build, logits, reloaded, save, trainable, trained
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
)

from hf_llm_recipes.tuning.lora import Lora

BASES = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=33, dim=32, n_layers=2, n_heads=2, hidden_dim=64, initializer_range=0.2)
    ),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL, pad_token_id=1), add_pooling_layer=False),
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=1, pad_token_id=0)),
}
HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "distilbert": {f"{m}.{k}" for m in ("pre_classifier", "classifier") for k in ("weight", "bias")},
    "roberta": {f"classifier.{m}.{k}" for m in ("dense", "out_proj") for k in ("weight", "bias")},
    "llama": {"score.weight"},
}
LINEARS = {"bert": 2 * 6 + 1, "distilbert": 2 * 6, "roberta": 2 * 6, "llama": 2 * 7}  # BERT has a pooler


@pytest.fixture(scope="module", params=list(BASES))
def base(request, tmp_path_factory):
    return request.param, save(tmp_path_factory.mktemp(request.param), BASES[request.param])


@pytest.mark.parametrize("quantization", [None, {"load_in_4bit": True}], ids=["float", "4bit"])
def test_adapters_on_every_linear_and_the_head_come_back(base, quantization, tmp_path):
    family, folder = base
    built = build(folder, Lora(r=4, use_dora=quantization is None), quantization=quantization)
    names = trainable(built.model)
    head = {n.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for n in names}
    assert {n for n in head if "lora_" not in n} == HEADS[family]
    assert sum("lora_A" in name for name in names) == LINEARS[family]
    assert not [name for name in names if "lora_" in name and "classifier" in name]
    assert trained(built) == []
    again = reloaded(built, tmp_path / "out", folder)
    assert (logits(built.model) - logits(again)).abs().max() < 1e-4


def test_keys_are_loras_own_and_the_default_is_every_linear():
    assert Lora().config == {"target_modules": "all-linear"}
    assert Lora(r=2, target_modules=["query"]).config == {"r": 2, "target_modules": ["query"]}
    assert Lora.rest() is LoraConfig
    decided = {"task_type", "base_model_name_or_path", "inference_mode"}
    assert set(Lora.refused()) == decided | {"megatron_config", "megatron_core"}  # peft imports them
    assert Lora.uses_adapter
    assert Lora().full_precision(None) == []


def test_chosen_modules_and_more_to_save(tmp_path):
    folder = save(tmp_path / "bert", BASES["bert"])
    tuning = Lora(r=2, target_modules=["query"], modules_to_save=["pooler.dense", "classifier"])
    built = build(folder, tuning)
    names = trainable(built.model)
    assert sum("lora_A" in name for name in names) == 2
    assert all(".query." in name for name in names if "lora_" in name)
    saved = built.model.peft_config["default"].modules_to_save
    assert saved[:2] == ["classifier", "pooler.dense"]  # peft names its own heads once more
    trained(built)
    assert (logits(built.model) - logits(reloaded(built, tmp_path / "out", folder))).abs().max() < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_modules_trained_whole_are_not_quantised(bits, tmp_path):
    folder = save(tmp_path, BASES["bert"])
    tuning = Lora(r=2, target_modules=["query"], modules_to_save=["pooler"])
    built = build(folder, tuning, quantization={f"load_in_{bits}bit": True})
    pooler = {n: p for n, p in built.model.named_parameters() if "pooler.modules_to_save" in n}
    assert len(pooler) == 2
    assert all(p.requires_grad and p.is_floating_point() for p in pooler.values())
    assert "bert.pooler" in built.quantization["llm_int8_skip_modules"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"r": 0}, "r is 0; allowed: 1 or more"),
        ({"lora_dropout": 2.0}, "lora_dropout is 2.0; allowed: 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_a_model_is_loaded(given, message):
    with pytest.raises(ValueError, match=message):
        Lora(**given)
