"""Label propagation on synthetic clusters: time against the bare matrix product, and what it brings.

The product of all pairs is the least that exact neighbours cost, so times as shipped (exact up to 30,000
rows, then an inverted file) are also given as ratios to it, which hang less on the machine; "found" is
the share of scikit-learn's neighbours. Prints a table and writes JSON.

    python benchmarks/propagation.py --out propagation.json
    python benchmarks/propagation.py --rows 1000 10000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from hf_llm_recipes.data.propagation import nearest, neighbor_graph, probe, propagate

CLASSES, LABELED, NEIGHBORS = 10, 10, 15
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
CHECKED = 200  # rows whose neighbours are compared with scikit-learn's


def points(rows: int, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of five clusters a class, their classes, and labels of ten rows a class."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(5 * CLASSES, dimensions))
    cluster = random.integers(0, len(centers), rows)
    noise = random.normal(size=(rows, dimensions))
    features = (centers[cluster] + 2.5 * noise).astype(np.float32)
    classes, labels = cluster % CLASSES, np.full(rows, -1)
    for number in range(CLASSES):
        labels[random.choice(np.flatnonzero(classes == number), LABELED, replace=False)] = number
    return features, classes, labels


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the call returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def product(features: np.ndarray) -> None:
    """All pairs' similarities, thrown away."""
    columns = np.ascontiguousarray(features.T)
    for start in range(0, len(features), 256):
        features[start : start + 256] @ columns


def same_as_sklearn(features: np.ndarray, found: np.ndarray) -> float:
    """Share of the neighbours of some rows that scikit-learn finds too."""
    rows = np.linspace(0, len(features) - 1, CHECKED).astype(int)
    exact = NearestNeighbors(n_neighbors=NEIGHBORS + 1, metric="cosine", algorithm="brute").fit(features)
    expected = exact.kneighbors(features[rows], return_distance=False)[:, 1:]
    return float(np.mean([np.isin(found[row], e).mean() for row, e in zip(rows, expected, strict=True)]))


def measure(rows: int, dimensions: int, seed: int) -> dict[str, Any]:
    """The figures of one size."""
    features, classes, labels = points(rows, dimensions, seed)
    least, _ = timed(lambda: product(features))
    exact, _ = timed(lambda: nearest(features, NEIGHBORS, exact=True))
    search, (found, _) = timed(lambda: nearest(features, NEIGHBORS))  # as shipped
    graph_seconds, graph = timed(lambda: neighbor_graph(features, NEIGHBORS))
    spread, result = timed(lambda: propagate(None, labels, CLASSES, graph=graph))
    known, pool = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    judged = probe(features[known], labels[known], CLASSES, features[pool])
    return {
        "rows": rows,
        "product_seconds": least,
        "neighbors_seconds": search,
        "neighbors_ratio": search / least,
        "exact_seconds": exact,
        "graph_seconds": graph_seconds,
        "spreading_seconds": spread,
        "accuracy": float((result.probabilities_NC[pool].argmax(1) == classes[pool]).mean()),
        "probe_accuracy": float((judged.argmax(1) == classes[pool]).mean()),
        "same_as_sklearn": same_as_sklearn(features, found),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 2**30,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| rows | product, s | exact neighbours, s | as shipped, s | ratio | found, % "
        "| spreading, s | accuracy, % | probe, % | peak, GiB |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        lines.append(
            f"| {row['rows']} | {row['product_seconds']:.2f} | {row['exact_seconds']:.2f} "
            f"| {row['neighbors_seconds']:.2f} | {row['neighbors_ratio']:.2f} "
            f"| {100 * row['same_as_sklearn']:.1f} | {row['spreading_seconds']:.2f} "
            f"| {100 * row['accuracy']:.1f} | {100 * row['probe_accuracy']:.1f} "
            f"| {row['peak_memory_gib']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 30_000, 100_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("propagation.json"))
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "rows": []}
    for rows in options.rows:
        print(f"{rows} rows …", file=sys.stderr, flush=True)
        report["rows"].append(measure(rows, options.dimensions, options.seed))
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(report["rows"]))
    print(f"\nfigures: {options.out}")


if __name__ == "__main__":
    main()
