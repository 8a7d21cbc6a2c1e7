"""The terminal, the page and the command: brackets without colours, escapes everywhere, one JSON object."""

import io
import json

import pytest
import typer.testing
from _planted import jsonl, recipe_of
from conftest import sentences
from rich.console import Console

from hf_llm_recipes import cli
from hf_llm_recipes.checking.base import Finding, Piece, Report, Sample, named, share
from hf_llm_recipes.checking.command import check_file
from hf_llm_recipes.checking.page import page
from hf_llm_recipes.checking.screen import show, sparkline

EVIL = "<script>alert(1)</script>\x1b[31m[bold]"


def report():
    pieces = [Piece("hello\n"), Piece(f"hi {EVIL}", loss=True), Piece(" was", loss=True, note="B-x")]
    return Report(
        "mine",
        kind="task chat",
        splits={
            "train": {
                "rows": 9,
                "looked_at": 9,
                "tokens": 90,
                "rows_cut": 3,
                "tokens_cut": 10,
                "tokens_read": 90,
                "supervised_tokens": 45,
                "supervised_tokens_cut": 5,
                "length": {"median": 10.0, "p95": 12.0, "p99": 13.0, "max": 14, "limit": 12, "unit": "rows"},
                "histogram": {"counts": [1, 0, 8], "from": 1.0, "to": 14.0},
            },
            "test": {"rows": 2000, "looked_at": 500},
        },
        labels={"train": {EVIL: 5, "b": 1}},
        samples=[Sample("train", 3, pieces, label="L", tokens=8, supervised=4)],
        model={"trainable": 5, "total": 50, "adapter": {"query": 2}},
        findings=[
            Finding("info", "x", "a small thing"),
            Finding("error", "x", f"a bad thing {EVIL}", "rows.csv, row 7", "mend it"),
        ],
        notes=[f"a note {EVIL}"],
    )


def printed(**given):
    console = Console(file=io.StringIO(), width=120, **given)
    show(report(), console)
    return console.file.getvalue()


def test_without_colours_what_carries_loss_is_in_brackets():
    text = printed()
    assert "hello⏎⟦hi <script>" in text
    assert "⟦ was⟧‹B-x›" in text
    assert "train row 3, 4 of 8 tokens → L" in text
    assert "33.3 % rows, 10.0 % tokens" in text
    assert "45 (50.0 %), 5 cut" in text
    assert "2,000 (500 seen)" in text
    assert "\x1b" not in text
    assert "[bold]" in text  # of the data: no markup
    assert text.index("a bad thing") < text.index("a small thing")
    assert "1 error" in text.splitlines()[-1]


def test_with_colours_there_are_no_brackets():
    text = printed(force_terminal=True, color_system="standard")
    assert "⟦" not in text
    assert "\x1b[1;32mhi" in text  # bold green
    assert "\x1b[31m[bold]" not in text


def test_the_name_of_a_class_is_not_taken_for_a_count():
    console = Console(file=io.StringIO(), width=120)
    show(Report("mine", labels={"train": {"1": 237, "0": 13, "other": 7}}), console)
    assert "labels   1: 237 (92.2 %), 0: 13 (5.1 %), other 7 (2.7 %)" in console.file.getvalue()


def test_small_words():
    assert sparkline([0, 1, 8, 4]) == " ▁█▄"
    assert sparkline([]) == ""
    assert [share(1, 3), share(1, 100_000), share(0, 5), share(1, 0)] == [
        "33.3 %",
        "0.001 %",
        "0.0 %",
        "0.0 %",
    ]
    assert named([1, 2, 3], 2) == "1, 2, … (1 more)"


def test_the_page_escapes_its_data_and_loads_nothing():
    text = page(report())
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") == 4
    assert "<mark>hi &lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "\x1b" not in text
    assert "http" not in text


@pytest.fixture
def file(tiny_bert, tmp_path):
    data = {"name": jsonl(tmp_path / "rows.jsonl", sentences(60)), "eval_fraction": 0}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(recipe_of(tiny_bert, data, {"name": "text_classification"})))
    return path


def run(*arguments):
    return typer.testing.CliRunner().invoke(cli.app, ["check", *map(str, arguments)])


def test_the_command(file, tmp_path):
    html = tmp_path / "page.html"
    done = run(file, "--json", "--no-estimate", "--html", html)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["counts"] == {"error": 0, "warning": 0, "info": 0}
    assert made["splits"]["train"]["rows"] == 54
    assert made["estimate"] is None
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    again = run(file, "--html", html)
    assert again.exit_code == 1
    assert "exists already" in str(again.exception)


def test_the_command_ends_with_1_where_something_is_wrong(file):
    done = run(file, "task.label=none", "--json")
    assert done.exit_code == 1
    made = json.loads(done.stdout)
    assert "no column `none`" in made["findings"][0]["what"]
    assert made["findings"][0]["do"]


def test_a_recipe_that_cannot_be_read_is_a_finding(tmp_path):
    made = check_file("no-such", [])
    assert made.exit_code == 1
    assert "there is no recipe `no-such`" in made.findings[0].what
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    assert check_file(str(broken), []).of("error")
