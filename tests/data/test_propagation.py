"""Neighbours, spreading, class shares and the classifiers beside them, against independent computations."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.semi_supervised import LabelSpreading

from hf_llm_recipes.data.propagation import (
    _spread,
    estimate_prior,
    held_out_accuracy,
    match_prior,
    nearest,
    neighbor_graph,
    probe,
    probe_on_soft,
    propagate,
    self_train,
)


def clusters(sizes, seed=0, spread=0.6, dimensions=16):
    """Points around one random direction a class, and their classes."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(len(sizes), dimensions))
    classes = np.repeat(np.arange(len(sizes)), sizes)
    points = centers[classes] + spread * random.normal(size=(len(classes), dimensions))
    order = random.permutation(len(classes))
    return points[order].astype(np.float32), classes[order]


def few_labels(classes, each, seed=0):
    """The classes of some rows each, -1 for all others."""
    random = np.random.default_rng(seed)
    labels = np.full(len(classes), -1)
    for number in range(classes.max() + 1):
        rows = random.choice(np.flatnonzero(classes == number), each, replace=False)
        labels[rows] = number
    return labels


def accuracy(probabilities, classes, labels):
    open_rows = labels < 0
    return (probabilities[open_rows].argmax(1) == classes[open_rows]).mean()


@pytest.mark.parametrize("rows,neighbors", [(40, 5), (700, 3), (1500, 15), (30, 29)])
def test_neighbors_are_sklearns(rows, neighbors):
    points = np.random.default_rng(1).normal(size=(rows, 12))
    found, cosines = nearest(points, neighbors)
    exact = NearestNeighbors(n_neighbors=neighbors + 1, metric="cosine", algorithm="brute").fit(points)
    distances, expected = exact.kneighbors(points)
    assert np.array_equal(found, expected[:, 1:])
    assert np.abs(cosines - (1 - distances[:, 1:])).max() < 1e-5


def _clusters(rows, width=32, seed=3):
    random = np.random.default_rng(seed)
    return random.normal(size=(20, width))[random.integers(0, 20, rows)] + 0.5 * random.normal(
        size=(rows, width)
    )


def test_an_inverted_file_finds_nearly_all_of_sklearns_neighbors():
    pytest.importorskip("faiss")
    points = _clusters(3000)
    found, cosines = nearest(points, 10, exact=False)
    exact = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute").fit(points)
    expected = exact.kneighbors(points, return_distance=False)[:, 1:]
    same = np.mean([np.isin(row, other).mean() for row, other in zip(found, expected, strict=True)])
    assert same > 0.97
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert np.abs(cosines - (unit[:, None] * unit[found]).sum(2)).max() < 1e-5
    assert (np.diff(cosines, axis=1) <= 0).all()
    assert (found != np.arange(3000)[:, None]).all()
    again, _ = nearest(points, 10, exact=False)
    assert np.array_equal(found, again)


def test_an_inverted_file_with_equal_rows_and_with_cells_too_small():
    pytest.importorskip("faiss")
    found, cosines = nearest(np.tile([[1.0, 2.0]], (300, 1)), 2, exact=False)
    assert np.allclose(cosines, 1)
    assert (found != np.arange(300)[:, None]).all()
    points = _clusters(100)  # ten cells, all of them probed; one neighbour less than there are rows
    found, _ = nearest(points, 99, exact=False)
    assert (np.sort(found) == [np.delete(np.arange(100), row) for row in range(100)]).all()
    few = np.concatenate([_clusters(1000), -50 + _clusters(3)])
    found, _ = nearest(few, 200, exact=False)  # cells near the three hold fewer than 200 rows, or not
    assert ((found >= 0) & (found != np.arange(1003)[:, None])).all()
    assert all(len(set(row)) == 200 for row in found.tolist())


def test_many_rows_take_the_inverted_file_where_it_is_installed(monkeypatch, caplog):
    caplog.set_level("INFO", "hf_llm_recipes")
    from hf_llm_recipes.data import propagation

    monkeypatch.setattr(propagation, "EXACT_ROWS", 200)
    called = []
    monkeypatch.setattr(propagation, "_inverted_file", lambda *given: called.append(given[1]) or (None, None))
    monkeypatch.setattr(propagation.importlib.util, "find_spec", lambda name: name == "faiss" or None)
    nearest(_clusters(200), 3)
    assert not called
    nearest(_clusters(201), 3)
    assert called == [3]
    nearest(_clusters(201), 3, exact=True)
    monkeypatch.setattr(propagation.importlib.util, "find_spec", lambda name: None)
    assert nearest(_clusters(201), 3)[0].shape == (201, 3)
    assert called == [3]
    assert 'pip install "hf_llm_recipes[neighbors]"' in caplog.text


def test_equal_rows_are_each_others_neighbors():
    found, cosines = nearest(np.tile([[1.0, 2.0]], (300, 1)), 2)
    assert found[0].tolist() == [1, 2]
    assert found[2].tolist() == [0, 1]
    assert np.allclose(cosines, 1)


def test_the_graph_of_four_points():
    # Directions 0°, 60° | 180°, 180°: cosines .5 within the first pair, 1 within the second.
    points = np.array([[1, 0], [0.5, 3**0.5 / 2], [-1, 0], [-2, 0]])
    graph = neighbor_graph(points, 1).toarray()
    # W: .5 + .5 and 1 + 1; every degree is its only weight, so each pair's entry is 1.
    assert np.allclose(graph, [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], atol=1e-6)


def test_a_row_without_direction_stays_alone():
    graph = neighbor_graph(np.array([[0.0, 0.0], [1, 0], [1, 0.1]]), 1)
    assert graph.toarray()[0].tolist() == [0, 0, 0]
    assert np.isfinite(graph.toarray()).all()


def test_spreading_is_the_closed_form():
    points, classes = clusters([30, 20, 10])
    labels, graph = few_labels(classes, 3), neighbor_graph(points, 5)
    start = np.eye(3)[np.maximum(labels, 0)] * (labels >= 0)[:, None] / 3
    for alpha in (0.5, 0.99):
        exact = np.linalg.solve(np.eye(60) - alpha * graph.toarray(), start)
        assert np.abs(_spread(graph, labels, 3, alpha) - exact).max() < 1e-8


def test_spreading_by_hand():
    # Two rows joined by 1, α = .5: (I − αS)⁻¹ = [[1, .5], [.5, 1]] / .75.
    graph = sparse.csr_array(np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]))
    scores = _spread(graph, np.array([0, -1, 1]), 2, 0.5)
    assert np.allclose(scores, [[4 / 3, 0], [2 / 3, 0], [0, 1]])


def test_spreading_agrees_with_sklearns_label_spreading():
    points, classes = clusters([40, 40], spread=1.0)
    labels, graph = few_labels(classes, 4), neighbor_graph(points, 8)
    spreading = LabelSpreading(alpha=0.5, max_iter=1000, tol=1e-12)
    spreading._build_graph = graph.toarray
    spreading.fit(points, labels)
    open_rows = labels < 0
    ours = _spread(graph, labels, 2, 0.5)[open_rows]
    ours /= ours.sum(1, keepdims=True)
    assert np.abs(ours - spreading.label_distributions_[open_rows]).max() < 1e-6


@pytest.mark.parametrize("sizes", [[300, 300, 300], [600, 200, 60]])
def test_clusters_are_found_from_three_labels_each(sizes):
    points, classes = clusters(sizes)
    labels = few_labels(classes, 3)
    found = propagate(points, labels, 3)
    assert accuracy(found.probabilities_NC, classes, labels) > 0.97
    true = np.bincount(classes[labels < 0], minlength=3) / (labels < 0).sum()
    uniform_is_off = np.abs(1 / 3 - true).sum()
    assert np.abs(found.prior_C - true).sum() < 0.05 + 0.3 * uniform_is_off
    assert found.reached_N.all()
    assert np.allclose(found.probabilities_NC.sum(1), 1)
    known = labels >= 0
    assert np.array_equal(found.probabilities_NC[known], np.eye(3)[labels[known]])
    assert np.allclose(found.probabilities_NC[~known].mean(0), found.prior_C, atol=1e-4)


def test_a_given_prior_is_kept_and_a_wrong_one_harms():
    points, classes = clusters([800, 80], spread=1.6)
    labels = few_labels(classes, 5)
    true = np.bincount(classes[labels < 0]) / (labels < 0).sum()
    right = propagate(points, labels, 2, prior=true)
    wrong = propagate(points, labels, 2, prior=[0.5, 0.5])
    assert np.array_equal(right.prior_C, true)
    assert accuracy(right.probabilities_NC, classes, labels) > accuracy(
        wrong.probabilities_NC, classes, labels
    )
    assert np.allclose(wrong.probabilities_NC[labels < 0].mean(0), [0.5, 0.5], atol=1e-4)


def test_the_mean_confidence_is_the_wanted_one():
    points, classes = clusters([200, 200, 200], spread=1.0)
    labels = few_labels(classes, 5)
    for wanted in (0.6, 0.9):
        found = propagate(points, labels, 3, confidence=wanted)
        mean = found.probabilities_NC[labels < 0].max(1).mean()
        assert abs(mean - wanted) < 0.03  # matching to the prior moves it a little


def test_a_row_that_no_label_reaches_gets_the_prior():
    graph = sparse.csr_array((np.ones(4), ([0, 1, 2, 3], [1, 0, 3, 2])), shape=(5, 5))
    found = propagate(None, np.array([0, -1, 1, -1, -1]), 2, graph=graph, prior=[0.3, 0.7])
    assert found.reached_N.tolist() == [True, True, True, True, False]
    assert np.allclose(found.probabilities_NC[4], [0.3, 0.7])


def test_no_row_is_reached():
    found = propagate(None, np.array([0, 1, -1]), 2, graph=sparse.csr_array((3, 3)))
    assert np.allclose(found.probabilities_NC[2], [0.5, 0.5])


def test_the_prior_by_hand():
    guesses = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])  # counted: .75, .25
    # Labeled: (3 + 1) / 8 and (3 + 1) / 8, so .2 · .5 + .8 · .75 = .7.
    assert np.allclose(estimate_prior(guesses, np.array([3, 3])), [0.7, 0.3])
    # Labeled (5 + 1) / 8, (1 + 1) / 8.
    assert np.allclose(estimate_prior(guesses, np.array([5, 1]), shrinkage=1.0), [0.75, 0.25])
    assert np.allclose(estimate_prior(guesses, np.array([5, 1]), shrinkage=0.0), [0.75, 0.25])
    assert np.allclose(estimate_prior(np.empty((0, 2)), np.array([5, 1])), [0.75, 0.25])


def test_matching_by_hand():
    # Means (.5, .5) -> (.8, .2). With odds 9 and 1/9 scaled by w: 9w/(9w+1) + w/(w+9) = 1.6
    # -> 18w² + 82w = 1.6 (9w² + 82w + 9) -> 3.6w² − 49.2w − 14.4 = 0 -> w = 13.953.
    matched = match_prior(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0.8, 0.2]))
    w = (49.2 + (49.2**2 + 4 * 3.6 * 14.4) ** 0.5) / 7.2
    assert np.allclose(matched[:, 0], [9 * w / (9 * w + 1), w / (w + 9)], atol=1e-4)
    assert np.allclose(matched.mean(0), [0.8, 0.2], atol=1e-5)


def test_the_probe_is_logistic_regression():
    points, classes = clusters([50, 50, 50])
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    expected = LogisticRegression(C=10, max_iter=1000).fit(unit[:60], classes[:60]).predict_proba(unit[60:])
    assert np.abs(probe(points[:60], classes[:60], 3, points[60:]) - expected).max() < 1e-4


def test_the_soft_probe_on_hard_labels_is_the_probe_at_its_penalty():
    points, classes = clusters([50, 50, 50])
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    expected = LogisticRegression(C=1, max_iter=1000).fit(unit[:60], classes[:60]).predict_proba(unit[60:])
    assert np.abs(probe_on_soft(points[:60], np.eye(3)[classes[:60]], points[60:]) - expected).max() < 0.01


def test_the_soft_probe_learns_from_propagated_labels():
    points, classes = clusters([300, 300, 300, 300], spread=0.9)
    labels = few_labels(classes[:1000], 4)
    found = propagate(points[:1000], labels, 4)
    judged = probe_on_soft(points[:1000], found.probabilities_NC, points[1000:])
    known = np.flatnonzero(labels >= 0)
    plain = probe(points[known], labels[known], 4, points[1000:])
    assert (judged.argmax(1) == classes[1000:]).mean() >= (plain.argmax(1) == classes[1000:]).mean()


def test_self_training_depends_on_its_prior():
    points, classes = clusters([900, 90], spread=1.4, seed=3)
    labels = few_labels(classes, 5)
    true = np.bincount(classes[labels < 0]) / (labels < 0).sum()
    right, wrong = (self_train(points, labels, 2, prior) for prior in (true, [0.5, 0.5]))
    known = labels >= 0
    assert accuracy(right, classes, labels) > accuracy(wrong, classes, labels)
    assert np.array_equal(right[known], np.eye(2)[labels[known]])
    assert np.allclose(right.sum(1), 1)


def test_held_out_accuracy_tells_whether_the_features_cluster():
    points, classes = clusters([200, 200], spread=0.5)
    told = held_out_accuracy(points, few_labels(classes, 10), 2)
    assert told == {"propagation": 1.0, "probe": 1.0}
    # Class = the sign of one weak coordinate among many strong ones: linear, but no clusters.
    random = np.random.default_rng(0)
    points = random.normal(size=(2000, 30)) * np.array([0.8] + [1.0] * 29)
    classes = (points[:, 0] > 0).astype(int)
    told = held_out_accuracy(points, few_labels(classes, 100), 2, folds=4)
    assert told["probe"] > told["propagation"] + 0.1
    assert told == held_out_accuracy(points, few_labels(classes, 100), 2, folds=4)


POINTS, LABELS = np.eye(6), np.array([0, 1, -1, -1, -1, -1])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"labels_N": np.array([0, 2, -1, -1, -1, -1])}, "labels go from -1 to 2; allowed: -1 to 1"),
        ({"labels_N": np.array([0, 1, -2, -1, -1, -1])}, "labels go from -2 to 1"),
        ({"labels_N": np.array([0, 0, -1, -1, -1, -1])}, "class 1 has no labeled row"),
        ({"labels_N": np.array([0, 1, 0, 0, 0, 0])}, "no row is unlabeled"),
        ({"labels_N": np.array([0, 1, -1])}, "6 rows of features, 3 labels"),
        ({"num_classes": 1}, "num_classes is 1; allowed: 2 or more"),
        ({"neighbors": 0}, "neighbors is 0; allowed: 1 to 5 for 6 rows"),
        ({"neighbors": 6}, "neighbors is 6"),
        ({"alpha": 0}, "alpha is 0; allowed: between 0 and 1"),
        ({"alpha": 1}, "alpha is 1"),
        ({"confidence": 0.5}, "confidence is 0.5; allowed: between 1/2 and 1"),
        ({"confidence": 1}, "confidence is 1"),
        ({"prior": [0.5, 0.4]}, r"prior is \[0.5, 0.4\]; allowed: 2 shares above 0 whose sum is 1"),
        ({"prior": [1.0, 0.0]}, "allowed: 2 shares above 0"),
        ({"prior": [1.0]}, "allowed: 2 shares above 0"),
        ({"features_ND": np.full((6, 2), np.nan)}, "not finite"),
    ],
)
def test_what_propagation_refuses(change, message):
    given = {"features_ND": POINTS, "labels_N": LABELS, "num_classes": 2, "neighbors": 2, **change}
    with pytest.raises(ValueError, match=message):
        propagate(**given)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: estimate_prior(np.eye(2), np.ones(2), shrinkage=1.1), "shrinkage is 1.1; allowed: 0 to 1"),
        (lambda: probe(POINTS, LABELS, 2, POINTS), "labels go from -1 to 1; allowed: 0 to 1"),
        (lambda: probe(POINTS, np.zeros(6, int), 2, POINTS), "class 1 has no labeled row"),
        (lambda: probe_on_soft(POINTS, np.eye(2), POINTS), "6 rows of features, 2 soft labels"),
        (lambda: probe_on_soft(POINTS, np.tile([1.0, 0.0], (6, 1)), POINTS), "no row has class 1"),
        (lambda: self_train(POINTS, LABELS, 2, [0.5, 0.5], rounds=0), "rounds is 0; allowed: 1 or more"),
        (lambda: self_train(POINTS, LABELS, 2, [0.5, 0.6]), "allowed: 2 shares above 0"),
        (lambda: held_out_accuracy(POINTS, LABELS, 2), "class 0 has one labeled row; allowed: two or more"),
        (
            lambda: held_out_accuracy(POINTS, np.array([0, 0, 1, 1, -1, -1]), 2, folds=1),
            "folds is 1; allowed: 2 or more",
        ),
    ],
)
def test_what_the_others_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_benchmark_runs_at_toy_size(tmp_path, capsys):
    path = Path(__file__).parents[2] / "benchmarks" / "propagation.py"
    spec = importlib.util.spec_from_file_location("benchmark_propagation", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    out = tmp_path / "figures.json"
    module.main(["--rows", "300", "600", "--dimensions", "24", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["rows"] for row in rows] == [300, 600]
    assert all(row["same_as_sklearn"] == 1.0 for row in rows)
    assert all(row["neighbors_ratio"] > 0 for row in rows)
    assert capsys.readouterr().out.count("| 600 |") == 1
    del sys.modules[spec.name]
