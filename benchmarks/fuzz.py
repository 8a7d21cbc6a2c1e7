"""Mistakes by the thousand: every one gives an answer or an error that a user can act on.

    python benchmarks/fuzz.py --kinds recipes --cases 20000 --seed 0
    python benchmarks/fuzz.py --cases 2000 --out fuzz.json

Notable:
- Hypothesis draws the cases; the tests draw a fixed few of the same (``tests/test_fuzz_*.py``).
- A case has an outcome: what it gave, or the class of its error. A fault is an error that is none of ours,
  a property that does not hold, or a case that took longer than ``SECONDS``.
- Faults are counted by place and the first case of each is printed whole.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from hf_llm_recipes.errors import DataError, MissingExtraError, UserError
from hf_llm_recipes.recipe import Recipe, _signature, fits
from hf_llm_recipes.shipped import all_recipes, find_recipe

SECONDS = 20  # a case that takes longer hangs

# -- recipes -------------------------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.5, 0.0, 1e-300, 1e300, 10**30, -(10**30)),
    *(float("inf"), float("-inf"), float("nan"), "", " ", "x", "null", "true", "1", "1e-3", "auto", "none"),
    *(
        "é",
        "中文",
        "\u202e",
        "🙂",
        "a" * 3000,
        "../..",
        "/etc/passwd",
        "~",
        "a/b",
        "a:b",
        "local/../x",
        "%s{0}",
    ),
    *("local/minilm", "local/smollm2-135m", "hlr_encoder", "bert-base-uncased", "steps", "epoch", "accuracy"),
    *([], {}, [[]], [{}], [1], ["x"], [None], {"name": "x"}, {"name": None}, {"x": 1}, {"": ""}, {"a": {}}),
    *([0.9, 0.999], ["all-linear"], {"load_in_4bit": True}, {"a": "b", "c": "d"}, [["a", "b"], ["c"]]),
]
SNIPPETS = [
    *("\t", "  ", "\n", ":", "- ", "{", "}", "[", "]", "'", '"', "#", "&a ", "*a", "<<: *a\n", "!!binary "),
    *("!!python/object/apply:os.system ['true']\n", "!!set {a, b}\n", "!!timestamp 2001-01-01\n", "? x\n"),
    *(
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "|\n",
        ">\n",
        "~",
        "0x1F",
        "1_000",
        "9" * 5000,
        "\ufeff",
        "\x85",
        "\u2028",
    ),
    *(
        "a: 1\na: 2\n",
        "model: x\n",
        "[" * 300,
        "{a: " * 200,
        "!!int x\n",
        "!!float y\n",
        "!!bool z\n",
        "!!null q\n",
    ),
]
FLAT = ("model", "data", "quantization")
LISTS = ("augmentation", "stages", "callbacks")
KEYS = ["name", "nmae", "x", "", "model", "data", "trainer", "é", "a.b", "0", "a b", "max_steps", "output"]


def _known() -> dict[str, dict[str, tuple[type, dict[str, Any]]]]:
    """For each section, the names that choose a class, and its arguments with their annotations."""
    from transformers import BitsAndBytesConfig

    from hf_llm_recipes import registry
    from hf_llm_recipes.data.loading import Source
    from hf_llm_recipes.tuning._model import ModelSource

    def arguments(*classes: type) -> dict[str, Any]:
        return {name: hint for cls in classes for name, (hint, _) in _signature(cls).items()}

    found: dict[str, dict[str, dict[str, Any]]] = {
        "model": {"": arguments(ModelSource)},
        "data": {"": arguments(Source)},
        "quantization": {"": arguments(BitsAndBytesConfig)},
    }
    kinds = {"task": "TASKS", "tuning": "TUNINGS", "method": "METHODS", "algorithm": "ALGORITHMS"}
    kinds |= {"augmentation": "AUGMENTATIONS", "stages": "STAGES", "callbacks": "CALLBACKS"}
    for section, kind in kinds.items():
        known = getattr(registry, kind)
        found[section] = {}
        for name in known.names():
            cls = known.get(name)
            rest = (cls.rest(),) if section == "tuning" and cls.rest() else ()
            found[section][name] = arguments(cls, *rest)
    methods = registry.METHODS
    found["trainer"] = {name: arguments(methods.get(name).arguments_class()) for name in methods.names()}
    return found


class RecipeCases:
    """Draws recipes with mistakes in them from the shipped ones."""

    def __init__(self) -> None:
        importlib.import_module("hf_llm_recipes.run")  # some seconds, which are no case's
        self.texts = [one.path.read_text(encoding="utf-8") for one in all_recipes()]
        self.values = [Recipe.from_text(text).values for text in self.texts]
        self.known = _known()
        self.keys = {
            key: sorted({a for one in names.values() for a in one}) for key, names in self.known.items()
        }

    def cases(self) -> st.SearchStrategy:
        """Pairs of YAML text and overrides."""
        return st.one_of(self._changed_values(), self._changed_values(), self._changed_text())

    def _changed_text(self) -> st.SearchStrategy:
        @st.composite
        def text(draw: Callable) -> tuple[str, list[str]]:
            made = draw(st.sampled_from(self.texts))
            body = [line for line in made.splitlines() if not line.startswith("#")]
            for _ in range(draw(st.integers(1, 4))):
                _change_lines(draw, body)
            return "\n".join(body), []

        return text()

    def _changed_values(self) -> st.SearchStrategy:
        @st.composite
        def changed(draw: Callable) -> tuple[str, list[str]]:
            values = copy.deepcopy(draw(st.sampled_from(self.values)))
            for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
                self._mutate(draw, values)
            overrides = [self._override(draw) for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2])))]
            return yaml.safe_dump(values, sort_keys=False, allow_unicode=draw(st.booleans())), overrides

        return changed()

    def _mutate(self, draw: Callable, values: dict[str, Any]) -> None:
        kinds = ["typed"] * 5 + ["odd", "drop", "rename", "swap", "graft", "deep", "name"]
        kind = draw(st.sampled_from(kinds))
        if kind in ("typed", "odd"):
            self._set_argument(draw, values, fitting=kind == "typed")
        elif kind == "graft":
            section = draw(
                st.sampled_from([*self.keys, "seed", "compare", "imports", "resume", "output", "zzz"])
            )
            values[section] = copy.deepcopy(draw(st.sampled_from(self.values)).get(section, _odd(draw)))
        elif kind == "name":
            section = draw(st.sampled_from([key for key in self.keys if key not in (*FLAT, "trainer")]))
            name = draw(st.sampled_from(list(self.known[section])))
            values[section] = [{"name": name}] if section in LISTS else {"name": name}
        else:
            _mutate_anywhere(draw, values, kind)

    def _set_argument(self, draw: Callable, values: dict[str, Any], *, fitting: bool) -> None:
        """Gives an argument of the class that reads a section; where ``fitting``, of a type it takes."""
        held = [key for key in self.known if values.get(key)]
        section = draw(st.sampled_from([*held, *held, *self.known]))
        part = values.get(section)
        if section in LISTS:
            part = (
                part
                if isinstance(part, list) and part
                else [{"name": draw(st.sampled_from(list(self.known[section])))}]
            )
            values[section], part = part, part[0]
        if not isinstance(part, dict):
            part = {"name": part} if isinstance(part, str) else {}
        named = values.get("method") if section == "trainer" else part
        named = str(named.get("name") if isinstance(named, dict) else named)
        names = self.known[section]
        arguments = names.get(named, names.get("", names.get("supervised", next(iter(names.values())))))
        if section in LISTS:
            values[section][0] = part
        else:
            values[section] = part
        key = draw(st.sampled_from(sorted(arguments) or ["x"]))
        choices = [value for value in ODD if fits(value, arguments.get(key, Any))] if fitting else []
        part[key] = copy.deepcopy(draw(st.sampled_from(choices or ODD)))

    def _override(self, draw: Callable) -> str:
        section = draw(st.sampled_from(["model", "data", "task", "trainer", "callbacks", "seed", "a..b", ""]))
        key = draw(st.sampled_from([*self.keys.get(section, ["0", "x"]), *KEYS]))
        value = draw(st.one_of(st.sampled_from(SNIPPETS), st.sampled_from(ODD).map(_as_yaml)))
        return draw(
            st.sampled_from([f"{section}.{key}={value}", f"{section}={value}", f"{key}", f"={value}"])
        )


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _odd(draw: Callable) -> Any:
    return copy.deepcopy(draw(st.sampled_from(ODD)))


def _mutate_anywhere(draw: Callable, values: dict[str, Any], kind: str) -> None:
    places = list(_places(values))
    if not places:
        return
    parent, key = draw(st.sampled_from(places))
    if kind == "drop":
        del parent[key]
    elif kind == "swap":
        parent[key] = _odd(draw)
    elif kind == "deep":
        for _ in range(draw(st.sampled_from([2, 19, 25, 80]))):
            parent[key] = [parent[key]] if draw(st.booleans()) else {"a": parent[key]}
    elif isinstance(parent, dict):
        parent[draw(st.sampled_from([*KEYS, str(key)[:-1], f"{key}s"]))] = parent.pop(key)


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], (dict, list)):
            yield from _places(values[key])


def _change_lines(draw: Callable, lines: list[str]) -> None:
    at = draw(st.integers(0, max(0, len(lines) - 1)))
    kind = draw(st.sampled_from(["cut", "double", "insert", "indent", "character", "move"]))
    if not lines:
        lines.append("")
    if kind == "cut":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "move":
        lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
    elif kind == "indent":
        lines[at] = draw(st.sampled_from([" ", "   ", "\t", "- "])) + lines[at]
    else:
        column = draw(st.integers(0, len(lines[at])))
        what = draw(st.sampled_from(SNIPPETS)) if kind == "insert" else draw(st.characters(codec="utf-8"))
        lines[at] = lines[at][:column] + what + lines[at][column:]


def judge_recipe(case: tuple[str, list[str]], folder: Path) -> str:
    """Reads, overrides and plans; returns the outcome."""

    text, overrides = case
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    sys.modules["hf_llm_recipes.run"].plan(Recipe.load(path, overrides))
    return "planned"


def recipe_names() -> st.SearchStrategy:
    """What may be given to ``run`` as a recipe's name."""
    odd = [
        "../../etc/passwd",
        "/etc/passwd",
        "\0",
        "a\0b",
        "x" * 5000,
        "local/../x",
        "recipes/../x",
        ".",
        "~",
        "CON",
    ]
    parts = st.sampled_from(
        ["..", ".", "", "chat", "classify", "lora", "quickstart", "recipes", "~", "a\0", "x.yaml"]
    )
    joined = st.lists(parts, max_size=6).map("/".join)
    return st.one_of(st.sampled_from(odd), joined, st.text(max_size=40))


def judge_name(name: str, folder: Path) -> str:
    """Finds and reads; only a shipped recipe or the very file may come."""
    path = find_recipe(name)
    Recipe.load(path)
    return "found"


# -- data files ------------------------------------------------------------------------------------

TABLE = {"text": ["a b", "", 'say "x", y', "é\n中"], "label": ["p", "q", "p", "q"], "n": [1, 2, None, 4]}
ODD_BYTES = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b"\x1b[2J",
        b"\r",
        b"\n",
        b'"',
        b",",
        b"\t",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b'"\\ud800"',
        b'{"\\ud800":1}',
        b"null",
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 300,
        b"\xe2\x80\xa8",
        b"\x85",
        b"PAR1",
        b"ARROW1",
        b"../../etc/passwd",
        b'{"a":1,"a":2}\n',
    ),
    *(
        b"true",
        b"1",
        b'"x"',
        b"[red]",
        b"[/red]",
        b"<script>",
        b"=cmd()",
        b"," * 200,
        b'"' * 7,
        b"\x1a",
        b"\x0c",
    ),
]
ENCODINGS = ["utf-8"] * 8 + [
    "utf-16",
    "cp1252",
    "gb18030",
    "utf-7",
    "zlib",
    "hex",
    "idna",
    "rot13",
    "",
    "a\0b",
    "x" * 300,
]
DELIMITERS: list[str | None] = [None] * 6 + [";", "\t", '"', "\n", "", "::", "\0", "é", " "]
SUFFIXES = [
    ".csv",
    ".tsv",
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".arrow",
    ".txt",
    ".gz",
    ".jsonl.gz",
    ".zip",
    ".pkl",
    "",
]


def whole_files() -> dict[str, bytes]:
    """A good file of each format."""
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(TABLE)
    rows = table.to_pylist()
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    made = {".jsonl": lines.encode(), ".ndjson": lines.encode(), ".json": json.dumps(rows).encode()}
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        buffer = io.StringIO(newline="")
        csv.writer(buffer, delimiter=delimiter).writerows([list(TABLE), *(row.values() for row in rows)])
        made[suffix] = buffer.getvalue().encode()
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table)
    return {
        **made,
        ".parquet": parquet.getvalue(),
        ".arrow": arrow.getvalue(),
        ".txt": "\n".join(TABLE["text"]).encode(),
    }


def data_files() -> st.SearchStrategy:
    """Suffix, bytes, encoding and delimiter of a file."""
    files = whole_files()

    @st.composite
    def file(draw: Callable) -> tuple[str, bytes, str, str | None]:
        suffix = draw(st.sampled_from([*list(files) * 3, *SUFFIXES]))
        held = files.get(suffix, b"") if draw(st.integers(0, 9)) else draw(st.binary(max_size=200))
        content = bytearray(held)
        for _ in range(draw(st.integers(0, 4))):
            _change_bytes(draw, content)
        return suffix, bytes(content), draw(st.sampled_from(ENCODINGS)), draw(st.sampled_from(DELIMITERS))

    return file()


def _change_bytes(draw: Callable, content: bytearray) -> None:
    at = draw(st.integers(0, len(content)))
    kind = draw(st.sampled_from(["insert", "insert", "replace", "cut", "end", "double", "flip"]))
    if kind == "insert":
        content[at:at] = draw(st.sampled_from(ODD_BYTES))
    elif kind == "replace":
        content[at : at + 4] = draw(st.binary(max_size=8))
    elif kind == "cut":
        del content[at : at + draw(st.integers(1, 40))]
    elif kind == "end":
        del content[at:]
    elif kind == "double":
        content += content[at:]
    elif content:
        content[at % len(content)] ^= 1 << draw(st.integers(0, 7))


def judge_file(case: tuple[str, bytes, str, str | None], folder: Path) -> str:
    """Reads all rows; they must be as many as the table says."""
    from hf_llm_recipes.data.reading import read_table

    suffix, content, encoding, delimiter = case
    path = folder / f"rows{suffix}"
    path.write_bytes(content)
    table = read_table(path, encoding=encoding, delimiter=delimiter)
    rows = table.data.to_list()
    assert len(rows) == len(table.data) > 0
    return "rows"


def data_sections() -> st.SearchStrategy:
    """``data:`` sections on good files with odd values."""
    words = [
        "train",
        "train[:2]",
        "train[2:]",
        "train[50%:]",
        "test",
        "rows.csv",
        "rows.csv[:1]",
        "../rows.csv",
        "a\0b",
    ]
    words += [
        "train+train",
        "train[",
        "train[9:]",
        "train[-1:]",
        "[:]",
        "",
        " ",
        "x" * 300,
        "~nobody/x",
        "train[:1e9]",
    ]
    text = st.one_of(st.none(), st.sampled_from(words))
    number = st.sampled_from([None, 0, 1, 2, -1, 10**30])
    share = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, 2.0, float("nan"), float("inf"), 1e-300])
    columns = st.sampled_from(
        [None, {}, {"text": "label"}, {"text": "no"}, {"": "text"}, {"a": "text", "b": "text"}]
    )
    return st.fixed_dictionaries(
        {"suffix": st.sampled_from(sorted(whole_files()))},
        optional={
            **dict.fromkeys(("train", "eval", "test", "unlabeled"), text),
            **dict.fromkeys(("eval_fraction", "test_fraction"), share),
            **dict.fromkeys(("labels_per_class", "unlabeled_limit", "split_seed"), number),
            "columns": columns,
            "clean": st.sampled_from([None, True, {"min_words": 1}, {"x": 1}]),
            "dedup": st.sampled_from([None, "exact", "near", {"method": "near"}]),
            "streaming": st.booleans(),
            "config": text,
            "revision": text,
        },
    )


def judge_section(case: dict[str, Any], folder: Path) -> str:
    """Loads the rows of a section; no row may be in two parts."""
    from hf_llm_recipes.data.loading import Source, load

    given = {key: value for key, value in case.items() if value is not None and key != "suffix"}
    path = folder / f"rows{case['suffix']}"
    path.write_bytes(whole_files()[case["suffix"]])
    recipe = Recipe.from_dict({"data": {"name": str(path), **given}})
    source = recipe.build("data", cls=Source)
    recipe.located(
        lambda: load(source, stratify_by="label", input_columns=("text",), text_columns=("text",)), "data"
    )
    return "rows"


# -- packing, masking, corrupting ---------------------------------------------------------------------

FRAME, BEHIND, END, SENTINELS = 1001, 1002, 1003, list(range(2000, 2200))


def document_cases() -> st.SearchStrategy:
    """Documents of any length, 0 and 1 among them, and how they are packed."""
    tokens = st.integers(0, 999)
    document = st.one_of(st.lists(tokens, max_size=3), st.lists(tokens, max_size=40))
    return st.fixed_dictionaries(
        {
            "documents": st.lists(document, max_size=8),
            "block_size": st.one_of(st.integers(-1, 6), st.integers(1, 64)),
            "end": st.sampled_from([None, END]),
            "tail": st.sampled_from(["drop", "keep"]),
            "framed": st.booleans(),
            "labels": st.booleans(),
            "shifted": st.booleans(),
            "multiple": st.sampled_from([1, 2, 8]),
        }
    )


def judge_packing(case: dict[str, Any], folder: Path) -> str:
    """Blocks hold every token once, in order; batches made of them give the same tokens and labels back."""
    from hf_llm_recipes.data.blocks import best_fit, concat

    documents, size, end = case["documents"], case["block_size"], case["end"]
    whole = [[*one, *([] if end is None or not one else [end])] for one in documents]
    frame = ([FRAME], [BEHIND]) if case["framed"] else ((), ())
    try:
        blocks = best_fit(documents, size, end_token=end, frame=frame)
    except DataError:
        assert size - 2 * case["framed"] < 1 or not any(documents), "refused what can be packed"
    else:
        _check_best_fit(blocks, whole, size, case["framed"])
        _check_batches(blocks, case)
    try:
        blocks = concat(documents, size, end_token=end, tail=case["tail"])
    except DataError:
        short = sum(map(len, whole)) < (size if case["tail"] == "drop" else 1)
        assert size < 1 or short, "refused what can be packed"
        return "refused"
    _check_concat(blocks, whole, size, case["tail"])
    _check_batches(blocks, case)
    return "packed"


def _check_best_fit(blocks: Any, whole: list[list[int]], size: int, framed: bool) -> None:
    pieces: dict[int, list[int]] = {}
    for block in blocks:
        ids, at = block["input_ids"].tolist(), 0
        assert 0 < len(ids) <= size
        assert len(ids) == block["seq_lengths"].sum()
        for length, number in zip(block["seq_lengths"].tolist(), block["documents"].tolist(), strict=True):
            piece = ids[at : at + length]
            at += length
            if framed:
                assert (piece[0], piece[-1]) == (FRAME, BEHIND)
                piece = piece[1:-1]
            assert piece
            pieces.setdefault(number, []).append(piece)
    for number, one in enumerate(whole):
        found = pieces.get(number, [])
        room = max(map(len, found), default=1)
        cut = [one[i : i + room] for i in range(0, len(one), room)]
        assert sorted(found) == sorted(cut)
    _check_report(blocks)


def _check_concat(blocks: Any, whole: list[list[int]], size: int, tail: str) -> None:
    stream = [token for one in whole for token in one]
    kept = len(stream) if tail == "keep" else len(stream) - len(stream) % size
    assert blocks.tokens.tolist() == stream[:kept]
    lengths = [len(block["input_ids"]) for block in blocks]
    assert all(length == size for length in lengths[:-1])
    assert 0 < lengths[-1] <= size
    owners = [number for number, one in enumerate(whole) for _ in one][:kept]
    import numpy as np

    assert np.repeat(blocks.documents, blocks.lengths).tolist() == owners
    _check_report(blocks)


def _check_report(blocks: Any) -> None:
    found = blocks.report
    assert found["tokens"] + found["added_tokens"] == found["tokens_in_blocks"] + found["dropped_tokens"]
    assert found["tokens_in_blocks"] == sum(len(block["input_ids"]) for block in blocks)
    assert 0 < found["fill"] <= 1


def _check_batches(blocks: Any, case: dict[str, Any]) -> None:
    """Packed and padded batches, taken apart again, are the pieces that went in."""
    import torch

    from hf_llm_recipes.models.packed import sequence_lengths
    from hf_llm_recipes.objectives._documents import pieces_of
    from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator

    pieces = pieces_of([{k: v.tolist() for k, v in block.items()} for block in blocks])
    if case["labels"]:
        pieces = [{**one, "labels": [t if t % 3 else -100 for t in one["input_ids"]]} for one in pieces]
    packed = PackedCollator(shifted_labels=case["shifted"])(pieces)
    padded = PaddedCollator(
        pad_token_id=0, shifted_labels=case["shifted"], pad_to_multiple_of=case["multiple"]
    )(pieces)
    lengths = [len(one["input_ids"]) for one in pieces]
    assert sequence_lengths(1, sum(lengths), packed["position_ids"]) == lengths
    mask = padded["attention_mask"].bool()
    assert mask.shape[1] % case["multiple"] == 0
    assert mask.sum(1).tolist() == lengths
    assert torch.equal(padded["input_ids"][mask], packed["input_ids"][0])
    assert [part.tolist() for part in packed["input_ids"][0].split(lengths)] == [
        one["input_ids"] for one in pieces
    ]
    if case["labels"]:
        first = [-100] if case["shifted"] else []
        wanted = [[*first, *one["labels"][len(first) :]] for one in pieces]
        assert [part.tolist() for part in packed["labels"][0].split(lengths)] == wanted
        assert torch.equal(padded["labels"][mask], packed["labels"][0])
        assert (padded["labels"][~mask] == -100).all()


def corruption_cases() -> st.SearchStrategy:
    """Rows of tokens, and how much of them is hidden."""
    return st.fixed_dictionaries(
        {
            "ids": st.lists(st.integers(0, 999), min_size=2, max_size=150),
            "density": st.floats(0.001, 0.5),
            "mean_length": st.floats(1, 20),
            "seed": st.integers(0, 2**31),
        }
    )


def judge_corruption(case: dict[str, Any], folder: Path) -> str:
    """The target's spans in the places of the source's sentinels give the row back."""
    from hf_llm_recipes.objectives.span_corruption import Corrupter, fill_spans, noise_counts
    from hf_llm_recipes.tasks._masking import generator_of

    ids, make = case["ids"], Corrupter(SENTINELS, END, case["density"], case["mean_length"])
    source, target = make(ids, generator_of(case["seed"], 0))
    assert make(ids, generator_of(case["seed"], 0)) == (source, target)
    tokens, spans = noise_counts(len(ids), case["density"], case["mean_length"])
    assert fill_spans(source[:-1], target, SENTINELS, END) == ids
    assert source[-1] == target[-1] == END
    assert len(source) == len(ids) - tokens + spans + 1
    assert len(target) == tokens + spans + 1
    assert [token for token in source if token in SENTINELS] == SENTINELS[:spans]
    assert [token for token in target if token in SENTINELS] == SENTINELS[:spans]
    return "given back"


class Words:
    """A tokenizer of 50 tokens, of which 0 to 4 are special and odd ones go on with a word."""

    mask_token_id, all_special_ids = 4, (0, 1, 2, 3, 4)

    def __len__(self) -> int:
        return 50

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Names: ``##7`` goes on with a word."""
        return [f"##{i}" if i > 4 and i % 2 else str(i) for i in ids]


def masking_cases() -> st.SearchStrategy:
    """Rows of tokens, special ones among them, and how they are hidden."""
    return st.fixed_dictionaries(
        {
            "rows": st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=60), min_size=1, max_size=4),
            "mask_prob": st.floats(0.001, 0.999),
            "whole_words": st.booleans(),
            "seed": st.integers(0, 2**31),
        }
    )


def judge_masking(case: dict[str, Any], folder: Path) -> str:
    """Only tokens that may be hidden are, all others stay, and labels are what stood there."""
    import torch

    from hf_llm_recipes.tasks._masking import TokenMasker, generator_of

    masker = TokenMasker(Words(), case["mask_prob"], case["whole_words"])
    for number, row in enumerate(case["rows"]):
        ids_T = torch.tensor(row)
        hidden_T, labels_T = masker(ids_T, generator_of(case["seed"], number))
        again = masker(ids_T, generator_of(case["seed"], number))
        assert torch.equal(hidden_T, again[0])
        assert torch.equal(labels_T, again[1])
        chosen_T = labels_T != -100
        assert not (chosen_T & (ids_T < 5)).any()
        assert torch.equal(hidden_T[~chosen_T], ids_T[~chosen_T])
        assert torch.equal(labels_T[chosen_T], ids_T[chosen_T])
        assert hidden_T.min() >= 0
        assert hidden_T.max() < 50
        if case["whole_words"]:
            for at in range(1, len(row)):  # a piece goes with the token it belongs to
                if row[at] > 4 and row[at] % 2 and row[at - 1] > 4:
                    assert chosen_T[at] == chosen_T[at - 1]
    return "hidden"


# -- algorithms --------------------------------------------------------------------------------------

EXTREMES = [0.0, 1.0, -1.0, 30.0, -30.0, 1e4, -1e4, 88.8, -104.0, 1e-30]


def algorithm_cases() -> st.SearchStrategy:
    """An algorithm, and steps of logits: drawn, equal, extreme, of one class, none at all."""
    from hf_llm_recipes.registry import ALGORITHMS

    step = st.fixed_dictionaries(
        {
            "unlabeled": st.integers(0, 6),
            "labeled": st.integers(0, 4),
            "kind": st.sampled_from(["drawn", "drawn", "extreme", "equal", "one class", "sure"]),
            "seed": st.integers(0, 2**31),
            "progress": st.sampled_from([0.0, 0.3, 1.0]),
        }
    )
    return st.fixed_dictionaries(
        {
            "name": st.sampled_from(ALGORITHMS.names()),
            "classes": st.integers(2, 5),
            "steps": st.lists(step, min_size=1, max_size=5),
            "prior": st.sampled_from(["uniform", "one", "drawn"]),
            "stop": st.integers(0, 4),
        }
    )


def judge_algorithm(case: dict[str, Any], folder: Path) -> str:
    """Losses are finite and not negative, targets are probabilities, a state that was kept goes on alike."""
    import io

    import torch

    algorithm = _started(case)
    twin = None
    for number, step in enumerate(case["steps"]):
        if number == case["stop"]:
            file = io.BytesIO()
            torch.save(algorithm.state_dict(), file)
            file.seek(0)
            twin = _started(case)
            twin.load_state_dict(torch.load(file, weights_only=True))
        given, strong = _given_step(case, step)
        found = _loss_of(algorithm, given, strong)
        if twin is not None:
            assert found == _loss_of(twin, given, strong), "another loss after a resume"
    return "finite"


def _started(case: dict[str, Any]) -> Any:
    import torch

    from hf_llm_recipes.registry import ALGORITHMS

    torch.manual_seed(0)
    algorithm = ALGORITHMS.get(case["name"])()
    algorithm.start(case["classes"], 12)
    return algorithm


def _given_step(case: dict[str, Any], step: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    from hf_llm_recipes.algorithms.base import Given

    random = torch.Generator().manual_seed(step["seed"])
    classes, rows = case["classes"], step["unlabeled"]
    prior_C = torch.full((classes,), 1 / classes)
    if case["prior"] != "uniform":
        prior_C = (
            torch.eye(classes)[0]
            if case["prior"] == "one"
            else torch.softmax(torch.randn(classes, generator=random), -1)
        )
    given = Given(
        weak_UC=_logits(step["kind"], rows, classes, random),
        labeled_BC=_logits(step["kind"], step["labeled"], classes, random),
        labels_B=torch.randint(classes, (step["labeled"],), generator=random),
        rows_U=torch.randperm(12, generator=random)[:rows],
        prior_C=prior_C,
        progress=step["progress"],
        peer_UC=_logits(step["kind"], rows, classes, random),
    )
    return given, _logits(step["kind"], rows, classes, random)


def _logits(kind: str, rows: int, classes: int, random: Any) -> Any:
    import torch

    made = 3 * torch.randn(rows, classes, generator=random)
    if kind == "extreme":
        made = torch.tensor(EXTREMES)[torch.randint(len(EXTREMES), (rows, classes), generator=random)]
    elif kind == "equal":
        made = torch.zeros(rows, classes)
    elif kind == "one class":
        made = torch.zeros(rows, classes)
        made[:, 0] = 1e4
    elif kind == "sure":
        made = 20 * torch.eye(classes)[torch.randint(classes, (rows,), generator=random)]
    return made


def _loss_of(algorithm: Any, given: Any, strong: Any) -> list[float]:
    import math

    import torch

    guess = algorithm.guess(given)
    assert guess.target_UC.shape == given.weak_UC.shape
    assert guess.weight_U.shape == given.rows_U.shape
    assert torch.isfinite(guess.target_UC).all()
    assert torch.isfinite(guess.weight_U).all()
    assert (guess.weight_U >= 0).all()
    assert (guess.target_UC >= 0).all()
    if len(guess.target_UC):
        assert (guess.target_UC.sum(-1) - 1).abs().max() < 1e-4
        known = len(given.labels_B) > 0  # AdaMatch's threshold is a share of the labeled items' confidence
        assert all(math.isfinite(v) for k, v in guess.stats.items() if known or k != "threshold"), guess.stats
    algorithm.keep_labeled(given.labeled_BC, given.labels_B, given.progress)
    if algorithm.through_model:
        loss = algorithm.loss_through(_Linear(given, strong.shape[-1]), given, guess) if len(strong) else None
    else:
        kept_K = (guess.weight_U > 0).nonzero().squeeze(-1)
        strong = strong[kept_K].requires_grad_(True)
        loss = algorithm.loss(strong, guess.keep(kept_K), len(given.rows_U))
        loss.backward()
        assert torch.isfinite(strong.grad).all()
    if loss is None:
        return []
    assert torch.isfinite(loss), loss
    fair = getattr(algorithm, "fairness_weight", 0) * math.log(strong.shape[-1])  # that term is negative
    assert loss >= -1e-4 - fair, loss
    return [loss.item(), *guess.weight_U.tolist()]


class _Linear:
    """A model of one matrix on the mean embedding of a row."""

    def __init__(self, given: Any, classes: int) -> None:
        import torch

        random = torch.Generator().manual_seed(7)
        rows = len(given.rows_U) + len(given.labels_B)
        self.tokens = torch.randn(rows, 3, 5, generator=random)
        self.weight = torch.randn(classes, 5, generator=random).requires_grad_(True)

    def embeddings(self, rows_K: Any) -> Any:
        """Of some rows."""
        return self.tokens[rows_K]

    def token_mask(self, rows_K: Any) -> Any:
        """All tokens count."""
        return self.tokens.new_ones(len(rows_K), 3)

    def logits(self, rows_K: Any, embeddings_KTD: Any) -> Any:
        """Of given embeddings."""
        return embeddings_KTD.mean(1) @ self.weight.T

    def mixed(self, rows_K: Any, others_K: Any, share: float, layer: int | None) -> Any:
        """Of mixtures."""
        return self.logits(rows_K, share * self.tokens[rows_K] + (1 - share) * self.tokens[others_K])


# -- running ---------------------------------------------------------------------------------------


class Slow(BaseException):
    """A case took longer than ``SECONDS``."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises ``Slow`` where the block takes longer."""

    def stop(*_: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(judge: Callable, case: Any, folder: Path) -> tuple[str, str | None]:
    """Returns the outcome of a case, and its fault or None."""
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return judge(case, folder), None
    except (UserError, MissingExtraError) as error:
        return type(error).__name__, None
    except Slow:
        return "slow", "slow"
    except BaseException as error:  # whatever it is, it is a fault of ours: reported, never hidden
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)
        ours = [f for f in last if "hf_llm_recipes" in f.filename] or last
        return (
            "fault",
            f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:150]}",
        )


KINDS: dict[str, tuple[Callable[[], st.SearchStrategy], Callable]] = {
    "recipes": (lambda: RecipeCases().cases(), judge_recipe),
    "names": (recipe_names, judge_name),
    "files": (data_files, judge_file),
    "sections": (data_sections, judge_section),
    "packing": (document_cases, judge_packing),
    "corruption": (corruption_cases, judge_corruption),
    "masking": (masking_cases, judge_masking),
    "algorithms": (algorithm_cases, judge_algorithm),
}


def fuzz(kind: str, cases: int, number: int) -> dict[str, Any]:
    """Draws and judges; returns counts of outcomes, and faults with their first case."""
    strategy, judge = KINDS[kind][0](), KINDS[kind][1]
    counts: Counter[str] = Counter()
    faults: dict[str, Any] = {}
    times: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        @seed(number)
        @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def run(case: Any) -> None:
            kind_of, fault = outcome(judge, case, folder)
            counts[kind_of] += 1
            if fault is not None:
                times[fault] += 1
                faults.setdefault(fault, case)

        run()
    return {
        "kind": kind,
        "cases": sum(counts.values()),
        "seconds": round(time.monotonic() - began, 1),
        "outcomes": dict(counts.most_common()),
        "faults": {
            fault: {"times": times[fault], "case": repr(case)[:1500]} for fault, case in faults.items()
        },
    }


def main() -> None:
    """Prints the outcomes of every kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    for kind in options.kinds:
        found.append(fuzz(kind, options.cases, options.seed))
        print(json.dumps(found[-1], indent=1, ensure_ascii=False), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any(one["faults"] for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
