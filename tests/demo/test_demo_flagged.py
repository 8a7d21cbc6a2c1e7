"""Flagged rows: whole lines of the run's columns, and places that cannot be written to."""

import json
import os
import threading
from errno import ENOSPC
from types import SimpleNamespace

import pytest

from hf_llm_recipes.data.loading import read_rows
from hf_llm_recipes.demo import flagged
from hf_llm_recipes.demo.flagged import Columns, Flagged
from hf_llm_recipes.errors import DataError, RunError


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_have_the_datas_own_columns(tmp_path):
    columns = Columns({"text": "review"}, ["id", "review", "label"])
    made = Flagged(tmp_path / "f.jsonl", columns)
    assert made.add({"text": "a\nb ü", "label": "x"}, labeled=True) == tmp_path / "f.jsonl"
    assert made.add({"text": "c"}, labeled=False) == tmp_path / "f-unlabeled.jsonl"
    assert lines(tmp_path / "f.jsonl") == [{"id": None, "review": "a\nb ü", "label": "x"}]
    assert lines(tmp_path / "f-unlabeled.jsonl") == [{"id": None, "review": "c", "label": None}]
    assert read_rows(tmp_path / "f.jsonl")["review"] == ["a\nb ü"]


def test_the_columns_of_a_run(tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    assert Columns.of_run(run / "model") == Columns()
    (run / "recipe.yaml").write_text("data: {name: d.csv, columns: {text: review}}\n")
    assert Columns.of_run(run / "model") == Columns({"text": "review"}, [])
    told = {"data": {"splits": {"train": {"columns": ["id", "text", "label"]}}}}
    (run / "environment.json").write_text(json.dumps(told))
    assert Columns.of_run(run / "model") == Columns({"text": "review"}, ["id", "review", "label"])


def test_many_at_once_lose_nothing(tmp_path):
    pages = [Flagged(tmp_path / "f.jsonl", Columns()) for _ in range(2)]

    def add(page, number):
        for i in range(20):
            page.add({"text": f"{number}-{i} " + "x" * 5000}, labeled=True)

    threads = [threading.Thread(target=add, args=(pages[i % 2], i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {row["text"].split()[0] for row in lines(tmp_path / "f.jsonl")}
    assert found == {f"{number}-{i}" for number in range(4) for i in range(20)}


def test_a_line_without_an_end_is_ended_first(tmp_path):
    (tmp_path / "f.jsonl").write_text('{"text": "by hand"}')
    Flagged(tmp_path / "f.jsonl", Columns()).add({"text": "next"}, labeled=True)
    assert lines(tmp_path / "f.jsonl") == [{"text": "by hand"}, {"text": "next"}]


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    made = Flagged(tmp_path / "f.jsonl", Columns())
    made.add({"text": "one"}, labeled=True)
    before = (tmp_path / "f.jsonl").read_bytes()

    def full(number):
        raise OSError(ENOSPC, os.strerror(ENOSPC))  # the line is written, and does not reach the disk

    monkeypatch.setattr(flagged, "os", SimpleNamespace(**{**vars(os), "fsync": full}))
    with pytest.raises(RunError, match="cannot be written: No space left on device\n  do: name another"):
        made.add({"text": "two"}, labeled=True)
    assert (tmp_path / "f.jsonl").read_bytes() == before


@pytest.mark.parametrize("begun", ['{"sentence": "a"}\n', "[1]\n", "torn"])
def test_rows_of_other_columns_are_not_mixed(tmp_path, begun):
    (tmp_path / "f.jsonl").write_text(begun)
    with pytest.raises(DataError, match=r"f\.jsonl: holds .*; this page's rows have text"):
        Flagged(tmp_path / "f.jsonl", Columns()).add({"text": "a"}, labeled=True)
    assert (tmp_path / "f.jsonl").read_text() == begun


def test_places_that_cannot_be_written_to(tmp_path):
    with pytest.raises(RunError, match=r"are JSON lines\n  allowed: a file named \*\.jsonl"):
        Flagged(tmp_path / "f.csv", Columns())
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(
        RunError, match=r"d\.jsonl: cannot be written: Is a directory\n  do: name another file"
    ):
        Flagged(tmp_path / "d.jsonl", Columns())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written: File exists"):
        Flagged(tmp_path / "file" / "f.jsonl", Columns())
    Flagged(tmp_path / "new" / "f.jsonl", Columns())
    assert list((tmp_path / "new").iterdir()) == []  # nothing is left of the try
