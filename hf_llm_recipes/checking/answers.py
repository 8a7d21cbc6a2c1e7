"""Answers in their contexts: where the data says, whole in a window, learnt as they are; shared contexts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hf_llm_recipes.checking.base import Finding, Report, named, share
from hf_llm_recipes.checking.duplicates import HELD_OUT, LEAKED, in_train
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.data.dedup import Deduplication, find_duplicates
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks import _windows
from hf_llm_recipes.tasks.question_answering import QuestionAnswering

PART = "answers"
MOST_TOLD = 3  # rows that are shown whole
MOST_CHARACTERS = 20_000_000  # of contexts that are compared for nearness
COMPARED = 2_000  # windows whose labels are read back
LOST_MUCH = 0.01  # share of the rows


def look(subject: Subject, report: Report) -> list[Finding]:
    """Returns what is odd about answers, once the rows became windows."""
    task = subject.task
    if not isinstance(task, QuestionAnswering):
        return []
    found = []
    for split in subject.splits():
        counts, where = subject.prepared.findings.get(split), subject.where(split)
        if counts is None:
            continue
        with_answer = counts["windows_with_answer"]
        report.labels[split] = {
            "windows with the answer": with_answer,
            "windows without": counts["windows"] - with_answer,
        }
        found += outside_windows(counts, where, task, learnt=split != "test")
        found += _read_back(subject, split)
    return found


def look_at_rows(subject: Subject, report: Report) -> list[Finding]:
    """Returns rows whose answer does not stand where they say, and contexts that splits share.

    It needs no features, so that it tells of every row where a run would stop with the first.
    """
    task = subject.task
    if not isinstance(task, QuestionAnswering):
        return []
    splits = [one for one in ("test", "eval", "train") if one in subject.splits()]
    contexts, made = {}, []
    for split in splits:
        rows, where = subject.all_rows(split), subject.where(split)
        try:
            columns = task._answer_columns(rows, where)
            few = rows.select_columns([task.question, task.context, *columns])
        except (DataError, ValueError):  # a column is missing: told already
            return []
        asked = [
            (row[task.question], row[task.context], _answers(row, columns, f"{where}, row {number}"))
            for number, row in enumerate(few)
        ]
        contexts[split] = [context for _, context, _ in asked]
        made += wrong_places(asked, where, dropped=task.bad_rows == "drop")
        made += without_answer(asked, where, allowed=task.unanswerable)
        if split == "train":
            made += contradicting(asked, where)
    where = {split: subject.where(split) for split in splits}
    return made + shared(contexts, where) + nearly_shared(contexts, where)


Asked = tuple[str, str, "list[_windows.Answer] | DataError"]  # question, context, answers


def _answers(row: dict[str, Any], columns: Sequence[str], where: str) -> list[_windows.Answer] | DataError:
    try:
        return _windows.read_answers(row, columns, where)
    except DataError as error:
        return error


def wrong_places(asked: Sequence[Asked], where: str, *, dropped: bool) -> list[Finding]:
    """Returns rows whose answer cannot be read, or does not stand where they say.

    Args:
        asked: Of each row.
        where: The split.
        dropped: Whether the run leaves such rows out, where else it stops.
    """
    odd = []
    for number, (_, context, answers) in enumerate(asked):
        error = answers if isinstance(answers, DataError) else None
        if error is None and isinstance(context, str):
            errors = (_windows.misplaced(one, context, "") for one in answers)
            error = next((one for one in errors if one is not None), None)
        if error is not None:
            odd.append((number, error))
    if not odd:
        return []
    told = "; ".join(
        f"row {number}: {error.what}{f' ({_bare(error.hint)})' if error.hint else ''}"
        for number, error in odd[:MOST_TOLD]
    )
    more = f"; and rows {named([number for number, _ in odd[MOST_TOLD:]])}" if odd[MOST_TOLD:] else ""
    return [
        Finding(
            "warning" if dropped else "error",
            PART,
            f"{len(odd):,} of {len(asked):,} rows ({share(len(odd), len(asked))}) have no answer where they "
            f"say: {told}{more}",
            where,
            "mend `answer_start`: it counts characters from 0, in the context as it is in the file"
            + (
                "; as it is, these rows are left out"
                if dropped
                else "; or `task.bad_rows: drop` leaves them out"
            ),
        )
    ]


def _bare(hint: str) -> str:
    return hint.removesuffix(": mend the row")


def without_answer(asked: Sequence[Asked], where: str, *, allowed: bool) -> list[Finding]:
    """Returns rows that have no answer."""
    rows = [number for number, (_, _, answers) in enumerate(asked) if answers == []]
    if not rows or (allowed and len(rows) < len(asked)):
        return []
    every = len(rows) == len(asked)
    return [
        Finding(
            "error",
            PART,
            f"{len(rows):,} of {len(asked):,} rows ({share(len(rows), len(asked))}) have no answer (rows "
            f"{named(rows)})",
            where,
            "there is nothing to learn: check the columns"
            if every
            else "take them out, or set `task.unanswerable: true`",
        )
    ]


def contradicting(asked: Sequence[Asked], where: str) -> list[Finding]:
    """Returns questions that are asked twice of one context and answered otherwise."""
    texts: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for number, (question, context, answers) in enumerate(asked):
        if not isinstance(answers, DataError):
            learnt = answers[0][0] if answers else ""
            texts[str(question).strip(), str(context)].setdefault(learnt, number)
    odd = [(key, found) for key, found in texts.items() if len(found) > 1]
    if not odd:
        return []
    (question, _), found = odd[0]
    (first, one), (second, other) = list(found.items())[:2]
    return [
        Finding(
            "warning",
            PART,
            f"{len(odd):,} questions have more than one answer to learn: {question[:60]!r} has "
            f"{first[:40]!r} in row {one} and {second[:40]!r} in row {other}",
            where,
            "decide for one, or write both into one row's `answers`: any of them is right then",
        )
    ]


def shared(contexts: Mapping[str, Sequence[str]], where: Mapping[str, str]) -> list[Finding]:
    """Returns held-out rows whose context is one of train's.

    Args:
        contexts: Split -> the context of each row.
        where: Split -> its words.
    """
    found = []
    for split, pairs in in_train(contexts, HELD_OUT).items():
        total, (first, own) = len(contexts[split]), pairs[0]
        found.append(
            Finding(
                "warning" if len(pairs) / total >= LEAKED else "info",
                "leakage",
                f"{len(pairs):,} of {total:,} rows ({share(len(pairs), total)}) ask about a context of "
                f"train: row {first} and train's row {own}",
                where[split],
                f"split by context: as it is, the {split} figures do not tell of texts that are new",
            )
        )
    return found


def nearly_shared(contexts: Mapping[str, Sequence[str]], where: Mapping[str, str]) -> list[Finding]:
    """Returns held-out contexts that nearly repeat one of train; see ``shared``."""
    first_row = {
        split: {text: row for row, text in reversed(list(enumerate(of)))} for split, of in contexts.items()
    }
    own = set(first_row["train"])
    distinct = {
        split: [text for text in rows if split == "train" or text not in own]
        for split, rows in first_row.items()
    }
    distinct = {split: texts for split, texts in distinct.items() if texts}
    if len(distinct) < 2 or sum(len(text) for texts in distinct.values() for text in texts) > MOST_CHARACTERS:
        return []
    rules = Deduplication(method="near", words=5)
    found = []
    pairs = find_duplicates(distinct, rules, held_out=HELD_OUT).pairs
    for split in HELD_OUT:
        of = [pair for pair in pairs if (pair.part, pair.of_part) == ("train", split) and pair.similarity < 1]
        if not of:
            continue
        best = max(of, key=lambda pair: pair.similarity)
        rows = [
            first_row[part][distinct[part][row]] for part, row in ((split, best.of_row), ("train", best.row))
        ]
        count = len({pair.of_row for pair in of})
        found.append(
            Finding(
                "info",
                "leakage",
                f"{count:,} of {len(distinct[split]):,} contexts nearly repeat one of train: row {rows[0]}'s "
                f"and train's row {rows[1]}'s ({100 * best.similarity:.0f} % of their runs of 5 words)",
                where[split],
                "split by context, and look whether these are versions of one text",
            )
        )
    return found


def outside_windows(counts: Mapping[str, Any], where: str, task: Any, *, learnt: bool) -> list[Finding]:
    """Returns answers that no window holds, or that could not be given; questions that are cut.

    Args:
        counts: A split's ``findings``.
        where: The split.
        task: Of the recipe.
        learnt: Whether the split's rows are learnt from or chosen by, and left out where they are lost.
    """
    answered = max(counts["rows"] - counts["rows_without_answer"] - counts["rows_bad"], 1)
    found = _lost(counts, answered, where, learnt=learnt)
    if counts["windows_cut"] and where.startswith("train"):
        what = (
            f"{counts['windows_cut']:,} of {counts['windows']:,} windows hold a part of the answer and are "
        )
        do = "nothing, where another window holds it whole; a larger `task.max_length` makes fewer"
        found.append(Finding("info", PART, what + "taught that it is not there", where, do))
    long, most = counts["rows_too_long"], f"`task.max_answer_length: {task.max_answer_length}`"
    if long:
        level = "warning" if long / answered >= LOST_MUCH else "info"
        what = (
            f"{long:,} of {answered:,} answers ({share(long, answered)}) have more tokens than {most}: they "
        )
        what += "are learnt, and can never be given"
        found.append(Finding(level, PART, what, where, "raise `task.max_answer_length`"))
    cut, rows = counts["questions_cut"], counts["rows"]
    if cut:
        what = f"{cut:,} of {rows:,} questions ({share(cut, rows)}) are cut at their end"
        found.append(Finding("warning", PART, what, where, "raise `task.max_question_length`"))
    return found


def _lost(counts: Mapping[str, Any], answered: int, where: str, *, learnt: bool) -> list[Finding]:
    lost = counts["rows_lost"]
    if not lost:
        return []
    fate = "and are left out" if learnt else "and cannot be answered rightly"
    much = "warning" if lost / answered >= LOST_MUCH else "info"
    return [
        Finding(
            "error" if lost == answered else much,
            PART,
            f"in {lost:,} of {answered:,} rows ({share(lost, answered)}) the answer lies in no window of "
            f"{counts['max_length']} tokens, {fate}",
            where,
            "neighbouring windows must share as many tokens as an answer has: raise `task.doc_stride` or "
            "`task.max_length`",
        )
    ]


def _read_back(subject: Subject, split: str) -> list[Finding]:
    """Windows whose labels do not say the answer."""
    task, features, rows = subject.task, subject.features(split), subject.rows(split)
    answers, contexts = task.answer_rows(rows), rows[task.context]
    learnt = []
    for window in features.select(range(min(len(features), COMPARED))):
        start, end, _ = window["labels"]
        if (start, end) == (window["nothing_at"],) * 2:
            continue
        at, row = window["context_at"], window["row"]
        text = contexts[row][window["starts"][start - at] : window["ends"][end - at]]
        learnt.append((subject.place(split, row), text, answers[row][0][0].strip()))
    return misaligned(learnt, subject.where(split))


def misaligned(learnt: Sequence[tuple[int, str, str]], where: str) -> list[Finding]:
    """Returns answers that are learnt with more than they are, or otherwise.

    Args:
        learnt: Row, the text of the tokens that are learnt, the answer.
        where: The split.
    """
    wrong = [one for one in learnt if one[2] not in one[1]]
    wider = [one for one in learnt if one[2] in one[1] and one[1].strip() != one[2]]
    found = []
    if wrong:
        row, text, answer = wrong[0]
        found.append(
            Finding(
                "error",
                PART,
                f"in {len(wrong):,} of {len(learnt):,} windows the tokens that are learnt do not say the "
                f"answer: row {row} has {answer[:60]!r} and learns {text[:60]!r}",
                where,
                "the tokenizer does not tell truly where its tokens stand: take another model, report this",
            )
        )
    if wider:
        row, text, answer = wider[0]
        much = len(wider) / len(learnt)
        found.append(
            Finding(
                "warning" if much >= 0.05 else "info",
                PART,
                f"in {len(wider):,} of {len(learnt):,} windows ({share(len(wider), len(learnt))}) the answer "
                f"does not begin and end where tokens do, and more is learnt: row {row} has {answer[:60]!r} "
                f"and learns {text.strip()[:60]!r}",
                where,
                "mend answers that stop within a word; where they are meant so, another tokenizer cuts finer",
            )
        )
    return found
