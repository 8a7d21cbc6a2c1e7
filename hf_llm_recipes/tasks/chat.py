"""Chat and instruction tuning: conversations of any usual form, learnt where the assistant speaks.

Notable:
- The form of the data is told by its columns; the text is the tokenizer's chat template's.
- Only the assistant's tokens are learnt, the one that ends a turn among them (``_chat_spans``).
- Nothing is cut or left out without a count: rows, tokens, and tokens that would have been learnt.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoModelForCausalLM

from hf_llm_recipes import language_evaluation
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.models import packed
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _chat_forms, _chat_scoring, _language
from hf_llm_recipes.tasks._chat_forms import BadRowError
from hf_llm_recipes.tasks._chat_spans import (
    IGNORED,
    ChatEncoder,
    Encoded,
    LossOn,
    encode_text,
    set_template,
    shorten_by_turns,
)
from hf_llm_recipes.tasks._language_task import LanguageTask, Writing
from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator
from hf_llm_recipes.tasks._rows import bar_if_long, column_names, input_length
from hf_llm_recipes.tasks.base import Judged, Prepared, splits
from hf_llm_recipes.tuning._packed_check import check_packed

GENERATION = {"max_new_tokens": 128, "do_sample": False}
PACKING_ATTENTION = (packed.NAME, "flash_attention_2", "flash_attention_3")  # read position_ids
ROWS_A_PROCESS = 20_000  # fewer are not worth starting another process
NAMED_ROWS = 8


@TASKS.register
@dataclass(kw_only=True)
class Chat(LanguageTask):
    """Conversations -> an assistant that answers like the one in them.

    Args:
        format: Of the rows; ``auto`` tells it by their columns. ``messages`` (OpenAI), ``sharegpt``,
            ``prompt_completion``, ``alpaca``, or ``text`` (plain text: every token is learnt).
        loss_on: The assistant's tokens in every turn, in the last turn only, or all tokens.
        chat_template: ``chatml`` or a Jinja file; None takes the tokenizer's own.
        system: What the system says in conversations that open without it.
        max_length: Tokens a row may have; None takes what the model can.
        truncation: Of longer rows. ``drop`` leaves them out, ``cut_left_turns`` takes their oldest
            exchanges away, ``cut`` their end, ``refuse`` stops. Plain text is cut into rows whatever
            stands here, and nothing of it is lost.
        bad_rows: Rows that cannot be learnt from (empty, roles out of order, no answer): ``refuse``
            stops and names them, ``drop`` counts them.
        packing: Rows laid end to end without padding; ``auto`` where the model keeps them apart.
        generation: Of transformers' ``GenerationConfig``, for ``examples`` and ``predict``; greedy, and
            128 new tokens, unless given.
        examples: Questions that are answered and shown after the run.

    Raises:
        ValueError: fields that do not go together.
    """

    methods: ClassVar[tuple[str, ...] | None] = ("supervised", "distillation")
    writes: ClassVar[bool] = True

    format: Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text"] = "auto"
    loss_on: LossOn = "assistant"
    chat_template: str | None = None
    system: str | None = None
    max_length: int | None = None
    truncation: Literal["drop", "cut_left_turns", "cut", "refuse"] = "drop"
    bad_rows: Literal["refuse", "drop"] = "refuse"
    packing: bool | Literal["auto"] = "auto"
    generation: dict[str, Any] | None = None
    examples: list[str] | None = None

    _packs: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length is {self.max_length}; allowed: 3 or more tokens")
        if self.format == "text":
            self._check_plain("format: text")
        if self.system is not None and not self.system.strip():
            raise ValueError("system is empty; leave it out")
        _language.check_generation(self.generation)

    def _check_plain(self, why: str) -> None:
        for key, given in (("chat_template", self.chat_template), ("system", self.system)):
            if given is not None:
                raise ValueError(f"{key} has no effect on plain text ({why})")
        if self.loss_on == "last_assistant" or self.truncation != "drop":
            raise ValueError(f"loss_on and truncation have no effect on plain text ({why})")

    @property
    def read_as(self) -> dict[str, Any]:
        """``format: text`` where the data turned out to be plain text."""
        return {"format": "text"} if self.format == "text" else {}

    @property
    def input_columns(self) -> list[str]:
        """Unknown before the data is seen."""
        return []

    def fit_model(self, source: Any) -> Any:
        """Packed rows want attention that keeps them apart.

        Raises:
            ValueError: ``packing: true`` with attention, or a model, that cannot.
        """
        asked = source.attn_implementation
        if self.packing is False or (self.packing == "auto" and asked not in (None, *PACKING_ATTENTION)):
            return source
        if asked is not None and asked not in PACKING_ATTENTION:
            raise ValueError(
                f"packing is true, but model.attn_implementation is {asked}, under which packed rows see "
                f"each other; allowed: {', '.join(PACKING_ATTENTION)}"
            )
        name, fits = ("", True) if asked else _takes_attention(source)
        if not fits:
            if self.packing == "auto":
                return source
            raise ValueError(f"packing is true, but {name} takes no attention of another's; set it to false")
        self._packs = True
        fitted = copy.copy(source)
        fitted.attn_implementation = asked or packed.NAME
        return fitted

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns tokens and labels of every split; see ``Task.prepare``."""
        length = input_length(self.max_length, tokenizer, model_config)
        if self._form(loaded.train, "train split", answered=True) == "text":
            self._check_plain("the data has a column `text`, and no prompts")
            self.format = "text"  # that the model, too, is asked with plain text
        notes = set_template(tokenizer, self.chat_template)
        made: dict[str, Any] = {"eval": None}
        findings: dict[str, Any] = {}
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            made[split], findings[split], said = self._features(rows, tokenizer, length, where)
            _check_vocabulary(made[split], model_config, where)
            notes += said
        return Prepared(
            **made,
            config={},
            collator=self.collator(tokenizer),
            findings=findings,
            notes=list(dict.fromkeys(notes)),
        )

    def check_model(self, model: Any, features: Any, processor: Any) -> list[str]:
        """Looks whether the model keeps packed rows apart; tells it which token ends an answer."""
        said = _stop_at_end_of_turn(model, processor) if processor.chat_template else []
        if not self._packs:
            return [*said, "rows are padded to the longest of their batch"]
        try:
            difference = check_packed(model, [features[i] for i in range(min(8, len(features)))])
        except RunError as error:
            if self.packing is True:
                raise
            self._packs = False
            return [*said, f"{error.what}: rows are padded"]
        return [*said, f"packed rows do not see each other (their logits move by {difference:.1g} sd)"]

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns features of new rows; unlabeled ones are prompts that wait for an answer."""
        length = input_length(self.max_length, tokenizer, model_config)
        if labeled:
            return self._features(rows, tokenizer, length, "data")[:2]
        prompts = self._prompts(rows, tokenizer)
        return Dataset.from_dict({"input_ids": prompts}), {"rows": len(prompts)}

    def collator(self, tokenizer: Any) -> Any:
        """Rows -> one row of all tokens end to end, or padded rows."""
        return ChatCollator(self, PaddedCollator(pad_token_id=tokenizer.pad_token_id), PackedCollator())

    def loss(self, label_smoothing: float) -> Any:
        """The language trainer's own."""
        return None

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of bare questions, or of whole conversations as lists of messages.

        Raises:
            DataError: an input is neither, or they are mixed.
        """
        kinds = {type(given) for given in inputs}
        if kinds == {list}:
            return Dataset.from_list([{"messages": given} for given in inputs])
        odd = next((i for i, given in enumerate(inputs) if not isinstance(given, str)), None)
        if odd is not None:
            raise DataError(
                f"{inputs[odd]!r} is no text",
                where=f"row {odd}",
                allowed="only texts, only lists of messages, or only dicts with the task's columns",
            )
        return Dataset.from_dict({"text" if self.format == "text" else "prompt": inputs})

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """The loss and perplexity of the supervised tokens, with intervals over conversations."""
        losses, tokens = _chat_scoring.row_losses(model, features, processor.pad_token_id, packs=self._packs)
        learnt = [[i for i in labels[1:] if i != IGNORED] for labels in features["labels"]]
        answers = processor.batch_decode(learnt, skip_special_tokens=True)
        bytes_, words = language_evaluation.text_sizes(answers)
        metrics = language_evaluation.language(losses, tokens, bytes_D=bytes_, words_D=words)
        columns = {"row": features["row"][:], "answer": answers}
        return Judged(metrics, {**columns, "loss": losses.tolist(), "tokens": tokens.tolist()})

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The logits of a few rows."""
        return _chat_scoring.probe_rows(model, features, processor.pad_token_id)

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"generated"}`` a row: what the assistant says next, or how a plain text goes on."""
        if self._form(rows, "data", answered=False) == "text" or not processor.chat_template:
            column, given = "text" if "text" in rows.column_names else "prompt", self._settings()
            made = _language.continuations(model, rows[column][:], processor, given)
        else:
            prompts = self._prompts(rows, processor)
            given = _language.with_room(self.writing(processor).settings, prompts, model.config)
            made = _language.written(model, prompts, processor, given)
        return [{"generated": one.strip()} for one in made]

    def writing(self, processor: Any) -> Writing:
        """Answers messages, until the template's end of a turn; goes on with text where it learnt text."""
        if self.format == "text" or not processor.chat_template:
            return Writing(self._settings(), chats=False)
        ends = {"eos_token_id": ChatEncoder(processor).stop_ids}
        return Writing({**ends, **self._settings()}, chats=True, system=self.system)

    def _settings(self) -> dict[str, Any]:
        return {**GENERATION, **(self.generation or {})}

    def _form(self, rows: Any, where: str, *, answered: bool) -> str:
        if isinstance(rows, IterableDataset):
            raise DataError(
                "a stream is not taken: its rows cannot be counted",
                where=where,
                hint="set `data.streaming: false`",
            )
        return _chat_forms.find_form(column_names(rows), rows, self.format, where, answered=answered)

    def _prompts(self, rows: Any, tokenizer: Any) -> list[list[int]]:
        form, encoder = self._form(rows, "data", answered=False), ChatEncoder(tokenizer)
        made = []
        for place, row in enumerate(rows):
            try:
                made.append(encoder.prompt(_chat_forms.prompt(row, form, self.system)))
            except BadRowError as error:
                raise DataError(str(error), where=f"row {place}") from error
        return made

    def _features(
        self, rows: Any, tokenizer: Any, length: int, where: str
    ) -> tuple[Dataset, dict[str, Any], list[str]]:
        """Features, counts and sentences of one split."""
        form = self._form(rows, where, answered=True)
        if form == "text":
            read: Callable[[dict], list[Encoded]] = TextReader(tokenizer, length)
        else:
            encoder = ChatEncoder(tokenizer, self.loss_on)
            encoder.special_ids, encoder.end_of_turn  # noqa: B018  worked out once, before processes part
            read = ChatReader(encoder, form, self.system, length, self.truncation)
        processes = min(os.cpu_count() or 1, len(rows) // ROWS_A_PROCESS)
        with bar_if_long(len(rows)):
            made = rows.map(
                RowReader(read),
                with_indices=True,
                batched=True,
                remove_columns=rows.column_names,
                num_proc=processes if processes > 1 else None,
                load_from_cache_file=False,
                desc=f"tokenizing the {where}",
            )
        return self._counted(made, form, len(rows), length, where, _how(form, tokenizer))

    def _counted(
        self, made: Dataset, form: str, rows: int, length: int, where: str, notes: list[str]
    ) -> tuple[Dataset, dict[str, Any], list[str]]:
        reasons = made["_bad"][:]
        bad = {made["row"][i]: reason for i, reason in enumerate(reasons) if reason}
        too_long = np.flatnonzero(np.asarray(made["_long"][:], dtype=bool))
        if bad and self.bad_rows == "refuse":
            raise _refused(bad, rows, where)
        if len(too_long) and self.truncation == "refuse":
            raise _too_long(np.asarray(made["row"])[too_long], rows, length, where)
        lengths = np.asarray([len(ids) for ids in made["input_ids"]])
        kept = made.select(np.flatnonzero(lengths))
        if not len(kept):
            first = next(iter(bad.values()), f"all are longer than {length} tokens")
            raise DataError(f"no row of {rows:,} can be learnt from: {first}", where=where)
        before, after = np.asarray(made["_tokens"]), np.asarray(made["_kept"])
        found = {
            "form": form,
            "rows": rows,
            "rows_used": len(kept),
            "rows_bad": len(bad),
            "rows_too_long": len(too_long),
            "tokens": int(lengths.sum()),
            "supervised_tokens": int(after[:, 1].sum()),
            "tokens_lost": int((before[:, 0] - after[:, 0]).sum()),
            "supervised_tokens_lost": int((before[:, 1] - after[:, 1]).sum()),
            "split_tokens": int(np.sum(made["_split"])),
            "tokens_per_row_median": float(np.median(lengths[lengths > 0])),
            "tokens_per_row_max": int(lengths.max()),
        }
        said = _sentences(found, bad, self.truncation, length, where)
        return kept.select_columns(["input_ids", "labels", "row"]), found, [*notes, *said]


@dataclass
class ChatCollator:
    """Rows -> a batch, packed or padded as the task has found out that the model takes it.

    Args:
        task: Knows it, once the model is there.
        padded: For models that do not keep packed rows apart.
        packed: For the others.
    """

    task: Chat
    padded: PaddedCollator
    packed: PackedCollator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the batch."""
        return (self.packed if self.task._packs else self.padded)(rows)


@dataclass
class RowReader:
    """A batch of raw rows -> features, and of each row what was lost and why.

    Args:
        read: A row -> its pieces; raises ``BadRowError``.
    """

    read: Any

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Returns the columns; a row that cannot be used has no ``input_ids``."""
        made: dict[str, list] = {
            key: [] for key in ("input_ids", "labels", "row", "_bad", "_long", "_split", "_tokens", "_kept")
        }
        for at, index in enumerate(indices):
            try:
                pieces, reason = self.read({key: column[at] for key, column in batch.items()}), ""
            except BadRowError as error:
                pieces, reason = [Piece(Encoded([], []))], str(error)
            for piece in pieces:
                values = (piece.used.ids, piece.used.labels, index, reason, piece.is_long)
                sizes = [len(piece.used.ids), piece.used.supervised]
                values += (piece.used.split_tokens, piece.whole or sizes, sizes)
                for key, value in zip(made, values, strict=True):
                    made[key].append(value)
        return made


@dataclass
class Piece:
    """What is left of a row.

    Args:
        used: Its tokens; none where it is left out.
        is_long: Whether it was longer than allowed.
        whole: Tokens and supervised tokens before anything was cut; None where nothing was.
    """

    used: Encoded
    is_long: bool = False
    whole: list[int] | None = None


@dataclass
class TextReader:
    """Plain text -> pieces of at most ``length`` tokens, the last with the end token."""

    tokenizer: Any
    length: int

    def __call__(self, row: dict[str, Any]) -> list[Piece]:
        """Returns the pieces."""
        whole = encode_text(_chat_forms.plain_text(row), self.tokenizer).ids
        pieces = [whole[at : at + self.length] for at in range(0, len(whole), self.length)]
        if len(pieces) > 1 and len(pieces[-1]) == 1:  # nothing before it to be guessed from
            pieces[-1].insert(0, pieces[-2].pop())
        return [Piece(Encoded(ids, list(ids))) for ids in pieces]


@dataclass
class ChatReader:
    """A conversation -> its tokens, cut as the recipe says where it is too long."""

    encoder: ChatEncoder
    form: str
    system: str | None
    length: int
    truncation: str

    def __call__(self, row: dict[str, Any]) -> list[Piece]:
        """Returns one piece."""
        given = _chat_forms.conversation(row, self.form, self.system)
        whole = self.encoder.encode(given)
        if not whole.supervised:
            raise BadRowError("no token of it would be learnt: it has no answer of the assistant")
        if len(whole.ids) <= self.length:
            return [Piece(whole)]
        sizes = [len(whole.ids), whole.supervised]
        return [Piece(self._shorter(given, whole), is_long=True, whole=sizes)]

    def _shorter(self, given: _chat_forms.Conversation, whole: Encoded) -> Encoded:
        if self.truncation == "cut_left_turns":
            less = shorten_by_turns(given, self.encoder, self.length)
            return less[1] if less is not None and less[1].supervised else Encoded([], [])
        if self.truncation == "cut":
            less = Encoded(whole.ids[: self.length], whole.labels[: self.length], whole.split_tokens)
            if not less.supervised:
                raise BadRowError(
                    f"no token of it would be learnt: the first {self.length} of its {len(whole.ids)} tokens "
                    "hold no answer"
                )
            return less
        return Encoded([], [])


def _takes_attention(source: Any) -> tuple[str, bool]:
    """The name of a source's model class, and whether it takes an attention function by its name."""
    if source.architecture is not None:
        config = source.fresh_config()
    else:
        try:
            config = AutoConfig.from_pretrained(source.path, **source.hub_arguments())
        except (OSError, ValueError):
            return source.label, False  # loading it says what is wrong
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return source.label, False
    cls = AutoModelForCausalLM._model_mapping[type(config)]
    return cls.__name__, bool(getattr(cls, "_supports_attention_backend", False))


def _check_vocabulary(features: Dataset, model_config: Any, where: str) -> None:
    """Refuses ids that the model has no embedding for: on a GPU they would only crash."""
    size = model_config.get_text_config().vocab_size
    largest = max(max(ids) for ids in features["input_ids"])
    if largest >= size:
        raise DataError(
            f"the tokenizer makes the id {largest}, but the model has embeddings for {size} tokens only",
            where=where,
            hint="take the tokenizer of this very model, or one whose tokens it has",
        )


def _stop_at_end_of_turn(model: Any, tokenizer: Any) -> list[str]:
    """Writes the tokens that end an answer into the model's generation settings, which are saved."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = getattr(base, "generation_config", None)
    ends = ChatEncoder(tokenizer).stop_ids
    if settings is None or not ends:
        return [] if ends else ["the chat template ends no turn with a token: answers will run on"]
    known = settings.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    settings.eos_token_id = list(dict.fromkeys([*ends, *known]))
    return [f"an answer ends with {tokenizer.convert_ids_to_tokens(ends[0])}"]


def _how(form: str, tokenizer: Any) -> list[str]:
    if form == "text":
        return ["plain text: every token is learnt"]
    marked = "its markers" if ChatEncoder(tokenizer).has_markers() else "its renderings of what came before"
    return [f"form of the rows: {form}; the chat template shows the assistant's turns by {marked}"]


def _refused(bad: dict[int, str], rows: int, where: str) -> DataError:
    """An error that names every row that cannot be used, and the reason of the first."""
    first, reason = next(iter(bad.items()))
    kinds = Counter(bad.values())
    return DataError(
        reason
        if len(bad) == 1
        else f"{reason}; {len(bad):,} of {rows:,} rows cannot be used: {_named(list(bad))}"
        + (f" ({len(kinds)} reasons)" if len(kinds) > 1 else ""),
        where=f"{where}, row {first}",
        hint="mend or take out the rows (counted from 0), or set `task.bad_rows: drop`",
    )


def _too_long(places: Any, rows: int, length: int, where: str) -> DataError:
    return DataError(
        f"{len(places):,} of {rows:,} rows are longer than {length} tokens: {_named(places.tolist())}",
        where=f"{where}, row {places[0]}",
        hint="raise `task.max_length`, or set `task.truncation` to drop, cut_left_turns or cut",
    )


def _named(places: list[int]) -> str:
    more = len(places) - NAMED_ROWS
    return ", ".join(map(str, places[:NAMED_ROWS])) + (f", … ({more:,} more)" if more > 0 else "")


def _sentences(
    found: dict[str, Any], bad: dict[int, str], truncation: str, length: int, where: str
) -> list[str]:
    said, rows = [], found["rows"]
    if bad:
        reasons = Counter(bad.values()).most_common(3)
        worst = "; ".join(f"{count:,}: {reason}" for reason, count in reasons)
        said.append(f"{where}: {len(bad):,} of {rows:,} rows cannot be learnt from; left out ({worst})")
    if found["rows_too_long"]:
        ways = {"cut_left_turns": "lose their oldest turns", "cut": "are cut at their end"}
        lost, learnt = found["tokens_lost"], found["supervised_tokens_lost"]
        what = ways.get(truncation, "are left out")
        share = 100 * found["rows_too_long"] / rows
        said.append(
            f"{where}: {found['rows_too_long']:,} of {rows:,} rows ({share:.1f} %) are longer than {length} "
            f"tokens and {what}: {lost:,} of {found['tokens'] + lost:,} tokens, "
            f"{learnt:,} of {found['supervised_tokens'] + learnt:,} supervised ones, are not seen"
        )
    if found["split_tokens"]:
        count = found["split_tokens"]
        said.append(f"{where}: {count:,} answers begin within a token of the prompt, which is not learnt")
    return said
