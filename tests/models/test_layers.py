import math

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from hf_llm_recipes.models.base import HlrConfig
from hf_llm_recipes.models.decoder import HlrDecoderConfig, HlrDecoderForCausalLM
from hf_llm_recipes.models.layers import (
    AlibiBias,
    Attention,
    FeedForward,
    LearnedPositions,
    RelativeBias,
    Residual,
    RMSNorm,
    RotaryEmbedding,
    SinusoidalPositions,
    eager_attention,
    rotate,
)


def config(**keys):
    made = HlrConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, **keys)
    made._attn_implementation = "eager"
    return made


def test_attention_is_the_softmax_of_scaled_scores_by_hand():
    query = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    key = torch.tensor([[[[2 * math.log(3.0), 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]])
    value = torch.tensor([[[[4.0, 0.0, 0.0, 0.0], [0.0, 8.0, 0.0, 0.0]]]])
    out, weights = eager_attention(torch.nn.Identity(), query, key, value, None)
    # scores (2 log 3) / sqrt(4) = log 3 and 0: weights 3/4 and 1/4
    assert weights[0, 0, 0].tolist() == pytest.approx([0.75, 0.25])
    assert out[0, 0, 0].tolist() == pytest.approx([3.0, 2.0, 0.0, 0.0])
    masked, weights = eager_attention(torch.nn.Identity(), query, key, value, torch.tensor([[[[-1e9, 0.0]]]]))
    assert weights[0, 0, 0].tolist() == [0.0, 1.0]
    assert masked[0, 0, 0].tolist() == [0.0, 8.0, 0.0, 0.0]


def test_grouped_heads_are_repeated_keys_and_values():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    out, weights = eager_attention(torch.nn.Identity(), query, key, value, None)
    for head in range(4):
        alone, _ = eager_attention(
            torch.nn.Identity(), query[:, [head]], key[:, [head // 2]], value[:, [head // 2]], None
        )
        torch.testing.assert_close(out[:, :, head], alone[:, :, 0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3))


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["multi-head", "grouped-query", "multi-query"])
def test_the_attention_layer_has_the_parameters_of_its_kind(groups):
    made = HlrConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=groups, qk_norm=True)
    layer = Attention(made, is_causal=True, layer_idx=0)
    assert layer.q_proj.weight.shape == (16, 16)
    assert layer.k_proj.weight.shape == layer.v_proj.weight.shape == (4 * groups, 16)
    assert layer.q_norm.weight.shape == (4,)


def test_eager_and_sdpa_agree_for_each_position_and_grouping():
    torch.manual_seed(0)
    ids = torch.randint(3, 1000, (2, 11))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    for position in ("rotary", "learned", "alibi", "relative", "sinusoidal", "none"):
        made = HlrDecoderConfig.preset("tiny", position=position, qk_norm=True)
        model = HlrDecoderForCausalLM._from_config(made, attn_implementation="eager").eval()
        expected = model(ids, attention_mask=mask).logits[mask.bool()]
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], expected)


def test_flex_attention_agrees():
    ids = torch.arange(5, 14)[None]
    made = HlrDecoderConfig.preset("tiny")
    model = HlrDecoderForCausalLM._from_config(made, attn_implementation="sdpa").eval().requires_grad_(False)
    expected = model(ids).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_rms_norm_by_hand():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    # mean(3^2, 4^2) = 12.5
    expected = [3 / math.sqrt(12.5), 8 / math.sqrt(12.5)]
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx(expected)


def test_sinusoids_by_hand():
    positions = SinusoidalPositions(config())(torch.tensor([[0, 2]]))
    assert positions[0, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    # feature pairs turn by 1, 1/10, 1/100, 1/1000 a position (D = 8)
    expected = [f(2 / 10**i) for i in range(4) for f in (math.sin, math.cos)]
    assert positions[0, 1].tolist() == pytest.approx(expected, abs=1e-6)


def test_rotary_angles_by_hand_and_scores_depend_on_distance_only():
    made = HlrConfig(hidden_size=8, num_attention_heads=2, position="rotary", rope_theta=100.0)
    rotary = RotaryEmbedding(made)
    cos, sin = rotary(torch.zeros(1), torch.tensor([[3]]))
    assert cos.flatten().tolist() == pytest.approx([math.cos(3.0), math.cos(0.3)])
    turned = rotate(torch.tensor([[[[1.0, 0.0, 0.0, 2.0]]]]), cos, sin).flatten().tolist()
    # pairs (1, 0) by 3 and (0, 2) by 0.3
    assert turned == pytest.approx([math.cos(3), -2 * math.sin(0.3), math.sin(3), 2 * math.cos(0.3)])
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)

    def score(i, j):
        a, b = (rotary(query, torch.tensor([[p]])) for p in (i, j))
        return (rotate(query, *a) * rotate(key, *b)).sum().item()

    assert score(5, 3) == pytest.approx(score(11, 9), abs=1e-5)
    assert score(5, 3) != pytest.approx(score(5, 2), abs=1e-3)


def test_rotary_frequencies_survive_a_reload(tmp_path):
    model = HlrDecoderForCausalLM(HlrDecoderConfig.preset("tiny", rope_theta=500.0))
    model.save_pretrained(tmp_path)
    again = HlrDecoderForCausalLM.from_pretrained(tmp_path)
    expected = 500.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(again.model.stack.rotary.inv_freq, expected)


def test_alibi_slopes_and_bias_by_hand():
    assert AlibiBias.slopes(8) == [2.0 ** -(i + 1) for i in range(8)]
    # 6 heads: the 4 of a power of two (2^-2, 2^-4, ...), then the odd ones of 8 heads (2^-1, 2^-3)
    assert AlibiBias.slopes(6) == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    bias = AlibiBias(config(position="alibi"), True)(torch.tensor([2]), torch.arange(3))
    assert bias[0, 0, 0].tolist() == [-2 * 2.0**-4, -(2.0**-4), 0.0]
    assert bias[0, 1, 0].tolist() == [-2 * 2.0**-8, -(2.0**-8), 0.0]


@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets_are_t5s(causal):
    made = config(position="relative", num_relative_buckets=12, max_relative_distance=40)
    distance = torch.arange(-60, 61)
    expected = T5Attention._relative_position_bucket(distance, not causal, 12, 40)
    assert torch.equal(RelativeBias(made, causal).buckets(distance), expected)


def test_feed_forward_kinds_by_hand():
    made = HlrConfig(
        hidden_size=1, num_attention_heads=1, intermediate_size=1, hidden_act="relu", position="none"
    )
    layer = FeedForward(made)
    for linear, weight, bias in ((layer.up_proj, 2.0, 1.0), (layer.down_proj, 3.0, 0.5)):
        linear.weight.data.fill_(weight)
        linear.bias.data.fill_(bias)
    assert layer(torch.tensor([[[1.0]]])).item() == 9.5  # relu(2 + 1) * 3 + 0.5
    assert layer(torch.tensor([[[-1.0]]])).item() == 0.5
    made = HlrConfig(
        hidden_size=1,
        num_attention_heads=1,
        intermediate_size=1,
        hidden_act="silu",
        gated_feed_forward=True,
        feed_forward_bias=False,
        position="none",
    )
    swiglu = FeedForward(made)
    for linear, weight in ((swiglu.gate_proj, 1.0), (swiglu.up_proj, 2.0), (swiglu.down_proj, 3.0)):
        linear.weight.data.fill_(weight)
    silu = 2 / (1 + math.exp(-2))
    assert swiglu(torch.tensor([[[2.0]]])).item() == pytest.approx(silu * 4 * 3)


def test_residuals_by_hand():
    x = torch.arange(8.0)[None, None]
    centred = (x - 3.5) / math.sqrt(5.25)
    pre = Residual(config(norm_first=True, norm_eps=1e-12))
    torch.testing.assert_close(pre(x, lambda h: 2 * h), x + 2 * centred)
    post = Residual(config(norm_first=False, norm_eps=1e-12))
    torch.testing.assert_close(post(x, lambda h: 2 * h), centred)


def test_positions_beyond_the_table_are_refused():
    positions = LearnedPositions(HlrConfig(hidden_size=8, num_attention_heads=2, max_position_embeddings=4))
    message = r"5 tokens, but the model has 4 positions; shorten the input \(truncation=True\)"
    with pytest.raises(ValueError, match=message):
        positions(torch.arange(5)[None])
    with pytest.raises(ValueError, match=r"position_ids .*holds 7; allowed: 0 to 3"):
        positions(torch.tensor([[7]]))


def test_biases_by_distance_need_an_attention_that_takes_them():
    made = HlrDecoderConfig.preset("tiny", position="alibi")
    model = HlrDecoderForCausalLM._from_config(made, attn_implementation="flex_attention").requires_grad_(
        False
    )
    message = r"position='alibi' adds a bias .*'flex_attention' does not take; use sdpa, eager or hlr_packed"
    with pytest.raises(ValueError, match=message):
        model.model.stack(torch.zeros(1, 4, 64), None, torch.arange(4)[None])
