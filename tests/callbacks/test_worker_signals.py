import multiprocessing
import os
import signal
import time

import pytest
import torch
from _tiny_trainer import make_trainer
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
from hf_llm_recipes.exact_resume import resume_exactly
from hf_llm_recipes.worker_signals import Steady, steady_workers

ROWS = [{"x": torch.tensor([1.0]), "labels": torch.tensor([1.0])}] * 80


class ToAll(TrainerCallback):
    """Sends a signal to this process and its workers, as a terminal does, and lets them take it."""

    def __init__(self, number, event):
        self.number, self.event, self.reached = number, event, 0

    def _send(self):
        for child in multiprocessing.active_children():
            os.kill(child.pid, self.number)
            self.reached += 1
        os.kill(os.getpid(), self.number)
        time.sleep(0.3)

    def on_step_end(self, args, state, control, **kwargs):
        if self.event == "step" and not self.reached:  # behind GracefulStop: one step more is taken
            self._send()

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.event == "evaluation" and not self.reached:
            self._send()


@pytest.mark.parametrize("event", ["step", "evaluation"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_group_leaves_the_batches_and_a_checkpoint(number, event, tmp_path):
    stop, to_all = GracefulStop(), ToAll(number, event)
    evaluations = {"eval_strategy": "steps", "eval_steps": 1} if event == "evaluation" else {}
    trainer = resume_exactly(
        make_trainer(
            tmp_path,
            [stop, to_all],
            max_steps=30,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            gradient_accumulation_steps=8,  # more rows than lie ready
            dataloader_num_workers=2,
            dataloader_prefetch_factor=1,
            **evaluations,
        )
    )
    trainer.train_dataset = trainer.eval_dataset = ROWS
    trainer.train()
    assert to_all.reached >= 2
    assert stop.received == number
    assert trainer.state.global_step < 4
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}" / "model.safetensors").is_file()


def hang(ready):
    Steady(None)(0)
    ready.set()
    while True:
        time.sleep(0.05)


def test_a_worker_that_hangs_ends_at_the_second_signal():
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=hang, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(10)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(0.5)
    assert worker.exitcode is None
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM


def test_the_loaders_own_beginning_of_a_worker_is_kept():
    seen = multiprocessing.get_context("fork").Queue()
    loader = steady_workers(steady_workers(DataLoader(ROWS, num_workers=2, worker_init_fn=seen.put)))
    assert len(list(loader)) == 80
    assert sorted([seen.get(timeout=10), seen.get(timeout=10)]) == [0, 1]
    assert seen.empty()


def test_a_loader_without_workers_stays_as_it_is():
    loader = DataLoader(ROWS)
    assert steady_workers(loader) is loader
    assert loader.worker_init_fn is None
