"""Hidden patches: masks and the loss worked by hand, runs, bad input."""

import numpy as np
import pytest
import torch
from _tiny_objective import assert_resumes_exactly, assert_split_makes_no_difference, run_of, values
from transformers import ViTConfig, ViTForMaskedImageModeling

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives.masked_image import (
    MaskedImage,
    MaskedImageCollator,
    MaskGrid,
    hidden_pixel_loss,
    pixel_outcomes,
)
from hf_llm_recipes.tasks._masking import generator_of

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.fixture
def given(tmp_path):
    model = {"architecture": "hlr_vision", "config": {**TINY, "num_channels": 1}}
    made = values(model, None, {"name": "masked_image"}, tmp_path / "out")
    splits = {"train": "train[:36]", "eval": "validation[:8]", "test": "test[:8]"}
    return {**made, "data": {"name": "local/digits", **splits}}


def test_masks_cover_whole_cells_of_the_models_patches():
    grid = MaskGrid(image_size=8, patch_size=2, cell_size=4, hidden=1)
    pixels = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    rows = [{"pixel_values": pixels, "mask": [False, True, False, False]}]
    batch = MaskedImageCollator(grid)(rows)
    assert batch["bool_masked_pos"].view(4, 4).int().tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0] * 4,
        [0] * 4,
    ]
    labels = batch["labels"][0, 0]
    assert labels[:4, 4:].tolist() == pixels[0, :4, 4:].tolist()
    assert int((labels != -100).sum()) == 16
    reconstruction = torch.zeros(1, 1, 8, 8)  # off by the pixels themselves: 4 … 7, 12 … 15, 20 … 23, 28 … 31
    expected = (22 + 54 + 86 + 118) / 16
    assert hidden_pixel_loss({"reconstruction": reconstruction}, batch["labels"]).item() == expected
    assert hidden_pixel_loss({"reconstruction": reconstruction}, batch["labels"], 32).item() == expected / 2


def test_masks_hide_as_many_cells_as_asked_and_follow_their_draw():
    grid = MaskGrid(image_size=16, patch_size=4, cell_size=4, hidden=10)
    first, again, other = (grid.draw(generator_of(3, draw)) for draw in (0, 0, 1))
    assert int(first.sum()) == 10
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_error_is_that_of_the_models_own_loss():
    torch.manual_seed(0)
    model = ViTForMaskedImageModeling(ViTConfig(**TINY, num_channels=1, encoder_stride=4)).eval()
    grid = MaskGrid(16, 4, 4, 10)
    from datasets import Dataset

    pixels = np.random.default_rng(0).normal(size=(5, 1, 16, 16)).astype(np.float32)
    rows = grid.fixed(Dataset.from_dict({"pixel_values": list(pixels)}).with_format("numpy"))
    collate = MaskedImageCollator(grid)
    found = pixel_outcomes(model, rows, collate)
    batch = collate(list(rows))
    with torch.no_grad():
        outputs = model(pixel_values=batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"])
    assert found["errors"].sum() / found["pixels"].sum() == pytest.approx(outputs.loss.item(), rel=1e-4)
    torch.testing.assert_close(
        hidden_pixel_loss(outputs, batch["labels"]), outputs.loss, rtol=1e-4, atol=1e-5
    )


def test_a_run_learns_evaluates_and_answers(given):
    trainer = {**given["trainer"], "max_steps": 60, "learning_rate": 1e-2, "eval_strategy": "steps"}
    done = run_of(given, trainer={**trainer, "eval_steps": 60})
    test = done.metrics["test"]
    assert test["masked_l1"] < test["visible_mean_l1"]
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    assert '"eval_loss"' in (done.path / "log.jsonl").read_text()
    assert "AutoModelForMaskedImageModeling" in (done.path / "README.md").read_text()
    from hf_llm_recipes.predictor import Predictor

    answers = Predictor.load(done.path).predict([np.zeros((8, 8), dtype=np.uint8)] * 2)
    assert len(answers) == 2
    assert answers[0]["value"] > 0


def test_a_batch_of_eight_is_eight_batches_of_one(given, tmp_path):
    config = {**given["model"]["config"], "hidden_dropout_prob": 0.0, "attention_dropout_prob": 0.0}
    assert_split_makes_no_difference({**given, "model": {**given["model"], "config": config}}, tmp_path)


def test_a_killed_run_goes_on_to_the_same_bits(given, tmp_path, monkeypatch):
    given = {**given, "trainer": {**given["trainer"], "per_device_train_batch_size": 9}}
    assert_resumes_exactly(given, tmp_path, monkeypatch)


def test_masks_that_do_not_fit_the_model_are_refused(given):
    with pytest.raises(DataError, match=r"(?s)mask_patch_size is 6.*of the model's patch size \(4\)"):
        run_of(given, task={**given["task"], "mask_patch_size": 6})
    with pytest.raises(DataError, match=r"mask_ratio 0\.99 hides all 16 cells"):
        run_of(given, task={**given["task"], "mask_ratio": 0.99})


def test_a_vit_whose_decoder_has_another_stride_is_refused(given, tmp_path):
    from transformers import ViTImageProcessorPil

    folder = tmp_path / "vit"
    ViTForMaskedImageModeling(ViTConfig(**TINY, num_channels=1, encoder_stride=8)).save_pretrained(folder)
    half = {"image_mean": [0.5], "image_std": [0.5]}
    ViTImageProcessorPil(size={"height": 16, "width": 16}, **half).save_pretrained(folder)
    with pytest.raises(RunError, match="encoder_stride is 8 and patch_size 4"):
        run_of(given, model={"name": str(folder)})


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"mask_ratio": 1.0}, "mask_ratio is 1.0"), ({"mask_patch_size": 0}, "mask_patch_size is 0")],
)
def test_wrong_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        MaskedImage(**fields)
    with pytest.raises(ValueError, match="no meaning for pixels"):
        MaskedImage().loss(0.1)
