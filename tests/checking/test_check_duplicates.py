"""Rows that are in the data twice: planted, told with their numbers, and no others told."""

import numpy as np
from _planted import found, jsonl, recipe_of, report_of, said
from conftest import sentences

from hf_llm_recipes.checking import duplicates
from hf_llm_recipes.checking.duplicates import leaked, near, repeated, without_shared

WHERE = {"train": "train split", "eval": "eval split", "test": "test split", "unlabeled": "unlabeled rows"}
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def others(count):
    """Texts that share no run of words."""
    return [" ".join(f"w{i}x{k}" for k in range(16)) for i in range(count)]


def test_a_row_that_stands_twice():
    (finding,) = repeated({"train": ["a", "b", "a", "", "", "a"]}, WHERE)
    assert finding.level == "warning"
    assert "2 of 6 rows (33.3 %) repeat another; most often, 3 times: 'a' (rows 0, 2, 5)" in finding.what
    assert finding.do == "`data.dedup: exact` takes them out of train and the pool"
    assert not repeated({"train": ["a", "b", "", ""]}, WHERE)


def test_a_test_row_in_train_is_an_error_from_one_in_a_hundred():
    train = [f"t{i}" for i in range(50)]
    few = [f"u{i}" for i in range(199)]
    (finding,) = leaked({"train": train, "test": [*few[:9], "t7"]}, WHERE)
    assert finding.level == "error"
    assert "1 of 10 rows (10.0 %) are rows of train: row 9 is train's row 7: 't7'" in finding.what
    (finding,) = leaked({"train": train, "test": [*few, "t7"]}, WHERE)
    assert finding.level == "warning"
    assert not leaked({"train": train, "test": few, "eval": ["", ""]}, WHERE)


def test_the_advice_is_another_where_dedup_reads_no_such_rows():
    (finding,) = leaked({"train": ["a"], "test": ["a"]}, WHERE, drops=False)
    assert finding.do.startswith("take them out of the train file")


def test_a_text_that_is_nearly_in_train():
    test = [*others(4), LONG]
    train = ["z " + LONG, *(f"q{text}" for text in others(30)[10:])]  # 14 of 15 runs of three are shared
    (finding,) = near({"test": test, "train": train}, WHERE)
    assert finding.level == "warning"
    assert (
        "1 of 5 rows (20.0 %) nearly repeat a row of train: row 4 is like train's row 0 (93 %" in finding.what
    )
    assert "{method: near, words: 3}" in finding.do
    assert not near({"test": test, "train": train[1:]}, WHERE)


def test_long_data_is_compared_in_part_and_said_so(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_CHARACTERS", 2000)
    test = [LONG, *others(20)]
    (finding,) = near({"test": test, "train": [f"z {LONG}", *others(60)[20:]]}, WHERE)
    assert "looked at in a sample: the first" in finding.what


def test_what_many_rows_share_is_no_likeness():
    rows = [["be kind", f"question {i}"] for i in range(40)] + [["only this"]]
    assert without_shared(rows)[:2] == ["question 0", "question 1"]
    assert without_shared(rows)[-1] == "only this"


def test_in_a_recipe(tiny_bert, tmp_path):
    rows = sentences(60)
    train = [*rows[:30], {"text": rows[3]["text"].upper(), "label": rows[4]["label"]}]
    data = {
        "name": jsonl(tmp_path / "train.jsonl", train),
        "eval": jsonl(tmp_path / "eval.jsonl", rows[30:45]),
        "test": jsonl(tmp_path / "test.jsonl", [*rows[45:], rows[7]]),
        "unlabeled": jsonl(tmp_path / "pool.jsonl", [rows[5], *sentences(40, seed=5)]),
    }
    more = {"method": {"name": "semi_supervised", "warm_start": "none", "unlabeled_ratio": 1}}
    report = report_of(recipe_of(tiny_bert, data, {"name": "text_classification"}, **more), tmp_path)
    leak = next(f for f in found(report, "leakage") if f.level == "error")
    assert leak.where == "test split (test.jsonl)"
    assert "row 15 is train's row 7" in leak.what
    assert report.exit_code == 1
    assert "have more than one label (2 rows): for one, rows 3 and 30" in said(report, "duplicates")
    (pool,) = found(report, "pool")
    assert pool.level == "info"
    assert "1 of 41 rows of the pool are labeled rows of train too (rows 0)" in pool.what
    assert report.model["batch_split"]["own_method"] is False


def test_images_that_are_the_same(tmp_path):
    from datasets import Dataset, Features, Image, Value

    images = [np.full((8, 8, 3), 9 * i, dtype=np.uint8) for i in range(26)]
    images[25] = images[2]
    given = {"image": images, "label": [str(i % 2) for i in range(26)]}
    rows = Dataset.from_dict(given, features=Features({"image": Image(), "label": Value("string")}))
    rows.to_parquet(tmp_path / "images.parquet")
    data = {"name": str(tmp_path / "images.parquet"), "train": "train[:20]", "test": "train[20:]"}
    values = recipe_of("", {**data, "eval_fraction": 0}, {"name": "image_classification"})
    values["model"] = {"architecture": "hlr_vision", "preset": "tiny"}
    report = report_of(values, tmp_path)
    (finding,) = found(report, "leakage")
    assert "1 of 6 rows (16.7 %) are rows of train: row 5 is train's row 2" in finding.what
    assert report.labels["train"] == {"0": 10, "1": 10}
    assert report.samples[1].label == "1"
