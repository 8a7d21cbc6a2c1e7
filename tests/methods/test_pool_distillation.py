"""Distillation on a pool: the loss by hand, who reads what, resume, a recipe end to end, what is refused."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _tiny_parts import assert_same, make_parts, weights
from conftest import FILLER, WORDS, sentences, write_csv
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

import hf_llm_recipes.run as engine
from hf_llm_recipes.checking.core import check
from hf_llm_recipes.errors import DataError, RecipeError, RunError
from hf_llm_recipes.exact_resume import resume_exactly
from hf_llm_recipes.methods import _pool_teaching
from hf_llm_recipes.methods._pool_teaching import TAUGHT, Lessons, PoolTrainer, Together
from hf_llm_recipes.methods._streams import Key
from hf_llm_recipes.methods._teacher import load_answering
from hf_llm_recipes.methods.distillation import Distillation
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tasks.token_classification import TokenClassification

NAMES = {0: "sport", 1: "food", 2: "music"}


@pytest.fixture
def teacher(tiny_bert, tmp_path):
    """A checkpoint with a head, that no run has made; its classes stand in another order."""
    torch.manual_seed(5)
    names = ["music", "sport", "food"]
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=3, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    folder = tmp_path / "teacher"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


def student(tiny_bert, **values):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=3, id2label=NAMES, label2id={n: i for i, n in NAMES.items()}, **values
    )


def made(tiny_bert, out, teacher, *, model=None, callbacks=(), settings=None, **arguments):
    model = model or student(tiny_bert)
    parts = make_parts(tiny_bert, out, model=model, callbacks=callbacks, **arguments)
    parts.train_rows, parts.test_rows = (
        Dataset.from_list(sentences(n, seed=s)) for n, s in ((12, 0), (9, 3))
    )
    parts.unlabeled_rows = Dataset.from_list(sentences(40, seed=1)).remove_columns("label")
    torch.manual_seed(0)
    return resume_exactly(Distillation(teacher=str(teacher), **(settings or {})).build(parts))


# -- the loss ----------------------------------------------------------------------------------------


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, rows, **unused):
        return {"logits": self.logits[rows]}


def test_the_loss_of_one_labeled_and_two_unlabeled_rows_by_hand(tiny_bert, tmp_path, teacher):
    trainer = made(tiny_bert, tmp_path, teacher, settings={"weight": 0.25, "temperature": 1.0})
    model = Fixed([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, 0.0]])
    trainer.model = model
    trainer.current_gradient_accumulation_steps = 1
    inputs = {
        "rows": torch.tensor([0, 1, 2]),
        "labels": torch.tensor([1]),  # the student gives it 1/4
        TAUGHT: torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, 0.0]]),
    }
    found = trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(1)).item()
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # of the second row; the others agree
    assert found == pytest.approx(0.75 * math.log(4.0) + 0.25 * kl / 3)
    trainer.current_gradient_accumulation_steps = 2  # half of a step with two labels
    half = trainer.compute_loss(model, inputs, num_items_in_batch=torch.tensor(2)).item()
    assert half == pytest.approx(found / 2)


def test_a_batch_has_labeled_rows_first_and_each_row_its_teacher():
    def collate(rows):
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    lessons = Lessons(*(np.full((9, 2), base) + np.arange(9)[:, None] for base in (0.0, 100.0, 0.0)))
    items = [
        {"key": Key(False, 7), "row": {"input_ids": [1, 2], "labels": 1}},
        {"key": Key(True, 3), "row": {"input_ids": [3, 4]}},
    ]
    batch = Together(collate, lessons)(items)
    assert batch["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert batch["labels"].tolist() == [1]
    assert batch[TAUGHT].tolist() == [[7.0, 7.0], [103.0, 103.0]]


def test_batch_8x1_equals_1x8(tiny_bert, tmp_path, teacher):
    """One step of the same labeled and unlabeled rows, in one batch and in eight."""

    def one_step(out, **split):
        dry = student(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer = made(
            tiny_bert,
            out,
            teacher,
            model=dry,
            max_steps=1,
            lr_scheduler_type="constant",
            optim="sgd",
            **split,
        )
        trainer.train()
        return trainer

    whole = one_step(tmp_path / "a", per_device_train_batch_size=8)
    split = one_step(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert not torch.equal(weights(whole)["classifier.weight"], student(tiny_bert).classifier.weight)
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(split)[name], atol=1e-6), name
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_other_answers_by_hand(tiny_bert, tmp_path, problem):
    task, settings = (
        TextClassification(problem=problem),
        Distillation(teacher="x", weight=1.0, temperature=1.0),
    )
    fake = SimpleNamespace(task=task, settings=settings)
    if problem == "regression":
        logits = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [2.5]])
        by_hand = 4 + 0.25
    else:  # the student says 1/2 twice, the teacher 3/4 and 1/2
        logits = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    items = [PoolTrainer._items(fake, of, {}) for of in logits]
    assert float(PoolTrainer._difference(fake, *items)) == pytest.approx(by_hand)


# -- the teacher -------------------------------------------------------------------------------------


def test_a_teacher_with_its_own_tokenizer_and_order_of_classes_says_what_it_says(
    tiny_bert, tmp_path, teacher
):
    """The tokenizer of the teacher numbers words from behind; its embeddings go with that."""
    file = teacher / "tokenizer.json"
    values = json.loads(file.read_text())
    special = 5
    words = [*FILLER, *(word for some in WORDS.values() for word in some)]
    values["model"]["vocab"].update({word: special + i for i, word in enumerate(reversed(words))})
    file.write_text(json.dumps(values))
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    embeddings = model.bert.embeddings.word_embeddings.weight.data
    embeddings[special:] = embeddings[special:].flip(0)
    model.save_pretrained(teacher)
    trainer = made(tiny_bert, tmp_path, teacher)
    asked = AutoTokenizer.from_pretrained(tiny_bert)  # the student's words in the student's order
    embeddings[special:] = embeddings[special:].flip(0)
    with torch.no_grad():
        wanted = [
            model.eval()(**asked(row["text"], return_tensors="pt")).logits[0, [1, 2, 0]].numpy()
            for row in sentences(40, seed=1)
        ]
    assert AutoTokenizer.from_pretrained(teacher).get_vocab() != asked.get_vocab()
    np.testing.assert_allclose(trainer.together.lessons.pool_NC, np.stack(wanted), atol=1e-5)


def test_a_teacher_is_asked_once_and_again_when_its_weights_change(tiny_bert, tmp_path, teacher, monkeypatch):
    asked, real = [], _pool_teaching._asked

    def counted(*given):
        asked.append(given[-1])
        return real(*given)

    monkeypatch.setattr(_pool_teaching, "_asked", counted)
    first = made(tiny_bert, tmp_path, teacher)
    assert asked == ["the teacher on labeled rows", "the teacher on pool rows", "the teacher on test rows"]
    again = made(tiny_bert, tmp_path, teacher)
    assert len(asked) == 3
    np.testing.assert_array_equal(first.together.lessons.pool_NC, again.together.lessons.pool_NC)
    for file in (tmp_path / "cache" / "teachers").iterdir():
        file.write_bytes(b"cut")
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    made(tiny_bert, tmp_path, teacher)
    assert len(asked) == 6  # what is damaged is asked again
    model.classifier.bias.data += 1.0
    model.save_pretrained(teacher)
    made(tiny_bert, tmp_path, teacher)
    assert len(asked) == 9


def test_a_teacher_of_other_classes_is_refused(teacher):
    with pytest.raises(RunError, match=r"the teacher's classes are .*music.*, the student's .*weather"):
        load_answering(str(teacher), TextClassification(), {0: "sport", 1: "food", 2: "weather"})


def test_a_checkpoint_without_a_head_is_no_teacher(tiny_bert):
    with pytest.raises(RunError, match="holds no weights for classifier"):
        load_answering(str(tiny_bert), TextClassification(), NAMES)


# -- training ----------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """A power cut behind the checkpoint of step 2."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def logged(trainer):
    kept = ("step", "loss", "teacher/kl", "teacher/agreement")
    return [{k: line[k] for k in kept if k in line} for line in trainer.state.log_history]


def test_a_run_that_was_cut_ends_with_the_same_bits_and_lines(tiny_bert, tmp_path, teacher):
    given = {"max_steps": 5, "logging_steps": 3, "save_steps": 2}  # the cut is between two logs
    whole = made(tiny_bert, tmp_path / "a", teacher, **given)
    whole.train()
    cut = made(tiny_bert, tmp_path / "b", teacher, callbacks=[Stop()], **given)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = made(tiny_bert, tmp_path / "b", teacher, **given)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoints" / "checkpoint-2"))
    assert_same(weights(whole), weights(again))
    assert logged(whole) == logged(again)
    assert "teacher/kl" in logged(whole)[0]


def test_the_student_comes_near_its_teacher_on_rows_without_labels(tiny_bert, tmp_path, teacher):
    trainer = made(
        tiny_bert, tmp_path, teacher, settings={"weight": 1.0}, max_steps=24, learning_rate=5e-3,
        logging_steps=6, save_strategy="no",
    )  # fmt: skip
    trainer.train()
    near = [line["teacher/kl"] for line in logged(trainer) if "teacher/kl" in line]
    assert near[-1] < 0.3 * near[0]
    labels_alone = trainer.evaluate()["eval_loss"]
    logits = torch.from_numpy(trainer.predict(trainer.eval_dataset).predictions)
    labels = torch.tensor(trainer.eval_dataset["labels"][:])
    assert labels_alone == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)


@pytest.fixture
def pool_recipe(recipe, teacher, tmp_path):
    write_csv(tmp_path / "pool.csv", [{"text": row["text"] + " new"} for row in sentences(60, seed=9)])
    return {
        **recipe,
        "output": str(tmp_path / "student"),
        "data": {**recipe["data"], "unlabeled": str(tmp_path / "pool.csv")},
        "method": {"name": "distillation", "teacher": str(teacher), "unlabeled_ratio": 2},
    }


def test_a_recipe_end_to_end_with_its_baseline(pool_recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))
    tuning = {"name": "lora", "target_modules": ["query", "value"]}
    trainer = {**pool_recipe["trainer"], "logging_steps": 2}
    values = {**pool_recipe, "compare": True, "tuning": tuning, "trainer": trainer}
    done = engine.run(Recipe.from_dict(values))
    said = done.metrics["method"]
    assert {"teacher_weights", "student_weights", "first_kl", "last_agreement"} <= set(said)
    assert done.metrics["baselines"]["teacher"]["rows"] == done.metrics["test"]["rows"]
    assert "difference_95" in done.metrics["comparison"]
    assert done.metrics["training"]["steps"] == 4
    assert "the teacher" in (done.path / "report.html").read_text(encoding="utf-8")
    base = json.loads((done.path / "baseline" / "environment.json").read_text())
    assert "unlabeled" not in base["data"]["splits"]


def test_a_check_and_an_estimate_look_at_it(pool_recipe):
    report = check(Recipe.from_dict(pool_recipe))
    assert not [finding for finding in report.findings if finding.level == "error"]
    assert report.estimate.peak > 0


def test_test_rows_in_the_pool_are_refused(pool_recipe, tmp_path):
    write_csv(tmp_path / "pool.csv", [{"text": row["text"]} for row in sentences(240)])
    with pytest.raises(DataError, match="unlabeled rows are rows of the"):
        engine.run(Recipe.from_dict(pool_recipe))


# -- what is refused ---------------------------------------------------------------------------------


def parts_of(task, sampling="random", rows=60):
    arguments = SimpleNamespace(train_sampling_strategy=sampling, train_batch_size=8, world_size=1, seed=0)
    return SimpleNamespace(task=task, arguments=arguments, train=range(9), unlabeled=range(rows))


def test_several_answers_a_row_are_refused():
    with pytest.raises(DataError, match="a teacher answers unlabeled rows with one answer a row"):
        _pool_teaching.check_pool(parts_of(TokenClassification()), 0.0)


def test_hidden_states_and_a_sampling_strategy_have_no_effect():
    with pytest.raises(ValueError, match="hidden_weight has no effect with a pool"):
        _pool_teaching.check_pool(parts_of(TextClassification()), 1.0)
    with pytest.raises(ValueError, match="train_sampling_strategy has no effect on two streams"):
        _pool_teaching.check_pool(parts_of(TextClassification(), "group_by_length"), 0.0)


def test_a_pool_that_fills_no_batch_is_refused():
    with pytest.raises(DataError, match="the pool has 15 rows, fewer than a batch of 16"):
        _pool_teaching.batches_of(parts_of(TextClassification(), rows=15), 2.0)


def test_a_ratio_without_a_pool_or_out_of_range_is_refused(recipe, teacher):
    values = {**recipe, "method": {"name": "distillation", "teacher": str(teacher), "unlabeled_ratio": 2}}
    with pytest.raises(RecipeError, match="unlabeled_ratio has no effect without a pool"):
        engine.run(Recipe.from_dict(values))
    with pytest.raises(ValueError, match="unlabeled_ratio is 0; allowed: above 0"):
        Distillation(teacher="x", unlabeled_ratio=0)
