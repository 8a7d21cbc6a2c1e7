"""Energy of a training: a clock of our own by hand, and codecarbon's tracker in a run."""

import json
import socket
import sys
import tempfile
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from _tiny_trainer import make_trainer

from hf_llm_recipes.callbacks import Energy, bind, energy
from hf_llm_recipes.errors import MissingExtraError, RecipeError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import plan, run

pytest.importorskip("codecarbon")
TABLES = resources.files("codecarbon") / "data" / "private_infra"


class Meter:
    """Adds 2 kWh and 0.5 kg at each reading."""

    _conf = {"hardware": ["RAM()", "CPU(Cpu Load)"]}  # noqa: RUF012

    def __init__(self):
        self.total = SimpleNamespace(energy_consumed=0.0, emissions=0.0)
        self.stopped = 0

    def flush(self):
        self.total.energy_consumed += 2
        self.total.emissions += 0.5

    def stop(self):
        self.stopped += 1


@pytest.fixture
def meters(monkeypatch):
    made = []

    def started(country):
        made.append(Meter())
        return made[-1], made[-1]

    monkeypatch.setattr("hf_llm_recipes.callbacks.energy._started", started)
    return made


def logged(trainer):
    return [(one["energy/kwh"], one["energy/co2e_kg"]) for one in trainer.state.log_history if "loss" in one]


def test_readings_are_logged_and_handed_over(tmp_path, meters):
    callback = Energy()
    trainer = bind(make_trainer(tmp_path, [callback]))
    trainer.train()
    assert logged(trainer) == [(2.0, 0.5), (4.0, 1.0)]
    assert callback.report() == {
        "kwh": 6.0,  # a last reading at the end
        "co2e_kg": 1.5,
        "country": "the world's average, no country given",
        "how": "the whole machine; memory estimated from its size; "
        "processor estimated from its TDP, not measured: CPU(Cpu Load)",
    }
    assert [meter.stopped for meter in meters] == [1]


def test_a_resumed_training_adds_up(tmp_path, meters):
    saved = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    bind(make_trainer(tmp_path, [Energy()], **saved)).train()  # at the checkpoint: 2 logs, 1 reading, 6 kWh
    trainer = bind(make_trainer(tmp_path, [Energy()], max_steps=3, **saved))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(trainer)[-1] == (8.0, 2.0)
    again = Energy()
    bind(make_trainer(tmp_path / "new", [again])).train()
    assert again.kwh == 6.0  # a new one begins at 0


def test_a_training_that_failed_leaves_no_meter_running(tmp_path, meters):
    callback = Energy()
    for _ in range(2):
        callback.on_train_begin(None, SimpleNamespace(global_step=0, is_world_process_zero=True), None)
    assert [meter.stopped for meter in meters] == [1, 0]


def test_other_processes_read_nothing(meters):
    callback = Energy()
    callback.on_train_begin(None, SimpleNamespace(global_step=0, is_world_process_zero=False), None)
    assert callback.figures(None, None, {}) == {}
    assert not meters


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["CPU(Intel Rapl)"], "the whole machine; measured: CPU(Intel Rapl)"),
        (["CPU(AMD EPYC > 155W [generic])"], "estimated from its TDP, not measured: CPU(AMD EPYC > 155W"),
        (["GPU() (H100)"], "the whole machine; measured: GPU() (H100)"),
    ],
)
def test_it_says_what_is_measured(parts, said):
    assert said in energy.how(SimpleNamespace(_conf={"hardware": parts}))


@pytest.mark.parametrize("country", ["FRA", None])
def test_a_run_with_the_real_tracker_and_no_network(recipe, tmp_path, monkeypatch, country):
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    recipe |= {"callbacks": [{"name": "energy", **({"country": country} if country else {})}]}
    recipe["trainer"] |= {"logging_steps": 2}
    before = {p.name for p in tmp_path.iterdir()}
    done = run(Recipe.from_dict(recipe))
    found = done.metrics["training"]["energy"]
    assert found["kwh"] > 0
    if country:
        grams = json.loads((TABLES / "global_energy_mix.json").read_text())["FRA"]["carbon_intensity"]
    else:
        grams = json.loads((TABLES / "carbon_intensity_per_source.json").read_text())["world_average"]
    assert found["co2e_kg"] == pytest.approx(found["kwh"] * grams / 1000)
    assert found["country"] == country or "world's average" in found["country"]
    assert "estimated" in found["how"]
    lines = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    kwh = [line["energy/kwh"] for line in lines if "loss" in line]
    assert len(kwh) == 2
    assert 0 < kwh[0] <= kwh[1] <= found["kwh"]
    assert not asked
    assert {p.name for p in tmp_path.iterdir()} == before | {"out"}
    theirs = [p.name for p in (tmp_path / "home").rglob("*") if "carbon" in p.name or "emission" in p.name]
    assert not theirs  # others write there: matplotlib its fonts
    assert not (Path(tempfile.gettempdir()) / ".codecarbon.lock").exists()


def test_a_country_that_is_none(recipe):
    recipe |= {"callbacks": [{"name": "energy", "country": "France"}]}
    with pytest.raises(RecipeError, match=r"country is 'France'; allowed: an ISO 3166-1 alpha-3 code .*FRA"):
        plan(Recipe.from_dict(recipe))


def test_without_its_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(MissingExtraError, match=r"hf_llm_recipes\[energy\]"):
        Energy()
