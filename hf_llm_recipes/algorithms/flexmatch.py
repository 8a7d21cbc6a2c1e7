"""FlexMatch: FixMatch with a threshold for each class, lower where the class is learned less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_llm_recipes.algorithms._common import above, check_keys, probabilities, require
from hf_llm_recipes.algorithms.base import Algorithm, Given, Guess
from hf_llm_recipes.registry import ALGORITHMS

NONE = -1  # a row that was never confident


@ALGORITHMS.register
@dataclass(kw_only=True)
class FlexMatch(Algorithm):
    """1[max p ≥ τ_c] · H(argmax p, q), τ_c = τ·β_c/(2 − β_c).

    Zhang et al. 2021, https://arxiv.org/abs/2110.08263, §3: σ_c counts the rows of the pool
    whose last confident guess (max p ≥ τ) was c, and β_c = σ_c / max(max σ, rows without any), which is
    the paper's warm-up. Before the first confident guess every τ_c is 0, as in the paper.

    An item must be a row: several tokens or classes of a row have no one last class.

    Args:
        threshold: τ, in (0, 1].

    Raises:
        ValueError: the threshold is out of range.
    """

    problems: ClassVar[tuple[str, ...]] = ("single_label",)

    threshold: float = 0.95

    def __post_init__(self) -> None:
        require(0 < self.threshold <= 1, "threshold", self.threshold, "above 0, at most 1")

    def start(self, num_classes: int, num_rows: int) -> None:
        """No row was confident yet."""
        self.num_classes = num_classes
        self.last_N = torch.full((num_rows,), NONE, dtype=torch.int64)

    def guess(self, given: Given) -> Guess:
        """Returns the confident items; their thresholds are those of the steps before."""
        probability_UC = probabilities(given.weak_UC)
        thresholds_C = self.thresholds().to(probability_UC.device)
        confidence_U, class_U = probability_UC.max(-1)
        sure_U = confidence_U >= self.threshold
        self.last_N = self.last_N.to(class_U.device)
        self.last_N[given.rows_U[sure_U]] = class_U[sure_U]
        guess = above(probability_UC, thresholds_C[class_U])
        guess.stats["threshold"] = thresholds_C.mean().item()
        return guess

    def thresholds(self) -> Tensor:
        """Returns the present τ_c, (C,)."""
        counts = torch.bincount(self.last_N + 1, minlength=self.num_classes + 1)
        beta_C = counts[1:] / counts.max()
        return self.threshold * beta_C / (2 - beta_C)

    def state_dict(self) -> dict[str, Any]:
        """The last confident class of every row of the pool, -1 for none."""
        return {"last": self.last_N.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back.

        Raises:
            ValueError: it has other keys, or is of a pool of another size.
        """
        check_keys(self, state, {"last"})
        if len(state["last"]) != len(self.last_N):
            found, rows = len(state["last"]), len(self.last_N)
            raise ValueError(f"the state is of a pool of {found} rows; allowed: {rows}, as now")
        self.last_N = state["last"].clone()
