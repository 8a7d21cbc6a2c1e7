"""What the parts of a check look at: a run up to the point where it would train.

Splits that take long to turn into features are cut to a sample; ``whole`` keeps all of their rows for what
is cheap to look at. Nothing is written but to a temporary folder, and no weight is changed for good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.objectives._draws import Draws
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.objectives.mlm_nsp import MlmNsp
from hf_llm_recipes.planning import Plan
from hf_llm_recipes.run import _Runner
from hf_llm_recipes.tasks.image_classification import ImageClassification
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tasks.token_classification import TokenClassification

PARTS = ("train", "eval", "test", "unlabeled")
MOST_ROWS = 20_000  # of the train split that become features
MOST_TEMPLATED = 4_000  # where each row goes through a chat template: a millisecond or more
MOST_IMAGES = 2_000
MOST_CHARACTERS = 20_000_000  # twenty seconds of tokenizing on one core
MOST_PAIRED = 4_000_000  # characters that are cut into sentences and paired
SPARED = 1.25
OTHERS = 4  # so many times fewer of the other splits
LEAST_ROWS = 200
MOST_LABELS = 5_000  # more different ones are no classes, but numbers or texts
STREAMED = 2_000  # rows of a stream


class Subject(_Runner):
    """A run that stops before its training.

    Args:
        plan: From ``run.plan``.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.whole: Loaded | None = None
        self.prepared: Any = None
        self.built: Any = None
        self.tokenizer: Any = None
        self.trainer: Any = None
        self.places: dict[str, np.ndarray] = {}  # of a sample's rows among all
        self.directory: Any = None
        self._loaded: Loaded | None = None

    @property
    def loaded(self) -> Any:
        """The rows that become features."""
        return self._loaded

    @loaded.setter
    def loaded(self, value: Loaded) -> None:
        self.whole = value
        self._loaded = dataclasses.replace(
            value, **{part: self._few(part, getattr(value, part)) for part in PARTS}
        )

    @property
    def task(self) -> Any:
        """Of the plan."""
        return self.plan.task

    def prepare_data(self) -> None:
        """Data and features, once; a stream's first rows stand for it."""
        if self.prepared is not None:
            return
        super().prepare_data()
        if not isinstance(self._loaded.train, IterableDataset):
            return
        first = list(islice(self._loaded.train, STREAMED))
        self.whole = self._loaded = dataclasses.replace(
            self._loaded, train=Dataset.from_list(first, features=self._loaded.train.features)
        )
        self.places["train"] = np.arange(len(first))
        self.prepared = self.task.prepare(self._loaded, self.tokenizer, self.config)

    def prepare_model(self) -> None:
        """The model with its trainable weights chosen."""
        self._prepare()

    def splits(self) -> list[str]:
        """Returns the splits that there are, the pool among them."""
        return [part for part in PARTS if getattr(self._loaded, part) is not None]

    def rows(self, split: str) -> Any:
        """Returns the rows as they were read, of which ``features`` were made."""
        return getattr(self._loaded, split)

    def all_rows(self, split: str) -> Any:
        """Returns all rows of a split as they were read."""
        return getattr(self.whole, split)

    def features(self, split: str) -> Any:
        """Returns the features of a split; those of rows that are masked anew, before that."""
        found = getattr(self.prepared, split)
        return found.rows if isinstance(found, Draws) else found

    def place(self, split: str, row: int) -> int:
        """Returns the number of a sample's row among all rows of its split."""
        return int(self.places[split][row]) if split in self.places else int(row)

    def where(self, split: str, row: int | None = None) -> str:
        """Returns where a row stands, with the file or split that it came from."""
        origin = self.whole.description.get("splits", {}).get(split, {}).get("origin")
        said = f"{split} split" if split != "unlabeled" else "unlabeled rows"
        named = self.plan.source.name
        if origin in (None, split):  # the one file's own split
            origin = named if Path(named).suffix else None
        said += f" ({Path(origin).name if '/' in origin else origin})" if origin else ""
        return said if row is None else f"{said}, row {self.place(split, row)}"

    def sampled(self, split: str) -> str:
        """Returns words that say how many rows were looked at, where not all were."""
        if split not in self.places:
            return ""
        if self.plan.source.streaming and split == "train":
            return f" (of a stream's first {len(self.places[split]):,} rows)"
        return f" (of a sample of {len(self.places[split]):,} of {len(self.all_rows(split)):,} rows)"

    def _say(self, sentences: Iterable[str]) -> None:
        self.notes += sentences

    def _few(self, part: str, rows: Any) -> Any:
        if rows is None or isinstance(rows, IterableDataset):
            return rows
        most = most_rows(self.task, rows) // (1 if part == "train" else OTHERS)
        if len(rows) <= SPARED * most:  # a sample that spares little is none
            return rows
        if isinstance(self.task, Objective):
            chosen = np.arange(most)  # neighbours: rows may be parts of one document
        else:
            drawn = np.random.RandomState(0).permutation(len(rows))[:most]
            chosen = np.union1d(drawn, self._one_of_each_label(rows) if part != "unlabeled" else [])
        self.places[part] = chosen.astype(np.int64)
        return rows.select(self.places[part])

    def _one_of_each_label(self, rows: Any) -> list[int]:
        """The first row of each label: a sample without a class would look like data without it."""
        if not isinstance(self.task, (TextClassification, TokenClassification, ImageClassification)):
            return []
        label = self.task.label
        columns = [c for c in (label if isinstance(label, list) else [label]) if c in rows.column_names]
        first: dict[Any, int] = {}
        for column in columns:
            for row, value in enumerate(rows[column]):
                for one in value if isinstance(value, list) else [value]:
                    first.setdefault((column, one), row)
        return sorted(set(first.values())) if len(first) <= MOST_LABELS else []


def most_rows(task: Any, rows: Any) -> int:
    """Returns how many rows of a split are turned into features."""
    if task.processor == "image_processor":
        return MOST_IMAGES
    most = MOST_TEMPLATED if task.writes and not isinstance(task, Objective) else MOST_ROWS
    few = rows.select(range(min(len(rows), 200)))
    a_row = max(1.0, sum(map(_characters, few)) / max(len(few), 1))
    characters = MOST_PAIRED if isinstance(task, MlmNsp) else MOST_CHARACTERS
    return int(min(most, max(OTHERS * LEAST_ROWS, characters / a_row)))


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_characters, value)) if isinstance(value, list) else 0
