"""Packing, masking and corrupting lose no token; algorithms give finite losses and go on alike."""

import pytest
import torch
from _fuzzing import outcomes

from hf_llm_recipes.algorithms._common import RunningMean
from hf_llm_recipes.objectives.span_corruption import Corrupter, fill_spans, noise_counts, noise_mask
from hf_llm_recipes.registry import ALGORITHMS


@pytest.mark.parametrize(
    ("kind", "cases", "kinds"),
    [
        ("packing", 250, {"packed", "refused"}),
        ("corruption", 300, {"given back"}),
        ("masking", 200, {"hidden"}),
        ("algorithms", 300, {"finite"}),
    ],
)
def test_kinds(tmp_path, kind, cases, kinds):
    found = outcomes(kind, cases, tmp_path)
    assert sum(found.values()) >= 0.9 * cases
    assert set(found) == kinds
    assert min(found.values()) > 40


def test_a_row_of_three_half_hidden_has_one_span():
    """2 of 3 tokens hidden: the one kept token parts no two spans; the fuzzer found two."""
    assert noise_counts(3, 0.5, 1.0) == (2, 1)
    assert noise_mask(3, 0.5, 1.0, torch.Generator().manual_seed(0)).tolist() == [False, True, True]
    source, target = Corrupter([90, 91], 99, 0.5, 1.0)([5, 6, 7], torch.Generator().manual_seed(0))
    assert (source, target) == ([5, 90, 99], [90, 6, 7, 99])
    assert fill_spans(source[:-1], target, [90, 91], 99) == [5, 6, 7]


def test_counts_that_were_right_stay():
    assert noise_counts(100, 0.15, 3.0) == (15, 5)
    assert noise_counts(512, 0.15, 3.0) == (77, 26)
    assert noise_counts(2, 0.15, 3.0) == (1, 1)


def test_a_step_without_items_leaves_an_average_as_it_was():
    mean = RunningMean(torch.tensor([0.5, 0.5]), 0.5)
    mean.update(torch.tensor([0.2, 0.8]))
    after = mean.update(torch.zeros(0, 2).mean(0))
    assert torch.equal(after, torch.tensor([0.2, 0.8]))
    assert mean.steps == 1


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS.names()) - {"vat", "mixtext"}))
def test_no_item_no_loss(name):
    algorithm = ALGORITHMS.get(name)()
    algorithm.start(2, 4)
    from hf_llm_recipes.algorithms.base import Given

    none = torch.zeros(0, 2)
    labels, rows = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    given = Given(none, none, labels, rows, torch.tensor([0.5, 0.5]), 0.0, none)
    assert algorithm.loss(none, algorithm.guess(given), 0).item() == 0.0
