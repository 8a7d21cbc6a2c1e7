"""What single heads do beyond the shared tests, and what they refuse."""

import pytest
import torch
from transformers import AutoBackbone, DynamicCache

from hf_llm_recipes.models.decoder import (
    HlrDecoderConfig,
    HlrDecoderForCausalLM,
    HlrDecoderForSequenceClassification,
    HlrDecoderForTokenClassification,
    HlrDecoderModel,
)
from hf_llm_recipes.models.encoder import (
    HlrEncoderConfig,
    HlrEncoderForMaskedLM,
    HlrEncoderForMultipleChoice,
    HlrEncoderForPreTraining,
    HlrEncoderForQuestionAnswering,
    HlrEncoderForSequenceClassification,
    HlrEncoderForTokenClassification,
    HlrEncoderModel,
)
from hf_llm_recipes.models.encoder_decoder import (
    HlrEncoderDecoderConfig,
    HlrEncoderDecoderForConditionalGeneration,
)
from hf_llm_recipes.models.vision import (
    HlrVisionBackbone,
    HlrVisionConfig,
    HlrVisionForImageClassification,
    HlrVisionForMaskedImageModeling,
    HlrVisionModel,
    masked_pixel_loss,
)

IDS = torch.arange(5, 14)[None]


def make(head, **overrides):
    torch.manual_seed(0)
    return head(head.config_class.preset("tiny", initializer_range=0.2, **overrides)).eval()


@pytest.mark.parametrize(
    "head, labels, shape",
    [
        (HlrEncoderForMaskedLM, "labels", r"\(1, 9\)"),
        (HlrEncoderForPreTraining, "labels", r"\(1, 9\)"),
        (HlrEncoderForPreTraining, "next_sentence_label", r"\(1,\)"),
        (HlrEncoderForSequenceClassification, "labels", r"\(1,\)"),
        (HlrEncoderForTokenClassification, "labels", r"\(1, 9\)"),
        (HlrDecoderForCausalLM, "labels", r"\(1, 9\)"),
        (HlrDecoderForSequenceClassification, "labels", r"\(1,\)"),
        (HlrDecoderForTokenClassification, "labels", r"\(1, 9\)"),
    ],
)
def test_labels_of_another_shape_are_refused(head, labels, shape):
    with pytest.raises(ValueError, match=rf"{labels} has shape \(1, 4\); it needs {shape}"):
        make(head)(IDS, **{labels: torch.zeros(1, 4, dtype=torch.long)})


@pytest.mark.parametrize(
    "head",
    [
        HlrEncoderForMaskedLM,
        HlrEncoderForPreTraining,
        HlrDecoderForCausalLM,
        HlrEncoderDecoderForConditionalGeneration,
    ],
)
def test_label_ids_outside_the_vocabulary_are_refused(head):
    labels = torch.full((1, 9), -100)
    labels[0, 2] = 1000
    extra = {"decoder_input_ids": IDS} if head.config_class.is_encoder_decoder else {}
    with pytest.raises(
        ValueError, match=r"labels holds 1000; allowed: 0 to 999; or -100; they are token ids"
    ):
        make(head)(IDS, labels=labels, **extra)


def test_other_wrong_labels_are_refused():
    one = torch.tensor([1])
    with pytest.raises(ValueError, match=r"next_sentence_label holds 2; allowed: 0 to 1; 0 = it follows"):
        make(HlrEncoderForPreTraining)(IDS, next_sentence_label=torch.tensor([2]))
    with pytest.raises(ValueError, match=r"end_positions has shape \(2,\); it needs \(1,\)"):
        make(HlrEncoderForQuestionAnswering)(IDS, start_positions=one, end_positions=torch.tensor([1, 2]))
    choice = make(HlrEncoderForMultipleChoice)
    with pytest.raises(
        ValueError, match=r"labels holds 2; allowed: 0 to 1; or -100; it is the index of a choice"
    ):
        choice(IDS.view(1, 1, 9).repeat(1, 2, 1), labels=torch.tensor([2]))
    with pytest.raises(ValueError, match=r"shape \(batch, choices, tokens\), not \(1, 9\)"):
        choice(IDS)
    with pytest.raises(ValueError, match=r"labels holds 7; allowed: 0 to 1; or -100; set num_labels"):
        make(HlrEncoderForTokenClassification)(IDS, labels=torch.full((1, 9), 7))
    sequence = make(HlrEncoderDecoderForConditionalGeneration)
    with pytest.raises(ValueError, match=r"labels has shape \(1, 4\); it needs \(1, 9\)"):
        sequence(IDS, decoder_input_ids=IDS, labels=IDS[:, :4])


@pytest.mark.parametrize("head", [HlrEncoderModel, HlrDecoderModel])
def test_ids_outside_the_vocabulary_are_refused(head):
    model = make(head)
    with pytest.raises(ValueError, match=r"input_ids holds 1000; allowed: 0 to 999; is the tokenizer"):
        model(torch.tensor([[5, 1000]]))
    with pytest.raises(ValueError, match=r"input_ids holds -1; allowed: 0 to 999"):
        model(torch.tensor([[5, -1]]))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(IDS, inputs_embeds=torch.zeros(1, 9, 64))


def test_encoder_inputs_beyond_its_tables_are_refused():
    model = make(HlrEncoderModel, max_position_embeddings=8)
    with pytest.raises(ValueError, match=r"9 tokens, but the model has 8 positions"):
        model(IDS)
    with pytest.raises(ValueError, match=r"token_type_ids holds 2; allowed: 0 to 1; see type_vocab_size"):
        model(IDS[:, :4], token_type_ids=torch.full((1, 4), 2))
    with pytest.raises(ValueError, match="use_pooler=False, but the next-sentence head reads the pooler"):
        make(HlrEncoderForPreTraining, use_pooler=False)


def test_generation_past_the_learned_positions_is_refused():
    model = make(HlrDecoderForCausalLM, position="learned", max_position_embeddings=10)
    with pytest.raises(ValueError, match=r"position_ids .*holds 10; allowed: 0 to 9"):
        model.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)


def test_embeddings_can_be_given_instead_of_ids():
    for head in (HlrEncoderModel, HlrDecoderModel):
        model = make(head)
        given = model(inputs_embeds=model.embed_tokens(IDS)).last_hidden_state
        torch.testing.assert_close(given, model(IDS).last_hidden_state)


def test_a_decoder_reads_the_last_attended_token_of_each_row():
    model = make(HlrDecoderForSequenceClassification, pad_token_id=0)
    plain = model(IDS).logits
    mask = torch.ones_like(IDS)
    for pad in ((3, 0), (0, 3)):
        padded, kept = torch.nn.functional.pad(IDS, pad), torch.nn.functional.pad(mask, pad)
        torch.testing.assert_close(model(padded, attention_mask=kept).logits, plain)
    right = torch.nn.functional.pad(IDS, (0, 3))
    torch.testing.assert_close(model(right).logits, plain)
    unknown = make(HlrDecoderForSequenceClassification)
    with pytest.raises(ValueError, match="2 rows, but nothing says where they end; pass attention_mask"):
        unknown(IDS.repeat(2, 1))


def test_packed_sequences_stay_apart_with_a_cache_that_the_model_makes():
    model = make(HlrDecoderForCausalLM)
    restart = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = model(IDS, position_ids=restart, use_cache=True)
    torch.testing.assert_close(packed.logits[:, 4:], model(IDS[:, 4:]).logits, atol=1e-5, rtol=1e-4)
    assert packed.past_key_values.get_seq_length() == 9


@pytest.mark.parametrize("attn", ["eager", "sdpa", "hlr_packed"])
def test_a_sliding_window_hides_what_is_farther_back(attn):
    model = make(HlrDecoderForCausalLM, sliding_window=3, num_hidden_layers=1)
    model.set_attn_implementation(attn)
    changed = IDS.clone()
    changed[0, 2] = 500
    difference = (model(changed).logits - model(IDS).logits).abs().amax(-1)[0]
    assert (difference[[0, 1, 5, 6, 7, 8]] < 1e-5).all()
    assert (difference[[2, 3, 4]] > 1e-3).all()
    past = DynamicCache(config=model.config)
    steps = [model(IDS[:, i : i + 1], past_key_values=past).logits for i in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), model(IDS).logits, atol=1e-5, rtol=1e-4)


def test_logits_to_keep_are_the_last_ones():
    model = make(HlrDecoderForCausalLM)
    torch.testing.assert_close(model(IDS, logits_to_keep=2).logits, model(IDS).logits[:, -2:])


def test_decoder_inputs_are_the_labels_shifted_right():
    model = make(HlrEncoderDecoderForConditionalGeneration, decoder_start_token_id=7, pad_token_id=3)
    labels = torch.tensor([[11, 12, 13], [14, -100, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[7, 11, 12], [7, 14, 3]]
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="decoder_start_token_id=None and pad_token_id=3"):
        model(IDS, labels=IDS)
    with pytest.raises(ValueError, match="the decoder has no input; pass decoder_input_ids"):
        model(IDS)


def test_all_three_kinds_of_attention_weights_of_an_encoder_decoder():
    config = HlrEncoderDecoderConfig.preset("tiny", decoder_layers=3)
    model = HlrEncoderDecoderForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    output = model(IDS, labels=IDS[:, :5], output_attentions=True, output_hidden_states=True)
    for weights, number, shape in (
        (output.encoder_attentions, 2, (1, 4, 9, 9)),
        (output.decoder_attentions, 3, (1, 4, 5, 5)),
        (output.cross_attentions, 3, (1, 4, 5, 9)),
    ):
        assert len(weights) == number
        for layer in weights:
            assert layer.shape == shape
            torch.testing.assert_close(layer.sum(-1), torch.ones(shape[:3]))
    assert (len(output.encoder_hidden_states), len(output.decoder_hidden_states)) == (3, 4)


def test_vaswanis_own_transformer_can_be_built():
    config = HlrEncoderDecoderConfig.preset(
        "vaswani-base", vocab_size=50, num_hidden_layers=1, hidden_size=64
    )
    model = HlrEncoderDecoderForConditionalGeneration(config).eval()
    assert torch.isfinite(model(IDS, labels=IDS).loss)
    assert model.model.encoder.stack.final_norm is None


def test_another_image_size_needs_and_takes_interpolation():
    model = make(HlrVisionForImageClassification)
    large = torch.rand(1, 3, 48, 40)
    with pytest.raises(ValueError, match=r"images of 48 x 40, but image_size=32; .*interpolate_pos_encoding"):
        model(large)
    assert model(large, interpolate_pos_encoding=True).logits.shape == (1, 2)
    with pytest.raises(ValueError, match=r"images of 41 x 40; both need to be multiples of patch_size=8"):
        model(torch.rand(1, 3, 41, 40), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match=r"pixel_values have shape \(1, 1, 32, 32\); .*with 3 channels"):
        model(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"image_size=30 is no multiple of patch_size=8"):
        HlrVisionConfig.preset("tiny", image_size=30)


def test_masked_patches_hide_their_pixels_and_only_they_are_scored():
    model = make(HlrVisionForMaskedImageModeling)
    image, masked = torch.rand(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 5] = True  # row 1, column 1 of the 4 x 4 grid
    output = model(image, bool_masked_pos=masked)
    assert output.reconstruction.shape == image.shape
    changed = image.clone()
    changed[:, :, 8:16, 8:16] = 0.5
    torch.testing.assert_close(model(changed, bool_masked_pos=masked).reconstruction, output.reconstruction)
    expected = (output.reconstruction - image)[:, :, 8:16, 8:16].abs().mean()
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match=r"bool_masked_pos has shape \(1, 9\); it needs \(1, 16\)"):
        model(image, bool_masked_pos=masked[:, :9])


def test_masked_pixel_loss_by_hand():
    image, truth = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    masked = torch.tensor([[True, False, False, True]])
    assert masked_pixel_loss(image, truth, masked, 1).item() == 2.5  # (1 + 4) / 2
    assert masked_pixel_loss(image, truth, masked, 1, num_items_in_batch=10).item() == 0.5


def test_the_backbone_gives_maps_of_the_named_blocks(tmp_path):
    classifier = make(HlrVisionForImageClassification)
    classifier.save_pretrained(tmp_path)
    # AutoBackbone.from_pretrained asks the Hub whether the repository exists: from a folder by the class.
    assert isinstance(AutoBackbone.from_config(classifier.config), HlrVisionBackbone)
    backbone = HlrVisionBackbone.from_pretrained(tmp_path, out_features=["stem", "stage2"]).eval()
    assert backbone.channels == [64, 64]
    image = torch.rand(2, 3, 32, 32)
    stem, last = backbone(image).feature_maps
    assert stem.shape == last.shape == (2, 64, 4, 4)
    tokens = classifier.model(image).last_hidden_state[:, 1:]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens)
    assert backbone(torch.rand(1, 3, 64, 32)).feature_maps[1].shape == (1, 64, 8, 4)


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "alibi", "relative", "none"])
def test_other_positions_work_for_images_and_encoders(position):
    vision = make(HlrVisionModel, position=position)
    assert vision(torch.rand(1, 3, 32, 32)).last_hidden_state.shape == (1, 17, 64)
    assert make(HlrEncoderModel, position=position)(IDS).last_hidden_state.shape == (1, 9, 64)


def test_the_modern_encoder_preset_runs():
    config = HlrEncoderConfig.preset("modern", num_hidden_layers=1, hidden_size=48, vocab_size=20)
    output = HlrEncoderForMaskedLM(config).eval()(IDS, labels=IDS)
    assert torch.isfinite(output.loss)


def test_presets_name_their_families():
    assert HlrDecoderConfig.preset("gpt2").position == "learned"
