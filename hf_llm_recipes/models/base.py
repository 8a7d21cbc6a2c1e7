"""What the architectures share: config fields and their checks, weight init, input checks, losses.

Notable:
- A config is refused where it is made, with the value, what is allowed and what to do;
  ``HlrConfig.checked(**keys)`` also refuses unknown keys, which transformers keeps silently.
- The losses divide by ``num_items_in_batch`` when the Trainer passes it, so one batch of 8 and
  8 accumulated batches of 1 give the same gradient.

Shape suffixes used in this folder:
    B batch  T tokens (query)  S tokens of the memory  K keys  D hidden size  H query heads
    G key-value heads  E head size  F feed-forward size  V vocabulary  L labels  N packed tokens
"""

import dataclasses
import difflib
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters
from transformers.models.auto import modeling_auto

POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "relative", "none")
NORMS = ("layer_norm", "rms_norm")


class HlrConfig(PreTrainedConfig):
    """Fields of one stack of Transformer blocks (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Args:
        hidden_size: D, the width of the residual stream.
        num_hidden_layers: Number of blocks.
        num_attention_heads: H, query heads.
        num_key_value_heads: G, heads of keys and values; H = multi-head, 1 = multi-query
            (Shazeer 2019), between = grouped-query (Ainslie et al. 2023). ``None`` = H.
        head_dim: E. ``None`` = D / H.
        intermediate_size: F. ``None`` = 4 D.
        hidden_act: Any name of ``transformers.activations.ACT2FN``: ``gelu``, ``relu``, ``silu``, ...
        gated_feed_forward: act(x W_gate) * (x W_up): SwiGLU with ``silu``, GEGLU with ``gelu``.
        norm: ``layer_norm`` or ``rms_norm``.
        norm_eps: Added to the variance.
        norm_first: Pre-norm x + f(norm(x)) with a final norm; else post-norm norm(x + f(x)).
        position: One of ``learned``, ``sinusoidal``, ``rotary``, ``alibi``, ``relative`` (T5), ``none``.
        max_position_embeddings: Positions of the learned table; for the others the length trained on.
        position_offset: Index of the first position in the learned table (RoBERTa: 2).
        positions_from_mask: Count only attended tokens: padding on the left changes nothing. Off where
            a published model counts its padding (BERT, GPT-2).
        rope_parameters: As in transformers: ``rope_theta``, ``rope_type`` and its own keys.
        num_relative_buckets: T5 buckets of distances.
        max_relative_distance: Distance from which on all share the last bucket.
        attention_bias: Bias of the query, key and value projections.
        attention_output_bias: Bias of the output projection.
        feed_forward_bias: Bias of the feed-forward projections.
        qk_norm: RMSNorm over each head of queries and keys (Qwen3).
        attention_scale: Factor of the scores. ``None`` = 1/sqrt(E).
        hidden_dropout_prob: After the embeddings and after each sublayer.
        attention_dropout_prob: On the attention weights.
        activation_dropout_prob: Inside the feed-forward layer (T5).
        initializer_range: Standard deviation of fresh weights.
        converted_from: Class and config of the model whose weights these were (``convert.py``).

    Raises:
        ValueError: a field that no model can be built from.
    """

    PRESETS: ClassVar[dict[str, dict]] = {}

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    gated_feed_forward: bool = False
    norm: str = "layer_norm"
    norm_eps: float = 1e-6
    norm_first: bool = True
    position: str = "learned"
    max_position_embeddings: int = 512
    position_offset: int = 0
    positions_from_mask: bool = True
    rope_parameters: RopeParameters | dict | None = None
    num_relative_buckets: int = 32
    max_relative_distance: int = 128
    attention_bias: bool = True
    attention_output_bias: bool = True
    feed_forward_bias: bool = True
    qk_norm: bool = False
    attention_scale: float | None = None
    hidden_dropout_prob: float = 0.0
    attention_dropout_prob: float = 0.0
    activation_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    converted_from: dict | None = None

    def __post_init__(self, **kwargs):
        wants_rope = bool(self.rope_parameters) or "rope_theta" in kwargs or "rope_scaling" in kwargs
        if wants_rope and self.position != "rotary":
            raise ValueError(
                f"rope_parameters have no effect with position={self.position!r}; set position='rotary'"
            )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self._check_sizes()
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        if self.position != "rotary":
            self.rope_parameters = None
        self.check()

    @classmethod
    def checked(cls, **keys) -> "HlrConfig":
        """Returns the config of these keys.

        Raises:
            ValueError: a key that is no field of this config; names the nearest.
        """
        check_config_keys(cls, keys)
        return cls(**keys)

    @classmethod
    def preset(cls, name: str, **overrides) -> "HlrConfig":
        """Returns the config of a named size with some keys changed.

        Raises:
            ValueError: no preset of that name, or an unknown key.
        """
        if name not in cls.PRESETS:
            raise ValueError(f"no preset {name!r} of {cls.model_type}; allowed: {', '.join(cls.PRESETS)}")
        return cls.checked(**{**cls.PRESETS[name], **overrides})

    def check(self) -> None:
        """Refuses values that no model can be built from.

        Raises:
            ValueError: sizes that do not divide, an unknown norm, position or activation, an odd
                rotary head size, a probability outside [0, 1).
        """
        self._check_sizes()
        _check_choice("position", self.position, POSITIONS)
        _check_choice("norm", self.norm, NORMS)
        _check_choice("hidden_act", self.hidden_act, tuple(ACT2FN))
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd, but rotary positions turn pairs of features; "
                "choose hidden_size / num_attention_heads even, or another position"
            )
        if self.position == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size} is odd, but sinusoidal positions need pairs")
        vocab_size, pad = getattr(self, "vocab_size", None), getattr(self, "pad_token_id", None)
        if vocab_size is not None and pad is not None and not 0 <= pad < vocab_size:
            raise ValueError(f"pad_token_id={pad} is outside the vocabulary; allowed: 0 to {vocab_size - 1}")
        for name in ("hidden_dropout_prob", "attention_dropout_prob", "activation_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is no probability; allowed: [0, 1)")

    def _check_sizes(self) -> None:
        names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
        names += ["intermediate_size", "max_position_embeddings"]
        for name in names + (["head_dim"] if self.head_dim is not None else []):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}; allowed: a whole number from 1 on")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_attention_heads="
                f"{self.num_attention_heads}; change one of them or set head_dim"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; each key-value head serves an equal group"
            )


def check_config_keys(config_class: type[PreTrainedConfig], keys) -> None:
    """Refuses keys that are no field of a config class (transformers would keep them silently).

    Raises:
        ValueError: an unknown key; names the nearest field.
    """
    known = {field.name.lstrip("_") for field in dataclasses.fields(config_class)}
    known |= {"num_labels", "rope_theta", "rope_scaling", "attn_implementation", "name_or_path"}
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(known))}"
            raise ValueError(f"unknown key {key!r} of {config_class.__name__}; {hint}")


class HlrPreTrainedModel(PreTrainedModel):
    """What every model of ours tells transformers about itself."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    # Blocks hold a residual: a device map never cuts through one.
    _no_split_modules: ClassVar[list[str]] = ["Block"]

    def __init__(self, config):
        # Compared by name: as remote code, config and model come from two copies of one module.
        if config.model_type != self.config_class.model_type:
            raise ValueError(
                f"{type(self).__name__} got a config of model_type={config.model_type!r}; "
                f"it needs {self.config_class.model_type!r} ({self.config_class.__name__})"
            )
        config.check()
        super().__init__(config)


def carry_code(model: PreTrainedModel) -> None:
    """Makes ``save_pretrained`` and ``push_to_hub`` of this model write its family's code too.

    ``from_pretrained(folder, trust_remote_code=True)`` then needs no install, through the Auto class of
    any head of the family and through ``AutoModel``: transformers itself would name this head only.

    Raises:
        ValueError: a part of a model, which no Auto class loads.
    """
    config_class, heads = type(model.config), {}
    for name in modeling_auto.__all__:
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if mapping is not None and config_class in mapping:
            heads[name] = mapping[config_class]
    own = next((name for name, head in heads.items() if head is type(model)), None)
    if own is None:
        raise ValueError(
            f"{type(model).__name__} is not registered with an Auto class, so none could load its code; "
            f"allowed: {', '.join(head.__name__ for head in heads.values())}"
        )
    config_class.register_for_auto_class()
    type(model).register_for_auto_class(own)
    classes = {"AutoConfig": config_class, **heads}
    model.config.auto_map = {
        name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in classes.items()
    }


def check_token_ids(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, vocab_size: int
) -> None:
    """Checks that exactly one input is given and that the ids are in the vocabulary.

    Values are read on the CPU only: on a GPU it would stall the queue each step, and in a compiled
    graph it would break it.

    Raises:
        ValueError: none or both inputs, or an id outside [0, vocab_size).
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None:
        check_range("input_ids", input_ids, vocab_size, "is the tokenizer of another model?")


def check_range(name: str, ids: torch.Tensor, size: int, hint: str) -> None:
    """Refuses values outside [0, size); reads them on the CPU outside compiled graphs only.

    Raises:
        ValueError: the value, what is allowed, ``hint``.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    low, high = ids.min().item(), ids.max().item()
    if low < 0 or high >= size:
        raise ValueError(f"{name} holds {low if low < 0 else high}; allowed: 0 to {size - 1}; {hint}")


def check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape.

    Raises:
        ValueError: the shape it has and the one it needs.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it needs {tuple(expected)}")


def check_labels(labels: torch.Tensor, logits: torch.Tensor, hint: str) -> None:
    """Refuses class labels that do not fit logits (..., L): one of -100 (ignored), 0 to L - 1 a position.

    Raises:
        ValueError: another shape, or a label that is no class.
    """
    check_shape("labels", labels, logits.shape[:-1])
    check_range("labels", labels.masked_fill(labels == -100, 0), logits.shape[-1], f"or -100; {hint}")


def classification_loss(labels, logits, config, num_items_in_batch=None, **kwargs) -> torch.Tensor:
    """Returns the loss of one row of logits per example: ``logits`` (B, L).

    Cross-entropy for whole-number labels (B,), mean squared error for regression (B,) or (B, L),
    binary cross-entropy for float labels (B, L), chosen by ``config.problem_type`` or, where that is
    ``None``, by the number and type of the labels. transformers' own loss takes the mean over the
    micro-batch in the last two cases, which is wrong under gradient accumulation; this one divides
    by ``num_items_in_batch``, the number of labels in all micro-batches.

    Raises:
        ValueError: labels whose shape or range does not fit the logits.
    """
    kind = config.problem_type or _problem_type(labels, logits)
    if kind == "single_label_classification":
        check_labels(labels, logits, "set num_labels in the config")
        return _divided_cross_entropy(logits, labels, num_items_in_batch)
    labels = labels.to(logits.dtype)
    if kind == "regression":
        if logits.shape[1] == 1:
            logits = logits.squeeze(1)
            labels = labels.squeeze(1) if labels.ndim == 2 else labels
        check_shape("labels", labels, logits.shape)
        total, count = nn.functional.mse_loss(logits, labels, reduction="sum"), labels.numel()
    else:
        check_shape("labels", labels, logits.shape)
        total = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        count = labels.numel()
    return total / (count if num_items_in_batch is None else num_items_in_batch)


def pretraining_loss(
    labels, logits, row_labels, row_logits, num_items_in_batch=None, **kwargs
) -> torch.Tensor:
    """Returns masked-token plus next-sentence cross-entropy (Devlin et al. 2018, §3.1).

    Without ``num_items_in_batch``: the mean over masked tokens plus the mean over rows. The Trainer
    passes only the number of masked tokens of all micro-batches, so there each row's next-sentence
    term is weighted by its own share of them, which makes any split of the batch give the same loss;
    with equally many masked tokens in each row both are the same number.

    Args:
        labels: (B, T), -100 where nothing is masked, or ``None``.
        logits: (B, T, V).
        row_labels: (B,), or ``None``.
        row_logits: (B, 2).
        num_items_in_batch: Masked tokens of all micro-batches of the step.
    """
    loss = row_logits.new_zeros(())
    if labels is not None:
        loss = loss + _divided_cross_entropy(logits.flatten(0, 1), labels.flatten(), num_items_in_batch)
    if row_labels is not None and (num_items_in_batch is None or labels is None):
        loss = loss + nn.functional.cross_entropy(row_logits.float(), row_labels)
    elif row_labels is not None:
        row_loss_B = nn.functional.cross_entropy(row_logits.float(), row_labels, reduction="none")
        loss = loss + ((labels != -100).sum(1) * row_loss_B).sum() / num_items_in_batch
    return loss


def span_loss(start_logits, end_logits, start_positions, end_positions, num_items_in_batch=None, **kwargs):
    """Returns the mean cross-entropy of where answers begin and end (Devlin et al. 2018, §4.2).

    Positions at or past T (the answer lies outside this window) count as zero. transformers' loss leaves
    them out of the mean, which is NaN for a batch of one such row.

    Args:
        start_logits: (B, T).
        end_logits: (B, T).
        start_positions: (B,), negative ones count as 0.
        end_positions: (B,).
        num_items_in_batch: Rows of all micro-batches of the step; ``None`` = B.
    """
    rows, length = start_logits.shape
    total = start_logits.new_zeros((), dtype=torch.float32)
    for logits_BT, positions_B in ((start_logits, start_positions), (end_logits, end_positions)):
        positions_B = positions_B.clamp(0, length)
        total = total + nn.functional.cross_entropy(
            logits_BT.float(), positions_B, ignore_index=length, reduction="sum"
        )
    return total / (2 * (rows if num_items_in_batch is None else num_items_in_batch))


def _divided_cross_entropy(logits_ML, labels_M, num_items_in_batch):
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = nn.functional.cross_entropy(logits_ML.float(), labels_M, ignore_index=-100, reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def _problem_type(labels, logits) -> str:
    if logits.shape[1] == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name}={value!r}{hint}; allowed: {', '.join(allowed)}")
