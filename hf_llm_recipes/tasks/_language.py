"""How well a causal model predicts documents, in windows that each model can take, and what it writes.

Shapes: B windows of a batch, T tokens, V vocabulary, D documents.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from hf_llm_recipes.errors import DataError, did_you_mean

LOGITS_AT_ONCE = 2**26  # 256 MiB in float32
PROMPTS_AT_ONCE = 8


def windows(tokens_D: dict[int, list[int]], size: int, context: int) -> Dataset:
    """Returns documents in windows that overlap, so that each token but a document's first is guessed once.

    Columns: ``input_ids``; ``document``; ``first``, the first position of the window that is counted.

    Args:
        tokens_D: Number of a document -> its tokens.
        size: Tokens of a window at most, ≥ 2.
        context: Tokens that a window repeats of the one before it, in [1, size).
    """
    rows: dict[str, list] = {"input_ids": [], "document": [], "first": []}
    for document, ids in tokens_D.items():
        for start in [0, *range(size - context, len(ids) - context, size - context)]:
            rows["input_ids"].append(ids[start : start + size])
            rows["document"].append(document)
            rows["first"].append(context if start else 1)
    return Dataset.from_dict(rows)


def document_losses(
    model: Any, made: Dataset, documents: int, pad_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each document's summed loss in nats and its number of guessed tokens, (D,).

    Args:
        model: A causal model in ``eval()``.
        made: From ``windows``.
        documents: D; one without a window has 0 of both.
        pad_token_id: Fills the shorter windows of a batch; never counted.
    """
    lengths = np.asarray([len(ids) for ids in made["input_ids"]])
    losses_D, tokens_D = np.zeros(documents), np.zeros(documents, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    vocabulary = model.get_output_embeddings().weight.shape[0]
    at = 0
    while at < len(order):
        count = max(1, LOGITS_AT_ONCE // (vocabulary * int(lengths[order[at]])))
        rows = made[order[at : at + count]]
        at += count
        ids_BT, mask_BT = padded(rows["input_ids"], pad_token_id, model.device)
        columns = (rows["input_ids"], rows["first"], rows["document"])
        losses_BT = next_token_losses(model, ids_BT, mask_BT).double().cpu().numpy()
        for losses_T, ids, first, document in zip(losses_BT, *columns, strict=True):
            losses_D[document] += losses_T[first - 1 : len(ids) - 1].sum()
            tokens_D[document] += len(ids) - first
    return losses_D, tokens_D


def padded(rows: list[list[int]], fill: int, device: Any) -> tuple[Tensor, Tensor]:
    """Returns ids and attention mask, (B, T), padded on the right."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows], device=device)
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids_BT, mask_BT


@torch.inference_mode()
def next_token_losses(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns −log p of each token after the first given those before it, (B, T − 1), in float32."""
    return token_losses(causal_logits(model, ids_BT, mask_BT)[:, :-1], ids_BT[:, 1:])


def token_losses(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Returns −log p of each label, (B, T), in float32; 0 where it is -100.

    The vocabulary stays the last axis: over another one float32 sums of tens of thousands of terms come
    out short on CPUs, and every loss by 1e-4.
    """
    losses_N = cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), reduction="none")
    return losses_N.view(labels_BT.shape)


def causal_logits(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Returns the logits of padded rows, (B, T, V); no cache is made where the model can do without."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    cache = {"use_cache": False} if "use_cache" in inspect.signature(type(inner).forward).parameters else {}
    return model(input_ids=ids_BT, attention_mask=mask_BT, **cache)["logits"]


def probe_causal(model: Any, made: Dataset, pad_token_id: int) -> np.ndarray:
    """Returns the logits of a few windows at their counted positions, (tokens, V)."""
    found = []
    with torch.inference_mode():
        for row in made:
            ids_BT, mask_BT = padded([row["input_ids"][:64]], pad_token_id, model.device)
            found.append(causal_logits(model, ids_BT, mask_BT)[0].float().cpu().numpy())
    return np.concatenate(found)


def first_bytes(text: str, ids: list[int], tokenizer: Any) -> int:
    """Returns the UTF-8 bytes of a document's first token, before which nothing stands; 0 if special."""
    if ids[0] in tokenizer.all_special_ids:
        return 0
    if tokenizer.is_fast:
        offsets = tokenizer(text[:256], add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return len(text[: offsets[0][1]].encode("utf-8", "surrogatepass"))
    return len(tokenizer.decode(ids[:1]).encode("utf-8", "surrogatepass"))


def check_generation(given: dict[str, Any] | None) -> None:
    """Refuses keys that ``GenerationConfig`` does not have.

    Raises:
        ValueError: names the nearest.
    """
    known = set(GenerationConfig().to_dict())
    for key in given or {}:
        if key not in known:
            raise ValueError(f"generation.{key} is an unknown key{did_you_mean(key, sorted(known))}")


def continuations(model: Any, texts: list[str], tokenizer: Any, generation: dict[str, Any]) -> list[str]:
    """Returns what the model writes behind each text.

    Args:
        model: In ``eval()``; causal.
        texts: Each of at least one token.
        tokenizer: Of the model.
        generation: Of ``GenerationConfig``.

    Raises:
        DataError: a text without a token, and no token to begin with.
    """
    prompts = [beginning(text, f"row {place}", tokenizer) for place, text in enumerate(texts)]
    return written(model, prompts, tokenizer, generation)


def written(model: Any, prompts: list[list[int]], tokenizer: Any, generation: dict[str, Any]) -> list[str]:
    """Returns what the model writes behind the token ids of each prompt.

    Args:
        model: In ``eval()``; causal.
        prompts: Each of at least one token.
        tokenizer: Of the model.
        generation: Of ``GenerationConfig``.
    """
    made: list[str] = []
    for at in range(0, len(prompts), PROMPTS_AT_ONCE):
        few = prompts[at : at + PROMPTS_AT_ONCE]
        batch = tokenizer.pad({"input_ids": few}, padding_side="left", return_tensors="pt").to(model.device)
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.inference_mode():
            ids_BT = model.generate(
                **given, use_cache=True, pad_token_id=tokenizer.pad_token_id, **generation
            )
        new_BT = ids_BT[:, given["input_ids"].shape[1] :]
        made += tokenizer.batch_decode(new_BT, skip_special_tokens=True)
    return made


def beginning(text: str, where: str | None, tokenizer: Any) -> list[int]:
    """Returns the ids of a text that a model goes on with.

    Raises:
        DataError: a text without a token, and no token to begin with.
    """
    return going_on(tokenizer(text)["input_ids"], where, tokenizer)


def going_on(ids: list[int], where: str | None, tokenizer: Any) -> list[int]:
    """Returns ids without the end that a tokenizer puts behind a text; of none, the one that begins it.

    Raises:
        DataError: there is no token, and none to begin with.
    """
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    while len(ids) > 1 and ids[-1] in ends:  # a tokenizer that ends texts itself: nothing would follow
        ids = ids[:-1]
    if ids:
        return ids
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise DataError("the text has no token to go on from", where=where, hint="give it a word")
    return [begin]


def room(tokens: int, where: str | None, model_config: Any) -> int:
    """Returns how many tokens a model has positions for behind so many.

    Raises:
        DataError: none.
    """
    most = getattr(model_config.get_text_config(), "max_position_embeddings", None) or 1 << 20
    if tokens >= most:
        raise DataError(
            f"{tokens} tokens leave no room for an answer: the model takes {most}",
            where=where,
            hint="shorten the conversation",
        )
    return most - tokens


def with_room(generation: dict[str, Any], prompts: list[list[int]], model_config: Any) -> dict[str, Any]:
    """Returns the settings with no more new tokens than the model has positions for.

    Raises:
        DataError: a prompt fills them all.
    """
    least = min(room(len(ids), f"row {place}", model_config) for place, ids in enumerate(prompts))
    return {**generation, "max_new_tokens": min(generation.get("max_new_tokens") or least, least)}
