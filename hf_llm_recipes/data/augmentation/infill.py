"""Random tokens guessed anew by a masked language model.

Shape suffixes: B rows of a batch  T tokens  K masked tokens  V vocabulary  N all tokens of the pool.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hf_llm_recipes import trust
from hf_llm_recipes.assets import resolve_model
from hf_llm_recipes.data.augmentation import _common
from hf_llm_recipes.data.augmentation.base import Augmentation, Pool
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.registry import AUGMENTATIONS

DOMAIN = 3  # of the random numbers: 0 to 2 are the streams' of rows
TOKENS_AT_ONCE = 1024  # of a batch: the logits of a vocabulary of 250,000 take 1 GB then


@AUGMENTATIONS.register
@dataclass(kw_only=True)
class Infill(Augmentation):
    """Masks tokens and draws others from a masked language model.

    As Wu et al. 2018, https://arxiv.org/abs/1812.06705, without their condition on the label. All masked
    tokens of a row are drawn at once, each from its own distribution, special tokens left out. The views
    are made once, before training: one forward pass of the pool for each variant.

    Args:
        model: A Hub id, a folder or ``local/…`` that holds a masked-LM head, with the same vocabulary as
            the model that is trained.
        revision: Commit, tag or branch on the Hub.
        rate: Probability of each token to be masked, in (0, 1).
        variants: Views of each row, ≥ 1; each use of a row takes one of them.
        temperature: The logits are divided by it, > 0; below 1 likely tokens are drawn more often.

    Raises:
        ValueError: ``rate``, ``variants`` or ``temperature`` out of range.
    """

    model: str
    revision: str | None = None
    rate: float = 0.15
    variants: int = 2
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _common.check_rate("rate", self.rate)
        if self.variants < 1:
            raise ValueError(f"variants is {self.variants}; allowed: 1 or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: more than 0")

    def fit(self, pool: Pool) -> None:
        """Makes the views of the whole pool.

        Raises:
            DataError: the tokenizer has no mask token, or its vocabulary is not the model's.
            RunError: the model cannot be loaded, has no masked-LM head, or takes fewer tokens than the
                longest row has.
        """
        import torch

        if pool.processor.mask_token_id is None:
            raise DataError(
                "the tokenizer has no mask token, which infill needs",
                where="augmentation",
                allowed="substitute, tfidf_substitute, cutoff, delete, swap",
            )
        path = resolve_model(self.model, revision=self.revision)
        arguments = {"revision": self.revision or "main", "trust_remote_code": False}
        lengths = np.asarray([len(ids) for ids in pool.features["input_ids"]])
        self._check_tokenizer(path, arguments, pool.processor, int(lengths.max()))
        model = self._load(path, arguments, int(lengths.max()))
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.vocabulary = _common.Vocabulary(pool.processor)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.views_N = np.stack([self._variant(pool, model, lengths, v) for v in range(self.variants)])

    def __call__(self, row: dict[str, Any], index: int, random: np.random.Generator) -> dict[str, Any]:
        """Returns a copy with some tokens replaced."""
        view_N = self.views_N[random.integers(self.variants)]
        ids_T = view_N[self.starts[index] : self.starts[index + 1]]
        return _common.changed(row, "input_ids", ids_T.astype(np.int64))

    def _check_tokenizer(self, path: str, arguments: dict[str, Any], tokenizer: Any, longest: int) -> None:
        from transformers import AutoTokenizer, PreTrainedConfig

        try:
            trust.refuse_kernels(PreTrainedConfig.get_config_dict(path)[0], self.model)
            own = AutoTokenizer.from_pretrained(path, **arguments)
        except (OSError, ValueError) as error:
            raise _unloadable(self.model, "tokenizer", error) from error
        if own.get_vocab() != tokenizer.get_vocab():
            raise DataError(
                f"`{self.model}` has another vocabulary than the model that is trained: "
                f"{len(own):,} tokens, not the same {len(tokenizer):,}",
                where="augmentation",
                allowed="a masked language model with the same tokenizer",
            )
        _check_length(self.model, own.model_max_length, longest)

    def _load(self, path: str, arguments: dict[str, Any], longest: int) -> Any:
        from transformers import AutoModelForMaskedLM

        try:
            model, info = AutoModelForMaskedLM.from_pretrained(
                path, dtype="float32", use_safetensors=True, output_loading_info=True, **arguments
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise _unloadable(self.model, "masked language model", error) from error
        if info["missing_keys"]:
            raise RunError(
                f"`{self.model}` has no masked-LM head: `{min(info['missing_keys'])}` is not in it",
                where="augmentation",
                allowed="substitute, tfidf_substitute, mask, cutoff (none of them needs a model)",
                hint="name the checkpoint of the pretrained model, as `bert-base-uncased` is one",
            )
        _check_length(self.model, getattr(model.config, "max_position_embeddings", None), longest)
        return model

    def _variant(self, pool: Pool, model: Any, lengths: np.ndarray, variant: int) -> np.ndarray:
        """One view of every row, end to end, (N,); a row's chance is its own, whatever the batches."""
        from tqdm.auto import tqdm

        words_V = np.setdiff1d(list(pool.processor.get_vocab().values()), self.vocabulary.special)
        made_N = np.empty(self.starts[-1], dtype=np.int32)
        batches = _batches(lengths)
        for batch in tqdm(batches, f"infill {variant + 1} of {self.variants}", unit="batch", disable=None):
            rows = [pool.features[int(i)] for i in batch]
            chance = [np.random.default_rng((pool.seed, DOMAIN, variant, int(i))) for i in batch]
            masked = [
                _common.some(self.vocabulary.changeable(row, random), self.rate, random)
                for row, random in zip(rows, chance, strict=True)
            ]
            drawn = np.concatenate([random.random(len(m)) for random, m in zip(chance, masked, strict=True)])
            mask_id = pool.processor.mask_token_id
            filled_BT = _filled(model, rows, masked, drawn, mask_id, words_V, self.temperature)
            for i, ids_T in zip(batch, filled_BT, strict=True):
                made_N[self.starts[i] : self.starts[i + 1]] = ids_T[: lengths[i]]
        return made_N


def _batches(lengths: np.ndarray) -> list[np.ndarray]:
    """Rows of like length, the longest first, so many that the padded batch stays small."""
    order, batches, at = np.argsort(-lengths, kind="stable"), [], 0
    while at < len(order):
        size = max(1, TOKENS_AT_ONCE // int(lengths[order[at]]))
        batches.append(order[at : at + size])
        at += size
    return batches


def _filled(
    model: Any,
    rows: list[dict[str, Any]],
    masked: list[np.ndarray],
    drawn_K: np.ndarray,
    mask_id: int,
    words_V: np.ndarray,
    temperature: float,
) -> np.ndarray:
    """Returns the rows' ids with the masked ones drawn anew, (B, T), padded with anything.

    Args:
        model: In ``eval()``.
        rows: Features.
        masked: Places of each row.
        drawn_K: One number in [0, 1) a masked token, row after row: where in the cumulated distribution.
        mask_id: Of the mask token.
        words_V: Tokens that may be drawn.
        temperature: The logits are divided by it.
    """
    import torch

    taken = inspect.signature(model.forward).parameters.keys()
    keys = [key for key in ("input_ids", "token_type_ids") if key in rows[0] and key in taken]
    batch = {key: _padded([row[key] for row in rows]) for key in keys}
    batch["attention_mask"] = _padded([_common.attention(row) for row in rows])
    where = np.repeat(np.arange(len(rows)), [len(places) for places in masked]), np.concatenate(masked)
    filled_BT = batch["input_ids"].copy()
    if not len(drawn_K):
        return filled_BT
    batch["input_ids"][where] = mask_id
    with torch.inference_mode():
        inputs = {key: torch.from_numpy(values).to(model.device) for key, values in batch.items()}
        logits_KV = model(**inputs).logits[where][:, torch.from_numpy(words_V).to(model.device)]
        cumulated_KV = (logits_KV.double() / temperature).softmax(-1).cumsum(-1)
        level_K1 = torch.from_numpy(drawn_K).to(model.device)[:, None] * cumulated_KV[:, -1:]
        drawn_K1 = torch.searchsorted(cumulated_KV, level_K1, right=True)
    filled_BT[where] = words_V[drawn_K1[:, 0].cpu().numpy()]
    return filled_BT


def _padded(rows: list[Any]) -> np.ndarray:
    """One feature of rows, (B, T); zeros behind the shorter ones, which the attention mask hides."""
    padded_BT = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for line_T, row in zip(padded_BT, rows, strict=True):
        line_T[: len(row)] = row
    return padded_BT


def _check_length(name: str, most: int | None, longest: int) -> None:
    if most is not None and longest > most:
        raise RunError(
            f"`{name}` takes {most} tokens, but the longest row of the pool has {longest}",
            where="augmentation",
            hint=f"set `task.max_length: {most}`",
        )


def _unloadable(name: str, what: str, error: Exception) -> RunError:
    reason = str(error).strip().splitlines()
    return RunError(
        f"the {what} of `{name}` cannot be loaded: {reason[0] if reason else type(error).__name__}",
        where="augmentation",
        hint="name a Hub id, a folder or local/… that holds a masked language model",
    )
