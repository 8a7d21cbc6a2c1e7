import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_llm_recipes.models.packed import sequence_lengths
from hf_llm_recipes.tasks._packing import PackedCollator, PaddedCollator

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "length": 3},
    {"input_ids": [8, 9], "labels": [-100, 9], "length": 2},
    {"input_ids": [4], "labels": [4], "length": 1},
]


def lists(batch):
    return {name: tensor.tolist() for name, tensor in batch.items()}


def test_packed_rows_lie_end_to_end_and_their_first_labels_are_out():
    assert lists(PackedCollator()(ROWS)) == {
        "input_ids": [[5, 6, 7, 8, 9, 4]],
        "position_ids": [[0, 1, 2, 0, 1, 0]],
        "labels": [[-100, 6, 7, -100, 9, -100]],
    }


def test_padded_rows():
    assert lists(PaddedCollator(pad_token_id=0)(ROWS)) == {
        "input_ids": [[5, 6, 7], [8, 9, 0], [4, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0], [1, 0, 0]],
        "labels": [[-100, 6, 7], [-100, 9, -100], [-100, -100, -100]],
    }


def test_labels_of_their_own_position_all_stay():
    assert PackedCollator(shifted_labels=False)(ROWS)["labels"].tolist() == [[5, 6, 7, -100, 9, 4]]
    padded = PaddedCollator(pad_token_id=0, shifted_labels=False)(ROWS)
    assert padded["labels"].tolist() == [[5, 6, 7], [-100, 9, -100], [4, -100, -100]]


def test_an_end_token_that_also_pads_is_learnt():
    batch = PaddedCollator(pad_token_id=9)(ROWS[:2])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist()[1] == [-100, 9, -100]
    assert batch["attention_mask"].tolist()[1] == [1, 1, 0]


def test_a_multiple():
    batch = PaddedCollator(pad_token_id=0, pad_to_multiple_of=4)(ROWS[:2])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 0, 0]]
    assert PaddedCollator(pad_token_id=0, pad_to_multiple_of=3)(ROWS)["labels"].shape == (3, 3)


def test_no_labels_and_empty_rows():
    bare = [{"input_ids": [5, 6]}, {"input_ids": []}, {"input_ids": [7]}]
    assert lists(PackedCollator()(bare)) == {"input_ids": [[5, 6, 7]], "position_ids": [[0, 1, 0]]}
    assert lists(PaddedCollator(pad_token_id=0)(bare))["input_ids"] == [[5, 6], [0, 0], [7, 0]]


@pytest.mark.parametrize("collator", [PackedCollator(), PaddedCollator(pad_token_id=0)])
def test_bad_rows(collator):
    with pytest.raises(ValueError, match="a row has 2 input_ids but 1 labels; one a token"):
        collator([{"input_ids": [5, 6], "labels": [5]}])
    with pytest.raises(ValueError, match="none of the 1 rows of a batch has a token"):
        collator([{"input_ids": [], "labels": []}])
    with pytest.raises(ValueError, match="some rows of a batch have labels and some have none"):
        collator([{"input_ids": [5], "labels": [5]}, {"input_ids": [6]}])


def test_rows_are_not_changed():
    row = {"input_ids": [5, 6], "labels": [5, 6]}
    PackedCollator()([row])
    PaddedCollator(pad_token_id=0)([row])
    assert row == {"input_ids": [5, 6], "labels": [5, 6]}


ROW = st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=12)


@given(st.lists(ROW, min_size=1, max_size=6))
def test_no_token_and_no_label_is_lost_or_made(drawn):
    rows = [{"input_ids": [i for i, _ in r], "labels": [i if s else -100 for i, s in r]} for r in drawn]
    packed, padded = PackedCollator()(rows), PaddedCollator(pad_token_id=0)(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    supervised = sum(label != -100 for row in rows for label in row["labels"][1:])
    assert sequence_lengths(1, sum(lengths), packed["position_ids"]) == lengths
    assert packed["input_ids"].shape == (1, sum(lengths))
    assert torch.equal(padded["attention_mask"].sum(1), torch.tensor(lengths))
    mask = padded["attention_mask"].bool()
    assert torch.equal(padded["input_ids"][mask], packed["input_ids"][0])
    assert torch.equal(padded["labels"][mask], packed["labels"][0])
    for batch in (packed, padded):
        assert int((batch["labels"] != -100).sum()) == supervised
        # what the Trainer counts where it knows that the loss shifts
        assert int((batch["labels"][:, 1:] != -100).sum()) == supervised
