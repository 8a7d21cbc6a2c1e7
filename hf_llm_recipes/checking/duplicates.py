"""Rows that are in the data twice: within a split, in train and in a held-out split, in the pool."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import IterableDataset

from hf_llm_recipes.checking.base import Finding, Report, named, share
from hf_llm_recipes.checking.subject import Subject
from hf_llm_recipes.data.dedup import Deduplication, Duplicate, find_duplicates
from hf_llm_recipes.data.pool import _key, row_keys
from hf_llm_recipes.objectives import _documents
from hf_llm_recipes.objectives.base import Objective
from hf_llm_recipes.objectives.contrastive import Contrastive
from hf_llm_recipes.tasks import _chat_forms
from hf_llm_recipes.tasks._chat_forms import BadRowError
from hf_llm_recipes.tasks.chat import Chat
from hf_llm_recipes.tasks.image_classification import ImageClassification
from hf_llm_recipes.tasks.question_answering import QuestionAnswering
from hf_llm_recipes.tasks.text_classification import TextClassification

LEAKED = 0.01  # share of a held-out split's rows, from which on its figures are not to be believed
HELD_OUT = ("test", "eval")
MOST_CHARACTERS = 30_000_000  # compared for nearness: ten seconds on one core
SHORT_TEXT = 40  # words: a run of five of them is an eighth of the text and more
EXACT = 1.0
SHARED = 0.05  # of the rows: a text that so many have is a frame, not what makes a row what it is
FEW_SHARE = 20  # rows


def look(subject: Subject, report: Report) -> list[Finding]:
    """Returns rows that are in the data twice."""
    splits = [split for split in ("test", "eval", "train", "unlabeled") if split in subject.splits()]
    if not all(_is_readable(subject, split) for split in splits):
        return []
    where = {split: subject.where(split) for split in splits}
    keys, texts = {}, {}
    for split in splits:
        found = row_texts(subject, split)
        if found is None:
            keys[split] = row_keys(subject.all_rows(split), subject.task.input_columns)
        else:
            texts[split], keys[split] = found, [_key(text) for text in found]
    drops = drops_of(subject)
    made = repeated(keys, where, drops) + leaked(keys, where, drops) + _labeled_in_pool(keys, where)
    if isinstance(subject.task, (TextClassification, ImageClassification)):
        made += _contradicting(subject, keys["train"], where["train"])
    if texts:
        made += near(texts, where, drops)
    return made


def _is_readable(subject: Subject, split: str) -> bool:
    """Whether rows are there whole, with the task's columns: what is wrong with others is told elsewhere."""
    rows, task = subject.all_rows(split), subject.task
    if isinstance(rows, IterableDataset):
        return False
    columns = [*task.input_columns]
    if split != "unlabeled" and isinstance(task, (TextClassification, ImageClassification)):
        columns += task.label if isinstance(task.label, list) else [task.label]
    return set(columns) <= set(rows.column_names)


def drops_of(subject: Subject) -> bool:
    """Whether `data.dedup` can drop rows of this task: those of texts, or of lists of words."""
    columns, rows = subject.task.input_columns, subject.all_rows("train")
    if subject.task.processor != "tokenizer" or not columns:
        return False
    few = rows.select(range(min(len(rows), 20)))
    return not subject.plan.source.streaming and not any(
        isinstance(value, list) and value and isinstance(value[0], dict) for c in columns for value in few[c]
    )


def row_texts(subject: Subject, split: str) -> list[str] | None:
    """Returns what each row says; None for images, and for questions, whose contexts are compared."""
    task, rows = subject.task, subject.all_rows(split)
    if task.processor != "tokenizer" or isinstance(task, QuestionAnswering):  # many ask about one context
        return None
    if isinstance(task, Chat):
        form = _chat_forms.find_form(rows.column_names, rows, task.format, "data", answered=True)
        return without_shared([_said(row, form) for row in rows])
    if isinstance(task, Objective):
        starts = None if isinstance(task, Contrastive) else task.document_start
        return _documents.read_documents(rows, task.input_column, starts, split)
    columns = [rows[column] for column in task.input_columns]
    return without_shared([[p for v in values for p in _pieces(v)] for values in zip(*columns, strict=True)])


def _said(row: dict[str, Any], form: str) -> list[str]:
    try:
        if form == "text":
            return [_chat_forms.plain_text(row)]
        messages = _chat_forms.conversation(row, form, None).messages
    except BadRowError:
        return []
    return [str(message.get("content") or "") for message in messages]


def _pieces(value: Any) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):  # messages
        return [str(message.get("content") or "") for message in value]
    return [" ".join(map(str, value)) if isinstance(value, list) else str(value or "")]


def without_shared(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns each row's texts as one, without those that many rows begin with, such as a system message."""
    counts = Counter(text for texts in rows for text in set(texts[:-1]))
    most = max(FEW_SHARE, SHARED * len(rows))
    return ["\n".join(text for text in texts if counts[text] <= most) for texts in rows]


def repeated(
    keys: Mapping[str, Sequence[str]], where: Mapping[str, str], drops: bool = True
) -> list[Finding]:
    """Returns splits in which a row stands more than once.

    Args:
        keys: Split -> what makes each row what it is; "" is no row.
        where: Split -> its words.
        drops: Whether `data.dedup` takes such rows.
    """
    found = []
    for split, of_split in keys.items():
        counts = Counter(key for key in of_split if key)
        again = sum(counts.values()) - len(counts)
        if not again:
            continue
        key, most = counts.most_common(1)[0]
        rows = [row for row, one in enumerate(of_split) if one == key]
        judged = split in HELD_OUT
        found.append(
            Finding(
                "info" if judged or again / len(of_split) < LEAKED else "warning",
                "duplicates",
                f"{again:,} of {len(of_split):,} rows ({share(again, len(of_split))}) repeat another; most "
                f"often, {most:,} times: {_short(key)} (rows {named(rows)})",
                where[split],
                "take them out of the file: they count twice in every figure"
                if judged
                else _drop("exact", "", drops),
            )
        )
    return found


def in_train(keys: Mapping[str, Sequence[str]], splits: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Returns, by split, each row that train holds too, with the first such row of train.

    Args:
        keys: Split -> what makes each row what it is; "" is no row.
        splits: To look in; those without such a row are left out.
    """
    own: dict[str, int] = {}
    for row, key in enumerate(keys["train"]):
        if key:
            own.setdefault(key, row)
    found = {
        split: [(row, own[key]) for row, key in enumerate(keys.get(split, [])) if key in own]
        for split in splits
    }
    return {split: pairs for split, pairs in found.items() if pairs}


def leaked(keys: Mapping[str, Sequence[str]], where: Mapping[str, str], drops: bool = True) -> list[Finding]:
    """Returns held-out rows that train holds too, word for word; see ``repeated``."""
    found = []
    for split, pairs in in_train(keys, HELD_OUT).items():
        total, (first, own) = len(keys[split]), pairs[0]
        found.append(
            Finding(
                "error" if len(pairs) / total >= LEAKED else "warning",
                "leakage",
                f"{len(pairs):,} of {total:,} rows ({share(len(pairs), total)}) are rows of train: "
                f"row {first} is train's row {own}: {_short(keys[split][first])}",
                where[split],
                f"{_drop('exact', '', drops)}; as it is, the {split} figures are too good",
            )
        )
    return found


def _labeled_in_pool(keys: Mapping[str, Sequence[str]], where: Mapping[str, str]) -> list[Finding]:
    rows = [row for row, _ in in_train(keys, ("unlabeled",)).get("unlabeled", [])]
    if not rows:
        return []
    return [
        Finding(
            "info",
            "pool",
            f"{len(rows):,} of {len(keys['unlabeled']):,} rows of the pool are labeled rows of train too "
            f"(rows {named(rows)}): they stay, without their label",
            where["unlabeled"],
            "take them out of the pool if that is not meant",
        )
    ]


def _contradicting(subject: Subject, keys: Sequence[str], where: str) -> list[Finding]:
    """Rows of train that are the same and have different labels."""
    label, rows = subject.task.label, subject.all_rows("train")
    columns = [rows[column] for column in (label if isinstance(label, list) else [label])]
    labels = defaultdict(lambda: defaultdict(list))
    for row, (key, *values) in enumerate(zip(keys, *columns, strict=True)):
        if key:
            labels[key][str(values)].append(row)
    odd = [list(found.values()) for found in labels.values() if len(found) > 1]
    if not odd:
        return []
    first = sorted(odd[0][0][:1] + odd[0][1][:1])
    count = sum(len(rows) for found in odd for rows in found)
    return [
        Finding(
            "warning",
            "duplicates",
            f"{len(odd):,} texts or images have more than one label ({count:,} rows): for one, rows "
            f"{first[0]} and {first[1]} are {_short(keys[first[0]])}",
            where,
            "decide for one label each; no model can learn both",
        )
    ]


def near(texts: Mapping[str, Sequence[str]], where: Mapping[str, str], drops: bool = True) -> list[Finding]:
    """Returns rows of train and of the pool that nearly repeat another, or a held-out one.

    Args:
        texts: Split -> texts, those first that are the originals of others.
        where: Split -> its words.
        drops: Whether `data.dedup` takes such rows.
    """
    texts, sampled = _few_characters(texts)
    rules = Deduplication(method="near", words=_run_length(texts["train"]))
    pairs = find_duplicates(texts, rules, held_out=HELD_OUT).pairs
    pairs = [pair for pair in pairs if pair.similarity < EXACT and texts[pair.part][pair.row].strip()]
    found = []
    for part in ("train", "unlabeled"):
        own = [pair for pair in pairs if pair.part == pair.of_part == part]
        if part == "train" and own and len(own) / len(texts[part]) >= LEAKED:
            found.append(_near_finding("duplicates", own, texts, where, rules, drops, sampled))
        for split in HELD_OUT:
            of = [pair for pair in pairs if (pair.part, pair.of_part) == (part, split)]
            least = 0 if part == "train" else LEAKED  # no label leaks from the pool
            if of and len(of) / len(texts[split]) >= least:
                found.append(_near_finding("leakage", of, texts, where, rules, drops, sampled))
    return found


def _near_finding(
    kind: str,
    pairs: list[Duplicate],
    texts: Mapping[str, Sequence[str]],
    where: Mapping[str, str],
    rules: Deduplication,
    drops: bool,
    sampled: str,
) -> Finding:
    first = max(pairs, key=lambda pair: pair.similarity)
    leaks = kind == "leakage"
    split = first.of_part if leaks else first.part
    count = len({pair.of_row if leaks else pair.row for pair in pairs})
    is_much = leaks and first.part == "train" and count / len(texts[split]) >= LEAKED
    return Finding(
        "warning" if is_much else "info",
        kind,
        f"{count:,} of {len(texts[split]):,} rows ({share(count, len(texts[split]))}) nearly repeat a row of "
        f"{first.part if leaks else 'the same split'}: row {first.of_row if leaks else first.row} is like "
        f"{first.part if leaks else first.of_part}'s row {first.row if leaks else first.of_row} "
        f"({100 * first.similarity:.0f} % of their runs of {rules.words} words): "
        f"{_short(texts[first.of_part][first.of_row])}{sampled}",
        where[split],
        _drop("near", f", words: {rules.words}", drops),
    )


def _drop(method: str, more: str, drops: bool) -> str:
    if not drops:
        return "take them out of the train file (`data.dedup` reads columns of text only)"
    rules = f"{{method: {method}{more}}}" if more else method
    return f"`data.dedup: {rules}` takes them out of train and the pool"


def _few_characters(
    texts: Mapping[str, Sequence[str]],
) -> tuple[dict[str, Sequence[str]], str]:
    """Texts that can be compared in time: the first so many of each split, and words that say so."""
    total = sum(len(text) for of_split in texts.values() for text in of_split)
    if total <= MOST_CHARACTERS:
        return dict(texts), ""
    few = {
        split: of_split[: int(len(of_split) * MOST_CHARACTERS / total) + 1]
        for split, of_split in texts.items()
    }
    rows = ", ".join(f"{len(of_split):,} of {split}" for split, of_split in few.items())
    return few, f" (looked at in a sample: the first {rows})"


def _run_length(texts: Sequence[str]) -> int:
    """Words of the runs that are compared: fewer for short texts, where one word changes many runs."""
    words = np.median([len(text.split()) for text in texts[:2000]] or [0])
    return 3 if words < SHORT_TEXT else 5


def _short(text: str) -> str:
    text = " ".join(text.replace("\x1f", " ").replace("\0", " | ").split())
    return repr(text if len(text) <= 60 else text[:59] + "…")
