"""Frozen features are the base model's, whatever is wrapped around it, and are computed once."""

import io
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
    BitsAndBytesConfig,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import hf_llm_recipes.models.encoder
import hf_llm_recipes.models.vision  # noqa: F401 - registers the architectures
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.methods import _features
from hf_llm_recipes.methods._features import (
    backbone_of,
    evaluating,
    frozen_features,
    rows_sha256,
    weights_sha256,
)
from hf_llm_recipes.tuning._model import _keep_4bit_arithmetic

IDS = [[2, 7, 8, 3], [2, 9, 3], [2, 5, 6, 7, 8, 3], [2, 11, 12, 13, 3], [2, 30, 3]]
ROWS = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": i % 2} for i, ids in enumerate(IDS)]


class Collator:
    """Pads on the right and keeps the shapes that it saw."""

    def __init__(self):
        self.shapes = []

    def __call__(self, rows):
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            key: torch.tensor([row[key] + [0] * (width - len(row[key])) for row in rows])
            for key in ("input_ids", "attention_mask")
        }
        self.shapes.append(tuple(batch["input_ids"].shape))
        return batch


def features(model, folder, rows=ROWS, collator=None, **more):
    return frozen_features(
        model, rows, collator or Collator(), **{"batch_size": 2, "label": None, "directory": folder, **more}
    )


def by_hand(backbone, ids=IDS):
    """Row by row, without padding."""
    made = []
    with torch.no_grad():
        for row in ids:
            mean = backbone.eval()(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0).float()
            made.append((mean / mean.norm()).numpy())
    return np.stack(made)


def load(folder, **more):
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **more)


def lora(model):
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(1.0)
    return wrapped


def test_the_mean_over_tokens_of_unit_length(tiny_bert, tmp_path):
    model = load(tiny_bert)
    made = features(model, tmp_path)
    assert made.dtype == np.float32
    assert made.shape == (5, 32)
    assert np.abs(made - by_hand(model.bert)).max() < 1e-5
    assert np.abs(np.linalg.norm(made, axis=1) - 1).max() < 1e-5


def test_longest_rows_first_and_no_padding_beyond_a_batch(tiny_bert, tmp_path):
    collator = Collator()
    features(load(tiny_bert), tmp_path, collator=collator)
    assert collator.shapes == [(2, 6), (2, 4), (1, 3)]


def test_adapters_have_no_part_in_it(tiny_bert, tmp_path):
    model = lora(load(tiny_bert)).train()
    model.get_base_model().bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        adapted = model(input_ids=torch.tensor([IDS[0]])).logits
    expected = by_hand(load(tiny_bert).bert)
    assert np.abs(features(model, tmp_path) - expected).max() < 1e-5
    assert [module.training for module in model.modules()] == modes
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=torch.tensor([IDS[0]])).logits
    assert (adapted - base).abs().max() > 1e-3  # the adapter does something, and is on again


def test_a_decoder(tiny_llama, tmp_path):
    model = load(tiny_llama, pad_token_id=0)
    assert np.abs(features(model, tmp_path) - by_hand(model.model)).max() < 1e-5


def test_our_encoder(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "hlr_encoder",
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    model = AutoModelForSequenceClassification.from_config(config)
    assert np.abs(features(model, tmp_path) - by_hand(model.model)).max() < 1e-5


def test_an_encoder_decoders_encoder(tmp_path):
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 2, "vocab_size": 40}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    assert np.abs(features(model, tmp_path) - by_hand(model.get_encoder())).max() < 1e-5


def test_a_bare_backbone(tiny_bert, tmp_path):
    model = BertModel.from_pretrained(tiny_bert)
    assert backbone_of(model) is model
    assert features(model, tmp_path).shape == (5, 32)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base(bits, tiny_bert, tmp_path):
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["classifier"]
        )
        if bits == 4
        else BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
    )

    def quantised():
        model = load(tiny_bert, quantization_config=config, dtype="float32")
        _keep_4bit_arithmetic(model)
        return model

    made = features(lora(quantised()), tmp_path)
    expected = by_hand(quantised().bert)  # 8-bit rounds activations by batch
    assert np.abs(made - expected).max() < (1e-5 if bits == 4 else 0.02)
    assert np.abs(made - by_hand(load(tiny_bert).bert)).max() > 1e-4
    collator = Collator()
    assert np.array_equal(features(lora(quantised()), tmp_path, collator=collator), made)
    assert collator.shapes == []


PIXELS = {"image_size": 8, "patch_size": 4}
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def vit():
    return ViTForImageClassification(ViTConfig(**PIXELS, **WIDTHS))


def hlr_vision():
    return AutoModelForImageClassification.from_config(AutoConfig.for_model("hlr_vision", **PIXELS, **WIDTHS))


@pytest.mark.parametrize("make", [vit, hlr_vision])
def test_images_are_the_mean_of_their_patches(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    pixels = torch.randn(3, 3, 8, 8)
    rows = [{"pixel_values": row, "labels": 0} for row in pixels]
    made = features(
        model, tmp_path, rows, lambda rows: {"pixel_values": torch.stack([r["pixel_values"] for r in rows])}
    )
    with torch.no_grad():
        states = backbone_of(model)(pixel_values=pixels).last_hidden_state
    assert states.shape[1] == 5  # [CLS] and four patches
    mean = states[:, 1:].mean(1)
    assert np.abs(made - (mean / mean.norm(dim=1, keepdim=True)).numpy()).max() < 1e-5


def test_images_through_convolutions(tmp_path):
    torch.manual_seed(0)
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ).eval()
    pixels = torch.randn(2, 3, 32, 32)
    rows = [{"pixel_values": row} for row in pixels]
    made = features(
        model, tmp_path, rows, lambda rows: {"pixel_values": torch.stack([r["pixel_values"] for r in rows])}
    )
    with torch.no_grad():
        mean = model.resnet(pixels).last_hidden_state.mean((2, 3))
    assert np.abs(made - (mean / mean.norm(dim=1, keepdim=True)).numpy()).max() < 1e-5


def test_a_second_call_reads_the_file(tiny_bert, tmp_path):
    made, collator = features(load(tiny_bert), tmp_path), Collator()
    relabeled = [{**row, "labels": 7} for row in ROWS]
    assert np.array_equal(features(lora(load(tiny_bert)), tmp_path, relabeled, collator), made)
    assert collator.shapes == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_other_rows_or_weights_are_computed(tiny_bert, tmp_path):
    model = load(tiny_bert)
    features(model, tmp_path)
    collator = Collator()
    features(model, tmp_path, ROWS[::-1], collator)
    assert len(collator.shapes) == 3
    model.bert.embeddings.LayerNorm.bias.data[0] += 1
    features(model, tmp_path, ROWS, collator)
    assert len(collator.shapes) == 6
    model.classifier.bias.data += 1
    features(model, tmp_path, ROWS, collator)
    assert len(collator.shapes) == 6


def test_the_default_folder(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path))
    features(load(tiny_bert), None)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 1


def cut(path, made):
    path.write_bytes(path.read_bytes()[:-50])


def empty(path, made):
    path.write_bytes(b"")


def text(path, made):
    path.write_text("no array")


def fewer(path, made):
    np.save(path, made[:3])


def zeroed(path, made):
    np.save(path, np.where(np.arange(5)[:, None] == 2, 0, made).astype(np.float32))


def wider(path, made):
    np.save(path, made.astype(np.float64))


@pytest.mark.parametrize("damage", [cut, empty, text, fewer, zeroed, wider])
def test_a_damaged_or_foreign_file_is_replaced(damage, tiny_bert, tmp_path):
    made = features(load(tiny_bert), tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path, made)
    assert np.array_equal(features(load(tiny_bert), tmp_path), made)
    assert np.array_equal(np.load(path), made)


def test_an_interrupted_write_leaves_nothing(tiny_bert, tmp_path, monkeypatch):
    def stop(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_features.np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        features(load(tiny_bert), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tiny_bert, tmp_path, monkeypatch):
    asked = []

    def refuse(path, needed, what):
        asked.append((needed, what))
        raise RunError("too little")

    monkeypatch.setattr(_features, "need_space", refuse)
    with pytest.raises(RunError, match="too little"):
        features(load(tiny_bert), tmp_path)
    assert asked == [(5 * 32 * 4, "the frozen features")]


def test_what_the_rows_fingerprint_sees():
    one = rows_sha256(ROWS)
    assert rows_sha256([{**row, "labels": 5} for row in ROWS]) == one
    assert rows_sha256(ROWS[::-1]) != one
    assert rows_sha256([{"x": np.array([1, 2])}]) != rows_sha256([{"x": np.array([1, 3])}])
    assert rows_sha256([{"x": [np.arange(2000)]}]) != rows_sha256([{"x": [np.arange(2000) // 2]}])
    assert rows_sha256([{"x": torch.ones(2)}]) == rows_sha256([{"x": torch.ones(2)}])


def test_what_the_weights_fingerprint_sees(tiny_bert):
    plain, wrapped = load(tiny_bert).bert, lora(load(tiny_bert)).get_base_model().bert
    assert weights_sha256(plain, adapters=True) == weights_sha256(wrapped, adapters=False)
    assert weights_sha256(plain, adapters=True) != weights_sha256(wrapped, adapters=True)


def test_modes_come_back_after_an_exception(tiny_bert):
    model = load(tiny_bert).train()
    model.bert.pooler.eval()
    seen = []

    def interrupted():
        with evaluating(model):
            seen.extend(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not any(seen)
    assert model.training
    assert not model.bert.pooler.training


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_in_a_terminal_only(terminal, tiny_bert, tmp_path, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", shown)
    features(load(tiny_bert), tmp_path, label="features of the pool")
    assert ("features of the pool: 100%" in shown.getvalue()) is terminal


@pytest.mark.parametrize(
    "rows,size,message", [([], 2, "no rows"), (ROWS, 0, "batch_size is 0; allowed: 1 or more")]
)
def test_nothing_to_compute(rows, size, message, tiny_bert, tmp_path):
    with pytest.raises(ValueError, match=message):
        features(load(tiny_bert), tmp_path, rows, batch_size=size)


def test_a_mask_of_another_length(tiny_bert):
    class Shortened(torch.nn.Module):
        config = AutoConfig.for_model("bert")

        def forward(self, input_ids, attention_mask):
            states = torch.ones(1, 2, 4)
            return type("Output", (), {"last_hidden_state": states})

    with pytest.raises(ValueError, match=r"mask is \(1, 4\), the states are \(1, 2\)"):
        _features._pooled(Shortened(), Collator()(ROWS[:1]))
