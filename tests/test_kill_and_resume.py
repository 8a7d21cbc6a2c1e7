"""Real kills: SIGKILL behind a logged line and within the writing of a checkpoint; a spoilt checkpoint.

The runs are those of ``benchmarks/resume.py``, which counts hundreds of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_llm_recipes.run as engine
from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.rundir import locked

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
CASES = ["one_kept", "flexmatch", "self_training"]
KINDS = ["stop", "spoil", "write", "line", "write", "line"]  # a stop leaves a checkpoint that can be spoilt
UNCOUNTED = ("case", "turn", "events", "differences")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_killed_runs_end_with_the_bits_of_runs_that_were_not(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "resume.py"), "--kills", "1", "--seed", "5"]
    command += ["--cases", *CASES, "--kinds", *KINDS, "--out", str(tmp_path / "told.jsonl")]
    surroundings = {**os.environ, **ONE_THREAD, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [one["case"] for one in told] == CASES
    assert [one["differences"] for one in told] == [[], [], []]
    total = {name: sum(one[name] for one in told) for name in told[0] if name not in UNCOUNTED}
    # what a kill hits hangs on the machine's speed
    assert total["kills"] >= 4
    assert total["within_a_write"] >= 1
    assert total["stops"] >= 1
    assert total["passed_over"] >= total["spoilt"] >= 1


def test_of_two_runs_in_one_directory_the_second_is_refused(recipe, tmp_path):
    out = Path(recipe["output"])
    out.mkdir()
    (out / "recipe.yaml").write_text("model: {}\n")
    said = rf"another run is going on in this directory: process {os.getpid()} on .*; nothing was changed"
    with locked(out), pytest.raises(RunError, match=said):
        run(Recipe.from_dict({**recipe, "resume": True}))
    with pytest.raises(RecipeError, match="the run was started with another recipe"):  # it is free again
        run(Recipe.from_dict({**recipe, "resume": True}))


def test_a_baseline_is_locked_too(recipe, monkeypatch):
    held = []

    def look(directory):
        for path in (directory.path, directory.path.parent):
            with pytest.raises(RunError, match="another run is going on"), locked(path):
                pass
        held.append(directory.path.name)
        raise KeyboardInterrupt

    recipe |= {
        "compare": True,
        "method": "semi_supervised",
        "data": {**recipe["data"], "labels_per_class": 4},
    }
    recipe["trainer"] |= {"max_steps": 1}
    train = engine._Runner._train

    def watched(self, checkpoint):
        return look(self.directory) if self.directory.path.name == "baseline" else train(self, checkpoint)

    monkeypatch.setattr(engine._Runner, "_train", watched)
    with pytest.raises(KeyboardInterrupt):
        run(Recipe.from_dict(recipe))
    assert held == ["baseline"]
    with locked(Path(recipe["output"])), locked(Path(recipe["output"]) / "baseline"):
        pass
