"""Small pieces that several algorithms share.

Shapes: U unlabeled items of the step, K any number of items, C classes, as in ``base``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hf_llm_recipes.algorithms.base import Given, Guess

MOMENTUM = 0.99  # remembers some hundred steps; the papers' .999 needs thousands before it says anything
EPSILON = 1e-6  # keeps a class that is never predicted from being divided by zero

Towards = Literal["estimated", "uniform", "labeled", "none"]


def require(holds: bool, field: str, value: Any, allowed: str) -> None:
    """Raises a ValueError that names the field, its value and what is allowed, unless ``holds``."""
    if not holds:
        raise ValueError(f"{field} is {value}; allowed: {allowed}")


def require_share(field: str, value: float) -> None:
    """Requires 0 ≤ value ≤ 1."""
    require(0 <= value <= 1, field, value, "0 to 1")


def require_momentum(value: float) -> None:
    """Requires a momentum in [0, 1): at 1 nothing new is ever learned."""
    require(0 <= value < 1, "momentum", value, "0 or more, below 1")


def require_alignment(value: str) -> None:
    """Requires one of the names of ``Alignment``."""
    require(
        value in ("estimated", "uniform", "labeled", "none"),
        "alignment",
        value,
        "estimated, uniform, labeled or none",
    )


def probabilities(logits_KC: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns detached float32 probabilities, sharpened where ``temperature`` is below 1.

    softmax(z/T) is softmax(z)^(1/T), normalised, without the powers that underflow.
    """
    return torch.softmax(logits_KC.detach().float() / temperature, dim=-1)


def one_hot(classes_K: Tensor, num_classes: int) -> Tensor:
    """Returns float32 rows of zeros with a one, (K, C)."""
    return torch.nn.functional.one_hot(classes_K, num_classes).float()


def kl_divergence(target_KC: Tensor, log_q_KC: Tensor) -> Tensor:
    """Returns KL(target ‖ q) of each item, (K,); a target of zero counts nothing."""
    return (torch.xlogy(target_KC, target_KC) - target_KC * log_q_KC).sum(-1)


def above(probability_UC: Tensor, threshold: float | Tensor) -> Guess:
    """Returns the likeliest classes, weight 1 where their probability is not below the threshold.

    Args:
        probability_UC: Of which the largest in a row is its confidence.
        threshold: One for all, or (U,).
    """
    confidence_U, class_U = probability_UC.max(-1)
    stats = {"confidence": confidence_U.mean().item()}
    target_UC = one_hot(class_U, probability_UC.shape[-1])
    return Guess(target_UC, (confidence_U >= threshold).float(), stats)


class Part(Protocol):
    """A piece of an algorithm's state."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back."""


def check_keys(owner: object, state: Mapping[str, Any], known: set[str]) -> None:
    """Raises a ValueError unless a state holds exactly the known keys."""
    odd = sorted(state.keys() ^ known)
    if odd:
        raise ValueError(
            f"the state is not one of {type(owner).__name__}: `{odd[0]}`; allowed: {', '.join(sorted(known))}"
        )


def states(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Returns the states of several parts by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_states(owner: object, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Gives several parts their states back.

    Raises:
        ValueError: the state belongs to another algorithm, or to other settings of this one.
    """
    check_keys(owner, state, set(parts))
    for name, part in parts.items():
        part.load_state_dict(state[name])


class RunningMean:
    """An exponential moving average that starts as the plain mean of the values so far.

    The first value replaces ``initial``; the papers let theirs fade out (uniform, or one over C), which at
    a momentum of .99 still makes up a third of the average after a hundred steps.

    Args:
        initial: What it is before the first value; gives the shape.
        momentum: In [0, 1).
    """

    def __init__(self, initial: Tensor, momentum: float) -> None:
        self.value, self.momentum, self.steps = initial, momentum, 0

    def update(self, new: Tensor) -> Tensor:
        """Takes a step's value in and returns the average; the mean of no items (NaN) is passed over."""
        if torch.isnan(new).any():
            self.value = self.value.to(new.device)
            return self.value
        self.steps += 1
        decay = min(self.momentum, 1 - 1 / self.steps)
        self.value = self.value.to(new.device).lerp(new.float(), 1 - decay)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The average and how many values it has seen."""
        return {"value": self.value, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back.

        Raises:
            ValueError: it has other keys, or another number of classes.
        """
        check_keys(self, state, {"value", "steps"})
        if state["value"].shape != self.value.shape:
            found, wanted = tuple(state["value"].shape), tuple(self.value.shape)
            raise ValueError(f"the state's average has shape {found}; allowed: {wanted}")
        self.value, self.steps = state["value"], state["steps"]


def uniform(num_classes: int) -> Tensor:
    """Returns 1/C for every class."""
    return torch.full((num_classes,), 1 / num_classes)


class Alignment:
    """Distribution alignment: p̃ = norm(p · prior / average of p), both sides plus 1e-6.

    Berthelot et al. 2022 (AdaMatch), §3, https://arxiv.org/abs/2106.04732. The average of p holds the
    present step's mean already, as in the authors' code.

    Args:
        towards: The prior. ``estimated``: ``Given.prior_C``; ``uniform``; ``labeled``: the average of the
            probabilities of the labeled items, as in the paper; ``none``: p̃ = p.
        momentum: Of both averages, in [0, 1).
        num_classes: C.
    """

    def __init__(self, towards: Towards, momentum: float, num_classes: int) -> None:
        self.towards = towards
        self.parts: dict[str, RunningMean] = {}
        if towards != "none":
            self.parts["unlabeled"] = RunningMean(uniform(num_classes), momentum)
        if towards == "labeled":
            self.parts["labeled"] = RunningMean(uniform(num_classes), momentum)

    def __call__(self, probability_UC: Tensor, given: Given) -> Tensor:
        """Returns p̃, (U, C); moves the averages."""
        if self.towards == "none":
            return probability_UC
        mean_C = self.parts["unlabeled"].update(probability_UC.mean(0))
        aligned_UC = probability_UC * (self._prior(given).to(mean_C) + EPSILON) / (mean_C + EPSILON)
        return aligned_UC / aligned_UC.sum(-1, keepdim=True)

    def _prior(self, given: Given) -> Tensor:
        if self.towards == "estimated":
            return given.prior_C
        if self.towards == "uniform":
            return uniform(len(given.prior_C))
        if len(given.labeled_BC) == 0:  # nothing to learn from in this step
            return self.parts["labeled"].value
        return self.parts["labeled"].update(probabilities(given.labeled_BC).mean(0))

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return states(self.parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back; see ``load_states``."""
        load_states(self, self.parts, state)


class Chance:
    """Random numbers that go on after a resume where they stopped.

    Seeded from torch's own seed at the start of the training, so that another seed of the run gives other
    draws. They are drawn on the CPU: the same on every device.
    """

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(torch.initial_seed())

    def state_dict(self) -> dict[str, Any]:
        """Where the generator is."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes a state back.

        Raises:
            ValueError: it has other keys.
        """
        check_keys(self, state, {"generator"})
        self.generator.set_state(state["generator"].cpu())
