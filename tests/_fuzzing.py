"""Cases of ``benchmarks/fuzz.py`` as tests: few, and the same in every run."""

import importlib.util
import sys
from pathlib import Path

from hypothesis import HealthCheck, given, settings


def load_fuzz():
    """The benchmark as a module."""
    name = "benchmark_fuzz"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def outcomes(kind, cases, folder):
    """Judges so many cases of a kind; returns how often each outcome came. A fault fails the test."""
    fuzz = load_fuzz()
    strategy, judge = fuzz.KINDS[kind]
    counts = {}

    @settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy())
    def run(case):
        found, fault = fuzz.outcome(judge, case, folder)
        assert fault is None, f"{fault}\n{case!r}"
        counts[found] = counts.get(found, 0) + 1

    run()
    return counts
