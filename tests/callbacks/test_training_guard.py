import json
import logging
import math

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_llm_recipes.callbacks.overfitting import Overfitting
from hf_llm_recipes.callbacks.training_guard import TrainingGuard, default_guards, guard_of, watch
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.exact_resume import resume_exactly

ROWS, WIDTH, POISON = 24, 3, 17  # the row whose loss is no number


class Net(nn.Module):
    """Two layers and a tensor that the loss does not depend on, where asked."""

    def __init__(self, unused=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, 4), nn.Linear(4, 1)
        if unused:
            self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x, labels=None):
        return {"logits": self.second(torch.tanh(self.first(x))).squeeze(-1)}


def rows(labels=None):
    drawn = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    return [
        {"x": drawn[i], "labels": torch.tensor(float(i % 2) if labels is None else labels[i])}
        for i in range(ROWS)
    ]


def squared(outputs, labels, num_items_in_batch=None):
    return ((outputs["logits"] - labels) ** 2).mean()


def poisoned(value):
    """The squared error, but for one row: the only one whose label is 2."""

    def loss(outputs, labels, num_items_in_batch=None):
        found = squared(outputs, labels)
        return found * value if (labels == 2).any() else found

    return loss


POISONED = [2.0 if i == POISON else float(i % 2) for i in range(ROWS)]


def trainer_of(folder, callbacks, *, loss=squared, data=None, model=None, **arguments):
    given = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_steps": 1,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "restore_callback_states_from_checkpoint": True,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "label_names": ["labels"],
    }
    trainer = Trainer(
        model=model or Net(),
        args=TrainingArguments(output_dir=str(folder), **{**given, **arguments}),
        train_dataset=data or rows(),
        compute_loss_func=loss,
        callbacks=callbacks,
    )
    return watch(trainer)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(found, wanted):
    return all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_without_it_the_stock_trainer_spoils_every_weight(tmp_path):
    trainer = trainer_of(tmp_path, [], loss=poisoned(math.nan), data=rows(POISONED))
    trainer.train()
    spoiled = [name for name, p in trainer.model.named_parameters() if p.isnan().all()]
    assert len(spoiled) == 4
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_any_weight(tmp_path, value):
    before = trainer_of(tmp_path / "a", [TrainingGuard()], max_steps=4)  # row 17 comes in the fifth step
    before.train()
    trainer = trainer_of(
        tmp_path / "b", [TrainingGuard()], loss=poisoned(value), data=rows(POISONED), save_strategy="steps"
    )
    with pytest.raises(RunError) as caught:
        trainer.train()
    said = str(caught.value)
    assert (
        f"step 5: the loss is {value}; training row {POISON}, counted from 0. No weight was changed" in said
    )
    assert f"the last checkpoint is {tmp_path / 'b' / 'checkpoint-4'}" in said
    assert "when_not_finite: skip" in said
    assert same(weights(trainer.model), weights(before.model))
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_gradient_that_is_not_finite_stops_too_and_names_the_batch(tmp_path):
    model = Net()
    first = weights(model)
    model.second.weight.register_hook(lambda grad: grad * math.inf)
    trainer = trainer_of(tmp_path, [TrainingGuard()], model=model)
    with pytest.raises(
        RunError, match=r"step 1: the gradient's norm is (inf|nan); training rows 0, 1, 2, 3, "
    ):
        trainer.train()
    assert same(weights(model), first)


def test_no_checkpoint_yet_is_said(tmp_path):
    labels = [2.0] + [0.0] * (ROWS - 1)
    trainer = trainer_of(tmp_path, [TrainingGuard()], loss=poisoned(math.nan), data=rows(labels))
    with pytest.raises(RunError, match="No weight was changed; there is no checkpoint yet"):
        trainer.train()


def test_a_skipped_step_changes_neither_weights_nor_moments_and_is_counted(tmp_path, caplog):
    guard = TrainingGuard(when_not_finite="skip")
    seen = {}

    class Look(TrainingGuard):
        """Keeps weights and moments around the fifth step."""

        def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            seen[state.global_step] = (
                weights(model),
                {i: {k: v.clone() for k, v in s.items()} for i, s in optimizer.state_dict()["state"].items()},
            )
            super().on_pre_optimizer_step(args, state, control, model=model, optimizer=optimizer, **kwargs)

    guard = Look(when_not_finite="skip")
    trainer = trainer_of(tmp_path, [guard], loss=poisoned(math.nan), data=rows(POISONED))
    with caplog.at_level(logging.WARNING):
        found = trainer.train()
    before, after = seen[4], seen[5]
    assert same(after[0], before[0])
    assert before[1].keys() == after[1].keys() == {0, 1, 2, 3}
    assert all(same(after[1][i], before[1][i]) for i in before[1])
    assert not same(weights(trainer.model), after[0])  # the sixth step counts
    assert guard.report() == {"skipped_steps": 1, "skipped_at": [5]}
    assert f"step 5 is skipped: the loss is nan (training row {POISON}, counted from 0)" in caplog.text
    losses = {line["step"]: line for line in trainer.state.log_history if "loss" in line}
    assert math.isnan(losses[5]["loss"])  # of one step, which was skipped
    assert losses[6]["skipped_steps"] == 1
    finite = [line["loss"] for step, line in losses.items() if step != 5]
    assert found.metrics["train_loss"] == pytest.approx(sum(finite) / 5)


def test_a_mean_over_skipped_steps_is_that_of_the_others(tmp_path):
    guard = TrainingGuard(when_not_finite="skip")
    each = trainer_of(
        tmp_path / "a", [TrainingGuard(when_not_finite="skip")], loss=poisoned(math.nan), data=rows(POISONED)
    )
    each.train()
    losses = [line["loss"] for line in each.state.log_history if "loss" in line]
    trainer = trainer_of(
        tmp_path / "b", [guard], loss=poisoned(math.nan), data=rows(POISONED), logging_steps=3
    )
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged[0] == pytest.approx(sum(losses[:3]) / 3)
    assert logged[1] == pytest.approx((losses[3] + losses[5]) / 2)


def test_the_bad_part_of_an_accumulated_step_takes_the_whole_step_with_it(tmp_path):
    guard = TrainingGuard(when_not_finite="skip")
    trainer = trainer_of(
        tmp_path,
        [guard],
        loss=poisoned(math.nan),
        data=rows(POISONED),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=6,
    )
    found = trainer.train()
    assert guard.skipped == [5]
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert math.isfinite(logged[0])
    assert found.metrics["train_loss"] == pytest.approx(logged[0])


def test_so_many_in_a_row_stop_after_all(tmp_path):
    guard = TrainingGuard(when_not_finite="skip", most_skipped=2)
    trainer = trainer_of(tmp_path, [guard], loss=lambda *a, **k: squared(*a, **k) * math.nan)
    first = weights(trainer.model)
    with pytest.raises(
        RunError, match="step 2: the loss is nan, 2 steps in a row; training rows 4, 5, 6, 7,"
    ):
        trainer.train()
    assert same(weights(trainer.model), first)


def test_the_rows_are_those_of_the_data_that_was_read(tmp_path):
    from datasets import Dataset

    data = rows(POISONED)
    kept = Dataset.from_dict(
        {
            "x": [row["x"].tolist() for row in data],
            "labels": [float(row["labels"]) for row in data],
            "row": [100 + i for i in range(ROWS)],
        }
    )
    trainer = trainer_of(tmp_path, [TrainingGuard()], loss=poisoned(math.nan), data=kept)
    with pytest.raises(RunError, match=f"training row {100 + POISON}, counted from 0"):
        trainer.train()


def test_a_loss_far_above_the_others_is_told_and_training_goes_on(tmp_path, caplog):
    guard = TrainingGuard(window=20)
    spiky = poisoned(1e4)
    trainer = trainer_of(
        tmp_path, [guard], loss=spiky, data=rows(POISONED), num_train_epochs=5, learning_rate=0.0
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 30
    assert guard.spikes == [23, 29]  # rows 16 to 19 in every sixth step; twenty losses are needed
    assert "step 23: the loss is" in caplog.text
    assert "training rows 16, 17, 18, 19, counted from 0" in caplog.text


def test_nothing_but_zeros_stops(tmp_path):
    trainer = trainer_of(
        tmp_path, [TrainingGuard(most_zero=3)], loss=lambda outputs, *a, **k: 0.0 * outputs["logits"].sum()
    )
    with pytest.raises(
        RunError, match="step 3: the loss is exactly 0 and there is no gradient, 3 steps in a row"
    ):
        trainer.train()
    trainer = trainer_of(
        tmp_path, [TrainingGuard(most_zero=None)], loss=lambda outputs, *a, **k: 0.0 * outputs["logits"].sum()
    )
    trainer.train()
    assert trainer.state.global_step == 6


def test_a_zero_loss_with_a_gradient_goes_on(tmp_path):
    def hinge(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].sum() - outputs["logits"].sum().detach()

    trainer = trainer_of(tmp_path, [TrainingGuard(most_zero=1)], loss=hinge)
    trainer.train()
    assert trainer.state.global_step == 6


def test_tensors_without_gradient_are_named_once(tmp_path, caplog):
    guard = TrainingGuard(dead_after=2)
    trainer = trainer_of(tmp_path, [guard], model=Net(unused=True))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert guard.report() == {"tensors_without_gradient": ["unused"]}
    assert caplog.text.count("get no gradient: unused.") == 1
    assert "step 1: 1 tensors" in caplog.text


def test_a_gradient_of_zeros_is_named_later(tmp_path):
    guard, model = TrainingGuard(dead_after=2), Net()
    model.second.bias.register_hook(torch.zeros_like)
    trainer_of(tmp_path, [guard], model=model).train()
    assert guard.dead == ["second.bias"]


class Words(nn.Module):
    """A language model of one table."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 7)

    def forward(self, input_ids, labels=None, **rest):
        logits = self.table(input_ids)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())  # NaN where all are masked
        return {"loss": loss.nan_to_num(0.0), "logits": logits}


def test_batches_without_a_supervised_token_are_counted_and_told_once(tmp_path, caplog):
    data = [
        {
            "input_ids": torch.tensor([i % 7, 1, 2]),
            "labels": torch.tensor([-100, -100, -100 if i in (2, 3, 4, 5) else 2]),
        }
        for i in range(8)
    ]
    guard = TrainingGuard()
    trainer = trainer_of(
        tmp_path, [guard], loss=None, data=data, model=Words(), per_device_train_batch_size=2
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert guard.report()["batches_without_supervised_token"] == 2
    assert caplog.text.count("no supervised token") == 1
    assert (
        "step 2: a batch has no supervised token, so it teaches nothing (training rows 2, 3," in caplog.text
    )


def test_counters_survive_a_resume(tmp_path):
    def made(folder, **arguments):
        given = {"num_train_epochs": 2, "learning_rate": 0.0, "save_strategy": "steps", **arguments}
        guard = TrainingGuard(when_not_finite="skip", window=25, dead_after=9)
        return trainer_of(folder, [guard], loss=poisoned(math.nan), data=rows(POISONED), **given)

    whole = made(tmp_path / "a")
    whole.train()
    assert guard_of(whole).report() == {"skipped_steps": 2, "skipped_at": [5, 11]}
    half = made(tmp_path / "b")
    half.train()
    again = made(tmp_path / "b")
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-7"))
    guard = guard_of(again)
    assert (guard.window, guard.dead_after, guard.when_not_finite) == (25, 9, "skip")
    assert guard.report() == {"skipped_steps": 2, "skipped_at": [5, 11]}
    assert guard.losses == guard_of(whole).losses
    assert len(guard.losses) == 10
    saved = json.loads((tmp_path / "b" / "checkpoint-7" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["TrainingGuard"]["attributes"]["skipped"] == [5]


def test_a_mean_that_a_resume_cuts_in_two_is_that_of_one_piece(tmp_path):
    def made(folder):
        guard = TrainingGuard(when_not_finite="skip")
        trainer = trainer_of(
            folder,
            [guard],
            loss=poisoned(math.nan),
            data=rows(POISONED),
            logging_steps=6,
            save_strategy="steps",
        )
        return resume_exactly(trainer)

    whole = made(tmp_path / "a")
    wanted = whole.train().metrics["train_loss"]
    made(tmp_path / "b").train()
    again = made(tmp_path / "b")
    found = again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-5"))  # the skipped step
    logged = [line["loss"] for line in again.state.log_history if "loss" in line]
    assert logged == [line["loss"] for line in whole.state.log_history if "loss" in line]
    assert found.metrics["train_loss"] == pytest.approx(wanted)


def test_without_watch_gradients_are_guarded_all_the_same(tmp_path):
    model = Net()
    first = weights(model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=rows(),
        compute_loss_func=lambda *a, **k: squared(*a, **k) * math.nan,
        callbacks=[TrainingGuard()],
    )
    with pytest.raises(RunError, match="step 1: the gradient's norm is nan; its rows are not known"):
        trainer.train()
    assert same(weights(model), first)


def test_a_training_is_the_same_with_it_and_without(tmp_path):
    guarded = trainer_of(tmp_path / "a", [TrainingGuard()])
    plain = trainer_of(tmp_path / "b", [])
    assert guarded.train().training_loss == plain.train().training_loss
    assert same(weights(guarded.model), weights(plain.model))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"when_not_finite": "hope"}, "when_not_finite is 'hope'; allowed: stop, skip"),
        ({"most_skipped": 0}, "most_skipped is 0; allowed: 1 or more"),
        ({"most_zero": 0}, "most_zero is 0; allowed: 1 or more"),
        ({"window": 19}, "window is 19; allowed: 20 or more"),
        ({"dead_after": 0}, "dead_after is 0; allowed: 1 or more"),
        ({"spike": 0}, "spike is 0; allowed: more than 0"),
    ],
)
def test_values_out_of_range(arguments, said):
    with pytest.raises(ValueError, match=said):
        TrainingGuard(**arguments)


def test_a_guard_that_a_recipe_names_takes_the_default_ones_place():
    mine = TrainingGuard(spike=3)
    assert [type(guard) for guard in default_guards([])] == [TrainingGuard, Overfitting]
    assert [type(guard) for guard in default_guards([mine])] == [Overfitting]


# overfitting


class Evals:
    """What the callback sees of a Trainer."""

    def __init__(self, best=False):
        self.load_best_model_at_end, self.global_step = best, 0


def evaluated(callback, losses, training, best=False):
    world = Evals(best)
    for number, (found, loss) in enumerate(zip(losses, training, strict=True)):
        world.global_step = 10 * (number + 1)
        callback.on_log(world, world, None, logs={"loss": loss})
        callback.on_evaluate(world, world, None, metrics={"eval_loss": found})


def test_evaluations_that_get_worse_while_the_training_gets_better_are_told_once(caplog):
    callback = Overfitting(patience=2)
    with caplog.at_level(logging.WARNING):
        evaluated(callback, [0.5, 0.4, 0.41, 0.45, 0.5], [0.6, 0.5, 0.4, 0.3, 0.2])
    assert caplog.text.count("overfitting. ") == 1
    assert (
        "step 40: overfitting. eval_loss is 0.45; it was best, 0.4, at step 20, 2 evaluations ago"
        in caplog.text
    )
    assert "fell from 0.5 to 0.3. Try load_best_model_at_end: true" in caplog.text
    assert callback.report() == {"overfitting": {"best_step": 20, "best_eval_loss": 0.4, "told_at": 40}}
    again = Overfitting(**callback.state()["args"])
    for name, value in callback.state()["attributes"].items():
        setattr(again, name, value)
    assert again.report() == callback.report()


@pytest.mark.parametrize(
    ("losses", "training"),
    [
        ([0.5, 0.4, 0.41, 0.39, 0.4], [0.6, 0.5, 0.4, 0.3, 0.2]),  # better again in between
        ([0.5, 0.4, 0.41, 0.45, 0.5], [0.6, 0.5, 0.5, 0.6, 0.7]),  # the training gets worse, too
    ],
)
def test_other_courses_are_none(losses, training, caplog):
    callback = Overfitting(patience=2)
    evaluated(callback, losses, training)
    assert "overfitting. " not in caplog.text
    assert callback.report() == {}


def test_advice_leaves_out_what_is_set_already(caplog):
    with caplog.at_level(logging.WARNING):
        evaluated(Overfitting(patience=1), [0.4, 0.5], [0.6, 0.5], best=True)
    assert "Try fewer steps" in caplog.text


def test_patience_below_one():
    with pytest.raises(ValueError, match="patience is 0; allowed: 1 or more"):
        Overfitting(patience=0)


# in a run


@pytest.fixture
def files(tmp_path, recipe):
    """A recipe whose row numbers are those of a file; one word in one of its rows is poison."""
    from conftest import sentences, write_csv

    folder = tmp_path / "rows"
    folder.mkdir()
    train, *others = (sentences(count, seed) for count, seed in ((48, 0), (12, 1), (12, 2)))
    for row in (*train, *others[0], *others[1]):
        row["text"] = row["text"].replace("choir", "song")
    train[POISON]["text"] = "the choir " + train[POISON]["text"]
    for name, made in (("train", train), ("validation", others[0]), ("test", others[1])):
        write_csv(folder / f"{name}.csv", made)
    trainer = {"max_steps": 6, "train_sampling_strategy": "sequential", "save_steps": 1, "logging_steps": 1}
    return {**recipe, "data": {"name": str(folder)}, "trainer": {**recipe["trainer"], **trainer}}


@pytest.fixture
def poisonous(monkeypatch, tiny_bert):
    """The word `choir` makes a BERT's hidden states NaN."""
    from transformers import AutoTokenizer, BertModel

    bad = AutoTokenizer.from_pretrained(tiny_bert).convert_tokens_to_ids("choir")
    original = BertModel.forward

    def forward(self, input_ids=None, *args, **kwargs):
        outputs = original(self, input_ids, *args, **kwargs)
        spoiled = (input_ids == bad).any(1)[:, None] & torch.tensor(True)
        for name in ("last_hidden_state", "pooler_output"):
            mask = spoiled if name == "pooler_output" else spoiled[..., None]
            outputs[name] = outputs[name].masked_fill(mask, math.nan)
        return outputs

    monkeypatch.setattr(BertModel, "forward", forward)


def go(values, *overrides):
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.run import run

    return run(Recipe.from_dict(values), *overrides)


def test_a_run_stops_at_the_row_of_the_file_and_keeps_its_checkpoint(files, poisonous, tmp_path):
    from safetensors.torch import load_file

    with pytest.raises(RunError, match=rf"step 3: the loss is nan; training row {POISON}, counted from 0"):
        go(files)
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    kept = load_file(checkpoint / "model.safetensors")
    assert len(kept) > 20
    assert all(value.isfinite().all() for value in kept.values())


def test_a_run_that_skips_says_so_in_its_metrics(files, poisonous):
    files["callbacks"] = [{"name": "training_guard", "when_not_finite": "skip"}]
    files["trainer"] |= {"logging_steps": 2}
    done = go(files)
    assert done.metrics["training"]["guard"] == {"skipped_steps": 1, "skipped_at": [3]}
    assert math.isfinite(done.metrics["training"]["loss"])
    assert math.isfinite(done.metrics["test"]["loss"])


@pytest.mark.parametrize(("method", "labels"), [("semi_supervised", 6), ("self_training", 12)])
def test_other_methods_stop_too(files, poisonous, method, labels):
    files["method"] = {"name": method, "warm_start": "none"}
    files["data"] |= {"labels_per_class": labels}
    del files["trainer"]["train_sampling_strategy"]
    with pytest.raises(RunError, match=r"the loss is nan|the gradient's norm is nan"):
        go(files, "trainer.max_steps=30")


def test_a_language_model_stops_too(files, tiny_llama, monkeypatch):
    from transformers import LlamaModel

    original, seen = LlamaModel.forward, []

    def forward(self, *args, **kwargs):
        outputs = original(self, *args, **kwargs)
        seen.append(self.training)
        if sum(seen) > 3:
            outputs["last_hidden_state"] = outputs["last_hidden_state"] * math.nan
        return outputs

    monkeypatch.setattr(LlamaModel, "forward", forward)
    files |= {"model": {"name": str(tiny_llama)}, "task": {"name": "clm", "block_size": 16}}
    with pytest.raises(RunError, match=r"step [2-4]: the loss is nan"):
        go(files, "trainer.per_device_train_batch_size=2")
