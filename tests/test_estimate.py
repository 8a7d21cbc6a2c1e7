import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hf_llm_recipes import probing
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.estimate import (
    Estimate,
    Part,
    _parts_here,
    beside,
    buffer_bytes,
    estimate_run,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import _Runner, estimate, plan, run

# of conftest's tiny_bert: 5 special tokens, 10 fillers and 18 topic words
WORDS, WIDTH, INNER, LAYERS, PLACES, CLASSES = 33, 32, 64, 2, 32, 3


def weights_of():
    """The weights of the tiny BERT with its head, by hand."""
    embeddings = (WORDS + PLACES + 2) * WIDTH + 2 * WIDTH
    attention = 4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH
    feed_forward = WIDTH * INNER + INNER + INNER * WIDTH + WIDTH + 2 * WIDTH
    pooler, head = WIDTH * WIDTH + WIDTH, WIDTH * CLASSES + CLASSES
    return embeddings + LAYERS * (attention + feed_forward) + pooler + head


def prepared(values, *overrides):
    recipe = Recipe.from_dict(values)
    for override in overrides:
        recipe.override(override)
    runner = _Runner(plan(recipe))
    runner._prepare()
    return runner


def parts(found):
    return {part.name: part.bytes for part in (*found.memory, *found.disk)}


def test_the_parts_are_those_counted_by_hand(recipe):
    found = estimate_run(prepared(recipe), probe=False)
    count = weights_of()
    named = parts(found)
    assert named["weights"] == 4 * count
    assert named["gradients"] == 4 * count
    assert named["optimizer"] == 8 * count  # two moments in float32
    assert named["model/"] == 4 * count
    assert named["checkpoints"] == 3 * 12 * count  # two are kept while a third is written
    assert found.seconds is None
    assert found.probed is False


def test_an_adapter_trains_and_keeps_little(recipe):
    recipe["tuning"] = {"name": "lora", "r": 2, "target_modules": ["query"]}
    found = parts(estimate_run(prepared(recipe), probe=False))
    head = WIDTH * CLASSES + CLASSES
    trained = LAYERS * 2 * 2 * WIDTH + head
    assert found["gradients"] == 4 * trained
    assert found["optimizer"] == 8 * trained
    assert found["model/"] == 4 * trained
    assert found["weights"] == 4 * (weights_of() + trained)  # the head is held twice: peft keeps the first


@pytest.mark.parametrize(
    ("name", "each"),
    [(None, 8), ("adamw_torch", 8), ("adamw_bnb_8bit", 2), ("lion_8bit", 1), ("lion_32bit", 4), ("sgd", 0)],
)
def test_an_optimizers_states_by_its_name(name, each):
    model = nn.Linear(10, 10, bias=False)
    assert optimizer_bytes(model, name) == 100 * each


def test_quantised_weights_are_counted_as_they_are_held():
    class Held(nn.Parameter):
        """4-bit weights as bitsandbytes holds them: two a byte, and their scales."""

    weight = Held(torch.zeros(50, 1, dtype=torch.uint8), requires_grad=False)
    inner = SimpleNamespace(absmax=torch.zeros(1), code=torch.zeros(256))
    weight.quant_state = SimpleNamespace(
        absmax=torch.zeros(2, dtype=torch.uint8), code=torch.zeros(16), state2=inner
    )
    model = nn.Module()
    model.weight = weight
    model.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
    assert weight_bytes(model) == 50 + 2 + 16 * 4 + 4 + 256 * 4
    assert gradient_bytes(model) == 0
    assert buffer_bytes(model) == 24


def test_a_probe_leaves_no_trace(recipe):
    runner = prepared(recipe, "trainer.max_steps=40", "trainer.warmup_steps=0")
    model = runner.built.model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = estimate_run(runner)
    assert found.probed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert found.seconds_per_step > 0
    assert found.steps == 40
    assert found.seconds >= 40 * found.seconds_per_step * 0.999
    assert parts(found)["activations"] > 0
    assert found.fits is True


def test_a_run_gives_the_same_bits_with_a_prediction_and_without(recipe, monkeypatch, tmp_path):
    with_it = run(Recipe.from_dict(recipe), "trainer.max_steps=20")
    monkeypatch.setattr("hf_llm_recipes.run.predicted", lambda runner: None)
    without = run(Recipe.from_dict(recipe), "trainer.max_steps=20", f"output={tmp_path / 'other'}")
    weights = [(done.path / "model" / "model.safetensors").read_bytes() for done in (with_it, without)]
    assert weights[0] == weights[1]
    said = with_it.metrics["training"]["predicted"]
    assert set(said) == {"minutes", "minutes_by_part", "at_most", "peak_memory_gib"}
    assert said["minutes"] == said["minutes_by_part"]["training"] > 0
    assert with_it.metrics["training"]["minutes_judging"] > 0
    assert said["peak_memory_gib"]["host"] <= with_it.metrics["training"]["peak_memory_gib"]["host"] + 0.001
    assert "predicted" not in without.metrics["training"]


def test_the_optimizers_states_are_measured(recipe):
    found = parts(estimate_run(prepared(recipe, "trainer.optim=sgd", "trainer.max_steps=30")))
    assert "optimizer" not in found


def test_activations_are_those_of_the_longest_batch_and_grow_with_it(recipe):
    small = parts(estimate_run(prepared(recipe, "trainer.per_device_train_batch_size=2")))
    large = parts(estimate_run(prepared(recipe, "trainer.per_device_train_batch_size=8")))
    assert large["activations"] == pytest.approx(4 * small["activations"], rel=0.05)  # all rows are as long


def test_the_heap_grows_where_lengths_vary(recipe):
    runner = prepared(recipe)
    weights = weight_bytes(runner.built.model) + buffer_bytes(runner.built.model)
    found = probing.Probed(peak=10**9 + weights, base=5 * 10**8, varies=True)
    named = {part.name: part.bytes for part in _parts_here(runner, found, "cpu")}
    assert named["heap"] == 10**8  # a fifth of 5 x 10^8
    assert "heap" not in {part.name for part in _parts_here(runner, found, "cuda")}
    found.varies = False
    assert "heap" not in {part.name for part in _parts_here(runner, found, "cpu")}


def test_lengths_vary_where_a_batch_is_half_as_long_as_another():
    def varies(*lengths):
        batches = [{"input_ids": torch.zeros(2, length)} for length in lengths]
        trainer = SimpleNamespace(
            args=SimpleNamespace(gradient_accumulation_steps=1),
            get_train_dataloader=lambda: batches,
            set_initial_training_values=lambda args, loader: (9,),
        )
        one = probing._Probe(trainer)
        one.look()
        return one.found.varies

    assert not varies(8, 8, 5)
    assert varies(8, 4)


def test_what_autograd_keeps_is_counted_once_and_without_weights():
    trainer = SimpleNamespace(model=nn.Linear(5, 7))
    one = probing._Probe(trainer)
    x = torch.randn(3, 5)
    with one._counted({"x": x}):
        hidden = trainer.model(x)  # keeps x: 60 bytes; the weight is not counted
        hidden.exp().sum()  # keeps its result: 84 bytes
    assert one.found.activations == 60 + 84
    with probing._Probe(trainer, vocabulary=7)._counted({"x": x}):
        pass
    one = probing._Probe(trainer, vocabulary=7)
    with one._counted({"x": x}):
        trainer.model(x).exp().sum()
    assert (one.found.activations, one.found.logits) == (60, 84)


@pytest.mark.parametrize(
    ("points", "wanted", "seconds"),
    [
        ([(10, 1.0), (20, 2.0)], 30, 3.0),
        ([(10, 2.0), (20, 3.0)], 0, 1.0),
        ([(10, 2.0), (20, 1.0)], 30, 1.5),  # no time falls with the size
        ([(10, 0.5), (20, 2.0)], 10, 0.9),  # nor is it below 0: through the origin, (5 + 40) / 500
        ([(10, 1.0), (10, 3.0)], 99, 2.0),
    ],
)
def test_time_is_a_line_through_the_probed_batches(points, wanted, seconds):
    assert probing.fitted(points, wanted) == pytest.approx(seconds)


def test_a_named_gpu_takes_the_parts_without_this_process(recipe):
    recipe["tuning"] = {"name": "lora", "r": 2, "target_modules": ["query"]}
    runner = prepared(recipe, "trainer.max_steps=30")
    here, there = estimate_run(runner), estimate_run(runner, "t4")
    mine, theirs = parts(here), parts(there)
    assert not {"process", "workspace", "heap"} & theirs.keys()
    assert theirs["context"] == int(0.6 * 2**30)
    assert theirs["weights"] < mine["weights"]
    assert theirs["gradients"] == mine["gradients"]
    assert there.seconds is None
    assert any("the time on t4 is not known" in said for said in there.notes)
    assert there.fits is True
    with pytest.raises(RecipeError, match=r"unknown device `h10` \(did you mean `h100`\?\)"):
        estimate_run(runner, "h10")


def test_what_does_not_fit_is_said():
    found = Estimate("t4", [Part("weights", 20 * 2**30)], [], capacity=15 * 2**30)
    assert found.fits is False
    assert found.to_dict()["fits"] is False
    assert Estimate("cpu", [Part("weights", 1)], []).fits is None


def test_a_method_of_ones_own_says_that_its_time_is_not_known(recipe, monkeypatch):
    from hf_llm_recipes import courses

    monkeypatch.delitem(courses.COURSES, courses.Supervised)
    found = estimate_run(prepared(recipe))
    assert (found.seconds, found.seconds_per_step, found.seconds_by_part) == (None, None, {})
    assert found.notes == ["how long this method trains is not known before it begins"]
    assert found.probed
    assert found.predicted()["minutes"] is None


def test_an_average_of_the_weights_is_counted_in_memory_and_on_disk(recipe):
    plain, averaged = (
        estimate_run(prepared({**recipe, "callbacks": callbacks})) for callbacks in ([], [{"name": "ema"}])
    )
    trained = parts(plain)["gradients"]
    assert "teacher" not in parts(plain)
    assert parts(averaged)["teacher"] == trained
    kept = [next(part.bytes for part in one.disk if part.name == "checkpoints") for one in (plain, averaged)]
    assert kept[1] - kept[0] == 3 * trained  # as many checkpoints at once


def test_a_batch_that_does_not_fit_is_told_not_raised(recipe, monkeypatch):
    def none_left(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.Trainer.training_step", none_left)
    found = estimate_run(prepared(recipe))
    assert found.probed is False
    assert "does not fit into memory" in found.notes[0]


def test_predicted_stands_beside_measured():
    training = {
        "minutes": 2.0,
        "minutes_before": 0.5,
        "minutes_judging": 1.0,
        "peak_memory_gib": {"host": 1.5},
        "predicted": {"minutes": 1.8, "peak_memory_gib": {"host": 1.4}},
    }
    metrics = {"training": training}
    memory, time = "predicted: peak memory 1.40 GiB (was 1.50)", "1.80 minutes of training (was 2.00)"
    assert beside(metrics) == f"{memory}, {time}"
    # like with like: a part that was not predicted, or not measured, is in neither sum
    training["predicted"]["minutes_by_part"] = {"training": 1.8, "preparation": 0.4, "baseline": 9.0}
    assert beside(metrics) == f"{memory}, {time}, 2.20 in all (was 2.50)"
    training["predicted"]["at_most"] = ["preparation"]
    assert beside(metrics) == f"{memory}, {time}, at most 2.20 in all (was 2.50)"
    metrics["comparison"] = {"supervised_minutes_in_all": 8.0}
    assert beside(metrics).endswith("at most 11.20 in all (was 10.50)")
    training["predicted"] = {"minutes": None, "peak_memory_gib": {"host": 1.4}}
    assert beside(metrics) == memory
    assert beside({"training": {"minutes": 2.0, "peak_memory_gib": {"host": 1.5}}}) is None


def test_the_command_prints_parts_and_json(recipe, tmp_path):
    from hf_llm_recipes.cli import app
    from hf_llm_recipes.recipe import dump_yaml

    file = tmp_path / "tiny.yaml"
    file.write_text(dump_yaml({key: value for key, value in recipe.items() if key != "name"}))
    found = CliRunner().invoke(app, ["estimate", str(file), "trainer.max_steps=30"])
    assert found.exit_code == 0
    for said in ("weights", "activations", "peak memory", "disk: checkpoints", "30 steps of", "in all"):
        assert said in found.stdout
    found = CliRunner().invoke(app, ["estimate", str(file), "--device", "a100-40gb", "--json"])
    answer = json.loads(found.stdout)
    assert answer["device"] == "a100-40gb"
    assert answer["peak_bytes"] == sum(part["bytes"] for part in answer["memory"])
    assert answer["time"] == []
    assert not (tmp_path / "out").exists()


def test_from_python_an_unknown_device_costs_no_model(recipe):
    with pytest.raises(RecipeError, match="unknown device `gtx`"):
        estimate(Recipe.from_dict(recipe), "gtx")
