"""Language models: a conversation, or a text that is gone on with."""

from __future__ import annotations

from typing import Any, ClassVar

from hf_llm_recipes.chatting import Speaker
from hf_llm_recipes.demo.base import Asked, Panel, text_of
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.markup import Html, element, joined, note
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.registry import registered_name
from hf_llm_recipes.tasks._chat_forms import list_column

ROLES = {"user": "You", "assistant": "Model"}
ENDS = {
    "length": "stopped after {} tokens, as many as the run allows",
    "full": "cut after {} tokens: the model has no more positions",
}


class WritingPanel(Panel):
    """``chat``, ``generation``, ``preference``, ``clm``: what the model writes, and what it should have.

    Args:
        predictor: Of the run.
        columns: Of the run's training rows, in the task's names; they tell a chat's form.
    """

    ask_label: ClassVar[str] = "Send"
    talks: ClassVar[bool] = True

    def __init__(self, predictor: Predictor, columns: list[str]) -> None:
        super().__init__(predictor)
        self.speaker = Speaker(predictor)
        self.kind = registered_name(type(self.task))
        self.columns = columns

    def inputs(self) -> list[Any]:
        """What is said to the model."""
        import gradio as gr

        label = "Message" if self.speaker.writing.chats else "Text to go on with"
        return [gr.Textbox(label=label, lines=2, elem_id="input-0")]

    def ask(self, before: Asked | None, *given: Any) -> Asked:
        """The conversation with the model's answer."""
        text, writing = text_of(given[0]), self.speaker.writing
        past = before.row["messages"] if before is not None and writing.chats else []
        messages = [*past, {"role": "user", "content": text}]
        opening = [{"role": "system", "content": writing.system}] if writing.system else []
        ids = self.speaker.asked([*opening, *messages]) if writing.chats else self.speaker.begun(text)
        made = self.speaker.write(ids, lambda piece: None)
        answer = made.text.strip() if writing.chats else made.text
        messages.append({"role": "assistant", "content": answer})
        end = ENDS.get(made.end)
        shown = joined([_talk(messages), note(end.format(made.tokens)) if end else None])
        return Asked({"messages": messages}, shown, answer)

    def right(self) -> Any:
        """The text that the model should have written."""
        import gradio as gr

        return gr.Textbox(label="The right answer", lines=4, elem_id="right")

    def labeled(self, asked: Asked, right: Any) -> dict[str, Any]:
        """In the columns of the run's rows."""
        *asked_for, answered = asked.row["messages"]
        return self._row(asked_for, text_of(right, "right answer"), answered["content"])

    def unlabeled(self, asked: Asked) -> dict[str, Any]:
        """What was asked alone."""
        return self._row(asked.row["messages"][:-1], None, None)

    def _row(self, asked: list[dict[str, str]], right: str | None, wrong: str | None) -> dict[str, Any]:
        task, text = self.task, asked[-1]["content"]
        if self.kind == "chat":
            return self._chat_row(asked, right)
        if self.kind == "clm":
            return {task.text: text + (right or "")}
        _only_one(asked)
        prompt = {task.prompt: text}
        if right is None:
            return prompt
        if self.kind == "preference":
            return {**prompt, task.chosen: right, task.rejected: wrong}
        if task.answer_column is None:
            raise DataError("the run's rows have no column for an answer", hint="flag without an answer")
        return {**prompt, task.answer_column: right}

    def _chat_row(self, asked: list[dict[str, str]], right: str | None) -> dict[str, Any]:
        """One of the forms that ``task: chat`` reads, as the run's columns have it."""
        column = list_column(self.columns)
        if self.task.format in ("auto", "messages", "sharegpt") and (column or not self.columns):
            answer = [] if right is None else [{"role": "assistant", "content": right}]
            return {column or "messages": [*asked, *answer]}
        text = asked[-1]["content"]
        if self.task.format == "text" or self.columns == ["text"]:
            return {"text": text + (right or "")}
        _only_one(asked)
        names = ("prompt", "completion") if "prompt" in self.columns else ("instruction", "output")
        return {names[0]: text, **({} if right is None else {names[1]: right})}


def _only_one(asked: list[dict[str, str]]) -> None:
    """Rows of a question each cannot hold a conversation; a file of both could not be read.

    Raises:
        DataError: it is longer than one question.
    """
    if len(asked) > 1:
        raise DataError(
            "the run's rows are one question and one answer, and this conversation is longer",
            hint="press New conversation, ask again, then flag",
        )


def _talk(messages: list[dict[str, str]]) -> Html:
    turns = [
        element(
            "div", element("strong", ROLES[turn["role"]]), element("p", turn["content"]), class_=turn["role"]
        )
        for turn in messages
    ]
    return element("div", *turns, class_="talk")
