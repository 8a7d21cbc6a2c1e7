"""Two streams of rows in one DataLoader: labeled rows, and unlabeled rows in a weak and a strong view.

Notable:
- Which rows a step sees, and the chance in their strong views, are functions of (seed, epoch, step)
  alone: no state has to survive a resume, and the number of workers changes nothing.
- An epoch is one pass over the pool; the labeled rows go round as often as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, DataLoader, Dataset

LABELED, UNLABELED, VIEWS = 0, 1, 2  # domains of the random numbers


@dataclass(frozen=True)
class Key:
    """One row of one stream.

    Args:
        unlabeled: Which stream.
        index: The row's number in it.
        draw: Seeds the row's strong view.
    """

    unlabeled: bool
    index: int
    draw: tuple[int, ...] = ()


class TwoStreams(Dataset):
    """Rows by ``Key``.

    Args:
        labeled: Features with labels.
        unlabeled: Features without.
        strong: ``(row, index, generator) -> row``; None where no strong view is wanted.
        batches: Told of every new epoch: wrappers of samplers do not always pass it on.
    """

    def __init__(self, labeled: Any, unlabeled: Any, strong: Callable | None, batches: TwoStreamBatches):
        self.labeled, self.unlabeled, self.strong, self.batches = labeled, unlabeled, strong, batches

    def __len__(self) -> int:
        """Rows of an epoch: the pool's."""
        return len(self.unlabeled)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Returns ``{"key", "row"}``, and ``"strong"`` for an unlabeled row."""
        if not key.unlabeled:
            return {"key": key, "row": self.labeled[key.index]}
        row = self.unlabeled[key.index]
        made = {"key": key, "row": row}
        if self.strong is not None:
            made["strong"] = self.strong(row, key.index, np.random.default_rng(key.draw))
        return made

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to the sampler."""
        self.batches.set_epoch(epoch)


class TwoStreamBatches(BatchSampler):
    """Keys of labeled and of unlabeled rows, so many of each a batch.

    Rows of the pool that do not fill a last batch wait for the next epoch's permutation.

    Args:
        num_labeled: Rows with labels, ≥ 1.
        num_unlabeled: Rows in the pool, ≥ ``unlabeled_size``.
        labeled_size: Labeled rows a batch.
        unlabeled_size: Unlabeled rows a batch.
        seed: Of both permutations and of the views.
    """

    drop_last = True

    def __init__(
        self, num_labeled: int, num_unlabeled: int, labeled_size: int, unlabeled_size: int, seed: int
    ) -> None:
        self.num_labeled, self.num_unlabeled = num_labeled, num_unlabeled
        self.labeled_size, self.unlabeled_size, self.seed = labeled_size, unlabeled_size, seed
        self.batch_size = labeled_size + unlabeled_size  # accelerate deals out only batches of this length
        self.epoch = 0
        self._drawn: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches an epoch."""
        return self.num_unlabeled // self.unlabeled_size

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Key]]:
        """Yields the epoch's batches, labeled rows first."""
        epoch, size = self.epoch, self.unlabeled_size
        pool = np.random.default_rng((self.seed, UNLABELED, epoch)).permutation(self.num_unlabeled)
        for batch in range(len(self)):
            step = epoch * len(self) + batch
            labeled = [Key(False, row) for row in self._labeled(step)]
            chosen = pool[batch * size : (batch + 1) * size]
            yield labeled + [Key(True, int(i), (self.seed, VIEWS, epoch, int(i))) for i in chosen]

    def _labeled(self, step: int) -> list[int]:
        """Row numbers of a step: a slice of one permutation of the labeled rows after the other."""
        rows = []
        for place in range(step * self.labeled_size, (step + 1) * self.labeled_size):
            turn, at = divmod(place, self.num_labeled)
            rows.append(int(self._permutation(turn)[at]))
        return rows

    def _permutation(self, turn: int) -> np.ndarray:
        if self._drawn is None or self._drawn[0] != turn:
            random = np.random.default_rng((self.seed, LABELED, turn))
            self._drawn = turn, random.permutation(self.num_labeled)
        return self._drawn[1]


def two_stream_loader(
    streams: TwoStreams, collate: Callable[[list[dict]], Any], arguments: Any
) -> DataLoader:
    """Returns the batches of both streams, read as a Trainer's arguments say.

    Args:
        streams: With their order.
        collate: Items of ``streams`` -> a batch.
        arguments: ``TrainingArguments``.
    """
    workers = arguments.dataloader_num_workers
    return DataLoader(
        streams,
        batch_sampler=streams.batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=arguments.dataloader_pin_memory,
        persistent_workers=arguments.dataloader_persistent_workers and workers > 0,
        prefetch_factor=arguments.dataloader_prefetch_factor,
    )


@dataclass
class TwoStreamCollator:
    """Items of ``TwoStreams`` -> a labeled batch that holds the unlabeled one under ``unlabeled``.

    ``unlabeled`` is ``{"rows": (U,) numbers in the pool, "weak": batch, "strong": batch}``; ``index``
    holds the numbers of the labeled rows.

    Args:
        collate: Rows -> a batch, as the task does it.
    """

    collate: Callable[[list[dict]], Any]

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch."""
        import torch

        labeled = [item for item in items if not item["key"].unlabeled]
        pool = [item for item in items if item["key"].unlabeled]
        batch = dict(self.collate([item["row"] for item in labeled]))
        batch["index"] = torch.tensor([item["key"].index for item in labeled])
        unlabeled = {
            "rows": torch.tensor([item["key"].index for item in pool]),
            "weak": dict(self.collate([item["row"] for item in pool])),
        }
        if "strong" in pool[0]:
            unlabeled["strong"] = dict(self.collate([item["strong"] for item in pool]))
        return {**batch, "unlabeled": unlabeled}
