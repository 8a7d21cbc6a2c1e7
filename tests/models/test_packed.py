import inspect
import itertools

import pytest
import torch
import transformers
from torch import nn

from hf_llm_recipes.models import packed
from hf_llm_recipes.models.encoder_decoder import (
    HlrEncoderDecoderConfig,
    HlrEncoderDecoderForConditionalGeneration,
)
from hf_llm_recipes.models.packed import packed_attention, sequence_lengths


class Layer(nn.Module):
    """What an attention layer of transformers shows to its attention function."""

    def __init__(self, is_causal=True):
        super().__init__()
        self.is_causal, self.num_key_value_groups = is_causal, 2


def qkv(batch=1, length=9):
    torch.manual_seed(0)
    return (
        torch.randn(batch, 4, length, 8),
        torch.randn(batch, 2, length, 8),
        torch.randn(batch, 2, length, 8),
    )


def reference(query, key, value, allowed, bias=0.0):
    """The formula with a T x T mask."""
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = (query @ key.transpose(2, 3)) / 8**0.5 + bias
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


def test_lengths_come_from_positions_masks_rows_or_cumulative_lengths():
    restart = torch.tensor([[0, 1, 2, 0, 0, 1]])
    assert sequence_lengths(1, 6, restart) == [3, 1, 2]
    assert sequence_lengths(1, 6, restart + 2) == [3, 1, 2]
    assert sequence_lengths(2, 3) == [3, 3]
    assert sequence_lengths(2, 3, torch.arange(3)[None]) == [3, 3]
    assert sequence_lengths(2, 3, torch.tensor([[0, 1, 0], [0, 1, 2]])) == [2, 1, 3]
    assert sequence_lengths(1, 6, cu_seq_lens=torch.tensor([0, 4, 6])) == [4, 2]
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    assert sequence_lengths(2, 4, None, mask) == [3, 2]
    hole = torch.tensor([[1, 1, 0, 1]])
    assert sequence_lengths(1, 4, torch.arange(4)[None], hole) == [3]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_each_sequence_attends_within_itself(causal, window):
    query, key, value = qkv()
    restart = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])
    number = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2])
    steps = torch.arange(9)
    allowed = number[:, None] == number[None]
    if causal:
        allowed &= steps[:, None] >= steps[None]
    if window:
        allowed &= (steps[:, None] - steps[None]).abs() < window
    expected = reference(query, key, value, allowed)
    for given in ({"position_ids": restart}, {"cu_seq_lens_q": torch.tensor([0, 4, 5, 9])}):
        out, weights = packed_attention(
            Layer(causal), query, key, value, None, sliding_window=window, **given
        )
        torch.testing.assert_close(out, expected)
        assert weights is None


def test_padding_is_left_out_and_comes_back_as_zeros():
    query, key, value = qkv(batch=2, length=5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    out, _ = packed_attention(Layer(), query, key, value, mask)
    steps = torch.arange(5)
    expected = reference(query, key, value, (steps[:, None] >= steps[None]) & mask[:, None, None, :])
    torch.testing.assert_close(out[mask], expected[mask])
    assert (out[~mask] == 0).all()


def test_a_bias_by_distance_is_added_within_each_sequence():
    query, key, value = qkv(length=5)
    bias = torch.randn(1, 4, 3, 3)
    out, _ = packed_attention(
        Layer(False),
        query,
        key,
        value,
        None,
        position_bias=bias,
        position_ids=torch.tensor([[0, 1, 2, 0, 1]]),
    )
    allowed, whole = torch.zeros(5, 5, dtype=torch.bool), torch.zeros(1, 4, 5, 5)
    for start, end in ((0, 3), (3, 5)):
        allowed[start:end, start:end] = True
        whole[..., start:end, start:end] = bias[..., : end - start, : end - start]
    torch.testing.assert_close(out, reference(query, key, value, allowed, whole))


def test_gradients_do_not_cross_sequences():
    query, key, value = (x.requires_grad_() for x in qkv(length=6))
    out, _ = packed_attention(
        Layer(), query, key, value, None, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]])
    )
    out[:, 3:].sum().backward()
    assert (value.grad[:, :, :3] == 0).all()
    assert (value.grad[:, :, 3:] != 0).any()


def test_the_work_is_the_sum_of_squares(monkeypatch):
    sizes, true_sdpa = [], nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **options):
        assert options["attn_mask"] is None, "no mask is built"
        sizes.append((query.shape[2], key.shape[2]))
        return true_sdpa(query, key, value, **options)

    monkeypatch.setattr(packed.nn.functional, "scaled_dot_product_attention", spy)
    packed_attention(Layer(), *qkv(), None, cu_seq_lens_q=torch.tensor([0, 4, 5, 9]))
    assert sizes == [(4, 4), (1, 1), (4, 4)]


def test_the_variable_length_kernel_is_called_as_torch_declares_it(monkeypatch):
    """The kernel needs a GPU: its call is checked against its signature, its sums by a stand-in."""
    signature = inspect.signature(packed.varlen_attn)

    def kernel(*args, **kwargs):
        call = signature.bind(*args, **kwargs).arguments
        assert call["cu_seq_q"].dtype == torch.int32
        assert call["max_q"] == call["max_k"] == 4
        assert call["window_size"] == (-1, 0)
        bounds = call["cu_seq_q"].tolist()
        pieces = [
            nn.functional.scaled_dot_product_attention(
                *(x[start:end].transpose(0, 1)[None] for x in (call["query"], call["key"], call["value"])),
                is_causal=True,
                scale=call["scale"],
                enable_gqa=call["enable_gqa"],
            )[0].transpose(0, 1)
            for start, end in itertools.pairwise(bounds)
        ]
        return torch.cat(pieces)

    kernel.__signature__ = signature
    given = {"cu_seq_lens_q": torch.tensor([0, 4, 5, 9])}
    expected, _ = packed_attention(Layer(), *qkv(), None, **given)
    monkeypatch.setattr(packed, "varlen_attn", kernel)
    monkeypatch.setattr(packed, "_varlen_fits", lambda *args: True)
    actual, _ = packed_attention(Layer(), *qkv(), None, **given)
    torch.testing.assert_close(actual, expected)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
SIZES = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}


@pytest.mark.parametrize(
    "name, keys",
    [
        ("LlamaForCausalLM", {**SIZES, "num_key_value_heads": 2}),
        ("Qwen2ForCausalLM", {**SIZES, "num_key_value_heads": 2}),
        ("MistralForCausalLM", {**SIZES, "num_key_value_heads": 2, "sliding_window": 3}),
        ("GPT2LMHeadModel", GPT2),
        ("BertForMaskedLM", SIZES),
    ],
)
def test_transformers_own_models_take_it(name, keys):
    """Packed equals separate, padded equals unpadded, and without it the sequences would leak."""
    lengths = [4, 1, 6]
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**keys, initializer_range=0.3)).eval()
    ids = torch.randint(3, 99, (1, sum(lengths)))
    restart = torch.cat([torch.arange(n) for n in lengths])[None]
    extra = {} if name.startswith("Bert") else {"use_cache": False}
    with torch.no_grad():
        separate = torch.cat([model(piece, **extra).logits for piece in ids.split(lengths, 1)], 1)
        one = torch.arange(sum(lengths))[None]
        leaked = model(ids, position_ids=one, **extra).logits
        model.set_attn_implementation("hlr_packed")
        packed_logits = model(ids, position_ids=restart, **extra).logits
        padded = model(
            nn.functional.pad(ids, (0, 3)), attention_mask=torch.tensor([[1] * 11 + [0] * 3])
        ).logits
    torch.testing.assert_close(packed_logits, separate, atol=1e-5, rtol=1e-4)
    assert (leaked - separate).abs().max() > 1e-2
    torch.testing.assert_close(padded[:, :11], leaked, atol=1e-5, rtol=1e-4)


def test_generation_with_it_equals_sdpa():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, initializer_range=0.3, eos_token_id=None
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids, mask = torch.randint(3, 99, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    model.set_attn_implementation("hlr_packed")
    assert torch.equal(model.generate(ids, **options), expected)


def test_what_it_cannot_do_is_refused():
    query, key, value = qkv()
    for name in ("softcap", "s_aux"):
        with pytest.raises(ValueError, match=f"has no {name}; use eager for Layer"):
            packed_attention(Layer(), query, key, value, None, **{name: 1.0})
    with pytest.raises(ValueError, match=r"cu_seq_lens end at 8; they need to end at the 9 tokens"):
        packed_attention(Layer(), query, key, value, None, cu_seq_lens_q=torch.tensor([0, 8]))
    with pytest.raises(ValueError, match=r"position_ids have shape \(1, 4\); they need \(1, 9\)"):
        packed_attention(Layer(), query, key, value, None, position_ids=torch.arange(4)[None])
    config = HlrEncoderDecoderConfig.preset("tiny")
    model = HlrEncoderDecoderForConditionalGeneration._from_config(config, attn_implementation="hlr_packed")
    with pytest.raises(ValueError, match="has no cross-attention, but the model of Attention has; use sdpa"):
        model(torch.arange(3, 9)[None], labels=torch.arange(3, 9)[None])


def test_a_packed_row_may_be_longer_than_the_table_of_positions():
    from hf_llm_recipes.models.encoder import HlrEncoderConfig, HlrEncoderForMaskedLM

    torch.manual_seed(0)
    config = HlrEncoderConfig.checked(**HlrEncoderConfig.PRESETS["tiny"])
    config.max_position_embeddings, config._attn_implementation = 8, "hlr_packed"
    model = HlrEncoderForMaskedLM(config).eval()
    ids = torch.arange(10, 22)[None]
    positions = torch.cat([torch.arange(6), torch.arange(6)])[None]
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions).logits[0]
        alone = torch.cat([model(input_ids=ids[:, at : at + 6]).logits[0] for at in (0, 6)])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="12 tokens, but the model has 8 positions"):
        model(input_ids=ids)
