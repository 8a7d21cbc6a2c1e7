"""The base of a panel: how one kind of task is asked, answered and put right on the page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.markup import Html, element, joined, note, table
from hf_llm_recipes.predictor import Predictor

MOST_SHOWN = 20  # classes of one answer
RADIOS = 12  # more classes are chosen from a list that can be searched


@dataclass
class Asked:
    """What was asked, and the model's answer.

    Args:
        row: In the task's columns, without a label.
        shown: The answer.
        right: What the field of the right answer begins with.
    """

    row: dict[str, Any]
    shown: Html
    right: Any = None


class Panel(ABC):
    """One kind of task on the page.

    Args:
        predictor: Of the run.
    """

    ask_label: ClassVar[str] = "Answer"
    right_hint: ClassVar[str] = ""
    explains: ClassVar[bool] = False  # whether `explain` can say something
    talks: ClassVar[bool] = False  # keeps a conversation, whose field is emptied after each question

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.task = predictor, predictor.task

    @abstractmethod
    def inputs(self) -> list[Any]:
        """Makes the fields of a question."""

    @abstractmethod
    def ask(self, before: Asked | None, *given: Any) -> Asked:
        """Answers what the fields hold.

        Args:
            before: What was asked before it.
            *given: A value a field.

        Raises:
            DataError: nothing that can be asked.
        """

    @abstractmethod
    def right(self) -> Any:
        """Makes the field of the right answer."""

    @abstractmethod
    def labeled(self, asked: Asked, right: Any) -> dict[str, Any]:
        """Returns the row with its right answer.

        Raises:
            DataError: ``right`` is none.
        """

    def unlabeled(self, asked: Asked) -> dict[str, Any]:
        """Returns the row without one."""
        return dict(asked.row)

    def explain(self, asked: Asked) -> Html:
        """Returns which parts of the question spoke for the answer, where ``explains``.

        Raises:
            MissingExtraError: captum is not installed.
        """
        raise TypeError(f"{type(self).__name__} explains nothing")

    @property
    def names(self) -> list[str]:
        """The classes."""
        config = self.predictor.model.config
        return [config.id2label[i] for i in range(config.num_labels)]


def text_of(given: Any, what: str = "text") -> str:
    """Returns a field's text.

    Raises:
        DataError: it is empty, or holds half a character.
    """
    text = given or ""
    if not text.strip():
        raise DataError(f"there is no {what}", hint="write something")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} holds half a character ({error.reason})", hint="write it anew"
        ) from error
    return text


def class_field(names: Sequence[str]) -> Any:
    """Makes a field to choose one class."""
    import gradio as gr

    field = gr.Radio if len(names) <= RADIOS else gr.Dropdown
    return field(choices=list(names), value=None, label="The right answer", elem_id="right")


def chosen_class(right: Any) -> str:
    """Returns the class that was chosen.

    Raises:
        DataError: none.
    """
    if right is None or right == []:
        raise DataError("no right answer is chosen", hint="choose one, or flag without an answer")
    return right


def probability_table(names: Sequence[str], probabilities: Sequence[float], caption: str) -> Html:
    """Returns classes with their probabilities, the likeliest first."""
    order = sorted(range(len(names)), key=lambda i: -probabilities[i])
    rows = [(names[i], f"{probabilities[i]:.3f}", bar(probabilities[i])) for i in order[:MOST_SHOWN]]
    more = len(names) - MOST_SHOWN
    return joined(
        [
            table(
                caption,
                ("class", "probability", element("span", "as a bar", class_="unseen")),
                rows,
                numbers=(1,),
            ),
            note(f"{more:,} less likely classes are not shown") if more > 0 else None,
        ]
    )


def bar(share: float) -> Html:
    """Returns a share as a length, for the eye alone."""
    return element("span", class_="bar", style=f"--share: {share:.4f}", aria_hidden="true")


def headline(text: str, probability: float | None = None) -> Html:
    """Returns the answer in large letters."""
    beside = element("span", f" {probability:.1%}", class_="dim") if probability is not None else None
    return element("p", text, beside, class_="answer")
