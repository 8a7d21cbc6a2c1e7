"""Texts, pairs of texts and images that get a class, several, or a number."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_llm_recipes import evaluation
from hf_llm_recipes.demo.base import (
    Asked,
    Panel,
    chosen_class,
    class_field,
    headline,
    probability_table,
    text_of,
)
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.markup import Html, element, joined, note
from hf_llm_recipes.predictor import Predictor


class TextPanel(Panel):
    """``text_classification``: one text or a pair; a class, any number of classes, or a number."""

    explains: ClassVar[bool] = True

    def inputs(self) -> list[Any]:
        """One field a text."""
        import gradio as gr

        columns = self.task.input_columns
        names = ["Text"] if len(columns) == 1 else ["First text", "Second text"]
        return [gr.Textbox(label=name, lines=4, elem_id=f"input-{i}") for i, name in enumerate(names)]

    def ask(self, before: Asked | None, *given: Any) -> Asked:
        """The classes with their probabilities."""
        names = ["text"] if len(given) == 1 else ["first text", "second text"]
        texts = [text_of(value, name) for value, name in zip(given, names, strict=True)]
        row = dict(zip(self.task.input_columns, texts, strict=True))
        rows = Dataset.from_list([row])
        logits, _ = self.predictor.logits(rows, labeled=False)
        shown, right = self._shown(logits)
        return Asked(row, joined([shown, self._cut(rows)]), right)

    def right(self) -> Any:
        """A choice, several, or a number."""
        import gradio as gr

        if self.task.problem == "regression":
            return gr.Number(label="The right number", value=None, elem_id="right")
        if self.task.problem == "multi_label":
            return gr.CheckboxGroup(choices=self.names, label="The right answers", elem_id="right")
        return class_field(self.names)

    def labeled(self, asked: Asked, right: Any) -> dict[str, Any]:
        """The label column, or one column a class."""
        task = self.task
        if task.problem == "regression":
            if right is None:
                raise DataError("no right number is given", hint="give one, or flag without an answer")
            return {**asked.row, task.label: float(right)}
        if task.problem == "single_label":
            return {**asked.row, task.label: chosen_class(right)}
        chosen = [name for name in self.names if name in (right or [])]
        if isinstance(task.label, list):
            return {**asked.row, **{name: int(name in chosen) for name in task.label}}
        return {**asked.row, task.label: task.separator.join(chosen) if task.separator else chosen}

    def explain(self, asked: Asked) -> Html:
        """What each word adds to the logit of the likeliest class, by integrated gradients."""
        from hf_llm_recipes.assessing.attributions import explain
        from hf_llm_recipes.reporting.further import explained, legend

        (found,) = explain(self.predictor, Dataset.from_list([asked.row]))
        return joined(
            [element("h2", "What the answer hangs on"), explained(found, f"Why {found.target}?"), legend()]
        )

    def _shown(self, logits: np.ndarray) -> tuple[Html, Any]:
        """The answer, and what the field of the right one begins with."""
        problem = self.task.problem
        if problem == "regression":
            value = float(logits.reshape(-1)[0])
            return headline(f"{value:.4f}"), None
        (found,) = evaluation.probabilities(logits.astype(np.float64), problem)
        if problem == "single_label":
            return _one_class(self.names, found), None
        chosen = [name for name, share in zip(self.names, found, strict=True) if share >= 0.5]
        listed = probability_table(self.names, found.tolist(), "Probability of each class by itself")
        return joined([headline(", ".join(chosen) or "none"), listed]), chosen

    def _cut(self, rows: Dataset) -> Html | None:
        predictor = self.predictor
        _, found = self.task.encode(rows, predictor.tokenizer, predictor.model.config, labeled=False)
        if not found["tokens_cut"]:
            return None
        return note(f"too long: its last {found['tokens_cut']:,} tokens were not read", "warning")


class ImagePanel(Panel):
    """``image_classification``: an image file, whose flagged copies lie beside the flagged rows.

    Args:
        predictor: Of the run.
        folder: Of the copies.
    """

    def __init__(self, predictor: Predictor, folder: Path) -> None:
        super().__init__(predictor)
        self.folder = folder

    def inputs(self) -> list[Any]:
        """One file, handed over as it is."""
        import gradio as gr

        return [
            gr.Image(
                label="Image",
                type="filepath",
                image_mode=None,
                sources=["upload"],
                buttons=[],
                elem_id="input-0",
            )
        ]

    def ask(self, before: Asked | None, *given: Any) -> Asked:
        """The classes with their probabilities."""
        (file,) = given
        if not file:
            raise DataError("there is no image", hint="choose a file")
        row = {self.task.image: file}
        logits, _ = self.predictor.logits(self.task.read_inputs([file]), labeled=False)
        (found,) = evaluation.probabilities(logits.astype(np.float64), "single_label")
        return Asked(row, _one_class(self.names, found))

    def right(self) -> Any:
        """A choice."""
        return class_field(self.names)

    def labeled(self, asked: Asked, right: Any) -> dict[str, Any]:
        """The copy's path and its class."""
        chosen = chosen_class(right)
        return {**self.unlabeled(asked), self.task.label: chosen}

    def unlabeled(self, asked: Asked) -> dict[str, Any]:
        """The path of a copy, named by what it holds."""
        file = Path(asked.row[self.task.image])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder.resolve() / f"{digest[:32]}{file.suffix.lower()}"
        if not kept.exists():
            side = kept.with_name(f".{kept.name}.part")
            shutil.copyfile(file, side)
            side.replace(kept)
        return {self.task.image: str(kept)}


def _one_class(names: list[str], found: np.ndarray) -> Html:
    best = int(found.argmax())
    listed = probability_table(names, found.tolist(), "Probability of each class")
    return joined([headline(names[best], float(found[best])), listed])
