"""Whole checkpoints: what is named and passed over, what a kill or a full disk leaves, the order."""

import errno
import hashlib
import json
import os

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_llm_recipes import checkpoints, exact_resume
from hf_llm_recipes.checkpoints import MANIFEST, OLD, SIDE, STATE, problem_of, publish, rotate, seal, take_up
from hf_llm_recipes.exact_resume import read_progress, resume_exactly


def make(root, number, *, sealed=True, **state):
    folder = root / f"checkpoint-{number}"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights.bin").write_bytes(b"abc")
    (folder / "optimizer.pt").write_bytes(b"moments")
    (folder / STATE).write_text(json.dumps({"global_step": number, **state}))
    if sealed:
        seal(folder)
        (root / checkpoints.SINCE).write_text("1")
    return folder


def test_the_manifest_names_every_file_with_size_and_hash(tmp_path):
    folder = make(tmp_path, 4)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(files) == {"adapter/weights.bin", "optimizer.pt", STATE}
    # SHA-256 of "abc", FIPS 180-2, appendix B.1
    assert files["adapter/weights.bin"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert files[STATE]["sha256"] == hashlib.sha256((folder / STATE).read_bytes()).hexdigest()
    assert problem_of(folder) is None


SPOILT = {
    "cut": (lambda f: (f / "adapter/weights.bin").write_bytes(b"ab"), "weights.bin has 2 of 3 bytes"),
    "flipped": (
        lambda f: (f / "adapter/weights.bin").write_bytes(b"abd"),
        "has other bytes than were written",
    ),
    "gone": (lambda f: (f / "adapter/weights.bin").unlink(), "weights.bin is missing"),
    "stateless": (lambda f: (f / STATE).unlink(), "trainer_state.json is missing"),
    "unlisted": (lambda f: (f / MANIFEST).unlink(), "manifest.json is missing"),
    "cut list": (lambda f: (f / MANIFEST).write_text('{"files": {'), "manifest.json cannot be read"),
    "odd list": (lambda f: (f / MANIFEST).write_text('{"files": {"a": 1}}'), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_checkpoint_is_named_and_passed_over_for_the_last_whole_one(tmp_path, how):
    whole, newest = make(tmp_path, 9), make(tmp_path, 10)
    spoil, reason = SPOILT[how]
    spoil(newest)
    found = take_up(tmp_path)
    assert found.path == whole
    assert len(found.said) == 1
    assert found.said[0].startswith("checkpoint-10 is not whole and is passed over: ")
    assert reason in found.said[0]


def test_where_none_is_whole_it_says_so(tmp_path):
    for number in (2, 10):
        (make(tmp_path, number) / STATE).unlink()
    found = take_up(tmp_path)
    assert found.path is None
    assert [said.split()[0] for said in found.said] == ["checkpoint-10", "checkpoint-2", "no"]
    assert take_up(tmp_path / "nothing") == checkpoints.Found(None, [])


def test_one_of_an_earlier_version_is_taken_with_a_note(tmp_path):
    old = make(tmp_path, 4, sealed=False)
    found = take_up(tmp_path)
    assert found.path == old
    assert found.said == ["checkpoint-4 has no manifest.json: taken as it is, from an earlier version"]
    (tmp_path / checkpoints.SINCE).write_text("5")  # this version came at step 5
    assert take_up(tmp_path).path == old
    (tmp_path / checkpoints.SINCE).write_text("4")
    assert take_up(tmp_path).path is None


def test_weights_alone_are_gone_on_from_but_not_in_silence(tmp_path):
    folder = make(tmp_path, 4, sealed=False)
    (folder / "optimizer.pt").unlink()
    seal(folder)
    found = take_up(tmp_path)
    assert found.path == folder
    assert found.said == [
        "checkpoint-4 has no state of the optimizer (`trainer.save_only_model`): "
        "the training goes on, but to other bits"
    ]


def test_a_checkpoint_whose_best_is_lost_is_no_way_on_for_a_training_that_loads_it(tmp_path):
    best = make(tmp_path, 2)
    make(tmp_path, 4, best_model_checkpoint="moved/from/checkpoint-2")
    assert take_up(tmp_path, needs_best=True).path == tmp_path / "checkpoint-4"
    (best / "adapter" / "weights.bin").unlink()
    assert take_up(tmp_path).path == tmp_path / "checkpoint-4"
    found = take_up(tmp_path, needs_best=True)
    assert found.path is None
    assert "its best checkpoint is checkpoint-2: weights.bin is missing" in found.said[0]


def test_later_rounds_come_first(tmp_path):
    make(tmp_path / "round-1", 50)
    second = make(tmp_path / "round-2", 4)
    assert take_up(tmp_path).path == second
    (second / STATE).unlink()
    found = take_up(tmp_path)
    assert found.path == tmp_path / "round-1" / "checkpoint-50"
    assert found.said[0].startswith("round-2/checkpoint-4 is not whole")


def test_what_a_kill_leaves_is_cleared(tmp_path):
    make(tmp_path / SIDE, 6)  # killed while it was written
    make(tmp_path, 2)
    os.rename(make(tmp_path, 4), tmp_path / f".checkpoint-4{OLD}")  # killed between two renames
    os.rename(make(tmp_path, 3), tmp_path / f".checkpoint-2{OLD}")  # killed behind them
    assert take_up(tmp_path).path == tmp_path / "checkpoint-4"
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [checkpoints.SINCE, "checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_of_the_same_number_gives_way(tmp_path):
    make(tmp_path, 4)
    side = make(tmp_path / SIDE, 4)
    (side / "new").write_text("x")
    publish(side, tmp_path / "checkpoint-4")
    assert (tmp_path / "checkpoint-4" / "new").exists()
    assert not list(tmp_path.glob(f".checkpoint*{OLD}"))


@pytest.mark.parametrize(
    ("numbers", "newest", "limit", "best", "left"),
    [
        ([2, 4, 6], 6, 2, None, [4, 6]),
        ([2, 4, 6], 6, None, None, [2, 4, 6]),
        ([2, 4, 6], 6, 1, None, [6]),
        ([2, 4, 6], 6, 1, "a/checkpoint-2", [2, 6]),
        ([2, 4, 6], 6, 2, "a/checkpoint-2", [2, 6]),
        ([2, 8, 9, 5], 5, 3, None, [2, 5]),  # 8 and 9 were not gone on from
        ([8, 10, 9], 10, 2, None, [9, 10]),
    ],
)
def test_which_checkpoints_stay(tmp_path, numbers, newest, limit, best, left):
    for number in numbers:
        make(tmp_path, number)
    rotate(tmp_path / f"checkpoint-{newest}", limit, best)
    assert sorted(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*")) == left
    assert not (tmp_path / SIDE).exists()


# -- a Trainer ---------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """y = w x with a random factor, so that the random state matters."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        predicted = self.w * x * (1 + 0.1 * torch.rand(1) if self.training else 1)
        return {"loss": ((predicted - labels) ** 2).mean(), "logits": predicted}


class Stop(TrainerCallback):
    """A power cut behind the checkpoint of one step."""

    def __init__(self, at):
        self.at = at

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise KeyboardInterrupt


ROWS = [{"x": torch.tensor([float(i)]), "labels": torch.tensor([2.0 * i])} for i in range(1, 9)]


def trainer_of(folder, *callbacks, rows=ROWS, **arguments):
    given = {
        "max_steps": 10,
        "per_device_train_batch_size": 2,
        "logging_steps": 3,
        "save_steps": 2,
        "learning_rate": 0.002,
        "max_grad_norm": 0,  # clipped steps would all be as long
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    torch.manual_seed(0)
    made = Trainer(
        model=Noisy(),
        args=TrainingArguments(output_dir=str(folder), **given),
        train_dataset=rows,
        eval_dataset=ROWS,
        callbacks=list(callbacks),
    )
    return resume_exactly(made)


def history(trainer):
    timed = ("runtime", "per_second", "flos")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in trainer.state.log_history]


CASES = {
    "between two logs": ({}, 4),
    "at the end of an epoch that is judged there": ({"eval_strategy": "epoch"}, 4),
    "within an epoch": ({"eval_strategy": "steps", "eval_steps": 2}, 6),
    "when all is done": ({}, 10),
    "with an evaluation before the first step": ({"eval_on_start": True, "eval_strategy": "epoch"}, 4),
    "with the best at the end": (
        {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss",
        },
        8,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_goes_on_to_the_same_bits_and_lines(tmp_path, case):
    arguments, at = CASES[case]
    whole = trainer_of(tmp_path / "whole", **arguments)
    result = whole.train()
    cut = trainer_of(tmp_path / "cut", Stop(at), **arguments)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    found = take_up(tmp_path / "cut")
    assert found.path.name == f"checkpoint-{at}"
    again = trainer_of(tmp_path / "cut", **arguments)
    resumed = again.train(resume_from_checkpoint=str(found.path))
    assert torch.equal(again.model.w, whole.model.w)
    assert history(again) == history(whole)
    assert resumed.training_loss == result.training_loss
    assert again.state.global_step == 10


@pytest.mark.parametrize("at", [4, 6, 8])
def test_a_stream_goes_on_within_its_second_epoch(tmp_path, at):
    """Four steps are an epoch; another order of rows each."""
    plain = [{"x": [float(i)], "labels": [2.0 * i]} for i in range(1, 9)]

    def rows():
        return Dataset.from_list(plain).to_iterable_dataset().shuffle(seed=0, buffer_size=8)

    whole = trainer_of(tmp_path / "whole", rows=rows())
    whole.train()
    cut = trainer_of(tmp_path / "cut", Stop(at), rows=rows())
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = trainer_of(tmp_path / "cut", rows=rows())
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{at}"))
    assert torch.equal(again.model.w, whole.model.w)
    assert history(again) == history(whole)


def test_a_moved_training_finds_its_best_beside_the_others(tmp_path):
    arguments = CASES["with the best at the end"][0]
    trainer_of(tmp_path / "a", Stop(4), **arguments)
    cut = trainer_of(tmp_path / "a", Stop(4), **arguments)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    os.rename(tmp_path / "a", tmp_path / "b")
    again = trainer_of(tmp_path / "b", **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    whole = trainer_of(tmp_path / "whole", **arguments)
    whole.train()
    assert torch.equal(again.model.w, whole.model.w)
    assert again.state.best_model_checkpoint.startswith(str(tmp_path / "b"))


def test_the_best_checkpoint_bears_its_last_name(tmp_path):
    trainer = trainer_of(tmp_path, **CASES["with the best at the end"][0])
    trainer.train()
    for folder in tmp_path.glob("checkpoint-*"):
        best = json.loads((folder / STATE).read_text())["best_model_checkpoint"]
        assert SIDE not in best
        assert best.startswith(f"{tmp_path}/checkpoint-")
    assert problem_of(folder) is None


def test_a_full_disk_leaves_the_last_checkpoint_and_no_side_folder(tmp_path, monkeypatch):
    trainer, real = trainer_of(tmp_path), torch.save

    def full(values, path, **named):
        if trainer.state.global_step == 4 and str(path).endswith("optimizer.pt"):
            real(values, path)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(values, path, **named)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoints.SINCE, "checkpoint-2"]
    monkeypatch.undo()
    again = trainer_of(tmp_path)
    again.train(resume_from_checkpoint=str(take_up(tmp_path).path))
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    assert torch.equal(again.model.w, whole.model.w)


def test_an_older_one_goes_only_when_the_new_one_has_its_name(tmp_path, monkeypatch):
    seen, real = [], checkpoints.publish

    def look(side, target):
        seen.append(sorted(p.name for p in tmp_path.glob("checkpoint-*")))
        real(side, target)

    monkeypatch.setattr(exact_resume.checkpoints, "publish", look)
    trainer_of(tmp_path, save_total_limit=1).train()
    assert seen == [[], *([f"checkpoint-{n}"] for n in (2, 4, 6, 8))]


def test_what_is_summed_up_is_in_the_checkpoint(tmp_path):
    trainer_of(tmp_path).train()
    progress = read_progress(tmp_path / "checkpoint-8")
    assert progress["sums"]["_globalstep_last_logged"] == 6
    assert not progress["over"]
    assert (progress["epoch"], progress["steps_in_epoch"]) == (2, 0)  # four steps an epoch
    assert read_progress(tmp_path / "checkpoint-10")["over"]
    assert read_progress(None) == {}


def test_its_class_keeps_its_name_and_is_changed_once(tmp_path):
    trainer = trainer_of(tmp_path)
    assert type(trainer).__name__ == "Trainer"
    assert type(resume_exactly(trainer)) is type(trainer)
