"""Distillation: its loss by hand, accumulation, resume, a recipe end to end, teachers that do not fit."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from _tiny_parts import assert_same, make_parts, weights
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

import hf_llm_recipes.run as engine
from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.methods._teaching import nearness
from hf_llm_recipes.methods.distillation import Distillation, DistillationTrainer, load_teacher
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks.text_classification import TextClassification

CHAT = (
    "{% for m in messages %}[CLS] {{ m.content }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] {% endif %}"
)


def difference(student, teacher, *, problem="single_label", **settings):
    fake = SimpleNamespace(
        settings=Distillation(teacher="x", **settings), task=TextClassification(problem=problem)
    )
    return float(DistillationTrainer._difference(fake, torch.tensor(student), torch.tensor(teacher)))


def test_the_kl_of_one_item_by_hand():
    # teacher softmax(ln 3, 0) = 3/4, 1/4; student 1/2, 1/2: 3/4 ln 3/2 + 1/4 ln 1/2
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    given = [[0.0, 0.0]], [[math.log(3.0), 0.0]]
    assert difference(*given, weight=1.0, temperature=1.0) == pytest.approx(by_hand)
    # at T = 2 the teacher is at √3 : 1, and T² = 4
    share = math.sqrt(3) / (1 + math.sqrt(3))
    softened = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    assert difference(*given, weight=0.5, temperature=2.0) == pytest.approx(0.5 * 4 * softened)


def test_how_near_two_models_are_by_hand():
    # the first item as above, at T = 1; on the second both give 1/2, 1/2, and the same likeliest class
    student, teacher = torch.zeros(2, 2), torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    kl, same, items = nearness(student, teacher).tolist()
    assert kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert (same, items) == (1, 2)


def test_a_regression_learns_the_squared_difference():
    assert difference([[1.0], [2.0]], [[3.0], [2.5]], problem="regression", weight=0.5) == pytest.approx(
        0.5 * (4 + 0.25)
    )


def test_hidden_states_by_hand():
    # one student layer of two teacher layers learns from the last; the padded token does not count
    settings = Distillation(teacher="x", weight=0.0, hidden_weight=2.0)
    fake = SimpleNamespace(settings=settings)
    state = lambda *values: torch.tensor([values]).unsqueeze(-1)  # noqa: E731
    ours = {"hidden_states": [state(0.0, 0.0), state(1.0, 5.0)]}
    theirs = {"hidden_states": [state(0.0, 0.0), state(9.0, 9.0), state(4.0, 7.0)]}
    inputs = {"attention_mask": torch.tensor([[1, 0]])}
    found = DistillationTrainer._hidden_difference(fake, ours, theirs, inputs, 3)
    assert float(found) == pytest.approx(2.0 * 3 * (4.0 - 1.0) ** 2)


def trained(tiny_bert, out, teacher, *, hidden=0.0, resume=None, steps=4, model=None, **arguments):
    parts = make_parts(tiny_bert, out, max_steps=steps, model=model, **arguments)
    torch.manual_seed(0)
    settings = Distillation(teacher="x", hidden_weight=hidden)
    trainer = DistillationTrainer(
        teacher=teacher,
        settings=settings,
        task=parts.task,
        model=parts.model,
        args=parts.arguments,
        train_dataset=parts.train,
        eval_dataset=parts.eval,
        data_collator=parts.collator,
        compute_loss_func=parts.compute_loss,
        compute_metrics=parts.compute_metrics,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture
def teacher(tiny_bert):
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    return model.requires_grad_(False).eval()


def test_the_student_moves_towards_the_teacher_and_the_teacher_stays(tiny_bert, tmp_path, teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer = trained(
        tiny_bert, tmp_path, teacher, hidden=0.1, steps=30, learning_rate=5e-3, save_strategy="no"
    )
    assert_same(before, teacher.state_dict())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.evaluate()["eval_loss"] > 0


def test_batch_8x1_equals_1x8(tiny_bert, tmp_path, teacher):
    def one_step(out, **split):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            tiny_bert, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        return trained(
            tiny_bert, out, teacher, steps=1, model=model, lr_scheduler_type="constant", optim="sgd", **split
        )

    whole = one_step(tmp_path / "a")
    split = one_step(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(split)[name], atol=1e-6), name
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(tiny_bert, tmp_path, teacher):
    whole = trained(tiny_bert, tmp_path / "a", teacher)
    checkpoint = tmp_path / "a" / "checkpoints" / "checkpoint-2"
    again = trained(tiny_bert, tmp_path / "b", teacher, resume=str(checkpoint))
    assert_same(weights(whole), weights(again))


@pytest.fixture
def teachers_run(recipe, tmp_path):
    values = {**recipe, "output": str(tmp_path / "teacher"), "trainer": {**recipe["trainer"], "max_steps": 2}}
    return engine.run(Recipe.from_dict(values))


def test_a_recipe_end_to_end_with_its_baseline(recipe, teachers_run, tmp_path):
    values = {
        **recipe,
        "output": str(tmp_path / "student"),
        "method": {"name": "distillation", "teacher": str(teachers_run.path)},
        "compare": True,
    }
    done = engine.run(Recipe.from_dict(values))
    assert done.metrics["method"]["teacher_weights"] == done.metrics["method"]["student_weights"]
    assert "difference" in done.metrics["comparison"]
    assert (done.path / "baseline" / "metrics.json").is_file()


def test_a_teacher_of_other_classes_is_refused(recipe, teachers_run, tmp_path):
    labels = ["sport", "food", "music", "weather"]
    values = {
        **recipe,
        "output": str(tmp_path / "student"),
        "task": {"name": "text_classification", "labels": labels},
        "method": {"name": "distillation", "teacher": str(teachers_run.path)},
    }
    with pytest.raises(RunError, match="the teacher's classes are"):
        engine.run(Recipe.from_dict(values))


def test_a_teacher_that_is_no_run_is_refused(tiny_bert):
    with pytest.raises(RunError, match="no finished run"):
        load_teacher(str(tiny_bert), TextClassification(), None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": 1.5}, "weight is 1.5; allowed: 0 to 1"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: above 0"),
        ({"hidden_weight": -1.0}, "hidden_weight is -1.0; allowed: 0 or more"),
        ({"weight": 0.0}, "the teacher has no effect"),
    ],
)
def test_values_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Distillation(teacher="x", **given)


def test_a_recipe_without_a_teacher_names_the_key(recipe):
    with pytest.raises(RecipeError, match=r"method\.teacher is missing"):
        engine.plan(Recipe.from_dict({**recipe, "method": "distillation"}))


def test_items_of_a_causal_model_are_the_places_before_its_labels():
    fake = SimpleNamespace(task=SimpleNamespace(vocabulary_labels=True, shifted_labels=True))
    logits = torch.arange(8.0).view(1, 4, 2)  # place t holds 2t, 2t + 1
    labels = torch.tensor([[-100, -100, 1, 0]])  # learned at places 1 and 2
    found = DistillationTrainer._items(fake, logits, {"labels": labels})
    assert found.tolist() == [[2.0, 3.0], [4.0, 5.0]]


@pytest.fixture
def chat_values(tiny_llama, tmp_path):
    lines = [
        json.dumps({"prompt": f"the {a}", "completion": f"good {b} and {c}"})
        for a in ("ball", "soup", "song", "team")
        for b, c in (("goal", "old"), ("salt", "new"), ("tune", "very"))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token, tokenizer.chat_template = "[PAD]", CHAT
    folders = {name: tmp_path / name for name in ("student", "teacher")}
    for seed, folder in enumerate(folders.values()):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(tiny_llama, initializer_range=0.5)
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {
        "name": "chat",
        "model": {"name": str(folders["student"]), "dtype": "float32"},
        "data": {"name": str(tmp_path / "rows.jsonl"), "eval_fraction": 0, "test_fraction": 0.25},
        "method": {"name": "distillation", "teacher": str(folders["teacher"]), "weight": 1.0},
        "trainer": {
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }


def test_a_teacher_does_not_see_across_packed_rows(chat_values, tmp_path):
    losses = {}
    for packing in (True, False):
        task = {"name": "chat", "packing": packing}
        values = {**chat_values, "task": task, "output": str(tmp_path / str(packing))}
        losses[packing] = engine.run(Recipe.from_dict(values)).metrics["training"]["loss"]
    assert losses[True] > 0.01  # there is something to learn from the teacher
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize("method", ["semi_supervised", "propagation", "self_training"])
def test_chat_names_the_methods_that_can_train_it(chat_values, method):
    values = {**chat_values, "task": "chat", "method": method}
    with pytest.raises(RecipeError, match=f"method {method} cannot train the task chat"):
        engine.plan(Recipe.from_dict(values))
