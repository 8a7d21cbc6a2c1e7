"""DPO and GRPO through recipes, on a Llama of 2 layers: the objective moves, what is saved loads again."""

import json

import pytest
import torch

import hf_llm_recipes.run as engine
from hf_llm_recipes.errors import DataError, MissingExtraError, RecipeError
from hf_llm_recipes.methods import _trl
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe

FIRST, SECOND = ["ball", "team", "goal"], ["soup", "salt", "oven"]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def values(folder, tmp_path, data, task, method, tuning="lora", **trainer):
    return {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "model": {"name": str(folder), "dtype": "float32"},
        "tuning": {"name": "lora", "r": 8, "lora_alpha": 32} if tuning == "lora" else tuning,
        "data": {"name": data, "eval_fraction": 0, "test_fraction": 0.25},
        "task": task,
        "method": method,
        "trainer": {
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            **trainer,
        },
    }


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"prompt": f"the {a} was", "chosen": f"good {b}", "rejected": f"old {c}"}
        for a in FIRST + SECOND
        for b, c in zip(FIRST, SECOND, strict=True)
    ]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_dpo_makes_chosen_answers_likelier(tiny_llama, pairs, tmp_path, tuning):
    made = values(tiny_llama, tmp_path, pairs, "preference", "dpo", tuning, max_steps=12)
    done = engine.run(Recipe.from_dict(made))
    assert done.metrics["test"]["preference_accuracy"] > done.metrics["before"]["preference_accuracy"]
    assert done.metrics["test"]["preference_accuracy"] >= 0.9
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    assert not (done.path / "model" / "ref").exists()
    assert "generated" in Predictor.load(done.path).predict(["the ball was"])[0]


def test_dpo_on_a_4bit_base_trains_its_adapter_in_float32(tiny_llama, pairs, tmp_path):
    made = values(tiny_llama, tmp_path, pairs, "preference", "dpo", max_steps=2)
    made["quantization"] = {"load_in_4bit": True}
    done = engine.run(Recipe.from_dict(made))
    adapter = Predictor.load(done.path).model
    assert {p.dtype for n, p in adapter.named_parameters() if "lora_" in n} == {torch.float32}


def wants_ball(text, row):
    words = text.split()
    return sum(word == "ball" for word in words) / max(1, len(words))


def test_grpo_earns_more_reward(tiny_llama, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"the {a} was"} for a in 4 * (FIRST + SECOND)])
    task = {
        "name": "generation",
        "answer_column": None,
        "reward": f"{__name__}:wants_ball",
        "max_new_tokens": 4,
        "generation": {"do_sample": True, "temperature": 1.0},
    }
    made = values(
        *(tiny_llama, tmp_path, data, task, "grpo"),
        max_steps=15,
        num_generations=4,
        max_completion_length=4,
        per_device_train_batch_size=16,
        learning_rate=3e-2,
    )
    done = engine.run(Recipe.from_dict({**made, "trust_imports": True}))
    assert done.metrics["method"]["last_reward"] > done.metrics["method"]["first_reward"]
    assert done.metrics["test"]["reward"] > done.metrics["before"]["reward"]


def fails(text, row):
    raise RuntimeError("no judge")


def test_a_reward_that_raises_ends_the_run_with_its_row(tiny_llama, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"prompt": f"the {a} was"} for a in FIRST + SECOND])
    task = {"name": "generation", "answer_column": None, "reward": f"{__name__}:fails", "max_new_tokens": 2}
    made = values(tiny_llama, tmp_path, data, task, "grpo", max_steps=1, num_generations=2)
    with pytest.raises(DataError, match="raised RuntimeError: no judge"):
        engine.run(Recipe.from_dict({**made, "trust_imports": True}))
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_train_the_task_is_refused_before_anything_is_loaded(tmp_path):
    made = values("nowhere", tmp_path, "nothing.csv", "text_classification", "dpo")
    with pytest.raises(RecipeError, match="method dpo cannot train the task text_classification") as caught:
        engine.plan(Recipe.from_dict(made))
    assert "task: preference" in str(caught.value)
    made = values("nowhere", tmp_path, "nothing.csv", "preference", "supervised")
    with pytest.raises(RecipeError, match="method supervised cannot train the task preference"):
        engine.plan(Recipe.from_dict(made))


def test_without_trl_the_extra_is_named(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(_trl.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"hf_llm_recipes\[trl\]"):
        _trl.trl_class("DPOConfig")
