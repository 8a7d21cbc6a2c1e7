"""What both stages promise: the same objects, the untouched head, the exact resume, the checked keys."""

import json
import random

import numpy as np
import pytest
import torch
from _tiny_stage import (
    changed,
    classifier,
    logged_steps,
    masked_lm_folder,
    quantised,
    stage_parts,
    weights,
    with_lora,
)
from transformers import TrainerCallback

from hf_llm_recipes.registry import STAGES
from hf_llm_recipes.stages._training import Draws, backbone_of
from hf_llm_recipes.stages.contrastive import Contrastive
from hf_llm_recipes.stages.mlm import Mlm

BOTH = pytest.mark.parametrize("stage_class", [Mlm, Contrastive])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_lm_folder(tmp_path_factory.mktemp("bert-mlm"))


class Break(TrainerCallback):
    """Saves and stops behind a step, as a signal does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_the_registry_knows_both():
    assert STAGES.names() == ["contrastive", "mlm"]
    assert [STAGES.get(name) for name in STAGES.names()] == [Contrastive, Mlm]


@BOTH
def test_only_the_adapters_change_and_nothing_else_remains(stage_class, folder, tmp_path):
    model = with_lora(folder)
    model.eval()
    model.base_model.model.bert.encoder.layer[1].train()  # a mode of its own
    modes = {name: module.training for name, module in model.named_modules()}
    before, objects = weights(model), dict(model.named_parameters())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    figures = stage_class(max_steps=3, batch_size=8).run(stage_parts(model, folder, tmp_path))
    assert (torch.rand(1), random.random(), np.random.rand()) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(objects[name] is p for name, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    moved = changed(before, model)
    assert moved
    assert all("lora_" in name and ".encoder." in name for name in moved)  # no base, head or pooler
    assert figures.keys() == {"steps", "first_loss", "last_loss", "seconds"}
    assert figures["steps"] == 3
    assert json.loads(json.dumps(figures)) == figures


@BOTH
def test_full_fine_tuning_leaves_the_head(stage_class, folder, tmp_path):
    model = classifier(folder)
    before = weights(model)
    stage_class(max_steps=2, batch_size=8).run(stage_parts(model, folder, tmp_path))
    moved = changed(before, model)
    assert "bert.embeddings.word_embeddings.weight" in moved
    assert "bert.encoder.layer.0.output.dense.weight" in moved
    assert not any(name.startswith(("classifier", "bert.pooler")) for name in moved)


@BOTH
@pytest.mark.parametrize("stop", [2, 4, 6])  # inside an epoch of 5 steps and behind it, and at the end
def test_a_resumed_stage_gives_the_same_bits(stage_class, stop, folder, tmp_path):
    stage = stage_class(max_steps=6, batch_size=4, gradient_accumulation_steps=2, logging_steps=1)
    whole = with_lora(folder)
    told = stage.run(stage_parts(whole, folder, tmp_path / "whole", rows=40))
    torn = with_lora(folder)
    stage.run(stage_parts(torn, folder, tmp_path / "torn", rows=40, callbacks=[Break(stop)]))
    checkpoint = tmp_path / "torn" / f"checkpoint-{stop}"
    assert logged_steps(checkpoint) == list(range(1, stop + 1))
    again = with_lora(folder)
    torch.manual_seed(99)  # whatever came before
    figures = stage.run(stage_parts(again, folder, tmp_path / "torn", rows=40, resume=checkpoint))
    assert changed(weights(whole), again) == set()
    assert {**figures, "seconds": 0} == {**told, "seconds": 0}


def test_checkpoints_hold_the_trained_weights_only(folder, tmp_path):
    from safetensors.torch import load_file

    model = with_lora(folder)
    Mlm(max_steps=2, batch_size=4, save_steps=2).run(stage_parts(model, folder, tmp_path))
    held = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert held
    assert all("lora_" in name for name in held)


def test_a_checkpoint_of_another_recipe_is_refused(folder, tmp_path):
    Mlm(max_steps=1, save_steps=1).run(stage_parts(with_lora(folder), folder, tmp_path))
    parts = stage_parts(classifier(folder), folder, tmp_path, resume=tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match="checkpoint of the stage and the model differ in"):
        Mlm(max_steps=1).run(parts)


def test_draws_take_each_row_once_an_epoch_in_a_new_order():
    pool = [{"input_ids": [i], "label": 0} for i in range(6)]
    draws = Draws(pool, 12, 6, seed=0)
    first, second = ([draws[i]["input_ids"][0] for i in part] for part in (range(6), range(6, 12)))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    assert draws[0] == {"input_ids": [first[0]], "draw": 0}  # no label; out of turn too
    assert len(draws) == 12


def test_epochs_and_steps_say_how_much_is_drawn(folder, tmp_path):
    def steps(stage, rows):
        return stage.run(stage_parts(with_lora(folder), folder, tmp_path, rows=rows))["steps"]

    assert steps(Mlm(batch_size=4), 10) == 3  # 4 + 4 + 2 rows
    assert steps(Mlm(batch_size=4, epochs=2), 10) == 5  # 20 rows, epochs on end
    assert steps(Mlm(batch_size=2, epochs=1, gradient_accumulation_steps=2), 10) == 3
    assert steps(Contrastive(batch_size=4), 10) == 2  # two rows are left out of each epoch
    assert steps(Contrastive(batch_size=32, epochs=2), 10) == 2  # the pool is the batch


@BOTH
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_steps": 3, "epochs": 1}, "max_steps is 3 and epochs is 1"),
        ({"max_steps": 0}, "max_steps is 0; allowed: 1 or more"),
        ({"epochs": 0}, "epochs is 0; allowed: above 0"),
        ({"batch_size": 0}, "batch_size is 0; allowed"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; allowed: above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"warmup_fraction": 1.0}, "warmup_fraction is 1.0; allowed: 0 to below 1"),
        ({"save_steps": 0}, "save_steps is 0"),
        ({"logging_steps": 0}, "logging_steps is 0"),
    ],
)
def test_values_out_of_range(stage_class, given, told):
    with pytest.raises(ValueError, match=told):
        stage_class(**given)


@BOTH
def test_an_empty_pool(stage_class, folder, tmp_path):
    parts = stage_parts(with_lora(folder), folder, tmp_path)
    parts.pool = parts.pool.select([])
    with pytest.raises(ValueError, match="the pool has no rows"):
        stage_class().run(parts)


@BOTH
def test_a_frozen_backbone(stage_class, folder, tmp_path):
    model = classifier(folder)
    model.bert.requires_grad_(False)
    model.bert.pooler.requires_grad_(True)  # behind the hidden states
    with pytest.raises(ValueError, match="only the task's head is trained"):
        stage_class().run(stage_parts(model, folder, tmp_path))


def test_an_encoder_decoder():
    from transformers import BartConfig, BartForSequenceClassification

    sizes = {"vocab_size": 33, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "eos_token_id": 3}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    with pytest.raises(ValueError, match="a stage trains one stack"):
        backbone_of(BartForSequenceClassification(BartConfig(**sizes, **heads)))


@BOTH
def test_a_4_bit_base_takes_a_step(stage_class, folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = quantised(folder)
    assert model.get_base_model().is_quantized
    before = weights(model)
    figures = stage_class(max_steps=2, batch_size=8).run(stage_parts(model, folder, tmp_path))
    moved = changed(before, model)
    assert moved
    assert all("lora_" in name for name in moved)
    assert np.isfinite(figures["last_loss"])
