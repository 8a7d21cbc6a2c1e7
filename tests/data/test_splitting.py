import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_llm_recipes.data.splitting import (
    Term,
    bounds,
    check_fraction,
    hold_out,
    lone_classes,
    parse,
    why_not_stratified,
)
from hf_llm_recipes.errors import DataError


def test_parse():
    assert parse("train[:80%] + validation", where="data.train") == [
        Term("train", None, "80%"),
        Term("validation"),
    ]
    assert parse("x.csv[-5:]", where="data.train") == [Term("x.csv", "-5", None)]


@pytest.mark.parametrize(
    "expression", ["train[", "train[1]", "[:5]", "train[a:b]", "", "train+", "train[:1.5%]", "train[:5]x"]
)
def test_a_bad_expression_shows_good_ones(expression):
    with pytest.raises(DataError, match=r"data\.eval: .* is not a split expression(.|\n)*train\[10%:90%\]"):
        parse(expression, where="data.eval")


@pytest.mark.parametrize(
    "term, expected",
    [
        (Term("a"), (0, 10)),
        (Term("a", None, "3"), (0, 3)),
        (Term("a", "-3", None), (7, 10)),
        (Term("a", None, "-3"), (0, 7)),
        (Term("a", "25%", "75%"), (3, 8)),  # 2.5 and 7.5 rows round up
        (Term("a", "-20%", None), (8, 10)),
        (Term("a", "33%", "67%"), (3, 7)),
    ],
)
def test_bounds_of_ten_rows(term, expected):
    assert bounds(term, 10, where="data.train") == expected


@pytest.mark.parametrize(
    "term", [Term("a", None, "11"), Term("a", "5", "5"), Term("a", "-11", None), Term("a", "101%")]
)
def test_bounds_outside_are_refused(term):
    with pytest.raises(DataError, match=r"data\.train: .*`a` has 10"):
        bounds(term, 10, where="data.train")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, True, float("nan"), "0.1"])
def test_a_fraction_out_of_range(fraction):
    with pytest.raises(DataError, match=r"`eval_fraction: .*` is out of range"):
        check_fraction("eval_fraction", fraction)


def test_hold_out_takes_the_first_of_the_seeds_permutation():
    # np.random.RandomState(0).permutation(10) is 2 8 4 9 1 6 7 3 0 5
    parts = hold_out(10, {"eval": 0.2, "test": 0.1}, groups=None, seed=0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "eval": [2, 8],
        "test": [4],
        "train": [0, 1, 3, 5, 6, 7, 9],
    }


def test_hold_out_keeps_the_shares_of_classes():
    # 60 a, 30 b, 10 c; a tenth of each is 6, 3 and 1.
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    parts = hold_out(100, {"eval": 0.1, "test": 0.1}, groups=groups, seed=3)
    for part in ("eval", "test"):
        held = [groups[row] for row in parts[part]]
        assert (held.count("a"), held.count("b"), held.count("c")) == (6, 3, 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=5, max_size=60), st.integers(0, 9))
def test_hold_out_is_a_partition_near_the_shares(groups, seed):
    parts = hold_out(len(groups), {"eval": 0.2, "test": 0.1}, groups=groups, seed=seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(groups)))
    held = [groups[row] for row in parts["eval"]]
    for name in set(groups):
        assert abs(held.count(name) - groups.count(name) * len(held) / len(groups)) <= 1


def test_too_few_rows_to_hold_out():
    with pytest.raises(
        DataError, match=r"train has 2 rows; holding out 1 for eval and 1 for test leaves none"
    ):
        hold_out(2, {"eval": 0.1, "test": 0.1}, groups=None, seed=0)


def test_why_not_stratified():
    assert why_not_stratified(["a", "a", "b", "b"]) is None
    assert why_not_stratified(["a", "a", "b", None, ""]) is None
    assert why_not_stratified([[1], [2]]) == "its values are lists"
    assert why_not_stratified([0.5, 0.5]) == "its values are real numbers"


def test_a_class_of_one_row_stays_in_train_and_the_others_keep_their_shares():
    groups = ["a"] * 60 + ["rare"] + ["b"] * 39 + [None]
    parts = hold_out(101, {"eval": 0.1, "test": 0.1}, groups=groups, seed=0)
    for part in ("eval", "test"):
        held = [groups[row] for row in parts[part]]
        assert (held.count("a"), held.count("b")) == (6, 4)
    assert (
        lone_classes(groups, parts) == "classes of one row, which no two parts can share: 'rare' (in train)"
    )
    assert lone_classes(["a", "a", "", None], {"train": np.arange(4)}) is None
    many = lone_classes([str(i) for i in range(9)], {"eval": np.array([0]), "train": np.arange(1, 9)})
    assert many.endswith(
        "'0' (in eval), '1' (in train), '2' (in train), '3' (in train), '4' (in train), … (4 more)"
    )
