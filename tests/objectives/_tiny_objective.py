"""Documents, recipes that run in seconds, and what a killed and resumed run must give again."""

import json

import torch
from conftest import sentences, write_csv
from safetensors.torch import load_file

from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

QUIET = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}


def documents_csv(path, documents=24, lines=6, seed=0):
    rows = sentences(documents * lines, seed=seed)
    texts = ["\n".join(row["text"] for row in rows[i * lines : (i + 1) * lines]) for i in range(documents)]
    return write_csv(path, [{"text": text} for text in texts])


def values(model, data, task, out, **trainer):
    return {
        "name": "tiny",
        "output": str(out),
        "model": model,
        "data": {"name": str(data)},
        "task": task,
        "trainer": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            **QUIET,
            **trainer,
        },
    }


def run_of(given, **changes):
    return run(Recipe({**given, **changes}))


def logged_losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def saved_weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_split_makes_no_difference(given, tmp_path, rows=8, tolerance=1e-5):
    """One step on 8 rows at once has the loss of 8 accumulated rows, and gives the same weights."""
    losses, weights = [], []
    for name, batch in (("at-once", rows), ("one-by-one", 1)):
        trainer = {**given["trainer"], "max_steps": 2, "per_device_train_batch_size": batch}
        trainer |= {"gradient_accumulation_steps": rows // batch, "optim": "sgd", "learning_rate": 0.1}
        done = run_of(given, output=str(tmp_path / name), trainer=trainer)
        losses.append(logged_losses(done.path))
        weights.append(saved_weights(done.path))
    torch.testing.assert_close(
        torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=tolerance, atol=tolerance
    )
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-4, atol=1e-5)


def assert_resumes_exactly(given, tmp_path, monkeypatch):
    """A run that is killed in its second epoch and goes on ends with the weights of one that was not."""
    from hf_llm_recipes.callbacks.graceful_stop import GracefulStop
    from hf_llm_recipes.errors import InterruptedRunError

    trainer = {**given["trainer"], "max_steps": 9, "save_strategy": "steps", "save_steps": 100}
    whole = run_of(given, output=str(tmp_path / "whole"), trainer=trainer)

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 7:
            self.received = 15
            control.should_save = control.should_training_stop = True

    cut = {**given, "output": str(tmp_path / "cut"), "trainer": trainer}
    with monkeypatch.context() as patch:
        patch.setattr(GracefulStop, "on_step_end", kill)
        try:
            run_of(cut)
        except InterruptedRunError:
            pass
        else:
            raise AssertionError("the run was not killed")
    resumed = run_of(cut, resume=True)
    assert logged_losses(resumed.path) == logged_losses(whole.path)
    first, second = saved_weights(whole.path), saved_weights(resumed.path)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    return whole
