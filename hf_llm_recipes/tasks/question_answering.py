"""Question answering: the words of a context that answer a question, or that none do (as in SQuAD).

Notable:
- A row becomes as many windows as its context needs; it is judged by the best span of them all.
- The loss is a softmax over the tokens of a window, padding left out: the stock heads' own loss counts
  padding in, so that it hangs on how rows are batched.
- ``labels`` are (start, end, tokens of the window). A batch is padded on the right, on whichever side the
  tokenizer pads, so that places stay.

Shapes: B windows of a batch, T tokens, N rows.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

from hf_llm_recipes import answer_evaluation
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.tasks import _windows
from hf_llm_recipes.tasks._rows import bar_if_long, check_columns, column_names, input_length
from hf_llm_recipes.tasks._windows import Answer, Candidate, Windows
from hf_llm_recipes.tasks.base import Judged, Prepared, Task, splits

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LISTS = ("starts", "ends")  # of a window: characters of its context's tokens
NUMBERS = ("row", "context_at", "nothing_at")
QUESTION_LENGTH, STRIDE = 64, 128  # tokens, where windows have room for them
WINDOWS_AT_ONCE = 32
CHINESE_SHARE = 0.3  # of the letters of the answers, from which on they are no words parted by spaces


@TASKS.register
@dataclass(kw_only=True)
class QuestionAnswering(Task):
    """The span of a context that answers a question.

    Args:
        question: Column of the question.
        context: Column of the text that holds the answer.
        answers_column: Of SQuAD's shape, ``{text: [...], answer_start: [...]}``; where the data has none, the
            next two are read. The first answer of a row is learnt; any is right.
        answer_column: Of one answer's text.
        answer_start_column: Of its first character's place in the context, counted from 0.
        unanswerable: Whether rows may have no answer, and the model may say so (SQuAD 2.0).
        no_answer_threshold: By how much the score of "no answer" must beat the best span's.
        bad_rows: Rows whose answer does not stand where ``answer_start`` says: ``refuse`` stops with the
            first, ``drop`` leaves them out and counts them.
        scoring: ``squad`` (words, without articles and punctuation), or ``cmrc`` (Chinese characters).
        max_length: Tokens of a window, question and special ones included. None takes what the model can.
        doc_stride: Tokens of the context that neighbouring windows share. None: 128, or a third of the room.
        max_question_length: Tokens of a question. None: 64, or half a window.
        max_answer_length: Tokens of an answer that is given.
        n_best: Spans that share the probability.
        examples: Rows with question and context that are answered and shown after the run.

    Raises:
        ValueError: a value out of range.
    """

    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    peft_task_type: ClassVar[str | None] = None  # the model of QUESTION_ANS (peft 0.21) drops token_type_ids
    pipeline_tag: ClassVar[str] = "question-answering"
    problem: ClassVar[str] = "answers"
    places: ClassVar[bool] = True
    judges_model: ClassVar[bool] = True
    label_names: ClassVar[list[str] | None] = ["labels"]
    methods: ClassVar[tuple[str, ...] | None] = ("supervised",)

    question: str = "question"
    context: str = "context"
    answers_column: str = "answers"
    answer_column: str = "answer"
    answer_start_column: str = "answer_start"
    unanswerable: bool = False
    no_answer_threshold: float = 0.0
    bad_rows: Literal["refuse", "drop"] = "refuse"
    scoring: Literal["squad", "cmrc"] = "squad"
    max_length: int | None = None
    doc_stride: int | None = None
    max_question_length: int | None = None
    max_answer_length: int = 30
    n_best: int = 20
    examples: list[dict[str, str]] | None = None

    def __post_init__(self) -> None:
        least = {"max_length": 8, "max_question_length": 1, "max_answer_length": 1, "n_best": 1}
        for name, lowest in {**least, "doc_stride": 0}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}; allowed: {lowest} or more")
        if self.no_answer_threshold and not self.unanswerable:
            raise ValueError("no_answer_threshold has no effect without `unanswerable: true`")

    @property
    def stratify_by(self) -> None:
        """A row has no one class."""
        return None

    @property
    def input_columns(self) -> list[str]:
        """Context and question."""
        return [self.context, self.question]

    @property
    def item_problem(self) -> str:
        """Spans: nothing that an unlabeled row's class could be."""
        return "spans"

    def prepare(self, loaded: Any, tokenizer: Any, model_config: Any) -> Prepared:
        """Returns windows of every split; see ``Task.prepare``."""
        made: dict[str, Any] = {"eval": None}
        findings: dict[str, Any] = {}
        notes: list[str] = []
        for split in splits(loaded):
            rows, where = getattr(loaded, split), f"{split} split"
            made[split], findings[split] = self._features(
                rows, tokenizer, model_config, where, labeled=True, learnt=split != "test"
            )
            notes += _sentences(split, findings[split])
        return Prepared(
            **made,
            config={"num_labels": 2},
            collator=self.collator(tokenizer),
            findings=findings,
            notes=notes + self._about_answers(findings["train"]),
        )

    def encode(self, rows: Any, tokenizer: Any, model_config: Any, *, labeled: bool) -> tuple[Any, dict]:
        """Returns windows of new rows."""
        return self._features(rows, tokenizer, model_config, "data", labeled=labeled, learnt=False)

    def collator(self, tokenizer: Any) -> WindowCollator:
        """Windows -> a padded batch."""
        return WindowCollator(tokenizer)

    def loss(self, label_smoothing: float) -> Any:
        """The mean over the windows of an optimizer step, of start and end.

        Raises:
            ValueError: label smoothing: neighbours of a place are not like the others.
        """
        if label_smoothing:
            raise ValueError(f"label_smoothing_factor is {label_smoothing}; allowed for this task: 0")
        return span_loss

    def quick_metrics(self, prediction: Any) -> dict[str, float]:
        """None but the loss, which the Trainer has."""
        return {}

    def judge(self, logits: Any, labels: Any, model_config: Any) -> dict[str, Any]:
        """Not from logits of windows alone: see ``judge_model``."""
        raise TypeError("question_answering judges the model itself")

    def decode(self, logits: Any, model_config: Any) -> list[dict[str, Any]]:
        """Not from logits of windows alone: see ``answer``."""
        raise TypeError("question_answering answers by the model itself")

    def write_predictions(self, path: Path, rows: Any, logits: Any, labels: Any, model_config: Any) -> None:
        """Not from logits of windows alone: see ``judge_model``."""
        raise TypeError("question_answering judges the model itself")

    def judge_model(self, model: Any, features: Any, rows: Any, processor: Any) -> Judged:
        """Exact match and F1 over rows; see ``answer_evaluation.answering``."""
        found = self._answered(model, features, rows, processor)
        columns = self._answer_columns(rows, "data")
        numbers = sorted(found)
        asked = rows.select(numbers)
        golds_N = [
            [text for text, _ in _windows.read_answers(row, columns, f"row {number}")]
            for number, row in zip(numbers, asked, strict=True)
        ]
        texts_N = [found[number]["answer"] for number in numbers]
        pairs = list(zip(texts_N, golds_N, strict=True))
        told = {"id": asked["id"][:]} if "id" in column_names(rows) else {}
        return Judged(
            answer_evaluation.answering(texts_N, golds_N, scoring=self.scoring),
            {
                "row": numbers,
                **told,
                "question": asked[self.question][:],
                "answer": texts_N,
                "score": [found[number]["score"] for number in numbers],
                "start": [found[number]["start"] for number in numbers],
                "gold": golds_N,
                "exact_match": [answer_evaluation.exact_match(*one, self.scoring) for one in pairs],
                "answer_f1": [answer_evaluation.f1(*one, self.scoring) for one in pairs],
            },
        )

    def probe(self, model: Any, features: Any, processor: Any) -> np.ndarray:
        """The starts' logits and the ends' of a few windows, (2 · windows, T); short ones filled."""
        found = [row for pair in _window_logits(model, features, processor) for row in pair]
        width = max(map(len, found))
        return np.stack([np.pad(row, (0, width - len(row)), constant_values=row.min()) for row in found])

    def answer_rows(self, rows: Any) -> list[list[Answer]]:
        """Returns the answers of labeled rows.

        Raises:
            DataError: a column is missing, or a row of another shape.
        """
        columns = self._answer_columns(rows, "data")
        few = rows.select_columns(columns)
        return [_windows.read_answers(row, columns, f"row {number}") for number, row in enumerate(few)]

    def answer(self, model: Any, rows: Any, processor: Any) -> list[dict[str, Any]]:
        """``{"answer", "score", "start"}`` a row: text, probability, first character in the context.

        No answer is an empty text and a place of None.
        """
        features, _ = self.encode(rows, processor, model.config, labeled=False)
        found = self._answered(model, features, rows, processor)
        return [found[number] for number in range(len(rows))]

    def read_inputs(self, inputs: list[Any]) -> Dataset:
        """Returns rows of (question, context) pairs.

        Raises:
            DataError: an input is no such pair.
        """
        for place, given in enumerate(inputs):
            if not (isinstance(given, (list, tuple)) and len(given) == 2):
                raise DataError(
                    f"{str(given)[:60]!r} is no question with its context",
                    where=f"row {place}",
                    allowed="pairs of question and context; in a terminal: --context TEXT_OR_FILE",
                )
        questions, contexts = (list(column) for column in zip(*inputs, strict=True))
        return Dataset.from_dict({self.question: questions, self.context: contexts})

    def windows(self, tokenizer: Any, model_config: Any) -> Windows:
        """Returns what cuts rows into windows.

        Raises:
            DataError: windows without room for a context.
        """
        length = input_length(self.max_length, tokenizer, model_config)
        question = self.max_question_length or max(1, min(QUESTION_LENGTH, length // 2))
        room = length - question - tokenizer.num_special_tokens_to_add(pair=True)
        stride = max(0, min(STRIDE, room // 3)) if self.doc_stride is None else self.doc_stride
        return Windows(tokenizer, length, stride, question)

    def _answer_columns(self, rows: Any, where: str) -> list[str]:
        names = column_names(rows)
        if self.answers_column in names:
            return [self.answers_column]
        flat = [self.answer_column, self.answer_start_column]
        if not set(flat) <= set(names):
            raise DataError(
                f"there is neither a column `{self.answers_column}` nor `{flat[0]}` with `{flat[1]}`",
                where=where,
                allowed=", ".join(names),
                hint="name them in `task.answers_column`, or `task.answer_column` and "
                "`task.answer_start_column`",
            )
        return flat

    def _features(
        self, rows: Any, tokenizer: Any, config: Any, where: str, *, labeled: bool, learnt: bool
    ) -> tuple[Any, dict]:
        """Windows and counts of one split.

        Args:
            rows: As they were read.
            tokenizer: Of the model.
            config: The model's.
            where: For messages.
            labeled: Whether answers are read.
            learnt: Whether rows are left out whose answer no window holds.
        """
        if isinstance(rows, IterableDataset):
            raise DataError("questions are read whole", where=where, hint="set `data.streaming: false`")
        check_columns(rows, [("question", self.question), ("context", self.context)], where)
        columns = self._answer_columns(rows, where) if labeled else []
        maker = _Maker(
            self, self.windows(tokenizer, config), _inputs(tokenizer, config), columns, where, learnt
        )
        with bar_if_long(len(rows)):
            made = rows.map(
                maker,
                with_indices=True,
                batched=True,
                batch_size=200,
                remove_columns=rows.column_names,
                features=maker.types(),
                load_from_cache_file=False,
                desc=f"cutting the {where} into windows",
            )
        if not len(made):
            raise maker.first_bad or DataError("there is no window with an answer", where=where)
        lengths = np.asarray([len(ids) for ids in made["input_ids"]])
        counts = {"rows": len(rows), **maker.counts, "windows": len(made), "tokens": int(lengths.sum())}
        return made, {**counts, "max_length": maker.windows.length}

    def _about_answers(self, found: dict[str, Any]) -> list[str]:
        notes = []
        if self.unanswerable and not found["rows_without_answer"]:
            notes.append("train: every row has an answer: it is not learnt to give none")
        if self.scoring == "squad" and found["chinese_share"] >= CHINESE_SHARE:
            notes.append(
                f"{100 * found['chinese_share']:.0f} % of the answers' characters are Chinese, which "
                "`scoring: squad` takes for one word up to the next space; `task.scoring: cmrc` counts them"
            )
        return notes

    def _answered(self, model: Any, features: Any, rows: Any, processor: Any) -> dict[int, dict[str, Any]]:
        """Row -> answer, score and start."""
        spans: dict[int, list[Candidate]] = defaultdict(list)
        nothing: dict[int, float] = {}
        for window, (start_T, end_T) in zip(
            features.select_columns(["row", "context_at", "starts", "ends", "nothing_at"]),
            _window_logits(model, features, processor),
            strict=True,
        ):
            starts_C, ends_C = np.asarray(window["starts"]), np.asarray(window["ends"])
            inside = slice(window["context_at"], window["context_at"] + len(starts_C))
            if not (np.isfinite(start_T).all() and np.isfinite(end_T).all()):
                raise DataError(
                    "a logit is not finite",
                    where=f"row {window['row']}",
                    hint="the model has diverged: lower the learning rate, or train in float32",
                )
            spans[window["row"]] += _windows.best_spans(
                start_T[inside], end_T[inside], starts_C, ends_C, self.max_answer_length, self.n_best
            )
            none = float(start_T[window["nothing_at"]] + end_T[window["nothing_at"]])
            nothing[window["row"]] = min(none, nothing.get(window["row"], none))
        contexts = dict(enumerate(rows[self.context]))
        return {row: self._chosen(found, nothing[row], contexts[row]) for row, found in spans.items()}

    def _chosen(self, found: list[Candidate], nothing: float, context: str) -> dict[str, Any]:
        """The best span, or none; its probability among the best."""
        best = _windows.distinct(found, self.n_best)
        scores = np.asarray([one.score for one in best] + ([nothing] if self.unanswerable else []))
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        if self.unanswerable and nothing - best[0].score > self.no_answer_threshold:
            return {"answer": "", "score": float(shares[-1]), "start": None}
        text = context[best[0].start : best[0].end]
        start = best[0].start + len(text) - len(text.lstrip())
        return {"answer": text.strip(), "score": float(shares[0]), "start": start}


class _Maker:
    """A batch of rows -> their windows, and counts over all batches.

    Args:
        task: Whose fields say how.
        windows: Cuts rows.
        inputs: What of the encoding the model takes.
        columns: Of the answers; none where there are no labels.
        where: The split, for messages.
        learnt: Whether rows are left out whose answer no window holds.
    """

    def __init__(
        self,
        task: QuestionAnswering,
        windows: Windows,
        inputs: list[str],
        columns: list[str],
        where: str,
        learnt: bool,
    ) -> None:
        self.task, self.windows, self.columns = task, windows, columns
        self.where, self.learnt = where, learnt
        self.inputs = inputs
        self.first_bad: DataError | None = None
        self.characters = [0, 0]  # of answers: Chinese, all
        names = ("rows_bad", "rows_without_answer", "rows_lost", "rows_inexact", "rows_too_long")
        more = ("questions_cut", "windows_with_answer", "windows_cut")
        self.counts: dict[str, Any] = dict.fromkeys((*names, *more), 0) if columns else {"questions_cut": 0}

    def __call__(self, batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        """Returns the windows as columns."""
        kept = []
        for place, number in enumerate(numbers):
            row = {name: values[place] for name, values in batch.items()}
            try:
                kept.append((number, *self._read(row, f"{self.where}, row {number}")))
            except DataError as error:
                if not self.columns or self.task.bad_rows == "refuse":
                    raise
                self.first_bad = self.first_bad or error
                self.counts["rows_bad"] += 1
        made: dict[str, list] = {name: [] for name in self.types()}
        if kept:
            self._cut(kept, made)
        return made

    def types(self) -> Features:
        """Returns the columns and their types."""
        lists = [*self.inputs, *LISTS, *(["labels"] if self.columns else [])]
        return Features(
            {name: List(Value("int32")) for name in lists} | dict.fromkeys(NUMBERS, Value("int32"))
        )

    def _read(self, row: dict[str, Any], where: str) -> tuple[str, str, list[Answer]]:
        question, context = (row[name] for name in (self.task.question, self.task.context))
        for name, text in ((self.task.question, question), (self.task.context, context)):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"`{name}` is {text!r}", where=where, allowed="a text that is not empty")
        answers = _windows.read_answers(row, self.columns, where) if self.columns else []
        if self.columns and not answers and not self.task.unanswerable:
            raise DataError(
                "has no answer",
                where=where,
                hint="take the row out, or set `task.unanswerable: true`: the model may then give none",
            )
        for one in answers:
            error = _windows.misplaced(one, context, where)
            if error is not None:
                raise DataError(error.what, where=where, hint=f"{error.hint}, or set `task.bad_rows: drop`")
        return question.strip(), context, answers

    def _cut(self, rows: list[tuple[int, str, str, list[Answer]]], made: dict[str, list]) -> None:
        encoded, cut = self.windows([row[1] for row in rows], [row[2] for row in rows])
        self.counts["questions_cut"] += sum(map(bool, cut))
        of_row: dict[int, list[int]] = defaultdict(list)
        for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
            of_row[row].append(window)
        for place, (number, _, _, answers) in enumerate(rows):
            windows = [self._window(encoded, window) for window in of_row[place]]
            if not any(len(one["starts"]) for one in windows):
                raise DataError(
                    f"`{self.task.context}` is nothing to the tokenizer",
                    where=f"{self.where}, row {number}",
                )
            windows = [one for one in windows if len(one["starts"])]
            if self.columns and not self._label(windows, answers):
                continue
            for one in windows:
                for name, values in made.items():
                    values.append(number if name == "row" else one[name])

    def _window(self, encoded: Any, window: int) -> dict[str, Any]:
        parts, offsets = encoded.sequence_ids(window), encoded["offset_mapping"][window]
        inside = [place for place, part in enumerate(parts) if part == 1]
        ids = encoded["input_ids"][window]
        return {
            **{name: encoded[name][window] for name in self.inputs},
            "context_at": inside[0] if inside else 0,
            "starts": [offsets[place][0] for place in inside],
            "ends": [offsets[place][1] for place in inside],
            "nothing_at": _windows.without_answer(ids, self.windows.tokenizer),
        }

    def _label(self, windows: list[dict[str, Any]], answers: list[Answer]) -> bool:
        """Adds the labels; returns whether the row is kept."""
        answer = answers[0] if answers else None
        places = []
        for one in windows:
            bounds = (np.asarray(one["starts"]), np.asarray(one["ends"]))
            place = _windows.place_of(answer, *bounds) if answer else None
            partly = answer is not None and place is None and _windows.touches(answer, *bounds)
            self.counts["windows_with_answer"] += place is not None
            self.counts["windows_cut"] += partly
            places.append(place)
            at = one["context_at"]
            span = (one["nothing_at"],) * 2 if place is None else (at + place.first, at + place.last)
            one["labels"] = [*span, len(one["input_ids"])]
        found = [place for place in places if place is not None]
        self.counts["rows_without_answer"] += answer is None
        self.counts["rows_lost"] += answer is not None and not found
        self.counts["rows_inexact"] += bool(found) and not any(place.exact for place in found)
        most = self.task.max_answer_length
        self.counts["rows_too_long"] += bool(found) and found[0].last - found[0].first >= most
        self._count_characters(answer)
        return answer is None or bool(found) or not self.learnt

    def _count_characters(self, answer: Answer | None) -> None:
        if answer is not None:
            self.characters[0] += len(answer_evaluation.CHINESE.findall(answer[0]))
            self.characters[1] += len(answer[0])
        self.counts["chinese_share"] = round(self.characters[0] / max(self.characters[1], 1), 3)


class WindowCollator:
    """Windows -> a batch padded on the right.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch."""
        inputs = [{name: row[name] for name in INPUTS if name in row} for row in rows]
        batch = dict(self.tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def span_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Returns the mean cross-entropy of starts and ends over all windows of a step.

    Args:
        outputs: With ``start_logits`` and ``end_logits`` (B, T).
        labels: (B, 3): start, end, and how many of the T tokens are no padding.
        num_items_in_batch: Labels in all micro-batches of the step, three a window; None: those of this one.
    """
    width = outputs["start_logits"].shape[1]
    padding_BT = torch.arange(width, device=labels.device) >= labels[:, 2:]
    total = 0.0
    for column, name in enumerate(("start_logits", "end_logits")):
        logits_BT = outputs[name].float().masked_fill(padding_BT, float("-inf"))
        total = total + cross_entropy(logits_BT, labels[:, column], reduction="sum") / 2
    windows = len(labels) if num_items_in_batch is None else num_items_in_batch / labels.shape[1]
    return total / windows


def _inputs(tokenizer: Any, config: Any) -> list[str]:
    """What the tokenizer gives and the model's forward takes, as far as its class is known."""
    given = [name for name in INPUTS if name in tokenizer("a", "a")]
    if type(config) not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        return given
    cls = MODEL_FOR_QUESTION_ANSWERING_MAPPING[type(config)]
    taken = inspect.signature(cls.forward).parameters
    return [name for name in given if name in taken]


def _window_logits(model: Any, features: Any, tokenizer: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the logits (T,) of each window's starts and ends, in order; longest ones are computed first."""
    inputs = features.select_columns([name for name in INPUTS if name in features.column_names])
    order = np.argsort([-len(ids) for ids in inputs["input_ids"]], kind="stable")
    found: list[Any] = [None] * len(order)
    collate = WindowCollator(tokenizer)
    with torch.inference_mode():
        for begin in range(0, len(order), WINDOWS_AT_ONCE):
            chosen = [int(place) for place in order[begin : begin + WINDOWS_AT_ONCE]]
            rows = [inputs[place] for place in chosen]
            batch = {key: value.to(model.device) for key, value in collate(rows).items()}
            outputs = model(**batch)
            pairs = [outputs[name].float().cpu().numpy() for name in ("start_logits", "end_logits")]
            for place, row, start_T, end_T in zip(chosen, rows, *pairs, strict=True):
                tokens = len(row["input_ids"])
                found[place] = (start_T[:tokens], end_T[:tokens])
    yield from found


def _sentences(split: str, found: dict[str, Any]) -> list[str]:
    said = [
        f"{split}: {found['windows']:,} windows of up to {found['max_length']} tokens from "
        f"{found['rows']:,} rows"
    ]
    told = {
        "rows_bad": "cannot be used and are left out",
        "rows_lost": "have an answer that no window holds"
        + (" and are left out" if split != "test" else ", and cannot be right"),
        "rows_too_long": "have an answer of more tokens than `max_answer_length`, which can never be given",
        "questions_cut": "have a question that is cut",
    }
    return said + [
        f"{split}: {found[name]:,} of {found['rows']:,} rows {what}"
        for name, what in told.items()
        if found.get(name)
    ]
