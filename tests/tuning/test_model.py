import json
import shutil

import pytest
import torch
from _tiny import CLASSES, SAVED, SMALL, build, logits, reloaded, save, trainable, trained
from conftest import make_tokenizer
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
)

from hf_llm_recipes.errors import RunError, UserError
from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource, choose_precision, count_parameters, head_modules
from hf_llm_recipes.tuning.freeze import Freeze
from hf_llm_recipes.tuning.full import Full
from hf_llm_recipes.tuning.lora import Lora


def gpu(monkeypatch, *, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


def test_on_a_cpu_everything_is_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for frozen_base in (True, False):
        precision = choose_precision("auto", frozen_base=frozen_base)
        assert (precision.weights, precision.trainer) == (torch.float32, {})
        assert precision.reason.startswith("float32: ")


@pytest.mark.parametrize(
    ("bf16", "frozen_base", "weights", "trainer"),
    [
        (True, True, torch.bfloat16, {"bf16": True}),
        (True, False, torch.float32, {"bf16": True}),
        (False, True, torch.float16, {"fp16": True}),
        (False, False, torch.float32, {"fp16": True}),
    ],
)
def test_on_a_gpu_it_depends_on_its_arithmetic(monkeypatch, bf16, frozen_base, weights, trainer):
    gpu(monkeypatch, bf16=bf16)
    precision = choose_precision("auto", frozen_base=frozen_base)
    assert (precision.weights, precision.trainer) == (weights, trainer)
    assert ("this GPU has it" if bf16 else "no bfloat16") in precision.reason


@pytest.mark.parametrize(
    ("wanted", "trainer"), [("float32", {}), ("bfloat16", {"bf16": True}), ("float16", {"fp16": True})]
)
def test_a_dtype_of_the_recipe_is_taken_and_half_precision_trains_mixed(wanted, trainer):
    for device in ("cpu", "cuda"):
        precision = choose_precision(wanted, frozen_base=True, device=device)
        assert (precision.weights, precision.trainer) == (getattr(torch, wanted), trainer)
        assert precision.reason == f"{wanted} weights, as the recipe says"


def test_the_cpus_reason_tells_what_it_has(monkeypatch):
    for has, said in ((True, "try trainer.bf16=true"), (False, "this CPU has no bfloat16")):
        monkeypatch.setattr(_model.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        assert said in choose_precision("auto", frozen_base=True, device="cpu").reason


def test_the_head_is_what_stands_outside_the_backbone():
    with torch.device("meta"):
        assert head_modules(BertForSequenceClassification(BertConfig(**SMALL))) == ["classifier"]
        distilbert = DistilBertForSequenceClassification(DistilBertConfig(dim=32, n_heads=2, hidden_dim=64))
        assert head_modules(distilbert) == ["pre_classifier", "classifier"]
        assert head_modules(RobertaForSequenceClassification(RobertaConfig(**SMALL))) == ["classifier"]
        assert head_modules(LlamaForSequenceClassification(LlamaConfig(**SMALL))) == ["score"]
        assert head_modules(BertModel(BertConfig(**SMALL))) == []


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"), lambda: BertModel(BertConfig(**SMALL)))


@pytest.fixture(scope="module")
def no_pooler(tmp_path_factory):
    make = lambda: BertModel(BertConfig(**SMALL), add_pooling_layer=False)  # noqa: E731
    return save(tmp_path_factory.mktemp("no-pooler"), make)


def test_a_head_of_another_size_is_replaced_and_said(tmp_path):
    config = BertConfig(**SMALL, num_labels=2)
    folder = save(tmp_path / "two", lambda: BertForSequenceClassification(config))
    built = build(folder, Full())
    assert built.model.classifier.weight.shape == (3, 32)
    assert built.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert built.notes == [f"initialised afresh: classifier (not in {folder}); trained and saved"]


def test_a_head_of_the_same_size_is_kept_and_said(tmp_path):
    config = BertConfig(**SMALL, num_labels=3)
    folder = save(tmp_path / "three", lambda: BertForSequenceClassification(config))
    first = BertForSequenceClassification.from_pretrained(folder)
    built = build(folder, Lora(r=2))
    assert built.notes == [f"the head (classifier) comes from {folder}"]
    assert torch.equal(
        built.model.get_submodule("base_model.model.classifier").weight, first.classifier.weight
    )


def test_a_backbone_of_another_shape_is_refused(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    with pytest.raises(
        RunError, match=r"word_embeddings.weight` has another shape than its configuration says"
    ):
        build(folder, Full())


QUANTISED = [None, {"load_in_4bit": True}, {"load_in_8bit": True}]


@pytest.mark.parametrize("quantization", QUANTISED, ids=["float", "4bit", "8bit"])
def test_a_fresh_pooler_is_trained_saved_and_never_quantised(no_pooler, quantization, tmp_path):
    built = build(no_pooler, Lora(r=4), quantization=quantization)
    assert built.head == ["classifier", "bert.pooler.dense"]
    assert built.notes == [
        f"initialised afresh: bert.pooler.dense, classifier (not in {no_pooler}); trained and saved"
    ] or built.notes == [
        f"initialised afresh: classifier, bert.pooler.dense (not in {no_pooler}); trained and saved"
    ]
    pooler = "base_model.model.bert.pooler.dense.modules_to_save.default"
    assert {f"{pooler}.weight", f"{pooler}.bias"} <= trainable(built.model)
    assert not [n for n in trainable(built.model) if "lora_" in n and "pooler" in n]
    if quantization:
        assert built.quantization["llm_int8_skip_modules"] == ["classifier", "bert.pooler.dense"]
        assert dict(built.model.named_parameters())[f"{pooler}.weight"].shape == (32, 32)
    assert trained(built) == []
    again = reloaded(built, tmp_path / "out", no_pooler)
    assert (logits(built.model) - logits(again)).abs().max() < 1e-4


def test_a_fresh_pooler_is_trained_with_the_head_alone(no_pooler, tmp_path):
    built = build(no_pooler, Freeze(last=0))
    assert trainable(built.model) == {
        "classifier.weight",
        "classifier.bias",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    trained(built)
    again = reloaded(built, tmp_path / "out", no_pooler)
    assert (logits(built.model) - logits(again)).abs().max() < 1e-6


@pytest.mark.parametrize("tuning", [Lora(r=2), Freeze(last=1), Full()], ids=["lora", "freeze", "full"])
def test_trained_weights_are_float32_on_a_base_in_half_precision(bert, tuning, tmp_path):
    built = build(bert, tuning, dtype="bfloat16")
    kinds = {p.requires_grad: set() for p in built.model.parameters()}
    for parameter in built.model.parameters():
        kinds[parameter.requires_grad].add(parameter.dtype)
    assert kinds[True] == {torch.float32}
    assert kinds.get(False, {torch.bfloat16}) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(built.model)
    again = reloaded(built, tmp_path / "out", bert, dtype="bfloat16")
    assert (before - logits(again)).abs().max() < 0.05  # bfloat16 keeps 8 bits; the logits are about 1


def test_a_quantised_base_with_trained_layers_answers_in_half_precision(bert, tmp_path):
    built = build(bert, Freeze(last=1), quantization={"load_in_4bit": True}, dtype="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(built.model)
    again = reloaded(built, tmp_path / "out", bert, dtype="bfloat16")
    assert (before - logits(again)).abs().max() < 0.05


def test_the_quantisation_is_written_out(bert):
    given = {"load_in_4bit": True, "llm_int8_skip_modules": ["bert.pooler.dense"]}
    built = build(bert, Freeze(last=1), quantization=given)
    assert built.quantization == {
        "load_in_4bit": True,
        "bnb_4bit_compute_dtype": "float32",
        "llm_int8_skip_modules": ["bert.pooler.dense", "classifier", "bert.encoder.layer.1", "bert.pooler"],
    }
    assert given == {"load_in_4bit": True, "llm_int8_skip_modules": ["bert.pooler.dense"]}


def test_weights_are_counted_by_hand_and_the_same_when_quantised(bert):
    # embeddings, two layers of attention and feed-forward, pooler, head
    embeddings = (33 + 34 + 2) * 32 + 2 * 32
    layer = 4 * (32 * 32 + 32) + 2 * 32 + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 32
    expected = embeddings + 2 * layer + (32 * 32 + 32) + (32 * 3 + 3)
    assert count_parameters(build(bert, Full()).model) == {"trainable": expected, "total": expected}
    head = 32 * 3 + 3
    for quantization in QUANTISED:
        model = build(bert, Freeze(last=0), quantization=quantization).model
        assert count_parameters(model) == {"trainable": head, "total": expected}


def test_the_end_token_pads_where_there_is_none(tmp_path):
    BertConfig(**SMALL).save_pretrained(tmp_path)
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    loaded = _model.load_tokenizer(ModelSource(name=str(tmp_path)))
    assert (loaded.pad_token, loaded.pad_token_id) == ("[SEP]", 3)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RunError, match="the tokenizer has neither a padding nor an end token"):
        _model.load_tokenizer(ModelSource(name=str(tmp_path)))


@pytest.mark.parametrize("own", [None, 5])
def test_a_configuration_without_a_padding_token_gets_the_tokenizers(tmp_path, own):
    config = LlamaConfig(**SMALL, num_key_value_heads=1, pad_token_id=own)
    folder = save(tmp_path / "llama", lambda: LlamaForSequenceClassification(config))
    assert build(folder, Full()).model.config.pad_token_id == (0 if own is None else own)


def test_float16_is_not_trained_on_a_cpu(bert, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RunError, match=r"training in float16 needs a GPU\n  allowed: model.dtype: auto, float32 or"
    ):
        build(bert, Full(), dtype="float16")


def test_a_folder_without_a_tokenizer(bert, tmp_path):
    shutil.copy(bert / "config.json", tmp_path)
    with pytest.raises(RunError) as caught:
        _model.load_tokenizer(ModelSource(name=str(tmp_path)))
    assert "the tokenizer has no vocabulary: its files are missing" in str(caught.value)
    assert "do: copy tokenizer.json" in str(caught.value)


def test_a_tokenizer_that_is_no_json(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "broken")
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(RunError, match=r"the tokenizer could not be loaded: [\s\S]*do: check the name"):
        _model.load_tokenizer(ModelSource(name=str(folder)))


@pytest.mark.parametrize("load", [_model.load_tokenizer, _model.load_image_processor])
def test_a_download_that_fails_keeps_its_own_message(load, monkeypatch):
    def fail(name, revision=None):
        raise RunError("could not be fetched", where=name)

    source = ModelSource(name="local/minilm")  # checked, not yet fetched
    monkeypatch.setattr("hf_llm_recipes.assets.resolve_model", fail)
    with pytest.raises(RunError, match=r"^local/minilm: could not be fetched$"):
        load(source)
    with pytest.raises(RunError, match=r"^local/minilm: could not be fetched$"):
        _model.load_config(source, {})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError) as caught:
        ModelSource(name=str(tmp_path / "nowhere"))
    assert "nowhere" in str(caught.value)
    assert "do: " in str(caught.value)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds no model: no config.json .*; it holds notes.txt\n  allowed: "):
        ModelSource(name=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"the configuration could not be loaded: [\s\S]*do: check the name"):
        _model.load_config(ModelSource(name=str(tmp_path)), {})


def test_a_model_that_cannot_do_the_task(tmp_path):
    ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(
        RunError, match=r"a vit model cannot do this task: [\s\S]*do: choose a model of another"
    ):
        build(tmp_path, Full())


def test_code_of_the_checkpoint_is_not_run_unasked(tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(RunError, match=r"read it, then set `model.trust_remote_code: true`"):
        _model.load_config(ModelSource(name=str(tmp_path)), {})


def test_an_adapter_that_is_corrupt(bert, tmp_path):
    built = build(bert, Lora(r=2))
    built.model.save_pretrained(tmp_path)
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(RunError, match="the adapter could not be loaded: "):
        _model.load_saved(tmp_path, source=ModelSource(name=str(bert)), quantization=None, **SAVED)


def test_the_tasks_values_stand_in_the_configuration(bert):
    config = _model.load_config(ModelSource(name=str(bert)), CLASSES)
    assert (config.num_labels, config.id2label[2]) == (3, "c")
    assert config.problem_type == "single_label_classification"


def test_an_architecture_of_images_needs_no_tokenizer_and_gets_a_plain_processor():
    config = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    source = ModelSource(architecture="hlr_vision", preset="tiny", config=config)
    processor = _model.load_processor(source, "image_processor")
    pixels = processor([Image.new("L", (3, 5), 255)], return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 1, 8, 8)
    assert pixels.min() == pixels.max() == 1.0
    assert _model.load_config(source, {"num_labels": 4}, processor).num_labels == 4
    with pytest.raises(ValueError, match="tokenizer has no effect on hlr_vision, which takes images"):
        ModelSource(architecture="hlr_vision", tokenizer="local/nothing")


def test_an_architecture_of_texts_takes_no_images(bert):
    source = ModelSource(architecture="hlr_encoder", preset="tiny", tokenizer=str(bert))
    with pytest.raises(RunError, match="hlr_encoder takes no images"):
        _model.load_processor(source, "image_processor")


def test_a_checkpoint_without_an_image_processor_is_named(bert):
    with pytest.raises(RunError, match="the image processor could not be loaded"):
        _model.load_processor(ModelSource(name=str(bert)), "image_processor")
