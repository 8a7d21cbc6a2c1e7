"""Conversion: our models are the published ones, to the last digits, and turn back into them exactly."""

import copy

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM

from hf_llm_recipes import assets
from hf_llm_recipes.convert import FAMILIES, convert_checkpoint, to_ours, to_theirs
from hf_llm_recipes.models.decoder import HlrDecoderConfig, HlrDecoderForCausalLM
from hf_llm_recipes.models.encoder import HlrEncoderConfig, HlrEncoderForMaskedLM

TOLERANCE = 1e-5
BERT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROBERTA = {**BERT, "pad_token_id": 1, "type_vocab_size": 1}
GPT2 = {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MQA = {**LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}
T5 = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 9,
    "d_ff": 41,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 12,
    "patch_size": 4,
    "encoder_stride": 4,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5000.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 500000.0,
    "original_max_position_embeddings": 16,
}
LANGUAGE_MODELS = [
    ("GPT2LMHeadModel", GPT2),
    ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False, "n_inner": 50, "activation_function": "relu"}),
    ("LlamaForCausalLM", LLAMA),
    ("LlamaForCausalLM", MQA),
    ("LlamaForCausalLM", {**LLAMA, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    ("LlamaForCausalLM", {**LLAMA, "head_dim": 12, "rope_parameters": LLAMA3}),
    ("LlamaForCausalLM", {**LLAMA, "rope_parameters": YARN}),
    ("Qwen2ForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 16}),
    ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 8, "attention_bias": True}),
    ("MistralForCausalLM", {**LLAMA, "sliding_window": None}),
    ("MistralForCausalLM", {**LLAMA, "head_dim": 10, "sliding_window": 4}),
]
CASES = [
    ("BertModel", BERT),
    ("BertForPreTraining", BERT),
    ("BertForMaskedLM", BERT),
    ("BertForMaskedLM", {**BERT, "tie_word_embeddings": False, "hidden_act": "relu"}),
    ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
    ("BertForSequenceClassification", {**BERT, "num_labels": 1}),
    ("BertForMultipleChoice", BERT),
    ("BertForTokenClassification", {**BERT, "num_labels": 5}),
    ("BertForQuestionAnswering", BERT),
    ("RobertaModel", ROBERTA),
    ("RobertaForMaskedLM", ROBERTA),
    ("RobertaForSequenceClassification", {**ROBERTA, "num_labels": 3}),
    ("RobertaForMultipleChoice", ROBERTA),
    ("RobertaForTokenClassification", ROBERTA),
    ("RobertaForQuestionAnswering", ROBERTA),
    *LANGUAGE_MODELS,
    ("GPT2Model", GPT2),
    ("GPT2ForSequenceClassification", {**GPT2, "pad_token_id": 0}),
    ("GPT2ForTokenClassification", {**GPT2, "classifier_dropout": 0.0}),
    ("LlamaModel", LLAMA),
    ("LlamaForSequenceClassification", {**LLAMA, "pad_token_id": 0}),
    ("LlamaForTokenClassification", LLAMA),
    ("MistralModel", LLAMA),
    ("MistralForSequenceClassification", {**LLAMA, "pad_token_id": 0}),
    ("MistralForTokenClassification", LLAMA),
    ("Qwen2Model", LLAMA),
    ("Qwen2ForSequenceClassification", {**LLAMA, "pad_token_id": 0}),
    ("Qwen2ForTokenClassification", LLAMA),
    ("Qwen3Model", {**LLAMA, "head_dim": 8}),
    ("Qwen3ForSequenceClassification", {**LLAMA, "head_dim": 8, "pad_token_id": 0}),
    ("Qwen3ForTokenClassification", {**LLAMA, "head_dim": 8}),
    ("T5Model", T5),
    ("T5ForConditionalGeneration", T5),
    ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("T5ForConditionalGeneration", {**T5, "num_decoder_layers": 3}),
    ("ViTModel", VIT),
    ("ViTForImageClassification", {**VIT, "num_labels": 4, "qkv_bias": False}),
    ("ViTForMaskedImageModeling", VIT),
]
every_case = pytest.mark.parametrize(
    "name, keys", CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
)
language_model = pytest.mark.parametrize(
    "name, keys", LANGUAGE_MODELS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(LANGUAGE_MODELS)]
)


def published(name, keys, attn="sdpa"):
    """transformers' own model with every weight random, norms and biases too."""
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls._from_config(cls.config_class(**keys), attn_implementation=attn).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if name == "T5ForConditionalGeneration" and not model.config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def example(name, rows=3, length=9, side=None):
    """Inputs, with padding on one side of some rows, and labels; lengths are odd on purpose."""
    generator = torch.Generator().manual_seed(1)

    def ids(*shape):
        return torch.randint(3, 99, shape, generator=generator)

    if name.startswith("ViT"):
        inputs = {"pixel_values": torch.rand(rows, 3, 12, 12, generator=generator)}
        if "Masked" in name:
            return inputs, {"bool_masked_pos": torch.arange(9).expand(rows, 9) % 2 == 0}
        return inputs, {"labels": torch.tensor([0, 3, 1])} if "For" in name else {}
    shape = (rows, 2, length) if "MultipleChoice" in name else (rows, length)
    inputs = {"input_ids": ids(*shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
    if side is not None:
        pad = 1 if name.startswith("Roberta") else 0
        for row, amount in enumerate((0, 2, 5)):
            cut = slice(0, amount) if side == "left" else slice(length - amount, length)
            inputs["input_ids"][row, ..., cut] = pad
            inputs["attention_mask"][row, ..., cut] = 0
    if name.startswith("T5"):
        if name == "T5Model":
            return {**inputs, "decoder_input_ids": ids(rows, 7)}, {}
        labels = ids(rows, 7)
        labels[0, 5:] = -100
        return inputs, {"labels": labels}
    if name.endswith("Model") and "LMHead" not in name:
        return inputs, {}
    if name.endswith(("MaskedLM", "CausalLM", "LMHeadModel", "PreTraining")):
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        extra = {"next_sentence_label": torch.tensor([0, 1, 1])} if "PreTraining" in name else {}
        return inputs, {"labels": labels, **extra}
    if "TokenClassification" in name:
        labels = torch.randint(0, 2, (rows, length), generator=generator)
        return inputs, {"labels": labels.masked_fill(inputs["attention_mask"] == 0, -100)}
    if "QuestionAnswering" in name:
        return inputs, {"start_positions": torch.tensor([1, 4, 6]), "end_positions": torch.tensor([2, 4, 7])}
    return inputs, {"labels": torch.tensor([0, 1, 0])}


def attended(name, tensor, mask):
    """What the loss and the user see: positions of padding hold no meaning."""
    if mask is not None and tensor.ndim > 1 and tensor.shape[:2] == mask.shape and not name.startswith("T5"):
        return tensor[mask.bool()]
    return tensor


def tensors_of(output):
    keys = ("logits", "last_hidden_state", "pooler_output", "prediction_logits", "seq_relationship_logits")
    keys += ("start_logits", "end_logits", "reconstruction")
    return {key: output[key] for key in keys if output.get(key) is not None}


def difference(a, b):
    return (a - b).abs().max().item()


@every_case
@pytest.mark.parametrize("side", [None, "left", "right"], ids=["unpadded", "left", "right"])
def test_outputs_and_losses_are_the_published_ones(name, keys, side):
    if side is not None and name.startswith("ViT"):
        return
    theirs = published(name, keys)
    ours = to_ours(theirs)
    inputs, labels = example(name, side=side)
    if keys.get("num_labels") == 1:
        labels = {"labels": torch.tensor([0.5, -1.0, 2.0])}
    with torch.no_grad():
        expected, actual = theirs(**inputs, **labels), ours(**inputs, **labels)
    mask = inputs.get("attention_mask")
    found = tensors_of(expected)
    assert found
    for key, tensor in found.items():
        if key == "pooler_output" and "For" not in name and key not in actual:
            continue
        assert difference(attended(name, actual[key], mask), attended(name, tensor, mask)) <= TOLERANCE, key
    if labels:
        assert difference(actual.loss, expected.loss) <= TOLERANCE


@every_case
def test_gradients_are_the_published_ones(name, keys):
    theirs = published(name, keys)
    ours = to_ours(theirs)
    inputs, labels = example(name, side="right")
    if keys.get("num_labels") == 1:
        labels = {"labels": torch.tensor([0.5, -1.0, 2.0])}
    for model in (theirs, ours):
        output = model(**inputs, **labels)
        loss = output.loss if labels else (output.last_hidden_state**2)[inputs_kept(output, inputs)].mean()
        loss.backward()
    gradients = copy.deepcopy(theirs)
    with torch.no_grad():
        for target, source in zip(gradients.parameters(), theirs.parameters(), strict=True):
            target.copy_(torch.zeros_like(source) if source.grad is None else source.grad)
    expected = dict(to_ours(gradients).named_parameters())
    scale = max(parameter.abs().max().item() for parameter in expected.values())
    assert scale > 0
    for parameter_name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert difference(gradient, expected[parameter_name]) <= TOLERANCE * max(scale, 1.0), parameter_name


def inputs_kept(output, inputs):
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape == output.last_hidden_state.shape[:2]:
        return mask.bool()
    return slice(None)


@every_case
def test_the_round_trip_is_bit_equal(name, keys):
    theirs = published(name, keys)
    again = to_theirs(to_ours(theirs))
    assert type(again) is type(theirs)
    expected = theirs.state_dict()
    assert set(again.state_dict()) == set(expected)
    for key, tensor in again.state_dict().items():
        if key == "cls.predictions.bias" and not theirs.config.tie_word_embeddings:
            continue  # untied, BERT keeps a second bias that its forward never reads
        assert torch.equal(tensor, expected[key]), key
    ignored = {"architectures", "transformers_version", "dtype", "_name_or_path"}
    before, after = theirs.config.to_dict(), again.config.to_dict()
    assert {k: v for k, v in after.items() if k not in ignored} == {
        k: v for k, v in before.items() if k not in ignored
    }


@language_model
def test_generated_tokens_are_the_published_ones(name, keys):
    theirs = published(name, keys)
    ours = to_ours(theirs)
    inputs, _ = example(name, side="left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 3):
        expected = theirs.generate(**inputs, num_beams=beams, **options)
        assert torch.equal(ours.generate(**inputs, num_beams=beams, **options), expected)
        uncached = ours.generate(**inputs, num_beams=beams, use_cache=False, **options)
        assert torch.equal(uncached, expected)


@pytest.mark.parametrize(
    "keys", [T5, {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}]
)
def test_generated_sequences_are_the_published_ones(keys):
    theirs = published("T5ForConditionalGeneration", keys)
    ours = to_ours(theirs)
    for side in (None, "left", "right"):
        inputs, _ = example("T5ForConditionalGeneration", side=side)
        for beams in (1, 3):
            options = {"num_beams": beams, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
            expected = theirs.generate(**inputs, **options)
            assert torch.equal(ours.generate(**inputs, **options), expected)
            assert torch.equal(ours.generate(**inputs, use_cache=False, **options), expected)


@language_model
def test_packed_sequences_are_the_published_ones(name, keys):
    """``hlr_packed`` in transformers' own model and in ours gives what separate sequences give."""
    lengths = [5, 1, 7]
    theirs = published(name, keys)
    ours = to_ours(theirs)
    ids = example(name, rows=1, length=13)[0]["input_ids"]
    restart = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        separate = torch.cat([theirs(piece).logits for piece in ids.split(lengths, 1)], 1)
        for model in (theirs, ours):
            model.set_attn_implementation("hlr_packed")
            packed = model(ids, position_ids=restart, use_cache=False).logits
            assert difference(packed, separate) <= TOLERANCE


@pytest.mark.parametrize(
    "name, keys", [("BertForMaskedLM", BERT), ("LlamaForCausalLM", LLAMA), ("ViTForImageClassification", VIT)]
)
def test_attention_weights_are_the_published_ones(name, keys):
    theirs = published(name, keys, attn="eager")
    ours = to_ours(theirs)
    inputs, _ = example(name, side="right")
    expected, actual = (
        m(**inputs, output_attentions=True, output_hidden_states=True) for m in (theirs, ours)
    )
    assert len(actual.attentions) == len(expected.attentions) == 2
    assert len(actual.hidden_states) == len(expected.hidden_states) == 3
    for a, b in zip(actual.attentions, expected.attentions, strict=True):
        assert difference(a[0], b[0]) <= TOLERANCE
        assert difference(a.sum(-1)[0], torch.ones(())) <= TOLERANCE
    for a, b in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert difference(a[0], b[0]) <= TOLERANCE


@pytest.mark.parametrize(
    "name, keys",
    [
        ("BertForSequenceClassification", {**BERT, "num_labels": 3}),
        ("LlamaForCausalLM", MQA),
        ("T5ForConditionalGeneration", T5),
        (
            "T5ForConditionalGeneration",
            {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        ),
        ("ViTForImageClassification", VIT),
    ],
)
def test_a_folder_goes_there_and_back(name, keys, tmp_path):
    theirs = published(name, keys)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = convert_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    config = AutoModel.from_pretrained(ours).config
    assert config.model_type.startswith("hlr_")
    assert {"AutoConfig", "AutoModel"} < set(config.auto_map)  # its code lies beside it
    assert (ours / "layers.py").exists()
    convert_checkpoint(ours, tmp_path / "back")
    again = type(theirs).from_pretrained(tmp_path / "back", dtype="float32").eval()
    expected = theirs.state_dict()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_every_head_of_every_family_is_in_the_cases():
    tested = {name for name, _ in CASES}
    heads = {name for family in FAMILIES for name in family.heads}
    assert len(heads) == 38
    assert heads == tested


def test_a_model_made_here_goes_to_a_family_that_fits():
    torch.manual_seed(0)
    ours = HlrDecoderForCausalLM(HlrDecoderConfig.preset("tiny", attention_bias=False)).eval()
    theirs = to_theirs(ours, "LlamaForCausalLM").eval()
    ids = torch.arange(3, 12)[None]
    assert difference(theirs(ids).logits, ours(ids).logits) <= TOLERANCE


def test_what_cannot_be_converted_is_refused():
    decoder = HlrDecoderForCausalLM(HlrDecoderConfig.preset("tiny", position="alibi"))
    with pytest.raises(ValueError, match="'alibi', but llama has 'rotary'"):
        to_theirs(decoder, "LlamaForCausalLM")
    with pytest.raises(ValueError, match=r"not converted from a published model.*LlamaForCausalLM"):
        to_theirs(decoder)
    with pytest.raises(ValueError, match=r"cannot become BertModel; allowed: .*LlamaForCausalLM"):
        to_theirs(decoder, "BertModel")
    with pytest.raises(ValueError, match=r"use_sliding_window=True.*only has use_sliding_window=False"):
        to_ours(published("Qwen2ForCausalLM", {**LLAMA, "use_sliding_window": True, "sliding_window": 4}))
    with pytest.raises(ValueError, match="'distilbert' cannot be converted; allowed: bert, roberta"):
        to_ours(
            published(
                "DistilBertModel", {"vocab_size": 9, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
            )
        )
    with pytest.raises(ValueError, match="no head of ours is that of BertLMHeadModel"):
        to_ours(published("BertLMHeadModel", {**BERT, "is_decoder": True}))
    grouped = HlrEncoderForMaskedLM(
        HlrEncoderConfig.preset("tiny", num_key_value_heads=2, use_pooler=False, type_vocab_size=2)
    )
    with pytest.raises(ValueError, match=r"of shape \(64, 64\), but the weights have \(32, 64\)"):
        to_theirs(grouped, "BertForMaskedLM")


def test_missing_and_surplus_tensors_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    published("LlamaForCausalLM", LLAMA).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    state["model.extra.weight"] = state.pop("model.norm.weight")
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"missing tensors: model\.norm\.weight; surplus tensors: model\.extra"
    ):
        convert_checkpoint(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize(
    "source, name, keys, patterns, names",
    [
        # as google-bert/bert-base-uncased and FacebookAI/roberta-base lie on the Hub
        (
            "BertForPreTraining",
            "BertForMaskedLM",
            BERT,
            ["*pooler*", "cls.seq_*"],
            r"bert\.pooler\.dense\.bias",
        ),
        ("RobertaModel", "RobertaForMaskedLM", ROBERTA, ["*pooler*"], r"pooler\.dense\.bias"),
    ],
)
def test_surplus_tensors_can_be_left_out_by_name_only(source, name, keys, patterns, names, tmp_path):
    from safetensors.torch import load_file, save_file

    model = published(name, keys)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    whole = published(source, keys).state_dict()
    prefix = "roberta." if source == "RobertaModel" else ""
    surplus = {prefix + key: x for key, x in whole.items() if "pooler" in key or "seq_relationship" in key}
    save_file({**load_file(path), **surplus}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"surplus tensors: .*{names}.*{name} has no place .*--leave-out"):
        convert_checkpoint(tmp_path / "model", tmp_path / "out")
    with pytest.raises(ValueError, match=r"leave_out 'pooler' fits no surplus tensor; they are: .*pooler"):
        convert_checkpoint(tmp_path / "model", tmp_path / "out", leave_out=["pooler"])
    out = convert_checkpoint(tmp_path / "model", tmp_path / "out", leave_out=patterns)
    ours = transformers.AutoModelForMaskedLM.from_pretrained(out, dtype="float32").eval()
    inputs, _ = example(name)
    assert difference(ours(**inputs).logits, model(**inputs).logits) <= TOLERANCE


def test_the_tokenizer_and_generation_settings_come_along(tmp_path):
    from tokenizers import Tokenizer, models

    model = published("LlamaForCausalLM", LLAMA)
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "model")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    out = convert_checkpoint(tmp_path / "model", tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(out)("b")["input_ids"] == [1]
    ours = AutoModelForCausalLM.from_pretrained(out)
    assert ours.generate(torch.tensor([[5, 6]]), do_sample=False, eos_token_id=-1).shape == (1, 5)


def test_minilm_gives_the_published_embeddings():
    folder = assets.resolve_model("local/minilm")
    theirs = AutoModel.from_pretrained(folder, dtype="float32").eval()
    ours = to_ours(theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A man is eating food.", "Short.", "Someone plays the violin on a stage in the middle of town."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    with torch.no_grad():
        expected, actual = (
            (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1) for model in (theirs, ours)
        )
    assert difference(actual, expected) <= TOLERANCE


def test_smollm2_writes_the_published_text():
    folder = assets.resolve_model("local/smollm2-135m")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    ours = to_ours(theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Name three colours."}]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        expected, actual = theirs(**inputs).logits, ours(**inputs).logits
    assert difference(actual, expected) <= TOLERANCE * expected.abs().max()
    for beams in (1, 3):
        options = {"max_new_tokens": 20, "do_sample": False, "num_beams": beams}
        tokens = theirs.generate(**inputs, **options)
        assert torch.equal(ours.generate(**inputs, **options), tokens)
        assert "red" in tokenizer.decode(tokens[0]).lower()
