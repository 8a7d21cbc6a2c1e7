import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_llm_recipes.data import dedup
from hf_llm_recipes.data.dedup import Deduplication, Duplicate, bands_for, find_duplicates, similarity

WORDS = [f"w{i}" for i in range(400)]


def text(*numbers):
    return " ".join(WORDS[i] for i in numbers)


def kept(found):
    return {name: rows.tolist() for name, rows in found.kept.items()}


def test_similarity_worked_by_hand():
    assert similarity("a b c d", "a b c d", 2) == 1.0
    # Runs of two: ab bc cd and ab bc ce: two of four.
    assert similarity("a b c d", "a b c e", 2) == 0.5
    assert similarity("A  b\nC d", "a b c D", 2) == 1.0  # neither case nor white space counts
    assert similarity("x + y", "x - y", 3) == 0.0  # a sign is a word
    assert similarity("a b", "a b c", 5) == 0.0  # each has one run, the whole
    assert similarity("a a a a", "a a", 2) == 1.0  # sets of runs
    assert similarity("日本語だ", "日本語か", 2) == 0.5  # a character is a word where no space parts them
    assert similarity("", " \n") == 1.0
    assert similarity("", "a") == 0.0


def test_bands_worked_by_hand():
    # At 0.8: six rows give 1 - (1 - 0.262)^21 = 0.9983, five give 1 - (1 - 0.328)^25 = 0.99995.
    assert bands_for(0.8) == (25, 5)
    assert bands_for(0.5) == (64, 2)  # three: 1 - 0.875^42 = 0.9963; two: 1 - 0.75^64 = 1 - 1e-8
    assert bands_for(1.0) == (1, 128)


def test_exact_duplicates_within_train_leave_the_first():
    found = find_duplicates(
        {"train": ["One two", "other", "one  TWO\n", "one two!"]}, Deduplication(method="exact")
    )
    assert found.pairs == [Duplicate("train", 2, "train", 0, 1.0)]
    assert kept(found) == {"train": [0, 1, 3]}
    assert found.report == {
        "dropped": {"train": {"train": 1}},
        "left_in": {},
        "examples": [{"part": "train", "row": 2, "of_part": "train", "of_row": 0, "similarity": 1.0}],
    }


def test_near_duplicates_are_dropped_with_their_similarity():
    # 24 words, 20 runs of five. The last word changed: 19 of 21. The middle one: 15 of 25.
    original = list(range(24))
    parts = {
        "train": [text(*original), text(*original[:-1], 99), text(*original[:12], 99, *original[13:]), "z"]
    }
    found = find_duplicates(parts, Deduplication())
    assert found.pairs == [Duplicate("train", 1, "train", 0, pytest.approx(19 / 21))]
    assert kept(found) == {"train": [0, 2, 3]}
    assert kept(find_duplicates(parts, Deduplication(similarity=0.6))) == {"train": [0, 3]}
    assert kept(find_duplicates(parts, Deduplication(method="exact"))) == {"train": [0, 1, 2, 3]}


def test_what_is_held_out_stays_and_train_gives_way():
    near = list(range(24))
    parts = {
        "test": [text(*near), "exact copy of a row"],
        "eval": [text(*near[:-1], 77), "its own"],
        "train": ["Exact copy of a row", "kept", text(*near[:-1], 99), "its own", "kept"],
    }
    found = find_duplicates(parts, Deduplication(), held_out=("eval", "test"))
    assert kept(found) == {"test": [0, 1], "eval": [0, 1], "train": [1]}
    assert found.report["dropped"] == {"train": {"test": 2, "eval": 1, "train": 1}}
    assert found.report["left_in"] == {"eval": {"test": 1}}
    assert found.pairs[0] == Duplicate("eval", 0, "test", 0, pytest.approx(19 / 21))
    # The same similarity to both: the part that stands first is named.
    assert found.pairs[1:] == [
        Duplicate("train", 0, "test", 1, 1.0),
        Duplicate("train", 2, "test", 0, pytest.approx(19 / 21)),
        Duplicate("train", 3, "eval", 1, 1.0),
        Duplicate("train", 4, "train", 1, 1.0),
    ]


def test_the_same_row_twice_in_test_is_counted_and_stays():
    found = find_duplicates({"test": ["a", "a", "a"], "train": ["b"]}, Deduplication(), held_out=("test",))
    assert kept(found) == {"test": [0, 1, 2], "train": [0]}
    assert found.report["left_in"] == {"test": {"test": 2}}


def test_parts_that_are_not_held_out_are_not_compared():
    found = find_duplicates({"train": ["a"], "unlabeled": ["a", "b", "b"]}, Deduplication())
    assert kept(found) == {"train": [0], "unlabeled": [0, 1]}


def test_a_chain_leaves_its_ends():
    # b is like a (19 of 21) and c like b (19 of 21), but c is like a only to 18 of 22 = 0.818.
    numbers = list(range(24))
    a, b, c = text(*numbers), text(*numbers[:-1], 99), text(98, *numbers[1:-1], 99)
    rules = Deduplication(similarity=0.85)
    assert similarity(a, c) == pytest.approx(18 / 22)
    assert kept(find_duplicates({"train": [a, b, c]}, rules)) == {"train": [0, 2]}


def test_a_copy_of_a_dropped_row_is_like_the_row_that_stays():
    numbers = list(range(24))
    a, b = text(*numbers), text(*numbers[:-1], 99)
    found = find_duplicates({"train": [a, b, b.upper()]}, Deduplication())
    assert [(pair.row, pair.of_row) for pair in found.pairs] == [(1, 0), (2, 0)]
    assert found.pairs[1].similarity == pytest.approx(19 / 21)


def brute_force(parts, rules, held_out):
    """Every pair compared, with Python's sets of tuples."""

    def runs(row):
        words = row.split()
        return {tuple(words[i : i + rules.words]) for i in range(max(1, len(words) - rules.words + 1))}

    def alike(a, b):
        return len(runs(a) & runs(b)) / len(runs(a) | runs(b))

    judged = [row for name in held_out for row in parts[name]]
    stay = []
    for number, row in enumerate(parts["train"]):
        others = [*judged, *(parts["train"][i] for i in stay)]
        if not any(alike(row, other) >= rules.similarity for other in others):
            stay.append(number)
    return stay


def test_the_same_rows_stay_as_when_every_pair_is_compared():
    rng = np.random.default_rng(0)
    originals = [list(rng.integers(0, 400, rng.integers(8, 40))) for _ in range(60)]
    rows = []
    for original in originals:
        for changes in range(4):  # 0 to 3 words changed: similarities from 1 down to below the threshold
            row = list(original)
            for place in rng.choice(len(row), changes, replace=False):
                row[place] = int(rng.integers(0, 400))
            rows.append(text(*row))
    rng.shuffle(rows)
    parts = {"test": rows[:40], "train": rows[40:]}
    for rules in (
        Deduplication(words=2, similarity=0.7),
        Deduplication(words=3),
        Deduplication(words=1, similarity=0.5),
    ):
        stay = brute_force(parts, rules, ["test"])
        assert 20 < len(stay) < 180
        assert kept(find_duplicates(parts, rules, held_out=("test",)))["train"] == stay


def test_signatures_agree_as_often_as_texts_are_alike():
    a, b = text(*range(200)), text(*range(100, 300))  # runs of one word: 100 of 300
    words = [dedup._word_hashes(row, {}) for row in (a, b)]
    left, right = dedup._signatures(*dedup._shingles(words, 1), 4096)
    # The mean of 4096 draws of probability 1/3 has a standard deviation of 0.0074.
    assert abs((left == right).mean() - 1 / 3) < 0.03


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=12), st.sampled_from(["exact", "near"]))
@settings(deadline=None, max_examples=100)
def test_every_row_stays_or_is_a_pair(rows, method):
    texts = [text(*row) for row in rows]
    parts = {"test": texts[:3], "train": texts[3:]}
    found = find_duplicates(parts, Deduplication(method=method), held_out=("test",))
    assert kept(found)["test"] == list(range(len(parts["test"])))
    dropped = [pair.row for pair in found.pairs if pair.part == "train"]
    assert sorted([*kept(found)["train"], *dropped]) == list(range(len(parts["train"])))
    for pair in found.pairs:
        assert pair.of_row in found.kept[pair.of_part]
        one, other = parts[pair.part][pair.row], parts[pair.of_part][pair.of_row]
        assert similarity(one, other) == pytest.approx(pair.similarity)
    rest = [parts["train"][i] for i in kept(found)["train"]]
    again = find_duplicates(
        {**parts, "train": rest},
        Deduplication(method=method),
        held_out=("test",),
    )
    assert not again.report["dropped"]


def test_hashes_do_not_depend_on_the_process():
    code = "from hf_llm_recipes.data import dedup as d; print(d._band_keys(['a b'], d.Deduplication()).sum())"
    sums = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(sums) == 1


def test_chunks_cover_all_rows(monkeypatch):
    texts = [text(*range(i, i + 9)) for i in range(30)]
    whole = dedup._band_keys(texts, Deduplication())
    monkeypatch.setattr(dedup, "CHUNK", 25)
    np.testing.assert_array_equal(dedup._band_keys(texts, Deduplication()), whole)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"similarity": 0.4}, "similarity is 0.4"),
        ({"similarity": 1.1}, "similarity is 1.1"),
        ({"words": 0}, "words is 0"),
        ({"method": "exact", "words": 3}, "words has no effect with method: exact"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Deduplication(**given)
