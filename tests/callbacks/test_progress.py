"""What a terminal and a pipe are shown of a training."""

import io
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from _tiny_trainer import make_trainer
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_llm_recipes.callbacks import EMA, Progress, bind
from hf_llm_recipes.callbacks import progress as module
from hf_llm_recipes.callbacks.progress import default_progress
from hf_llm_recipes.recipe import Recipe

STEER = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BARS = {"disable_tqdm": False}


@pytest.fixture
def terminal():
    return Console(force_terminal=True, file=io.StringIO(), width=120, color_system=None)


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), width=80)


def shown(console):
    """All that a terminal was sent, without what steers it."""
    return STEER.sub("", console.file.getvalue())


def with_console(console, **given):
    made = Progress(**given)
    made.console = console
    return made


def test_a_terminal_sees_step_loss_speed_and_scores(tmp_path, terminal):
    callback = with_console(terminal, title="stage 1 of 2")
    trainer = bind(make_trainer(tmp_path, [callback], eval_strategy="steps", eval_steps=1, **BARS))
    trainer.train()
    last = shown(terminal).rstrip().splitlines()[-3:]
    assert re.match(r"stage 1 of 2 ━+ 2/2 0:00:0\d left 0:00:00", last[0])
    assert re.match(r"loss 0, [\d.e+]+ steps/s$", last[1].strip())  # w = 1 after the first step
    assert re.match(r"evaluation at step 2: loss 0$", last[2].strip())
    assert "\x1b[?25h" in terminal.file.getvalue()  # the cursor is shown again


def test_the_trainer_s_own_bar_and_printed_logs_are_gone(tmp_path, pipe, capfd):
    for quiet, theirs in ((False, ProgressCallback), (True, PrinterCallback)):
        callback = with_console(pipe)
        trainer = make_trainer(tmp_path, [callback], disable_tqdm=quiet)
        assert any(type(c) is theirs for c in trainer.callback_handler.callbacks)
        bind(trainer)
        assert not any(type(c) is theirs for c in trainer.callback_handler.callbacks)
        trainer.train()
    written = capfd.readouterr()
    assert "loss" not in written.out + written.err
    assert "it/s" not in written.err


def test_a_pipe_gets_a_line_now_and_then(tmp_path, pipe, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    callback = with_console(pipe, minutes=1)

    class Clock(TrainerCallback):
        """Lets 40 seconds pass in each step."""

        def on_step_begin(self, args, state, control, **kwargs):
            now[0] += 40

    bind(make_trainer(tmp_path, [Clock(), callback], max_steps=4, **BARS)).train()
    # steps end at 40, 80, 120, 160 s: a line at 80, the next at 160, when none is left
    assert pipe.file.getvalue().splitlines() == [
        "training: step 2 of 4, loss 1, 0.025 steps/s, 0:01:20 left",
        "training: step 4 of 4, loss 0, 0.025 steps/s, 0:00:00 left",
    ]


def test_no_lines_at_all(tmp_path, pipe):
    bind(make_trainer(tmp_path, [with_console(pipe, minutes=None)], **BARS)).train()
    bind(make_trainer(tmp_path, [with_console(pipe)], **BARS)).train()  # over within the first minute
    assert pipe.file.getvalue() == ""


def test_a_dumb_terminal_is_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(force_terminal=True, file=io.StringIO(), width=80)
    bind(make_trainer(tmp_path, [with_console(console, minutes=0)], **BARS)).train()
    assert len(console.file.getvalue().splitlines()) == 2
    assert "\x1b" not in console.file.getvalue()


def log_of(trainer, callback, **logs):
    callback.on_log(trainer.args, trainer.state, None, logs=logs)
    return ", ".join(callback._facts.values()).rpartition(", ")[0]


def test_what_the_method_does_is_shown(tmp_path, terminal):
    callback = with_console(terminal)
    trainer = bind(make_trainer(tmp_path, [callback], **BARS))
    trainer.state.max_steps = 10
    callback.on_train_begin(trainer.args, trainer.state, None)
    trainer.state.global_step = 5
    said = log_of(trainer, callback, **{"loss": 0.51234, "unlabeled/kept": 0.427, "unlabeled/weight": 0.8})
    assert said == "loss 0.5123, 43% of the pool's rows kept, λ 0.8"
    trainer.state.global_step = 6
    found = {"loss": 2.0, "throughput/tokens_per_second": 1234.5, "tokens": 9}
    assert log_of(trainer, callback, **found) == "loss 2, 1,234 tokens/s"
    callback._close()


def test_tokens_that_the_trainer_counts(tmp_path, terminal, monkeypatch):
    now = [10.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    callback = with_console(terminal)
    trainer = bind(make_trainer(tmp_path, [callback], **BARS))
    trainer.state.max_steps = 10
    callback.on_train_begin(trainer.args, trainer.state, None)
    now[0], trainer.state.global_step = 14.0, 2
    callback.on_log(trainer.args, trainer.state, None, logs={"loss": 1.0, "tokens": 4000})
    assert list(callback._facts.values()) == ["loss 1", "1,000 tokens/s", "0.5 steps/s"]
    callback._close()


def test_a_round_s_folder_is_its_title(tmp_path, terminal):
    callback = with_console(terminal)
    trainer = bind(make_trainer(tmp_path / "round-2", [callback], **BARS))
    trainer.train()
    assert "round 2 ━" in shown(terminal)


def test_our_log_goes_above_the_display_and_an_error_gives_all_back(tmp_path, monkeypatch):
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stderr", theirs)
    ours = logging.getLogger("hf_llm_recipes")
    handler = logging.StreamHandler()
    monkeypatch.setattr(ours, "handlers", [handler])
    console = Console(force_terminal=True, file=theirs, width=80, color_system=None)
    callback = with_console(console)

    class Fails(TrainerCallback):
        """Says something in the first step and ends the second with an error."""

        def on_step_end(self, args, state, control, **kwargs):
            ours.warning("a sentence")
            if state.global_step == 2:
                raise KeyError("broken")

    with pytest.raises(KeyError):
        bind(make_trainer(tmp_path, [callback, Fails()], **BARS)).train()
    assert sys.stderr is theirs
    assert handler.stream is theirs
    assert "\x1b[?25h" in theirs.getvalue()
    assert [line.strip() for line in shown(console).splitlines()].count("a sentence") == 2
    assert callback._live is None


def test_a_test_split_is_shown_too_and_the_other_weights_of_an_evaluation(tmp_path, terminal):
    callback = with_console(terminal)
    trainer = bind(make_trainer(tmp_path, [callback, EMA()], eval_strategy="steps", eval_steps=1, **BARS))
    trainer.train()
    assert callback._live is None
    trainer.predict(trainer.eval_dataset)
    assert callback._live is None
    trainer.callback_handler.eval_dataloader = [0, 1, 2]
    callback.on_prediction_step(trainer.args, trainer.state, None, eval_dataloader=[0, 1, 2])
    (bar,) = callback._live._bars.tasks
    assert (bar.description, bar.completed, bar.total) == ("judging", 1, 3)
    for _ in range(3):  # the fourth batch belongs to another evaluation
        callback.on_prediction_step(trainer.args, trainer.state, None, eval_dataloader=[0, 1, 2])
    (bar,) = callback._live._bars.tasks
    assert bar.completed == 1
    callback.on_predict(trainer.args, trainer.state, None, {})
    assert callback._live is None


def test_other_processes_show_nothing(tmp_path, terminal):
    callback = with_console(terminal)
    state = SimpleNamespace(is_world_process_zero=False, global_step=0, max_steps=2)
    args = SimpleNamespace(output_dir=str(tmp_path))
    callback.on_train_begin(args, state, None)
    callback.on_step_end(args, state, None)
    callback.on_log(args, state, None, logs={"loss": 1.0})
    callback.on_evaluate(args, state, None, metrics={"eval_loss": 1.0})
    callback.on_train_end(args, state, None)
    assert terminal.file.getvalue() == ""


def test_a_run_has_it_unless_it_wants_none():
    assert [type(c) for c in default_progress([], {})] == [Progress]
    assert default_progress([], {"disable_tqdm": True}) == []
    assert default_progress([Progress()], {}) == []
    assert default_progress([], {}, "stage 1 of 2")[0].title == "stage 1 of 2"


def test_a_run_in_a_pipe_writes_no_bar(recipe, tmp_path):
    del recipe["trainer"]["disable_tqdm"]
    recipe["trainer"] |= {"logging_steps": 1}
    (tmp_path / "r.yaml").write_text(Recipe.from_dict(recipe).dump())
    done = subprocess.run(
        [sys.executable, "-m", "hf_llm_recipes.cli", "run", str(tmp_path / "r.yaml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "{'loss'" not in done.stdout
    assert "4/4" not in done.stderr
    assert "\r" not in done.stderr


@pytest.mark.parametrize("minutes", [-1, -0.5])
def test_values_that_cannot_be(minutes):
    with pytest.raises(ValueError, match=f"minutes is {minutes}; allowed: 0 or more"):
        Progress(minutes=minutes)
