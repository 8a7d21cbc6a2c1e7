"""The pools that the semi-supervised benchmark spoils on purpose."""

import argparse
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hf_llm_recipes.data.pool import few_labels

LABELS = [i % 4 for i in range(480)]


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "semi_supervised.py"
    spec = importlib.util.spec_from_file_location("benchmark_semi_supervised", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def options(tmp_path):
    for name, texts, labels in [
        ("own", [f"own {i}" for i in range(480)], LABELS),
        ("far", [f"far {i}" for i in range(300)], [0] * 300),
    ]:
        (tmp_path / name).mkdir()
        table = pyarrow.table({"text": texts, "label": labels})
        for part in ("train", "test"):
            pyarrow.parquet.write_table(table, tmp_path / name / f"{part}.parquet")
    return argparse.Namespace(data=tmp_path, test_rows=2000, pool=400, foreign=["far"])


def numbers(path, word):
    texts = pyarrow.parquet.read_table(path)["text"].to_pylist()
    assert pyarrow.parquet.read_schema(path).names == ["text"]
    return [int(text.split()[1]) for text in texts if text.startswith(word)]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pool_of_ten_to_one(benchmark, options, tmp_path, seed):
    found = numbers(benchmark.stressed_pool("imbalanced", "own", 20, seed, options, tmp_path), "own")
    # 120 rows a class, 20 of them labeled: 100 · 10^(0, -1/3, -2/3, -1)
    assert sorted(Counter(LABELS[i] for i in found).values()) == [10, 22, 46, 100]
    assert not set(found) & set(few_labels(LABELS, 20, seed)[0].tolist())
    assert len(set(found)) == len(found)


def test_another_seed_makes_another_class_common(benchmark, options, tmp_path):
    common = set()
    for seed in range(6):
        found = numbers(benchmark.stressed_pool("imbalanced", "own", 20, seed, options, tmp_path), "own")
        common.add(Counter(LABELS[i] for i in found).most_common(1)[0][0])
    assert len(common) > 1


def test_a_quarter_of_the_pool_is_foreign(benchmark, options, tmp_path):
    path = benchmark.stressed_pool("foreign", "own", 20, 0, options, tmp_path)
    own, far = numbers(path, "own"), numbers(path, "far")
    assert (len(own), len(far)) == (300, 100)
    assert not set(own) & set(few_labels(LABELS, 20, 0)[0].tolist())
    assert len(set(own) | set(far)) <= 480
    assert len(set(far)) == 100


def test_the_grid_has_one_ceiling_a_set(benchmark):
    options = argparse.Namespace(
        first_seed=3, seeds=2, sets=["a", "b"], labels=[4, 10], stress=["none"], methods=["x", "ceiling"]
    )
    runs = list(benchmark.wanted(options))
    assert [run for run in runs if run[-1] == "ceiling"] == [
        (3, "a", 4, "none", "ceiling"),
        (3, "b", 4, "none", "ceiling"),
    ]
    assert len(runs) == 2 * 2 * 2 + 2
    assert np.unique([run[0] for run in runs]).tolist() == [3, 4]
