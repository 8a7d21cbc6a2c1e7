"""The side-by-side benchmark runs at toy size and reports both sides."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "architectures.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_architectures", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_it_times_both_sides_of_every_case(benchmark, tmp_path, capsys):
    out = tmp_path / "figures.json"
    rows = benchmark.main(["--small", "--repeats", "1", "--out", str(out)])
    modes = [(row["case"], row["mode"]) for row in rows]
    assert len(modes) == len(set(modes)) == 2 * len(benchmark.CASES) + 2 + 3
    report = json.loads(out.read_text())
    assert report["matrix_product_gflops"] > 0
    assert report["rows"] == rows
    for row in rows:
        assert row["ours"]["tokens_per_second"] > 0
        assert row["theirs"]["tokens_per_second"] > 0
    assert capsys.readouterr().out.count("| encoder-64 |") == 2


def test_two_models_that_differ_are_not_timed(benchmark):
    case = benchmark.CASES[0]
    options = benchmark.argparse.Namespace(small=True, attention="sdpa", device="cpu")
    theirs, ours = benchmark.build(case, options)
    inputs, tokens = benchmark.inputs_of(case, theirs, options)
    assert tokens == 64
    ours.classifier.out_proj.bias.data += 1.0
    ours.classifier.out_proj.bias.data[0] += 5.0
    with pytest.raises(RuntimeError, match="losses differ: theirs"):
        benchmark.check_same(theirs, ours, inputs)
