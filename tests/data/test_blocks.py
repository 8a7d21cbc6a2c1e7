import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_llm_recipes.data.blocks import best_fit, concat, position_ids
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.models.packed import sequence_lengths

END = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 999), max_size=23), min_size=1, max_size=12)


def rows(blocks, key):
    return [block[key].tolist() for block in blocks]


def test_concat_joins_and_cuts_as_worked_by_hand():
    # Stream: 1 2 3 0 | 4 0 | 5 6 7 8 9 0: 12 tokens; blocks of five, two tokens are left.
    blocks = concat([[1, 2, 3], [4], [5, 6, 7, 8, 9]], 5, end_token=END)
    assert rows(blocks, "input_ids") == [[1, 2, 3, 0, 4], [0, 5, 6, 7, 8]]
    assert rows(blocks, "seq_lengths") == [[4, 1], [1, 4]]
    assert rows(blocks, "documents") == [[0, 1], [1, 2]]
    assert blocks.report == {
        "documents": 3,
        "empty_documents": 0,
        "cut_documents": 1,  # the second lies in both blocks; the third's rest is dropped
        "pieces": 4,
        "blocks": 2,
        "tokens": 9,
        "added_tokens": 3,
        "dropped_tokens": 2,
        "tokens_in_blocks": 10,
        "fill": 1.0,
    }
    assert blocks.notes == [
        "1 of 3 documents are cut into several pieces",
        "the last 2 tokens fill no block and are dropped (16.67 %)",
    ]


def test_concat_keeps_the_tail_when_asked():
    blocks = concat([[1, 2, 3], [4], [5, 6, 7, 8, 9]], 5, end_token=END, tail="keep")
    assert rows(blocks, "input_ids") == [[1, 2, 3, 0, 4], [0, 5, 6, 7, 8], [9, 0]]
    assert rows(blocks, "seq_lengths") == [[4, 1], [1, 4], [2]]
    assert blocks.report["dropped_tokens"] == 0
    assert blocks.report["cut_documents"] == 2
    assert blocks.report["fill"] == pytest.approx(12 / 15)


def test_concat_without_an_end_token_and_with_an_empty_document():
    blocks = concat([[1, 2], [], [3, 4]], 2, end_token=None)
    assert rows(blocks, "input_ids") == [[1, 2], [3, 4]]
    assert rows(blocks, "documents") == [[0], [2]]
    assert (blocks.report["empty_documents"], blocks.report["added_tokens"]) == (1, 0)
    assert blocks.notes == ["1 empty documents are in no block"]


def test_best_fit_packs_as_worked_by_hand():
    # Lengths 3, 2, 6, 2, 5 into blocks of 6. The longest first: 6 fills a block, 5 opens one with 1 left,
    # 3 opens one with 3 left, 2 goes there (1 left), the other 2 opens a block.
    documents = [[1, 1, 1], [2, 2], [3] * 6, [4, 4], [5] * 5]
    blocks = best_fit(documents, 6)
    assert rows(blocks, "input_ids") == [[1, 1, 1, 2, 2], [3] * 6, [4, 4], [5] * 5]
    assert rows(blocks, "seq_lengths") == [[3, 2], [6], [2], [5]]
    assert rows(blocks, "documents") == [[0, 1], [2], [3], [4]]
    assert blocks.report["fill"] == pytest.approx(18 / 24)
    assert blocks.notes == []


def test_best_fit_takes_the_tightest_block():
    # 7 leaves 3 and 5 leaves 5: the 3 goes behind the 7, the 4 behind the 5 (lengths 7, 5, 4, 3 in order).
    blocks = best_fit([[1] * 7, [2] * 5, [3] * 3, [4] * 4], 10)
    assert rows(blocks, "documents") == [[0, 2], [1, 3]]


def test_best_fit_cuts_long_documents_and_counts_them():
    # 7 tokens and the end: pieces of 4 and 4 (the end in the last); the other document fills with its end.
    blocks = best_fit([[1, 2, 3, 4, 5, 6, 7], [8]], 4, end_token=END)
    assert rows(blocks, "input_ids") == [[1, 2, 3, 4], [5, 6, 7, 0], [8, 0]]
    assert rows(blocks, "documents") == [[0], [0], [1]]
    assert blocks.report["cut_documents"] == 1
    assert (blocks.report["tokens"], blocks.report["added_tokens"]) == (8, 2)
    assert blocks.notes == ["1 of 2 documents are cut into several pieces"]


def test_best_fit_frames_each_piece():
    blocks = best_fit([[1, 2, 3, 4], [5]], 5, frame=([101], [102]))
    assert rows(blocks, "input_ids") == [[101, 1, 2, 3, 102], [101, 4, 102], [101, 5, 102]]
    assert blocks.report["added_tokens"] == 6
    # With one more token of room the last two would share a block: 3 + 3 = 6.
    assert rows(best_fit([[1, 2, 3, 4], [5]], 6, frame=([101], [102])), "seq_lengths") == [[6], [3]]


def test_position_ids_restart_and_packed_attention_reads_them():
    assert position_ids([2, 3, 1]).tolist() == [0, 1, 0, 1, 2, 0]
    assert position_ids([]).tolist() == []
    block = best_fit([[1, 1, 1], [2, 2], [3]], 6)[0]
    ids = torch.as_tensor(position_ids(block["seq_lengths"]))[None]
    assert sequence_lengths(1, 6, ids) == [3, 2, 1] == block["seq_lengths"].tolist()


@given(DOCUMENTS, st.integers(1, 9), st.sampled_from([None, END]), st.sampled_from(["drop", "keep"]))
@settings(deadline=None, max_examples=150)
def test_concat_conserves_tokens(documents, block_size, end, tail):
    stream = [token for tokens in documents if tokens for token in [*tokens, *([] if end is None else [end])]]
    kept = len(stream) if tail == "keep" else len(stream) // block_size * block_size
    if not kept:
        with pytest.raises(DataError, match="fill no block"):
            concat(documents, block_size, end_token=end, tail=tail)
        return
    blocks = concat(documents, block_size, end_token=end, tail=tail)
    assert blocks.tokens.tolist() == stream[:kept]
    assert all(len(block["input_ids"]) == block_size for block in list(blocks)[:-1])
    check_balance(blocks, documents, block_size)


@given(DOCUMENTS, st.integers(3, 9), st.sampled_from([None, END]), st.booleans())
@settings(deadline=None, max_examples=150)
def test_best_fit_conserves_tokens(documents, block_size, end, framed):
    frame = ([1001], [1002]) if framed else ((), ())
    if not any(documents):
        with pytest.raises(DataError, match="no token"):
            best_fit(documents, block_size, end_token=end, frame=frame)
        return
    blocks = best_fit(documents, block_size, end_token=end, frame=frame)
    check_balance(blocks, documents, block_size)
    found = {}
    cut_P = np.split(blocks.tokens, np.cumsum(blocks.lengths)[:-1])
    for number, piece in zip(blocks.documents.tolist(), cut_P, strict=True):
        piece = piece.tolist()
        if framed:
            assert (piece[0], piece[-1]) == (1001, 1002)
            piece = piece[1:-1]
        found.setdefault(number, []).append(piece)
    room = block_size - 2 * framed
    for number, tokens in enumerate(documents):
        whole = [*tokens, *([] if end is None or not tokens else [end])]
        expected = [whole[at : at + room] for at in range(0, len(whole), room)]
        assert sorted(found.get(number, [])) == sorted(expected)  # cut no oftener than needed
    # No two blocks could be one: the smallest block is more than half of each other's rest.
    sizes = sorted(len(block["input_ids"]) for block in blocks)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > block_size


def check_balance(blocks, documents, block_size):
    report = blocks.report
    assert report["tokens"] == sum(map(len, documents))
    assert report["tokens"] + report["added_tokens"] - report["dropped_tokens"] == len(blocks.tokens)
    assert report["empty_documents"] == sum(not tokens for tokens in documents)
    assert sum(blocks.lengths) == len(blocks.tokens) == report["tokens_in_blocks"]
    assert report["pieces"] == len(blocks.lengths) == len(blocks.documents)
    assert (blocks.lengths > 0).all()
    sizes = [len(block["input_ids"]) for block in blocks]
    assert len(sizes) == report["blocks"] == len(blocks)
    assert max(sizes) <= block_size
    assert min(sizes) > 0
    assert report["fill"] == pytest.approx(sum(sizes) / (len(sizes) * block_size))


def test_the_data_set_holds_the_same_rows():
    blocks = best_fit([[1, 1, 1], [2, 2], [3] * 6], 6)
    data = blocks.dataset()
    assert data.column_names == ["input_ids", "seq_lengths", "documents"]
    for name in data.column_names:
        assert [list(value) for value in data[name]] == rows(blocks, name)
    assert list(data[0]["input_ids"]) == [1, 1, 1, 2, 2]
    assert data.select([1])[0] == {"input_ids": [3] * 6, "seq_lengths": [6], "documents": [2]}


def test_a_block_is_counted_from_either_end():
    blocks = best_fit([[1], [2, 2]], 2)
    assert blocks[-1]["input_ids"].tolist() == [2, 2] == blocks[1]["input_ids"].tolist()
    with pytest.raises(IndexError, match="block 2 of 2"):
        blocks[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: concat([[1]], 0, end_token=None), "block_size is 0"),
        (lambda: best_fit([[1]], 2, frame=([1], [2])), "block_size is 2"),
        (lambda: best_fit([[1], [0.5]], 2), "document 1"),
        (lambda: best_fit([[1], "text"], 2), "document 1"),
        (lambda: best_fit([[[1]]], 2), "no list of token numbers"),
        (lambda: concat([[1]], 2, end_token=None, tail="cut"), "tail is 'cut'"),
        (lambda: concat([[1]], 5, end_token=END), "1 documents of 2 tokens fill no block of 5"),
        (lambda: best_fit([], 5), "0 documents have no token"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
