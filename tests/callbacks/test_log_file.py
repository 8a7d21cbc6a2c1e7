import json
from types import SimpleNamespace

import pytest
from _tiny_trainer import make_trainer

from hf_llm_recipes.callbacks.log_file import LogFile


def state(step, first=True):
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_log_of_a_real_run(tmp_path):
    path = tmp_path / "log.jsonl"
    make_trainer(tmp_path / "run", [LogFile(str(path))]).train()
    first, second, last = read(path)
    # w = 0: loss 1, gradient -2, so w = 1 and the loss is 0
    assert (first["step"], first["loss"], first["grad_norm"]) == (1, 1.0, pytest.approx(2.0))
    assert (second["step"], second["loss"]) == (2, 0.0)
    assert (last["step"], last["train_loss"]) == (2, 0.5)
    assert first["time"] <= second["time"] <= last["time"]


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")]
)
def test_what_is_no_number_is_written_as_text(tmp_path, value, text):
    log = LogFile(str(tmp_path / "log.jsonl"))
    log.on_log(None, state(3), None, logs={"loss": value, "epoch": 0.5})
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 1
    line = read(tmp_path / "log.jsonl")[0]
    assert (line["step"], line["loss"], line["epoch"]) == (3, text, 0.5)


def test_a_resumed_run_takes_out_what_comes_after_its_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "loss": 0.')  # killed while writing
    log = LogFile(str(path))
    log.on_train_begin(None, state(2), None)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    log.on_log(None, state(3), None, logs={"loss": 1.0})
    assert [line["step"] for line in read(path)] == [1, 2, 3]


def test_a_checkpoint_tells_which_lines_it_has_seen(tmp_path):
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path))
    assert log.facts() == {"lines": 0}
    path.write_text('{"step": 2, "text": "one\u2028line"}\n{"step": 2}\n')
    assert log.facts() == {"lines": 2}
    with path.open("a") as file:
        file.write('{"step": 2, "train_loss": 1.0}\n{"st')  # behind the checkpoint of step 2
    again = LogFile(str(path))
    again.take_up({"lines": 2})
    again.on_train_begin(None, state(2), None)
    assert path.read_text() == '{"step": 2, "text": "one\u2028line"}\n{"step": 2}\n'
    again.on_train_begin(None, state(0), None)  # another training
    assert path.read_text() == ""


def test_a_torn_last_line_is_taken_out_and_the_next_begins_anew(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st')
    log = LogFile(str(path))
    log.on_train_begin(None, state(7), None)
    log.on_log(None, state(8), None, logs={"loss": 1.0})
    assert [line["step"] for line in read(path)] == [1, 8]


def test_a_run_from_the_start_empties_the_file(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n')
    LogFile(str(path)).on_train_begin(None, state(0), None)
    assert path.read_text() == ""


def test_other_processes_and_empty_logs_write_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path))
    log.on_train_begin(None, state(0, first=False), None)
    log.on_log(None, state(1, first=False), None, logs={"loss": 1.0})
    log.on_log(None, state(1), None, logs={})
    log.on_log(None, state(1), None)
    assert not path.exists()
