"""Published weights into our architectures and back, exactly.

``convert_checkpoint(source, out)`` takes BERT, RoBERTa, GPT-2, Llama, Mistral, Qwen2, Qwen3, T5 and ViT
checkpoints to ours, and ours back to what they came from. A family is a table: which config keys are
which, what the rest of our config must be, which class is which, which tensor is which.

Notable:
- Every tensor is accounted for: a missing or surplus one is an error that names it.
- Our config keeps the original class and config (``converted_from``), so the way back needs no guess;
  a model of ours that was never converted goes to a family when its config fits the table.
- Tensors are copied, transposed, split or joined, never computed: the round trip is bit-equal.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hf_llm_recipes import trust
from hf_llm_recipes.models import decoder, encoder, encoder_decoder, vision
from hf_llm_recipes.models.base import HlrConfig, carry_code

# How padding is treated differs between families and ours, but makes no other model of it.
PADDING_KEYS = ("positions_from_mask", "pool_past_padding")
LABEL_KEYS = ("id2label", "label2id", "problem_type")
SPECIAL_TOKENS = {key: key for key in ("pad_token_id", "bos_token_id", "eos_token_id")}


@dataclass(frozen=True)
class Rule:
    """Tensors of theirs that are tensors of ours; ``{i}`` is the layer, ``.*`` both weight and bias.

    Args:
        theirs: One name, or several for one tied tensor, first the one that their forward reads.
        ours: One name, or the parts of one tensor of theirs.
        to_ours: Their tensor to our tensors, in the order of ``ours``.
        to_theirs: Our tensors to theirs.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    to_ours: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda x: (x,)
    to_theirs: Callable[..., torch.Tensor] = lambda x: x

    def expanded(self, layers: int) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Yields the names of each layer, weights and biases apart."""
        theirs, ours = ((x,) if isinstance(x, str) else x for x in (self.theirs, self.ours))
        suffixes = (".weight", ".bias") if ours[0].endswith(".*") else ("",)
        for i in range(layers) if "{i}" in ours[0] else (0,):
            for suffix in suffixes:
                yield tuple(
                    tuple(name.removesuffix(".*").replace("{i}", str(i)) + suffix for name in names)
                    for names in (theirs, ours)
                )


def _transposed(theirs: str, ours: str) -> Rule:
    """GPT-2 keeps the weights of linear layers as (in, out)."""

    def flip(x):
        return x.t() if x.ndim == 2 else x

    return Rule(theirs, ours, lambda x: (flip(x),), flip)


def _split_in_three(theirs: str, *ours: str) -> Rule:
    """GPT-2 keeps queries, keys and values in one (in, 3 out) matrix."""
    return Rule(
        theirs,
        ours,
        lambda x: tuple(part.t() if x.ndim == 2 else part for part in x.chunk(3, dim=-1)),
        lambda *parts: torch.cat([part.t() if part.ndim == 2 else part for part in parts], dim=-1),
    )


@dataclass(frozen=True)
class Family:
    """One published architecture: how its configs and weights are ours.

    Args:
        model_type: Theirs.
        ours: The module of ours with the config and the heads.
        config_class: Our config.
        keys: Their config key -> ours, where the value is the same.
        fixed: Our keys that must have this value for the model to be one of theirs.
        heads: Their class -> our class and what its config adds.
        body: Tensors of the model without head; names without prefix.
        prefixes: Of the body inside a head: theirs, ours.
        head_rules: Their class -> tensors outside the body.
        refuse: Their config key -> the only value that ours can follow.
        adapt: Their config -> more keys of ours.
        adapt_back: Our config -> more keys of theirs.
    """

    model_type: str
    ours: object
    config_class: type[HlrConfig]
    keys: dict[str, str]
    fixed: dict[str, object]
    heads: dict[str, tuple[str, dict]]
    body: tuple[Rule, ...]
    prefixes: tuple[str, str]
    head_rules: dict[str, tuple[Rule, ...]]
    refuse: dict[str, object] = field(default_factory=dict)
    adapt: Callable[[PreTrainedConfig], dict] = lambda config: {}
    adapt_back: Callable[[HlrConfig], dict] = lambda config: {}

    def our_config(self, config: PreTrainedConfig, class_name: str) -> HlrConfig:
        """Returns our config of theirs.

        Raises:
            ValueError: a setting that our architecture has not.
        """
        for key, value in self.refuse.items():
            if getattr(config, key, value) != value:
                raise ValueError(
                    f"{self.model_type} config has {key}={getattr(config, key)!r}; our architecture only has "
                    f"{key}={value!r}, so this checkpoint cannot be converted"
                )
        keys = {ours: copy.deepcopy(getattr(config, theirs)) for theirs, ours in self.keys.items()}
        keys.update({key: copy.deepcopy(getattr(config, key)) for key in LABEL_KEYS})
        keys.update(self.fixed, **self.adapt(config))
        keys.update(self.heads[class_name][1])
        origin = {"architecture": class_name, "config": config.to_dict()}
        return self.config_class.checked(**keys, converted_from=_plain(origin))

    def their_config(self, config: HlrConfig) -> PreTrainedConfig:
        """Returns their config of ours: the original one with what has changed since.

        Raises:
            ValueError: a setting of ours that this family has not.
        """
        for key, value in self.fixed.items():
            if key not in PADDING_KEYS and getattr(config, key) != value:
                raise ValueError(
                    f"our config has {key}={getattr(config, key)!r}, but {self.model_type} has {value!r}; "
                    "it cannot be converted to that family"
                )
        config_class = type(AutoConfig.for_model(self.model_type))
        origin = config.converted_from or {"config": {}}
        keys = dict(origin["config"])
        for name in ("architectures", "transformers_version", "model_type"):
            keys.pop(name, None)
        keys.update({theirs: copy.deepcopy(getattr(config, ours)) for theirs, ours in self.keys.items()})
        keys.update({key: copy.deepcopy(getattr(config, key)) for key in LABEL_KEYS})
        keys.update(self.adapt_back(config))
        return config_class.from_dict(keys)

    def rules(self, class_name: str, layers: int) -> Iterator[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
        """Yields each rule with their and our names of one tensor."""
        has_head = class_name in self.head_rules
        theirs_prefix, ours_prefix = self.prefixes if has_head else ("", "")
        for rule in self.body:
            for theirs, ours in rule.expanded(layers):
                yield rule, *_prefixed(theirs_prefix, theirs), *_prefixed(ours_prefix, ours)
        for rule in self.head_rules.get(class_name, ()):
            for theirs, ours in rule.expanded(layers):
                yield rule, theirs, ours


def _prefixed(prefix: str, names: tuple[str, ...]) -> tuple[tuple[str, ...]]:
    return (tuple(prefix + name for name in names),)


def _plain(value):
    """JSON types only, so that the config can be written."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return (
        value if isinstance(value, (str, int, float, bool, type(None))) else str(value).removeprefix("torch.")
    )


def to_ours(model: PreTrainedModel) -> PreTrainedModel:
    """Returns our model with the weights of one of transformers'.

    Raises:
        ValueError: a class or a setting that no architecture of ours has, or tensors left over.
    """
    class_name = type(model).__name__
    family = _family_of(model.config.model_type, class_name)
    config = family.our_config(model.config, class_name)
    if model.config.is_encoder_decoder:
        tensors = model.state_dict()
        head = tensors.get("lm_head.weight")
        config.tie_word_embeddings = head is None or torch.equal(head, tensors["shared.weight"])
    ours = _build(getattr(family.ours, family.heads[class_name][0]), config, model)
    state = _translate(family, class_name, model, ours, back=False)
    _fill(ours, state)
    return ours


def to_theirs(model: PreTrainedModel, architecture: str | None = None) -> PreTrainedModel:
    """Returns transformers' model with the weights of ours.

    Args:
        model: One of ours.
        architecture: Their class, e.g. ``"LlamaForCausalLM"``; ``None`` = the one it came from.

    Raises:
        ValueError: it came from nowhere and no architecture is named, a setting that the family has not,
            or tensors left over.
    """
    if architecture is None:
        if model.config.converted_from is None:
            raise ValueError(
                f"{type(model).__name__} was not converted from a published model; name the class to make of "
                f"it, one of {', '.join(sorted(_names_for(type(model).__name__)))}"
            )
        architecture = model.config.converted_from["architecture"]
    family = next((f for f in FAMILIES if architecture in f.heads), None)
    if family is None or family.heads[architecture][0] != type(model).__name__:
        raise ValueError(
            f"{type(model).__name__} cannot become {architecture}; allowed: "
            f"{', '.join(sorted(_names_for(type(model).__name__)))}"
        )
    theirs = _build(getattr(transformers, architecture), family.their_config(model.config), model)
    if model.config.is_encoder_decoder and not model.config.tie_word_embeddings:
        # T5's class always ties; checkpoints with an output layer of their own (v1.1, Flan) hold both.
        theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach().clone())
    state = _translate(family, architecture, theirs, model, back=True)
    _fill(theirs, state)
    return theirs


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    architecture: str | None = None,
    leave_out: Sequence[str] = (),
) -> Path:
    """Converts a folder or Hub id to ours, or one of ours back, with its tokenizer; returns ``out``.

    Args:
        source: Folder or id of a checkpoint.
        out: Folder to write.
        architecture: Their class to load or to make; ``None`` = the one the checkpoint names.
        leave_out: Surplus tensors that may be lost, as patterns: a checkpoint for masked words often holds
            the pooler or the next-sentence head of its pretraining too (``"*pooler*"``).

    Raises:
        ValueError: a model that cannot be converted, tensors missing or left over (named), or a pattern that
            fits none.
    """
    trust.refuse_kernels(transformers.PreTrainedConfig.get_config_dict(source)[0], str(source))
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    is_ours = config.model_type.startswith("hlr_")
    named = (config.architectures or [None])[0]
    class_name = named if is_ours else architecture or named
    if class_name is None:
        raise ValueError(f"{source} names no class in config.json; pass architecture=, e.g. 'BertModel'")
    if is_ours:
        cls = next((getattr(m, class_name) for m in OUR_MODULES if hasattr(m, class_name)), None)
    else:
        _family_of(config.model_type, class_name)
        cls = getattr(transformers, class_name)
    model, info = cls.from_pretrained(
        source, output_loading_info=True, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    surplus = _without(set(info["unexpected_keys"]), leave_out)
    _refuse_differences(
        f"the checkpoint {source}",
        info["missing_keys"],
        surplus,
        hint=f"; {class_name} has no place for them: name a class that has (--architecture), or leave them "
        "out (--leave-out PATTERN)",
    )
    converted = to_theirs(model, architecture) if is_ours else to_ours(model)
    if not is_ours:
        carry_code(converted)
    converted.save_pretrained(out)
    _copy_processors(source, out)
    return Path(out)


def _copy_processors(source, out) -> None:
    loaders = (AutoTokenizer, transformers.AutoImageProcessor)
    files = ("tokenizer_config.json", "preprocessor_config.json")
    for loader, name in zip(loaders, files, strict=True):
        if (
            transformers.utils.cached_file(source, name, _raise_exceptions_for_missing_entries=False)
            is not None
        ):
            loader.from_pretrained(source, trust_remote_code=False).save_pretrained(out)


def _family_of(model_type: str, class_name: str) -> Family:
    for family in FAMILIES:
        if family.model_type == model_type:
            if class_name not in family.heads:
                raise ValueError(
                    f"no head of ours is that of {class_name}; allowed: {', '.join(family.heads)}"
                )
            return family
    raise ValueError(
        f"model_type={model_type!r} cannot be converted; allowed: {', '.join(f.model_type for f in FAMILIES)}"
    )


def _names_for(our_class: str) -> Iterator[str]:
    return (name for family in FAMILIES for name, (head, _) in family.heads.items() if head == our_class)


def _build(cls, config, like: PreTrainedModel) -> PreTrainedModel:
    config.dtype = like.dtype
    model = cls._from_config(config, dtype=like.dtype, attn_implementation=like.config._attn_implementation)
    if like.can_generate() and model.can_generate():
        model.generation_config = copy.deepcopy(like.generation_config)
    return model.to(like.device).train(like.training)


def _translate(family, class_name, theirs, ours, back: bool) -> dict[str, torch.Tensor]:
    """Returns the state of the side that is filled, every tensor of the other side used."""
    source, target = (ours, theirs) if back else (theirs, ours)
    source_state, target_names = source.state_dict(), set(target.state_dict())
    layers = max(getattr(ours.config, key, 0) for key in ("num_hidden_layers", "decoder_layers"))
    state, used = {}, set()
    for rule, their_names, our_names in family.rules(class_name, layers):
        if back and all(name in source_state for name in our_names):
            used.update(our_names)
            tensor = rule.to_theirs(*(source_state[name] for name in our_names))
            state.update(dict.fromkeys((name for name in their_names if name in target_names), tensor))
        elif not back and any(name in source_state for name in their_names):
            present = [name for name in their_names if name in source_state]
            used.update(present)
            state.update(zip(our_names, rule.to_ours(source_state[present[0]]), strict=True))
    what = f"converting {type(source).__name__} to {type(target).__name__}"
    _refuse_differences(what, target_names - set(state), set(source_state) - used)
    return state


def _without(surplus: set[str], patterns: Sequence[str]) -> set[str]:
    for pattern in patterns:
        found = set(fnmatch.filter(surplus, pattern))
        if not found:
            names = ", ".join(sorted(surplus)) or "none"
            raise ValueError(f"leave_out {pattern!r} fits no surplus tensor; they are: {names}")
        surplus = surplus - found
    return surplus


def _refuse_differences(what: str, missing, surplus, hint: str = "") -> None:
    if missing or surplus:
        raise ValueError(
            f"{what}: missing tensors: {', '.join(sorted(missing)) or 'none'}; "
            f"surplus tensors: {', '.join(sorted(surplus)) or 'none'}{hint if surplus else ''}"
        )


def _fill(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{type(model).__name__} has {name} of shape {tuple(tensor.shape)}, but the weights have "
                f"{tuple(state[name].shape)}; the two architectures differ"
            )
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, strict=True)


OUR_MODULES = (encoder, decoder, encoder_decoder, vision)

_BLOCK = "stack.layers.{i}."
_PLAIN_BLOCK = {
    "gated_feed_forward": False,
    "qk_norm": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
    "norm": "layer_norm",
    "position": "learned",
}


def _bert_body() -> tuple[Rule, ...]:
    layer = "encoder.layer.{i}."
    return (
        Rule("embeddings.word_embeddings.weight", "embed_tokens.weight"),
        Rule("embeddings.position_embeddings.weight", "embeddings.positions.embedding.weight"),
        Rule("embeddings.token_type_embeddings.weight", "embeddings.token_types.weight"),
        Rule("embeddings.LayerNorm.*", "embeddings.norm.*"),
        Rule(layer + "attention.self.query.*", _BLOCK + "attention.q_proj.*"),
        Rule(layer + "attention.self.key.*", _BLOCK + "attention.k_proj.*"),
        Rule(layer + "attention.self.value.*", _BLOCK + "attention.v_proj.*"),
        Rule(layer + "attention.output.dense.*", _BLOCK + "attention.o_proj.*"),
        Rule(layer + "attention.output.LayerNorm.*", _BLOCK + "attention_residual.norm.*"),
        Rule(layer + "intermediate.dense.*", _BLOCK + "feed_forward.up_proj.*"),
        Rule(layer + "output.dense.*", _BLOCK + "feed_forward.down_proj.*"),
        Rule(layer + "output.LayerNorm.*", _BLOCK + "feed_forward_residual.norm.*"),
        Rule("pooler.dense.*", "pooler.*"),
    )


_BERT_KEYS = {
    **SPECIAL_TOKENS,
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_dropout_prob",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "norm_eps",
    "classifier_dropout": "classifier_dropout",
    "tie_word_embeddings": "tie_word_embeddings",
}
_BERT_FIXED = {
    **_PLAIN_BLOCK,
    "norm_first": False,
    "embedding_norm": True,
    "attention_scale": None,
    "pool_past_padding": False,
}
_BERT_MLM = (
    Rule("cls.predictions.transform.dense.*", "mlm_transform.dense.*"),
    Rule("cls.predictions.transform.LayerNorm.*", "mlm_transform.norm.*"),
    Rule("cls.predictions.decoder.weight", "lm_head.weight"),
    Rule(("cls.predictions.decoder.bias", "cls.predictions.bias"), "lm_head.bias"),
)
_POOLED, _UNPOOLED = {"use_pooler": True}, {"use_pooler": False}

BERT = Family(
    model_type="bert",
    ours=encoder,
    config_class=encoder.HlrEncoderConfig,
    keys=_BERT_KEYS,
    # BERT counts padding too.
    fixed={**_BERT_FIXED, "position_offset": 0, "positions_from_mask": False},
    heads={
        "BertModel": ("HlrEncoderModel", _POOLED),
        "BertForPreTraining": ("HlrEncoderForPreTraining", _POOLED),
        "BertForMaskedLM": ("HlrEncoderForMaskedLM", _UNPOOLED),
        "BertForSequenceClassification": ("HlrEncoderForSequenceClassification", _POOLED),
        "BertForMultipleChoice": ("HlrEncoderForMultipleChoice", _POOLED),
        "BertForTokenClassification": ("HlrEncoderForTokenClassification", _UNPOOLED),
        "BertForQuestionAnswering": ("HlrEncoderForQuestionAnswering", _UNPOOLED),
    },
    body=_bert_body(),
    prefixes=("bert.", "model."),
    head_rules={
        "BertForPreTraining": (*_BERT_MLM, Rule("cls.seq_relationship.*", "nsp_head.*")),
        "BertForMaskedLM": _BERT_MLM,
        "BertForSequenceClassification": (Rule("classifier.*", "classifier.out_proj.*"),),
        "BertForMultipleChoice": (Rule("classifier.*", "classifier.out_proj.*"),),
        "BertForTokenClassification": (Rule("classifier.*", "classifier.*"),),
        "BertForQuestionAnswering": (Rule("qa_outputs.*", "qa_outputs.*"),),
    },
    refuse={"is_decoder": False, "add_cross_attention": False},
)

ROBERTA = Family(
    model_type="roberta",
    ours=encoder,
    config_class=encoder.HlrEncoderConfig,
    keys=_BERT_KEYS,
    fixed={**_BERT_FIXED, "positions_from_mask": True},
    heads={
        "RobertaModel": ("HlrEncoderModel", _POOLED),
        "RobertaForMaskedLM": ("HlrEncoderForMaskedLM", _UNPOOLED),
        "RobertaForSequenceClassification": ("HlrEncoderForSequenceClassification", _POOLED),
        "RobertaForMultipleChoice": ("HlrEncoderForMultipleChoice", _POOLED),
        "RobertaForTokenClassification": ("HlrEncoderForTokenClassification", _UNPOOLED),
        "RobertaForQuestionAnswering": ("HlrEncoderForQuestionAnswering", _UNPOOLED),
    },
    body=_bert_body(),
    prefixes=("roberta.", "model."),
    head_rules={
        "RobertaForMaskedLM": (
            Rule("lm_head.dense.*", "mlm_transform.dense.*"),
            Rule("lm_head.layer_norm.*", "mlm_transform.norm.*"),
            Rule("lm_head.decoder.weight", "lm_head.weight"),
            Rule(("lm_head.decoder.bias", "lm_head.bias"), "lm_head.bias"),
        ),
        # RoBERTa's classification head is BERT's pooler and classifier under other names.
        "RobertaForSequenceClassification": (
            Rule("classifier.dense.*", "model.pooler.*"),
            Rule("classifier.out_proj.*", "classifier.out_proj.*"),
        ),
        "RobertaForMultipleChoice": (Rule("classifier.*", "classifier.out_proj.*"),),
        "RobertaForTokenClassification": (Rule("classifier.*", "classifier.*"),),
        "RobertaForQuestionAnswering": (Rule("qa_outputs.*", "qa_outputs.*"),),
    },
    refuse={"is_decoder": False, "add_cross_attention": False, "hidden_act": "gelu"},
    # The table's first rows, up to the padding index, are no positions.
    adapt=lambda config: {"position_offset": config.pad_token_id + 1},
)


def _gpt2_back(config: HlrConfig) -> dict:
    """GPT-2 leaves ``n_inner`` out where it is 4 D."""
    named = config.converted_from is not None and config.converted_from["config"].get("n_inner") is not None
    usual = config.intermediate_size == 4 * config.hidden_size
    return {"n_inner": None if usual and not named else config.intermediate_size}


GPT2 = Family(
    model_type="gpt2",
    ours=decoder,
    config_class=decoder.HlrDecoderConfig,
    keys={
        **SPECIAL_TOKENS,
        "vocab_size": "vocab_size",
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "activation_function": "hidden_act",
        "resid_pdrop": "hidden_dropout_prob",
        "attn_pdrop": "attention_dropout_prob",
        "layer_norm_epsilon": "norm_eps",
        "initializer_range": "initializer_range",
        "use_cache": "use_cache",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    fixed={
        **_PLAIN_BLOCK,
        "norm_first": True,
        "embedding_norm": False,
        "lm_head_bias": False,
        "position_offset": 0,
        "sliding_window": None,
        "attention_scale": None,
        "positions_from_mask": False,
    },
    heads={
        "GPT2Model": ("HlrDecoderModel", {}),
        "GPT2LMHeadModel": ("HlrDecoderForCausalLM", {}),
        "GPT2ForSequenceClassification": ("HlrDecoderForSequenceClassification", {}),
        "GPT2ForTokenClassification": ("HlrDecoderForTokenClassification", {}),
    },
    body=(
        Rule("wte.weight", "embed_tokens.weight"),
        Rule("wpe.weight", "positions.embedding.weight"),
        Rule("h.{i}.ln_1.*", _BLOCK + "attention_residual.norm.*"),
        _split_in_three("h.{i}.attn.c_attn.*", *(_BLOCK + f"attention.{x}_proj.*" for x in "qkv")),
        _transposed("h.{i}.attn.c_proj.*", _BLOCK + "attention.o_proj.*"),
        Rule("h.{i}.ln_2.*", _BLOCK + "feed_forward_residual.norm.*"),
        _transposed("h.{i}.mlp.c_fc.*", _BLOCK + "feed_forward.up_proj.*"),
        _transposed("h.{i}.mlp.c_proj.*", _BLOCK + "feed_forward.down_proj.*"),
        Rule("ln_f.*", "stack.final_norm.*"),
    ),
    prefixes=("transformer.", "model."),
    head_rules={
        "GPT2LMHeadModel": (Rule("lm_head.weight", "lm_head.weight"),),
        "GPT2ForSequenceClassification": (Rule("score.weight", "score.weight"),),
        "GPT2ForTokenClassification": (Rule("classifier.*", "score.*"),),
    },
    refuse={
        "add_cross_attention": False,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    adapt=lambda config: {
        "num_key_value_heads": config.n_head,
        "intermediate_size": config.n_inner or 4 * config.n_embd,
    },
    adapt_back=_gpt2_back,
)


def _llama_like(model_type: str, prefix: str, fixed: dict, keys: dict, refuse: dict, adapt=None) -> Family:
    """Llama and the families that differ from it in a bias, a norm or a window."""
    layer, names = "layers.{i}.", ("q_proj", "k_proj", "v_proj", "o_proj")
    return Family(
        model_type=model_type,
        ours=decoder,
        config_class=decoder.HlrDecoderConfig,
        keys={
            **SPECIAL_TOKENS,
            **{
                key: key
                for key in (
                    "vocab_size",
                    "hidden_size",
                    "intermediate_size",
                    "num_hidden_layers",
                    "num_attention_heads",
                    "num_key_value_heads",
                    "hidden_act",
                    "max_position_embeddings",
                    "initializer_range",
                    "use_cache",
                    "tie_word_embeddings",
                    "rope_parameters",
                )
            },
            "rms_norm_eps": "norm_eps",
            "attention_dropout": "attention_dropout_prob",
            **keys,
        },
        fixed={
            "norm": "rms_norm",
            "norm_first": True,
            "gated_feed_forward": True,
            "position": "rotary",
            "embedding_norm": False,
            "lm_head_bias": False,
            "attention_scale": None,
            "positions_from_mask": False,
            "hidden_dropout_prob": 0.0,
            **fixed,
        },
        heads={
            f"{prefix}Model": ("HlrDecoderModel", {}),
            f"{prefix}ForCausalLM": ("HlrDecoderForCausalLM", {}),
            f"{prefix}ForSequenceClassification": ("HlrDecoderForSequenceClassification", {}),
            f"{prefix}ForTokenClassification": ("HlrDecoderForTokenClassification", {}),
        },
        body=(
            Rule("embed_tokens.weight", "embed_tokens.weight"),
            *(Rule(f"{layer}self_attn.{name}.*", f"{_BLOCK}attention.{name}.*") for name in names),
            *(
                Rule(f"{layer}self_attn.{name}.weight", f"{_BLOCK}attention.{name}.weight")
                for name in ("q_norm", "k_norm")
            ),
            *(
                Rule(f"{layer}mlp.{name}.*", f"{_BLOCK}feed_forward.{name}.*")
                for name in ("gate_proj", "up_proj", "down_proj")
            ),
            Rule(layer + "input_layernorm.weight", _BLOCK + "attention_residual.norm.weight"),
            Rule(layer + "post_attention_layernorm.weight", _BLOCK + "feed_forward_residual.norm.weight"),
            Rule("norm.weight", "stack.final_norm.weight"),
        ),
        prefixes=("model.", "model."),
        head_rules={
            f"{prefix}ForCausalLM": (Rule("lm_head.weight", "lm_head.weight"),),
            f"{prefix}ForSequenceClassification": (Rule("score.weight", "score.weight"),),
            f"{prefix}ForTokenClassification": (Rule("score.*", "score.*"),),
        },
        refuse=refuse,
        adapt=adapt or (lambda config: {}),
    )


_NO_BIAS = {"attention_bias": False, "attention_output_bias": False, "feed_forward_bias": False}
LLAMA = _llama_like(
    "llama",
    "Llama",
    fixed={"qk_norm": False, "sliding_window": None},
    keys={"head_dim": "head_dim", "attention_bias": "attention_bias", "mlp_bias": "feed_forward_bias"},
    refuse={},
    adapt=lambda config: {"attention_output_bias": config.attention_bias},
)
MISTRAL = _llama_like(
    "mistral",
    "Mistral",
    fixed={**_NO_BIAS, "qk_norm": False},
    keys={"head_dim": "head_dim", "sliding_window": "sliding_window"},
    refuse={},
)
QWEN2 = _llama_like(
    "qwen2",
    "Qwen2",
    fixed={**_NO_BIAS, "attention_bias": True, "qk_norm": False, "sliding_window": None},
    keys={},
    refuse={"use_sliding_window": False},
)
QWEN3 = _llama_like(
    "qwen3",
    "Qwen3",
    fixed={"feed_forward_bias": False, "qk_norm": True, "sliding_window": None},
    keys={"head_dim": "head_dim", "attention_bias": "attention_bias"},
    refuse={"use_sliding_window": False},
    adapt=lambda config: {"attention_output_bias": config.attention_bias},
)


def _t5_body() -> tuple[Rule, ...]:
    rules = [
        Rule(
            ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
            "encoder.embed_tokens.weight",
        )
    ]
    for side, feed_forward in (("encoder", 1), ("decoder", 2)):
        layer, block = side + ".block.{i}.layer.", side + "." + _BLOCK
        attentions = [("0.SelfAttention", "0.layer_norm", "attention")]
        if side == "decoder":
            attentions.append(("1.EncDecAttention", "1.layer_norm", "cross_attention"))
        for theirs, norm, ours in attentions:
            rules += [Rule(f"{layer}{theirs}.{x}.weight", f"{block}{ours}.{x}_proj.weight") for x in "qkvo"]
            rules.append(Rule(f"{layer}{norm}.weight", f"{block}{ours}_residual.norm.weight"))
        dense, ours = f"{layer}{feed_forward}.DenseReluDense.", block + "feed_forward."
        rules += [
            Rule(dense + "wi_0.weight", ours + "gate_proj.weight"),
            Rule((dense + "wi.weight", dense + "wi_1.weight"), ours + "up_proj.weight"),
            Rule(dense + "wo.weight", ours + "down_proj.weight"),
            Rule(f"{layer}{feed_forward}.layer_norm.weight", block + "feed_forward_residual.norm.weight"),
            Rule(
                f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{side}.stack.distance_bias.embedding.weight",
            ),
            Rule(f"{side}.final_layer_norm.weight", f"{side}.stack.final_norm.weight"),
        ]
    return tuple(rules)


T5 = Family(
    model_type="t5",
    ours=encoder_decoder,
    config_class=encoder_decoder.HlrEncoderDecoderConfig,
    keys={
        "pad_token_id": "pad_token_id",
        "eos_token_id": "eos_token_id",
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_kv": "head_dim",
        "d_ff": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_decoder_layers": "decoder_layers",
        "num_heads": "num_attention_heads",
        "relative_attention_num_buckets": "num_relative_buckets",
        "relative_attention_max_distance": "max_relative_distance",
        "dropout_rate": "hidden_dropout_prob",
        "layer_norm_epsilon": "norm_eps",
        "use_cache": "use_cache",
    },
    fixed={
        "norm": "rms_norm",
        "norm_first": True,
        "position": "relative",
        "attention_scale": 1.0,
        "qk_norm": False,
        "scale_embeddings": False,
        **_NO_BIAS,
    },
    heads={
        "T5Model": ("HlrEncoderDecoderModel", {}),
        "T5ForConditionalGeneration": ("HlrEncoderDecoderForConditionalGeneration", {}),
    },
    body=_t5_body(),
    prefixes=("", "model."),
    head_rules={"T5ForConditionalGeneration": (Rule("lm_head.weight", "lm_head.weight"),)},
    adapt=lambda config: {
        "hidden_act": config.dense_act_fn,
        "gated_feed_forward": config.is_gated_act,
        "attention_dropout_prob": config.dropout_rate,
        "activation_dropout_prob": config.dropout_rate,
        "scale_decoder_outputs": config.scale_decoder_outputs,
        "decoder_start_token_id": getattr(config, "decoder_start_token_id", None) or 0,
    },
    adapt_back=lambda config: {
        "feed_forward_proj": ("gated-" if config.gated_feed_forward else "")
        + ("gelu" if config.hidden_act == "gelu_new" else config.hidden_act),
        # T5's config reads this key as "scale the outputs".
        "tie_word_embeddings": config.scale_decoder_outputs,
        "decoder_start_token_id": config.decoder_start_token_id,
    },
)

VIT = Family(
    model_type="vit",
    ours=vision,
    config_class=vision.HlrVisionConfig,
    keys={
        **{
            key: key
            for key in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "hidden_act",
                "hidden_dropout_prob",
                "initializer_range",
                "image_size",
                "patch_size",
                "num_channels",
            )
        },
        "attention_probs_dropout_prob": "attention_dropout_prob",
        "layer_norm_eps": "norm_eps",
        "qkv_bias": "attention_bias",
    },
    fixed={
        **{key: value for key, value in _PLAIN_BLOCK.items() if key != "attention_bias"},
        "norm_first": True,
        "attention_scale": None,
        "position_offset": 0,
    },
    heads={
        "ViTModel": ("HlrVisionModel", _POOLED),
        "ViTForImageClassification": ("HlrVisionForImageClassification", _UNPOOLED),
        "ViTForMaskedImageModeling": ("HlrVisionForMaskedImageModeling", _UNPOOLED),
    },
    body=(
        Rule("embeddings.cls_token", "embeddings.cls_token"),
        Rule("embeddings.mask_token", "embeddings.mask_token"),
        Rule(
            "embeddings.position_embeddings",
            "embeddings.positions.embedding.weight",
            lambda x: (x[0],),
            lambda x: x[None],
        ),
        Rule("embeddings.patch_embeddings.projection.*", "embeddings.patches.*"),
        *(Rule("layers.{i}.attention." + f"{x}_proj.*", _BLOCK + f"attention.{x}_proj.*") for x in "qkvo"),
        Rule("layers.{i}.layernorm_before.*", _BLOCK + "attention_residual.norm.*"),
        Rule("layers.{i}.layernorm_after.*", _BLOCK + "feed_forward_residual.norm.*"),
        Rule("layers.{i}.mlp.fc1.*", _BLOCK + "feed_forward.up_proj.*"),
        Rule("layers.{i}.mlp.fc2.*", _BLOCK + "feed_forward.down_proj.*"),
        Rule("layernorm.*", "stack.final_norm.*"),
        Rule("pooler.dense.*", "pooler.*"),
    ),
    prefixes=("vit.", "model."),
    head_rules={
        "ViTForImageClassification": (Rule("classifier.*", "classifier.*"),),
        # A 1 x 1 convolution over the patches is a linear layer.
        "ViTForMaskedImageModeling": (
            Rule(
                "decoder.0.weight",
                "to_pixels.weight",
                lambda x: (x[:, :, 0, 0],),
                lambda x: x[..., None, None],
            ),
            Rule("decoder.0.bias", "to_pixels.bias"),
        ),
    },
    refuse={"pooler_act": "tanh"},
    adapt_back=lambda config: {"encoder_stride": config.patch_size},
)

FAMILIES = (BERT, ROBERTA, GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, T5, VIT)
