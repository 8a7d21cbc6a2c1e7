"""The Transformer's parts, from the attention formula up to a stack of blocks.

Read top to bottom: scores and softmax, heads, positions, feed-forward, residual, block, stack.

Notable:
- One attention layer for multi-head, grouped-query and multi-query, self and cross, cached or not.
- The formula runs through transformers' attention interface: eager, sdpa, flex_attention,
  flash_attention_2 or our ``hlr_packed``.
- Biases by distance (ALiBi, T5) are merged with the mask once a forward, not once a layer.

Shape suffixes:
    B batch  T tokens (query)  S tokens of the memory  K keys  D hidden size  H query heads
    G key-value heads  E head size  F feed-forward size
"""

import math

import torch
from torch import nn
from transformers import EncoderDecoderCache
from transformers.activations import ACT2FN
from transformers.masking_utils import packed_sequence_mask_function
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .base import check_range
from .packed import NAME as PACKED
from .packed import sequence_lengths

BIASED_BY_DISTANCE = ("alibi", "relative")


def eager_attention(
    module: nn.Module,
    query_BHTE: torch.Tensor,
    key_BGKE: torch.Tensor,
    value_BGKE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention(Q, K, V) = softmax(Q K^T / sqrt(E) + mask) V  (Vaswani et al. 2017, eq. 1).

    Args:
        module: The attention layer (its ``training`` switches dropout).
        query_BHTE: (B, H, T, E).
        key_BGKE: (B, G, K, E); each key-value head serves H / G query heads.
        value_BGKE: (B, G, K, E).
        attention_mask: Added to the scores: 0 where a query may look, very negative elsewhere;
            (B or 1, H or 1, T, K).
        scaling: Factor of the scores; ``None`` = 1/sqrt(E).
        dropout: Probability on the weights.

    Returns:
        (B, T, H, E) and the weights (B, H, T, K), whose rows sum to 1.
    """
    groups = query_BHTE.shape[1] // key_BGKE.shape[1]
    key_BHKE = key_BGKE.repeat_interleave(groups, dim=1) if groups > 1 else key_BGKE
    value_BHKE = value_BGKE.repeat_interleave(groups, dim=1) if groups > 1 else value_BGKE
    scaling = query_BHTE.shape[-1] ** -0.5 if scaling is None else scaling
    scores_BHTK = query_BHTE @ key_BHKE.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores_BHTK = scores_BHTK + attention_mask
    weights_BHTK = scores_BHTK.softmax(-1, dtype=torch.float32).to(query_BHTE.dtype)
    dropped_BHTK = nn.functional.dropout(weights_BHTK, dropout, training=module.training)
    return (dropped_BHTK @ value_BHKE).transpose(1, 2).contiguous(), weights_BHTK


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the normed tensor, any shape (..., size), in the dtype it came in."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def build_norm(config) -> nn.Module:
    """Returns the norm over D that the config names: LayerNorm (Ba et al. 2016) or RMSNorm."""
    kind = nn.LayerNorm if config.norm == "layer_norm" else RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class LearnedPositions(nn.Module):
    """One learned vector a position (Vaswani et al. 2017, §3.5; Devlin et al. 2018)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.offset = config.position_offset
        padding = self.offset - 1 if self.offset else None  # RoBERTa's padding has a row that never learns
        self.embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding)

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns (B or 1, T, D) for positions (B or 1, T).

        Raises:
            ValueError: a position beyond the table.
        """
        room = self.embedding.num_embeddings - self.offset
        hint = "shorten the input (truncation=True) or use a larger max_position_embeddings"
        # more tokens than rows are right where packed sequences begin anew; elsewhere than on the CPU a
        # position out of the table ends the process, so it is looked at before
        longer = position_ids.shape[-1] > room and not torch.compiler.is_compiling()
        if longer and int(position_ids.max()) >= room:
            raise ValueError(f"{position_ids.shape[-1]} tokens, but the model has {room} positions; {hint}")
        rows = position_ids + self.offset
        check_range("position_ids (with the offset)", rows, self.embedding.num_embeddings, hint)
        return self.embedding(rows)


class SinusoidalPositions(nn.Module):
    """sin and cos of position / 10000^(2i/D) at features 2i and 2i+1 (Vaswani et al. 2017, §3.5).

    Computed in the forward: a table made in ``__init__`` would be garbage after ``from_pretrained``.
    """

    def __init__(self, config) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Returns (B or 1, T, D) for positions (B or 1, T)."""
        pairs = torch.arange(0, self.hidden_size, 2, device=position_ids.device, dtype=torch.float32)
        angle = position_ids[..., None] * torch.exp(pairs * (-math.log(10000.0) / self.hidden_size))
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


class RotaryEmbedding(nn.Module):
    """Angles position * theta^(-2i/E) that turn queries and keys (Su et al. 2021, §3.2.2).

    ``rope_parameters`` names transformers' extensions too (linear, dynamic, yarn, llama3, longrope).
    The class and attribute names are those that transformers' weight init looks for: it fills the
    frequencies again after ``from_pretrained``, which leaves non-persistent buffers uninitialised.
    """

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        compute = {"default": self.compute_default_rope_parameters, **ROPE_INIT_FUNCTIONS}[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config, device=None, **kwargs) -> tuple[torch.Tensor, float]:
        """Returns theta^(-2i/E) for i < E/2, and the factor 1 of cos and sin."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cos and sin, each (B or 1, T, 1, E/2), in the dtype of ``x``."""
        angle = position_ids[:, :, None, None].float() * self.inv_freq.float().to(x.device)
        cos, sin = angle.cos() * self.attention_scaling, angle.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x_BTHE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pair (x_i, x_{i+E/2}) by its angle: (a cos - b sin, b cos + a sin)  (Su et al. 2021, eq. 34).

    Args:
        x_BTHE: Queries or keys, before heads and tokens change places: attention on the CPU lays its output
            out as its queries, and so spares the output projection a copy.
        cos: (B or 1, T, 1, E/2).
        sin: (B or 1, T, 1, E/2).
    """
    a, b = x_BTHE.chunk(2, dim=-1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), dim=-1)


class AlibiBias(nn.Module):
    """-slope_h * |i - j| added to the scores; slopes 2^(-8h/H) (Press et al. 2022, §3).

    Head counts that are no power of two take every second slope of the next one, as their code does.
    """

    def __init__(self, config, is_causal: bool) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads

    @staticmethod
    def slopes(num_heads: int) -> list[float]:
        """Returns the H slopes, within (0, 1).

        >>> AlibiBias.slopes(4)
        [0.25, 0.0625, 0.015625, 0.00390625]
        """
        power = 2 ** math.floor(math.log2(num_heads))
        slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
        return slopes + [2 ** (-4 * (2 * h + 1) / power) for h in range(num_heads - power)]

    def forward(self, query_positions_T: torch.Tensor, key_positions_K: torch.Tensor) -> torch.Tensor:
        """Returns (1, H, T, K)."""
        distance_TK = (key_positions_K[None, :] - query_positions_T[:, None]).abs()
        slopes_H = torch.tensor(self.slopes(self.num_heads), device=distance_TK.device)
        return -(slopes_H[:, None, None] * distance_TK)[None]


class RelativeBias(nn.Module):
    """One learned score a head and bucket of distances (Raffel et al. 2020, §2.1; T5).

    Half of the buckets are single distances, the others grow logarithmically up to
    ``max_relative_distance``; without a causal mask the two directions share the buckets.
    """

    def __init__(self, config, is_causal: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_relative_buckets, config.num_attention_heads)
        self.max_distance = config.max_relative_distance
        self.is_causal = is_causal

    def buckets(self, distance: torch.Tensor) -> torch.Tensor:
        """Returns the bucket of each distance key - query, within [0, num_relative_buckets)."""
        num_buckets = self.embedding.num_embeddings
        first = torch.zeros_like(distance)
        if self.is_causal:
            distance = -distance.clamp(max=0)
        else:
            num_buckets //= 2
            first = (distance > 0).long() * num_buckets
            distance = distance.abs()
        exact = num_buckets // 2
        ratio = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
        return first + torch.where(distance < exact, distance, far)

    def forward(self, query_positions_T: torch.Tensor, key_positions_K: torch.Tensor) -> torch.Tensor:
        """Returns (1, H, T, K)."""
        distance_TK = key_positions_K[None, :] - query_positions_T[:, None]
        return self.embedding(self.buckets(distance_TK)).permute(2, 0, 1)[None]


class Attention(nn.Module):
    """MultiHead(x) = Concat(head_1 .. head_H) W_O, head_h = Attention(x W_Q, m W_K, m W_V)  (ibid. §3.2.2).

    The memory m is x itself, or the encoder's output in cross-attention. Fewer key-value than query
    heads make it grouped-query (Ainslie et al. 2023) or, with one, multi-query (Shazeer 2019).
    """

    def __init__(self, config, *, is_causal: bool, layer_idx: int) -> None:
        super().__init__()
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.config, self.layer_idx, self.is_causal, self.head_dim = config, layer_idx, is_causal, size
        self.num_key_value_groups = heads // groups
        self.scaling = size**-0.5 if config.attention_scale is None else config.attention_scale
        self.q_proj = nn.Linear(config.hidden_size, heads * size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, groups * size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, groups * size, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * size, config.hidden_size, bias=config.attention_output_bias)
        self.q_norm = RMSNorm(size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(size, config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x_BTD: torch.Tensor,
        attention_mask=None,
        memory_BSD: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (B, T, D) and, with eager attention, the weights (B, H, T, K)."""
        query_BHTE = self._heads(self.q_proj, x_BTD, self.q_norm, rotary)
        if memory_BSD is None:
            key_BGKE, value_BGKE = self._own_keys(x_BTD, rotary, past_key_values)
        else:
            key_BGKE, value_BGKE = self._memory_keys(memory_BSD, past_key_values)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        out_BTHE, weights_BHTK = attend(
            self,
            query_BHTE,
            key_BGKE,
            value_BGKE,
            attention_mask,
            dropout=self.config.attention_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(out_BTHE.flatten(2)), weights_BHTK

    def _heads(self, project, x_BTD, norm=None, rotary=None):
        x_BTHE = project(x_BTD).unflatten(-1, (-1, self.head_dim))
        x_BTHE = x_BTHE if norm is None else norm(x_BTHE)
        return (x_BTHE if rotary is None else rotate(x_BTHE, *rotary)).transpose(1, 2)

    def _own_keys(self, x_BTD, rotary, past_key_values):
        key_BGTE = self._heads(self.k_proj, x_BTD, self.k_norm, rotary)
        value_BGTE = self._heads(self.v_proj, x_BTD)
        if past_key_values is None:
            return key_BGTE, value_BGTE
        if isinstance(past_key_values, EncoderDecoderCache):
            past_key_values = past_key_values.self_attention_cache
        return past_key_values.update(key_BGTE, value_BGTE, self.layer_idx)

    def _memory_keys(self, memory_BSD, past_key_values):
        """Keys and values of the memory, computed once a generation."""
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return cached.keys, cached.values
        key_BGSE, value_BGSE = (
            self._heads(self.k_proj, memory_BSD, self.k_norm),
            self._heads(self.v_proj, memory_BSD),
        )
        if past_key_values is None:
            return key_BGSE, value_BGSE
        past_key_values.is_updated[self.layer_idx] = True
        return past_key_values.cross_attention_cache.update(key_BGSE, value_BGSE, self.layer_idx)


class FeedForward(nn.Module):
    """act(x W_up) W_down (ibid. eq. 2), or gated (act(x W_gate) * (x W_up)) W_down.

    Gated with ``silu`` it is SwiGLU, with ``gelu`` GEGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202,
    eq. 6).
    """

    def __init__(self, config) -> None:
        super().__init__()
        sizes, bias = (config.hidden_size, config.intermediate_size), config.feed_forward_bias
        self.gate_proj = nn.Linear(*sizes, bias=bias) if config.gated_feed_forward else None
        self.up_proj = nn.Linear(*sizes, bias=bias)
        self.down_proj = nn.Linear(*reversed(sizes), bias=bias)
        self.act = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.activation_dropout_prob)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Returns (B, T, D)."""
        up_BTF = self.up_proj(x_BTD)
        h_BTF = self.act(up_BTF) if self.gate_proj is None else self.act(self.gate_proj(x_BTD)) * up_BTF
        return self.down_proj(self.dropout(h_BTF))


class Residual(nn.Module):
    """norm(x + f(x)) (post-norm, ibid. §3.1) or x + f(norm(x)) (pre-norm, Xiong et al. 2020)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.norm = build_norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm_first = config.norm_first

    def forward(self, x_BTD: torch.Tensor, sublayer) -> torch.Tensor:
        """Returns (B, T, D); ``sublayer`` maps (B, T, D) to (B, T, D)."""
        if self.norm_first:
            return x_BTD + self.dropout(sublayer(self.norm(x_BTD)))
        return self.norm(x_BTD + self.dropout(sublayer(x_BTD)))


class Block(GradientCheckpointingLayer):
    """Self-attention, in a decoder with an encoder cross-attention, feed-forward; each in a residual."""

    def __init__(self, config, *, is_causal: bool, layer_idx: int, has_memory: bool = False) -> None:
        super().__init__()
        self.attention = Attention(config, is_causal=is_causal, layer_idx=layer_idx)
        self.attention_residual = Residual(config)
        if has_memory:
            self.cross_attention = Attention(config, is_causal=False, layer_idx=layer_idx)
            self.cross_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self,
        x_BTD: torch.Tensor,
        attention_mask=None,
        memory_BSD: torch.Tensor | None = None,
        memory_mask=None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values=None,
        **kwargs,
    ) -> torch.Tensor:
        """Returns (B, T, D)."""
        own = {"rotary": rotary, "past_key_values": past_key_values, **kwargs}
        x_BTD = self.attention_residual(x_BTD, lambda h_BTD: self.attention(h_BTD, attention_mask, **own)[0])
        if memory_BSD is not None:
            x_BTD = self.cross_attention_residual(
                x_BTD,
                lambda h_BTD: self.cross_attention(
                    h_BTD, memory_mask, memory_BSD, past_key_values=past_key_values
                )[0],
            )
        # A lambda here too: accelerate moves modules among the arguments, and offloaded ones cannot be moved.
        return self.feed_forward_residual(x_BTD, lambda h_BTD: self.feed_forward(h_BTD))


class Stack(nn.Module):
    """Blocks, what they share (rotary angles, biases by distance), and pre-norm's final norm."""

    def __init__(
        self, config, *, is_causal: bool, has_memory: bool = False, num_layers: int | None = None
    ) -> None:
        super().__init__()
        self.config, self.is_causal = config, is_causal
        kinds = {"alibi": AlibiBias, "relative": RelativeBias}
        self.rotary = RotaryEmbedding(config) if config.position == "rotary" else None
        biased = config.position in BIASED_BY_DISTANCE
        self.distance_bias = kinds[config.position](config, is_causal) if biased else None
        self.layers = nn.ModuleList(
            Block(config, is_causal=is_causal, layer_idx=i, has_memory=has_memory)
            for i in range(num_layers or config.num_hidden_layers)
        )
        self.final_norm = build_norm(config) if config.norm_first else None

    def forward(
        self,
        x_BTD: torch.Tensor,
        attention_mask=None,
        position_ids: torch.Tensor | None = None,
        memory_BSD: torch.Tensor | None = None,
        memory_mask=None,
        past_key_values=None,
        past_length: int | torch.Tensor = 0,
        **kwargs,
    ) -> torch.Tensor:
        """Returns (B, T, D).

        Args:
            x_BTD: Embedded tokens or patches.
            attention_mask: Of the form that the attention implementation takes.
            position_ids: (B or 1, T), for rotary angles and packed sequences.
            memory_BSD: The encoder's output, for cross-attention.
            memory_mask: As ``attention_mask``, for the memory.
            past_key_values: A cache, updated in place.
            past_length: Cached positions before this call.
        """
        rotary = self.rotary(x_BTD, position_ids) if self.rotary is not None else None
        if self.distance_bias is not None:
            attention_mask, bias = self._biased_mask(
                x_BTD, attention_mask, position_ids, past_key_values, past_length
            )
            kwargs = {**kwargs, "position_bias": bias} if bias is not None else kwargs
        for layer in self.layers:
            x_BTD = layer(
                x_BTD,
                attention_mask,
                memory_BSD,
                memory_mask,
                rotary=rotary,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD)

    def _biased_mask(self, x_BTD, mask, position_ids, past_key_values, past_length):
        """Returns the mask with the bias in it, or the mask and the bias apart for packed sequences."""
        implementation, length = self.config._attn_implementation, x_BTD.shape[1]
        if implementation not in ("eager", "sdpa", PACKED):
            raise ValueError(
                f"position={self.config.position!r} adds a bias to the scores, which attn_implementation="
                f"{implementation!r} does not take; use sdpa, eager or {PACKED}"
            )
        num_keys, first_key = length, 0
        if past_key_values is not None:
            num_keys, first_key = past_key_values.get_mask_sizes(length, 0)
        if implementation == PACKED and num_keys == length and (mask is None or mask.ndim == 2):
            longest = max(sequence_lengths(x_BTD.shape[0], length, position_ids, mask))
            steps = torch.arange(longest, device=x_BTD.device)
            return mask, self.distance_bias(steps, steps).to(x_BTD.dtype)
        queries_T = torch.arange(length, device=x_BTD.device) + past_length
        keys_K = torch.arange(num_keys, device=x_BTD.device) + first_key
        bias_1HTK = self.distance_bias(queries_T, keys_K).to(x_BTD.dtype)
        if mask is None and self.is_causal:
            mask = keys_K[None, :] <= queries_T[:, None]
        if mask is None:
            return bias_1HTK, None
        if mask.dtype == torch.bool:
            return torch.where(mask, bias_1HTK, torch.finfo(x_BTD.dtype).min), None
        return mask + bias_1HTK, None


def count_positions(
    config, attention_mask: torch.Tensor | None, x_BTD: torch.Tensor, past_length=0
) -> torch.Tensor:
    """Returns position ids (B or 1, T) of the tokens after ``past_length`` cached ones.

    With ``config.positions_from_mask`` and a (B, past + T) mask only attended tokens are counted, so that
    padding on the left leaves every token its position; padding itself has the row before the first
    position of a table with an offset (RoBERTa), else 0.
    """
    length = x_BTD.shape[1]
    if not config.positions_from_mask or attention_mask is None or attention_mask.ndim != 2:
        return (torch.arange(length, device=x_BTD.device) + past_length)[None]
    kept = attention_mask.long()
    return (kept.cumsum(1) * kept - 1).clamp(min=-1 if config.position_offset else 0)[:, -length:]


def additive_positions(config) -> nn.Module | None:
    """Returns the module whose vectors are added to the embeddings, or ``None``."""
    kinds = {"learned": LearnedPositions, "sinusoidal": SinusoidalPositions}
    return kinds[config.position](config) if config.position in kinds else None


def keep_packed_apart(
    config, x_BTD: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> dict:
    """Returns what transformers' mask functions need to keep packed sequences apart: nothing where none are.

    Args:
        config: Names the attention implementation; ``hlr_packed`` reads the positions itself.
        x_BTD: Embedded tokens.
        attention_mask: (B, T), 0 on padding, or ``None``.
        position_ids: (B or 1, T) as the user gave them; a sequence begins where they do not rise.
    """
    length = x_BTD.shape[1]
    fits = attention_mask is None or (attention_mask.ndim == 2 and attention_mask.shape[1] == length)
    if position_ids is None or not fits or config._attn_implementation == PACKED:
        return {}
    numbers_BT = sequence_numbers(position_ids.expand(x_BTD.shape[0], -1), attention_mask)
    if not torch.compiler.is_compiling() and not numbers_BT.any():
        return {}  # without a mask the kernels are faster
    return {"and_mask_function": packed_sequence_mask_function(numbers_BT)}


def sequence_numbers(position_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Returns which sequence of its row each token belongs to (B, T), padding left out of the count.

    >>> sequence_numbers(torch.tensor([[0, 1, 0, 1, 2, 0]])).tolist()
    [[0, 0, 1, 1, 1, 2]]
    """
    steps_BT = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    everything = attention_mask is None
    kept_BT = torch.ones_like(position_ids, dtype=torch.bool) if everything else attention_mask != 0
    # The attended token before each: with holes in the mask it is not always the neighbour.
    latest_BT = torch.where(kept_BT, steps_BT, -1).cummax(1).values
    before_BT = nn.functional.pad(latest_BT[:, :-1], (1, 0), value=-1)
    falls_BT = position_ids <= position_ids.gather(1, before_BT.clamp(min=0))
    return (kept_BT & (before_BT >= 0) & falls_BT).long().cumsum(1)
