"""Packed attention: sequences laid end to end attend within themselves, and no T x T mask is built.

``attn_implementation="hlr_packed"`` serves our models and transformers' own encoders and decoders
(Llama, Qwen2, GPT-2, BERT, ...). Where the sequences begin is read from what the model passes to
every attention function anyway: ``cu_seq_lens_q`` (the flash-attention collators' key), else
``position_ids`` that restart, else the rows; padding by ``attention_mask`` is left out of the work.

Notable:
- On the CPU a loop over sequences through sdpa: cost sum(T_i^2) instead of (sum T_i)^2.
- On a GPU in half precision torch's variable-length flash kernel, where this torch has it.
- A step with cached keys is an ordinary masked sdpa.
"""

import inspect
import itertools

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None

NAME = "hlr_packed"
UNSUPPORTED = ("softcap", "s_aux")


def packed_mask(batch_size, q_length, kv_length, attention_mask=None, **kwargs):
    """Returns what ``packed_attention`` needs of a padding mask (B, K), or an ordinary 4-d mask.

    ``None`` or the 2-d mask when queries and keys are the same tokens; with cached keys the masked
    4-d form of sdpa.
    """
    if q_length != kv_length:
        kwargs = {"allow_is_causal_skip": False, **kwargs}
        return sdpa_mask(batch_size, q_length, kv_length, attention_mask=attention_mask, **kwargs)
    if attention_mask is not None and bool(attention_mask.all()):
        return None
    return attention_mask


def packed_attention(
    module: nn.Module,
    query_BHTE: torch.Tensor,
    key_BGKE: torch.Tensor,
    value_BGKE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_bias: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """softmax(Q K^T * scaling + bias) V within each sequence (Vaswani et al. 2017, eq. 1).

    Args:
        module: The attention layer; ``is_causal`` is read from it when not passed.
        query_BHTE: (B, H, T, E); keys and values (B, G, K, E), H a multiple of G.
        attention_mask: ``None``, (B, T) with False on padding, or a 4-d mask for cached keys.
        position_bias: (1, H, M, M) with M at least the longest sequence: ALiBi or T5 biases.
        position_ids: (B, T) or (1, T); a sequence begins where they do not rise.
        cu_seq_lens_q: Cumulative lengths (number of sequences + 1,) of the flattened batch.

    Returns:
        (B, T, H, E), zero on padding, and ``None`` for the weights.

    Raises:
        ValueError: an encoder-decoder model, an unsupported score function, or lengths that do not
            add up to the number of tokens.
    """
    _refuse_unsupported(module, kwargs)
    if query_BHTE.shape[2] != key_BGKE.shape[2] or (attention_mask is not None and attention_mask.ndim == 4):
        out, _ = sdpa_attention_forward(
            module, query_BHTE, key_BGKE, value_BGKE, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return out, None
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    batch, _, length, _ = query_BHTE.shape
    keep_N = None if attention_mask is None else attention_mask.flatten().nonzero().squeeze(1)
    lengths = sequence_lengths(batch, length, position_ids, attention_mask, cu_seq_lens_q)
    q_NHE, k_NGE, v_NGE = (_flatten_tokens(x_BHTE, keep_N) for x_BHTE in (query_BHTE, key_BGKE, value_BGKE))
    if _varlen_fits(q_NHE, dropout, position_bias):
        out_NHE = _varlen(q_NHE, k_NGE, v_NGE, lengths, scaling, is_causal, sliding_window)
    else:
        out_NHE = _loop(
            q_NHE, k_NGE, v_NGE, lengths, scaling, dropout, is_causal, sliding_window, position_bias
        )
    if keep_N is not None:
        shape = (batch * length, *out_NHE.shape[1:])
        out_NHE = out_NHE.new_zeros(shape).index_copy(0, keep_N, out_NHE)
    return out_NHE.view(batch, length, *out_NHE.shape[1:]), None


def sequence_lengths(
    batch: int,
    length: int,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    cu_seq_lens: torch.Tensor | None = None,
) -> list[int]:
    """Returns the lengths of the sequences laid end to end in a (batch, length) block, padding left out.

    >>> sequence_lengths(1, 6, torch.tensor([[0, 1, 0, 1, 2, 0]]))
    [2, 3, 1]

    Raises:
        ValueError: ``cu_seq_lens`` that do not end at the number of tokens, or position ids of
            another shape.
    """
    if cu_seq_lens is not None:
        if int(cu_seq_lens[-1]) != batch * length or attention_mask is not None:
            raise ValueError(
                f"cu_seq_lens end at {int(cu_seq_lens[-1])}; they need to end at the {batch * length} tokens "
                "of the flattened batch, without an attention_mask"
            )
        return cu_seq_lens.diff().tolist()
    device = next((x.device for x in (position_ids, attention_mask) if x is not None), None)
    rows_BT = torch.arange(batch, device=device)[:, None].expand(batch, length)
    if position_ids is None:
        position_ids = torch.arange(length, device=device)[None]
    if position_ids.ndim != 2 or position_ids.shape[1] != length:
        raise ValueError(
            f"position_ids have shape {tuple(position_ids.shape)}; they need ({batch}, {length})"
        )
    positions_BT = position_ids.expand(batch, length)
    keep = slice(None) if attention_mask is None else attention_mask.flatten().bool()
    rows_N, positions_N = rows_BT.flatten()[keep], positions_BT.flatten()[keep]
    # "does not rise" instead of "is 0": RoBERTa's positions begin at 2, and a mask may leave holes.
    begins_N = (rows_N[1:] != rows_N[:-1]) | (positions_N[1:] <= positions_N[:-1])
    starts = [0, *(begins_N.nonzero().squeeze(1) + 1).tolist(), len(rows_N)]
    return [end - start for start, end in itertools.pairwise(starts)]


def _refuse_unsupported(module, kwargs) -> None:
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"attn_implementation={NAME!r} has no {name}; use eager for {type(module).__name__}"
            )
    config = getattr(module, "config", None)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ValueError(
            f"attn_implementation={NAME!r} has no cross-attention, but the model of "
            f"{type(module).__name__} has; use sdpa"
        )


def _flatten_tokens(x_BHTE, keep_N):
    x_NHE = x_BHTE.transpose(1, 2).flatten(0, 1)
    return x_NHE if keep_N is None else x_NHE.index_select(0, keep_N)


def _loop(q_NHE, k_NGE, v_NGE, lengths, scaling, dropout, is_causal, sliding_window, position_bias):
    """One sdpa call a sequence; pieces are (1, H, T_i, E)."""
    grouped = q_NHE.shape[1] != k_NGE.shape[1]
    pieces = []
    for q, k, v in zip(*(x.split(lengths) for x in (q_NHE, k_NGE, v_NGE)), strict=True):
        mask = _bias_and_window(len(q), position_bias, is_causal, sliding_window, q)
        piece = nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_causal and mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        pieces.append(piece.squeeze(0).transpose(0, 1))
    return torch.cat(pieces)


def _bias_and_window(length, position_bias, is_causal, sliding_window, like):
    """The additive (1, 1 or H, T_i, T_i) mask of one sequence, or None where sdpa needs none."""
    windowed = sliding_window is not None and sliding_window < length
    if position_bias is None and not windowed:
        return None
    steps = torch.arange(length, device=like.device)
    distance = steps[:, None] - steps[None, :]
    allowed = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    if windowed:
        allowed = allowed & (distance.abs() < sliding_window)
    bias = like.new_zeros(()) if position_bias is None else position_bias[..., :length, :length]
    return torch.where(allowed[None, None], bias, torch.finfo(like.dtype).min)


def _varlen_fits(q_NHE, dropout, position_bias) -> bool:
    """Whether torch's variable-length flash kernel takes these tensors."""
    if varlen_attn is None or "window_size" not in inspect.signature(varlen_attn).parameters:
        return False
    half = q_NHE.is_cuda and q_NHE.dtype in (torch.float16, torch.bfloat16)
    head_dim = q_NHE.shape[2]
    return half and dropout == 0.0 and position_bias is None and head_dim % 8 == 0 and head_dim <= 256


def _varlen(q_NHE, k_NGE, v_NGE, lengths, scaling, is_causal, sliding_window):
    ends = torch.tensor([0, *lengths], device=q_NHE.device).cumsum(0).to(torch.int32)
    back = -1 if sliding_window is None else sliding_window - 1
    return varlen_attn(
        q_NHE,
        k_NGE,
        v_NGE,
        ends,
        ends,
        max(lengths),
        max(lengths),
        scale=scaling,
        window_size=(back, 0 if is_causal else back),
        enable_gqa=q_NHE.shape[1] != k_NGE.shape[1],
    )


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)
