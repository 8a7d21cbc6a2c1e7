"""A bidirectional encoder (BERT, RoBERTa and kin) with its heads.

Notable:
- Post-norm with learned positions and token types is BERT to the last digits (`convert.py` copies its
  weights); pre-norm, rotary, RMSNorm, GLU are one key of the config each.
- Positions count attended tokens, so padding on either side changes nothing.
- Packed rows work in every attention implementation when ``position_ids`` are passed.
- Every head takes ``**kwargs`` down to its loss: ``num_items_in_batch`` comes that way.

Shape suffixes: B batch  T tokens  D hidden size  V vocabulary  L labels  C choices.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .base import (
    HlrConfig,
    HlrPreTrainedModel,
    check_labels,
    check_range,
    check_shape,
    check_token_ids,
    classification_loss,
    pretraining_loss,
    span_loss,
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


class HlrEncoderConfig(HlrConfig):
    """A bidirectional encoder; the defaults are BERT's blocks at MiniLM-L6's size.

    Args:
        vocab_size: V.
        type_vocab_size: Kinds of segments (sentence A, sentence B); 0 = none.
        embedding_norm: Norm over the summed embeddings.
        pool_past_padding: The row's vector is its first attended token's, not that of padding on the left.
        use_pooler: tanh(W x_[CLS]) for the sequence heads (Devlin et al. 2018).
        classifier_dropout: Before the heads; ``None`` = ``hidden_dropout_prob``.
        pad_token_id: Padding.
        tie_word_embeddings: The masked-token head uses the input embeddings.
    """

    model_type = "hlr_encoder"
    PRESETS: ClassVar[dict[str, dict]] = {
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 1000,
            "max_position_embeddings": 128,
        },
        "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
        "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "modern": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 2048,
            "norm_first": True,
            "position": "rotary",
            "gated_feed_forward": True,
            "type_vocab_size": 0,
            "use_pooler": False,
            "attention_bias": False,
            "attention_output_bias": False,
            "feed_forward_bias": False,
        },
    }

    vocab_size: int = 30522
    type_vocab_size: int = 2
    norm_eps: float = 1e-12
    norm_first: bool = False
    embedding_norm: bool = True
    pool_past_padding: bool = True
    use_pooler: bool = True
    hidden_dropout_prob: float = 0.1
    attention_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True


class HlrEncoderPreTrainedModel(HlrPreTrainedModel):
    """The encoder's class attributes."""

    config: HlrEncoderConfig
    _can_record_outputs: ClassVar[dict] = {"hidden_states": Block, "attentions": Attention}


class EncoderEmbeddings(nn.Module):
    """norm(token + segment + position), with dropout (Devlin et al. 2018, fig. 2)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.positions = additive_positions(config)
        types = config.type_vocab_size
        self.token_types = nn.Embedding(types, config.hidden_size) if types else None
        self.norm = build_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_BTD, position_ids, token_type_ids=None) -> torch.Tensor:
        """Returns (B, T, D)."""
        if self.token_types is not None:
            if token_type_ids is None:
                x_BTD = x_BTD + self.token_types.weight[0]
            else:
                check_range(
                    "token_type_ids", token_type_ids, self.token_types.num_embeddings, "see type_vocab_size"
                )
                x_BTD = x_BTD + self.token_types(token_type_ids)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(position_ids).to(x_BTD.dtype)
        return self.dropout(x_BTD if self.norm is None else self.norm(x_BTD))


class HlrEncoderModel(HlrEncoderPreTrainedModel):
    """Token ids (B, T) -> hidden states (B, T, D) and one vector a row (B, D), the (pooled) first token's."""

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embeddings = EncoderEmbeddings(config)
        self.stack = Stack(config, is_causal=False)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.use_pooler else None
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Returns hidden states (B, T, D) and the pooled first token (B, D).

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 on padding.
            token_type_ids: (B, T), 0 where not given.
            position_ids: (B, T); where they restart, the row holds several sequences that do not see
                each other.
            inputs_embeds: (B, T, D) instead of ``input_ids``.

        Raises:
            ValueError: ids outside the vocabulary, or more tokens than positions.
        """
        check_token_ids(input_ids, inputs_embeds, self.config.vocab_size)
        x_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=x_BTD,
            attention_mask=attention_mask,
            **keep_packed_apart(self.config, x_BTD, attention_mask, position_ids),
        )
        if position_ids is None:
            position_ids = count_positions(self.config, attention_mask, x_BTD)
        x_BTD = self.embeddings(x_BTD, position_ids, token_type_ids)
        x_BTD = self.stack(x_BTD, mask, position_ids, **kwargs)
        first_BD = self._first_token(x_BTD, attention_mask)
        pooled_BD = first_BD if self.pooler is None else self.pooler(first_BD).tanh()
        return BaseModelOutputWithPooling(last_hidden_state=x_BTD, pooler_output=pooled_BD)

    def _first_token(self, x_BTD, attention_mask) -> torch.Tensor:
        """Each row's first attended token (B, D), which left padding moves."""
        if not self.config.pool_past_padding or attention_mask is None or attention_mask.ndim != 2:
            return x_BTD[:, 0]
        first_B = attention_mask[:, -x_BTD.shape[1] :].long().argmax(1)
        return x_BTD[torch.arange(x_BTD.shape[0], device=x_BTD.device), first_B]


class MaskedTokenHead(nn.Module):
    """norm(act(W x)): what the masked-token head does before the vocabulary (Devlin et al. 2018's code)."""

    def __init__(self, config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.norm = build_norm(config)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Returns (B, T, D)."""
        return self.norm(self.act(self.dense(x_BTD)))


@dataclass
class HlrEncoderForPreTrainingOutput(ModelOutput):
    """Loss, masked-token logits (B, T, V), next-sentence logits (B, 2; index 0 = it follows)."""

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


class HlrEncoderForPreTraining(HlrEncoderPreTrainedModel):
    """Masked tokens and next sentence (Devlin et al. 2018, §3.1)."""

    _tied_weights_keys: ClassVar[dict] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        if not config.use_pooler:
            raise ValueError(
                "use_pooler=False, but the next-sentence head reads the pooler; set use_pooler=True"
            )
        self.model = HlrEncoderModel(config)
        self.mlm_transform = MaskedTokenHead(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.nsp_head = nn.Linear(config.hidden_size, 2)
        self.loss_function = pretraining_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        **kwargs,
    ) -> HlrEncoderForPreTrainingOutput:
        """Returns both logits and, with labels (B, T; -100 = not masked) or row labels (B,), the loss."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.lm_head(self.mlm_transform(outputs.last_hidden_state))
        row_logits = self.nsp_head(outputs.pooler_output)
        loss = None
        if labels is not None:
            check_labels(labels, logits, "they are token ids")
        if next_sentence_label is not None:
            check_shape("next_sentence_label", next_sentence_label, row_logits.shape[:1])
            check_range("next_sentence_label", next_sentence_label, 2, "0 = it follows, 1 = it does not")
        if labels is not None or next_sentence_label is not None:
            loss = self.loss_function(labels, logits, next_sentence_label, row_logits, **kwargs)
        return HlrEncoderForPreTrainingOutput(
            loss=loss,
            prediction_logits=logits,
            seq_relationship_logits=row_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class HlrEncoderForMaskedLM(HlrEncoderPreTrainedModel):
    """Masked tokens: logits (B, T, V)."""

    _tied_weights_keys: ClassVar[dict] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        self.model = HlrEncoderModel(config)
        self.mlm_transform = MaskedTokenHead(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Returns logits (B, T, V) and, with labels (B, T; -100 = not masked), the mean cross-entropy."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.lm_head(self.mlm_transform(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_labels(labels, logits, "they are token ids")
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class PooledClassifier(nn.Module):
    """Dropout and a linear layer over the row's vector."""

    def __init__(self, config, num_outputs: int) -> None:
        super().__init__()
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.out_proj = nn.Linear(config.hidden_size, num_outputs)

    def forward(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """Returns (B, L)."""
        return self.out_proj(self.dropout(outputs.pooler_output))


class HlrEncoderForSequenceClassification(HlrEncoderPreTrainedModel):
    """One label, several labels or numbers a row: logits (B, L)."""

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        self.model = HlrEncoderModel(config)
        self.classifier = PooledClassifier(config, config.num_labels)
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Returns logits (B, L) and, with labels, the loss of ``base.classification_loss``."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(outputs)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HlrEncoderForMultipleChoice(HlrEncoderPreTrainedModel):
    """Which of C texts: each gets a score, logits (B, C)."""

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        self.model = HlrEncoderModel(config)
        self.classifier = PooledClassifier(config, 1)
        self.loss_function = classification_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """Returns logits (B, C) for inputs (B, C, T) and, with labels (B,), the mean cross-entropy.

        Raises:
            ValueError: inputs that are not (B, C, T), or ids or labels out of range.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or given.ndim != (3 if input_ids is not None else 4):
            shape = None if given is None else tuple(given.shape)
            raise ValueError(
                f"multiple choice needs input_ids of shape (batch, choices, tokens), not {shape}"
            )
        tensors = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        flat = [None if x is None else x.flatten(0, 1) for x in tensors]
        outputs = self.model(*flat, **kwargs)
        logits = self.classifier(outputs).view(given.shape[:2])
        loss = None
        if labels is not None:
            check_labels(labels, logits, "it is the index of a choice")
            loss = self.loss_function(labels, logits, _SingleLabel, **kwargs)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class _SingleLabel:
    """Stands in for the config where the kind of label is fixed by the head."""

    problem_type = "single_label_classification"


class HlrEncoderForTokenClassification(HlrEncoderPreTrainedModel):
    """A label a token: logits (B, T, L)."""

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        self.model = HlrEncoderModel(config)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """Returns logits (B, T, L) and, with labels (B, T; -100 = ignored), the mean cross-entropy."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_labels(labels, logits, "set num_labels in the config")
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class HlrEncoderForQuestionAnswering(HlrEncoderPreTrainedModel):
    """Where the answer begins and ends: two logits a token (B, T)."""

    def __init__(self, config: HlrEncoderConfig):
        super().__init__(config)
        self.model = HlrEncoderModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.loss_function = span_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Returns start and end logits (B, T) and, with positions (B,), the mean of both cross-entropies."""
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            check_shape("start_positions", start_positions, start_logits.shape[:1])
            check_shape("end_positions", end_positions, end_logits.shape[:1])
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoConfig.register("hlr_encoder", HlrEncoderConfig, exist_ok=True)
AutoModel.register(HlrEncoderConfig, HlrEncoderModel, exist_ok=True)
AutoModelForPreTraining.register(HlrEncoderConfig, HlrEncoderForPreTraining, exist_ok=True)
AutoModelForMaskedLM.register(HlrEncoderConfig, HlrEncoderForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    HlrEncoderConfig, HlrEncoderForSequenceClassification, exist_ok=True
)
AutoModelForMultipleChoice.register(HlrEncoderConfig, HlrEncoderForMultipleChoice, exist_ok=True)
AutoModelForTokenClassification.register(HlrEncoderConfig, HlrEncoderForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(HlrEncoderConfig, HlrEncoderForQuestionAnswering, exist_ok=True)
