"""What labels are like: each oddity planted and told, and none told of labels that are fine."""

import numpy as np
from _planted import found, jsonl, recipe_of, report_of

from hf_llm_recipes.checking.labels import (
    class_findings,
    counted,
    counted_by_value,
    name_findings,
    number_findings,
    tag_findings,
)

WHERE = {"train": "train split", "eval": "eval split", "test": "test split"}
NAMES = ["a", "b", "c"]


def counts(**of):
    return {split: np.asarray(values) for split, values in of.items()}


def whats(findings):
    return [(f.level, f.what) for f in findings]


def test_counts_by_hand():
    assert counted([0, 2, 2], 3, "single_label").tolist() == [1, 0, 2]
    assert counted([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], 3, "multi_label").tolist() == [1, 0, 2]
    assert counted([[-100, 0, 1], [1, -100]], 3, "tags").tolist() == [1, 2, 0]


def test_a_sample_tells_what_the_values_of_all_rows_mean():
    every = ["x", "y", "y", "x", "y"]
    assert counted_by_value(["y", "x"], [1, 0], every, 2, "single_label").tolist() == [2, 3]
    tags = [["O", "B-x"], ["O"], ["B-x", "B-x"]]
    seen = counted_by_value([["O", "B-x"]], [[-100, 0, 1, -100]], tags, 2, "tags")
    assert seen.tolist() == [2, 3]
    flags = counted_by_value(["a,b", "b"], [[1.0, 1.0], [0.0, 1.0]], ["b", "a,b", "b"], 2, "multi_label")
    assert flags.tolist() == [1, 3]


def test_a_class_without_a_row_and_one_with_one():
    (none, one) = class_findings(counts(train=[9, 0, 1], test=[3, 2, 1]), NAMES, WHERE)
    assert none.level == one.level == "warning"
    assert none.what == "no row of class b: it cannot be learnt; 2 held-out rows have it"
    assert one.what == "one of the rows only is of class c"


def test_classes_far_from_equal():
    (finding,) = class_findings(counts(train=[100, 5, 40]), NAMES, WHERE)
    assert (finding.level, finding.what) == ("info", "class a has 100 rows, b 5")
    assert "macro F1" in finding.do


def test_held_out_rows_of_other_classes():
    (finding,) = class_findings(counts(train=[50, 50, 0 + 10], test=[5, 5, 60]), NAMES, WHERE)
    assert finding.where == "test split"
    assert "c 85.7 % in place of 9.1 %" in finding.what
    assert "test_fraction" in finding.do


def test_equal_classes_say_nothing():
    assert not class_findings(counts(train=[50, 48, 51], eval=[20, 19, 22], test=[5, 0, 1]), NAMES, WHERE)


def test_an_inside_tag_without_its_beginning():
    names = ["O", "B-x", "I-x", "I-y"]
    rows = [[0, 1, 2, 2, -100], [0, 2, 0], [1, 3], [2]]
    (finding,) = tag_findings({"train": rows}, names, WHERE)
    assert finding.what.startswith("in 3 of 4 rows an I- tag")
    assert "(rows 1, 2, 3)" in finding.what
    assert not tag_findings({"train": rows[:1]}, names, WHERE)
    assert not tag_findings({"train": rows}, ["O", "x", "y", "z"], WHERE)


def test_targets_that_are_equal_or_far_from_zero():
    (equal,) = number_findings({"train": np.array([3.0, 3.0])}, WHERE)
    assert (equal.level, equal.what) == ("error", "every target is 3: there is nothing to learn")
    (far,) = number_findings({"train": np.array([1000.0, 1010.0])}, WHERE)
    assert far.level == "warning"
    assert "mean 1005 and deviation 5" in far.what
    assert not number_findings({"train": np.array([-1.0, 0.5, 1.0])}, WHERE)


def test_multi_label_rows_without_a_class(tiny_bert, tmp_path):
    rows = [{"text": f"{'very ' * i}ball", "label": ["a", "b"] if i % 2 else ["a"]} for i in range(12)]
    rows += [{"text": f"{'old ' * i}soup", "label": [] if i else ["b"]} for i in range(3)]
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "train": "train[:9]", "test": "train[9:]"}
    task = {"name": "text_classification", "problem": "multi_label"}
    report = report_of(recipe_of(tiny_bert, {**data, "eval_fraction": 0}, task), tmp_path)
    assert report.labels["train"] == {"a": 9, "b": 4}
    assert ("info", "2 of 6 rows (33.3 %) have no class at all") in whats(found(report, "labels"))
    assert report.samples[0].label == "a"


def test_one_class_written_in_two_ways():
    (finding,) = name_findings(["B-Sport", "Spam", "a", "not  spam", "spam ", "not spam"], "train split")
    assert finding.what == (
        "classes that differ in case or spaces only: 'Spam' and 'spam '; 'not  spam' and 'not spam'"
    )
    assert finding.level == "warning"
    assert not name_findings(["a", "b", "aa"], "train split")
