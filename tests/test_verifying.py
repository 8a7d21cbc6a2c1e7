"""The same recipe gives the same bits, and `verify` says whether a run still does."""

import json

import pytest

import hf_llm_recipes.run as engine
from hf_llm_recipes import cli, verifying
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.rundir import environment_differences, seeds
from hf_llm_recipes.verifying import Verdict, verify


@pytest.fixture
def done(recipe):
    """A finished run of 9 steps with a LoRA, two logged lines, and an evaluation."""
    recipe |= {"tuning": {"name": "lora", "r": 4, "lora_dropout": 0.1}, "seed": 3}
    recipe["callbacks"] = [{"name": "throughput"}, {"name": "memory"}]  # whose figures differ each time
    recipe["trainer"] |= {"max_steps": 9, "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 4}
    return engine.run(Recipe.from_dict(recipe))


def lines_of(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def change_log(path, step, name, change):
    lines = lines_of(path)
    for line in lines:
        if line["step"] == step and name in line:
            line[name] = change(line[name])
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_same_recipe_gives_the_same_bits(recipe, done, tmp_path):
    again = engine.run(Recipe.from_dict({**recipe, "output": str(tmp_path / "again")}))
    name = "model/adapter_model.safetensors"
    assert (again.path / name).read_bytes() == (done.path / name).read_bytes()
    before, after = lines_of(done.path), lines_of(again.path)
    assert [line["loss"] for line in before if "loss" in line] == [
        line["loss"] for line in after if "loss" in line
    ]
    assert again.metrics["test"] == done.metrics["test"]


def test_a_run_is_held_against_its_log(done, monkeypatch, capsys):
    before = sorted(str(p) for p in done.path.rglob("*"))
    verdict = verify(done.path, steps=5)
    assert verdict == Verdict(steps=5, compared=2)  # the loss of step 3, the evaluation of step 4
    assert str(verdict) == "the same bits: 2 logged lines of the first 5 steps"
    assert sorted(str(p) for p in done.path.rglob("*")) == before

    change_log(done.path, 3, "loss", lambda loss: loss * (1 + 2**-52))  # the next double
    environment = json.loads((done.path / "environment.json").read_text())
    environment["packages"]["torch"], environment["device"]["torch_threads"] = "1.0", 99
    (done.path / "environment.json").write_text(json.dumps(environment))
    monkeypatch.setattr("sys.argv", ["hf-llm-recipes", "verify", str(done.path), "--steps", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "not the same bits, in 1 of 1 logged lines:\n  step 3, loss: " in said  # nothing came before it
    assert "\n  torch: 1.0 -> " in said
    assert "\n  torch_threads: 99 -> " in said


def test_a_run_that_logged_nothing_cannot_be_verified(done):
    (done.path / "log.jsonl").write_text('{"step": 2, "eval_loss": 1.0}\n')
    with pytest.raises(RunError, match=r"log.jsonl: has logged no loss that could be compared"):
        verify(done.path)
    with pytest.raises(RunError, match="no such run directory"):
        verify(done.path / "nothing")


def test_changed_lines_and_surroundings_by_hand(tmp_path):
    before = [{"step": 1, "loss": 1.0, "lr": 0.1}, {"step": 2, "loss": 0.5}]
    assert verifying._differences(before, before) == []
    assert verifying._differences(before, [{"step": 1, "loss": 1.5, "lr": 0.2}]) == [
        "step 1, loss: 1.0 -> 1.5",
        "step 2, loss: 0.5 -> None",
    ]
    old = {"python": "3.10", "packages": {"torch": "1"}, "device": {"torch_threads": 1, "gpus": []}}
    new = {"python": "3.10", "packages": {"torch": "2"}, "device": {"torch_threads": 2, "gpus": []}}
    assert environment_differences(old, new) == ["torch: 1 -> 2", "torch_threads: 1 -> 2"]


def test_where_nothing_is_known_to_have_changed_it_says_so():
    said = str(Verdict(5, 20, [f"step {n}, loss: 1 -> 2" for n in range(12)]))
    assert said.startswith("not the same bits, in 12 of 20 logged lines:\n  step 0")
    assert "step 9" in said
    assert "step 10" not in said
    assert said.endswith("nothing else is known to have changed")


def test_every_random_source_has_its_seed_written_down(done):
    environment = json.loads((done.path / "environment.json").read_text())
    assert environment["seeds"] == seeds(3, 0, None)
    found = seeds(7, 1, 5)
    assert {found[name] for name in ("python", "numpy", "torch", "cuda", "dropout", "masks")} == {7}
    assert {found[name] for name in ("augmentation", "streams", "new_weights")} == {7}
    assert {found[name] for name in ("splits", "few_labels", "pool")} == {1}
    assert (found["row_order"], found["bootstrap"]) == (5, 0)
