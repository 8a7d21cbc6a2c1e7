"""Batches that do not fit: a forward of more than so many rows raises what torch raises."""

import functools
import json
import shutil

import pytest
import torch
from conftest import sentences, write_csv
from transformers import BertModel

from hf_llm_recipes.errors import RunError
from hf_llm_recipes.probing import out_of_memory
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.fixture
def small(monkeypatch):
    """Sets how many rows a forward may have, and from which training forward on."""
    original, seen = BertModel.forward, {"forwards": 0, "raised": 0}

    def limit(rows, *, after=0, error=CUDA, evaluating=False, times=99):
        @functools.wraps(original)
        def forward(self, *args, **kwargs):
            found = kwargs.get("input_ids", args[0] if args else None)
            seen["forwards"] += self.training
            judged = self.training != evaluating and seen["forwards"] > after and seen["raised"] < times
            if judged and len(found) > rows:
                seen["raised"] += 1
                raise type(error)(*error.args)  # a new one, without the traces of others
            return original(self, *args, **kwargs)

        monkeypatch.setattr(BertModel, "forward", forward)

    return limit


@pytest.fixture
def values(tiny_bert, tmp_path):
    """A recipe without dropout on 70 training rows, which 8 does not divide."""
    model = tmp_path / "bert"
    shutil.copytree(tiny_bert, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, count, seed in (("train", 70, 0), ("validation", 12, 1), ("test", 12, 2)):
        write_csv(folder / f"{name}.csv", sentences(count, seed))
    return {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "model": {"name": str(model)},
        "data": {"name": str(folder)},
        "task": {"name": "text_classification"},
        "trainer": {
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        },
    }


def go(values, *overrides):
    done = run(Recipe.from_dict(values), *overrides)
    lines = [json.loads(line) for line in (done.path / "log.jsonl").read_text().splitlines()]
    return done, [line["loss"] for line in lines if "loss" in line]


def notes(done):
    return "\n".join(json.loads((done.path / "environment.json").read_text())["notes"])


def weights(done):
    return (done.path / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("order", "error"), [("random", CUDA), ("group_by_length", CPU)])
def test_it_is_the_run_that_had_the_small_batch_from_the_start(values, small, tmp_path, order, error):
    chosen = f"trainer.train_sampling_strategy={order}"
    _, large_losses = go(values, chosen, f"output={tmp_path / 'large'}")
    asked = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4"]
    there, there_losses = go(values, chosen, *asked, f"output={tmp_path / 'there'}")
    small(2, error=error)
    got, losses = go(values, chosen)
    assert losses == there_losses
    assert weights(got) == weights(there)
    assert losses == pytest.approx(large_losses, rel=1e-4)  # nine steps an epoch, the ninth of six rows
    assert len(losses) == 12
    said = notes(got)
    assert "out of memory in step 1 (training: " in said
    assert "from the start with per_device_train_batch_size 4 and gradient_accumulation_steps 2" in said
    assert "from the start with per_device_train_batch_size 2 and gradient_accumulation_steps 4" in said
    assert "each step has the same rows and the same loss" in said
    assert "per_device_train_batch_size: 8" in (got.path / "recipe.yaml").read_text()


def test_it_goes_on_from_the_last_checkpoint(values, small, tmp_path):
    saving = {**values, "trainer": {**values["trainer"], "save_strategy": "steps", "save_steps": 2}}
    _, large_losses = go(saving, f"output={tmp_path / 'large'}")
    small(4, after=5)
    got, losses = go(saving)
    assert "out of memory in step 6 (training" in notes(got)
    assert "going on from checkpoint-4 with per_device_train_batch_size 4" in notes(got)
    assert losses == pytest.approx(large_losses, rel=1e-4)


def test_an_odd_batch_is_cut_into_equal_parts(values, small):
    small(2)
    got, _ = go(values, "trainer.per_device_train_batch_size=6", "trainer.max_steps=2")
    assert "with per_device_train_batch_size 3 and gradient_accumulation_steps 2" in notes(got)
    assert "with per_device_train_batch_size 1 and gradient_accumulation_steps 6" in notes(got)


def test_one_row_that_does_not_fit_says_what_to_try(values, small, tmp_path):
    small(0)
    with pytest.raises(
        RunError, match=r"out of memory \(CUDA out of memory.*\) with one row at a time\n  do: a sma"
    ):
        go(values, "trainer.per_device_train_batch_size=2")
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_does_not_fit_gets_smaller_batches_of_its_own(values, small):
    small(4, evaluating=True, times=1)
    evaluated = [
        "trainer.eval_strategy=steps",
        "trainer.eval_steps=6",
        "trainer.per_device_eval_batch_size=8",
    ]
    got, losses = go(values, *evaluated)
    assert "out of memory in step 7 (evaluation: " in notes(got)
    assert "from the start with per_device_eval_batch_size 4" in notes(got)
    assert len(losses) == 12


def test_a_loss_that_compares_rows_is_not_cut(values, small, monkeypatch):
    from hf_llm_recipes.tasks.text_classification import TextClassification

    monkeypatch.setattr(TextClassification, "compares_rows", True)
    small(4)
    with pytest.raises(RunError, match="the loss compares the rows of a batch, so that it cannot be cut"):
        go(values)


def test_other_errors_are_left_alone(values, small):
    small(4, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        go(values)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (CUDA, True),
        (CPU, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: invalid device"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, wanted):
    assert out_of_memory(error) is wanted
