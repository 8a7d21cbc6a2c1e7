import copy

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from hf_llm_recipes.tuning import _fused_lora
from hf_llm_recipes.tuning._fused_lora import fuse_lora
from hf_llm_recipes.tuning._model import _keep_4bit_arithmetic

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8, bias=bias), nn.Linear(8, 3)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def adapted(net=None, **config):
    torch.manual_seed(0)
    given = {"r": 2, "lora_alpha": 6, "target_modules": ["up", "down"], "init_lora_weights": False}
    return get_peft_model(net or Net(), LoraConfig(**{**given, **config}))


def results(model, x=X):
    x = x.clone().requires_grad_(x.is_floating_point())
    out = model(x)
    out = getattr(out, "logits", out)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [out, *torch.autograd.grad(out.pow(2).sum(), [*([x] if x.requires_grad else []), *trained])]


def used(monkeypatch):
    """Counts the calls that take the short way."""
    calls = []
    plain = _fused_lora._plain_adapter
    monkeypatch.setattr(
        _fused_lora, "_plain_adapter", lambda *given: calls.append(plain(*given)) or calls[-1]
    )
    return lambda: sum(name is not None for name in calls)


def test_one_layer_by_hand():
    net = nn.ModuleDict({"up": nn.Linear(1, 1)})
    net["up"].weight.data, net["up"].bias.data = torch.tensor([[3.0]]), torch.tensor([1.0])
    layer = adapted(net, r=1, lora_alpha=2, target_modules=["up"]).base_model.model["up"]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = (
        torch.tensor([[5.0]]),
        torch.tensor([[7.0]]),
    )
    assert fuse_lora(layer) == 1
    x = torch.tensor([[2.0]], requires_grad=True)
    out = layer(x)
    assert out.item() == 2 * 3 + 1 + 2 * (2 * 5) * 7  # 147
    out.backward()
    assert x.grad.item() == 3 + 2 * 5 * 7  # 73
    assert layer.lora_A["default"].weight.grad.item() == 2 * 7 * 2  # s B x
    assert layer.lora_B["default"].weight.grad.item() == 2 * 10  # s A x
    assert layer.base_layer.weight.grad is None


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_pefts_formula_and_gradient(bias, monkeypatch):
    model = adapted(Net(bias))
    expected = results(model)
    assert fuse_lora(model) == 2
    short = used(monkeypatch)
    torch.testing.assert_close(results(model), expected)
    assert short() == 2
    assert fuse_lora(model) == 0  # once


OTHERS = [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}]


@pytest.mark.parametrize("config", OTHERS)
def test_layers_that_are_more_keep_pefts_forward(config, monkeypatch):
    model = adapted(**config)
    torch.manual_seed(1)
    expected = results(model)
    fuse_lora(model)
    short = used(monkeypatch)
    torch.manual_seed(1)
    torch.testing.assert_close(results(model), expected, rtol=0, atol=0)
    assert short() == 0
    if "lora_dropout" in config:
        model.eval()(X)
        assert short() == 2


def test_disabled_merged_several_and_autocast(monkeypatch):
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["up", "down"], init_lora_weights=False))
    first, off = model(X), model.base_model.model.down.base_layer
    fuse_lora(model)
    short = used(monkeypatch)
    with model.disable_adapter():
        plain = model(X)
    torch.testing.assert_close(plain, off(torch.tanh(model.base_model.model.up.base_layer(X))))
    model.base_model.set_adapter(["default", "second"])
    both = model(X)
    model.base_model.set_adapter("default")
    model.merge_adapter()
    torch.testing.assert_close(model(X), first)
    model.unmerge_adapter()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X).dtype == torch.bfloat16
    assert short() == 0
    torch.testing.assert_close(model(X), first)
    assert not torch.allclose(both, first)
    assert short() == 2


def test_a_copy_computes_with_its_own_weights():
    model = adapted()
    fuse_lora(model)
    before = model(X)
    copied = copy.deepcopy(model)
    for name, p in copied.named_parameters():
        if "lora_B" in name:
            p.data.zero_()
    assert not torch.allclose(copied(X), before)
    torch.testing.assert_close(model(X), before)


def test_a_hook_on_the_frozen_layer_still_sees_its_output(monkeypatch):
    model = adapted()
    expected = results(model)
    seen = []
    model.base_model.model.up.base_layer.register_forward_hook(
        lambda m, given, out: seen.append(out.shape[-1])
    )
    fuse_lora(model)
    torch.testing.assert_close(results(model), expected)
    assert seen == [8]


@pytest.mark.parametrize("name", ["gpt2", "load_in_4bit", "load_in_8bit"])
def test_other_base_layers(name, tiny_llama):
    torch.manual_seed(0)
    if name == "gpt2":  # its layers are Conv1D
        size = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
        base = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**size, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        )
    else:
        config = BitsAndBytesConfig(**{name: True})
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=config)
        _keep_4bit_arithmetic(base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = results(model, ids)
    assert fuse_lora(model) > 3
    torch.testing.assert_close(results(model, ids), expected, rtol=1e-4, atol=1e-5)
