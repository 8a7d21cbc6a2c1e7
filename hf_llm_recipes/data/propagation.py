"""Labels for a pool from a few labeled rows, on vectors that somebody else computed.

Read top to bottom: neighbours, graph, spreading, class shares; then the classifiers beside it.

Notable:
- Neighbours are exact, by blocked matrix products, up to 30,000 rows. Above that, where `faiss` is
  installed, each row is compared with the rows of the cells nearest to it (an inverted file): some
  neighbours in a hundred are missed, for a tenth of the time at 100,000 rows.
- Spreading at alpha .99 leaves scores that are nearly flat, so classical class mass normalisation to an
  uneven prior goes astray there. They are sharpened first and then matched to the class shares.
- It helps only where rows of a class lie together: ``held_out_accuracy`` tells beforehand.

Shape suffixes: N rows  D features  C classes  U unlabeled rows  L labeled rows  K neighbors.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

log = logging.getLogger("hf_llm_recipes")

BLOCK = 64  # similarities whose maximum is taken at once
ROWS = 256  # rows of one block of the similarity matrix: 100 MB at 100,000 rows
PENALTY = 10.0  # C of the logistic regressions, on features of length 1
ITERATIONS = 1000
EXACT_ROWS = 30_000  # up to here all pairs are compared
PROBED = 16  # cells, of √N, in which a row's neighbours are looked for
TRAINED = 64  # rows a cell whose centers are found on


@dataclass(frozen=True)
class Propagation:
    """What was learned of a pool.

    Args:
        probabilities_NC: Soft labels of all rows; 1 for the label of a labeled one.
        prior_C: The class shares that the unlabeled rows were matched to.
        reached_N: Whether a labeled row is connected to the row; where not, its soft label is the prior.
    """

    probabilities_NC: np.ndarray
    prior_C: np.ndarray
    reached_N: np.ndarray


def nearest(
    features_ND: np.ndarray, neighbors: int, *, exact: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest other rows by cosine, (N, K), and their cosines, nearest first.

    Args:
        features_ND: Vectors of any length.
        neighbors: K, from 1 to N − 1.
        exact: Whether all pairs are compared; None: up to 30,000 rows, and where ``faiss`` is missing.

    Raises:
        ValueError: no such number of other rows, or a vector that is not finite.
    """
    count = len(features_ND)
    if not 1 <= neighbors < count:
        raise ValueError(f"neighbors is {neighbors}; allowed: 1 to {count - 1} for {count} rows")
    unit_ND = _unit(features_ND)
    if exact is None:
        exact = count <= EXACT_ROWS or not _has_faiss(count)
    if exact:
        return _all_pairs(unit_ND, np.arange(count), neighbors)
    return _inverted_file(unit_ND, neighbors)


def _has_faiss(count: int) -> bool:
    found = importlib.util.find_spec("faiss") is not None
    if not found:
        log.info(
            f"neighbours of {count:,} rows: all pairs are compared, which takes minutes; some seconds with "
            'pip install "hf_llm_recipes[neighbors]"'
        )
    return found


def _all_pairs(unit_ND: np.ndarray, wanted_M: np.ndarray, neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact neighbours of some rows.

    A lower bound of the K-th largest similarity, the K-th largest maximum of blocks of columns, leaves
    few candidates to sort.
    """
    found_MK = np.empty((len(wanted_M), neighbors), np.int64)
    cosines_MK = np.empty((len(wanted_M), neighbors), np.float32)
    columns_DN = np.ascontiguousarray(unit_ND.T)
    for start in range(0, len(wanted_M), ROWS):
        part = slice(start, start + ROWS)
        rows = wanted_M[part]
        similar = unit_ND[rows] @ columns_DN
        similar[np.arange(len(rows)), rows] = -np.inf
        found_MK[part], cosines_MK[part] = _largest(similar, neighbors)
    return found_MK, cosines_MK


def _inverted_file(unit_ND: np.ndarray, neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours among the rows of the nearest of √N cells (k-means), by ``faiss``; repeatable."""
    import faiss

    count, width = unit_ND.shape
    cells = math.isqrt(count)
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFFlat(quantizer, width, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.max_points_per_centroid = 0, TRAINED
    index.train(unit_ND)
    index.add(unit_ND)
    index.nprobe = min(PROBED, cells)
    cosines, found = index.search(unit_ND, neighbors + 1)
    own = found == np.arange(count)[:, None]
    own[~own.any(1), -1] = True  # among more equal rows than neighbours: the last goes instead
    found_NK = found[~own].reshape(count, neighbors)
    cosines_NK = cosines[~own].reshape(count, neighbors)
    short = np.flatnonzero((found_NK < 0).any(1))  # cells with too few rows
    if len(short):
        found_NK[short], cosines_NK[short] = _all_pairs(unit_ND, short, neighbors)
    order = np.lexsort((found_NK, -cosines_NK))
    return np.take_along_axis(found_NK, order, 1), np.take_along_axis(cosines_NK, order, 1)


def _unit(features_ND: np.ndarray) -> np.ndarray:
    features_ND = np.asarray(features_ND, np.float32)
    if not np.isfinite(features_ND).all():
        raise ValueError("features hold a value that is not finite")
    return features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the largest entries of each row, largest first; ties by column."""
    rows, width = values.shape
    blocks = width // BLOCK
    if blocks > count:
        maxima = values[:, : blocks * BLOCK].reshape(rows, blocks, BLOCK).max(2)
        bound = np.partition(maxima, -count, axis=1)[:, -count]
    else:
        bound = np.partition(values, -count, axis=1)[:, -count]
    row, column = np.nonzero(values >= bound[:, None])
    found = values[row, column]
    order = np.lexsort((column, -found, row))
    first = np.searchsorted(row[order], np.arange(rows))
    chosen = order[first[:, None] + np.arange(count)]
    return column[chosen], found[chosen]


def neighbor_graph(features_ND: np.ndarray, neighbors: int = 15) -> sparse.csr_array:
    """Returns D^-1/2 W D^-1/2 of the symmetric cosine neighbour graph, (N, N).

    W = A + Aᵀ with A_ij = max(cos(i, j), 0) where j is one of the nearest rows of i (Iscen et al. 2019,
    https://arxiv.org/abs/1904.04717, eq. 9, with exponent 1).

    Args:
        features_ND: Vectors of any length.
        neighbors: K of each row, from 1 to N − 1.
    """
    found_NK, cosines_NK = nearest(features_ND, neighbors)
    count = len(found_NK)
    rows = np.repeat(np.arange(count), neighbors)
    weights = np.maximum(cosines_NK, 0).astype(np.float64).ravel()
    one_way = sparse.csr_array((weights, (rows, found_NK.ravel())), shape=(count, count))
    both = one_way + one_way.T
    degree_N = np.asarray(both.sum(1)).ravel()
    scale_N = np.where(degree_N > 0, degree_N, 1.0) ** -0.5
    scale = sparse.dia_array((scale_N[None], [0]), shape=(count, count))
    return (scale @ both @ scale).tocsr()


def propagate(
    features_ND: np.ndarray | None,
    labels_N: np.ndarray,
    num_classes: int,
    *,
    neighbors: int = 15,
    alpha: float = 0.99,
    confidence: float = 0.75,
    prior: np.ndarray | None = None,
    graph: sparse.csr_array | None = None,
) -> Propagation:
    """Spreads a few labels over a pool along its neighbour graph.

    F = (I − αS)⁻¹ Y (Zhou et al. 2004, Learning with Local and Global Consistency, eq. 4), each class's
    labels of total mass 1. Class masses are made those of the labeled rows (Zhu et al. 2003, class mass
    normalisation), the scores sharpened to a mean confidence, and the means matched to the prior by
    rescaling classes and rows in turn; the last two steps are not in the papers.

    Args:
        features_ND: Vectors of any length; not used where ``graph`` is given.
        labels_N: Class numbers, −1 for unlabeled rows.
        num_classes: C, ≥ 2; every class needs a labeled row.
        neighbors: K of the graph.
        alpha: How far labels travel, in (0, 1).
        confidence: Mean largest probability of unlabeled rows, between 1/C and 1.
        prior: Class shares of the unlabeled rows, (C,); None: estimated by ``estimate_prior``.
        graph: Of ``neighbor_graph``, where it is used more than once.

    Raises:
        ValueError: labels outside their range, a class without a label, no unlabeled row, or an option
            out of its range.
    """
    labels_N = _checked_labels(labels_N, num_classes)
    _check_options(alpha, confidence, num_classes)
    if prior is not None:
        prior = _checked_prior(prior, num_classes)
    graph = neighbor_graph(features_ND, neighbors) if graph is None else graph
    if graph.shape[0] != len(labels_N):
        raise ValueError(f"{graph.shape[0]} rows of features, {len(labels_N)} labels")
    open_N = labels_N < 0
    scores_UC = np.maximum(_spread(graph, labels_N, num_classes, alpha)[open_N], 0)
    reached_U = scores_UC.sum(1) > 0
    counts_C = np.bincount(labels_N[~open_N], minlength=num_classes)
    soft_UC = np.full(scores_UC.shape, 1 / num_classes)
    if reached_U.any():
        soft_UC[reached_U] = _sharpened(scores_UC[reached_U], _smoothed(counts_C), confidence)
    if prior is None:
        prior = estimate_prior(soft_UC[reached_U], counts_C)
    soft_UC[reached_U] = match_prior(soft_UC[reached_U], prior)
    soft_UC[~reached_U] = prior
    probabilities_NC = np.eye(num_classes)[np.maximum(labels_N, 0)]
    probabilities_NC[open_N] = soft_UC
    reached_N = np.ones(len(labels_N), bool)
    reached_N[open_N] = reached_U
    return Propagation(probabilities_NC, prior, reached_N)


def _spread(graph: sparse.csr_array, labels_N: np.ndarray, num_classes: int, alpha: float) -> np.ndarray:
    """(I − αS)⁻¹ Y by conjugate gradients, all classes side by side, (N, C)."""
    start_NC = (labels_N[:, None] == np.arange(num_classes)).astype(np.float64)
    start_NC /= start_NC.sum(0)
    solution, residual = np.zeros_like(start_NC), start_NC.copy()
    direction, squared = residual.copy(), (residual**2).sum(0)
    wanted = squared * 1e-20
    for _ in range(ITERATIONS):
        if (squared <= wanted).all():
            break
        image = direction - alpha * (graph @ direction)
        step = squared / np.maximum((direction * image).sum(0), 1e-300)
        solution += step * direction
        residual -= step * image
        before, squared = squared, (residual**2).sum(0)
        direction = residual + squared / np.maximum(before, 1e-300) * direction
    return solution


def _sharpened(scores_UC: np.ndarray, share_C: np.ndarray, confidence: float) -> np.ndarray:
    """Row-normalised powers of the scores, the power such that the mean largest one is ``confidence``."""
    logs_UC = np.log(scores_UC * (share_C / np.maximum(scores_UC.sum(0), 1e-300)) + 1e-300)
    logs_UC = np.maximum(logs_UC - logs_UC.max(1, keepdims=True), -50)
    low, high = 1e-3, 1e4
    for _ in range(60):
        power = (low * high) ** 0.5
        soft_UC = _rows_to_one(np.exp(power * logs_UC))
        low, high = (power, high) if soft_UC.max(1).mean() < confidence else (low, power)
    return soft_UC


def estimate_prior(
    probabilities_UC: np.ndarray, labeled_counts_C: np.ndarray, shrinkage: float = 0.2
) -> np.ndarray:
    """Returns the class shares of a pool, (C,): how often each class is the likeliest, shrunk.

    Counting guesses overstates what the guesses confuse and understates an imbalance; with few labels
    the estimate is held back towards the labeled rows' shares (each class counted once more).

    Args:
        probabilities_UC: Of the unlabeled rows; may be empty.
        labeled_counts_C: Labeled rows of each class.
        shrinkage: Share of the labeled rows' shares in the result, in [0, 1].

    Raises:
        ValueError: shrinkage outside its range.
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; allowed: 0 to 1")
    labeled_C = _smoothed(np.asarray(labeled_counts_C))
    if len(probabilities_UC) == 0:
        return labeled_C
    guessed = np.bincount(np.argmax(probabilities_UC, 1), minlength=len(labeled_C)) / len(probabilities_UC)
    return shrinkage * labeled_C + (1 - shrinkage) * guessed


def match_prior(probabilities_UC: np.ndarray, prior_C: np.ndarray) -> np.ndarray:
    """Returns probabilities whose mean over the rows is the prior: p_c · w_c, normalised, w found in turns.

    Args:
        probabilities_UC: Rows that sum to 1.
        prior_C: Class shares that sum to 1.
    """
    weight_C, matched = np.ones(len(prior_C)), probabilities_UC
    for _ in range(200):
        mean_C = matched.mean(0) if len(matched) else prior_C
        if np.abs(mean_C - prior_C).max() < 1e-6:
            break
        weight_C = weight_C * prior_C / np.maximum(mean_C, 1e-12)
        matched = _rows_to_one(probabilities_UC * weight_C)
    return matched


def probe(
    features_LD: np.ndarray, labels_L: np.ndarray, num_classes: int, others_ND: np.ndarray
) -> np.ndarray:
    """Returns the probabilities of other rows, (N, C), by logistic regression on the labeled ones.

    Args:
        features_LD: Of the labeled rows, scaled to length 1 here.
        labels_L: Class numbers, every class at least once.
        num_classes: C, ≥ 2.
        others_ND: Rows to judge.

    Raises:
        ValueError: labels outside their range, or a class without a row.
    """
    labels_L = _checked_labels(labels_L, num_classes, unlabeled=False)
    model = LogisticRegression(C=PENALTY, max_iter=ITERATIONS).fit(_unit(features_LD), labels_L)
    return model.predict_proba(_unit(others_ND))


def probe_on_soft(features_ND: np.ndarray, probabilities_NC: np.ndarray, others_MD: np.ndarray) -> np.ndarray:
    """Returns the probabilities of other rows, (M, C), by logistic regression on soft labels.

    Each row counts once for every class, weighted with its probability; classes below .01 are left out.
    The penalty is per row, so that the fit hangs on the pool's size no more than ``probe`` does.

    Args:
        features_ND: Scaled to length 1 here.
        probabilities_NC: Soft labels, rows that sum to 1, every class somewhere ≥ .01.
        others_MD: Rows to judge.

    Raises:
        ValueError: another number of rows, or a class that no row has.
    """
    if len(features_ND) != len(probabilities_NC):
        raise ValueError(f"{len(features_ND)} rows of features, {len(probabilities_NC)} soft labels")
    row, label = np.nonzero(probabilities_NC >= 0.01)
    absent = np.setdiff1d(np.arange(probabilities_NC.shape[1]), label)
    if len(absent):
        raise ValueError(f"no row has class {absent[0]}; allowed: soft labels of every class")
    model = LogisticRegression(C=1.0, max_iter=200, tol=1e-3)
    model.fit(_unit(features_ND)[row], label, sample_weight=probabilities_NC[row, label])
    return model.predict_proba(_unit(others_MD))


def self_train(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    num_classes: int,
    prior: np.ndarray,
    *,
    rounds: int = 5,
) -> np.ndarray:
    """Returns probabilities of all rows, (N, C), after class-balanced self-training on the features.

    In round r of R each class c takes its r/R · prior_c · U likeliest unlabeled rows, and the probe is
    fitted anew on them and the labeled rows (Zou et al. 2018, https://arxiv.org/abs/1810.07911, with
    shares instead of thresholds).

    Args:
        features_ND: Scaled to length 1 here.
        labels_N: Class numbers, −1 for unlabeled rows.
        num_classes: C, ≥ 2; every class needs a labeled row.
        prior: Class shares of the unlabeled rows, (C,).
        rounds: R, ≥ 1.

    Raises:
        ValueError: labels or shares that cannot be, or rounds below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; allowed: 1 or more")
    labels_N, prior = _checked_labels(labels_N, num_classes), _checked_prior(prior, num_classes)
    labeled, pool = np.flatnonzero(labels_N >= 0), np.flatnonzero(labels_N < 0)
    soft_UC = probe(features_ND[labeled], labels_N[labeled], num_classes, features_ND[pool])
    for number in range(1, rounds + 1):
        guess_U = np.argmax(match_prior(soft_UC, prior), 1)
        kept = [
            _likeliest(
                soft_UC[:, c], np.flatnonzero(guess_U == c), round(number / rounds * prior[c] * len(pool))
            )
            for c in range(num_classes)
        ]
        chosen = np.concatenate(kept)
        rows = np.concatenate([labeled, pool[chosen]])
        labels = np.concatenate([labels_N[labeled], guess_U[chosen]])
        soft_UC = probe(features_ND[rows], labels, num_classes, features_ND[pool])
    probabilities_NC = np.eye(num_classes)[np.maximum(labels_N, 0)]
    probabilities_NC[pool] = soft_UC
    return probabilities_NC


def _likeliest(score_U: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    return among[np.argsort(-score_U[among], kind="stable")[:count]]


def held_out_accuracy(
    features_ND: np.ndarray,
    labels_N: np.ndarray,
    num_classes: int,
    *,
    graph: sparse.csr_array | None = None,
    neighbors: int = 15,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the accuracy of ``propagation`` and of the ``probe`` on labeled rows that they did not see.

    Where propagation is clearly below the probe, the features do not lie together by class and its labels
    harm. Each class's rows go round the folds, so the folds are stratified.

    Args:
        features_ND: Vectors of any length.
        labels_N: Class numbers, −1 for unlabeled rows; every class two labeled rows or more.
        num_classes: C, ≥ 2.
        graph: Of ``neighbor_graph``, where it is there already.
        neighbors: K of the graph otherwise.
        folds: From 2; at most as many as the largest class has rows are used.
        seed: Of the folds.

    Raises:
        ValueError: a class with a single labeled row, or fewer than two folds.
    """
    labels_N = _checked_labels(labels_N, num_classes)
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=num_classes)
    if counts_C.min() < 2:
        raise ValueError(
            f"class {counts_C.argmin()} has one labeled row; allowed: two or more of every class"
        )
    if folds < 2:
        raise ValueError(f"folds is {folds}; allowed: 2 or more")
    graph = neighbor_graph(features_ND, neighbors) if graph is None else graph
    fold_N = _folds(labels_N, min(folds, int(counts_C.max())), seed)
    right = {"propagation": 0, "probe": 0}
    for number in range(fold_N.max() + 1):
        out = np.flatnonzero(fold_N == number)
        seen = labels_N.copy()
        seen[out] = -1
        spread = propagate(None, seen, num_classes, graph=graph).probabilities_NC[out]
        known = seen >= 0
        judged = probe(features_ND[known], seen[known], num_classes, features_ND[out])
        right["propagation"] += int((spread.argmax(1) == labels_N[out]).sum())
        right["probe"] += int((judged.argmax(1) == labels_N[out]).sum())
    return {name: count / counts_C.sum() for name, count in right.items()}


def _folds(labels_N: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each labeled row, −1 for the others."""
    random, fold_N = np.random.RandomState(seed), np.full(len(labels_N), -1)
    for label in range(labels_N.max() + 1):
        rows = random.permutation(np.flatnonzero(labels_N == label))
        fold_N[rows] = np.arange(len(rows)) % folds
    return fold_N


def _rows_to_one(values_UC: np.ndarray) -> np.ndarray:
    return values_UC / values_UC.sum(1, keepdims=True)


def _smoothed(counts_C: np.ndarray) -> np.ndarray:
    return (counts_C + 1) / (counts_C.sum() + len(counts_C))


def _checked_labels(labels: np.ndarray, num_classes: int, *, unlabeled: bool = True) -> np.ndarray:
    labels = np.asarray(labels)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; allowed: 2 or more")
    lowest = -1 if unlabeled else 0
    if labels.size and (labels.min() < lowest or labels.max() >= num_classes):
        raise ValueError(
            f"labels go from {labels.min()} to {labels.max()}; allowed: {lowest} to {num_classes - 1}"
        )
    absent = np.setdiff1d(np.arange(num_classes), labels)
    if len(absent):
        raise ValueError(f"class {absent[0]} has no labeled row; allowed: one or more of every class")
    if unlabeled and not (labels < 0).any():
        raise ValueError("no row is unlabeled; allowed: one or more rows labeled -1")
    return labels


def _checked_prior(prior: np.ndarray, num_classes: int) -> np.ndarray:
    prior = np.asarray(prior, np.float64)
    if prior.shape != (num_classes,) or not (prior > 0).all() or abs(prior.sum() - 1) > 1e-3:
        raise ValueError(f"prior is {prior.tolist()}; allowed: {num_classes} shares above 0 whose sum is 1")
    return prior / prior.sum()


def _check_options(alpha: float, confidence: float, num_classes: int) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; allowed: between 0 and 1")
    if not 1 / num_classes < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: between 1/{num_classes} and 1")
