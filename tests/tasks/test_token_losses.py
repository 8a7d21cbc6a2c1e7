"""Losses of single tokens over a large vocabulary."""

import numpy as np
import torch

from hf_llm_recipes.tasks._language import token_losses


def test_a_large_vocabulary_leaves_no_bias():
    torch.manual_seed(0)
    logits_BTV = 3 * torch.randn(2, 60, 49_152)
    labels_BT = torch.randint(49_152, (2, 60))
    exact = logits_BTV.numpy().astype(np.float64)
    highest = exact.max(-1, keepdims=True)
    logs = highest[..., 0] + np.log(np.exp(exact - highest).sum(-1))
    expected = logs - np.take_along_axis(exact, labels_BT.numpy()[..., None], -1)[..., 0]
    found = token_losses(logits_BTV, labels_BT).double().numpy()
    assert abs((found - expected).mean()) < 2e-5
    assert np.abs(found - expected).max() < 5e-5


def test_two_tokens_by_hand_and_one_that_is_not_guessed():
    logits_BTV = torch.tensor([[[0.0, 0.0], [np.log(3.0), 0.0], [5.0, -5.0]]])
    found = token_losses(logits_BTV, torch.tensor([[1, 0, -100]]))
    assert torch.allclose(found, torch.tensor([[np.log(2.0), np.log(4 / 3), 0.0]], dtype=torch.float32))
