import math

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks import _labels


def test_numbers_are_ordered_by_value_and_words_by_alphabet():
    assert _labels.found_names(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert _labels.found_names([10, 9, 2.5]) == ["2.5", "9", "10"]
    assert _labels.found_names([1.0, 2.0]) == ["1", "2"]
    assert _labels.found_names(["b", "10", "9", "a"]) == ["10", "9", "a", "b"]
    assert _labels.found_names([True, False]) == ["false", "true"]
    assert _labels.found_names(["nan", "1"]) == ["1", "nan"]


def test_words_of_equal_value_have_one_order():
    words = ["1", "1.0", "01", "1.00", "+1", "1e0"]
    assert _labels.found_names(words) == ["+1", "01", "1", "1.0", "1.00", "1e0"]


def test_declared_names_come_from_the_column():
    features = Features({"a": ClassLabel(names=["x", "y"]), "b": List(ClassLabel(names=["p", "q"]))})
    rows = Dataset.from_dict({"a": [0], "b": [[1]]}, features=features)
    assert _labels.declared_names(rows, "a") == ["x", "y"]
    assert _labels.declared_names(rows, "b") == ["p", "q"]
    assert (
        _labels.declared_names(Dataset.from_dict({"a": [0]}, features=Features({"a": Value("int64")})), "a")
        is None
    )


def test_integers_stand_for_the_columns_own_names_in_any_order():
    names = ["bad", "good"]
    own = _labels.integer_names(["good", "bad"], names)  # the recipe reorders them
    assert _labels.to_class(0, names, integers=own, where="r") == 1
    assert _labels.to_class(1, names, integers=own, where="r") == 0
    assert _labels.to_class("good", names, integers=own, where="r") == 1


def test_new_names_rename_the_columns_own_by_position():
    renamed = _labels.integer_names(["neg", "pos"], ["bad", "good"])
    assert renamed == ["bad", "good"]
    assert _labels.to_class(1, ["bad", "good"], integers=renamed, numbers=True, where="r") == 1
    assert _labels.integer_names(None, ["bad", "good"]) is None
    assert _labels.integer_names(["neg", "pos"], None) == ["neg", "pos"]


@pytest.mark.parametrize("value", [1, "1", 1.0, "01"])
def test_where_labels_are_given_a_number_counts_them(value):
    assert _labels.to_class(value, ["bad", "good"], numbers=True, where="r") == 1


@pytest.mark.parametrize("value", [1, "1", 1.0])
def test_a_number_that_is_a_name_is_the_name(value):
    assert _labels.to_class(value, ["1", "2", "3"], numbers=True, where="r") == 0
    assert _labels.to_class(value, ["1", "2", "3"], where="r") == 0


@pytest.mark.parametrize("value", [None, "", math.nan])
def test_a_missing_label_is_refused(value):
    with pytest.raises(DataError) as caught:
        _labels.to_class(value, ["a", "b"], where="train split, row 3")
    assert str(caught.value) == "train split, row 3: has no label\n  do: take the row out or label it"


@pytest.mark.parametrize("value", [-1, 2, "2", "7"])
def test_a_number_outside_the_classes_is_refused(value):
    integers = ["a", "b"] if isinstance(value, int) else None
    with pytest.raises(
        DataError, match=r"r: label -?[127] is outside the classes\n  allowed: 0 to 1\n  do: mend"
    ):
        _labels.to_class(value, ["a", "b"], integers=integers, numbers=True, where="r")


def test_a_word_outside_the_classes_is_refused_with_the_nearest():
    with pytest.raises(DataError) as caught:
        _labels.to_class("spotr", ["food", "sport"], where="eval split, row 0")
    assert str(caught.value) == (
        "eval split, row 0: label 'spotr' is none of the classes (did you mean `sport`?)\n"
        "  allowed: food, sport\n"
        "  do: mend the row, or name every class under `task.labels`"
    )


def test_true_is_a_word_and_no_number():
    assert _labels.to_class(True, ["false", "true"], numbers=True, where="r") == 1
    with pytest.raises(DataError, match="label True is none of the classes"):
        _labels.to_class(True, ["a", "b"], numbers=True, where="r")


def test_a_long_list_of_classes_is_cut_in_the_message():
    names = [f"c{i:02}" for i in range(23)]
    with pytest.raises(DataError, match=r"allowed: c00, .*, c19, … \(3 more\)"):
        _labels.to_class("x", names, where="r")


def test_sets_come_from_lists_and_from_text():
    assert _labels.to_set("a; b ;;", ";", where="r") == ["a", "b"]
    assert _labels.to_set(["a", 2], ";", where="r") == ["a", 2]
    assert _labels.to_set(None, ";", where="r") == []
    assert _labels.to_set("", ";", where="r") == []
    with pytest.raises(
        DataError, match="r: label 3 is no list of labels\n  allowed: a list, or text such as a;b"
    ):
        _labels.to_set(3, ";", where="r")


def test_targets_are_finite_numbers():
    assert _labels.to_number("2.5", where="r") == 2.5
    assert _labels.to_number(-3, where="r") == -3.0
    for value in (None, "", "warm", math.nan, math.inf, "inf", [1]):
        with pytest.raises(
            DataError, match=r"r: label .* is not a finite number\n  do: mend or drop the row"
        ):
            _labels.to_number(value, where="r")


@pytest.mark.parametrize("value", [-100, "-100", -100.0])
def test_the_mark_for_unlabeled_is_no_target(value):
    with pytest.raises(DataError, match=r"mark for an unlabeled item.*\n  do: shift or scale the targets"):
        _labels.to_number(value, where="r")


def test_a_split_of_one_class_is_refused():
    with pytest.raises(
        DataError, match=r"t: all 3 rows have one class \('b'\): there is nothing to learn\n  do: "
    ):
        _labels.check_classes([1, 1, 1], ["a", "b"], where="t")
    with pytest.raises(DataError, match="all 0 rows"):
        _labels.check_classes([], ["a", "b"], where="t")


def test_classes_without_rows_are_said():
    assert _labels.check_classes([0, 2, 2], ["a", "b", "c", "d"], where="t") == ["t: no row of class b, d"]
    assert _labels.check_classes([0, 1], ["a", "b"], where="t") == []
