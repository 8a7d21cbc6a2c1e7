import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hf_llm_recipes.comparison import baseline_recipe, compare, paired_difference
from hf_llm_recipes.recipe import Recipe


def test_the_baseline_is_the_same_run_without_the_pool(tmp_path):
    recipe = Recipe.from_dict(
        {
            "name": "mine",
            "seed": 3,
            "compare": True,
            "model": "m",
            "tuning": {"name": "lora", "r": 4},
            "data": {"name": "d", "unlabeled": "pool.csv", "unlabeled_limit": 9, "pool_overlap": "drop"},
            "task": "text_classification",
            "method": "semi_supervised",
            "algorithm": "softmatch",
            "augmentation": ["mask"],
            "stages": ["contrastive"],
            "trainer": {"num_train_epochs": 2, "learning_rate": 0.1},
        }
    )
    made = baseline_recipe(recipe, tmp_path, steps=70)
    assert made.values == {
        "name": "mine-supervised",
        "seed": 3,
        "model": "m",
        "tuning": {"name": "lora", "r": 4},
        "data": {"name": "d"},
        "task": "text_classification",
        "method": "supervised",
        "trainer": {"learning_rate": 0.1, "max_steps": 70},
        "output": str(tmp_path / "baseline"),
    }
    (tmp_path / "baseline").mkdir()
    assert baseline_recipe(recipe, tmp_path, steps=70).get("resume") is True


def test_the_difference_is_that_of_the_same_rows():
    ours, theirs = np.array([1, 1, 1, 0, 1, 0, 1, 1]), np.array([1, 0, 1, 0, 0, 1, 1, 1])
    found = paired_difference(ours, theirs)
    assert found["difference"] == pytest.approx(1 / 8)  # two won, one lost, of eight
    # each row is +1, 0 or -1; the standard error of the mean is sqrt(3/8 - 1/64) / sqrt(8) = .212
    low, high = found["difference_95"]
    assert low == pytest.approx(1 / 8 - 1.96 * 0.212, abs=0.13)
    assert high == pytest.approx(1 / 8 + 1.96 * 0.212, abs=0.13)
    same = paired_difference(ours, ours)
    assert same == {"difference": 0.0, "difference_95": [0.0, 0.0]}


def write(path: Path, labels, predicted):
    pyarrow.parquet.write_table(pyarrow.table({"label": labels, "predicted_label": predicted}), path)
    return path


def metrics(accuracy):
    test = {"accuracy": accuracy, "loss": 1.0, "intervals_95": {"accuracy": [0.0, 1.0]}}
    return {"test": test, "training": {"minutes": 1.5, "minutes_before": 0.5}}


def test_both_runs_stand_side_by_side(tmp_path):
    ours = write(tmp_path / "a", ["x", "y", "y", "x"], ["x", "y", "y", "y"])
    theirs = write(tmp_path / "b", ["x", "y", "y", "x"], ["y", "y", "x", "y"])
    found = compare(ours, theirs, metrics(0.75), metrics(0.25))
    assert found["difference"] == 0.5
    assert found["supervised"] == {"accuracy": 0.25, "intervals_95": {"accuracy": [0.0, 1.0]}}
    assert json.dumps(found)


def test_rows_with_several_answers_have_no_paired_difference(tmp_path):
    ours = write(tmp_path / "a", [["x"], ["y"]], [["x"], ["y"]])
    assert "difference" not in compare(ours, ours, metrics(1.0), metrics(1.0))
