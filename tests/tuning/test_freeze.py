import pytest
import torch
from _tiny import SMALL, build, save, trainable, trained
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hf_llm_recipes.tuning.freeze import Freeze, layer_stack


def bert():
    return BertForSequenceClassification(BertConfig(**SMALL))


def llama():
    config = LlamaConfig(**SMALL, num_key_value_heads=1)
    return LlamaForSequenceClassification(config)


def distilbert():
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=33, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    )


def bart():
    return BartForSequenceClassification(
        BartConfig(vocab_size=33, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64)
    )


def albert():
    return AlbertForSequenceClassification(AlbertConfig(**SMALL, embedding_size=16))


@pytest.mark.parametrize(
    ("make", "stack", "behind"),
    [
        (bert, "bert.encoder.layer", ["bert.pooler"]),
        (llama, "model.layers", ["model.norm"]),
        (distilbert, "distilbert.transformer.layer", []),
        (bart, "model.decoder.layers", ["model.decoder.layernorm_embedding"]),
    ],
)
def test_the_last_layers_and_what_stands_behind_them(make, stack, behind):
    with torch.device("meta"):
        model = make()
    name, layers = layer_stack(model)
    assert name == stack
    assert len(layers) == model.config.num_hidden_layers
    assert Freeze(last=1).full_precision(model) == [f"{stack}.{len(layers) - 1}", *behind]
    assert Freeze(last=2).full_precision(model)[:2] == [f"{stack}.{i}" for i in range(len(layers))][-2:]
    assert Freeze(last=0).full_precision(model) == []


@pytest.mark.parametrize(
    ("last", "prefixes"),
    [
        (0, ("classifier.",)),
        (1, ("classifier.", "bert.encoder.layer.1.", "bert.pooler.")),
        (2, ("classifier.", "bert.encoder.layer.", "bert.pooler.")),
    ],
)
def test_only_these_are_trained(last, prefixes):
    model = bert()
    assert Freeze(last=last).apply(model, head=["classifier"], task_type="SEQ_CLS") is model
    chosen = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert trainable(model) == chosen
    assert {name.split(".")[0] for name in chosen} >= {"classifier"}


def test_every_chosen_weight_moves_and_no_other(tmp_path):
    built = build(save(tmp_path / "bert", lambda: BertModel(BertConfig(**SMALL))), Freeze(last=1))
    frozen = {n: p.detach().clone() for n, p in built.model.named_parameters() if not p.requires_grad}
    assert trained(built) == []
    after = dict(built.model.named_parameters())
    assert [name for name, value in frozen.items() if not torch.equal(after[name], value)] == []


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match=r"last is 3, but `bert.encoder.layer` has 2 layers"):
        Freeze(last=3).apply(bert(), head=["classifier"], task_type="SEQ_CLS")


def test_a_negative_number_of_layers():
    with pytest.raises(ValueError, match=r"last is -1; allowed: 0 \(head only\) or more"):
        Freeze(last=-1)


def test_a_model_without_a_list_of_layers():
    model = albert()  # one layer, shared
    with pytest.raises(
        ValueError, match="AlbertForSequenceClassification has no list of layers to freeze; use"
    ):
        Freeze(last=1).apply(model, head=["classifier"], task_type="SEQ_CLS")
    Freeze(last=0).apply(model, head=["classifier"], task_type="SEQ_CLS")
    assert trainable(model) == {"classifier.weight", "classifier.bias"}


def test_the_longest_list_of_equal_layers_is_taken():
    model = nn.ModuleDict(
        {
            "mixed": nn.ModuleList([nn.Linear(1, 1), nn.ReLU(), nn.ReLU(), nn.ReLU()]),
            "short": nn.ModuleList([nn.Linear(1, 1)] * 2),
            "long": nn.ModuleList([nn.Linear(1, 1)] * 3),
        }
    )
    assert layer_stack(model)[0] == "long"
