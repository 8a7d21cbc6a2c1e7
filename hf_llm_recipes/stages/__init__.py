"""Stages: training of the same model on the pool's raw rows, before the task's own training."""
