"""`run` in two processes under torchrun: the figures of one with the whole batch, one directory, a resume."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import sentences, write_csv

from hf_llm_recipes import processes
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.planning import plan
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

# one run; one of which the second process gets SIGTERM behind step 3; the same taken up again; the last by
# the command line
SCRIPT = """
import os, runpy, signal, sys
from hf_llm_recipes.callbacks.log_file import LogFile
from hf_llm_recipes.errors import InterruptedRunError
from hf_llm_recipes.run import run

folder = sys.argv[1]
whole = run(f"{folder}/lora.yaml", f"output={folder}/whole")
assert whole.metrics["test"]["rows"] == 12, whole.metrics
on_log = LogFile.on_log

def told(self, args, state, control, logs=None, **named):
    on_log(self, args, state, control, logs=logs, **named)
    if state.global_step == 3 and "loss" in logs and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

LogFile.on_log = told
try:
    run(f"{folder}/lora.yaml", f"output={folder}/stopped")
except InterruptedRunError as error:
    assert "stopped by SIGTERM after step 4; a checkpoint was saved" in str(error), error
    assert error.exit_code == 143
else:
    sys.exit("it was not stopped")
LogFile.on_log = on_log
run(f"{folder}/lora.yaml", f"output={folder}/stopped", "resume=true")
sys.argv = ["hf_llm_recipes", "run", f"{folder}/semi.yaml", f"output={folder}/semi"]
runpy.run_module("hf_llm_recipes", run_name="__main__")
"""


@pytest.fixture
def folder(tiny_bert, tmp_path):
    """Two recipes of a model without dropout, which two processes would draw otherwise than one."""
    shutil.copytree(tiny_bert, tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    for name, count, seed in (("train", 48, 0), ("validation", 12, 1), ("test", 12, 2)):
        (tmp_path / "rows").mkdir(exist_ok=True)
        write_csv(tmp_path / "rows" / f"{name}.csv", sentences(count, seed))
    values = {
        "name": "lora",
        "model": {"name": str(tmp_path / "bert")},
        "data": {"name": str(tmp_path / "rows")},
        "task": {"name": "text_classification"},
        "tuning": {"name": "lora", "r": 4},
        "trainer": {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "per_device_eval_batch_size": 3,  # divides 12 rows: what is filled up counts twice upstream
            "save_strategy": "steps",
            "save_steps": 50,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    semi = {
        **values,
        "name": "semi",
        "data": {**values["data"], "labels_per_class": 4},
        "method": {"name": "semi_supervised", "warm_start": "propagation"},
        "trainer": {**values["trainer"], "per_device_train_batch_size": 2},
    }
    for name, one in (("lora", values), ("semi", semi)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(one))
    return tmp_path


def logged(path):
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return {
        f"{key} {line['step']}": line[key] for line in lines for key in ("loss", "eval_loss") if key in line
    }


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def shape(value):
    """Keys all the way down."""
    return {key: shape(one) for key, one in value.items()} if isinstance(value, dict) else None


def test_two_processes_are_one_run(folder):
    (folder / "both.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*command, "--master-port", str(free_port()), str(folder / "both.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert ran.stdout.count(f"results: {folder}/semi") == 1
    # `run` by the command line says it, and by one process
    assert len(re.findall(r"^training [\d,]+ of ", ran.stderr, re.MULTILINE)) == 1
    for name, size in (("lora", 8), ("semi", 4)):
        one = run(
            folder / f"{name}.yaml",
            f"trainer.per_device_train_batch_size={size}",
            f"output={folder}/one-{name}",
        )
        both = folder / {"lora": "whole", "semi": "semi"}[name]
        assert logged(both) == pytest.approx(logged(one.path), rel=1e-3)
        assert len(logged(both)) == 8  # of six steps and two evaluations
        metrics = json.loads((both / "metrics.json").read_text())
        assert shape(metrics) == shape(json.loads((one.path / "metrics.json").read_text()))
        assert metrics["test"]["loss"] == pytest.approx(one.metrics["test"]["loss"], rel=1e-3)
        assert metrics["reload"]["logits_max_difference"] < 1e-3
        assert not list(both.glob("*.part"))
    assert logged(folder / "stopped") == logged(folder / "whole")
    for name in ("model/adapter_model.safetensors", "predictions.parquet"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"method": "self_training", "data": {"labels_per_class": 4}},
            "method self_training runs in one process, and here are 2\n  allowed: sup",
        ),
        (
            {"method": "semi_supervised", "data": {"labels_per_class": 4}, "compare": True},
            "compare runs in one process, and here are 2\n  do: start",
        ),
        ({"stages": [{"name": "mlm"}], "data": {"labels_per_class": 4}}, "stages runs in one process"),
    ],
)
def test_what_runs_in_one_process_is_refused(recipe, monkeypatch, more, said):
    values = {**recipe, **more, "data": {**recipe["data"], **more["data"]}}
    bound = plan(Recipe.from_dict(values))
    processes.begin(bound)  # here is one
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.count() == 1  # not started by torchrun
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(RecipeError, match=said):
        processes.begin(bound)


def test_one_process_is_the_main_one(monkeypatch):
    assert (processes.count(), processes.is_main()) == (1, True)
    assert processes.shared("x") == "x"
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("RANK", "2")
    assert (processes.count(), processes.is_main()) == (3, False)
