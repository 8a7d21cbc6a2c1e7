"""A causal decoder (GPT-2, Llama and kin) with its heads.

Notable:
- The defaults are Llama's blocks; GPT-2 is learned positions, LayerNorm, biases and no gate.
- A cache made by the model itself never hides packed sequences: they stay apart with
  ``use_cache=True`` too, which transformers' own decoders leak through.
- Sequence classification reads each row's last attended token, on whichever side the padding is.

Shape suffixes: B batch  T tokens  D hidden size  V vocabulary  L labels.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DynamicCache,
    GenerationMixin,
)
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .base import (
    HlrConfig,
    HlrPreTrainedModel,
    check_labels,
    check_token_ids,
    classification_loss,
)
from .layers import (
    Attention,
    Block,
    Stack,
    additive_positions,
    build_norm,
    count_positions,
    keep_packed_apart,
)


class HlrDecoderConfig(HlrConfig):
    """A causal decoder; the defaults are Llama's blocks at SmolLM2-135M's size.

    Args:
        vocab_size: V.
        embedding_norm: Norm over the embeddings (BLOOM).
        sliding_window: Tokens that each token sees, itself included (Mistral); ``None`` = all before it.
        lm_head_bias: Bias of the output layer.
        classifier_dropout: Before the token classifier.
        use_cache: Return keys and values for the next call.
        pad_token_id: Padding; needed by sequence classification of several rows without a mask.
        tie_word_embeddings: The output layer uses the input embeddings.
    """

    model_type = "hlr_decoder"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    PRESETS: ClassVar[dict[str, dict]] = {
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 192,
            "vocab_size": 1000,
            "max_position_embeddings": 256,
        },
        "smollm2-135m": {"rope_theta": 100000.0, "norm_eps": 1e-5},
        "gpt2": {
            "vocab_size": 50257,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 1024,
            "hidden_act": "gelu_new",
            "gated_feed_forward": False,
            "norm": "layer_norm",
            "norm_eps": 1e-5,
            "position": "learned",
            "attention_bias": True,
            "attention_output_bias": True,
            "feed_forward_bias": True,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
        },
    }

    vocab_size: int = 49152
    hidden_size: int = 576
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    num_key_value_heads: int | None = 3
    intermediate_size: int | None = 1536
    max_position_embeddings: int = 8192
    hidden_act: str = "silu"
    gated_feed_forward: bool = True
    norm: str = "rms_norm"
    norm_eps: float = 1e-6
    position: str = "rotary"
    attention_bias: bool = False
    attention_output_bias: bool = False
    feed_forward_bias: bool = False
    embedding_norm: bool = False
    sliding_window: int | None = None
    lm_head_bias: bool = False
    classifier_dropout: float = 0.0
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True


class HlrDecoderPreTrainedModel(HlrPreTrainedModel):
    """The decoder's class attributes."""

    config: HlrDecoderConfig
    _can_record_outputs: ClassVar[dict] = {"hidden_states": Block, "attentions": Attention}


class HlrDecoderModel(HlrDecoderPreTrainedModel):
    """Token ids (B, T) -> hidden states (B, T, D), each from its own and earlier tokens only."""

    def __init__(self, config: HlrDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = additive_positions(config)
        self.embedding_norm = build_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.stack = Stack(config, is_causal=True)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Returns hidden states (B, T, D) and the cache.

        Args:
            input_ids: (B, T), the tokens after the cached ones.
            attention_mask: (B, cached + T), 0 on padding.
            position_ids: (B, T); where they restart, the row holds several sequences that do not see
                each other.
            past_key_values: A cache, updated in place.
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            use_cache: Make a cache when none is given; ``None`` = the config's.

        Raises:
            ValueError: ids outside the vocabulary, or more tokens than positions.
        """
        check_token_ids(input_ids, inputs_embeds, self.config.vocab_size)
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        # A fresh cache is kept from the mask: with one in sight transformers overlooks packed sequences.
        apart = {}
        if past_key_values is None and attention_mask is not None:  # without a mask transformers does it
            apart = keep_packed_apart(self.config, x_BTD, attention_mask, position_ids)
        window = self.config.sliding_window
        mask = (create_causal_mask if window is None else create_sliding_window_causal_mask)(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            **apart,
        )
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if torch.is_tensor(past_length):  # a static cache counts in place
            past_length = past_length.clone()
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = count_positions(self.config, attention_mask, x_BTD, past_length)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(position_ids).to(x_BTD.dtype)
        x_BTD = self.dropout(x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD))
        x_BTD = self.stack(
            x_BTD,
            mask,
            position_ids,
            past_key_values=past_key_values,
            past_length=past_length,
            sliding_window=window,
            **kwargs,
        )
        return BaseModelOutputWithPast(last_hidden_state=x_BTD, past_key_values=past_key_values)


class HlrDecoderForCausalLM(HlrDecoderPreTrainedModel, GenerationMixin):
    """The next token: logits (B, T, V)."""

    _tied_weights_keys: ClassVar[dict] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HlrDecoderConfig):
        super().__init__(config)
        self.model = HlrDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Returns logits (B, T, V) and, with labels (B, T; -100 = ignored), the loss.

        The labels are the inputs: each position is scored on the next one's label.
        ``logits_to_keep`` computes the last so many positions' logits only (0 = all).
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            check_labels(labels, logits, "they are token ids")
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HlrDecoderForSequenceClassification(HlrDecoderPreTrainedModel):
    """One label, several labels or numbers a row, read from its last token: logits (B, L)."""

    def __init__(self, config: HlrDecoderConfig):
        super().__init__(config)
        self.model = HlrDecoderModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """Returns logits (B, L) and, with labels, the loss of ``base.classification_loss``.

        Raises:
            ValueError: several rows without an attention_mask or a pad_token_id to find their ends.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        x_BTD = outputs.last_hidden_state
        last_B = self._last_token(input_ids, attention_mask, x_BTD)
        logits = self.score(x_BTD[torch.arange(x_BTD.shape[0], device=x_BTD.device), last_B])
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _last_token(self, input_ids, attention_mask, x_BTD) -> torch.Tensor:
        """Index (B,) of each row's last attended token."""
        batch, length, _ = x_BTD.shape
        steps_T = torch.arange(length, device=x_BTD.device)
        if attention_mask is not None and attention_mask.ndim == 2:
            return (steps_T * (attention_mask[:, -length:] != 0)).argmax(1)
        if input_ids is not None and self.config.pad_token_id is not None:
            return (steps_T * (input_ids != self.config.pad_token_id)).argmax(1)
        if batch > 1:
            raise ValueError(
                f"{batch} rows, but nothing says where they end; pass attention_mask or set pad_token_id"
            )
        return steps_T[-1:]


class HlrDecoderForTokenClassification(HlrDecoderPreTrainedModel):
    """A label a token, from it and the tokens before it: logits (B, T, L)."""

    def __init__(self, config: HlrDecoderConfig):
        super().__init__(config)
        self.model = HlrDecoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Returns logits (B, T, L) and, with labels (B, T; -100 = ignored), the mean cross-entropy."""
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_labels(labels, logits, "set num_labels in the config")
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


AutoConfig.register("hlr_decoder", HlrDecoderConfig, exist_ok=True)
AutoModel.register(HlrDecoderConfig, HlrDecoderModel, exist_ok=True)
AutoModelForCausalLM.register(HlrDecoderConfig, HlrDecoderForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    HlrDecoderConfig, HlrDecoderForSequenceClassification, exist_ok=True
)
AutoModelForTokenClassification.register(HlrDecoderConfig, HlrDecoderForTokenClassification, exist_ok=True)
