"""Rows whose randomness is new in each epoch and the same in each run of a seed.

A row's draw, epoch · rows + its number, and the seed are all that a mask hangs on: not what rows stand
beside it, nor how many workers load them, nor whether the run was killed in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

EPSILON = 1e-6  # of an epoch: its end as the Trainer counts it


class Draws(Dataset):
    """Rows, each with ``draw``: (seed, epoch · rows + number).

    Args:
        rows: Features.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.state = torch.zeros(2, dtype=torch.int64).share_memory_()  # seed, epoch; workers see it change

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        seed, epoch = self.state.tolist()
        return {**self.rows[index], "draw": (seed, epoch * len(self.rows) + index)}

    def teller(self) -> EpochTeller:
        """Returns the callback that tells these rows seed and epoch."""
        return EpochTeller(self.state)


class EpochTeller(TrainerCallback):
    """Writes the run's seed and the epoch to where ``Draws`` reads them.

    Args:
        state: Of the draws.
    """

    def __init__(self, state: Tensor) -> None:
        self.state = state

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Tells both; a resumed run begins within the epoch it was killed in."""
        self.state[0], self.state[1] = args.seed, int((state.epoch or 0) + EPSILON)
