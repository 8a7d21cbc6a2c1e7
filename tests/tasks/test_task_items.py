"""What semi-supervised algorithms may rely on, whatever the task."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import BertConfig

from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.tasks.base import splits
from hf_llm_recipes.tasks.image_classification import ImageClassification
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tasks.token_classification import TokenClassification

LABELS = {  # of two rows; a word without a class, here the second row's last two, is no item
    "single": torch.tensor([2, 0]),
    "multi": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
    "tokens": torch.tensor([[1, 2, 0], [2, -100, -100]]),
    "image": torch.tensor([1, 1]),
}
TASKS = {
    "single": TextClassification(),
    "multi": TextClassification(problem="multi_label"),
    "tokens": TokenClassification(),
    "image": ImageClassification(),
}
ITEMS = {"single": 2, "multi": 6, "tokens": 4, "image": 2}


def logits_of(kind):
    torch.manual_seed(0)
    return torch.randn(2, 3, 3) if kind == "tokens" else torch.randn(2, 3)


def batch_of(kind):
    batch = {"labels": LABELS[kind]}
    return {**batch, "token_items": (batch["labels"] != -100).long()} if kind == "tokens" else batch


@pytest.mark.parametrize("kind", TASKS)
def test_items_their_rows_and_their_labels_go_together(kind):
    task, labels = TASKS[kind], LABELS[kind]
    batch = batch_of(kind)
    items, of_rows = task.items(logits_of(kind).to(torch.bfloat16), batch)
    classes = task.num_item_classes(SimpleNamespace(num_labels=3))
    assert items.dtype == torch.float32
    assert items.shape == (ITEMS[kind], classes)
    assert of_rows.shape == (ITEMS[kind],)
    assert set(of_rows.tolist()) == {0, 1}
    wanted = task.item_labels(labels, batch)
    assert wanted.shape == (ITEMS[kind],)
    assert 0 <= int(wanted.min()) <= int(wanted.max()) < classes


@pytest.mark.parametrize("kind", TASKS)
def test_the_cross_entropy_of_the_items_is_the_tasks_own_loss(kind):
    task, labels, logits = TASKS[kind], LABELS[kind], logits_of(kind)
    batch = batch_of(kind)
    items, _ = task.items(logits, batch)
    own = task.loss(0.0)({"logits": logits}, labels)
    # a multi-label loss is the mean over rows and classes, and each of them is an item
    assert cross_entropy(items, task.item_labels(labels, batch)).item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (TextClassification(), "single_label"),
        (TextClassification(problem="multi_label"), "multi_label"),
        (TextClassification(problem="regression"), "regression"),
        (TokenClassification(), "tokens"),
        (ImageClassification(), "single_label"),
    ],
)
def test_what_an_item_is(task, problem):
    assert task.item_problem == problem


def test_a_number_is_no_item():
    with pytest.raises(ValueError, match="a regression task has no classes to guess"):
        TextClassification(problem="regression").items(torch.zeros(2, 1), {})


def test_features_without_an_eval_split(tmp_path):
    rows = Dataset.from_dict({"text": ["the ball", "a good soup"], "label": ["sport", "food"]})
    loaded = Loaded(train=rows, eval=None, test=rows, description={})
    assert splits(loaded) == ["train", "test"]
    config = BertConfig(max_position_embeddings=32)
    made = TextClassification().prepare(loaded, make_tokenizer(tmp_path), config)
    assert made.eval is None
    assert set(made.findings) == {"train", "test"}
    assert made.train["labels"][:] == made.test["labels"][:] == [1, 0]


def test_a_run_without_an_eval_split(recipe):
    recipe["data"] |= {"labels_per_class": 4, "eval_fraction": 0, "pool_overlap": "drop"}
    recipe["trainer"]["max_steps"] = 2
    done = run(Recipe.from_dict(recipe))
    assert done.metrics["training"]["steps"] == 2
    assert done.metrics["test"]["rows"] == 24  # a tenth of 240
    assert "eval" not in done.metrics
