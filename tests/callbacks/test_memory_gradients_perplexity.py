"""Three callbacks that add figures to the log."""

import math
from types import SimpleNamespace

import pytest
import torch
from _tiny_trainer import make_trainer
from torch import nn

from hf_llm_recipes.callbacks import memory
from hf_llm_recipes.callbacks.gradients import Gradients, part_of
from hf_llm_recipes.callbacks.memory import Memory
from hf_llm_recipes.callbacks.perplexity import Perplexity
from hf_llm_recipes.errors import RunError


def logged(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


def test_memory_is_the_peak_until_now(tmp_path, monkeypatch):
    peaks = iter([{"host": 1.5}, {"host": 1.25, "gpu": 3.0}])
    monkeypatch.setattr(memory, "peak_memory_gib", lambda: next(peaks))
    trainer = make_trainer(tmp_path, [Memory()])
    trainer.train()
    first, second = logged(trainer)
    assert first["memory/host_peak_gib"] == 1.5
    assert "memory/gpu_peak_gib" not in first
    assert (second["memory/host_peak_gib"], second["memory/gpu_peak_gib"]) == (1.5, 3.0)


def test_memory_of_this_process(tmp_path):
    trainer = make_trainer(tmp_path, [Memory()])
    trainer.train()
    assert logged(trainer)[0]["memory/host_peak_gib"] > 0.05


def test_a_resumed_training_goes_on_with_the_larger_peak(tmp_path, monkeypatch):
    saved = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    monkeypatch.setattr(memory, "peak_memory_gib", lambda: {"host": 7.0})
    make_trainer(tmp_path, [Memory()], **saved).train()
    monkeypatch.setattr(memory, "peak_memory_gib", lambda: {"host": 2.0})
    trainer = make_trainer(tmp_path, [Memory()], max_steps=3, **saved)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(trainer)[-1]["memory/host_peak_gib"] == 7.0


def test_gradients_of_each_part(tmp_path):
    trainer = make_trainer(tmp_path, [Gradients()])
    trainer.train()
    # w = 0: the gradient of (w - 1)² is -2; then w = 1 and it is 0
    assert [line["gradients/w"] for line in logged(trainer)] == [pytest.approx(2.0), 0.0]


def test_a_part_is_the_norm_of_all_its_tensors():
    model = nn.Sequential()
    model.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    for parameter, value in zip(model.parameters(), (1.0, 2.0, 3.0, None), strict=True):
        parameter.grad = None if value is None else torch.full_like(parameter, value)
    callback = Gradients()
    args, state = SimpleNamespace(logging_first_step=False), SimpleNamespace(global_step=3, logging_steps=2)
    callback.on_pre_optimizer_step(args, state, None, model=model)
    # 4 weights of 1 and 2 of 2: √12;  4 of 3: 6
    assert callback.figures(args, state, {}) == {
        "gradients/layers.0": pytest.approx(math.sqrt(12)),
        "gradients/layers.1": pytest.approx(6.0),
    }
    state.global_step = 4  # step 5 is not logged
    callback.on_pre_optimizer_step(args, state, None, model=model)
    assert callback.figures(args, state, {}) == {}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bert.encoder.layer.3.attention.self.query.weight", "bert.encoder.layer.3"),
        ("base_model.model.model.layers.11.mlp.up_proj.lora_A.default.weight", "model.layers.11"),
        ("bert.embeddings.word_embeddings.weight", "bert.embeddings"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier"),
        ("lm_head.weight", "lm_head"),
        ("w", "w"),
    ],
)
def test_names_of_parts(name, part):
    assert part_of(name) == part


class Speaker(nn.Module):
    def get_output_embeddings(self):
        return nn.Linear(1, 1)


def test_perplexity_is_e_to_the_loss():
    callback = Perplexity()
    callback.on_train_begin(None, None, None, model=Speaker())
    state = SimpleNamespace(global_step=1, log_history=[{"loss": math.log(5), "step": 1}])
    logs = {"loss": math.log(5)}
    callback.on_log(None, state, None, logs=logs)
    assert logs["perplexity"] == pytest.approx(5)
    assert state.log_history[0]["perplexity"] == pytest.approx(5)
    logs = {"eval_loss": 1000.0}
    callback.on_log(None, state, None, logs=logs)
    assert logs["eval_perplexity"] == math.exp(700)
    metrics = {"eval_loss": math.log(2)}
    callback.on_evaluate(None, state, None, metrics=metrics)
    assert metrics["eval_perplexity"] == pytest.approx(2)


def test_a_loss_that_is_none_of_tokens_has_no_perplexity(tmp_path):
    with pytest.raises(RunError, match="the loss of Line is none of tokens"):
        make_trainer(tmp_path, [Perplexity()]).train()
