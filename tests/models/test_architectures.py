"""Every registered architecture x head, found by walking the folder: what each of them must do.

A new file in ``hf_llm_recipes/models`` with a config that has a ``tiny`` preset is tested here by itself.
"""

import copy
import importlib
import json
import pkgutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    pipeline,
)
from transformers.models.auto import modeling_auto
from transformers.utils import is_flash_attn_2_available

import hf_llm_recipes.models as package
from hf_llm_recipes.models.base import HlrConfig, HlrPreTrainedModel, carry_code

MODULES = [
    importlib.import_module(f"{package.__name__}.{found.name}")
    for found in pkgutil.iter_modules(package.__path__)
]
CLASSES = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    },
    key=lambda cls: cls.__name__,
)
CONFIGS = [cls for cls in CLASSES if issubclass(cls, HlrConfig) and cls.model_type.startswith("hlr_")]
HEADS = [
    cls
    for cls in CLASSES
    if issubclass(cls, HlrPreTrainedModel) and "For" in cls.__name__ and cls.__name__.startswith("Hlr")
]
MLM_LABELS = ("ForMaskedLM", "ForPreTraining", "ForCausalLM", "ForConditionalGeneration")


def heads(*parts):
    found = [cls for cls in HEADS if any(part in cls.__name__ for part in parts)]
    assert found, parts
    return pytest.mark.parametrize("head", found, ids=lambda cls: cls.__name__)


every_head = pytest.mark.parametrize("head", HEADS, ids=lambda cls: cls.__name__)
text_heads = pytest.mark.parametrize(
    "head", [cls for cls in HEADS if "Vision" not in cls.__name__], ids=lambda cls: cls.__name__
)


def make(head, *, attn="sdpa", **overrides):
    """A tiny model with weights large enough that every part shows in the logits."""
    torch.manual_seed(0)
    overrides = {
        "initializer_range": 0.15,
        **dict.fromkeys(("hidden_dropout_prob", "attention_dropout_prob"), 0.0),
        **overrides,
    }
    config = head.config_class.preset("tiny", **overrides)
    return head._from_config(config, attn_implementation=attn).eval()


def batch(model, rows=3, length=9, seed=1):
    """Inputs and labels of the shapes the head takes."""
    generator = torch.Generator().manual_seed(seed)
    name, config = type(model).__name__, model.config

    def ids(*shape):
        return torch.randint(5, config.vocab_size, shape, generator=generator)

    def classes(*shape):
        return torch.randint(0, config.num_labels, shape, generator=generator)

    if "Vision" in name:
        size = (rows, config.num_channels, config.image_size, config.image_size)
        inputs = {"pixel_values": torch.rand(size, generator=generator)}
        if "Masked" in name:
            masked = torch.arange(config.num_patches) % 3 == 0
            return {**inputs, "bool_masked_pos": masked.expand(rows, -1).clone()}
        return {**inputs, "labels": classes(rows)}
    if "MultipleChoice" in name:
        return {"input_ids": ids(rows, 2, length), "labels": torch.arange(rows) % 2}
    inputs = {"input_ids": ids(rows, length)}
    if "ForQuestionAnswering" in name:
        return {**inputs, "start_positions": torch.arange(rows), "end_positions": torch.arange(rows) + 2}
    if "ForTokenClassification" in name:
        return {**inputs, "labels": classes(rows, length)}
    if any(part in name for part in MLM_LABELS):
        inputs["labels"] = ids(rows, length)
        inputs["labels"][:, ::3] = -100
        inputs["labels"][0, 1:4] = -100  # rows with different numbers of labels
        if "ForPreTraining" in name:
            inputs["next_sentence_label"] = torch.arange(rows) % 2
        return inputs
    inputs["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
    return {**inputs, "labels": classes(rows)}


def inputs_only(model, **options):
    """A batch without labels, with what the head needs in their place."""
    inputs = batch(model, **options)
    labels = inputs.pop("labels", None)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    return inputs


def main_output(output):
    return output[1] if output[0].ndim == 0 else output[0]


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-4)


def test_the_walk_finds_every_architecture_and_head():
    assert {cls.model_type for cls in CONFIGS} >= {"hlr_encoder", "hlr_decoder"}
    assert len(HEADS) >= 9
    registered = {
        model.__name__
        for mapping in vars(modeling_auto).values()
        if hasattr(mapping, "_extra_content")
        for model in mapping._extra_content.values()
    }
    for cls in HEADS:
        assert cls.__name__ in registered, f"{cls.__name__} is not registered with an Auto class"
    for cls in CONFIGS:
        assert AutoConfig.for_model(cls.model_type).__class__ is cls
        assert AutoModel.from_config(cls.preset("tiny")).config.model_type == cls.model_type


def test_importing_the_folder_registers_everything():
    code = "import hf_llm_recipes.models; from transformers import AutoConfig, AutoModel\n"
    for cls in CONFIGS:
        code += f"AutoModel.from_config(AutoConfig.for_model('{cls.model_type}', **{cls.PRESETS['tiny']}))\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def same_to_rounding(a, b):
    """Equal weights whose memory starts elsewhere are summed in another order on some CPUs (2e-7 on AVX2)."""
    return torch.allclose(a, b, rtol=1e-5, atol=2e-6)


@every_head
def test_save_and_load_is_bit_equal_and_keeps_ties(head, tmp_path):
    model = make(head)
    inputs = batch(model)
    before = main_output(model(**inputs))
    model.save_pretrained(tmp_path)
    again = head.from_pretrained(tmp_path, dtype="float32").eval()
    assert same_to_rounding(main_output(again(**inputs)), before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for target, source in again.all_tied_weights_keys.items():
        assert again.get_parameter(target) is again.get_parameter(source)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == head.config_class.model_type


@every_head
def test_loads_through_the_meta_device_and_a_device_map(head, tmp_path):
    model = make(head)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    again = head.from_pretrained(tmp_path, dtype="float32", device_map="cpu").eval()
    inputs = batch(model)
    assert same_to_rounding(main_output(again(**inputs)), main_output(model(**inputs)))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@every_head
@torch.no_grad()
def test_blocks_offloaded_to_the_disk_give_the_same(head, tmp_path):
    model = make(head, **({"tie_word_embeddings": False} if "Vision" not in head.__name__ else {}))
    model.save_pretrained(tmp_path)
    places = {}
    for name, parameter in model.named_parameters():
        parent, is_block, _ = name.partition(".layers.1.")
        if is_block:
            places[f"{parent}.layers.1"] = "disk"
        else:
            places[name.rpartition(".")[0] if name.endswith((".weight", ".bias")) else name] = "cpu"
    again = head.from_pretrained(
        tmp_path, dtype="float32", device_map=places, offload_folder=tmp_path / "offloaded"
    ).eval()
    assert any(parameter.device.type == "meta" for parameter in again.parameters())
    inputs = batch(model)
    close(main_output(again(**inputs)), main_output(model(**inputs)))


@text_heads
def test_untied_embeddings_are_two_tensors(head):
    model = make(head, tie_word_embeddings=False)
    assert not model.all_tied_weights_keys or model.config.is_encoder_decoder
    if model.get_output_embeddings() is not None:
        assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@heads("EncoderFor", "DecoderFor")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(head, side):
    for attn in ("eager", "sdpa", *(() if head.config_class.is_encoder_decoder else ("hlr_packed",))):
        model = make(head, attn=attn)
        inputs = inputs_only(model, rows=1)
        ids = inputs["input_ids"]
        inputs["attention_mask"] = torch.ones_like(ids)
        plain = main_output(model(**inputs))
        pad = (4, 0) if side == "left" else (0, 4)
        for key in ("input_ids", "attention_mask"):
            inputs[key] = nn.functional.pad(inputs[key], pad)
        padded = main_output(model(**inputs))
        if padded.ndim > 1 and padded.shape[1] == plain.shape[1] + 4:
            padded = padded[:, 4:] if side == "left" else padded[:, :-4]
        close(padded, plain)


@heads("DecoderForCausalLM", "DecoderForTokenClassification")
@pytest.mark.parametrize("attn", ["eager", "sdpa", "hlr_packed"])
@pytest.mark.parametrize("position", ["rotary", "learned", "alibi", "relative", "sinusoidal", "none"])
def test_a_future_token_changes_nothing_before_it(head, attn, position):
    model = make(head, attn=attn, position=position)
    ids = batch(model)["input_ids"]
    changed = ids.clone()
    changed[:, 6:] = 5 + (changed[:, 6:] + 1) % 90
    before, after = model(ids).logits, model(changed).logits
    close(after[:, :6], before[:, :6])
    assert (after[:, 6:] - before[:, 6:]).abs().max() > 1e-2


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "alibi", "relative"])
def test_order_counts_with_positions_and_only_with_them(position):
    head = next(cls for cls in HEADS if cls.__name__ == "HlrEncoderForTokenClassification")
    order = torch.tensor([3, 0, 2, 4, 1])
    for kind, same in ((position, False), ("none", True)):
        model = make(head, position=kind)
        ids = batch(model, length=5)["input_ids"]
        shuffled = model(ids[:, order]).logits
        difference = (shuffled - model(ids).logits[:, order]).abs().max()
        assert (difference < 1e-5) == same, (kind, difference)


@heads("DecoderForCausalLM")
@pytest.mark.parametrize("attn", ["eager", "sdpa", "hlr_packed"])
@pytest.mark.parametrize("position", ["rotary", "learned", "alibi", "relative", "sinusoidal"])
def test_cached_steps_equal_one_pass(head, attn, position):
    model = make(head, attn=attn, position=position)
    ids = batch(model)["input_ids"]
    whole = model(ids).logits
    past, pieces = None, []
    for piece in ids.split([4, 1, 3, 1], dim=1):
        output = model(piece, past_key_values=past, use_cache=True)
        past, pieces = output.past_key_values, [*pieces, output.logits]
    close(torch.cat(pieces, 1), whole)


@heads("DecoderForCausalLM")
@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_generation_is_the_same_cached_uncached_static_and_padded(head, position):
    model = make(head, position=position)
    ids = batch(model, rows=2)["input_ids"]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)[:, -6:]
    for attn, extra in (
        ("sdpa", {"use_cache": False}),
        ("sdpa", {"cache_implementation": "static", "disable_compile": True}),
        ("eager", {}),
        ("hlr_packed", {}),
    ):
        model.set_attn_implementation(attn)
        assert torch.equal(model.generate(ids, **options, **extra)[:, -6:], expected), (attn, extra)
    model.set_attn_implementation("sdpa")
    beams = model.generate(ids, num_beams=3, **options)
    assert torch.equal(beams, model.generate(ids, num_beams=3, use_cache=False, **options))
    padded, mask = nn.functional.pad(ids, (3, 0)), nn.functional.pad(torch.ones_like(ids), (3, 0))
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, -6:], expected)


@heads("EncoderForMaskedLM", "EncoderForTokenClassification", "DecoderForCausalLM", "DecoderForTokenClass")
@pytest.mark.parametrize("position", ["rotary", "learned", "alibi", "relative", "sinusoidal"])
def test_packed_sequences_equal_separate_ones(head, position):
    lengths = [4, 1, 6, 3]
    ids = torch.randint(5, 99, (1, sum(lengths)), generator=torch.Generator().manual_seed(3))
    restart = torch.cat([torch.arange(n) for n in lengths])[None]
    model = make(head, position=position)
    separate = torch.cat([model(piece).logits for piece in ids.split(lengths, 1)], 1)
    for attn in ("eager", "sdpa", "hlr_packed"):
        model.set_attn_implementation(attn)
        close(model(ids, position_ids=restart).logits, separate)
        mask = torch.ones_like(ids)
        close(model(ids, position_ids=restart, attention_mask=mask).logits, separate)
        padded, mask = nn.functional.pad(ids, (2, 1)), nn.functional.pad(mask, (2, 1))
        places = nn.functional.pad(restart, (2, 1), value=1)
        output = model(padded, position_ids=places, attention_mask=mask).logits
        close(output[:, 2:-1], separate)
    leaked = model(ids).logits
    assert (leaked[:, 4:] - separate[:, 4:]).abs().max() > 1e-2, "the test would not see a leak"


@pytest.fixture
def plain_flex(monkeypatch):
    """flex_attention as torch writes it out, without the minutes that compiling its kernels takes."""
    from torch.nn.attention import flex_attention as torchs
    from transformers import masking_utils
    from transformers.integrations import flex_attention

    def attend(*args, training=False, **kwargs):
        return torchs.flex_attention(*args, **kwargs)

    def block_mask(*args, _compile=True, **kwargs):
        return torchs.create_block_mask(*args, **kwargs)

    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", attend)
    monkeypatch.setattr(masking_utils, "create_block_mask", block_mask)


@every_head
@torch.no_grad()
def test_flex_attention_is_the_same(head, plain_flex):
    model = make(head, **({"position": "sinusoidal"} if head.config_class.is_encoder_decoder else {}))
    inputs = batch(model)
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, ..., :3] = 0
    expected = main_output(model(**inputs))
    model.set_attn_implementation("flex_attention")
    close(main_output(model(**inputs)), expected)


@heads("EncoderForMaskedLM", "DecoderForCausalLM")
@torch.no_grad()
def test_flex_attention_keeps_packed_sequences_apart(head, plain_flex):
    model = make(head)
    ids = batch(model, rows=1)["input_ids"]
    restart = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    separate = torch.cat([model(piece).logits for piece in ids.split([4, 5], 1)], 1)
    model.set_attn_implementation("flex_attention")
    close(model(ids, position_ids=restart).logits, separate)
    close(model(ids, position_ids=restart, attention_mask=torch.ones_like(ids)).logits, separate)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_an_attention_that_is_not_there_is_refused():
    with pytest.raises(ImportError, match=r"FlashAttention2 .*doesn't seem to be installed"):
        make(HEADS[0], attn="flash_attention_2")
    with pytest.raises(ValueError, match=r'attn_implementation="spda"` is not supported'):
        make(HEADS[0], attn="spda")


@text_heads
def test_resizing_the_vocabulary_keeps_what_was_learned(head):
    model = make(head)
    inputs = inputs_only(model)
    before, size = main_output(model(**inputs)), model.config.vocab_size
    model.resize_token_embeddings(size + 7, mean_resizing=False)
    after = main_output(model(**inputs))
    assert model.config.vocab_size == size + 7 == model.get_input_embeddings().num_embeddings
    if after.shape[-1] == size + 7:
        after = after[..., :size]
    close(after, before)
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, 0] = size + 6
    assert torch.isfinite(main_output(model(**inputs))).all()


@every_head
def test_activation_checkpointing_gives_the_same_gradients(head):
    model = make(head).train()
    inputs = batch(model)
    loss = model(**inputs)[0]
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    again = model(**inputs)[0]
    again.backward()
    assert torch.equal(again, loss)
    assert expected
    for name, parameter in model.named_parameters():
        if name in expected:
            close(parameter.grad, expected[name], atol=1e-6)
    # All weights learn: the loss reaches every parameter but those of parts that the head does not use.
    unused = {name for name, _ in model.named_parameters()} - set(expected)
    assert all("pooler" in name for name in unused), unused


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_finite(head, dtype):
    model = make(head).to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch(model).items()}
    loss, logits = model(**inputs)[:2]
    assert torch.isfinite(loss)
    assert torch.isfinite(logits).all()


class Rows(torch.utils.data.Dataset):
    def __init__(self, model, rows):
        self.columns = batch(model, rows=rows)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.columns.items()}


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@every_head
@pytest.mark.parametrize("labels", ["classes", "numbers"])
def test_one_batch_of_eight_equals_eight_batches_of_one(head, labels, tmp_path):
    overrides = {}
    if labels == "numbers":
        if not any(part in head.__name__ for part in ("ForSequenceClassification", "ForImageClassification")):
            return
        overrides = {"num_labels": 1}
    results = []
    for size, steps in ((8, 1), (1, 8), (2, 4)):
        model = make(head, **overrides)
        data = Rows(model, 8)
        if labels == "numbers":
            data.columns["labels"] = torch.linspace(-2, 2, 8)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            train_sampling_strategy="sequential",
        )
        trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
        trainer.train()
        results.append((trainer.state.log_history[0]["loss"], copy.deepcopy(model.state_dict())))
    loss, weights = results[0]
    for other_loss, other_weights in results[1:]:
        assert other_loss == pytest.approx(loss, rel=1e-4)
        for name, tensor in weights.items():
            close(other_weights[name], tensor, atol=1e-5)


@every_head
def test_a_lora_step_trains_adapters_only(head):
    peft = pytest.importorskip("peft")
    model = make(head)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=4))
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    adapted.train()
    adapted(**batch(model))[0].backward()
    optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any("q_proj" in name for name in changed)
    assert any("down_proj" in name for name in changed)


@every_head
@pytest.mark.parametrize("bits", [4, 8])
def test_loads_and_trains_adapters_on_a_quantized_base(head, bits, tmp_path):
    peft = pytest.importorskip("peft")
    make(head).save_pretrained(tmp_path)
    quantization = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        if bits == 4
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    model = head.from_pretrained(
        tmp_path, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    assert any(
        type(module).__name__.startswith("Linear4bit" if bits == 4 else "Linear8bitLt")
        for module in model.modules()
    )
    inputs = batch(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=4)).train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    loss = adapted(**inputs)[0]
    loss.backward()
    optimizer.step()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    with torch.no_grad():
        assert adapted(**inputs)[0] < loss


def with_padding(inputs):
    """The inputs with an attention mask, in which the end of the first row is padding."""
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, ..., -3:] = 0
    return inputs


@every_head
def test_the_forward_compiles_without_graph_breaks(head):
    model = make(head, num_hidden_layers=1)
    inputs = with_padding(batch(model))
    with torch.no_grad():
        expected = main_output(model(**inputs))
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        close(main_output(compiled(**inputs)), expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda cls: cls.model_type)
def test_the_training_step_compiles_without_graph_breaks(config):
    head = next(cls for cls in HEADS if cls.config_class is config)
    model = make(head, num_hidden_layers=1).train()
    inputs = with_padding(batch(model))
    model(**inputs)[0].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)[0].backward()
    assert expected
    for name, gradient in expected.items():
        close(model.get_parameter(name).grad, gradient)


@every_head
def test_the_forward_exports(head):
    """With a mask, and for other numbers of rows and tokens than it was traced with."""
    model = make(head, num_hidden_layers=1)
    inputs = with_padding(inputs_only(model))
    if "use_cache" in vars(model.config):
        model.config.use_cache = False
    free = torch.export.Dim.DYNAMIC
    is_text = "input_ids" in inputs
    dynamic = {key: {0: free, **({x.ndim - 1: free} if is_text else {})} for key, x in inputs.items()}
    exported = torch.export.export(model, (), kwargs=inputs, dynamic_shapes=dynamic, strict=False)
    larger = {key: torch.cat((value, value.flip(0))) for key, value in inputs.items()}
    if is_text:
        larger = {key: torch.cat((x, x[..., :4]), -1) if x.ndim > 1 else x for key, x in larger.items()}
    close(main_output(tuple(exported.module()(**larger).values())), main_output(model(**larger)))


@heads("ForConditionalGeneration")
@pytest.mark.parametrize("overrides", [{}, {"decoder_layers": 3}, {"position": "sinusoidal"}], ids=str)
def test_sequence_to_sequence_generation_is_the_same_cached_and_padded(head, overrides):
    model = make(head, **overrides)
    ids = batch(model, rows=2)["input_ids"]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    for beams in (1, 3):
        expected = model.generate(ids, num_beams=beams, **options)
        assert torch.equal(model.generate(ids, num_beams=beams, use_cache=False, **options), expected)
        for pad in ((3, 0), (0, 3)):
            padded, mask = nn.functional.pad(ids, pad), nn.functional.pad(torch.ones_like(ids), pad)
            again = model.generate(padded, attention_mask=mask, num_beams=beams, **options)
            assert torch.equal(again, expected), (beams, pad)
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, model.generate(ids, **options))


@heads("ForConditionalGeneration")
def test_the_decoder_sees_no_future_target(head):
    model = make(head)
    inputs = inputs_only(model)
    before = model(**inputs).logits
    inputs["decoder_input_ids"] = inputs["decoder_input_ids"].clone()
    inputs["decoder_input_ids"][:, 5:] += 1
    after = model(**inputs).logits
    close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().max() > 1e-2


def word_tokenizer(size):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<mask>", "<unk>", "the", "cat", "sat"]
    vocab = {word: i for i, word in enumerate(words + [f"w{i}" for i in range(size - len(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


PIPELINES = {
    "ForSequenceClassification": ("text-classification", "the cat"),
    "ForTokenClassification": ("token-classification", "the cat sat"),
    "ForMaskedLM": ("fill-mask", "the cat <mask>"),
    "ForCausalLM": ("text-generation", "the cat"),
}


@heads(*PIPELINES)
def test_pipelines_take_the_model(head):
    task, text = next(value for part, value in PIPELINES.items() if part in head.__name__)
    model = make(head, pad_token_id=0)
    options = {"max_new_tokens": 3, "do_sample": False} if task == "text-generation" else {}
    result = pipeline(task, model=model, tokenizer=word_tokenizer(model.config.vocab_size), device="cpu")(
        text, **options
    )
    assert result
    assert {"generated_text", "score"} & set(result[0])


@heads("ForImageClassification")
def test_the_image_pipeline_takes_the_model(head):
    from PIL import Image

    model = make(head)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    labels = pipeline("image-classification", model=model, image_processor=ViTImageProcessorPil(size=size))(
        Image.new("RGB", (40, 50), "red")
    )
    assert {row["label"] for row in labels} == {"LABEL_0", "LABEL_1"}
    assert sum(row["score"] for row in labels) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda cls: cls.model_type)
def test_the_feature_pipeline_takes_every_backbone(config):
    from PIL import Image

    model = AutoModel.from_config(config.preset("tiny")).eval()
    if config.is_encoder_decoder:
        return  # transformers has no pipeline left for text to text
    if "pixel_values" in model.main_input_name:
        size = {"height": model.config.image_size, "width": model.config.image_size}
        processor = ViTImageProcessorPil(size=size)
        found = pipeline("image-feature-extraction", model=model, image_processor=processor)(
            Image.new("RGB", (40, 50))
        )
        assert torch.tensor(found).shape == (1, model.config.num_patches + 1, 64)
    else:
        found = pipeline("feature-extraction", model=model, tokenizer=word_tokenizer(1000))("the cat sat")
        assert torch.tensor(found).shape == (1, 3, 64)


AUTO_CLASSES = {
    "ForPreTraining": "AutoModelForPreTraining",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForCausalLM": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForMaskedImageModeling": "AutoModelForMaskedImageModeling",
}
CLEAN_PROCESS = textwrap.dedent(
    """
    import json, sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "hf_llm_recipes":
                raise ModuleNotFoundError(f"{name} is not installed here")

    sys.meta_path.insert(0, Blocked())
    try:
        import hf_llm_recipes
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("the package is importable: the test proves nothing")
    import torch, transformers

    jobs = json.load(open(sys.argv[1]))
    for job in jobs:  # before the first load: running a family's code registers it
        auto = getattr(transformers, job["auto"])
        try:
            auto.from_pretrained(job["folder"], trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise SystemExit(f"{job['folder']} loaded without trust_remote_code")
    for job in jobs:
        auto = getattr(transformers, job["auto"])
        model = auto.from_pretrained(job["folder"], trust_remote_code=True, dtype="float32").eval()
        saved = torch.load(job["tensors"])
        with torch.no_grad():
            output = model(**saved["inputs"])
        logits = output[1] if output[0].ndim == 0 else output[0]
        difference = (logits - saved["logits"]).abs().max()
        assert difference < 2e-6, difference  # equal weights at another place in memory, see same_to_rounding
        print("same", type(model).__name__)
        if job["is_text"]:
            tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=True)
            assert tokenizer("the cat sat")["input_ids"] == [5, 6, 7]
            print("tokens")
    """
)


@pytest.fixture
def classes_as_before():
    """``carry_code`` marks classes; other tests should find them unmarked."""
    before = {cls: cls._auto_class for cls in (*CONFIGS, *HEADS)}
    yield
    for cls, value in before.items():
        cls._auto_class = value


def job(auto, folder, model, inputs):
    """What the clean process needs to load a folder and compare the result."""
    tensors = folder / f"{auto}.pt"
    with torch.no_grad():
        torch.save({"inputs": inputs, "logits": main_output(model(**inputs))}, tensors)
    is_text = (folder / "tokenizer_config.json").exists()
    return {"auto": auto, "folder": str(folder), "tensors": str(tensors), "is_text": is_text}


def test_the_code_travels_with_the_checkpoint(tmp_path, classes_as_before):
    """Each head by its own Auto class; each family also by ``AutoModel``; the tokenizer beside it."""
    jobs = []
    for head in HEADS:
        auto = next(value for part, value in AUTO_CLASSES.items() if part in head.__name__)
        folder, model = tmp_path / head.__name__, make(head)
        carry_code(model)
        model.save_pretrained(folder)
        if "Vision" not in head.__name__:
            word_tokenizer(model.config.vocab_size).save_pretrained(folder)
        jobs.append(job(auto, folder, model, batch(model)))
        if head is next(cls for cls in HEADS if cls.config_class is head.config_class):
            jobs.append(job("AutoModel", folder, model.model, inputs_only(model)))
        assert {"base.py", "layers.py", "packed.py"} <= {path.name for path in folder.iterdir()}
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    (tmp_path / "clean.py").write_text(CLEAN_PROCESS)
    home = tmp_path / "home"
    result = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "clean.py"), str(tmp_path / "jobs.json")],
        cwd="/",
        env={"HF_HOME": str(home), "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("same") == len(jobs) == len(HEADS) + len(CONFIGS)
    assert result.stdout.count("tokens") == sum(one["is_text"] for one in jobs)


def test_every_head_of_a_family_is_named_in_the_folder(tmp_path, classes_as_before):
    head = next(cls for cls in HEADS if cls.__name__ == "HlrDecoderForCausalLM")
    model = make(head)
    carry_code(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "decoder.HlrDecoderConfig",
        "AutoModel": "decoder.HlrDecoderModel",
        "AutoModelForCausalLM": "decoder.HlrDecoderForCausalLM",
        "AutoModelForSequenceClassification": "decoder.HlrDecoderForSequenceClassification",
        "AutoModelForTokenClassification": "decoder.HlrDecoderForTokenClassification",
    }
    seq2seq = next(cls for cls in HEADS if cls.config_class.is_encoder_decoder)
    with pytest.raises(ValueError, match="SourceEncoder is not registered with an Auto class"):
        carry_code(make(seq2seq).model.encoder)
