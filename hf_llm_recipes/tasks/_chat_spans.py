"""A conversation -> token ids, and a label for every token that the assistant says.

Notable:
- The chat template writes the text; its tokens are made once, of the whole, with nothing put around it:
  a template that writes the first token itself gets no second one.
- The assistant's turns are where ``{% generation %}`` stands in the template. In a template without it, a
  turn begins where the conversation before it ends, rendered with the generation prompt, and ends where
  the conversation up to it ends. Both renderings must be beginnings of the whole; nothing is searched.
- The token that ends a turn is learnt, what a template writes behind it (a line break) is not: after the
  end nothing is generated.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks._chat_forms import OPENING, BadRowError, Conversation

IGNORED = -100
LossOn = Literal["assistant", "last_assistant", "all"]
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass
class Encoded:
    """Tokens of a row.

    Args:
        ids: T token ids.
        labels: T ids, −100 where nothing is learnt.
        split_tokens: Tokens that begin in the prompt and end in an answer; they are not learnt.
    """

    ids: list[int]
    labels: list[int]
    split_tokens: int = 0

    @property
    def supervised(self) -> int:
        """Tokens that are learnt; the first of a row has nothing before it to be guessed from."""
        return sum(label != IGNORED for label in self.labels[1:])


class ChatEncoder:
    """Turns conversations into tokens with a tokenizer's chat template.

    Args:
        tokenizer: A fast one, with a chat template.
        loss_on: ``assistant`` (every turn), ``last_assistant``, or ``all`` tokens.

    Raises:
        DataError: no chat template, or a tokenizer that does not tell where its tokens stand.
    """

    def __init__(self, tokenizer: Any, loss_on: LossOn = "assistant") -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template",
                hint="set `task.chat_template: chatml`, or name a Jinja file there; raw text needs none: "
                "`task.format: text`",
            )
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} does not tell where its tokens stand in the text",
                allowed="a fast tokenizer (with a tokenizer.json)",
            )
        self.tokenizer, self.loss_on = tokenizer, loss_on

    @cached_property
    def special_ids(self) -> set[int]:
        """Ids of the tokens that no text makes."""
        added = self.tokenizer.added_tokens_decoder
        return {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}

    @cached_property
    def end_of_turn(self) -> int | None:
        """The special token behind an assistant's words; None where the template writes none.

        Two answers that differ in their first letter show where the words stand.
        """
        texts = []
        for answer in ("a", "b"):
            asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
            try:
                texts.append(self.render(Conversation(asked)))
            except BadRowError:
                return self.tokenizer.eos_token_id
        at = len(common_beginning(*texts))
        ids, offsets = self._tokens(texts[0])
        behind = (
            i for i, (start, _) in zip(ids, offsets, strict=True) if start > at and i in self.special_ids
        )
        return next(behind, None)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ends = (self.end_of_turn, self.tokenizer.eos_token_id)
        return list(dict.fromkeys(i for i in ends if i is not None))

    def has_markers(self) -> bool:
        """Whether the template itself marks what the assistant says."""
        return bool(MARKER.search(self.tokenizer.get_chat_template()))

    def render(self, given: Conversation, *, until: int | None = None, ask: bool = False) -> str:
        """Returns the text of the messages before ``until``, with the generation prompt where asked.

        Raises:
            BadRowError: the template refuses them.
        """
        try:
            return self.tokenizer.apply_chat_template(
                given.messages[:until], tools=given.tools, tokenize=False, add_generation_prompt=ask
            )
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            raise BadRowError(f"the chat template refuses it: {error}") from error

    def prompt(self, given: Conversation) -> list[int]:
        """Returns the tokens that an answer is generated from."""
        return self._tokens(self.render(given, ask=True))[0]

    def encode(self, given: Conversation) -> Encoded:
        """Returns the tokens of a whole conversation with their labels.

        Raises:
            BadRowError: the template refuses it, or does not tell where the assistant's turns are.
        """
        whole = self.render(given)
        ids, offsets = self._tokens(whole)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise BadRowError(
                f"it begins with {self.tokenizer.bos_token!r} twice: the template writes it already"
            )
        if self.loss_on == "all":
            return Encoded(ids, list(ids))
        labels, split = [IGNORED] * len(ids), 0
        for start, end in self._turns(given, whole, ids, offsets):
            labels[start:end] = ids[start:end]
            split += start > 0 and start < len(ids) and offsets[start - 1][1] > offsets[start][0]
        return Encoded(ids, labels, split)

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return made["input_ids"], made["offset_mapping"]

    def _turns(
        self, given: Conversation, whole: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """The tokens [start, end) of each of the assistant's turns that is learnt."""
        places = [i for i, message in enumerate(given.messages) if message["role"] == "assistant"]
        wanted = [i for i in places if i >= given.first]
        if self.loss_on == "last_assistant":
            wanted = wanted[-1:]
        if self.has_markers():
            marked = self._marked(given)
            if len(marked) != len(places):
                raise BadRowError(f"the template marks {len(marked)} of the assistant's {len(places)} turns")
            spans = [self._with_end(marked[places.index(i)], given, i, whole, ids, offsets) for i in wanted]
        else:
            spans = [self._by_beginnings(given, i, whole, ids, offsets) for i in wanted]
        return spans

    def _marked(self, given: Conversation) -> list[tuple[int, int]]:
        """Characters between the template's markers."""
        _, found = render_jinja_template(
            conversations=[given.messages],
            tools=given.tools,
            chat_template=self.tokenizer.get_chat_template(tools=given.tools),
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [tuple(span) for span in found[0]]

    def _with_end(
        self,
        span: tuple[int, int],
        given: Conversation,
        place: int,
        whole: str,
        ids: list[int],
        offsets: list[tuple[int, int]],
    ) -> tuple[int, int]:
        """The tokens of a marked turn, and its end token where it stands behind the mark."""
        start, end = _first_token(offsets, span[0]), _first_token(offsets, span[1])
        turn = common_beginning(self.render(given, until=place + 1), whole)
        behind = end < len(ids) and offsets[end][0] == span[1] and offsets[end][1] <= len(turn)
        return start, end + 1 if behind and ids[end] in self.stop_ids else end

    def _by_beginnings(
        self, given: Conversation, place: int, whole: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[int, int]:
        """The tokens of a turn, between two renderings that begin the whole."""
        before = self.render(given, until=place, ask=True)
        if not whole.startswith(before):
            raise self._no_beginning(place, "before it")
        turn = self.render(given, until=place + 1)
        shared = common_beginning(turn, whole)
        start, end = _first_token(offsets, len(before)), _first_token(offsets, len(shared))
        while end > start and offsets[end - 1][1] > len(shared):  # a token that the next turn ends
            end -= 1
        ends = [at for at in range(start, end) if ids[at] == self.end_of_turn]
        if ends:
            return start, ends[-1] + 1
        if shared != turn:  # past the end token a template may close the conversation; before it, not
            raise self._no_beginning(place, "up to it")
        special = next((at for at in reversed(range(start, end)) if ids[at] in self.special_ids), None)
        if special is not None and not whole[offsets[special][1] : len(shared)].strip():
            return start, special + 1
        return start, end

    def _no_beginning(self, place: int, which: str) -> BadRowError:
        return BadRowError(
            f"the chat template writes the conversation {which} (message {place}) in another way once more "
            "follows, so what the assistant said there cannot be told apart; set `task.loss_on: "
            "last_assistant`, or `task.chat_template` to chatml or to a file with {% generation %} markers"
        )


def common_beginning(first: str, second: str) -> str:
    """Returns the longest text that both begin with."""
    if second.startswith(first):
        return first
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return first[: sum(1 for _ in pairs)]


def _first_token(offsets: list[tuple[int, int]], at: int) -> int:
    """Number of the first token that begins at a character or behind it."""
    return bisect_left(offsets, (at, -1))


def encode_text(text: str, tokenizer: Any) -> Encoded:
    """Returns the tokens of a plain text, all of them learnt, with the end token behind it.

    The tokenizer puts its first token before it unless the text brings it along.
    """
    brings = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids = list(tokenizer(text, add_special_tokens=not brings, verbose=False)["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return Encoded(ids, list(ids))


def shorten_by_turns(
    given: Conversation, encoder: ChatEncoder, length: int
) -> tuple[Conversation, Encoded] | None:
    """Returns a conversation without its oldest exchanges, so that it fits; None where the last does not.

    What the system says stays.
    """
    opening = [message for message in given.messages[:1] if message["role"] in OPENING]
    asked = [i for i, message in enumerate(given.messages) if message["role"] == "user"]
    for at in asked[1:]:
        first = max(0, given.first - at) + len(opening) if given.first else 0
        less = Conversation([*opening, *given.messages[at:]], given.tools, first)
        made = encoder.encode(less)
        if len(made.ids) <= length:
            return less, made
    return None


def set_template(tokenizer: Any, wanted: str | None) -> list[str]:
    """Gives a tokenizer the chat template that a recipe names; returns sentences for the log.

    Args:
        tokenizer: Changed in place: it is saved with the model.
        wanted: ``chatml``, a Jinja file, or None for the tokenizer's own.

    Raises:
        DataError: no such file, or special tokens that the tokenizer lacks.
    """
    if wanted is None:
        return []
    if wanted == "chatml":
        _check_chatml(tokenizer)
        tokenizer.chat_template = CHATML
    else:
        tokenizer.chat_template = _read(Path(wanted))
    end = ChatEncoder(tokenizer).end_of_turn
    if end is None or end == tokenizer.eos_token_id:
        return [f"chat template: {wanted}"]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)  # whoever generates must stop there
    return [f"chat template: {wanted}; {tokenizer.eos_token!r} now ends a text"]


def _check_chatml(tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in CHATML_TOKENS if token not in vocabulary]
    if missing:
        raise DataError(
            f"the tokenizer lacks {', '.join(missing)}, which the chatml template is made of",
            hint="name a Jinja file of tokens it has, e.g. of the model's own chat version",
        )
    tokenizer.add_tokens(list(CHATML_TOKENS), special_tokens=True)  # known, but perhaps as plain text


def _read(path: Path) -> str:
    if not path.is_file():
        raise DataError(
            f"chat_template is {str(path)!r}, which is no file",
            allowed="chatml, or a file with a Jinja template",
        )
    return path.read_text(encoding="utf-8")
