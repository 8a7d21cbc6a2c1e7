"""The base of a tuning: which weights a gradient may change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Tuning(ABC):
    """Chooses the trainable weights of a loaded model.

    A subclass is a dataclass whose fields are the keys of the recipe's ``tuning:`` section.
    ``rest`` is the upstream class that takes the keys which the subclass does not declare.
    """

    uses_adapter: ClassVar[bool] = False

    @classmethod
    def rest(cls) -> type | None:
        """The upstream class whose arguments this section may also hold."""
        return None

    @classmethod
    def refused(cls) -> dict[str, str]:
        """Upstream arguments that a recipe may not set, with what to do instead."""
        return {}

    @abstractmethod
    def full_precision(self, skeleton: PreTrainedModel) -> list[str]:
        """Names of backbone modules that stay unquantised on a quantised base.

        Args:
            skeleton: The model without weights (meta device).

        Raises:
            ValueError: this tuning cannot work on a quantised base.
        """

    @abstractmethod
    def apply(self, model: PreTrainedModel, *, head: list[str], task_type: str | None) -> PreTrainedModel:
        """Returns the model with ``requires_grad`` set, wrapped where the tuning adds weights.

        Args:
            model: A loaded model.
            head: Names of modules that carry the task and are always trained and saved.
            task_type: peft's name of the task, e.g. ``"SEQ_CLS"``; None: its plain model.
        """
