"""What `bind` does for callbacks, and the names of the package."""

import json
import subprocess
import sys

import pytest
from _tiny_trainer import make_trainer
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_llm_recipes import callbacks
from hf_llm_recipes.callbacks._bound import Bound
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import CALLBACKS
from hf_llm_recipes.run import run

FIGURES = {"throughput/mfu", "throughput/samples_per_second", "memory/host_peak_gib"}


class Seer(TrainerCallback):
    """Remembers what a tracker would be given."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


class Stateful(Bound, ExportableState):
    """Knows its Trainer, and is made anew by a resume."""

    def __init__(self):
        self.trainer = None

    def bind(self, trainer):
        self.trainer = trainer

    def state(self):
        return {"args": {}, "attributes": {}}


def test_every_callback_has_its_name_in_the_package():
    names = CALLBACKS.names()
    assert len(names) >= 11
    for name in names:
        cls = CALLBACKS.get(name)
        assert getattr(callbacks, cls.__name__) is cls
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from hf_llm_recipes.callbacks import Nothing  # noqa: F401


def test_the_package_itself_costs_no_torch():
    code = "import hf_llm_recipes.callbacks, sys; print([m for m in ('torch', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_come_before_those_who_pass_them_on(tmp_path):
    from hf_llm_recipes.callbacks import Memory, bind

    seer = Seer()
    bind(make_trainer(tmp_path, [seer, Memory()])).train()
    assert all("memory/host_peak_gib" in logs for logs in seer.seen if "loss" in logs)


def test_also_after_a_resume_and_bound_callbacks_are_bound_again(tmp_path):
    from hf_llm_recipes.callbacks import Memory, bind

    saved = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    bind(make_trainer(tmp_path, [Memory(), Stateful()], **saved)).train()
    seer, first = Seer(), Stateful()
    trainer = bind(make_trainer(tmp_path, [seer, Memory(), first], max_steps=4, **saved))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [("memory/host_peak_gib" in logs) for logs in seer.seen if "loss" in logs] == [True, True]
    (now,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, Stateful)]
    assert now is not first
    assert now.trainer is trainer


def test_a_resumed_run_goes_on_to_log_figures(recipe):
    recipe["callbacks"] = [{"name": "throughput"}, {"name": "memory"}]
    recipe["trainer"] |= {"save_steps": 2, "logging_steps": 1}
    done = run(Recipe.from_dict(recipe))
    for name in ("metrics.json", "checkpoints/checkpoint-4/trainer_state.json"):
        (done.path / name).unlink()
    run(done.path / "recipe.yaml", f"output={done.path}", "resume=true")
    lines = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.keys() >= FIGURES] == [1, 2, 3, 4]
