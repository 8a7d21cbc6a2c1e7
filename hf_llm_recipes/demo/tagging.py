"""Words that get a tag each."""

from __future__ import annotations

from typing import Any, ClassVar

from hf_llm_recipes.demo.base import Asked, Panel, bar, headline, text_of
from hf_llm_recipes.errors import DataError, did_you_mean
from hf_llm_recipes.markup import Html, element, joined, note, table

OUTSIDE = "O"


class TokenPanel(Panel):
    """``token_classification``: a text, split at white space, and a line a word to put right."""

    right_hint: ClassVar[str] = "One line a word: the word, a space, its tag."

    def inputs(self) -> list[Any]:
        """The text."""
        import gradio as gr

        return [gr.Textbox(label="Text, split at white space", lines=4, elem_id="input-0")]

    def ask(self, before: Asked | None, *given: Any) -> Asked:
        """Each word with its tag and the tag's probability."""
        words = text_of(given[0]).split()
        (found,) = self.predictor.predict([words])
        row = {self.task.tokens: words}
        lines = "\n".join(
            f"{word} {tag or self._outside()}" for word, tag in zip(words, found["tags"], strict=True)
        )
        return Asked(row, _shown(words, found), lines)

    def right(self) -> Any:
        """Words and tags as lines."""
        import gradio as gr

        return gr.Textbox(
            label="The right tags",
            info=f"{self.right_hint} Tags: {', '.join(self.names)}",
            lines=6,
            elem_id="right",
        )

    def labeled(self, asked: Asked, right: Any) -> dict[str, Any]:
        """The words and a tag for each."""
        words = asked.row[self.task.tokens]
        lines = [line for line in text_of(right, "tag").splitlines() if line.strip()]
        if len(lines) != len(words):
            raise DataError(f"{len(lines)} lines for {len(words)} words", allowed="one line a word")
        tags = [self._tag(line.strip(), word) for line, word in zip(lines, words, strict=True)]
        return {**asked.row, self.task.label: tags}

    def _tag(self, line: str, word: str) -> str:
        tag = line.removeprefix(word).strip()
        if not line.startswith(word) or tag not in self.names:
            raise DataError(
                f"{line!r} is not {word!r} and a tag{did_you_mean(tag, self.names)}",
                allowed=", ".join(self.names),
            )
        return tag

    def _outside(self) -> str:
        """The tag that a word which was not read is shown with, to be put right."""
        return OUTSIDE if OUTSIDE in self.names else self.names[0]


def _shown(words: list[str], found: dict[str, Any]) -> Html:
    spans = [f"{span['type']}: {span['text']}" for span in found.get("spans", [])]
    rows = [
        (word, tag or "–", "–" if share is None else f"{share:.3f}", bar(share or 0.0))
        for word, tag, share in zip(words, found["tags"], found["probabilities"], strict=True)
    ]
    header = ("word", "tag", "probability", element("span", "as a bar", class_="unseen"))
    lost = found["tags"].count(None)
    return joined(
        [
            headline("; ".join(spans) or "none") if "spans" in found else None,
            table("Tag of each word", header, rows, numbers=(2,)),
            note(f"too long: its last {lost:,} words were not read", "warning") if lost else None,
        ]
    )
