"""What the tests of algorithms share: probabilities in, logits out."""

import torch

from hf_llm_recipes.algorithms.base import Given


def logits(probabilities):
    """Logits whose softmax is the given rows."""
    return torch.tensor(probabilities, dtype=torch.float32).log()


def given(weak, *, labeled=((0.5, 0.5),), labels=(0,), rows=None, prior=None, progress=0.0, peer=None):
    """A ``Given`` of probabilities; the prior is uniform unless told so."""
    classes = len(weak[0])
    if len(labeled[0]) != classes:
        labeled = [[1 / classes] * classes]
    return Given(
        weak_UC=logits(weak),
        labeled_BC=logits(labeled),
        labels_B=torch.tensor(labels),
        rows_U=torch.arange(len(weak)) if rows is None else torch.tensor(rows),
        prior_C=torch.tensor(prior if prior is not None else [1 / classes] * classes),
        progress=progress,
        peer_UC=None if peer is None else logits(peer),
    )


def near(value, tolerance=1e-5):
    """``pytest.approx`` for float32."""
    import pytest

    return pytest.approx(value, abs=tolerance)


def loss(algorithm, guess, strong):
    """The loss where only the items that count are computed, as the Trainer does it."""
    kept = (guess.weight_U > 0).nonzero().squeeze(-1)
    return algorithm.loss(logits(strong)[kept], guess.keep(kept), len(strong)).item()


class LinearForward:
    """A ``Forward`` over softmax(W · mean of a row's token embeddings), worked by hand in the tests.

    Args:
        tokens_NTD: Embeddings of the unlabeled rows, then of the labeled ones.
        mask_NT: 1 for tokens.
        weight_CD: W; may need gradients.
    """

    def __init__(self, tokens_NTD, mask_NT, weight_CD):
        self.tokens, self.mask, self.weight = tokens_NTD, mask_NT, weight_CD
        self.asked = []

    def embeddings(self, rows_K):
        return self.tokens[rows_K]

    def token_mask(self, rows_K):
        return self.mask[rows_K]

    def pooled(self, rows_K, embeddings_KTD):
        mask = self.mask[rows_K].unsqueeze(-1)
        return (embeddings_KTD * mask).sum(1) / mask.sum(1)

    def logits(self, rows_K, embeddings_KTD):
        self.asked.append(embeddings_KTD.detach())
        return self.pooled(rows_K, embeddings_KTD) @ self.weight.T

    def mixed(self, rows_K, others_K, share, layer):
        self.asked.append((rows_K, others_K, share, layer))
        own = self.pooled(rows_K, self.tokens[rows_K])
        other = self.pooled(others_K, self.tokens[others_K])
        return (share * own + (1 - share) * other) @ self.weight.T
