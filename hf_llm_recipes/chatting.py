"""A finished run's language model in the terminal: a conversation that is kept, written token by token.

Notable:
- The same tokens as ``predict``: the chat template, the system message and the settings of the run.
- From a pipe each line is a message, and standard output holds the answers alone.
- What does not fit into the model's positions is said, and nothing of the conversation is dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jinja2.exceptions import TemplateError
from transformers.generation.streamers import BaseStreamer

from hf_llm_recipes.errors import DataError, visible
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.tasks import _language, _prompts

COMMANDS = {
    "/new": "forgets the conversation",
    "/system TEXT": "says this to the model first, in a new conversation; without TEXT, what the run says",
    "/quit": "ends, as Ctrl-D does; Ctrl-C stops an answer",
    "/help": "shows this; a message that begins with / is written with //",
}
UNFINISHED = "\ufffd"  # the first bytes of a character whose others are still to come


@dataclass
class Written:
    """What a model wrote.

    Args:
        text: Without special tokens.
        tokens: How many.
        end: ``end``: the model ended it; ``length``: as many tokens as were asked for; ``full``: the model
            has no more positions; ``stopped``: the user stopped it.
    """

    text: str
    tokens: int
    end: Literal["end", "length", "full", "stopped"]


class Speaker:
    """A run's model that answers messages, or goes on with a text.

    Args:
        predictor: Of a run whose task writes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.model, self.tokenizer = predictor.model, predictor.tokenizer
        self.writing = predictor.task.writing(self.tokenizer)

    def asked(self, messages: list[dict[str, str]]) -> list[int]:
        """Returns the ids that an answer to messages follows.

        Raises:
            DataError: the chat template refuses them.
        """
        try:
            return _prompts.prompt_ids(messages, self.tokenizer)
        except TemplateError as error:
            raise DataError(f"the chat template refuses it: {error}") from error

    def begun(self, text: str) -> list[int]:
        """Returns the ids of a text that is gone on with.

        Raises:
            DataError: it has no token.
        """
        system = self.writing.system
        return _language.beginning(text if system is None else f"{system}\n{text}", None, self.tokenizer)

    def write(self, ids: list[int], say: Callable[[str], None]) -> Written:
        """Writes behind ids, and says each piece of text when it is there.

        Args:
            ids: T of them.
            say: Takes pieces of text, which together are ``Written.text``.

        Raises:
            DataError: the model has no position left.
        """
        room = _language.room(len(ids), None, self.model.config)
        wanted = self.writing.settings.get("max_new_tokens") or room
        given = {**self.writing.settings, "max_new_tokens": min(wanted, room)}
        streamer = Pieces(self.tokenizer, say)
        if given.get("num_beams", 1) == 1:  # beams are known only at the end
            given["streamer"] = streamer
        ids_1T = torch.tensor([ids], device=self.model.device)
        try:
            with torch.inference_mode():
                made_1T = self.model.generate(
                    input_ids=ids_1T,
                    attention_mask=torch.ones_like(ids_1T),
                    use_cache=True,
                    pad_token_id=self.tokenizer.pad_token_id,
                    **given,
                )
        except KeyboardInterrupt:
            return Written(streamer.text, len(streamer.ids), "stopped")
        streamer.finish(made_1T[0, len(ids) :].tolist())
        count = len(streamer.ids)
        if count < given["max_new_tokens"] or streamer.ids[-1] in self._ends():
            return Written(streamer.text, count, "end")
        return Written(streamer.text, count, "full" if room <= wanted else "length")

    def _ends(self) -> list[int]:
        ends = self.writing.settings.get("eos_token_id", self.model.generation_config.eos_token_id)
        return ends if isinstance(ends, list) else [ends]


class Pieces(BaseStreamer):
    """What ``generate`` puts out, decoded as a whole after each token, and said piece by piece.

    Args:
        tokenizer: Of the model.
        say: Takes each piece.
    """

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        self.tokenizer, self.say = tokenizer, say
        self.ids: list[int] = []
        self.text = ""
        self._prompt_is_past = False

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token after the other."""
        if not self._prompt_is_past:
            self._prompt_is_past = True
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if not text.endswith(UNFINISHED):
            self._say(text)

    def end(self) -> None:
        """Nothing: see ``finish``."""

    def finish(self, ids: list[int]) -> None:
        """Says what is left of all that was written."""
        self.ids = ids
        self._say(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _say(self, text: str) -> None:
        piece, self.text = text[len(self.text) :], text
        if piece:
            self.say(piece)


@dataclass
class Session:
    """A conversation, and what is done with each line.

    Args:
        speaker: Answers.
        say: Takes pieces of the answers.
        note: Takes sentences about them.
        interactive: Whether Ctrl-C stops an answer only.
        failed: Lines that were not answered.
    """

    speaker: Speaker
    say: Callable[[str], None]
    note: Callable[[str], None]
    interactive: bool = True
    failed: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)
    system: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.system = self.speaker.writing.system

    def take(self, lines: Iterable[str]) -> None:
        """Answers lines, one after the other, until one of them ends it."""
        for line in lines:
            line = line.strip()
            if line == "/quit":
                return
            if line.startswith("/") and not line.startswith("//"):
                self._command(line)
            elif line:
                self._answer(line.removeprefix("/"))

    def _answer(self, text: str) -> None:
        chats = self.speaker.writing.chats
        messages = [*self.messages, {"role": "user", "content": text}]
        opening = [{"role": "system", "content": self.system}] if self.system else []
        try:
            ids = self.speaker.asked([*opening, *messages]) if chats else self.speaker.begun(text)
            made = self.speaker.write(ids, self.say)
        except DataError as error:
            self.failed += 1
            more = "\n/new forgets the conversation before it" if chats and self.messages else ""
            self.note(f"not answered: {error}{more}")
            return
        self.say("\n")
        if made.end == "length":
            self.note(f"(stopped after {made.tokens} tokens: --max-new-tokens allows more)")
        if made.end == "full":
            more = "; /new forgets the conversation" if chats else ""
            self.note(
                f"(cut after {made.tokens} tokens: all {len(ids) + made.tokens} of the model are used{more})"
            )
        if made.end == "stopped" and not self.interactive:
            raise KeyboardInterrupt
        if chats and (made.text.strip() or made.end != "stopped"):
            self.messages = [*messages, {"role": "assistant", "content": made.text.strip()}]

    def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "/help":
            for name, does in COMMANDS.items():
                self.note(f"{name:<14} {does}")
        elif word not in ("/new", "/system"):
            self.failed += 1
            self.note(f"unknown command {word}; allowed: {', '.join(COMMANDS)}; a message may begin with //")
        elif not self.speaker.writing.chats:
            self.failed += 1
            self.note(f"{word} has no effect: this model goes on with each text by itself")
        else:
            self.messages = []
            if word == "/system":
                self.system = rest.strip() or self.speaker.writing.system
                self.note(f"the system says: {self.system}" if self.system else "the system says nothing")


def talk(predictor: Predictor, name: str) -> int:
    """Talks with a run's model over standard input and output; returns how many lines were not answered.

    Args:
        predictor: Of a run whose task writes.
        name: What the greeting calls the run.
    """
    from rich.console import Console

    out, beside = Console(highlight=False), Console(stderr=True, highlight=False, style="dim")
    speaker = Speaker(predictor)
    interactive = sys.stdin.isatty()

    def say(piece: str) -> None:
        out.out(visible(piece), end="", highlight=False)  # no terminal is to obey a model

    def note(sentence: str) -> None:
        beside.out(visible(sentence), highlight=False)

    session = Session(speaker, say, note, interactive)
    if interactive:
        how = "answers" if speaker.writing.chats else "goes on with your text"
        note(f"{name} {how}; /help shows the commands, /quit or Ctrl-D ends")
    session.take(_typed(note) if interactive else sys.stdin)
    return session.failed


def _typed(note: Callable[[str], None]) -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  gives input() a history and an editable line
    while True:
        try:
            yield input("> ")
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\n(/quit or Ctrl-D ends)")
