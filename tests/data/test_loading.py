import json
import subprocess
import sys
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

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


def test_a_file_that_names_no_split_is_named_where_one_was_meant(tmp_path):
    jsonl(tmp_path / "labeled.jsonl", 0, 20)
    jsonl(tmp_path / "test.jsonl", 20, 25)
    with pytest.raises(DataError, match=r"did you mean the file `labeled.jsonl`(.|\n)*test, labeled.jsonl"):
        load(Source(name=str(tmp_path), train="labeled[:10]"))
    assert len(load(Source(name=str(tmp_path), train="labeled.jsonl[:10]", eval_fraction=0)).train) == 10


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
        (
            {"id": "text", "label": "class"},
            r"the name in the data stands behind: `columns: {text: id, class: label}`",
        ),
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
    notes = load(Source(name=str(path)), stratify_by="x").description["notes"]
    assert notes[0] == "held-out rows are not stratified by x: its values are real numbers"
    assert "stratified" not in notes[1]
    notes = load(Source(name=str(path)), stratify_by="y").description["notes"]
    assert notes[0] == "classes of one row, which no two parts can share: '0' (in train)"
    assert "stratified by y" in notes[1]
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


def write_rows(path, texts, labels=None):
    columns = {"text": texts} if labels is None else {"text": texts, "label": labels}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fruit(start, stop):
    return [f"fruit number {i}" for i in range(start, stop)]


@pytest.fixture
def folder(tmp_path):
    """60 labeled rows (a, b, c in turn), 10 of eval, 10 of test, and a pool of 20 without labels."""
    write_rows(tmp_path / "train.jsonl", fruit(0, 60), ["a", "b", "c"] * 20)
    write_rows(tmp_path / "dev.jsonl", fruit(60, 70), ["a", "b"] * 5)
    write_rows(tmp_path / "test.jsonl", fruit(70, 80), ["a", "b"] * 5)
    write_rows(tmp_path / "pool.jsonl", fruit(100, 120))
    return tmp_path


def load_pool(folder, **section):
    return load(Source(name=str(folder), **section), stratify_by="label", input_columns=["text"])


def test_a_section_without_a_pool_has_none(folder):
    loaded = load_pool(folder)
    assert loaded.unlabeled is None
    assert "unlabeled" not in loaded.description["splits"]
    assert loaded.description["notes"] == ["files that name no split are not used: pool.jsonl"]


def test_few_labels_make_a_pool_of_the_other_rows(folder):
    loaded = load_pool(folder, labels_per_class=4)
    assert Counter(loaded.train["label"]) == {"a": 4, "b": 4, "c": 4}
    assert loaded.unlabeled.column_names == ["text"]
    assert sorted(loaded.train["text"][:] + loaded.unlabeled["text"][:]) == sorted(fruit(0, 60))
    assert loaded.description["notes"] == [
        "files that name no split are not used: pool.jsonl",
        "12 labeled rows, 4 a class (seed 0); the other 48 become the pool, without their labels",
    ]
    splits = loaded.description["splits"]
    assert splits["train"]["origin"] == "4 rows a class of train"
    assert splits["train"]["rows"] == 12
    pool = splits["unlabeled"]
    assert pool["origin"] == "the rest of train, without labels"
    assert (pool["rows"], pool["columns"]) == (48, ["text"])
    assert pool["pool"] == {
        "empty": 0,
        "eval_rows_in_pool": 0,
        "test_rows_in_pool": 0,
        "labeled_rows_in_pool": 0,
        "likeness": 1.0,  # the words are fruit and number in all of them
    }
    assert pool["fingerprint"] != splits["train"]["fingerprint"]
    json.dumps(loaded.description)


def test_few_labels_are_nested_and_follow_the_seed(folder):
    four, ten, again, other = (
        load_pool(folder, labels_per_class=k, split_seed=seed)
        for k, seed in ((4, 0), (10, 0), (4, 0), (4, 1))
    )
    assert set(four.train["text"]) < set(ten.train["text"])
    assert four.train["text"][:] == again.train["text"][:] != other.train["text"][:]
    assert four.description == again.description
    for part in ("train", "unlabeled"):
        prints = [made.description["splits"][part]["fingerprint"] for made in (four, ten, other)]
        assert len(set(prints)) == 3


def test_few_labels_after_rows_are_held_out(tmp_path):
    path = write_rows(tmp_path / "all.jsonl", fruit(0, 100), ["a", "b"] * 50)
    loaded = load_pool(path, labels_per_class=3)
    parts = [part["text"][:] for part in (loaded.train, loaded.eval, loaded.test, loaded.unlabeled)]
    assert [len(part) for part in parts] == [6, 10, 10, 74]
    assert sorted(text for part in parts for text in part) == sorted(fruit(0, 100))
    origin = loaded.description["splits"]["unlabeled"]["origin"]
    assert origin == "the rest of what is left of train, without labels"


def test_few_labels_beside_a_pool_leave_the_other_rows_out(folder):
    loaded = load_pool(folder, labels_per_class=4, unlabeled="pool.jsonl")
    assert len(loaded.train) == 12
    assert loaded.unlabeled["text"][:] == fruit(100, 120)
    assert loaded.description["notes"] == ["12 labeled rows, 4 a class (seed 0); the other 48 are left out"]
    assert loaded.description["splits"]["unlabeled"]["origin"] == "pool.jsonl"


def test_few_labels_of_a_class_that_has_fewer(tmp_path):
    names = ClassLabel(names=["ham", "spam"])
    rows = Dataset.from_dict(
        {"text": fruit(0, 12), "label": [0] * 9 + [1] * 3},
        features=Features({"text": Value("string"), "label": names}),
    )
    rows.save_to_disk(tmp_path / "mail")
    section = {"train": "train[:11]", "test": "train[11:]", "eval_fraction": 0}
    with pytest.raises(DataError, match="class 'spam' has 2 rows, fewer than `labels_per_class: 4`"):
        load_pool(tmp_path / "mail", labels_per_class=4, **section)


def test_rows_whose_class_number_is_missing_become_the_pool(tmp_path):
    names = ClassLabel(names=["ham", "spam"])
    rows = Dataset.from_dict(
        {"text": fruit(0, 12), "label": [0, 1] * 3 + [-1] * 6},
        features=Features({"text": Value("string"), "label": names}),
    )
    test = rows.select(range(2)).map(lambda row: {"text": "another " + row["text"]})
    DatasetDict({"train": rows, "test": test}).save_to_disk(tmp_path / "mail")
    loaded = load_pool(tmp_path / "mail", labels_per_class=2, eval_fraction=0)
    assert sorted(loaded.train["label"]) == [0, 0, 1, 1]
    assert set(fruit(6, 12)) < set(loaded.unlabeled["text"])


def test_few_labels_that_are_all_labels(folder):
    with pytest.raises(DataError, match="`labels_per_class: 20` takes all 60 rows"):
        load_pool(folder, labels_per_class=20)


@pytest.mark.parametrize("column", [None, "labels"])
def test_few_labels_need_a_column_of_classes(folder, column):
    with pytest.raises(DataError, match="`labels_per_class` needs one label column with one class a row"):
        load(Source(name=str(folder), labels_per_class=4), stratify_by=column, input_columns=["text"])


@pytest.mark.parametrize("expression", ["train[30:]", "pool.jsonl", "pool.jsonl[:50%]+pool.jsonl[15:]"])
def test_a_pool_is_an_expression_or_a_file(folder, expression):
    loaded = load_pool(folder, train="train[:30]", unlabeled=expression)
    expected = {
        "train[30:]": fruit(30, 60),
        "pool.jsonl": fruit(100, 120),
        "pool.jsonl[:50%]+pool.jsonl[15:]": fruit(100, 110) + fruit(115, 120),
    }
    assert loaded.unlabeled["text"][:] == expected[expression]
    assert loaded.unlabeled.column_names == ["text"]
    assert loaded.train["text"][:] == fruit(0, 30)
    described = loaded.description["splits"]["unlabeled"]
    assert (described["origin"], described["rows"]) == (expression, len(expected[expression]))
    looked_at = "the pool has a column `label`: it is not looked at" in loaded.description["notes"]
    assert looked_at == (expression == "train[30:]")


def test_the_labels_of_a_pool_may_be_anything(folder):
    write_rows(folder / "odd.jsonl", fruit(200, 203), [-1, 7, 0])
    loaded = load_pool(folder, unlabeled="odd.jsonl")
    assert loaded.unlabeled.to_list() == [{"text": text} for text in fruit(200, 203)]


def test_train_rows_may_be_in_the_pool(folder):
    loaded = load_pool(folder, train="train[:30]", unlabeled="train")
    assert len(loaded.unlabeled) == 60
    assert loaded.description["splits"]["unlabeled"]["pool"]["labeled_rows_in_pool"] == 30
    assert (
        "30 rows of the pool are labeled rows too: they stay, without their label"
        in loaded.description["notes"]
    )


@pytest.mark.parametrize("section", [{"unlabeled": "test[5:]"}, {"unlabeled": "train+test"}])
def test_a_pool_that_names_rows_of_test(folder, section):
    with pytest.raises(DataError) as raised:
        load_pool(folder, **section, pool_overlap="drop")
    assert str(raised.value) == (
        f"data.unlabeled: `unlabeled: {section['unlabeled']}` and `test: test` share rows\n"
        "  allowed: parts that do not overlap"
    )


def test_a_pool_that_names_rows_held_out_of_train(tmp_path):
    path = write_rows(tmp_path / "all.jsonl", fruit(0, 40), ["a", "b"] * 20)
    with pytest.raises(DataError, match=r"4 of 40 unlabeled rows are rows of the eval split"):
        load_pool(path, unlabeled="train")
    loaded = load_pool(path, unlabeled="train", pool_overlap="drop")
    assert len(loaded.unlabeled) == 32
    assert set(loaded.unlabeled["text"]) == set(loaded.train["text"])


def test_a_pool_that_repeats_rows_of_eval_and_test(folder):
    write_rows(folder / "pool.jsonl", ["Fruit  NUMBER 65", "new", "fruit number 70", "fruit number 79\n"])
    with pytest.raises(DataError, match=r"1 of 4 unlabeled rows are rows of the eval split .* is row 0"):
        load_pool(folder, unlabeled="pool.jsonl")
    loaded = load_pool(folder, unlabeled="pool.jsonl", pool_overlap="drop")
    assert loaded.unlabeled["text"][:] == ["new"]
    described = loaded.description["splits"]["unlabeled"]
    assert described["rows"] == 1
    assert described["pool"]["eval_rows_in_pool"] == 1
    assert described["pool"]["test_rows_in_pool"] == 2
    assert loaded.description["notes"][:2] == [
        "1 rows of the pool are rows of the eval split: left out",
        "2 rows of the pool are rows of the test split: left out",
    ]


def test_few_labels_beside_duplicates_of_test_rows(folder):
    write_rows(folder / "train.jsonl", [*fruit(0, 59), "fruit number 75"], ["a", "b", "c"] * 20)
    with pytest.raises(DataError, match="1 of 57 unlabeled rows are rows of the test split"):
        load_pool(folder, labels_per_class=1)
    assert len(load_pool(folder, labels_per_class=1, pool_overlap="drop").unlabeled) == 56


def test_a_limit_draws_rows_of_the_pool(folder):
    section = {"unlabeled": "pool.jsonl", "unlabeled_limit": 5}
    first, again, other = (load_pool(folder, **section, split_seed=seed) for seed in (0, 0, 1))
    # np.random.RandomState(0).permutation(20) starts 18 1 19 8 10
    assert first.unlabeled["text"][:] == [f"fruit number {100 + i}" for i in (1, 8, 10, 18, 19)]
    assert first.description == again.description
    described, seeded = (made.description["splits"]["unlabeled"] for made in (first, other))
    assert (described["origin"], described["rows"]) == ("5 rows of pool.jsonl", 5)
    assert described["fingerprint"] != seeded["fingerprint"]
    assert first.unlabeled["text"][:] != other.unlabeled["text"][:]


@pytest.mark.parametrize("limit", [20, 21])
def test_a_limit_that_is_not_reached(folder, limit):
    loaded = load_pool(folder, unlabeled="pool.jsonl", unlabeled_limit=limit)
    assert loaded.unlabeled["text"][:] == fruit(100, 120)
    assert loaded.description["splits"]["unlabeled"]["origin"] == "pool.jsonl"


def test_a_limit_of_the_rest_of_train(folder):
    loaded = load_pool(folder, labels_per_class=4, unlabeled_limit=7)
    described = loaded.description["splits"]["unlabeled"]
    assert (described["origin"], described["rows"]) == ("7 rows of the rest of train, without labels", 7)
    assert set(loaded.unlabeled["text"]).isdisjoint(loaded.train["text"])


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            {"unlabeled_limit": 5},
            "data.unlabeled_limit: `unlabeled_limit` has no effect without a pool\n"
            "  do: name one in `data.unlabeled`, or set `data.labels_per_class`",
        ),
        ({"pool_overlap": "drop"}, "data.pool_overlap: `pool_overlap` has no effect without a pool"),
        (
            {"unlabeled": "pool.jsonl", "unlabeled_limit": 0},
            "data.unlabeled_limit: `unlabeled_limit: 0` is out of range\n  allowed: 1 or more",
        ),
        ({"labels_per_class": 0}, "data.labels_per_class: `labels_per_class: 0` is out of range"),
        (
            {"unlabeled": "pool.jsonl", "streaming": True},
            "data.streaming: a pool of unlabeled rows is read whole\n  do: set `data.streaming: false`",
        ),
        ({"labels_per_class": 2, "streaming": True}, "data.streaming: a pool of unlabeled rows is read"),
        ({"unlabeled": "pol.jsonl"}, "there is: pool.jsonl"),
        ({"unlabeled": "unsupervised"}, "data.unlabeled: unknown split `unsupervised`"),
    ],
)
def test_a_bad_pool_section(folder, section, expected):
    with pytest.raises(DataError) as raised:
        load_pool(folder, **section)
    assert expected in str(raised.value)


def test_columns_are_mapped_in_the_pool_as_far_as_it_has_them(folder):
    for name in ("train", "dev", "test"):
        path = folder / f"{name}.jsonl"
        renamed = path.read_text().replace('"text"', '"review"').replace('"label"', '"stars"')
        path.write_text(renamed)
    mapping = {"text": "review", "label": "stars"}
    (folder / "pool.jsonl").write_text(json.dumps({"review": "new", "id": 3}) + "\n")
    loaded = load_pool(folder, columns=mapping, unlabeled="pool.jsonl")
    assert loaded.unlabeled.to_list() == [{"text": "new", "id": 3}]
    (folder / "pool.jsonl").write_text(json.dumps({"text": "new", "stars": 3}) + "\n")
    loaded = load_pool(folder, columns=mapping, unlabeled="pool.jsonl")
    assert loaded.unlabeled.to_list() == [{"text": "new"}]
    assert loaded.description["notes"][0] == "the pool has a column `label`: it is not looked at"
    (folder / "pool.jsonl").write_text(json.dumps({"body": "new"}) + "\n")
    with pytest.raises(DataError, match=r"data\.unlabeled: the unlabeled rows have no column `text`"):
        load_pool(folder, columns=mapping, unlabeled="pool.jsonl")


def test_without_input_columns_the_pool_is_not_compared(folder):
    write_rows(folder / "pool.jsonl", ["", *fruit(70, 72)])
    loaded = load(Source(name=str(folder), unlabeled="pool.jsonl"))
    assert loaded.unlabeled["text"][:] == ["", *fruit(70, 72)]
    assert "pool" not in loaded.description["splits"]["unlabeled"]


def test_no_eval_split_where_none_is_wanted(tmp_path):
    path = write_rows(tmp_path / "all.jsonl", fruit(0, 40), ["a", "b"] * 20)
    loaded = load_pool(path, eval_fraction=0)
    assert loaded.eval is None
    assert set(loaded.description["splits"]) == {"train", "test"}
    assert (len(loaded.train), len(loaded.test)) == (36, 4)
    pooled = load_pool(path, eval_fraction=0, labels_per_class=2)
    assert pooled.eval is None
    assert set(pooled.description["splits"]["unlabeled"]["pool"]) == {
        *("empty", "test_rows_in_pool", "labeled_rows_in_pool", "likeness")
    }


def test_an_eval_split_that_is_there_is_used(folder):
    loaded = load_pool(folder, eval_fraction=0)
    assert len(loaded.eval) == 10
    assert "eval_fraction has no effect: eval is `dev`" in loaded.description["notes"]


@pytest.mark.parametrize("fraction", [-0.1, 1])
def test_an_eval_fraction_out_of_range(rows_csv, fraction):
    with pytest.raises(DataError, match=f"`eval_fraction: {fraction}` is out of range"):
        load(Source(name=str(rows_csv), eval_fraction=fraction))


def test_files_that_are_used_are_not_called_unused(folder):
    write_rows(folder / "labeled.jsonl", fruit(300, 306), ["a", "b"] * 3)
    write_rows(folder / "spare.jsonl", fruit(400, 402))
    section = {"train": "labeled.jsonl", "unlabeled": "pool.jsonl"}
    assert load_pool(folder, **section).description["notes"] == [
        "files that name no split are not used: spare.jsonl",
        "splits that are not used: train",
    ]
    (folder / "spare.jsonl").unlink()
    notes = load_pool(folder, **section).description["notes"]
    assert notes == ["splits that are not used: train"]
    matched = load(Source(name=f"{folder}/*.jsonl", **section)).description["notes"]
    assert matched == notes
