"""The stock Trainer, with the language-model head and its loss only where a token is supervised.

In a vocabulary of 49,152 the head of a 135M-parameter model is a fifth of its arithmetic, and its
logits are most of its memory. Of chat rows often less than half of the tokens are supervised.

Notable:
- The model runs as it is, wrapped by whatever wraps it; only its output embedding is stood in for
  (``_head_loss``).
- Models that change logits behind the head (soft caps, scales: Gemma 2, Granite, Cohere) or add terms
  to the loss (routers) would get another loss. Before the first step that is looked for; where it is
  so, the loss is made of the model's own logits, or is the model's own, and the log says it.
- LoRA layers compute the same in fewer passes (``tuning._fused_lora``).
- Losses are sums divided by the optimizer step's number of supervised tokens, so that 8 x 1 rows are
  1 x 8. The loss of an evaluation is the mean over all its supervised tokens.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer

from hf_llm_recipes.methods._head_loss import IGNORED, loss_in_head, replaced_forward, targets
from hf_llm_recipes.tuning._fused_lora import fuse_lora
from hf_llm_recipes.tuning._packed_check import without_dropout

log = logging.getLogger("hf_llm_recipes")

PROBE_TOKENS = 128
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # of two losses, relative
# What a call of a model raises that does not take the stand-in.
NOT_TAKEN = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)

Mode = Literal["supervised", "logits", "own"]


class LanguageTrainer(Trainer):
    """A Trainer for models whose labels are token ids.

    Args:
        shift_labels: Whether a label belongs to the position before it (causal models).
        **given: Of ``Trainer``, without ``compute_loss_func``: the loss is cross-entropy, smoothed by
            the arguments' ``label_smoothing_factor``.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, shift_labels: bool = True, **given: Any) -> None:
        super().__init__(**given)
        self.shift_labels = shift_labels
        self.loss_mode: Mode | None = None  # from the first batch on
        self._model_takes_items = self.model_accepts_loss_kwargs
        self.model_accepts_loss_kwargs = True  # supervised tokens are counted whatever the model takes
        self._loss_shifts_labels = shift_labels
        self._base = self.model
        if hasattr(self.model, "get_base_model"):  # peft's
            self._base = self.model.get_base_model()
            fuse_lora(self.model)
        self._taken = set(inspect.signature(self._base.forward).parameters)
        self._since_log: dict[str, Any] = {"tokens": 0, "supervised_tokens": 0}
        self._loss_only = False
        self._evaluated: list[tuple[Tensor, Tensor]] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the batch's summed loss over the step's number of supervised tokens.

        Raises:
            ValueError: label smoothing, where only the model's own loss is right.
        """
        if "use_cache" in self._taken:
            inputs = {**inputs, "use_cache": False}  # with a cache, packed sequences see each other
        count = (targets(inputs["labels"], shifted=self.shift_labels) != IGNORED).sum()
        if self.loss_mode is None and count > 0:
            self.loss_mode = self._choose_mode(model, inputs)
        items = count if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).to(count.device)
        items = items.clamp(min=1)
        everywhere = self.args.average_tokens_across_devices and num_items_in_batch is not None
        scale = self.accelerator.num_processes if everywhere else 1  # DDP takes the mean over processes
        whole = return_outputs and not self._loss_only
        if self.loss_mode == "own":
            loss, outputs = self._own_loss(model, inputs, items, count)
        else:
            smoothing = self.args.label_smoothing_factor
            mode = self.loss_mode or "logits"
            loss, outputs = self._summed_loss(model, inputs, mode, smoothing, whole=whole)
            loss = loss / items
        if model.training:
            self._count(inputs, count)
        else:
            self._evaluated.append((loss.detach() * items, count))
        loss = loss * scale
        return (loss, outputs if whole else {}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the Trainer's; no logits are made where only the loss is wanted."""
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self._loss_only = False

    def evaluation_loop(self, *given, metric_key_prefix="eval", **named):
        """As the Trainer's; the loss is the mean over supervised tokens, however rows were batched."""
        self._evaluated = []
        found = super().evaluation_loop(*given, metric_key_prefix=metric_key_prefix, **named)
        if self._evaluated and found.metrics is not None:
            sums = torch.stack([torch.stack([loss.double(), n.double()]) for loss, n in self._evaluated])
            loss, count = self.accelerator.reduce(sums.sum(0), "sum").tolist()
            found.metrics[f"{metric_key_prefix}_loss"] = loss / max(count, 1.0)
        self._evaluated = []
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds how many tokens were computed, and supervised, since the last line."""
        if "loss" in logs:
            device = self.args.device
            counts = torch.stack([torch.as_tensor(n, device=device) for n in self._since_log.values()])
            counts = self.accelerator.reduce(counts, "sum").tolist()
            logs |= dict(zip(self._since_log, counts, strict=True))
            self._since_log = dict.fromkeys(self._since_log, 0)
        super().log(logs, start_time)

    def _count(self, inputs: dict[str, Any], supervised: Tensor) -> None:
        mask = inputs.get("attention_mask")
        tokens = inputs["labels"].numel() if mask is None else mask.sum()
        self._since_log["tokens"] = self._since_log["tokens"] + tokens
        self._since_log["supervised_tokens"] = self._since_log["supervised_tokens"] + supervised

    def _summed_loss(
        self, model: nn.Module, inputs: dict[str, Any], mode: Mode, smoothing: float, *, whole: bool = False
    ) -> tuple[Tensor, Any]:
        """The summed loss of a batch, and the model's outputs; their logits only where ``whole``."""
        target_BT = targets(inputs["labels"], shifted=self.shift_labels)
        given = self._without_labels(inputs)
        if mode == "supervised" and not whole:
            head = self._base.get_output_embeddings()
            with loss_in_head(head, target_BT, self._vocab_size(), smoothing):
                return model(**given)["logits"].sum(), {}
        chosen_BT = target_BT != IGNORED
        target_K = target_BT[chosen_BT]
        if not whole and len(target_BT) == 1 and "logits_to_keep" in self._taken:
            given["logits_to_keep"] = chosen_BT[0].nonzero().squeeze(1)
            chosen_BT = torch.ones_like(target_K, dtype=torch.bool)[None]
        outputs = model(**given)
        logits_KV = outputs["logits"][chosen_BT].float()
        return cross_entropy(logits_KV, target_K, reduction="sum", label_smoothing=smoothing), outputs

    def _without_labels(self, inputs: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in inputs.items() if key != "labels"}
        if self._base.config.is_encoder_decoder and "decoder_input_ids" not in given:
            given["decoder_input_ids"] = self._base.prepare_decoder_input_ids_from_labels(
                labels=inputs["labels"]
            )
        return given

    def _own_loss(
        self, model: nn.Module, inputs: dict[str, Any], items: Tensor, count: Tensor
    ) -> tuple[Tensor, Any]:
        """What the model itself calls its loss."""
        if self.label_smoother is not None:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor} has no meaning for "
                f"{type(self._base).__name__}, whose loss is computed by itself; set it to 0"
            )
        if self._model_takes_items:
            outputs = model(**inputs, num_items_in_batch=items)
            return outputs["loss"], outputs
        outputs = model(**inputs)
        return outputs["loss"] * count / items, outputs

    def _vocab_size(self) -> int:
        return self._base.config.get_text_config(decoder=True).vocab_size

    def _choose_mode(self, model: nn.Module, inputs: dict[str, Any]) -> Mode:
        """Looks once, on a few tokens, which way to the loss is right for this model; says it."""
        hindrance = self._hindrance()
        if hindrance is not None:
            log.info("the loss is the model's own: %s", hindrance)
            return "own"
        if self.args.torch_compile:
            model = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        with torch.no_grad(), without_dropout(model):
            mode, reason = self._tried_mode(model, _probe(inputs, shifted=self.shift_labels))
        log.info("%s", reason)
        return mode

    def _hindrance(self) -> str | None:
        parallel = getattr(self.accelerator, "parallelism_config", None)
        fuses = (self.args.liger_kernel_config or {}).get("fused_linear_cross_entropy", True)
        if self.args.use_liger_kernel and fuses:
            return "liger-kernel fuses it with the head"
        if self.args.n_gpu > 1:
            return "nn.DataParallel copies the model; start one process a device instead (torchrun)"
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            return "its sequences are spread over devices"
        return None

    def _tried_mode(self, model: nn.Module, probe: dict[str, Any]) -> tuple[Mode, str]:
        name = type(self._base).__name__
        outputs = model(**probe)
        own, logits = outputs["loss"].float(), outputs["logits"]
        target_BT = targets(probe["labels"], shifted=self.shift_labels)
        count = (target_BT != IGNORED).sum()
        tolerance = TOLERANCE.get(logits.dtype, TOLERANCE[torch.bfloat16])
        expected = cross_entropy(logits.flatten(0, 1).float(), target_BT.flatten(), reduction="sum") / count
        if not torch.isclose(own, expected, rtol=tolerance, atol=tolerance):
            self._model_takes_items &= self._heeds_items(model, probe, own, count)
            return "own", f"the loss of {name} is its own: it is more than a cross-entropy of its logits"
        try:
            unchanged = self._leaves_logits(model, probe, logits)
            found = self._summed_loss(model, probe, "supervised", 0.0)[0] / count
        except NOT_TAKEN as error:
            return "logits", f"the head of {name} computes every position: {error}"
        if not unchanged or not torch.isclose(own, found, rtol=tolerance, atol=tolerance):
            return "logits", f"{name} changes its logits behind the head: all of a batch's are held at once"
        return "supervised", f"the head of {name} computes supervised positions only, chunk by chunk"

    def _leaves_logits(self, model: nn.Module, probe: dict[str, Any], logits: Tensor) -> bool:
        """Whether what the head gives is what the model gives: no cap, no scale, however small."""
        given = torch.linspace(-1000, 1000, logits.numel(), device=logits.device)
        given = given.view_as(logits).to(logits.dtype)
        with replaced_forward(self._base.get_output_embeddings(), lambda *_, **__: given):
            return torch.equal(model(**self._without_labels(probe))["logits"].float(), given.float())

    def _heeds_items(self, model: nn.Module, probe: dict[str, Any], own: Tensor, count: Tensor) -> bool:
        """Whether the model divides by ``num_items_in_batch``; some take it and do not look."""
        halved = model(**probe, num_items_in_batch=2 * count)["loss"].float()
        return not torch.isclose(halved, own, rtol=1e-3)


def _probe(inputs: dict[str, Any], *, shifted: bool) -> dict[str, Any]:
    """A row of the batch, cut short, with many of its tokens supervised and some not."""
    labels = inputs["labels"]
    mask = inputs.get("attention_mask")
    row = 0 if mask is None else int(mask.sum(1).argmax())
    cut = {
        key: value[row : row + 1, :PROBE_TOKENS]
        for key, value in inputs.items()
        if torch.is_tensor(value) and value.ndim >= 2 and len(value) == len(labels)
    }
    if cut["labels"].shape == cut["input_ids"].shape:  # else an encoder-decoder's: taken as they are
        cut["labels"] = _many_labels(cut, shifted=shifted)
    return {**cut, **{key: value for key, value in inputs.items() if isinstance(value, bool)}}


def _many_labels(cut: dict[str, Tensor], *, shifted: bool) -> Tensor:
    """Two of three tokens, none of padding; the first of a sequence has no position before it."""
    labels = cut["input_ids"].clone()
    labels[:, 2::3] = IGNORED
    if "attention_mask" in cut:
        labels[cut["attention_mask"] == 0] = IGNORED
    if shifted and "position_ids" in cut:
        labels[cut["position_ids"].expand_as(labels) == 0] = IGNORED
    return labels
