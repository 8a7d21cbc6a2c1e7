"""The cached lower layers give the whole model's logits and gradients; each row is computed once."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import hf_llm_recipes.models.decoder
import hf_llm_recipes.models.encoder
import hf_llm_recipes.models.vision  # noqa: F401 - registers the architectures
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.methods import _lower_layers
from hf_llm_recipes.methods._lower_layers import LowerLayers, first_trainable_layer, quiet_lower_layers
from hf_llm_recipes.tuning.freeze import layer_stack

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "num_labels": 3,
    "pad_token_id": 0,
}
ROWS = [[2, 7, 8, 3], [2, 9, 3], [2, 5, 6, 7, 8, 3], [2, 11, 12, 13, 3], [2, 30, 3]]
TARGETS = {
    "bert": ["query", "value"],
    "llama": ["q_proj", "v_proj"],
    "hlr_encoder": "all",
    "hlr_decoder": "all",
    "gpt2": ["c_attn"],
}


def bare(kind):
    torch.manual_seed(0)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**SIZES))
    if kind == "llama":
        return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_key_value_heads=1))
    if kind == "gpt2":
        return GPT2ForSequenceClassification(
            GPT2Config(vocab_size=40, n_embd=16, n_layer=4, n_head=2, num_labels=3, pad_token_id=0)
        )
    sizes = {**SIZES, "num_key_value_heads": 2} if kind == "hlr_decoder" else SIZES
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes))


def adapted(kind, layers=(2, 3)):
    """LoRA in some layers, whose second matrix is not zero."""
    model = bare(kind)
    targets = TARGETS[kind]
    if targets == "all":
        linear = {
            n.rpartition(".")[2] for n, m in model.model.stack.named_modules() if isinstance(m, nn.Linear)
        }
        targets = sorted(linear)
    config = LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=targets, layers_to_transform=list(layers), lora_dropout=0.0
    )
    model = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    return model


def batch_of(rows, width=None):
    width = width or max(len(ROWS[row]) for row in rows)
    padded = [ROWS[row] + [0] * (width - len(ROWS[row])) for row in rows]
    mask = [[1] * len(ROWS[row]) + [0] * (width - len(ROWS[row])) for row in rows]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}


def key(rows, stream="pool"):
    return stream, torch.tensor(rows)


def lower_layers(model, folder, fingerprint="rows"):
    return LowerLayers(model, folder, fingerprint, {"pool": len(ROWS), "labeled": 2})


class Calls:
    """Counts the rows that go through a model's lowest layer."""

    def __init__(self, lower):
        self.rows = 0
        lower.stack[0].register_forward_pre_hook(self.add, with_kwargs=True)

    def add(self, module, given, named):
        if module.__dict__.get("forward") is None:  # a replaced layer is called, but computes nothing
            self.rows += (given[0] if given else named["hidden_states"]).shape[0]


@pytest.mark.parametrize("kind", list(TARGETS))
def test_the_logits_are_those_of_the_whole_model(kind, tmp_path):
    model = adapted(kind).eval()
    lower = lower_layers(model, tmp_path)
    assert lower.layer == 2
    for rows, width in [([0, 1, 2], None), ([1, 0], 9), ([4, 2, 3], None), ([0, 0, 1], None)]:
        batch = batch_of(rows, width)
        with torch.no_grad():
            whole = model(**batch).logits
            with lower.replaced(key(rows), batch):
                short = model(**batch).logits
        assert lower.active
        assert whole.std() > 0.01
        assert (whole - short).abs().max() <= 1e-6
    assert lower.computed == 5


@pytest.mark.parametrize("kind", list(TARGETS))
def test_the_gradients_are_those_of_the_whole_model(kind, tmp_path):
    model = adapted(kind).eval()
    lower, batch, labels = lower_layers(model, tmp_path), batch_of([0, 1, 2]), torch.tensor([0, 1, 2])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)

    def gradients():
        loss = cross_entropy(model(**batch).logits, labels)
        return torch.autograd.grad(loss, list(trained.values()))

    whole = gradients()
    with lower.replaced(key([0, 1, 2]), batch):
        short = gradients()
    largest = max(float(g.abs().max()) for g in whole)
    assert largest > 1e-3
    for expected, got in zip(whole, short, strict=True):
        assert (expected - got).abs().max() <= 1e-6 * max(1, largest)


def test_a_row_is_computed_once_in_every_width_stream_and_process(tmp_path):
    model = adapted("bert").eval()
    lower = lower_layers(model, tmp_path)
    calls = Calls(lower)
    lower.states(key([0, 1]), batch_of([0, 1]))
    assert calls.rows == 2 * 2 + 2  # the comparison at the start (states, whole logits), then the rows
    for rows in ([1, 0], [0], [1, 1]):
        lower.states(key(rows), batch_of(rows, 8))
    assert calls.rows == 6
    lower.states(key([2, 0, 2]), batch_of([2, 0, 2]))
    assert calls.rows == 7
    lower.states(key([0], "labeled"), batch_of([0]))
    assert calls.rows == 8
    lower.close()

    again = lower_layers(model, tmp_path)
    states = again.states(key([2, 1]), batch_of([2, 1]))
    assert again.computed == 0
    assert states.shape == (2, 6, 16)
    assert states[1, 3:].abs().max() == 0


def test_the_states_are_what_enters_the_first_trained_layer(tmp_path):
    model = adapted("bert").eval()
    batch = batch_of([0, 1])
    with torch.no_grad():
        expected = model.get_base_model().bert(**batch, output_hidden_states=True).hidden_states[2]
    states = lower_layers(model, tmp_path).states(key([0, 1]), batch)
    assert torch.equal(states[0], expected[0])
    assert torch.equal(states[1, :3], expected[1, :3])


def test_other_rows_or_weights_are_not_taken_for_ours(tmp_path):
    first = lower_layers(adapted("bert"), tmp_path)
    first.states(key([0]), batch_of([0]))
    first.close()
    other_rows = lower_layers(adapted("bert"), tmp_path, "other rows")
    other_rows.states(key([0]), batch_of([0]))
    assert other_rows.computed == 1
    model = adapted("bert")
    model.get_base_model().bert.encoder.layer[1].output.dense.weight.data[0, 0] += 1
    other_weights = lower_layers(model, tmp_path)
    other_weights.states(key([0]), batch_of([0]))
    assert other_weights.computed == 1
    trained = adapted("bert")
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 1
    top_weights = lower_layers(trained, tmp_path)
    top_weights.states(key([0]), batch_of([0]))
    assert top_weights.computed == 0


def damage_states(path):
    data = bytearray(path.read_bytes())
    data[5] ^= 255  # in row 0
    path.write_bytes(data)


def cut_states(path):
    path.write_bytes(path.read_bytes()[:-4])  # the end of row 1


@pytest.mark.parametrize("damage,lost", [(damage_states, 1), (cut_states, 1)])
def test_damaged_states_are_computed_anew(damage, lost, tmp_path):
    model, batch = adapted("llama").eval(), batch_of([0, 1])
    lower = lower_layers(model, tmp_path)
    expected = lower.states(key([0, 1]), batch)
    path = lower._store.path
    lower.close()
    damage(path)
    again = lower_layers(model, tmp_path)
    assert torch.allclose(again.states(key([0, 1]), batch), expected, atol=1e-6)
    assert again.computed == lost
    again.close()
    whole = lower_layers(model, tmp_path)
    assert torch.allclose(whole.states(key([0, 1]), batch), expected, atol=1e-6)
    assert whole.computed == 0
    whole.states(key([2]), batch_of([2]))
    whole.close()
    last = lower_layers(model, tmp_path)
    assert torch.allclose(last.states(key([0, 1]), batch), expected, atol=1e-6)
    last.states(key([2]), batch_of([2]))
    assert last.computed == 0


@pytest.mark.parametrize(
    "content,lost",
    [(b"", 2), (b"nonsense", 2), (b"x" * 400, 2), (None, 2), ("torn", 1)],
)
def test_a_torn_or_foreign_index_is_recognised(content, lost, tmp_path):
    model, batch = adapted("bert").eval(), batch_of([0, 1])
    lower = lower_layers(model, tmp_path)
    expected, path = lower.states(key([0, 1]), batch), lower._store.index_path
    lower.close()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if content == "torn" else content)
    again = lower_layers(model, tmp_path)
    assert torch.allclose(again.states(key([0, 1]), batch), expected, atol=1e-6)
    assert again.computed == lost
    again.close()
    assert torch.allclose(lower_layers(model, tmp_path).states(key([0, 1]), batch), expected, atol=1e-6)


def test_only_the_model_s_own_keys_are_cut_to_the_missing_rows(tmp_path):
    model = adapted("bert").eval()
    lower = lower_layers(model, tmp_path)
    lower.states(key([0]), batch_of([0]))
    batch = {**batch_of([0, 1]), "labels": torch.tensor([0, 1]), "note": "x", "weight": torch.tensor(1.0)}
    assert lower.states(key([0, 1]), batch).shape == (2, 4, 16)


def test_two_at_once_take_different_files(tmp_path):
    model, batch = adapted("bert").eval(), batch_of([0, 1])
    first, second = lower_layers(model, tmp_path), lower_layers(model, tmp_path)
    assert torch.equal(first.states(key([0, 1]), batch), second.states(key([0, 1]), batch))
    assert first._store.path != second._store.path


def test_everything_is_restored_after_an_exception(tmp_path):
    model, batch = adapted("bert").train(), batch_of([0, 1])
    lower = lower_layers(model, tmp_path)
    modes = [module.training for module in model.modules()]
    own = lower.stack[0].forward
    lower.stack[0].forward = own  # as accelerate leaves it
    with pytest.raises(KeyError), lower.replaced(key([0, 1]), batch):
        raise KeyError
    assert lower.stack[0].__dict__["forward"] is own
    assert "forward" not in lower.stack[1].__dict__
    assert [module.training for module in model.modules()] == modes
    assert not lower.stack[1]._forward_hooks


def test_quiet_layers_have_no_dropout(tmp_path):
    model = adapted("bert").train()
    quiet_lower_layers(model)
    bert = model.get_base_model().bert
    assert not bert.embeddings.dropout.training
    assert [layer.output.dropout.training for layer in bert.encoder.layer] == [False, False, True, True]
    model.train()
    assert bert.embeddings.dropout.training
    lower, batch = lower_layers(model, tmp_path), batch_of([0, 1, 2])
    lower.quiet()
    torch.manual_seed(5)
    whole = model(**batch).logits
    torch.manual_seed(5)
    with lower.replaced(key([0, 1, 2]), batch):
        short = model(**batch).logits
    assert (whole - short).abs().max() <= 1e-6  # the same draws for the dropout above


def test_quieting_a_model_trained_from_below_changes_nothing():
    model = bare("bert").train()
    quiet_lower_layers(model)
    assert all(module.training for module in model.modules())


def head_only():
    model = bare("bert")
    model.bert.requires_grad_(False)
    return model


def trained_embeddings():
    model = head_only()
    model.bert.embeddings.LayerNorm.requires_grad_(True)
    return model


def encoder_decoder():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 2, "vocab_size": 10}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    model.requires_grad_(False)
    return model


def no_stack():
    model = BertForSequenceClassification(BertConfig(**{**SIZES, "num_hidden_layers": 1}))
    model.bert.requires_grad_(False)
    return model


def learned_prompt():
    from peft import PromptTuningConfig

    return get_peft_model(bare("bert"), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


@pytest.mark.parametrize(
    "make,first",
    [
        (lambda: adapted("bert"), 2),
        (lambda: adapted("llama", (3,)), 3),
        (lambda: adapted("hlr_encoder", (1, 3)), 1),
        (lambda: adapted("bert", (0,)), 0),
        (head_only, 4),
        (lambda: bare("bert"), 0),
        (trained_embeddings, 0),
        (encoder_decoder, 0),
        (no_stack, 0),
        (learned_prompt, 0),
    ],
)
def test_the_first_trainable_layer(make, first):
    assert first_trainable_layer(make()) == first


def test_with_a_head_alone_all_layers_are_saved(tmp_path):
    model, batch = head_only().eval(), batch_of([0, 1])
    lower = lower_layers(model, tmp_path)
    with lower.replaced(key([0, 1]), batch):
        assert (model(**batch).logits - bare("bert").eval()(**batch).logits).abs().max() <= 1e-6


def test_images_have_no_padding(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
    )
    model = ViTForImageClassification(config).eval()
    model.vit.requires_grad_(False)
    layer_stack(model)[1][2].requires_grad_(True)
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    lower = lower_layers(model, tmp_path)
    with torch.no_grad(), lower.replaced(key([3, 1]), batch):
        short = model(**batch).logits
    with torch.no_grad():
        assert (short - model(**batch).logits).abs().max() <= 1e-6
    assert lower.states(key([1]), {"pixel_values": batch["pixel_values"][1:]}).shape == (1, 5, 16)
    assert lower.computed == 2


def test_token_logits_agree_where_there_are_tokens(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(BertConfig(**SIZES)).eval()
    model.bert.requires_grad_(False)
    lower, batch = lower_layers(model, tmp_path), batch_of([0, 1])
    with torch.no_grad():
        whole = model(**batch).logits
        with lower.replaced(key([0, 1]), batch):
            short = model(**batch).logits
    mask = batch["attention_mask"].bool()
    assert lower.active
    assert (whole - short)[mask].abs().max() <= 1e-6


class ReadsLower(BertForSequenceClassification):
    """A head that reads the lowest layer beside the last."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        kept = []
        hook = self.bert.encoder.layer[0].register_forward_hook(lambda m, g, output: kept.append(output))
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hook.remove()
        outputs.logits = outputs.logits + kept[0][:, 0, :3]
        return outputs


class TrainsBehindItsPlace(BertForSequenceClassification):
    """A trained scale that is registered last and acts on the embeddings."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Linear(16, 16)
        self.bert.embeddings.register_forward_hook(lambda m, g, output: self.scale(output))


class TellsMore(BertForSequenceClassification):
    """Layers that return a second tensor."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.bert.encoder.layer:
            layer.register_forward_hook(lambda m, g, output: (output, output))
            layer.register_forward_pre_hook(
                lambda m, g: (g[0][0] if isinstance(g[0], tuple) else g[0], *g[1:])
            )
        self.bert.encoder.register_forward_hook(self.first)

    @staticmethod
    def first(module, given, output):
        output.last_hidden_state = output.last_hidden_state[0]
        return output


@pytest.mark.parametrize(
    "cls,reason",
    [
        (ReadsLower, "outputs differ"),
        (TrainsBehindItsPlace, "act below"),
        (TellsMore, "more than hidden states"),
    ],
)
def test_models_that_cannot_be_cut_are_computed_whole(cls, reason, tmp_path, caplog):
    torch.manual_seed(0)
    model = cls(BertConfig(**SIZES)).eval()
    model.bert.requires_grad_(False)
    lower, batch = lower_layers(model, tmp_path), batch_of([0, 1])
    whole = model(**batch).logits
    with caplog.at_level(logging.WARNING, "hf_llm_recipes"), lower.replaced(key([0, 1]), batch):
        assert torch.equal(model(**batch).logits, whole)
    assert not lower.active
    assert reason in caplog.text
    model.train()
    lower.quiet()
    assert all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="cannot be replaced"):
        lower.states(key([0, 1]), batch)


def test_activation_checkpointing_is_no_reason_to_give_up(tmp_path):
    model, batch = adapted("bert").eval(), batch_of([0, 1])
    model.enable_input_require_grads()
    lower = lower_layers(model, tmp_path)
    with lower.replaced(key([0, 1]), batch):
        model(**batch).logits.sum().backward()
    assert lower.active


def test_half_precision_is_kept_as_it_is(tmp_path):
    model, batch = adapted("bert").to(torch.bfloat16).eval(), batch_of([0, 1])
    lower = lower_layers(model, tmp_path)
    first = lower.states(key([0, 1]), batch)
    assert first.dtype == torch.bfloat16
    lower.close()
    assert lower_layers(model, tmp_path).states(key([0, 1]), batch).equal(first)


def test_autocast_has_a_file_of_its_own(tmp_path):
    model, batch = adapted("bert").eval(), batch_of([0, 1])
    plain = lower_layers(model, tmp_path)
    plain.states(key([0, 1]), batch)
    cast = lower_layers(model, tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        cast.states(key([0, 1]), batch)
    assert cast.computed == 2
    assert cast._store.path.name[:24] != plain._store.path.name[:24]


@pytest.mark.parametrize(
    "rows,message",
    [([5], r"rows are \[5\]; allowed: 0 to 4"), ([-1], r"allowed: 0 to 4")],
)
def test_rows_outside_a_stream(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lower_layers(adapted("bert"), tmp_path).states(key(rows), batch_of([0]))


def test_an_unknown_stream(tmp_path):
    with pytest.raises(ValueError, match="no stream `test`; allowed: pool, labeled"):
        lower_layers(adapted("bert"), tmp_path).states(key([0], "test"), batch_of([0]))


def test_padding_on_the_left(tmp_path):
    batch = {"input_ids": torch.tensor([[0, 2, 3]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(ValueError, match="padded on the left"):
        lower_layers(adapted("bert"), tmp_path).states(key([0]), batch)


def test_a_view_that_changes(tmp_path):
    lower = lower_layers(adapted("bert"), tmp_path)
    lower.states(key([0]), batch_of([0]))
    with pytest.raises(ValueError, match="row 0 has 3 tokens, 4 at its first visit"):
        lower.states(key([0]), batch_of([1]))


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="no layer can be saved"):
        lower_layers(bare("bert"), tmp_path)


@pytest.mark.parametrize("num_rows", [{}, {"pool": 0}])
def test_streams_without_rows(num_rows, tmp_path):
    with pytest.raises(ValueError, match="one or more rows in every stream"):
        LowerLayers(adapted("bert"), tmp_path, "rows", num_rows)


def test_the_disk_is_looked_at_before_the_first_row(tmp_path, monkeypatch):
    asked = []

    def refuse(path, needed, what):
        asked.append(needed)
        raise RunError("too little")

    monkeypatch.setattr(_lower_layers, "need_space", refuse)
    with pytest.raises(RunError, match="too little"):
        lower_layers(adapted("bert"), tmp_path).states(key([0, 2]), batch_of([0, 2]))
    assert asked == [7 * 5 * 16 * 4]  # 7 rows in both streams, 5 tokens a row so far, float32
