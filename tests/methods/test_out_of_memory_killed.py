"""Out of memory once, then SIGKILL twice: the run ends with the bits of one that was never killed."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import sentences, write_csv

from hf_llm_recipes import out_of_memory
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.rundir import RunDirectory

# forks a process for each try; one is out of memory once, from its sixth step on, with more than 4 rows
SCRIPT = """
import json, os, signal, sys
import torch
from transformers import BertModel
from hf_llm_recipes.callbacks.log_file import LogFile
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

recipe, tries = sys.argv[1], json.loads(sys.argv[2])
forward, on_log, seen = BertModel.forward, LogFile.on_log, {"forwards": 0, "raised": False}

def scarce(self, *given, **named):
    seen["forwards"] += self.training
    rows = len(named["input_ids"] if "input_ids" in named else given[0])
    if self.training and seen["forwards"] > 5 and rows > 4 and not seen["raised"]:
        seen["raised"] = True
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return forward(self, *given, **named)

def told(self, args, state, control, **named):
    on_log(self, args, state, control, **named)
    if state.global_step == seen["kill_at"] and (seen["raised"] or not seen["scarce"]):
        os.kill(os.getpid(), signal.SIGKILL)

for number, (is_scarce, kill_at, overrides) in enumerate(tries):
    child = os.fork()
    if child == 0:
        seen |= {"scarce": is_scarce, "kill_at": kill_at}
        if is_scarce:
            BertModel.forward = scarce
        LogFile.on_log = told
        run(Recipe.load(recipe, overrides))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(-os.waitstatus_to_exitcode(status), flush=True)
"""
KILLED = 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_a_run_that_was_out_of_memory_and_killed_ends_with_the_same_bits(tiny_bert, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, count, seed in (("train", 70, 0), ("validation", 12, 1), ("test", 12, 2)):
        write_csv(folder / f"{name}.csv", sentences(count, seed))
    values = {
        "name": "tiny",
        "model": {"name": str(tiny_bert)},  # with dropout: its draws hang on how a step is cut
        "data": {"name": str(folder)},
        "task": {"name": "text_classification"},
        "trainer": {
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    whole, killed, early = (tmp_path / name for name in ("whole", "killed", "early"))
    go_on = [f"output={killed}", "resume=true"]
    tries = [
        (True, None, [f"output={whole}"]),
        (True, 5, [f"output={killed}"]),  # begun again from checkpoint-4, killed before the next one
        (False, 9, go_on),
        (False, None, go_on),
        # without a checkpoint it begins anew, as small
        (True, None, [f"output={early}-whole", "trainer.save_steps=12"]),
        (True, 3, [f"output={early}", "trainer.save_steps=12"]),
        (False, None, [f"output={early}", "trainer.save_steps=12", "resume=true"]),
    ]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "recipe.yaml"), json.dumps(tries)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    ends = [int(line) for line in ran.stdout.splitlines() if line.lstrip("-").isdigit()]
    assert ends == [0, KILLED, KILLED, 0, 0, KILLED, 0], ran.stderr[-3000:]
    for one, other, step in ((killed, whole, 4), (early, tmp_path / "early-whole", 0)):
        assert losses(one) == losses(other)
        assert len(losses(one)) == 12
        for name in ("model/model.safetensors", "predictions.parquet"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
        assert json.loads((one / "smaller_batch.json").read_text()) == [
            {"after_step": step, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        ]
    notes = json.loads((killed / "environment.json").read_text())["notes"]
    assert (
        "per_device_train_batch_size 4 and gradient_accumulation_steps 2: this run was out of memory with "
        "more (smaller_batch.json)"
    ) in notes


def losses(path):
    """Step -> loss."""
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize(
    "text",
    [
        *("{", "4", "[]", "[4]", '[{"after_step": 1, "seed": 3}]', '[{"after_step": 1, "x": "y"}]'),
        '[{"after_step": 1, "per_device_train_batch_size": 0}]',
        '[{"after_step": -1, "per_device_train_batch_size": 2}]',
    ],
)
def test_a_damaged_record_is_told(tmp_path, text):
    (tmp_path / "smaller_batch.json").write_text(text)
    runner = SimpleNamespace(directory=tmp_path, plan=SimpleNamespace(trainer={}))
    with pytest.raises(RunError, match=r"smaller_batch\.json: tells no batch sizes: .*\n  do: delete it"):
        out_of_memory.take_up(runner, None)
    assert runner.plan.trainer == {}


def test_a_checkpoint_before_the_one_it_went_on_from_moves_the_step(tmp_path):
    entry = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    directory = RunDirectory(tmp_path)
    directory.write_json("smaller_batch.json", [{"after_step": 4, **entry}])
    runner = SimpleNamespace(directory=directory, plan=SimpleNamespace(trainer={}))
    for step, expected in ((6, 4), (4, 4), (2, 2)):
        out_of_memory.take_up(runner, tmp_path / f"checkpoint-{step}")
        assert runner.plan.trainer == entry
        assert out_of_memory.kept_sizes(tmp_path / "smaller_batch.json") == [
            {"after_step": expected, **entry}
        ]
