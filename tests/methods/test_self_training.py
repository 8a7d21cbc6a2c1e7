import json
import os
import signal

import numpy as np
import pytest
import torch
from _tiny_parts import assert_same, make_parts, weights
from conftest import WORDS, sentences
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback

from hf_llm_recipes.callbacks.early_stopping import EarlyStopping
from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.callbacks.log_file import LogFile
from hf_llm_recipes.errors import DataError, InterruptedRunError, RunError
from hf_llm_recipes.methods import self_training
from hf_llm_recipes.methods.self_training import SelfTraining
from hf_llm_recipes.methods.supervised import Supervised
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import CALLBACKS
from hf_llm_recipes.run import run

TOPICS = {word for words in WORDS.values() for word in words}


def assert_same_but_times(first, second):
    assert {k: v for k, v in first.items() if k != "log"} == {k: v for k, v in second.items() if k != "log"}
    assert [entry["step"] for entry in first["log"]] == [entry["step"] for entry in second["log"]]


class Watch(TrainerCallback):
    """Keeps the weights at the start of every round and the steps that it is shown."""

    def __init__(self):
        self.began, self.steps, self.lengths = [], [], set()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.began.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)
        self.lengths.add(state.max_steps)


class StopAt(TrainerCallback):
    """Ends the process at a step, as a signal would or as an error does."""

    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise KeyboardInterrupt


def test_every_round_starts_from_the_base(tiny_bert, tmp_path):
    watch = Watch()
    method = SelfTraining(rounds=2)
    trainer = method.build(make_parts(tiny_bert, tmp_path, callbacks=[watch]))
    base = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    result = trainer.train()
    assert len(watch.began) == 2
    for began in watch.began:
        assert_same(began, base)
    assert not torch.equal(trainer.model.classifier.weight, base["classifier.weight"])
    assert watch.steps == [1, 2, 3, 4, 5, 6, 7, 8]  # those of the whole run
    assert watch.lengths == {8}
    assert (trainer.state.global_step, trainer.state.max_steps, result.global_step) == (8, 8, 8)
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [2, 4, 6, 8]
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (9, 3)


def test_the_report_says_what_each_round_was(tiny_bert, tmp_path):
    method = SelfTraining(rounds=2, prior="uniform")
    trainer = method.build(make_parts(tiny_bert, tmp_path))
    trainer.train()
    found = json.loads(json.dumps(method.report(trainer)))
    first, second = found["rounds"]
    assert (first["round"], first["steps"], second["round"], second["steps"]) == (1, 4, 2, 4)
    assert max(first["classes"]) <= 7  # a third of half of 40 rows, rounded up
    assert first["pool_rows"] == sum(first["classes"])
    assert max(second["classes"]) <= 14
    assert second["pool_share"] == pytest.approx(second["pool_rows"] / 40)
    assert 0 <= second["agreement"] <= 1
    assert "agreement" not in first
    assert set(second["eval"]) >= {"eval_loss", "eval_accuracy"}
    assert found["labels_settled"] is False


def test_without_a_warm_start_the_labeled_rows_come_first(tiny_bert, tmp_path):
    method = SelfTraining(rounds=1, warm_start="none", select_fraction=0.5, prior=[0.5, 0.25, 0.25])
    trainer = method.build(make_parts(tiny_bert, tmp_path))
    trainer.train()
    assert [record["round"] for record in trainer.records] == [0, 1]
    assert trainer.records[0]["pool_rows"] == 0
    assert trainer.records[1]["prior"] == [0.5, 0.25, 0.25]
    assert all(k <= most for k, most in zip(trainer.records[1]["classes"], (10, 5, 5), strict=True))
    assert trainer.state.global_step == 8
    assert method.baselines(trainer) == {}


@pytest.mark.parametrize("arguments", [{}, {"num_train_epochs": 2, "max_steps": -1, "data_seed": 5}])
def test_the_training_before_the_rounds_is_the_supervised_one_to_the_bit(tiny_bert, tmp_path, arguments):
    class First(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            kept.setdefault("weights", {name: value.clone() for name, value in model.state_dict().items()})

    kept = {}
    given = {"logging_steps": 1, **arguments}
    method = SelfTraining(rounds=1, warm_start="none", select_fraction=0.5)
    ours = method.build(make_parts(tiny_bert, tmp_path / "ours", callbacks=[First()], **given))
    ours.train()
    theirs = Supervised().build(make_parts(tiny_bert, tmp_path / "theirs", **given))
    theirs.train()
    assert_same(kept["weights"], weights(theirs))
    losses = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in ours.records[0]["log"] if "loss" in entry] == losses
    assert len(losses) == 4


def test_growth_and_repeated_labeled_rows(tiny_bert, tmp_path):
    seen = []

    class Rows(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen.append(len(train_dataloader.dataset))

    method = SelfTraining(rounds=2, growth="none", labeled_share=0.5, prior="uniform", passes=0)
    trainer = method.build(make_parts(tiny_bert, tmp_path, callbacks=[Rows()], max_steps=2))
    trainer.train()
    for rows, record in zip(seen, trainer.records, strict=True):
        times = max(1, round(record["pool_rows"] / 12))
        assert rows == 12 * times + record["pool_rows"]


def stopped_and_resumed(tiny_bert, folder, step, how, values, **arguments):
    graceful = GracefulStop()
    callbacks = [StopAt(step, how), graceful]
    trainer = SelfTraining(**values).build(make_parts(tiny_bert, folder, callbacks=callbacks, **arguments))
    if how == "signal":
        trainer.train()
        assert graceful.received == signal.SIGTERM
        assert trainer.state.global_step == step
        assert trainer.state.global_step < trainer.state.max_steps
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    again = SelfTraining(**values).build(make_parts(tiny_bert, folder, **arguments))
    again.train(resume_from_checkpoint=True)
    return again


@pytest.fixture(scope="module")
def whole(tiny_bert, tmp_path_factory):
    trainer = SelfTraining(rounds=3).build(make_parts(tiny_bert, tmp_path_factory.mktemp("whole")))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("step", "how"),
    [
        (7, "signal"),  # within the second round
        (8, "signal"),  # at its end
        (7, "error"),  # a step after its checkpoint
        (5, "error"),  # before its first checkpoint
        (2, "signal"),  # within the first round
        (12, "error"),  # in the last step
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(tiny_bert, tmp_path, whole, step, how):
    again = stopped_and_resumed(tiny_bert, tmp_path, step, how, {"rounds": 3})
    assert_same(weights(again), weights(whole))
    assert again.state.global_step == whole.state.global_step == 12
    assert [r["classes"] for r in again.records] == [r["classes"] for r in whole.records]
    assert [r["eval"]["eval_loss"] for r in again.records] == [r["eval"]["eval_loss"] for r in whole.records]


def test_a_run_killed_while_it_labels_goes_on(tiny_bert, tmp_path, whole, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    parts = make_parts(tiny_bert, tmp_path)
    trainer = SelfTraining(rounds=3).build(parts)
    monkeypatch.setattr(trainer, "_label_batch", fail)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [r["round"] for r in trainer.records] == [1]
    again = SelfTraining(rounds=3).build(make_parts(tiny_bert, tmp_path))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "round-1" / "checkpoint-4"))
    assert_same(weights(again), weights(whole))
    assert_same_but_times(again.records[0], whole.records[0])


def test_a_finished_run_is_taken_up_without_a_step(tiny_bert, tmp_path):
    first = SelfTraining(rounds=2).build(make_parts(tiny_bert, tmp_path))
    first.train()
    folders = sorted(str(p.relative_to(first.root)) for p in first.root.rglob("checkpoint-*"))
    assert folders == ["round-2/checkpoint-2", "round-2/checkpoint-4"]  # the first round's are gone
    watch = Watch()
    again = SelfTraining(rounds=2).build(make_parts(tiny_bert, tmp_path, callbacks=[watch]))
    result = again.train(resume_from_checkpoint=True)
    assert watch.steps == []
    assert_same(weights(again), weights(first))
    assert (again.state.global_step, again.state.max_steps) == (8, 8)
    assert result.metrics["train_loss"] == first.records[-1]["loss"]


def test_a_lora_goes_on_bit_for_bit(tiny_bert, tmp_path):
    from peft import LoraConfig, get_peft_model

    def lora():
        torch.manual_seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
        config = LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.1, target_modules=["query", "value"])
        return get_peft_model(base, config)

    first = SelfTraining(rounds=2).build(make_parts(tiny_bert, tmp_path / "a", model=lora()))
    first.train()
    callbacks = [StopAt(3, "error")]
    parts = make_parts(tiny_bert, tmp_path / "b", model=lora(), callbacks=callbacks)
    killed = SelfTraining(rounds=2).build(parts)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again = SelfTraining(rounds=2).build(make_parts(tiny_bert, tmp_path / "b", model=lora()))
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again), weights(first))
    trained = {name for name, p in again.model.named_parameters() if p.requires_grad}
    saved = torch.load(tmp_path / "a" / "checkpoints" / "base.pt", weights_only=True)
    assert trained <= set(saved)
    assert "base_model.model.bert.embeddings.word_embeddings.weight" not in saved  # frozen: not copied


def test_the_base_of_a_resumed_run_is_the_one_it_began_with(tiny_bert, tmp_path, whole):
    """A stage before the task's training is not run again, so the model comes without it."""
    trainer = SelfTraining(rounds=3).build(make_parts(tiny_bert, tmp_path, callbacks=[StopAt(3, "error")]))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    other = make_parts(tiny_bert, tmp_path)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    again = SelfTraining(rounds=3).build(other)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again), weights(whole))


def test_labels_that_settled_end_the_run(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(self_training, "SETTLED", 0.0)  # any agreement is enough
    method = SelfTraining(rounds=3)
    trainer = method.build(make_parts(tiny_bert, tmp_path))
    trainer.train()
    assert [record["round"] for record in trainer.records] == [1]
    assert (trainer.state.global_step, trainer.state.max_steps) == (4, 4)
    assert method.report(trainer)["labels_settled"] is True
    again = SelfTraining(rounds=3).build(make_parts(tiny_bert, tmp_path))
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again), weights(trainer))
    assert again.settled


def test_early_stopping_ends_a_round_not_the_run(tiny_bert, tmp_path):
    stopping = EarlyStopping(early_stopping_threshold=100.0)  # the second evaluation never improves enough
    parts = make_parts(
        tiny_bert,
        tmp_path,
        callbacks=[stopping],
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer = SelfTraining(rounds=2).build(parts)
    trainer.train()
    assert [record["steps"] for record in trainer.records] == [4, 4]
    assert (trainer.state.global_step, trainer.state.max_steps) == (8, 8)


def test_any_other_stop_ends_the_run(tiny_bert, tmp_path):
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    trainer = SelfTraining(rounds=3).build(make_parts(tiny_bert, tmp_path, callbacks=[Enough()]))
    trainer.train()
    assert (trainer.state.global_step, trainer.state.max_steps) == (6, 12)


def test_the_log_file_holds_every_round(tiny_bert, tmp_path):
    path = tmp_path / "log.jsonl"
    parts = make_parts(tiny_bert, tmp_path, callbacks=[LogFile(str(path))])
    SelfTraining(rounds=2).build(parts).train()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    losses = [(line["round"], line["step"]) for line in lines if "loss" in line]
    assert losses == [(1, 2), (1, 4), (2, 6), (2, 8)]


def test_a_batch_may_be_cut_in_pieces(tiny_bert, tmp_path):
    for part in tiny_bert.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / part.name).write_bytes(part.read_bytes())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    made = []
    for batch, pieces in ((8, 1), (1, 8)):
        arguments = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": pieces}
        arguments |= {"optim": "sgd", "learning_rate": 0.1}  # Adam makes steps of rounding errors
        folder = tmp_path / str(batch)
        parts = make_parts(tmp_path / "model", folder, max_steps=2, max_grad_norm=0.0, **arguments)
        trainer = SelfTraining(rounds=1).build(parts)
        assert trainer.plan.passes == 0  # no dropout
        trainer.train()
        made.append(weights(trainer))
    for name, value in made[0].items():
        torch.testing.assert_close(value, made[1][name], rtol=0, atol=1e-5, msg=name)


def test_the_model_is_left_in_its_mode_and_labels_repeat(tiny_bert, tmp_path):
    trainer = SelfTraining().build(make_parts(tiny_bert, tmp_path))
    trainer.model.eval()
    first, second = trainer._label_pool(1), trainer._label_pool(1)
    assert not any(module.training for module in trainer.model.modules())
    np.testing.assert_array_equal(first.confidence_N, second.confidence_N)
    assert (first.confidence_N <= 0).all()  # minus BALD
    assert (first.confidence_N != trainer._label_pool(2).confidence_N).any()


def test_a_plain_forward_labels_as_the_model_predicts(tiny_bert, tmp_path):
    trainer = SelfTraining(passes=0).build(make_parts(tiny_bert, tmp_path))
    labels = trainer._label_pool(1)
    logits = torch.tensor(trainer.predict(trainer.pool).predictions)
    assert labels.items_I.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(labels.confidence_N, torch.softmax(logits, -1).max(-1).values, rtol=1e-5)


def test_multi_label_rows_are_ranked_by_the_mean_of_their_classes(tiny_bert, tmp_path):
    method = SelfTraining(rounds=1, passes=0, confidence="probability", select_fraction=0.5)
    trainer = method.build(make_parts(tiny_bert, tmp_path, problem="multi_label"))
    trainer.train()
    assert trainer.records[1]["pool_rows"] == 20
    trainer.model.eval()
    again = trainer._label_pool(1)
    share = torch.sigmoid(torch.tensor(trainer.predict(trainer.pool).predictions))
    sure = torch.maximum(share, 1 - share).mean(-1)
    np.testing.assert_allclose(again.confidence_N, sure, rtol=1e-5)
    assert again.of_row(7).tolist() == (share[7] > 0.5).int().tolist()
    row = trainer.train_dataset[len(trainer.train_dataset) - 1]
    assert len(row["labels"]) == 3
    assert set(row["labels"]) <= {0.0, 1.0}


def test_regression_keeps_the_rows_of_least_variance(tiny_bert, tmp_path, monkeypatch):
    method = SelfTraining(rounds=1, select_fraction=0.25, passes=2)
    trainer = method.build(make_parts(tiny_bert, tmp_path, problem="regression"))
    passes = iter([[1.0, 5.0], [3.0, 5.0]])  # means 2 and 5, variances 1 and 0
    with monkeypatch.context() as patch:
        forward = lambda batch: (torch.tensor(next(passes)).reshape(-1, 1), torch.arange(2))  # noqa: E731
        patch.setattr(trainer, "_forward", forward)
        values, confidence, rows = trainer._label_batch([trainer.pool[0], trainer.pool[1]])
    assert values.tolist() == [2.0, 5.0]
    assert confidence.tolist() == [-1.0, 0.0]
    assert rows.tolist() == [0, 1]
    trainer.train()
    assert [record["pool_rows"] for record in trainer.records] == [0, 10]
    variance = -trainer.labels.confidence_N
    assert sorted(variance)[:10] == sorted(variance[trainer.labels.chosen])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rounds": 0}, "rounds is 0; allowed: 1 or more"),
        ({"passes": -1}, "passes is -1; allowed: 0 or more, or auto"),
        ({"passes": 1, "confidence": "bald"}, "confidence is bald with passes: 1; allowed: 2 or more"),
        ({"select_fraction": 0.0}, "select_fraction is 0.0; allowed: more than 0, at most 1"),
        ({"select_fraction": 1.1}, "select_fraction is 1.1"),
        ({"labeled_share": 1.0}, "labeled_share is 1.0; allowed: 0 or more, less than 1"),
        ({"labeled_share": -0.1}, "labeled_share is -0.1"),
        ({"prior": [0.5, 0.6]}, "allowed: positive shares that sum to 1"),
        ({"prior": [1.0, 0.0]}, "allowed: positive shares that sum to 1"),
    ],
)
def test_bad_values(values, words):
    with pytest.raises(ValueError, match=words):
        SelfTraining(**values)


@pytest.mark.parametrize(
    ("problem", "values", "words"),
    [
        ("single_label", {"prior": [0.5, 0.5]}, "prior has 2 shares; allowed: 3, one a class"),
        ("multi_label", {"prior": "uniform"}, "prior: uniform has no effect on a multi_label task"),
        ("multi_label", {"warm_start": "propagation"}, "needs one class a row, not a multi_label task"),
        ("regression", {"confidence": "entropy"}, "confidence: entropy has no effect on regression"),
        ("regression", {"passes": 0}, "ranks rows by the variance of passes with dropout"),
    ],
)
def test_values_that_do_not_fit_the_task(tiny_bert, tmp_path, problem, values, words):
    with pytest.raises(ValueError, match=words):
        SelfTraining(**values).build(make_parts(tiny_bert, tmp_path, problem=problem))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"passes": 5}, "passes is 5, but the model has no dropout; allowed: auto, 0"),
        ({"confidence": "bald"}, "confidence is bald, but the model has no dropout"),
    ],
)
def test_a_model_without_dropout(tiny_bert, tmp_path, values, words):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3, **still)
    parts = make_parts(tiny_bert, tmp_path, model=model)
    with pytest.raises(ValueError, match=words):
        SelfTraining(**values).build(parts)


def test_no_pool(tiny_bert, tmp_path):
    parts = make_parts(tiny_bert, tmp_path)
    parts.unlabeled = None
    with pytest.raises(DataError, match=r"there are no unlabeled rows\n  do: name them in `data.unlabeled`"):
        SelfTraining().build(parts)


def test_what_cannot_be_gone_on_with(tiny_bert, tmp_path):
    trainer = SelfTraining(rounds=2).build(make_parts(tiny_bert, tmp_path))
    with pytest.raises(RunError, match=r"no checkpoint of a round: None\n  allowed: …/round-K/checkpoint-N"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(RunError, match=r"no checkpoint of a round: .*elsewhere/checkpoint-4"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "elsewhere" / "checkpoint-4"))
    with pytest.raises(ValueError, match="a hyper-parameter search cannot drive rounds"):
        trainer.train(trial=object())
    trainer.train()
    (trainer.root / "round-2" / "labels.npz").unlink()
    with pytest.raises(RunError, match=r"the run cannot go on: `.*round-2/labels.npz` is missing"):
        trainer.train(resume_from_checkpoint=True)


def test_sharded_weights_are_refused(tiny_bert, tmp_path, monkeypatch):
    plain = Trainer.__init__

    def sharded(self, **rest):
        plain(self, **rest)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "__init__", sharded)
    with pytest.raises(ValueError, match="restarts from whole weights; allowed: no FSDP and no DeepSpeed"):
        SelfTraining().build(make_parts(tiny_bert, tmp_path))


def test_a_run_from_its_recipe(recipe, tmp_path):
    recipe["method"] = {"name": "self_training", "rounds": 2}
    recipe["data"]["labels_per_class"] = 4
    recipe["trainer"]["max_steps"] = 3
    done = run(Recipe.from_dict(recipe))
    figures = done.metrics["method"]
    assert [r["steps"] for r in figures["rounds"]] == [3, 3]
    assert done.metrics["training"]["steps"] == 6
    assert set(done.metrics["baselines"]) >= {"probe"}
    assert done.metrics["reload"]["logits_max_difference"] < 1e-5


class Term(TrainerCallback):
    """Sends SIGTERM at the first step, once, that it is told."""

    at: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == Term.at:
            Term.at = None
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_stopped_in_its_second_round_is_resumed(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(CALLBACKS._classes, "term", Term)
    recipe["method"] = {"name": "self_training", "rounds": 2, "passes": 3}
    recipe["data"]["labels_per_class"] = 4
    recipe["trainer"] |= {"max_steps": 3, "save_steps": 10}
    recipe["callbacks"] = ["term"]
    whole = run(Recipe.from_dict(recipe))
    Term.at = 4  # the run's own callback comes before and sees it at step 5
    out = str(tmp_path / "again")
    with pytest.raises(InterruptedRunError, match="stopped by SIGTERM after step 5; a checkpoint was saved"):
        run(Recipe.from_dict(recipe), f"output={out}")
    again = run(Recipe.from_dict(recipe), f"output={out}", "resume=true")
    files = [(done.path / "model" / "model.safetensors").read_bytes() for done in (whole, again)]
    assert files[0] == files[1]
    steps = [json.loads(line)["step"] for line in (again.path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert max(steps) == 6


def test_words_are_labeled_too(recipe, tmp_path):
    rows = [
        {"tokens": row["text"].split(), "label": ["T" if w in TOPICS else "O" for w in row["text"].split()]}
        for row in sentences(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bare = tmp_path / "pool.jsonl"
    bare.write_text("".join(json.dumps({"tokens": r["text"].split()}) + "\n" for r in sentences(30, seed=5)))
    recipe["data"] = {"name": str(path), "unlabeled": str(bare)}
    recipe["task"] = {"name": "token_classification"}
    recipe["method"] = {"name": "self_training", "rounds": 1, "select_fraction": 0.5}
    recipe["trainer"]["max_steps"] = 20
    done = run(Recipe.from_dict(recipe))
    first, second = done.metrics["method"]["rounds"]
    assert (first["pool_rows"], second["pool_rows"]) == (0, 15)
    assert second["eval"]["eval_loss"] < 0.7
