import contextlib
import io
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks.image_classification import ImageClassification, read_image

GREY = SimpleNamespace(num_channels=1, num_labels=2, id2label={0: "dark", 1: "light"})
COLOUR = SimpleNamespace(num_channels=3, num_labels=2, id2label={0: "dark", 1: "light"})
DARK, LIGHT = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)


def processor(channels=1, size=2):
    half = [0.5] * channels
    return ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half)


def rows(images, labels=("dark", "light")):
    return Dataset.from_dict({"image": images, "label": list(labels)})


def loaded(train):
    return Loaded(train=train, eval=train, test=train, description={})


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_pixels_and_labels():
    made = ImageClassification().prepare(loaded(rows([DARK, LIGHT])), processor(), GREY)
    assert made.config == {
        "num_labels": 2,
        "id2label": {0: "dark", 1: "light"},
        "label2id": {"dark": 0, "light": 1},
        "problem_type": "single_label_classification",
    }
    row = made.train[1]
    assert (row["pixel_values"].shape, row["pixel_values"].dtype) == ((1, 2, 2), np.float32)
    assert row["pixel_values"].tolist() == [[[1.0, 1.0], [1.0, 1.0]]]  # (255/255 - 0.5) / 0.5
    assert made.train["labels"][:].tolist() == [0, 1]
    assert made.findings["test"] == {"rows": 2, "pixels": [1, 2, 2]}
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["pixel_values"].shape == (2, 1, 2, 2)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 1]


def test_a_grey_image_for_a_model_of_colours_and_back():
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[..., 0] = 255  # red; Pillow's grey of it is 0.299 * 255 = 76
    made = ImageClassification().prepare(loaded(rows([DARK.tolist(), LIGHT.tolist()])), processor(3), COLOUR)
    assert made.train[1]["pixel_values"].tolist() == np.ones((3, 2, 2)).tolist()
    made = ImageClassification().prepare(loaded(rows([colour, colour])), processor(), GREY)
    assert made.train[0]["pixel_values"] == pytest.approx(np.full((1, 2, 2), 2 * 76 / 255 - 1), abs=1e-6)


def test_every_form_of_an_image(tmp_path):
    Image.fromarray(LIGHT).save(tmp_path / "light.png")
    forms = [
        Image.fromarray(LIGHT),
        {"bytes": png(LIGHT), "path": None},
        {"bytes": None, "path": str(tmp_path / "light.png")},
        str(tmp_path / "light.png"),
        tmp_path / "light.png",
        LIGHT,
        LIGHT[..., None],
        LIGHT.astype(np.int64).tolist(),
        np.stack([LIGHT] * 4, -1),
        Image.fromarray(LIGHT).convert("CMYK"),
        Image.fromarray(LIGHT).convert("P"),
        Image.fromarray(LIGHT).convert("1"),
    ]
    for form in forms:
        assert np.asarray(read_image(form, "row 0").convert("L")).tolist() == LIGHT.tolist()


def test_a_photograph_is_turned_upright():
    image = Image.fromarray(np.zeros((2, 6), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # lay on its side
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert read_image({"bytes": buffer.getvalue(), "path": None}, "row 0").size == (2, 6)


NOT_IMAGES = {
    "no file": ("nowhere.png", "row 3: there is no image file `nowhere.png`"),
    "none": (None, "row 3: `image` is None, not an image"),
    "a number": (3, "row 3: `image` is 3, not an image"),
    "floats": (np.zeros((2, 2)), "row 3: `image` is an array of float64, shape (2, 2), not an image"),
    "too large": (np.full((2, 2), 256), "row 3: `image` is an array of int64, shape (2, 2), not an image"),
    "channels first": (np.zeros((3, 8, 8), int), "row 3: `image` is an array of int64, shape (3, 8, 8), not"),
    "ragged": ([[1, 2], [3]], "row 3: `image` is [[1, 2], [3]], not an image"),
    "broken": ({"bytes": png(LIGHT)[:40], "path": None}, "row 3: the image cannot be read: "),
    "no image": (
        {"bytes": b"hello", "path": None},
        "row 3: the image cannot be read: 5 bytes of `image` are no image file",
    ),
    "empty": ({"bytes": None, "path": None}, "row 3: `image` is {'bytes': None, 'path': None}, not an image"),
    "16 bits": (
        Image.fromarray(np.full((2, 2), 40000, np.uint16)),
        "row 3: the image has Pillow's mode I;16: more than 8 bits a channel",
    ),
}


@pytest.mark.parametrize("case", NOT_IMAGES)
def test_what_is_no_image_is_refused(case):
    value, message = NOT_IMAGES[case]
    with pytest.raises(DataError) as caught:
        read_image(value, "row 3")
    assert str(caught.value).startswith(message)


def test_bytes_are_an_image_where_they_are_one():
    encoded = Dataset.from_dict({"image": [png(DARK), png(LIGHT)], "label": ["dark", "light"]})
    made = ImageClassification().prepare(loaded(encoded), processor(), GREY)
    arrays = ImageClassification().prepare(loaded(rows([DARK, LIGHT])), processor(), GREY)
    assert np.array_equal(made.train["pixel_values"][:], arrays.train["pixel_values"][:])
    bare = Dataset.from_dict({"image": [bytes(784)] * 2, "label": ["dark", "light"]})
    with pytest.raises(
        DataError, match="row 0: the image cannot be read: 784 bytes of `image` are no image"
    ) as told:
        ImageClassification().prepare(loaded(bare), processor(), GREY)
    assert "write bare pixels as PNG, or as lists (height, width)" in str(told.value)


def test_a_broken_image_is_named_by_its_row():
    stored = [{"bytes": png(DARK), "path": None}, {"bytes": png(LIGHT)[:50], "path": None}]
    data = Dataset.from_dict(
        {"image": stored, "label": ["dark", "light"]},
        features=Features({"image": ImageFeature(), "label": Value("string")}),
    )
    with pytest.raises(DataError, match="train split, row 1: the image cannot be read"):
        ImageClassification().prepare(loaded(data), processor(), GREY)


REFUSED = {
    "no column": ({"image": "img"}, rows([DARK, LIGHT]), GREY, "train split: there is no column `img`"),
    "text": ({}, rows(["a", "b"]), GREY, "train split, row 0: there is no image file `a`"),
    "no label": ({}, rows([DARK, LIGHT], ("dark", None)), GREY, "train split, row 1: has no label"),
    "another": (
        {"labels": ["dark", "bright"]},
        rows([DARK, LIGHT]),
        GREY,
        "train split, row 1: label 'light' is none of the classes",
    ),
    "one class": ({}, rows([DARK, LIGHT], ("x", "x")), GREY, "train split: all 2 rows have one class"),
    "channels": (
        {},
        rows([DARK, LIGHT]),
        SimpleNamespace(num_channels=4),
        "the model takes 4 channels\n  allowed: 1 (grey) or 3 (colour)",
    ),
    "names": (
        {},
        rows([DARK] * 6, "abcdef"),
        GREY,
        "train split: column `label` has 6 different values in 6 rows",
    ),
    "stream": ({}, rows([DARK, LIGHT]).to_iterable_dataset(), GREY, "images are not read from a stream"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_row(case):
    fields, data, config, message = REFUSED[case]
    with pytest.raises(DataError) as caught:
        ImageClassification(**fields).prepare(loaded(data), processor(), config)
    assert str(caught.value).startswith(message)


def test_too_few_labels():
    with pytest.raises(ValueError, match=r"labels is \['a'\]; allowed: two or more different names"):
        ImageClassification(labels=["a"])


def test_new_images_are_encoded_under_the_models_classes():
    task = ImageClassification()
    labeled, _ = task.encode(rows([LIGHT, DARK], ("light", "dark")), processor(), GREY, labeled=True)
    assert labeled["labels"][:].tolist() == [1, 0]
    bare, _ = task.encode(task.read_inputs([LIGHT]), processor(), GREY, labeled=False)
    assert bare.column_names == ["pixel_values"]
    assert task.lengths(bare).tolist() == [0]
    assert task.collator(None)([bare[0]])["pixel_values"].tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


def test_an_item_is_an_image():
    task, logits = ImageClassification(), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    items, item_rows = task.items(logits, {})
    assert (items.tolist(), item_rows.tolist()) == ([[1.0, 2.0], [3.0, 4.0]], [0, 1])
    assert task.item_labels(torch.tensor([1, 0]), {}).tolist() == [1, 0]
    assert (task.num_item_classes(GREY), task.item_problem) == (2, "single_label")
    assert (task.input_columns, task.stratify_by) == (["image"], "label")


def test_the_loss_is_the_mean_over_the_images_of_the_step():
    outputs = {"logits": torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])}
    labels = torch.tensor([0, 1])
    total = math.log(4 / 3) + math.log(4)
    loss = ImageClassification().loss(0.0)
    assert loss(outputs, labels).item() == pytest.approx(total / 2)
    assert loss(outputs, labels, num_items_in_batch=8).item() == pytest.approx(total / 8)


def test_metrics_answers_and_predictions(tmp_path):
    task, logits = ImageClassification(), np.array([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert task.decode(logits, GREY) == [{"label": "light", "probability": pytest.approx(0.75)}] * 2
    assert task.judge(logits, [0, 1], GREY)["accuracy"] == 0.5
    prediction = SimpleNamespace(predictions=(logits, "hidden"), label_ids=np.array([1, 1]))
    assert task.quick_metrics(prediction)["accuracy"] == 1.0
    task.write_predictions(tmp_path / "p.parquet", rows([DARK, LIGHT]), logits, [0, 1], GREY)
    written = pd.read_parquet(tmp_path / "p.parquet")
    assert list(written.columns) == [
        "row",
        "label",
        "predicted_label",
        "probability_dark",
        "probability_light",
    ]
    Image.fromarray(DARK).save(tmp_path / "d.png")
    files = rows([str(tmp_path / "d.png")] * 2)
    task.write_predictions(tmp_path / "q.parquet", files, logits, None, GREY)
    assert pd.read_parquet(tmp_path / "q.parquet")["image"].tolist() == ["d.png", "d.png"]


@pytest.fixture
def digits(tmp_path):
    return {
        "name": "digits",
        "output": str(tmp_path / "out"),
        "model": {
            "architecture": "hlr_vision",
            "preset": "tiny",
            "config": {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 32},
        },
        "data": {"name": "local/digits"},
        "task": {"name": "image_classification"},
        "trainer": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 3e-3,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }


def test_digits_are_learned_from_random_weights(digits, tmp_path, monkeypatch):
    from hf_llm_recipes.run import run

    done = run(Recipe.from_dict(digits))
    assert done.metrics["test"]["rows"] == 180
    assert done.metrics["test"]["accuracy"] > 0.5  # chance is 0.1
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    assert len(pd.read_parquet(done.path / "predictions.parquet")) == 180
    predictor = Predictor.load(done.path)
    Image.fromarray(DARK).save(tmp_path / "dark.png")
    answers = predictor.predict([tmp_path / "dark.png", DARK, Image.fromarray(DARK)], batch_size=2)
    assert len({a["label"] for a in answers}) == 1
    assert predictor.predict([{"image": DARK}])[0]["label"] == answers[0]["label"]
    with pytest.raises(DataError, match="row 1: there is no image file"):
        predictor.predict([DARK, tmp_path / "nowhere.png"])
    code = (done.path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "dark.png").rename(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code.replace("'digits'", repr(str(done.path / "model"))), "card", "exec"), {})
    said = {line.split("  ")[1]: float(line.split("  ")[0]) for line in printed.getvalue().splitlines()}
    assert max(said, key=said.get) == answers[0]["label"]
    assert max(said.values()) == pytest.approx(answers[0]["probability"], abs=1e-3)


def test_a_checkpoint_is_adapted_with_its_own_processor(digits, tmp_path):
    from transformers import ViTConfig, ViTModel

    from hf_llm_recipes.run import run

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8,
        patch_size=4, num_channels=3,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    processor(3, 8).save_pretrained(tmp_path / "vit")
    values = {**digits, "model": {"name": str(tmp_path / "vit")}, "tuning": {"name": "lora", "r": 2}}
    done = run(Recipe.from_dict(values), "trainer={max_steps: 3, use_cpu: true, disable_tqdm: true}")
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    assert (done.path / "model" / "preprocessor_config.json").is_file()
