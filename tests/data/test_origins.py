import re

import pytest
from datasets import Dataset, DatasetDict

from hf_llm_recipes.data.origins import open_source
from hf_llm_recipes.errors import DataError

PLAIN = {"config": None, "revision": None, "encoding": "utf-8", "delimiter": None, "streaming": False}


def opened(name, **options):
    return open_source(str(name), **{**PLAIN, **options})


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text)
    return folder


def lengths(source):
    return {split: len(origin.table.data) for split, origin in source.splits.items()}


def test_a_folder_has_the_splits_its_files_name(tmp_path):
    folder = write(tmp_path / "d", Train_csv="text\na\n", dev_jsonl='{"text": "b"}', LICENSE_txt="free")
    source = opened(folder)
    assert lengths(source) == {"dev": 1, "train": 1}
    assert source.loose == [folder / "LICENSE.txt"]


def test_numbered_parts_are_joined_in_order(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for part, text in (("00001-of-00002", "b"), ("00000-of-00002", "a")):
        (folder / f"train-{part}.csv").write_text(f"text\n{text}\n")
    table = opened(folder).splits["train"].table
    assert table.data.to_list() == [{"text": "a"}, {"text": "b"}]
    assert len(table.fingerprint) == 64


def test_files_with_other_names_are_one_train_split(tmp_path):
    folder = write(tmp_path / "d", one_txt="a\nb\n", two_txt="c\n")
    assert lengths(opened(folder)) == {"train": 3}
    assert lengths(opened(f"{folder}/t*.txt")) == {"train": 1}


def test_a_saved_data_set_keeps_its_splits_and_types(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "dict")
    rows.save_to_disk(tmp_path / "one")
    assert lengths(opened(tmp_path / "dict")) == {"train": 2, "test": 1}
    assert lengths(opened(tmp_path / "one")) == {"train": 2}
    fingerprint = opened(tmp_path / "one").splits["train"].table.fingerprint
    assert fingerprint == opened(tmp_path / "dict").splits["train"].table.fingerprint


def test_a_damaged_saved_data_set(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="the saved data set is damaged"):
        opened(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"x")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="the saved data set is damaged"):
        opened(tmp_path / "one")


def test_a_folder_of_something_else(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no file of rows; it holds 2 \*\.pdf"):
        opened(tmp_path)


def test_files_that_do_not_go_together(tmp_path):
    mixed = opened(write(tmp_path / "mixed", a_csv="text\nx\n", b_txt="x\n"))
    with pytest.raises(DataError, match=r"files of several formats would make one split: a\.csv, b\.txt"):
        _ = mixed.splits["train"].table
    columns = opened(write(tmp_path / "columns", a_csv="text\nx\n", b_csv="texts\nx\n"))
    with pytest.raises(DataError, match=r"b\.csv: the columns texts differ from those of a\.csv"):
        _ = columns.splits["train"].table
    types = opened(write(tmp_path / "types", a_jsonl='{"n": 1}\n', b_jsonl='{"n": "x"}\n'))
    with pytest.raises(DataError, match="the files' column types differ"):
        _ = types.splits["train"].table
    with pytest.raises(DataError, match="several files are the split `train`"):
        opened(write(tmp_path / "twice", train_csv="text\nx\n", train_jsonl='{"text": "x"}\n'))


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "reviews", train_csv="text\nx\n")
    for name, expected in {
        "./review": "`review` does not exist",
        "reviews.csv": "there is: reviews",
        "a/b/c": "`a/b/c` does not exist",
        "reviews/*.parquet": "`reviews/*.parquet` matches no file",
        "local/python-docstring": "did you mean `local/python-docstrings`?",
        "local/nothing": "local/python-names, local/python-parameters, local/python-questions",
        "someone/some-data": "`someone/some-data` is no file or folder here, and the Hub did not give it",
    }.items():
        with pytest.raises(DataError, match=re.escape(expected)):
            opened(name)


def test_an_option_that_would_have_no_effect(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    for options in ({"config": "x"}, {"revision": "x"}):
        with pytest.raises(DataError, match="would have no effect"):
            opened(tmp_path / "a.csv", **options)
    with pytest.raises(DataError, match="`delimiter: ;` would have no effect on `local/digits`"):
        opened("local/digits", delimiter=";")
    with pytest.raises(DataError, match="`encoding: cp1252` would have no effect"):
        opened("local/digits", encoding="cp1252")


def fake_hub(monkeypatch, splits):
    import datasets

    calls = []

    def load_dataset(name, config, *, revision, streaming):
        calls.append((name, config, revision, streaming))
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_data_set_is_asked_for_with_config_and_revision(monkeypatch):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    calls = fake_hub(monkeypatch, DatasetDict({"train": rows}))
    source = opened("owner/name", config="en", revision="abc")
    assert calls == [("owner/name", "en", "abc", False)]
    assert lengths(source) == {"train": 2}
    assert source.description == {
        "origin": "Hub owner/name",
        "config": "en",
        "revision": "abc",
        "license": None,
    }
    assert source.splits["train"].table.fingerprint == f"abc:{rows._fingerprint}"
    with pytest.raises(DataError, match="`delimiter: ;` would have no effect on `owner/name`"):
        opened("owner/name", delimiter=";")


def test_the_commit_of_a_hub_data_set_is_found_in_its_checksums(monkeypatch):
    rows = Dataset.from_dict({"text": ["a"]})
    rows.info.download_checksums = {f"hf://datasets/owner/name@{'0a' * 20}/train.parquet": {}}
    fake_hub(monkeypatch, DatasetDict({"train": rows}))
    assert opened("owner/name").description["revision"] == "0a" * 20
