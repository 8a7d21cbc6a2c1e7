import math

import pytest
import torch

from hf_llm_recipes.models.base import classification_loss, pretraining_loss, span_loss
from hf_llm_recipes.models.decoder import HlrDecoderConfig, HlrDecoderForCausalLM, HlrDecoderModel
from hf_llm_recipes.models.encoder import HlrEncoderConfig, HlrEncoderForMaskedLM, HlrEncoderModel
from hf_llm_recipes.models.encoder_decoder import HlrEncoderDecoderConfig
from hf_llm_recipes.models.vision import HlrVisionConfig


class Kind:
    def __init__(self, problem_type=None):
        self.problem_type = problem_type


def test_cross_entropy_by_hand_and_divided_by_all_micro_batches():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    labels = torch.tensor([1, 0])
    # -log(3/4) and -log(1/2)
    total = math.log(4 / 3) + math.log(2)
    assert classification_loss(labels, logits, Kind()).item() == pytest.approx(total / 2, rel=1e-6)
    assert classification_loss(labels, logits, Kind(), num_items_in_batch=8).item() == pytest.approx(
        total / 8
    )


def test_ignored_labels_do_not_count():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 0.0]])
    loss = classification_loss(torch.tensor([1, -100]), logits, Kind())
    assert loss.item() == pytest.approx(math.log(4 / 3), rel=1e-6)


def test_squared_error_by_hand():
    logits, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])
    assert classification_loss(labels, logits, Kind()).item() == 2.5  # (1 + 4) / 2
    assert classification_loss(labels[:, None], logits, Kind()).item() == 2.5
    assert classification_loss(labels, logits, Kind(), num_items_in_batch=10).item() == 0.5


def test_binary_cross_entropy_by_hand():
    logits, labels = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(2) + math.log(4)) / 2  # sigmoid(log 3) = 3/4
    assert classification_loss(labels, logits, Kind()).item() == pytest.approx(expected, rel=1e-6)


def test_the_kind_of_label_is_not_remembered_in_the_config():
    config = Kind()
    classification_loss(torch.tensor([1]), torch.zeros(1, 2), config)
    assert config.problem_type is None


def test_pretraining_loss_is_the_sum_of_both_and_splits_evenly():
    logits, rows = torch.zeros(2, 3, 4), torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    labels, follows = torch.tensor([[1, -100, -100], [2, 2, 2]]), torch.tensor([0, 1])
    expected = math.log(4) + (math.log(2) + math.log(4 / 3)) / 2
    assert pretraining_loss(labels, logits, follows, rows).item() == pytest.approx(expected, rel=1e-6)
    # Of 4 masked tokens row 0 holds 1 and row 1 holds 3.
    weighted = math.log(4) + (1 * math.log(2) + 3 * math.log(4 / 3)) / 4
    whole = pretraining_loss(labels, logits, follows, rows, num_items_in_batch=4).item()
    assert whole == pytest.approx(weighted, rel=1e-6)
    parts = [
        pretraining_loss(labels[i : i + 1], logits[i : i + 1], follows[i : i + 1], rows[i : i + 1], 4).item()
        for i in range(2)
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)


def test_span_loss_ignores_answers_outside_the_window_without_a_nan():
    start, end = torch.zeros(2, 4), torch.zeros(2, 4)
    inside, outside = torch.tensor([1, 2]), torch.tensor([9, 4])
    assert span_loss(start, end, inside, inside).item() == pytest.approx(math.log(4), rel=1e-6)
    assert span_loss(start, end, outside, outside).item() == 0.0
    half = span_loss(start, end, torch.tensor([1, 9]), torch.tensor([1, 9]))
    assert half.item() == pytest.approx(math.log(4) / 2, rel=1e-6)


def test_presets_build_and_take_overrides():
    for config_class in (HlrEncoderConfig, HlrDecoderConfig, HlrEncoderDecoderConfig, HlrVisionConfig):
        assert config_class.PRESETS
        for name in config_class.PRESETS:
            assert config_class.preset(name, num_hidden_layers=3).num_hidden_layers == 3
    with pytest.raises(
        ValueError, match="no preset 'huge' of hlr_decoder; allowed: tiny, smollm2-135m, gpt2"
    ):
        HlrDecoderConfig.preset("huge")


def test_published_sizes_have_the_published_parameter_counts():
    def count(cls, config):
        with torch.device("meta"):
            return sum(p.numel() for p in cls(config).parameters())

    # MiniLM-L6: 30522*384 + 512*384 + 2*384 + 768 + 6 * 1774464 + 384*385
    assert count(HlrEncoderModel, HlrEncoderConfig.preset("minilm")) == 22713216
    assert count(HlrDecoderForCausalLM, HlrDecoderConfig.preset("smollm2-135m")) == 134515008
    assert count(HlrDecoderForCausalLM, HlrDecoderConfig.preset("gpt2")) == 124439808


def test_unknown_keys_are_named_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown key 'hiden_size' of HlrDecoderConfig; did you mean 'hidden_size'"
    ):
        HlrDecoderConfig.checked(hiden_size=64)
    with pytest.raises(ValueError, match=r"unknown key 'xyzzy' .*allowed: .*vocab_size"):
        HlrEncoderConfig.preset("tiny", xyzzy=1)
    config = HlrDecoderConfig.checked(num_labels=3, rope_theta=500.0, attn_implementation="eager")
    assert HlrVisionConfig.checked(out_features=["stage2"]).out_indices == [2]
    assert (config.num_labels, config.rope_parameters["rope_theta"]) == (3, 500.0)


BAD_FIELDS = [
    (
        {"hidden_size": 30, "num_attention_heads": 4},
        r"hidden_size=30 is no multiple of num_attention_heads=4",
    ),
    (
        {"num_attention_heads": 4, "num_key_value_heads": 3},
        r"heads=4 is no multiple of num_key_value_heads=3",
    ),
    ({"head_dim": 15}, r"head_dim=15 is odd, but rotary"),
    ({"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 1}, r"head_dim=11 is odd"),
    ({"position": "rotery"}, r"position='rotery' \(did you mean 'rotary'\?\); allowed: learned, sinusoidal"),
    ({"norm": "layernorm"}, r"norm='layernorm' .*allowed: layer_norm, rms_norm"),
    ({"hidden_act": "swoosh"}, r"hidden_act='swoosh'.*allowed: .*gelu"),
    ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob=1\.5 is no probability; allowed: \[0, 1\)"),
    ({"hidden_size": "64"}, r"hidden_size='64'; allowed: a whole number from 1 on"),
    ({"num_hidden_layers": 0}, r"num_hidden_layers=0; allowed: a whole number from 1 on"),
    ({"position": "alibi", "rope_theta": 100.0}, r"rope_parameters have no effect with position='alibi'"),
    ({"position": "learned", "rope_parameters": {"rope_theta": 9.0}}, r"no effect with position='learned'"),
    ({"pad_token_id": 1000}, r"pad_token_id=1000 is outside the vocabulary; allowed: 0 to 999"),
    ({"position": "sinusoidal", "hidden_size": 65, "head_dim": 16}, r"hidden_size=65 is odd, but sinusoidal"),
]


@pytest.mark.parametrize("keys, message", BAD_FIELDS, ids=[str(keys) for keys, _ in BAD_FIELDS])
def test_a_config_that_cannot_be_built_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        HlrDecoderConfig.preset("tiny", **keys)


def test_a_field_changed_after_the_config_was_made_is_refused_by_the_model():
    config = HlrDecoderConfig.preset("tiny")
    config.num_attention_heads = 3
    with pytest.raises(ValueError, match="num_attention_heads=3 is no multiple of num_key_value_heads=2"):
        HlrDecoderModel(config)


def test_a_config_of_another_family_is_refused():
    message = r"HlrEncoderForMaskedLM got a config of model_type='hlr_decoder'; it needs 'hlr_encoder'"
    with pytest.raises(ValueError, match=message):
        HlrEncoderForMaskedLM(HlrDecoderConfig.preset("tiny"))


def test_labels_of_the_wrong_shape_or_range_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \(2, 1\); it needs \(3,\)"):
        classification_loss(torch.zeros(2, 1, dtype=torch.long), torch.zeros(3, 4), Kind())
    with pytest.raises(ValueError, match=r"labels holds 4; allowed: 0 to 3; or -100; set num_labels"):
        classification_loss(torch.tensor([4]), torch.zeros(1, 4), Kind())
    with pytest.raises(ValueError, match=r"labels holds -1; allowed: 0 to 3; or -100"):
        classification_loss(torch.tensor([-1]), torch.zeros(1, 4), Kind())
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); it needs \(3, 4\)"):
        classification_loss(torch.zeros(3), torch.zeros(3, 4), Kind())
    with pytest.raises(ValueError, match=r"labels has shape \(2,\); it needs \(3,\)"):
        classification_loss(torch.zeros(2), torch.zeros(3, 1), Kind())
