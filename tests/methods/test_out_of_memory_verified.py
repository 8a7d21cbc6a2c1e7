"""Runs that were out of memory are verified as they ran; with dropout, whose draws hang on the cut."""

import functools
import json

import pytest
import torch
from transformers import BertModel

from hf_llm_recipes import out_of_memory
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.verifying import verify


@pytest.fixture
def scarce(monkeypatch):
    """Plants training forwards, counted over all tries, from which one with so many rows raises once."""
    original, seen = BertModel.forward, {"forwards": 0}

    def plant(*planted):
        left = list(planted)

        @functools.wraps(original)
        def forward(self, *args, **kwargs):
            seen["forwards"] += self.training
            rows = len(kwargs.get("input_ids", args[0] if args else None))
            if left and self.training and seen["forwards"] >= left[0][0] and rows >= left[0][1]:
                del left[0]
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(self, *args, **kwargs)

        seen["forwards"] = 0
        monkeypatch.setattr(BertModel, "forward", forward)

    return plant


def kept(done):
    return json.loads((done.path / "smaller_batch.json").read_text())


def halved(step, batch):
    return {
        "after_step": step,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 8 // batch,
    }


@pytest.fixture
def logged(recipe):
    """A recipe that logs each step, evaluates each third and saves each second."""
    recipe["trainer"] |= {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 8}
    recipe["trainer"] |= {"save_strategy": "steps", "save_steps": 2}
    return recipe


def test_one_that_began_again_from_the_start(logged, scarce):
    scarce((2, 8))
    done = run(Recipe.from_dict(logged), "trainer.save_strategy=no")
    assert kept(done) == [halved(0, 4)]
    verdict = verify(done.path, steps=4)
    assert str(verdict) == (
        "the same bits: 5 logged lines of the first 4 steps\n  as the run, which was out of memory: after "
        "step 0 per_device_train_batch_size 4 and gradient_accumulation_steps 2"
    )


def test_each_step_has_the_batch_that_it_had(logged, scarce):
    # forwards 1 to 5 are steps 1 to 5; in step 6 on from checkpoint-4, two a step: the 11th, in step 7, on
    # from checkpoint-6, four a step
    scarce((6, 8), (11, 4))
    done = run(Recipe.from_dict(logged))
    assert kept(done) == [halved(4, 4), halved(6, 2)]
    before = sorted(str(p) for p in done.path.rglob("*"))
    verdict = verify(done.path, steps=8)
    assert verdict.same, str(verdict)
    assert verdict.compared == 11  # eight losses, evaluations at 3, 6 and the end
    assert [one[:12] for one in verdict.smaller] == ["after step 4", "after step 6"]
    assert sorted(str(p) for p in done.path.rglob("*")) == before

    scarce((7, 4))  # this time the memory goes out in step 6, on from checkpoint-4 with another batch
    again = verify(done.path, steps=6)
    assert [one[:12] for one in again.smaller] == ["after step 4"]
    assert [line.split(",")[0] for line in again.differences] == ["step 5", "step 6", "step 6"]
    assert again.surroundings[:1] == [
        "this try was out of memory, too: after step 4 per_device_train_batch_size 2 and "
        "gradient_accumulation_steps 4"
    ]


def test_where_it_went_on_is_a_step_of_the_whole_training(tmp_path):
    until = out_of_memory._steps_until
    assert until(None) == 0
    assert until(tmp_path / "checkpoint-40") == 40
    for number, steps in ((0, 5), (1, 7)):
        (tmp_path / f"round-{number}").mkdir()
        (tmp_path / f"round-{number}" / "round.json").write_text(json.dumps({"steps": steps}))
    assert until(tmp_path / "round-2" / "checkpoint-3") == 15


def test_steps_that_are_taken_anew_lose_their_sizes():
    one, two = halved(4, 4), halved(8, 2)
    assert out_of_memory._noted([], 4, out_of_memory.sizes_of([one])) == [one]
    assert out_of_memory._noted([one], 8, out_of_memory.sizes_of([two])) == [one, two]
    assert out_of_memory._noted([one, two], 4, out_of_memory.sizes_of([two])) == [halved(4, 2)]
    assert out_of_memory.sizes_of([]) == {}


@pytest.mark.parametrize(
    "text", ["{", "[4]", "[]", '[{"after_step": 4}]', '[{"per_device_eval_batch_size": 2}]']
)
def test_a_damaged_record_is_told_by_verify(recipe, text):
    done = run(Recipe.from_dict(recipe), "trainer.max_steps=1", "trainer.logging_steps=1")
    (done.path / "smaller_batch.json").write_text(text)
    with pytest.raises(RunError, match=r"smaller_batch\.json: tells no batch sizes: "):
        verify(done.path)
