"""Contrastive learning of sentence vectors: a text's other view among the other texts of the batch.

Notable:
- The other view is a second dropout pass of the same text, or the text of a second column.
- The negatives are the other rows of the same forward: with ``gradient_accumulation_steps`` their number
  does not grow, while the loss stays the mean over all rows of the optimizer step.
- A text's vector is the mean over its attended tokens.

Shapes: B rows, T tokens, D hidden size, N rows of a split.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from hf_llm_recipes import evaluation
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives import _documents, _scores
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _language
from hf_llm_recipes.tasks._contrastive import check_dropout, mean_vectors, view_losses
from hf_llm_recipes.tasks._rows import bar_if_long, check_columns, input_length
from hf_llm_recipes.tasks.base import Judged, Prepared, splits

ROWS_AT_ONCE = 64  # of a judged split; the negatives of its loss
NEIGHBOURS = 5
MOST_PAIRS = 2000  # rows whose distances are looked at for uniformity
SEED = 0  # of the dropout that a split is judged under

log = logging.getLogger("hf_llm_recipes")


@TASKS.register
@dataclass(kw_only=True)
class Contrastive(Objective):
    """SimCSE (Gao et al. 2021, https://arxiv.org/abs/2104.08821, eq. 1 and 4).

    The mean over tokens stands where the paper takes the first token's vector under an extra layer.

    Args:
        text: Column of the text.
        text_pair: Column of a text that means the same; None: a second dropout pass is the other view.
        score: Column of how alike a test row's two texts are; judged by Spearman's correlation with the
            cosine. Train rows are all taken as pairs.
        label: Column of a class, of test rows; judged by their nearest neighbours' (leave one out).
        max_length: Tokens a text may have; longer ones are cut and counted. None: what the model can.
        temperature: Cosine similarities are divided by it, > 0.
        examples: Texts whose vectors are made after the run.

    Raises:
        ValueError: a value out of its range, or ``score`` without ``text_pair``.
    """

    auto_class: ClassVar[str] = "AutoModel"
    peft_task_type: ClassVar[str] = "FEATURE_EXTRACTION"
    pipeline_tag: ClassVar[str] = "sentence-similarity"
    vocabulary_labels: ClassVar[bool] = False
    label_names: ClassVar[list[str] | None] = ["labels"]
    compares_rows: ClassVar[bool] = True

    text: str = "text"
    text_pair: str | None = None
    score: str | None = None
    label: str | None = None
    max_length: int | None = None
    temperature: float = 0.05
    examples: list[str] | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; allowed: above 0")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; allowed: 3 or more tokens")
        if self.score is not None and self.text_pair is None:
            raise ValueError("score has an effect only with text_pair")

    @property
    def input_columns(self) -> list[str]:
        """The text, or both texts."""
        return [column for column in (self.text, self.text_pair) if column]

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns token ids of every split; see ``Task.prepare``."""
        made: dict[str, Any] = {"eval": None}
        findings, notes = {}, []
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            made[split], findings[split] = self._features(rows, tokenizer, model_config, where)
            for name, said in (("rows_cut", "are cut"), ("rows_empty", "have no text and are left out")):
                if findings[split][name]:
                    notes.append(f"{where}: {findings[split][name]:,} of {len(rows):,} rows {said}")
        if len(made["train"]) < 2:
            raise DataError("the train split has one row: nothing to tell it from", where="train split")
        self._check_judged(loaded.test)
        collator = self.collator(tokenizer)
        return Prepared(**made, config={}, collator=collator, findings=findings, notes=notes)

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Refuses a model of two stacks, and without dropout where that makes the views.

        Raises:
            RunError: one of these.
        """
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        if base.config.is_encoder_decoder:
            raise RunError(
                f"{type(base).__name__} has an encoder and a decoder", allowed="an encoder, or a decoder"
            )
        if self.text_pair is None:
            check_dropout(
                model if hasattr(model, "peft_config") else base,
                hint="give it one (`model.config`, `tuning.lora_dropout`), or pairs (`task.text_pair`)",
            )
        return []

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns token ids of new rows; of the text alone unless ``labeled``."""
        if labeled:
            self._check_judged(rows)
        return self._features(rows, tokenizer, model_config, "data", pairs=labeled)

    def collator(self, tokenizer: Any) -> Any:
        """Rows -> both views, one batch of twice the rows."""
        return ViewCollator(tokenizer.pad_token_id)

    def loss(self, label_smoothing: float) -> Any:
        """The mean over the rows of an optimizer step."""
        if label_smoothing:
            raise ValueError("label_smoothing_factor has no meaning here: raise `task.temperature`")
        return partial(contrastive_loss, temperature=self.temperature)

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Loss, alignment and uniformity; Spearman's correlation and neighbours where the rows allow."""
        vectors_ND = vectors(model, features["input_ids"], processor.pad_token_id)
        views_2ND = self._views(model, features, vectors_ND, processor.pad_token_id)
        losses_N = np.concatenate(
            [view_losses(few, self.temperature).numpy() for few in views_2ND.split(ROWS_AT_ONCE, dim=1)]
        )
        first_ND, second_ND = normalize(views_2ND, dim=-1)
        found = {"losses": losses_N, "distances": ((first_ND - second_ND) ** 2).sum(1).numpy()}
        kept = features["row"][:]
        if self.label is not None:
            labels = [rows[self.label][i] for i in kept]
            found["right"] = neighbours_agree(vectors_ND, labels)
        sums = {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}
        metrics = _scores.judged({**sums, "rows": np.ones(len(kept))}, _contrastive_scores)
        metrics["uniformity"] = uniformity(vectors_ND[:MOST_PAIRS])
        columns = {"row": kept, "loss": losses_N.tolist()}
        if self.label is not None:
            metrics["majority_baseline"] = Counter(labels).most_common(1)[0][1] / len(labels)
        if self.text_pair is not None:
            columns["cosine"] = (first_ND * second_ND).sum(1).tolist()
        if self.score is not None:
            judged = evaluation.regression(columns["cosine"], [rows[self.score][i] for i in kept])
            metrics["spearman"] = judged["spearman"]
            if "spearman" in judged["intervals_95"]:
                metrics["intervals_95"]["spearman"] = judged["intervals_95"]["spearman"]
        return Judged(metrics, columns)

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The vectors of a few rows."""
        return vectors(model, features["input_ids"], processor.pad_token_id).numpy()

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"vector"}`` a row, of length 1."""
        check_columns(rows, [("text", self.text)], "data")
        texts = _documents.read_documents(rows, self.text, None, "data")
        length = input_length(self.max_length, processor, model.config)
        ids = processor(texts, truncation=True, max_length=length)["input_ids"]
        made_ND = normalize(vectors(model, ids, processor.pad_token_id), dim=-1)
        return [{"vector": vector} for vector in made_ND.tolist()]

    def _views(self, model: Any, features: Any, vectors_ND: Tensor, pad_token_id: int) -> Tensor:
        """The vectors of both views, (2, N, D): of the pair, or of two passes under one seed's dropout."""
        if self.text_pair is not None:
            return torch.stack([vectors_ND, vectors(model, features["pair_ids"], pad_token_id)])
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(SEED)
            model.train()
            passes = [vectors(model, features["input_ids"], pad_token_id) for _ in range(2)]
            model.eval()
        return torch.stack(passes)

    def _check_judged(self, rows: Any) -> None:
        check_columns(rows, [("score", self.score), ("label", self.label)], "test split")

    def _features(
        self, rows: Any, tokenizer: Any, model_config: Any, where: str, *, pairs: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        self.check_rows(rows, where)
        columns = {"input_ids": self.text}
        if self.text_pair is not None and pairs:
            check_columns(rows, [("text_pair", self.text_pair)], where)
            columns["pair_ids"] = self.text_pair
        texts = {
            name: _documents.read_documents(rows, column, None, where) for name, column in columns.items()
        }
        kept = [i for i in range(len(rows)) if all(column[i].strip() for column in texts.values())]
        if not kept:
            raise DataError(f"all {len(rows):,} texts are empty", where=where, hint="check `task.text`")
        length = input_length(self.max_length, tokenizer, model_config)

        def encode(batch: dict[str, list]) -> dict[str, list]:
            made = {key: tokenizer(batch[key], verbose=False)["input_ids"] for key in texts}
            cut = [any(len(ids) > length for ids in row) for row in zip(*made.values(), strict=True)]
            short = {
                key: tokenizer(batch[key], truncation=True, max_length=length)["input_ids"] for key in texts
            }
            return {**short, "cut": cut}

        given = {name: [column[i] for i in kept] for name, column in texts.items()}
        with bar_if_long(len(kept)):
            made = Dataset.from_dict(given).map(
                encode, batched=True, load_from_cache_file=False, desc=f"tokenizing the {where}"
            )
        cut = sum(made["cut"])
        found = {"rows": len(kept), "rows_cut": cut, "rows_empty": len(rows) - len(kept)}
        return made.remove_columns("cut").add_column("row", kept), found


@dataclass
class ViewCollator:
    """Rows -> both views one above the other, (2B, T), padded on the right.

    ``labels`` are (2, B): how many tokens each view of each row has.

    Args:
        pad_token_id: Fills rows.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        first = [row["input_ids"] for row in rows]
        second = [row.get("pair_ids", row["input_ids"]) for row in rows]
        ids_BT, mask_BT = _language.padded([*first, *second], self.pad_token_id, "cpu")
        return {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "labels": mask_BT.sum(1).view(2, len(rows)),
        }


def contrastive_loss(
    outputs: Any, labels_2B: Tensor, num_items_in_batch: Any = None, *, temperature: float
) -> Tensor:
    """Returns this batch's share of the mean loss over an optimizer step's rows.

    Args:
        outputs: With ``last_hidden_state`` (2B, T, D).
        labels_2B: Tokens of each view.
        num_items_in_batch: Labels of all batches of the step, two a row; None: of this one.
        temperature: Cosine similarities are divided by it.
    """
    states_BTD = outputs["last_hidden_state"]
    places_T = torch.arange(states_BTD.shape[1], device=states_BTD.device)
    vectors_BD = mean_vectors(states_BTD, places_T < labels_2B.flatten()[:, None])
    if labels_2B.shape[1] == 1:
        log.warning("a batch of one row teaches nothing: raise `trainer.per_device_train_batch_size`")
    items = labels_2B.numel() if num_items_in_batch is None else num_items_in_batch
    return view_losses(vectors_BD.unflatten(0, (2, -1)), temperature).sum() * 2 / items


def vectors(model: Any, ids_N: Any, pad_token_id: int) -> Tensor:
    """Returns the mean vector of each text, (N, D), in float32 on the CPU, in whatever mode the model is."""
    ids_N = list(ids_N)
    order = np.argsort([-len(ids) for ids in ids_N], kind="stable")
    found: list[Any] = [None] * len(ids_N)
    for at in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[at : at + ROWS_AT_ONCE]
        ids_BT, mask_BT = _language.padded([ids_N[i] for i in chosen], pad_token_id, model.device)
        with torch.inference_mode():
            states_BTD = model(input_ids=ids_BT, attention_mask=mask_BT)["last_hidden_state"]
            made_BD = mean_vectors(states_BTD, mask_BT).cpu()
        for place, vector in zip(chosen, made_BD, strict=True):
            found[place] = vector
    return torch.stack(found).clone()


def uniformity(vectors_ND: Tensor) -> float:
    """Returns log of the mean of exp(−2 |x − y|²) over pairs (Wang and Isola 2020); lower is wider."""
    if len(vectors_ND) < 2:
        return 0.0
    return float(torch.pdist(normalize(vectors_ND.double(), dim=-1)).pow(2).mul(-2).exp().mean().log())


def neighbours_agree(vectors_ND: Tensor, labels: list[Any]) -> list[bool]:
    """Returns whether the row's nearest others, weighted by their cosine, have its label."""
    unit_ND = normalize(vectors_ND, dim=-1)
    count, right = min(NEIGHBOURS, len(labels) - 1), []
    for at in range(0, len(labels), 1024):  # 1024 · N cosines at once
        cosine_BN = unit_ND[at : at + 1024] @ unit_ND.T
        cosine_BN[torch.arange(len(cosine_BN)), torch.arange(at, at + len(cosine_BN))] = -torch.inf
        near = cosine_BN.topk(count, dim=1)
        for row, (values, places) in enumerate(zip(near.values.tolist(), near.indices.tolist(), strict=True)):
            votes: Counter = Counter()
            for value, place in zip(values, places, strict=True):
                votes[labels[place]] += value
            right.append(bool(votes) and votes.most_common(1)[0][0] == labels[at + row])
    return right


def _contrastive_scores(sums: Any) -> dict[str, float]:
    scores = {
        "loss": _scores.ratio(sums["losses"], sums["rows"]),
        "alignment": _scores.ratio(sums["distances"], sums["rows"]),
    }
    if "right" in sums:
        scores["knn_accuracy"] = _scores.ratio(sums["right"], sums["rows"])
    return scores
