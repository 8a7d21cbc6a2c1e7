"""Checkpoints that go to a branch on a server on loopback while a plain Trainer trains."""

import logging

import pytest
from _hub_server import OTHER, WRITE, serving
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hf_llm_recipes.callbacks.push import Push
from hf_llm_recipes.errors import RunError


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving(tmp_path / "blobs") as one:
        monkeypatch.setattr(constants, "ENDPOINT", one.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield one


@pytest.fixture
def train(tiny_bert, tmp_path, caplog, monkeypatch):
    """Trains with a checkpoint a step; returns what was said."""

    def go(callback, resume=None, **arguments):
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
        rows = [{**tokenizer("the ball"), "labels": i % 2} for i in range(4)]
        given = {"max_steps": 4, "save_steps": 1, "per_device_train_batch_size": 2, "report_to": "none"}
        given |= {"use_cpu": True, "disable_tqdm": True, "restore_callback_states_from_checkpoint": True}
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(tiny_bert),
            args=TrainingArguments(output_dir=str(tmp_path / "out"), **given, **arguments),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        with caplog.at_level(logging.INFO, logger="hf_llm_recipes"):
            trainer.train(resume_from_checkpoint=resume)
        kept = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Push))
        kept.seen = trainer.state.log_history
        return kept, caplog.text

    monkeypatch.setattr(logging.getLogger("hf_llm_recipes"), "propagate", True)
    return go


def test_every_second_checkpoint_goes_to_its_branch_and_loads_from_there(server, train, tmp_path):
    callback, said = train(Push("tiny", every=2))
    one = server.repositories["tester/tiny"]
    assert one.private
    assert one.messages == ["initial commit", "step 2", "step 4"]
    assert server.files("tester/tiny") == {}  # the main branch is left to the finished run
    sent = server.files("tester/tiny", "checkpoints")
    assert set(sent) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sent["model.safetensors"] == (tmp_path / "out" / "checkpoint-4" / "model.safetensors").read_bytes()
    assert f"checkpoint-4 is at {server.url}/tester/tiny/tree/checkpoints" in said
    assert (callback.saves, callback.pushes) == (4, 2)


def test_a_resumed_training_goes_on_counting(server, train, tmp_path):
    train(Push("tiny", every=3))  # at step 3
    callback, _ = train(Push("tiny", every=3), resume=str(tmp_path / "out" / "checkpoint-2"))
    assert (callback.saves, callback.every, callback.pushes) == (4, 3, 1)  # from scratch: 2 of 2 and not 3
    assert server.repositories["tester/tiny"].messages[1:] == ["step 3"]  # the same bits: no second commit


def test_only_the_best_so_far(server, train):
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    callback, _ = train(Push("tiny", best=True), **arguments, learning_rate=0.3)  # too much: it gets worse
    losses = [line["eval_loss"] for line in callback.seen if "eval_loss" in line]
    better = [i + 1 for i, loss in enumerate(losses) if loss < min(losses[:i], default=float("inf"))]
    assert 0 < len(better) < len(losses) == 4
    assert server.repositories["tester/tiny"].messages[1:] == [f"step {step}" for step in better]
    with pytest.raises(
        RunError, match=r"nothing says what is best\n  do: set `trainer.metric_for_best_model`"
    ):
        train(Push("tiny", best=True))


def test_a_push_that_fails_is_told_and_the_training_goes_on(server, train):
    server.refuse = {"/commit/": 500}
    callback, said = train(Push("tiny", every=2))
    assert "checkpoint-2 was not pushed: tester/tiny: the Hub answers 500" in said
    assert (callback.saves, callback.pushes) == (4, 0)


def test_without_a_network_too(server, train, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    callback, said = train(Push("tiny", every=4))
    assert "checkpoints are not pushed for now: http://127.0.0.1:9: the Hub cannot be reached" in said
    assert "checkpoint-4 was not pushed" in said
    assert callback.saves == 4


def test_a_secret_in_a_checkpoint_stays_here(server, train, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "hidden_dropout_prob")  # a key of its config.json
    _, said = train(Push("tiny", every=4))
    assert "was not pushed: config.json:" in said
    assert "holds the value of the variable A_TOKEN" in said
    assert server.repositories["tester/tiny"].messages == ["initial commit"]


def test_what_cannot_work_is_told_before_the_training(server, train, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="every is 0; allowed: 1 or more"):
        Push("tiny", every=0)
    with pytest.raises(ValueError, match="revision is main, where the finished run goes"):
        Push("tiny", revision="main")
    with pytest.raises(RunError, match="is no name of a repository"):
        Push("a/b/c")
    monkeypatch.setenv("HF_TOKEN", OTHER)
    with pytest.raises(RunError, match="this token may not write there"):
        train(Push("tester/tiny"))
    assert not (tmp_path / "out" / "checkpoint-1").exists()
