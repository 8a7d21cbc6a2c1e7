"""The average of the trained weights, by hand on two weights, and through LoRA, 4 and 8 bits and a run."""

import json

import pytest
import torch
from _tiny_trainer import make_trainer
from conftest import sentences, write_csv
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_llm_recipes.callbacks import EMA, bind
from hf_llm_recipes.callbacks.ema import FILE
from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.exact_resume import resume_exactly
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import plan, run

SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 100.0}
LORA = {"name": "lora", "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}


class TwoWeights(nn.Module):
    """y = a x + b, of which the squared error is taken."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        predicted = self.a * x + self.b
        return {"loss": ((predicted - labels) ** 2).mean(), "logits": predicted}


def two_weights(folder, callbacks, **arguments):
    """At x = 2, y = 5 and a rate of 0.05, a step is −(0.2, 0.1) times 2a + b − 5."""
    given = {"max_steps": 2, "learning_rate": 0.05, "per_device_train_batch_size": 1, **SGD, **arguments}
    rows = [{"x": torch.tensor([2.0]), "labels": torch.tensor([5.0])}] * 8
    args = TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
        **{"save_strategy": "no", **given},
    )  # fmt: skip
    return Trainer(TwoWeights(), args, train_dataset=rows, eval_dataset=rows[:1], callbacks=callbacks)


def test_two_weights_by_hand(tmp_path):
    ema = EMA(half_life=0.5)  # decay 1/4, below 1/2 and 2/3: no warm-up to be seen
    trainer = bind(two_weights(tmp_path, [ema]))
    trainer.train()
    # d = −5: (a, b) = (1, .5); then d = 2.5 − 5 = −2.5: (1.5, .75)
    # averages: 1/4·0 + 3/4·1 = .75; 1/4·.75 + 3/4·1.5 = 1.3125, and half of it for b
    assert trainer.model.a.item() == pytest.approx(1.3125)
    assert trainer.model.b.item() == pytest.approx(0.65625)
    with ema.variants()["raw_weights"]:
        assert (trainer.model.a.item(), trainer.model.b.item()) == pytest.approx((1.5, 0.75))
    assert trainer.model.a.item() == pytest.approx(1.3125)
    assert ema.report() == {
        "exported": "averaged_weights", "beside": "raw_weights", "decay": 0.25, "updates": 2,
    }  # fmt: skip


def test_the_average_begins_as_a_plain_mean(tmp_path):
    trainer = bind(two_weights(tmp_path, [EMA(half_life=1e9)]))
    trainer.train()
    assert trainer.model.a.item() == pytest.approx((0 + 1 + 1.5) / 3)


@pytest.mark.parametrize(("steps", "decay"), [(2, 0.0), (28, 0.5)])
def test_without_a_half_life_it_follows_the_training_s_length(tmp_path, steps, decay):
    ema = EMA()
    trainer = bind(two_weights(tmp_path, [ema], max_steps=steps, learning_rate=0.0))
    trainer.train()
    assert ema.report()["decay"] == pytest.approx(decay)  # 1 − 14/T


@pytest.mark.parametrize("export", ["average", "raw"])
def test_both_are_judged_and_their_names_say_which(tmp_path, export):
    ema = EMA(half_life=0.5, export=export)
    trainer = bind(two_weights(tmp_path, [ema], eval_strategy="steps", eval_steps=1))
    trainer.train()
    history = trainer.state.log_history
    # 2a + b = 2.5 a: after the steps 2.5 and 3.75, of the average 1.875 and 3.28125; less 5, squared
    raw, average = [6.25, 1.5625], [9.765625, 2.9541015625]
    mine, others = (average, raw) if export == "average" else (raw, average)
    other = "raw_weights" if export == "average" else "averaged_weights"
    assert [one["eval_loss"] for one in history if "eval_loss" in one] == pytest.approx(mine)
    found = [one[f"eval_{other}_loss"] for one in history if f"eval_{other}_loss" in one]
    assert found == pytest.approx(others)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mine[-1])  # afterwards the model has them
    assert (ema.exported, ema.other) == (
        "averaged_weights" if export == "average" else "raw_weights",
        other,
    )


def test_several_evaluation_sets(tmp_path):
    trainer = bind(two_weights(tmp_path, [EMA(half_life=0.5)], eval_strategy="steps", eval_steps=2))
    trainer.eval_dataset = {"x": trainer.eval_dataset, "y": trainer.eval_dataset}
    trainer.train()
    keys = {key for one in trainer.state.log_history for key in one if key.endswith("_loss")}
    assert keys >= {f"eval_{name}_loss" for name in ("x", "y", "x_raw_weights", "y_raw_weights")}


def test_training_is_the_same_bits_with_and_without_it(tmp_path):
    given = {
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    plain = two_weights(tmp_path / "plain", [], **given)
    plain.train()
    watched = bind(two_weights(tmp_path / "watched", [EMA(half_life=3)], **given))
    watched.train()
    losses = [[one["loss"] for one in t.state.log_history if "loss" in one] for t in (plain, watched)]
    assert losses[0] == losses[1]
    for number in (1, 2, 3):
        kept = [
            load_file(t.args.output_dir + f"/checkpoint-{number}/model.safetensors") for t in (plain, watched)
        ]
        assert all(torch.equal(kept[0][name], kept[1][name]) for name in ("a", "b"))  # the model's own


def test_it_moves_once_an_optimizer_step(tmp_path):
    ema = EMA(half_life=0.5)
    trainer = bind(two_weights(tmp_path, [ema], gradient_accumulation_steps=4))
    trainer.train()
    assert ema.updates == 2
    assert trainer.model.a.item() == pytest.approx(1.3125)  # equal rows: four together are one


def test_it_may_move_after_every_second_step_only(tmp_path):
    ema = EMA(half_life=1, every=2)
    trainer = bind(two_weights(tmp_path, [ema], max_steps=5))
    trainer.train()
    # a: 1, 1.5, 1.75, 1.875, 1.9375; decay 1/2 to the power of 2: after step 2 3/4·1.5 = 1.125, after step 4
    # 1/4·1.125 + 3/4·1.875 = 1.6875, of which half is b's; step 5 moves nothing
    assert (trainer.model.a.item(), trainer.model.b.item()) == pytest.approx((1.6875, 0.84375))
    assert ema.report() | {"exported": "", "beside": ""} == {
        "exported": "", "beside": "", "decay": 0.25, "updates": 2,
    }  # fmt: skip
    with pytest.raises(RunError, match="would never move: every is 2, and the training has 1 steps"):
        bind(two_weights(tmp_path, [EMA(every=2)], max_steps=1)).train()


@pytest.mark.parametrize(("exactly", "every"), [(False, 1), (True, 1), (True, 2)])
def test_a_resumed_average_is_the_same_bits(tmp_path, exactly, every):
    given = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.013}
    make = (lambda trainer: bind(resume_exactly(trainer))) if exactly else bind
    whole = make(two_weights(tmp_path / "a", [EMA(half_life=2.7, every=every)], **given))
    whole.train()
    assert (tmp_path / "a" / "checkpoint-3" / FILE).is_file()
    ema = EMA(half_life=2.7, every=every)  # by twos the checkpoint lies between two moves
    resumed = make(two_weights(tmp_path / "b", [ema], **given))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert ema.updates == 6
    for name in ("a", "b"):
        assert torch.equal(getattr(whole.model, name), getattr(resumed.model, name))
    if exactly:
        manifest = json.loads((tmp_path / "a" / "checkpoint-3" / "manifest.json").read_text())
        assert FILE in manifest["files"]


def test_the_best_step_brings_its_own_average(tmp_path):
    ema = EMA(half_life=0.5)
    given = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 3,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "made_up", "greater_is_better": True}
    trainer = bind(two_weights(tmp_path, [ema], **given, **best))
    scores = iter([0.1, 0.2, 0.9, 0.3, 0.5, 0.4])  # of the average and of the raw weights, by turns
    trainer.compute_metrics = lambda _: {"made_up": next(scores)}
    trainer.train()
    assert trainer.state.best_metric == 0.9
    assert trainer.model.a.item() == pytest.approx(1.3125)  # step 2, see above
    with ema.variants()["raw_weights"]:
        assert trainer.model.a.item() == pytest.approx(1.5)


def test_what_it_needs_is_said(tmp_path):
    with pytest.raises(RunError, match=r"which it was not shown\n  do: .*bind\(trainer\)"):
        two_weights(tmp_path, [EMA()]).train()
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    two_weights(tmp_path / "without", [], **given).train()
    late = bind(two_weights(tmp_path / "with", [EMA()], **given))
    with pytest.raises(RunError, match=r"has no ema.safetensors: it was written without `ema`"):
        late.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-2"))
    trainer = two_weights(tmp_path, [EMA()])
    trainer.is_deepspeed_enabled = True
    with pytest.raises(RunError, match="allowed: no FSDP and no DeepSpeed"):
        bind(trainer)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"half_life": 0}, "half_life is 0; allowed: more than 0"),
        ({"export": "best"}, "allowed: average, raw"),
        ({"every": 0}, "every is 0; allowed: 1 or more steps"),
    ],
)
def test_values_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        EMA(**given)


def test_a_second_training_begins_anew(tmp_path):
    ema = EMA(half_life=0.5)
    trainer = bind(make_trainer(tmp_path, [ema]))
    trainer.train()
    first = trainer.model.w.item()
    trainer.args.learning_rate = 0.0
    trainer.optimizer = None
    trainer.train()
    assert ema.updates == 2
    assert trainer.model.w.item() == first  # nothing moves: the average of equal weights


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_run_through_lora_exports_the_average(recipe, bits):
    recipe |= {"tuning": LORA, "callbacks": [{"name": "ema", "half_life": 2}]}
    if bits:
        recipe["quantization"] = {f"load_in_{bits}bit": True}
        if bits == 4:
            recipe["quantization"]["bnb_4bit_compute_dtype"] = "float32"
    recipe["trainer"] |= {
        "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }  # fmt: skip
    done = run(Recipe.from_dict(recipe))
    said = done.metrics["training"]["ema"]
    assert (said["exported"], said["beside"], said["updates"]) == ("averaged_weights", "raw_weights", 4)
    assert done.metrics["method"]["test_raw_weights"]["intervals_95"]
    average = load_file(done.path / "checkpoints" / "checkpoint-4" / FILE)
    assert all("lora_" in name or "classifier" in name for name in average)
    saved = load_file(done.path / "model" / "adapter_model.safetensors")
    assert len(saved) == len(average)
    best = json.loads((done.path / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    average = load_file(done.path / "checkpoints" / f"checkpoint-{best['best_global_step']}" / FILE)
    plain = {name.replace(".default", "").replace("modules_to_save.", ""): v for name, v in average.items()}
    assert all(torch.equal(saved[name], plain[name]) for name in saved)
    assert Predictor.load(done.path).predict(["the ball and a team"])


def test_a_killed_run_goes_on_to_the_same_average(recipe, tmp_path):
    recipe |= {"callbacks": [{"name": "ema", "half_life": 2}]}
    recipe["trainer"] |= {"save_steps": 2}
    whole = run(Recipe.from_dict(recipe))
    other = dict(recipe, output=str(tmp_path / "again"))
    resumed = run(Recipe.from_dict(other))
    for name in ("metrics.json", "checkpoints/checkpoint-4/trainer_state.json"):
        (resumed.path / name).unlink()
    resumed = run(resumed.path / "recipe.yaml", f"output={resumed.path}", "resume=true")
    kept = [load_file(done.path / "model" / "model.safetensors") for done in (whole, resumed)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("semi_supervised", "keeps an average of its own"),
        ("propagation", "keeps an average of its own"),
        ("self_training", "each round begins anew"),
    ],
)
def test_methods_that_have_their_own_refuse_it(recipe, method, said):
    recipe |= {"callbacks": [{"name": "ema"}], "method": method}
    recipe["data"] |= {"labels_per_class": 4}
    with pytest.raises(RecipeError, match=f"ema has no place here: .*{said}"):
        plan(Recipe.from_dict(recipe))


def test_a_language_model_s_other_weights_are_judged_too(tiny_llama, tmp_path):
    rows = [{"text": " ".join(row["text"] for row in sentences(6, seed=seed))} for seed in range(24)]
    recipe = {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "model": {"name": str(tiny_llama)},
        "data": {"name": str(write_csv(tmp_path / "texts.csv", rows))},
        "task": {"name": "clm", "block_size": 16},
        "callbacks": [{"name": "ema", "half_life": 100, "export": "raw"}],
        "trainer": {"max_steps": 8, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True},
    }
    done = run(Recipe.from_dict(recipe))
    before, average, raw = (
        found["loss"]
        for found in (
            done.metrics["before"],
            done.metrics["method"]["test_averaged_weights"],
            done.metrics["test"],
        )
    )
    assert raw < average < before  # the mean of weights that go from one to the other
    assert done.metrics["training"]["ema"]["exported"] == "raw_weights"
