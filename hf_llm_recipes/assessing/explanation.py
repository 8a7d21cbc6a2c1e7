"""An answer and what each piece of its text adds to it, as ``attributions`` finds and reports show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 0.02  # of the difference of logits, or of 1 where that is less


@dataclass(frozen=True)
class Piece:
    """A token of a text, or several that share a character.

    Args:
        text: Number of the text, 0, or 1 of a pair's second.
        start: Its first character.
        end: The one behind its last.
        weight: What it adds to the logit.
    """

    text: int
    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Explanation:
    """An answer with what each piece of the texts adds to it.

    Args:
        texts: One, or a pair.
        answer: The model's.
        target: The class whose logit is explained; ``value`` in regression.
        logit: Of the target.
        masked_logit: Of the target where every word is masked.
        pieces: In the order of the text; what was cut has none.
        missing: ``logit − masked_logit`` minus all weights, special tokens' among them.
        steps: Of the integral.
    """

    texts: list[str]
    answer: str
    target: str
    logit: float
    masked_logit: float
    pieces: list[Piece]
    missing: float
    steps: int

    @property
    def complete(self) -> bool:
        """Whether the weights sum to the difference of logits within 2 %."""
        return near(self.missing, self.logit, self.masked_logit)

    def words(self, piece: Piece) -> str:
        """Returns the characters of a piece."""
        return self.texts[piece.text][piece.start : piece.end]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Explanation:
        """Returns what ``to_dict`` wrote."""
        return cls(**{**values, "pieces": [Piece(**one) for one in values["pieces"]]})


def near(missing: float, logit: float, masked_logit: float) -> bool:
    """Whether weights that miss a difference of logits by so much are complete enough."""
    return abs(missing) <= TOLERANCE * max(1.0, abs(logit - masked_logit))
