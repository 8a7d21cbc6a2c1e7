import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_llm_recipes.methods._streams import Key, TwoStreamBatches, TwoStreamCollator, TwoStreams


def rows(count, base):
    return [{"input_ids": [base + i]} for i in range(count)]


def collate(items):
    return {"input_ids": torch.tensor([item["input_ids"] for item in items])}


def noisy(row, index, random):
    return {"input_ids": [row["input_ids"][0], int(random.integers(1 << 30))][1:]}


def loader(workers=0, epoch=0, strong=noisy):
    batches = TwoStreamBatches(5, 12, 2, 4, seed=7)
    streams = TwoStreams(rows(5, 0), rows(12, 100), strong, batches)
    streams.set_epoch(epoch)
    return DataLoader(
        streams, batch_sampler=batches, collate_fn=TwoStreamCollator(collate), num_workers=workers
    )


def test_an_epoch_is_one_pass_over_the_pool_and_labeled_rows_go_round():
    batches = TwoStreamBatches(5, 12, 2, 4, seed=7)
    epoch = list(batches)
    assert len(batches) == len(epoch) == 3
    assert all([key.unlabeled for key in batch] == [False] * 2 + [True] * 4 for batch in epoch)
    pool = [key.index for batch in epoch for key in batch if key.unlabeled]
    assert sorted(pool) == list(range(12))
    labeled = []
    for number in range(5):  # 3 batches of 2 in each of 5 epochs: 30 places, 6 rounds over 5 rows
        batches.set_epoch(number)
        labeled += [key.index for batch in batches for key in batch if not key.unlabeled]
    rounds = [labeled[i : i + 5] for i in range(0, 30, 5)]
    assert [sorted(each) for each in rounds] == [list(range(5))] * 6
    assert len({tuple(each) for each in rounds}) > 1


def test_rows_that_do_not_fill_a_batch_wait_for_the_next_epoch():
    batches = TwoStreamBatches(2, 11, 1, 4, seed=0)
    seen = set()
    for epoch in range(8):
        batches.set_epoch(epoch)
        pool = [key.index for batch in batches for key in batch if key.unlabeled]
        assert len(pool) == len(set(pool)) == 8
        seen |= set(pool)
    assert seen == set(range(11))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_order_of_calls_change_nothing(workers):
    expected = list(loader(epoch=3))
    found = list(loader(workers, epoch=3))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["unlabeled"]["rows"], other["unlabeled"]["rows"])
        assert torch.equal(one["unlabeled"]["strong"]["input_ids"], other["unlabeled"]["strong"]["input_ids"])


def test_another_epoch_and_another_seed_give_other_views_of_the_same_row():
    row = Key(True, 3, (7, 2, 0, 3))
    streams = TwoStreams(rows(5, 0), rows(12, 100), noisy, None)
    again, other = streams[row]["strong"], streams[Key(True, 3, (7, 2, 1, 3))]["strong"]
    assert streams[row]["strong"] == again != other
    assert np.array_equal(streams[row]["row"]["input_ids"], [103])


def test_a_batch_holds_both_streams():
    batch = next(iter(loader()))
    assert set(batch) == {"input_ids", "index", "unlabeled"}
    assert torch.equal(batch["input_ids"][:, 0], batch["index"])
    weak = batch["unlabeled"]["weak"]["input_ids"][:, 0]
    assert torch.equal(weak, batch["unlabeled"]["rows"] + 100)
    assert "strong" not in next(iter(loader(strong=None)))["unlabeled"]
