import os
import signal
import threading

import pytest
from _tiny_trainer import make_trainer
from transformers import TrainerCallback

from hf_llm_recipes.callbacks.graceful_stop import GracefulStop


class Kill(TrainerCallback):
    """Sends signals to this process at the begin of a step."""

    def __init__(self, *numbers, at=0):
        self.numbers, self.at = numbers, at

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal whose handler counts; what stood there before comes back."""
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(number, tmp_path):
    taken = []
    signal.signal(number, lambda *a: taken.append(a[0]))
    mine = signal.getsignal(number)
    stop = GracefulStop()
    trainer = make_trainer(tmp_path, [stop, Kill(number)], max_steps=100)
    trainer.train()
    assert stop.received == number
    assert trainer.state.global_step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert taken == []
    assert signal.getsignal(number) is mine


def test_a_second_signal_is_not_swallowed(number, tmp_path):
    taken = []
    signal.signal(number, lambda *a: taken.append(a[0]))
    stop = GracefulStop()
    make_trainer(tmp_path, [stop, Kill(number, number)], max_steps=100).train()
    assert taken == [number]
    assert stop.received == number


def test_the_second_ctrl_c_is_a_keyboard_interrupt(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        stop = GracefulStop()
        trainer = make_trainer(tmp_path, [stop, Kill(signal.SIGINT, signal.SIGINT)], max_steps=100)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_without_a_signal_gives_the_handlers_back(number, tmp_path):
    handler = lambda *a: None  # noqa: E731
    signal.signal(number, handler)
    stop = GracefulStop()
    trainer = make_trainer(tmp_path, [stop])
    trainer.train()
    assert trainer.state.global_step == 2
    assert stop.received is None
    assert signal.getsignal(number) is handler
    assert list(tmp_path.iterdir()) == []


def test_the_handlers_come_back_after_an_error_too(number, tmp_path):
    class Fail(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise RuntimeError("no")

    before = signal.getsignal(number)
    stop = GracefulStop()
    with pytest.raises(RuntimeError, match="no"):
        make_trainer(tmp_path, [stop, Fail()]).train()
    assert signal.getsignal(number) is not before
    stop.restore()  # as `run` does
    stop.restore()
    assert signal.getsignal(number) is before


def test_a_second_run_forgets_the_first_ones_signal(tmp_path):
    stop = GracefulStop()
    make_trainer(tmp_path, [stop, Kill(signal.SIGTERM)]).train()
    assert stop.received == signal.SIGTERM
    trainer = make_trainer(tmp_path / "again", [stop])
    trainer.train()
    assert stop.received is None
    assert trainer.state.global_step == 2


def test_in_a_thread_it_leaves_the_signals_alone(tmp_path):
    stop, steps = GracefulStop(), []
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def train():
        trainer = make_trainer(tmp_path, [stop])
        trainer.train()
        steps.append(trainer.state.global_step)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert steps == [2]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_that_python_did_not_set_becomes_the_default():
    before = signal.getsignal(signal.SIGTERM)
    stop = GracefulStop()
    stop._before = {signal.SIGTERM: None}  # what signal.signal returns for one
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("at", "evaluations"), [(0, 0), (1, 1)])
def test_the_end_of_an_epoch_that_has_not_come_is_not_run(number, tmp_path, at, evaluations):
    """Two steps are an epoch: a stop within it is not judged, a stop at its end is, and then saved."""
    stop = GracefulStop()
    trainer = make_trainer(
        *(tmp_path, [stop, Kill(number, at=at)]),
        **{"max_steps": 100, "eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"},
    )
    trainer.train()
    assert trainer.state.global_step == at + 1
    assert sum("eval_loss" in line for line in trainer.state.log_history) == evaluations
    assert sum("loss" in line for line in trainer.state.log_history) == evaluations
    assert [p.name for p in tmp_path.iterdir()] == [f"checkpoint-{at + 1}"]
