"""The ``data:`` section of a recipe -> train, eval and test.

Notable:
- No row is in train and in a held-out part: overlapping expressions are an error, and
  what is missing is cut from the selected train rows.
- `Loaded.description` says where every split came from, with a fingerprint.
- Cleaning and deduplication come before rows are held out, so that no duplicate lands on the other side.
- A pool of unlabeled rows is named, or made of train rows that lose their label; no row of it is a
  row of eval or test.
- No torch and no datasets at import.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hf_llm_recipes.data.cleaning import Cleaning, clean_splits
from hf_llm_recipes.data.dedup import Deduplication, drop_duplicates
from hf_llm_recipes.data.origins import EVAL_NAMES, Opened, Origin, file_origin, folder_origin, open_source
from hf_llm_recipes.data.pool import check_pool, few_labels
from hf_llm_recipes.data.reading import READERS, read_table
from hf_llm_recipes.data.splitting import (
    Term,
    bounds,
    check_fraction,
    hold_out,
    lone_classes,
    parse,
    why_not_stratified,
)
from hf_llm_recipes.errors import DataError, did_you_mean
from hf_llm_recipes.rundir import path_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["Loaded", "Source", "load", "read_rows"]

PARTS = ("train", "eval", "test")


@dataclass(kw_only=True)
class Source:
    """The ``data:`` section of a recipe; its fields are the keys.

    Args:
        name: A Hub id, ``local/<corpus>``, a file, a folder (of files of rows, or of one folder of images or
            texts a class) or a glob.
        config: The Hub configuration.
        revision: The Hub revision; give a commit to pin the rows.
        license: Of the rows, as their owner states it; for the card, in place of what the data says.
        train: A split expression (``train[:80%]``, ``train+validation``) or a file.
        eval: The same; by default the split validation, valid, dev or eval, or rows held out of train.
        test: The same; by default the split test, or rows held out of train.
        unlabeled: The pool: a split expression, a file or a folder. Its labels, if any, are not looked at.
        labels_per_class: Train keeps its label on so many rows of each class only; the other rows
            become the pool, or are left out where ``unlabeled`` names one. The rows kept for a smaller
            number are among those kept for a larger one.
        unlabeled_limit: Rows of the pool at most, drawn with ``split_seed``.
        pool_overlap: What is done with unlabeled rows that are rows of eval or test.
        columns: The name a task uses -> the name in the data, e.g. ``{text: review}``.
        eval_fraction: Share of the train rows held out when there is no such split; in [0, 1). 0: the
            run has no eval split, for data with so few labels that none can be spared.
        test_fraction: The same for test; in (0, 1).
        split_seed: Of the held-out rows.
        encoding: Of text files.
        delimiter: Of CSV; by default the tab for .tsv and the comma otherwise.
        streaming: Read train as a stream; eval and test must then be splits.
        clean: Rules for the task's text columns; true takes their defaults.
        dedup: Drops rows of train and the pool that are held-out rows or their own, by the task's text
            columns; ``exact`` or ``near`` alone take the defaults.

    Raises:
        ValueError: a rule of ``clean`` or ``dedup`` out of its range.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    license: str | None = None
    train: str | None = None
    eval: str | None = None
    test: str | None = None
    unlabeled: str | None = None
    labels_per_class: int | None = None
    unlabeled_limit: int | None = None
    pool_overlap: Literal["refuse", "drop"] = "refuse"
    columns: dict[str, str] | None = None
    eval_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    encoding: str = "utf-8"
    delimiter: str | None = None
    streaming: bool = False
    clean: Cleaning | bool | None = None
    dedup: Deduplication | Literal["exact", "near"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.clean, bool):
            self.clean = Cleaning() if self.clean else None
        if isinstance(self.dedup, str):
            self.dedup = _inner(Deduplication, {"method": self.dedup}, "dedup")
        for key, cls in (("clean", Cleaning), ("dedup", Deduplication)):
            if isinstance(getattr(self, key), dict):
                setattr(self, key, _inner(cls, getattr(self, key), key))


def _inner(cls: type, given: dict, key: str) -> object:
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


@dataclass
class Loaded:
    """The rows of a run.

    Args:
        train: Rows to learn from.
        eval: Rows to choose by; None with ``eval_fraction: 0``.
        test: Rows to report on.
        description: JSON-able: origin, licence if known, ``splits`` (rows, columns, origin,
            fingerprint of each) and ``notes``, everything a user should know.
        unlabeled: The pool, without labels; None where the section names none.
    """

    train: Dataset | IterableDataset
    eval: Dataset | None
    test: Dataset
    description: dict
    unlabeled: Dataset | None = None


@dataclass
class Piece:
    """Rows ``start`` to ``stop`` of one origin; a stream's end is infinite."""

    origin: Origin
    start: int
    stop: float

    def overlaps(self, other: Piece) -> bool:
        """Whether the two may share a row."""
        if self.origin.keys == other.origin.keys:
            return self.start < other.stop and other.start < self.stop
        return bool(self.origin.keys & other.origin.keys)


@dataclass
class Selection:
    """One part of the run: what was asked for, and its pieces."""

    text: str
    pieces: list[Piece] = field(default_factory=list)

    def overlaps(self, other: Selection) -> bool:
        """Whether the two may share a row."""
        return any(mine.overlaps(yours) for mine in self.pieces for yours in other.pieces)

    @property
    def fingerprint(self) -> str:
        """Of the file or split when it is whole, else a sha256 over the pieces'."""
        texts = []
        for piece in self.pieces:
            whole = piece.start == 0 and piece.stop in (math.inf, _rows(piece.origin))
            texts.append(piece.origin.table.fingerprint + ("" if whole else f"[{piece.start}:{piece.stop}]"))
        return texts[0] if len(texts) == 1 and "[" not in texts[0] else _sha256("+".join(texts))


def load(
    source: Source,
    *,
    stratify_by: str | None = None,
    input_columns: Sequence[str] | None = None,
    text_columns: Sequence[str] = (),
) -> Loaded:
    """Returns train, eval and test of a data section, and the pool where it has one.

    Args:
        source: The section.
        stratify_by: The label column (by the task's name for it) whose shares held-out rows keep.
        input_columns: The columns by which rows of the pool are compared with the others; None
            compares nothing.
        text_columns: What ``clean`` and ``dedup`` read.

    Raises:
        DataError: the source, a file, a split expression, a column or a fraction that cannot
            be used as it is; parts that overlap; a stream without eval and test; a pool that holds
            rows of eval or test.
    """
    _check_pool_keys(source)
    if source.eval_fraction != 0:
        check_fraction("eval_fraction", source.eval_fraction)
    check_fraction("test_fraction", source.test_fraction)
    opened = open_source(
        source.name,
        config=source.config,
        revision=source.revision,
        encoding=source.encoding,
        delimiter=source.delimiter,
        streaming=source.streaming,
    )
    notes = opened.notes
    selections = _select(source, opened, notes)
    data = {part: _rows_of(selection) for part, selection in selections.items()}
    for selection in selections.values():
        notes += [n for piece in selection.pieces for n in piece.origin.table.notes if n not in notes]
    data = {
        part: _rename(rows, _columns(source, part, rows), selections[part].text)
        for part, rows in data.items()
    }
    described = {
        part: {"origin": selection.text, "fingerprint": selection.fingerprint}
        for part, selection in selections.items()
    }
    findings = _prepare_texts(source, data, described, text_columns, notes)
    missing = [part for part in PARTS if part not in data]
    if source.eval_fraction == 0 and "eval" in missing:
        missing.remove("eval")
    notes += [
        f"{part}_fraction has no effect: {part} is `{selections[part].text}`"
        for part in ("eval", "test")
        if part in selections and getattr(source, f"{part}_fraction") != getattr(Source, f"{part}_fraction")
    ]
    if missing:
        _refuse_cut_of_stream(source, missing)
        _cut(source, data, described, missing, stratify_by, notes)
    if source.labels_per_class is not None:
        _few_labels(source, data, described, stratify_by, notes)
    if source.streaming:
        _stream(data, notes)
    if "unlabeled" in data:
        _finish_pool(source, data, described, stratify_by, input_columns, notes)
    data.setdefault("eval", None)
    for part in [part for part in (*PARTS, "unlabeled") if data.get(part) is not None]:
        rows = None if part == "train" and source.streaming else len(data[part])
        described[part] = {"rows": rows, "columns": data[part].column_names, **described[part]}
    stated = {"license": source.license} if source.license else {}
    facts = {**opened.description, **stated, "splits": described, **findings, "notes": notes}
    return Loaded(**data, description=facts)


def read_rows(path: str | Path, *, source: Source | None = None) -> Dataset:
    """Returns all rows of one file, in the file's order, or of a folder, e.g. to predict on.

    Args:
        path: A CSV, TSV, JSON, JSONL, Parquet, Arrow or text file, a folder of such files, of images, or
            of one folder of images or texts a class.
        source: Its encoding, delimiter and columns are used. A column that the task's mapping
            names and the file lacks is passed over: rows to predict on have no labels.

    Raises:
        DataError: as `load` for one file.
    """
    encoding, delimiter = (source.encoding, source.delimiter) if source else ("utf-8", None)
    if Path(path).is_dir():
        data = folder_origin(Path(path), str(path), encoding, delimiter).table.data
    else:
        data = read_table(path, encoding=encoding, delimiter=delimiter).data
    columns = (source.columns or {}) if source else {}
    present = {name: old for name, old in columns.items() if old in data.column_names}
    return _rename(data, present, str(path))


def _select(source: Source, opened: Opened, notes: list[str]) -> dict[str, Selection]:
    train = _selection(source, opened, "train", source.train or _default_train(opened))
    chosen = {"train": train}
    for part in ("eval", "test"):
        expression = getattr(source, part)
        if expression is not None:
            chosen[part] = _selection(source, opened, part, expression)
            if chosen[part].overlaps(train):
                raise DataError(
                    f"`train: {train.text}` and `{part}: {expression}` share rows",
                    where=f"data.{part}",
                    allowed="parts that do not overlap, e.g. train[:80%] and train[80%:]",
                )
    for part, names in (("eval", EVAL_NAMES), ("test", ("test",))):
        if part not in chosen:
            found = _default_held_out(source, opened, part, names, chosen, notes)
            if found is not None:
                chosen[part] = found
    if "eval" in chosen and "test" in chosen and chosen["eval"].overlaps(chosen["test"]):
        notes.append("eval and test share rows: the test figures are not independent of model selection")
    if source.unlabeled is not None:
        pool = chosen["unlabeled"] = _selection(source, opened, "unlabeled", source.unlabeled)
        taken = [part for part in ("eval", "test") if part in chosen and pool.overlaps(chosen[part])]
        if taken:
            raise DataError(
                f"`unlabeled: {source.unlabeled}` and `{taken[0]}: {chosen[taken[0]].text}` share rows",
                where="data.unlabeled",
                allowed="parts that do not overlap",
            )
    used = {key for part in chosen.values() for piece in part.pieces for key in piece.origin.keys}
    loose = [path for path in opened.loose if str(path.resolve()) not in used]
    files = [f"{path.name}/" if path.is_dir() else path.name for path in loose]
    if files:
        notes.append(f"files that name no split are not used: {', '.join(files)}")
    idle = sorted(name for name, origin in opened.splits.items() if not origin.keys & used)
    if idle:
        notes.append(f"splits that are not used: {', '.join(idle)}")
    return chosen


def _default_train(opened: Opened) -> str:
    if "train" in opened.splits:
        return "train"
    held_out = {*EVAL_NAMES, "test"}
    if len(opened.splits) == 1 and not held_out & set(opened.splits):
        return next(iter(opened.splits))
    raise DataError(
        "there is no split `train`",
        where="data.train",
        allowed=", ".join(opened.splits),
        hint="say which rows to train on, e.g. `train: " + next(iter(opened.splits)) + "[:80%]`",
    )


def _default_held_out(
    source: Source,
    opened: Opened,
    part: str,
    names: tuple[str, ...],
    chosen: dict[str, Selection],
    notes: list[str],
) -> Selection | None:
    name = next((name for name in names if name in opened.splits), None)
    if name is None:
        return None
    selection = _selection(source, opened, part, name)
    taken = next((other for other, given in chosen.items() if selection.overlaps(given)), None)
    if taken:
        notes.append(f"the split `{name}` is not used as {part}: {taken} already takes rows of it")
        return None
    return selection


def _selection(source: Source, opened: Opened, part: str, expression: str) -> Selection:
    where = f"data.{part}"
    whole = expression not in opened.splits and _find(opened, expression)
    terms = [Term(expression)] if whole else parse(expression, where=where)
    selection = Selection(expression)
    for term in terms:
        origin = _origin(source, opened, term.base, where)
        rows = _rows(origin)
        if rows is None:
            start, stop = _stream_bounds(term, where)
        else:
            start, stop = bounds(term, rows, where=where)
        selection.pieces.append(Piece(origin, start, stop))
    for at, piece in enumerate(selection.pieces):
        if any(piece.overlaps(other) for other in selection.pieces[:at]):
            raise DataError(
                f"`{expression}` names some rows twice", where=where, allowed="terms that do not overlap"
            )
    return selection


def _find(opened: Opened, base: str) -> Path | None:
    """The file, or else the folder, that a term names."""
    candidates = [path_of(base, DataError)]
    if opened.folder is not None:
        candidates.insert(0, opened.folder / base)
    folders = [path for path in candidates if path.is_dir()]
    return next((path for path in candidates if path.is_file()), folders[0] if folders else None)


def _origin(source: Source, opened: Opened, base: str, where: str) -> Origin:
    if base in opened.splits:
        return opened.splits[base]
    path = _find(opened, base)
    if path is None and (Path(base).suffix.lower() in READERS or "/" in base):
        path = (opened.folder or Path()) / base
    if path is not None and path.is_dir():
        return folder_origin(path, base, source.encoding, source.delimiter)
    if path is not None:
        return file_origin(path, base, source.encoding, source.delimiter)
    loose = [path.name for path in opened.loose]
    same = next((path.name for path in opened.loose if path.stem == base), None)
    meant = f" (did you mean the file `{same}`?)" if same else did_you_mean(base, [*opened.splits, *loose])
    raise DataError(
        f"unknown split `{base}`{meant}",
        where=where,
        allowed=", ".join([*opened.splits, *loose]) + ", or another file",
    )


def _rows(origin: Origin) -> int | None:
    from datasets import IterableDataset

    data = origin.table.data
    return None if isinstance(data, IterableDataset) else len(data)


def _stream_bounds(term: Term, where: str) -> tuple[int, float]:
    for bound in (term.start, term.stop):
        if bound is not None and not bound.isdecimal():
            raise DataError(
                f"`{term}` needs the length of a stream, which is not known",
                where=where,
                allowed="row numbers from the start, e.g. train[1000:] or train[:50000]",
            )
    return int(term.start or 0), math.inf if term.stop is None else int(term.stop)


def _rows_of(selection: Selection) -> Dataset | IterableDataset:
    from datasets import concatenate_datasets

    taken = [_take(piece) for piece in selection.pieces]
    if len(taken) == 1:
        return taken[0]
    names = {tuple(sorted(data.column_names or ())) for data in taken}
    try:
        if len(names) > 1:
            raise ValueError("their columns are " + " and ".join(", ".join(each) for each in sorted(names)))
        return concatenate_datasets(taken)
    except ValueError as error:
        raise DataError(
            f"the terms of `{selection.text}` cannot be joined: {error}", allowed="the same columns and types"
        ) from None


def _take(piece: Piece) -> Dataset | IterableDataset:
    data, rows = piece.origin.table.data, _rows(piece.origin)
    if rows is not None:
        return data if (piece.start, piece.stop) == (0, rows) else data.select(range(piece.start, piece.stop))
    data = data.skip(piece.start) if piece.start else data
    return data if piece.stop == math.inf else data.take(piece.stop - piece.start)


def _rename(
    data: Dataset | IterableDataset, columns: dict[str, str] | None, origin: str
) -> Dataset | IterableDataset:
    if not columns:
        return data
    held = data.column_names or list(next(iter(data), {}))  # a stream may not know its columns
    for name, old in columns.items():
        if old not in held:
            turned = ", ".join(f"{right}: {left}" for left, right in columns.items())
            raise DataError(
                f"`columns: {name}: {old}`: no column `{old}` in {origin}{did_you_mean(old, held)}",
                where="data.columns",
                allowed=", ".join(held),
                hint=f"the name in the data stands behind: `columns: {{{turned}}}`" if name in held else None,
            )
        if name != old and name in held and name not in columns.values():
            raise DataError(
                f"`columns: {name}: {old}` would overwrite the column `{name}` of {origin}",
                where="data.columns",
                allowed="a name that is free",
                hint=f"move it away in the same mapping, e.g. {name}_old: {name}",
            )
    if len(set(columns.values())) < len(columns):
        raise DataError(
            "`columns` uses a column twice: " + ", ".join(f"{new}: {old}" for new, old in columns.items()),
            where="data.columns",
            allowed="each column once",
        )
    names = {old: new for new, old in columns.items()}
    aside = {old: f"\0{old}" for old in names}
    return data.rename_columns(aside).rename_columns({aside[old]: new for old, new in names.items()})


def _prepare_texts(
    source: Source, data: dict, described: dict[str, dict], columns: Sequence[str], notes: list[str]
) -> dict[str, dict]:
    """Cleans and deduplicates what there is, in place; returns the reports."""
    steps = {"clean": (source.clean, clean_splits), "dedup": (source.dedup, drop_duplicates)}
    reports = {}
    for key, (rules, step) in steps.items():
        if rules is None:
            continue
        if source.streaming or not columns:
            raise DataError(
                f"`{key}` needs rows of text that are read whole",
                where=f"data.{key}",
                hint="take it out" + (", or set `data.streaming: false`" if source.streaming else ""),
            )
        order = [part for part in ("test", "eval", "train", "unlabeled") if part in data]
        made, reports[key], said = step(
            {part: data[part] for part in order}, columns, rules, held_out=("test", "eval")
        )
        notes += said
        told = json.dumps([key, asdict(rules), {part: described[part]["fingerprint"] for part in order}])
        for part in order:
            if made[part] is not data[part]:
                data[part] = made[part]
                described[part]["origin"] += ", cleaned" if key == "clean" else ", without duplicates"
                described[part]["fingerprint"] = _sha256(f"{part} of {told}")
    return reports


def _cut(
    source: Source,
    data: dict,
    described: dict[str, dict],
    missing: list[str],
    stratify_by: str | None,
    notes: list[str],
) -> None:
    """Holds the missing parts out of train, in place."""
    train, origin = data["train"], described["train"]
    groups, how = None, ""
    if stratify_by is not None:
        groups, how = _groups(train, stratify_by, notes)
    fractions = {part: getattr(source, f"{part}_fraction") for part in missing}
    parts = hold_out(len(train), fractions, groups=groups, seed=source.split_seed)
    lone = None if groups is None else lone_classes(groups, parts)
    notes += [lone] if lone else []
    for part in missing:
        share = f"{fractions[part] * 100:g} % of train"
        notes.append(
            f"no {part} split: {share} ({len(parts[part])} rows) was held out{how}, seed {source.split_seed}"
        )
    for part, rows in parts.items():
        data[part] = train.select(rows)
        text = "what is left of " if part == "train" else "held out of "
        fingerprint = _sha256(origin["fingerprint"], rows.astype("<i8").tobytes())
        described[part] = {"origin": text + origin["origin"], "fingerprint": fingerprint}


def _groups(train: Dataset, column: str, notes: list[str]) -> tuple[list | None, str]:
    if column not in train.column_names:
        raise DataError(
            f"no column `{column}` to hold rows out by{did_you_mean(column, train.column_names)}",
            allowed=", ".join(train.column_names),
            hint=f"map it: `columns: {{{column}: <its name in the data>}}`",
        )
    groups = list(train[column])
    reason = why_not_stratified(groups)
    if reason:
        notes.append(f"held-out rows are not stratified by {column}: {reason}")
        return None, ""
    return groups, f", stratified by {column}"


def _check_pool_keys(source: Source) -> None:
    pool = source.unlabeled is not None or source.labels_per_class is not None
    for key in ("unlabeled_limit", "pool_overlap"):
        if getattr(source, key) != getattr(Source, key) and not pool:
            raise DataError(
                f"`{key}` has no effect without a pool",
                where=f"data.{key}",
                hint="name one in `data.unlabeled`, or set `data.labels_per_class`",
            )
    if source.unlabeled_limit is not None and source.unlabeled_limit < 1:
        raise DataError(
            f"`unlabeled_limit: {source.unlabeled_limit}` is out of range",
            where="data.unlabeled_limit",
            allowed="1 or more",
        )
    if pool and source.streaming:
        raise DataError(
            "a pool of unlabeled rows is read whole",
            where="data.streaming",
            hint="set `data.streaming: false`",
        )


def _columns(source: Source, part: str, rows: Dataset | IterableDataset) -> dict[str, str] | None:
    """The column mapping; a pool need not have the label's column."""
    if part != "unlabeled" or not source.columns:
        return source.columns
    return {name: old for name, old in source.columns.items() if old in rows.column_names}


def _few_labels(
    source: Source, data: dict, described: dict[str, dict], stratify_by: str | None, notes: list[str]
) -> None:
    """Leaves few labeled rows in train; the others become the pool where none is named; in place."""
    train = data["train"]
    if stratify_by is None or stratify_by not in train.column_names:
        raise DataError(
            "`labels_per_class` needs one label column with one class a row",
            where="data.labels_per_class",
            allowed="single-label classification",
        )
    kept, rest = few_labels(_label_names(train, stratify_by), source.labels_per_class, source.split_seed)
    if not len(rest):
        raise DataError(
            f"`labels_per_class: {source.labels_per_class}` takes all {len(train):,} rows",
            where="data.labels_per_class",
            hint="take it out",
        )
    data["train"] = train.select(kept)
    origin = described["train"]
    for part, rows in (("train", kept), ("unlabeled", rest)):
        if part == "unlabeled" and part in data:
            continue
        text = f"{source.labels_per_class} rows a class of {origin['origin']}"
        if part == "unlabeled":
            text = f"the rest of {origin['origin']}, without labels"
        fingerprint = _sha256(origin["fingerprint"], rows.astype("<i8").tobytes())
        described[part] = {"origin": text, "fingerprint": fingerprint}
        data[part] = train.select(rows)
    use = "are left out" if source.unlabeled is not None else "become the pool, without their labels"
    notes.append(
        f"{len(kept)} labeled rows, {source.labels_per_class} a class (seed {source.split_seed}); "
        f"the other {len(rest):,} {use}"
    )


def _label_names(rows: Dataset, column: str) -> list:
    """A column's values; names where it has class numbers with names, so that a message can give them."""
    from datasets import ClassLabel

    feature = rows.features[column]
    if not isinstance(feature, ClassLabel):
        return list(rows[column])
    return [None if value is None or value < 0 else feature.int2str(value) for value in rows[column]]


def _finish_pool(
    source: Source,
    data: dict,
    described: dict[str, dict],
    label: str | None,
    input_columns: Sequence[str] | None,
    notes: list[str],
) -> None:
    """Takes labels and what must not be there out of the pool, in place."""
    pool = data["unlabeled"]
    if label is not None and label in pool.column_names:
        pool = pool.remove_columns([label])
        if source.unlabeled is not None:
            notes.append(f"the pool has a column `{label}`: it is not looked at")
    if source.unlabeled_limit is not None and source.unlabeled_limit < len(pool):
        chosen = np.random.RandomState(source.split_seed).permutation(len(pool))[: source.unlabeled_limit]
        chosen.sort()
        pool = pool.select(chosen)
        origin = described["unlabeled"]
        described["unlabeled"] = {
            "origin": f"{len(pool)} rows of {origin['origin']}",
            "fingerprint": _sha256(origin["fingerprint"], chosen.astype("<i8").tobytes()),
        }
    if input_columns is not None:
        found = check_pool(
            pool,
            labeled=data["train"],
            held_out={part: data[part] for part in ("eval", "test") if data.get(part) is not None},
            columns=input_columns,
            overlap=source.pool_overlap,
        )
        pool = found.rows
        described["unlabeled"]["pool"] = found.findings
        notes += found.notes
    data["unlabeled"] = pool


def _refuse_cut_of_stream(source: Source, missing: list[str]) -> None:
    if source.streaming:
        raise DataError(
            f"a stream has no {' and no '.join(missing)} split, and none can be held out of it",
            where="data.streaming",
            allowed="data with splits or files for eval and test",
            hint=f"name `{missing[0]}:`, e.g. a part of train (train[:1000], with train: train[1000:])",
        )


def _stream(data: dict, notes: list[str]) -> None:
    """Makes train a stream and the held-out parts data sets, in place."""
    from datasets import Dataset, IterableDataset

    for part in ("eval", "test"):
        if isinstance(data.get(part), IterableDataset):
            data[part] = Dataset.from_list(list(data[part]), features=data[part].features)
    if not isinstance(data["train"], IterableDataset):
        notes.append("streaming: local data is read whole, then given row by row")
        data["train"] = data["train"].to_iterable_dataset()


def _sha256(text: str, more: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + more).hexdigest()
