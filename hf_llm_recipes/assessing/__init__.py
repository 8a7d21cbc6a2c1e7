"""Evaluation beyond one number: slices, tests between runs, temperature, robustness, attributions."""
