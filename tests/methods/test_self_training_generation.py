"""Self-training on prompts: agreement by hand, rounds through a recipe, resume, bad settings."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hf_llm_recipes.run as engine
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.methods.self_training_generation import SelfTrainingGeneration, agreed
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks._rewards import answer_key
from hf_llm_recipes.tasks.generation import Generation

WORDS = ["ball", "team", "goal", "soup", "salt", "oven"]


def test_the_commonest_answer_wins_with_its_first_text():
    written = ["so 4", "it is 7.", "7", "hm"]
    text, sure = agreed(written, lambda text: answer_key("last_number", text))
    assert (text, sure) == ("it is 7.", 0.5)


def test_texts_that_answer_nothing_do_not_agree():
    assert agreed(["hm", "well"], lambda text: answer_key("last_number", text)) == ("", 0.0)
    assert answer_key("exact_match", "  \n ") is None
    assert answer_key("exact_match", " A  b ") == "a b"


@pytest.fixture
def values(tiny_llama, tmp_path):
    """To every word its own word is the answer; labeled and unlabeled prompts differ by a filler."""

    def write(name, rows):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")

    fillers = ["the", "a", "very", "new", "old"]
    write("train.jsonl", [{"prompt": f"{f} {w}", "answer": w} for f in fillers[:2] for w in WORDS])
    write("pool.jsonl", [{"prompt": f"{f} {w}"} for f in fillers[2:4] for w in WORDS])
    write("test.jsonl", [{"prompt": f"{fillers[4]} {w}", "answer": w} for w in WORDS])
    return {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "model": {"name": str(tiny_llama), "dtype": "float32"},
        "tuning": "full",
        "data": {
            "name": str(tmp_path),
            "train": "train.jsonl",
            "test": "test.jsonl",
            "unlabeled": "pool.jsonl",
            "eval_fraction": 0,
        },
        "task": {"name": "generation", "max_new_tokens": 3},
        "method": {
            "name": "self_training",
            "rounds": 2,
            "least": 0.5,
            "select_fraction": 1.0,
            "temperature": 0.3,
        },
        "trainer": {
            "per_device_train_batch_size": 4,
            "max_steps": 60,
            "learning_rate": 1e-2,
            "save_steps": 30,
            "disable_tqdm": True,
        },
    }


def test_rounds_through_a_recipe(values):
    values["compare"] = True
    done = engine.run(Recipe.from_dict(values))
    rounds = done.metrics["method"]["rounds"]
    assert rounds[0]["round"] == 0
    assert rounds[0]["pool_rows"] == 0
    assert all(0.5 <= one["mean_confidence"] <= 1 for one in rounds[1:])
    assert all(one["pool_rows"] <= one["answers_taken"] <= 12 for one in rounds[1:])
    assert all(1 <= one["mean_words"] <= 3 for one in rounds[1:])
    assert done.metrics["test"]["reward"] >= done.metrics["before"]["reward"]
    assert "reward" in done.metrics["comparison"]["supervised"]
    assert "reward" in done.metrics["method"]["test_first_training"]
    baseline = json.loads((done.path / "baseline" / "metrics.json").read_text(encoding="utf-8"))
    steps = [one["steps"] for one in rounds]
    assert steps == [60] * len(rounds)
    assert baseline["training"]["steps"] == done.metrics["training"]["steps"] == sum(steps)


def test_a_killed_run_goes_on_to_the_same_labels(values, tmp_path):
    whole = engine.run(Recipe.from_dict({**values, "output": str(tmp_path / "a")}))
    labels = np.load(tmp_path / "a" / "checkpoints" / "round-1" / "labels.npz")["items_I"]
    again = engine.run(Recipe.from_dict({**values, "output": str(tmp_path / "b")}))
    assert np.array_equal(
        labels, np.load(tmp_path / "b" / "checkpoints" / "round-1" / "labels.npz")["items_I"]
    )
    killed = tmp_path / "b"
    for name in ("metrics.json", "model"):  # as if it had been killed in its last round
        path = killed / name
        path.unlink() if path.is_file() else path.rename(tmp_path / "gone")
    for name in ("checkpoint-60",):
        for folder in killed.glob(f"checkpoints/round-2/{name}"):
            folder.rename(tmp_path / f"gone-{name}")
    resumed = engine.run(Recipe.from_dict({**values, "output": str(killed), "resume": True}))
    assert resumed.metrics["test"] == whole.metrics["test"] == again.metrics["test"]


@pytest.fixture
def rewards(values, monkeypatch):
    """What the answers to the eval split are worth, training by training."""
    values["data"]["eval"] = "test.jsonl[:4]"
    values["data"]["test"] = "test.jsonl[4:]"
    given = []
    plain = Generation.judge_model

    def judge(self, model, features, rows, processor):
        judged = plain(self, model, features, rows, processor)
        if len(rows) == 4:
            judged.metrics["reward"] = given.pop(0)
        return judged

    monkeypatch.setattr(Generation, "judge_model", judge)
    return given


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "worth,kept", [([0.9, 0.5, 0.7], 0), ([0.2, 0.5, 0.5], 1), ([0.2, 0.5, 0.6], 2), ([0.5, 0.5, 0.5], 0)]
)
def test_the_guard_keeps_the_training_whose_answers_are_worth_most(values, rewards, worth, kept, caplog):
    rewards += worth
    values["trainer"]["max_steps"] = 6
    values["method"]["least"] = 0.25
    done = engine.run(Recipe.from_dict(values))
    assert not rewards
    method = done.metrics["method"]
    assert method["kept_round"] == kept
    assert [one["eval_reward"] for one in method["rounds"]] == worth
    best = torch.load(done.path / "checkpoints" / ("best.pt" if kept else "first.pt"))
    assert best["round"] == kept
    assert ("test_first_training" in method) == (kept > 0)
    assert all(torch.equal(best["values"][name], value) for name, value in weights(done.path).items())
    if worth[0] == 0.9:
        assert "after the labeled rows alone, 0.700 after round 2: the former are kept" in caplog.text


def test_the_first_training_is_the_supervised_one_to_the_bit(values, tmp_path):
    values["tuning"] = {"name": "lora", "r": 4, "lora_dropout": 0.2, "target_modules": "all-linear"}
    values["trainer"] |= {"max_steps": 5, "logging_steps": 1}
    values["method"] |= {"least": 0.25, "rounds": 1}
    ours = engine.run(Recipe.from_dict(values))
    alone = {**values, "method": "supervised", "output": str(tmp_path / "alone")}
    alone["data"] = {key: value for key, value in values["data"].items() if key != "unlabeled"}
    theirs = engine.run(Recipe.from_dict(alone))
    first = torch.load(ours.path / "checkpoints" / "first.pt")["values"]
    saved = load_file(theirs.path / "model" / "adapter_model.safetensors")
    assert sum("lora" in name for name in first) == len(saved) > 0
    for name, value in saved.items():
        assert torch.equal(first[name.replace(".weight", ".default.weight")], value)
    assert logged(ours.path, round=0) == logged(theirs.path)
    assert len(logged(theirs.path)) == 5
    scores = {"reward", "intervals_95"}
    assert ours.metrics["method"]["test_first_training"].keys() >= scores
    assert all(ours.metrics["method"]["test_first_training"][k] == theirs.metrics["test"][k] for k in scores)


def logged(folder, **only):
    """Loss and rate of each step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [line for line in lines if "loss" in line and all(line.get(k) == v for k, v in only.items())]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in chosen]


def test_without_an_eval_split_or_a_guard_the_last_round_is_kept(values, rewards, caplog):
    values["trainer"]["max_steps"] = 2
    values["method"] |= {"least": 0.25, "rounds": 1, "guard": False}
    done = engine.run(Recipe.from_dict(values))
    assert "kept_round" not in done.metrics["method"]
    values["data"].pop("eval")
    values["method"]["guard"] = True
    values["output"] += "-2"
    done = engine.run(Recipe.from_dict(values))
    assert "kept_round" not in done.metrics["method"]
    assert "without an eval split nobody looks" in caplog.text


def test_without_an_answer_to_take_the_training_before_is_the_result(values, caplog):
    values["method"] |= {"least": 1.0, "samples": 8, "temperature": 100.0, "rounds": 2}
    values["trainer"]["max_steps"] = 1
    done = engine.run(Recipe.from_dict(values))
    assert "round 1: no prompt of the pool has an answer that could be taken" in caplog.text
    assert "lower `method.least`" in caplog.text
    said = done.metrics["method"]
    assert [one["round"] for one in said["rounds"]] == [0]
    assert said["nothing_taken_in_round"] == 1
    assert "test_first_training" not in said
    assert "No answer could be taken for round 1." in (done.path / "report.html").read_text(encoding="utf-8")
    values["data"].pop("unlabeled")
    alone = engine.run(Recipe.from_dict({**values, "method": "supervised", "output": f"{done.path}-alone"}))
    one, other = (load_file(run.path / "model/model.safetensors") for run in (done, alone))
    assert all((value == other[name]).all() for name, value in one.items())


def test_a_reward_that_needs_answers_cannot_accept(values):
    values["method"]["accept"] = "reward"
    with pytest.raises(RecipeError, match="needs the answer"):
        engine.run(Recipe.from_dict(values))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "rounds is 0; allowed: 1 or more"),
        ({"samples": 1}, "samples is 1; allowed: 2 or more"),
        ({"strata": 0}, "strata is 0; allowed: 1 or more"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
        ({"least": 0.0}, "least is 0.0; allowed: more than 0"),
        ({"select_fraction": 2.0}, "select_fraction is 2.0"),
        ({"labeled_share": 1.0}, "labeled_share is 1.0"),
    ],
)
def test_values_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        SelfTrainingGeneration(**given)


def test_a_key_of_the_other_self_training_is_unknown_here(values):
    values["method"]["passes"] = 3
    with pytest.raises(RecipeError, match=r"method\.passes is an unknown key"):
        engine.plan(Recipe.from_dict(values))
