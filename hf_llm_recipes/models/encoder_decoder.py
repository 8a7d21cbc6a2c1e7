"""An encoder-decoder (the original Transformer, T5 and kin) for text to text.

Notable:
- The defaults are T5's blocks; sinusoidal positions, post-norm, LayerNorm, biases and scaled
  embeddings make it Vaswani et al. 2017 (preset ``vaswani-base``).
- One embedding table, held by the encoder, serves both sides; the output layer may be tied to it.
- The loss counts each target once however the batch is split (T5's own takes a mean of means).

Shape suffixes: B batch  T target tokens  S source tokens  D hidden size  V vocabulary.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
)
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .base import HlrConfig, HlrPreTrainedModel, check_labels, check_token_ids
from .layers import Attention, Block, Stack, additive_positions, count_positions


class HlrEncoderDecoderConfig(HlrConfig):
    """An encoder-decoder; the defaults are T5-small.

    Args:
        vocab_size: V.
        decoder_layers: Blocks of the decoder; ``None`` = ``num_hidden_layers``, the encoder's. transformers
            sizes the cache by this very name.
        scale_embeddings: Multiply the embeddings by sqrt(D) (Vaswani et al. 2017, §3.4).
        scale_decoder_outputs: Multiply the decoder's output by 1/sqrt(D) before the output layer (T5).
        use_cache: Return keys and values for the next call.
        pad_token_id: Padding; also what -100 in the labels becomes as decoder input.
        decoder_start_token_id: First decoder input.
        tie_word_embeddings: The output layer uses the input embeddings.
    """

    model_type = "hlr_encoder_decoder"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    PRESETS: ClassVar[dict[str, dict]] = {
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "head_dim": 16,
            "intermediate_size": 128,
            "vocab_size": 1000,
        },
        "t5-small": {},
        "vaswani-base": {
            "norm": "layer_norm",
            "norm_first": False,
            "position": "sinusoidal",
            "attention_scale": None,
            "attention_bias": True,
            "attention_output_bias": True,
            "feed_forward_bias": True,
            "scale_embeddings": True,
            "scale_decoder_outputs": False,
        },
    }

    vocab_size: int = 32128
    hidden_size: int = 512
    num_hidden_layers: int = 6
    decoder_layers: int | None = None
    num_attention_heads: int = 8
    head_dim: int | None = 64
    intermediate_size: int | None = 2048
    hidden_act: str = "relu"
    norm: str = "rms_norm"
    norm_eps: float = 1e-6
    position: str = "relative"
    attention_scale: float | None = 1.0
    attention_bias: bool = False
    attention_output_bias: bool = False
    feed_forward_bias: bool = False
    hidden_dropout_prob: float = 0.1
    attention_dropout_prob: float = 0.1
    scale_embeddings: bool = False
    scale_decoder_outputs: bool = True
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if self.decoder_layers is None:
            self.decoder_layers = self.num_hidden_layers
        super().__post_init__(**kwargs)


class HlrEncoderDecoderPreTrainedModel(HlrPreTrainedModel):
    """The encoder-decoder's class attributes."""

    config: HlrEncoderDecoderConfig
    _can_record_outputs: ClassVar[dict] = {
        "hidden_states": Block,
        "attentions": OutputRecorder(Attention, index=1, layer_name="attention"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name="cross_attention"),
    }


class SourceEncoder(HlrEncoderDecoderPreTrainedModel):
    """Source ids (B, S) -> the memory (B, S, D) that the decoder reads."""

    def __init__(self, config: HlrEncoderDecoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = additive_positions(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.stack = Stack(config, is_causal=False)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Returns hidden states (B, S, D).

        Raises:
            ValueError: ids outside the vocabulary, or more tokens than positions.
        """
        kwargs.pop("use_cache", None)  # the decorator fills it from the config; an encoder has none
        check_token_ids(input_ids, inputs_embeds, self.config.vocab_size)
        x_BSD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=x_BSD, attention_mask=attention_mask
        )
        position_ids = count_positions(self.config, attention_mask, x_BSD)
        x_BSD = self.dropout(_embed(x_BSD, self.positions, position_ids, self.config))
        return BaseModelOutput(last_hidden_state=self.stack(x_BSD, mask, position_ids, **kwargs))


class TargetDecoder(HlrEncoderDecoderPreTrainedModel):
    """Embedded targets (B, T, D) and the memory (B, S, D) -> hidden states (B, T, D)."""

    def __init__(self, config: HlrEncoderDecoderConfig):
        super().__init__(config)
        self.positions = additive_positions(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.stack = Stack(config, is_causal=True, has_memory=True, num_layers=config.decoder_layers)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Returns hidden states (B, T, D) and the cache."""
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        own_cache = None if past_key_values is None else past_key_values.self_attention_cache
        past_length = 0 if own_cache is None else own_cache.get_seq_length()
        if torch.is_tensor(past_length):  # a static cache counts in place
            past_length = past_length.clone()
        x_BTD = inputs_embeds
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x_BTD, attention_mask=attention_mask, past_key_values=own_cache
        )
        memory_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        position_ids = count_positions(self.config, attention_mask, x_BTD, past_length)
        x_BTD = self.stack(
            self.dropout(_embed(x_BTD, self.positions, position_ids, self.config)),
            mask,
            position_ids,
            encoder_hidden_states,
            memory_mask,
            past_key_values=past_key_values,
            past_length=past_length,
            **kwargs,
        )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=x_BTD, past_key_values=past_key_values
        )


def _embed(x_BTD, positions, position_ids, config) -> torch.Tensor:
    if config.scale_embeddings:
        x_BTD = x_BTD * config.hidden_size**0.5
    return x_BTD if positions is None else x_BTD + positions(position_ids).to(x_BTD.dtype)


class HlrEncoderDecoderModel(HlrEncoderDecoderPreTrainedModel):
    """Source ids (B, S) and target ids (B, T) -> target hidden states (B, T, D)."""

    def __init__(self, config: HlrEncoderDecoderConfig):
        super().__init__(config)
        self.encoder = SourceEncoder(config)
        self.decoder = TargetDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The one table of both sides."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the one table of both sides."""
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs=None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """Returns the decoder's hidden states (B, T, D), the cache and the encoder's hidden states (B, S, D).

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 0 on padding.
            decoder_input_ids: (B, T), the tokens after the cached ones.
            decoder_attention_mask: (B, cached + T), 0 on padding.
            encoder_outputs: Of an earlier call, instead of ``input_ids``.
            past_key_values: An ``EncoderDecoderCache``, updated in place.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            decoder_inputs_embeds: (B, T, D) instead of ``decoder_input_ids``.
            use_cache: Make a cache when none is given; ``None`` = the config's.

        Raises:
            ValueError: no decoder inputs, or ids outside the vocabulary.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, **kwargs)
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("the decoder has no input; pass decoder_input_ids (or labels to a head)")
        check_token_ids(decoder_input_ids, decoder_inputs_embeds, self.config.vocab_size)
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.encoder.embed_tokens(decoder_input_ids)
        outputs = self.decoder(
            decoder_inputs_embeds,
            decoder_attention_mask,
            encoder_outputs.last_hidden_state,
            attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class HlrEncoderDecoderForConditionalGeneration(HlrEncoderDecoderPreTrainedModel, GenerationMixin):
    """The next target token: logits (B, T, V)."""

    _tied_weights_keys: ClassVar[dict] = {"lm_head.weight": "model.encoder.embed_tokens.weight"}

    def __init__(self, config: HlrEncoderDecoderConfig):
        super().__init__(config)
        self.model = HlrEncoderDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The one table of both sides."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the one table of both sides."""
        self.model.set_input_embeddings(value)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """Returns (B, T): the start token, then the labels but the last; -100 becomes padding.

        Raises:
            ValueError: the config names no start or padding token.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                f"decoder_start_token_id={start} and pad_token_id={pad}; decoder inputs are made of labels "
                "with both, set them in the config"
            )
        shifted = torch.cat((torch.full_like(labels[:, :1], start), labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == -100, pad)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs=None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Returns logits (B, T, V) and, with labels (B, T; -100 = ignored), the mean cross-entropy.

        Decoder inputs that are not given are the labels shifted right.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        loss_keys = {k: kwargs.pop(k) for k in ("num_items_in_batch",) if k in kwargs}
        outputs = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        x_BTD = outputs.last_hidden_state
        logits = self.lm_head(
            x_BTD * self.config.hidden_size**-0.5 if self.config.scale_decoder_outputs else x_BTD
        )
        loss = None
        if labels is not None:
            check_labels(labels, logits, "they are token ids")
            # Labels are the targets themselves: shift_labels keeps the loss from shifting them again.
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, shift_labels=labels, **loss_keys
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


AutoConfig.register("hlr_encoder_decoder", HlrEncoderDecoderConfig, exist_ok=True)
AutoModel.register(HlrEncoderDecoderConfig, HlrEncoderDecoderModel, exist_ok=True)
AutoModelForSeq2SeqLM.register(
    HlrEncoderDecoderConfig, HlrEncoderDecoderForConditionalGeneration, exist_ok=True
)
