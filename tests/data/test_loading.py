import json
import subprocess
import sys
from collections import Counter

import pytest
from datasets import Dataset, IterableDataset, IterableDatasetDict

from hf_llm_recipes.data.loading import Source, load, read_rows
from hf_llm_recipes.errors import DataError


@pytest.fixture
def rows_csv(tmp_path):
    """100 rows of id 0 to 99; label a for 0 to 79, b for the rest."""
    lines = [f"{i},{'a' if i < 80 else 'b'}" for i in range(100)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["id,label", *lines]) + "\n")
    return path


def ids(data):
    return [int(row) for row in data["id"]]


def jsonl(path, start, stop):
    path.write_text("".join(json.dumps({"id": i}) + "\n" for i in range(start, stop)))


def test_a_file_is_cut_in_three_with_the_shares_of_the_labels(rows_csv):
    loaded = load(Source(name=str(rows_csv)), stratify_by="label")
    assert Counter(loaded.eval["label"]) == Counter(loaded.test["label"]) == {"a": 8, "b": 2}
    assert sorted(ids(loaded.train) + ids(loaded.eval) + ids(loaded.test)) == list(range(100))
    assert loaded.description["notes"] == [
        "no eval split: 10 % of train (10 rows) was held out, stratified by label, seed 0",
        "no test split: 10 % of train (10 rows) was held out, stratified by label, seed 0",
    ]
    assert loaded.description["splits"]["test"]["rows"] == 10
    json.dumps(loaded.description)


def test_the_cut_depends_on_the_seed_only(rows_csv):
    first, again = (load(Source(name=str(rows_csv))) for _ in range(2))
    other = load(Source(name=str(rows_csv), split_seed=1))
    assert ids(first.test) == ids(again.test) != ids(other.test)
    assert first.description == again.description
    prints = [loaded.description["splits"]["test"]["fingerprint"] for loaded in (first, other)]
    assert prints[0] != prints[1]
    # np.random.RandomState(0).permutation(100) starts
    # 26 86 2 55 75 93 16 73 54 95, 53 92 78 13 7 30 22 24 33 8
    assert ids(first.eval) == [2, 16, 26, 54, 55, 73, 75, 86, 93, 95]
    assert ids(first.test) == [7, 8, 13, 22, 24, 30, 33, 53, 78, 92]


def test_missing_parts_are_cut_from_the_rows_that_were_asked_for(rows_csv):
    loaded = load(Source(name=str(rows_csv), train="train[:50]", eval_fraction=0.2))
    assert sorted(ids(loaded.train) + ids(loaded.eval) + ids(loaded.test)) == list(range(50))
    assert (len(loaded.eval), len(loaded.test)) == (10, 5)
    assert loaded.description["splits"]["eval"]["origin"] == "held out of train[:50]"


def test_only_what_is_missing_is_cut(rows_csv):
    loaded = load(Source(name=str(rows_csv), train="train[:80%]", test="train[80%:]"))
    assert ids(loaded.test) == list(range(80, 100))
    assert sorted(ids(loaded.train) + ids(loaded.eval)) == list(range(80))
    assert len(loaded.eval) == 8


def test_a_folder_of_named_files(tmp_path):
    for name, start in (("train", 0), ("valid", 10), ("test", 20), ("extra", 30)):
        jsonl(tmp_path / f"{name}.jsonl", start, start + 10)
    loaded = load(Source(name=str(tmp_path)))
    assert [ids(part)[0] for part in (loaded.train, loaded.eval, loaded.test)] == [0, 10, 20]
    joined = load(Source(name=str(tmp_path), train="train+extra.jsonl[:5]", test="test[-3:]"))
    assert ids(joined.train) == [*range(10), *range(30, 35)]
    assert ids(joined.test) == [27, 28, 29]
    assert loaded.description["notes"] == ["files that name no split are not used: extra.jsonl"]


def test_files_named_beside_a_folder_or_a_file(tmp_path, monkeypatch):
    folder = tmp_path / "d"
    folder.mkdir()
    for name, start in (("first", 0), ("second", 20), ("third", 40)):
        jsonl(folder / f"{name}.jsonl", start, start + 20)
    (folder / "notes.txt").write_text("not rows\n")
    files = {"train": "first.jsonl", "eval": "second.jsonl", "test": "third.jsonl"}
    loaded = load(Source(name=str(folder), **files))
    assert [ids(part)[0] for part in (loaded.train, loaded.eval, loaded.test)] == [0, 20, 40]
    monkeypatch.chdir(tmp_path)
    beside = load(Source(name="d/first.jsonl", eval="d/second.jsonl", test="third.jsonl"))
    assert [ids(part)[0] for part in (beside.train, beside.eval, beside.test)] == [0, 20, 40]


def test_train_may_swallow_the_validation_split(tmp_path):
    jsonl(tmp_path / "train.jsonl", 0, 20)
    jsonl(tmp_path / "validation.jsonl", 20, 40)
    loaded = load(Source(name=str(tmp_path), train="train+validation"))
    assert sorted(ids(loaded.train) + ids(loaded.eval) + ids(loaded.test)) == list(range(40))
    assert (
        "the split `validation` is not used as eval: train already takes rows of it"
        in loaded.description["notes"]
    )


def test_eval_and_test_on_the_same_rows_is_said(tmp_path):
    jsonl(tmp_path / "train.jsonl", 0, 20)
    jsonl(tmp_path / "validation.jsonl", 20, 40)
    notes = load(Source(name=str(tmp_path), test="validation", eval="validation[:50%]")).description["notes"]
    assert notes == ["eval and test share rows: the test figures are not independent of model selection"]


@pytest.mark.parametrize(
    "parts",
    [
        {"train": "train[:60]", "eval": "train[50:]"},
        {"eval": "train[-1:]"},
        {"test": "rows.csv"},
        {"train": "rows.csv[:50%]", "test": "train[:1]"},
    ],
)
def test_rows_of_train_cannot_be_held_out_rows(rows_csv, parts):
    with pytest.raises(DataError, match="share rows"):
        load(Source(name=str(rows_csv), **parts))


def test_rows_named_twice(rows_csv):
    with pytest.raises(DataError, match=r"data\.train: `train\[:10\]\+train\[5:20\]` names some rows twice"):
        load(Source(name=str(rows_csv), train="train[:10]+train[5:20]"))


@pytest.mark.parametrize(
    "section, expected",
    [
        ({"eval": "valid"}, r"data\.eval: unknown split `valid`"),
        ({"eval": "trian[:5]"}, r"did you mean `train`\?"),
        ({"train": "train[:101]"}, "`train` has 100"),
        ({"train": "train[5"}, "not a split expression"),
        ({"test": "row.csv"}, r"there is: rows\.csv"),
        ({"eval_fraction": 1.0}, "`eval_fraction: 1.0` is out of range"),
        ({"test_fraction": 0}, "`test_fraction: 0` is out of range"),
        ({"eval_fraction": 0.6, "test_fraction": 0.5}, "leaves none"),
    ],
)
def test_a_bad_section(rows_csv, section, expected):
    with pytest.raises(DataError, match=expected):
        load(Source(name=str(rows_csv), **section))


def test_a_folder_with_only_a_test_file_has_nothing_to_train_on(tmp_path):
    jsonl(tmp_path / "test.jsonl", 0, 5)
    with pytest.raises(DataError, match="there is no split `train`"):
        load(Source(name=str(tmp_path)))


def test_columns_are_renamed_and_may_swap(rows_csv):
    loaded = load(Source(name=str(rows_csv), columns={"text": "id"}), stratify_by="label")
    assert loaded.train.column_names == loaded.test.column_names == ["text", "label"]
    swapped = load(Source(name=str(rows_csv), columns={"id": "label", "label": "id"}))
    assert swapped.train[0] == {"label": swapped.train[0]["label"], "id": "a"}


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"text": "ids"}, r"no column `ids` in train \(did you mean `id`\?\)(.|\n)*id, label"),
        ({"label": "id"}, "would overwrite the column `label` of train"),
        ({"text": "id", "other": "id"}, "`columns` uses a column twice: text: id, other: id"),
    ],
)
def test_a_bad_column_mapping(rows_csv, columns, expected):
    with pytest.raises(DataError, match=expected):
        load(Source(name=str(rows_csv), columns=columns))


def test_what_cannot_be_stratified_is_said(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"x": i / 3, "y": str(min(i, 1))}) + "\n" for i in range(20)))
    for column, reason in {"x": "its values are real numbers", "y": "the class '0' has one row"}.items():
        notes = load(Source(name=str(path)), stratify_by=column).description["notes"]
        assert notes[0] == f"held-out rows are not stratified by {column}: {reason}"
        assert "stratified" not in notes[1]
    with pytest.raises(DataError, match="no column `z` to hold rows out by"):
        load(Source(name=str(path)), stratify_by="z")


def test_notes_of_the_files_reach_the_description(tmp_path):
    (tmp_path / "a.txt").write_text("a\n\nb\nc\n")
    assert "1 blank lines" in load(Source(name=str(tmp_path / "a.txt"))).description["notes"][0]


def test_a_local_stream_gives_the_same_rows(rows_csv):
    source = {"name": str(rows_csv), "train": "train[:60]", "eval": "train[60:80]", "test": "train[80:]"}
    loaded = load(Source(**source, streaming=True))
    assert isinstance(loaded.train, IterableDataset)
    assert isinstance(loaded.eval, Dataset)
    assert [int(row["id"]) for row in loaded.train] == list(range(60))
    assert loaded.description["splits"]["train"]["rows"] is None
    with pytest.raises(DataError, match="a stream has no eval and no test split"):
        load(Source(name=str(rows_csv), streaming=True))


@pytest.fixture
def streamed_hub(monkeypatch):
    import datasets

    rows = Dataset.from_dict({"id": list(range(30))})
    splits = IterableDatasetDict({name: rows.to_iterable_dataset() for name in ("train", "validation")})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)


def test_a_hub_stream_is_sliced_by_rows(streamed_hub):
    loaded = load(Source(name="a/b", streaming=True, train="train[10:]", test="train[:10]"))
    assert [row["id"] for row in loaded.train] == list(range(10, 30))
    assert (ids(loaded.test), len(loaded.eval)) == (list(range(10)), 30)


def test_a_hub_stream_has_no_length(streamed_hub):
    with pytest.raises(DataError, match="needs the length of a stream"):
        load(Source(name="a/b", streaming=True, train="train[:50%]"))
    with pytest.raises(DataError, match="a stream has no test split"):
        load(Source(name="a/b", streaming=True))
    with pytest.raises(DataError, match="share rows"):
        load(Source(name="a/b", streaming=True, test="train[:10]"))


def test_a_stream_that_does_not_know_its_columns(monkeypatch):
    import datasets

    stream = IterableDataset.from_generator(lambda: ({"id": i, "review": "x"} for i in range(3)))
    splits = IterableDatasetDict(dict.fromkeys(("train", "dev", "test"), stream))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    loaded = load(Source(name="a/b", streaming=True, columns={"text": "review"}))
    assert next(iter(loaded.train)) == {"id": 0, "text": "x"}
    assert loaded.eval.to_list() == [{"id": i, "text": "x"} for i in range(3)]


def test_a_fraction_without_effect_is_said(rows_csv):
    notes = load(Source(name=str(rows_csv), train="train[:50]", eval="train[50:]", eval_fraction=0.3))
    assert notes.description["notes"][0] == "eval_fraction has no effect: eval is `train[50:]`"


def test_read_rows_maps_the_columns_that_are_there(tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("review;stars\nNA;5\n")
    source = Source(name="x", columns={"text": "review", "label": "sentiment"}, delimiter=";")
    assert read_rows(path, source=source).to_list() == [{"text": "NA", "stars": "5"}]
    assert read_rows(path, source=Source(name="x", delimiter=";")).column_names == ["review", "stars"]


def test_the_module_imports_neither_torch_nor_datasets():
    code = "import sys, hf_llm_recipes.data.loading; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "hf_llm_recipes.data.origins" in loaded
    assert {"torch", "datasets", "pandas", "pyarrow"}.isdisjoint(loaded)
