import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_llm_recipes.callbacks import throughput
from hf_llm_recipes.callbacks._figures import Figures, ahead_of_trackers
from hf_llm_recipes.callbacks.throughput import Throughput, flops_per_token, matrix_product_flops


class Words(nn.Module):
    """A table of 10 x 4 that is looked up and a matrix of 4 x 3."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask=None, position_ids=None, labels=None):
        logits = self.head(self.table(input_ids)).mean(1)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rows(packed=False):
    ids = {"input_ids": torch.tensor([1, 2, 3, 0]), "labels": torch.tensor(1)}
    if packed:  # two sequences of two
        return [{**ids, "position_ids": torch.tensor([0, 1, 0, 1])}] * 8
    return [{**ids, "attention_mask": torch.tensor([1, 1, 1, 0])}] * 8


def make_trainer(folder, callback, data, **arguments):
    given = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 2, **arguments}
    given = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", **given}
    return Trainer(
        model=Words(),
        args=TrainingArguments(output_dir=str(folder), **given),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[callback],
    )


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is half a second after the one before; a matrix product makes 1e6 a second."""
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 2))
    monkeypatch.setattr(throughput, "matrix_product_flops", lambda device, dtype: 1e6)


def logged(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_figures_of_a_real_run(tmp_path, clock):
    trainer = make_trainer(tmp_path, Throughput(), rows())
    trainer.train()
    # Two steps of half a second a log, of two rows with three of four places filled: 12 tokens in a second.
    # The matrix has 12 weights: 2 + 2 operations for each, 2 for the trained: 72 a token.
    expected = {
        "throughput/samples_per_second": 4.0,
        "throughput/tokens_per_second": 12.0,
        "throughput/padding_share": 0.25,
        "throughput/mfu": pytest.approx(12 * 72 / 1e6),
    }
    for line, total in zip(logged(trainer), (12, 24), strict=True):
        assert expected.items() <= line.items()
        assert line["throughput/tokens_total"] == total
    assert not trainer.model._forward_pre_hooks


def test_packed_rows_are_counted_by_their_beginnings(tmp_path, clock):
    trainer = make_trainer(tmp_path, Throughput(), rows(packed=True))
    trainer.train()
    line = logged(trainer)[0]
    assert line["throughput/samples_per_second"] == 8.0
    assert line["throughput/tokens_per_second"] == 16.0
    assert line["throughput/padding_share"] == 0.0


def test_accumulated_batches_are_one_step(tmp_path, clock):
    trainer = make_trainer(
        tmp_path, Throughput(), rows(), gradient_accumulation_steps=2, max_steps=2, logging_steps=1
    )
    trainer.train()
    assert [line["throughput/tokens_per_second"] for line in logged(trainer)] == [24.0, 24.0]


def test_a_resumed_run_goes_on_counting(tmp_path, clock):
    saved = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    make_trainer(tmp_path, Throughput(), rows(), max_steps=2, **saved).train()
    trainer = make_trainer(tmp_path, Throughput(), rows(), **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(trainer)[-1]["throughput/tokens_total"] == 24


def test_a_checkpoint_between_two_logs_keeps_the_count(tmp_path, clock):
    saved = {"save_strategy": "steps", "save_steps": 1, "restore_callback_states_from_checkpoint": True}
    make_trainer(tmp_path, Throughput(), rows(), max_steps=1, **saved).train()
    trainer = make_trainer(tmp_path, Throughput(), rows(), max_steps=2, **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert logged(trainer)[-1]["throughput/tokens_total"] == 12


def test_what_a_model_computes_without_training_does_not_count(tmp_path, clock):
    callback = Throughput()
    trainer = make_trainer(tmp_path, callback, rows(), eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert logged(trainer)[-1]["throughput/tokens_total"] == 24


def test_operations_of_a_step():
    model = Words()
    assert flops_per_token(model) == 6 * 12
    model.head.weight.requires_grad_(False)
    assert flops_per_token(model) == 4 * 12  # forward and backward through it, none to it
    model.table.weight.requires_grad_(False)
    model.head.weight.requires_grad_(True)
    assert flops_per_token(model) == 4 * 12  # forward, and backward to it: below it nothing is trained
    model.table.weight.requires_grad_(True)
    model.get_output_embeddings = lambda: model.table  # tied: looked up and, above all else, multiplied
    assert flops_per_token(model) == 6 * 12 + 6 * 40


def test_a_matrix_product_is_timed_without_drawing(monkeypatch):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = matrix_product_flops(torch.device("cpu"), torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    assert found > 1e8
    ticks = itertools.count()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert matrix_product_flops(torch.device("cpu"), torch.float32) == 2 * 1024**3


def test_figures_come_before_the_trackers(tmp_path, clock):
    seen = []

    class Tracker(throughput.Figures.__mro__[1]):  # a plain TrainerCallback
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append("throughput/mfu" in logs)

    for order in (lambda trainer: trainer, ahead_of_trackers):
        trainer = make_trainer(tmp_path, Tracker(), rows(), max_steps=2)
        trainer.add_callback(Throughput())
        order(trainer).train()
    assert seen == [False, False, True, False]  # of each run a log with the loss, and the summary
    assert isinstance(trainer.callback_handler.callbacks[0], Figures)
