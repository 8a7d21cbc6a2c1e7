"""What a run hands to a method, for a text classification of 12 labeled rows and a pool of 40."""

import torch
from conftest import sentences
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.tasks.text_classification import TextClassification

CLASSES = {"sport": 0, "food": 1, "music": 2}
LABELS = {
    "single_label": lambda label: CLASSES[label],
    "multi_label": lambda label: [float(CLASSES[label] == i) for i in range(3)],
    "regression": lambda label: float(CLASSES[label]),
}
KINDS = {"regression": {"num_labels": 1, "problem_type": "regression"}}


def make_parts(folder, out, *, problem="single_label", pool=40, callbacks=(), model=None, **arguments):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = TextClassification(problem=problem)
    torch.manual_seed(0)
    model = model or AutoModelForSequenceClassification.from_pretrained(
        folder, **KINDS.get(problem, {"num_labels": 3, "problem_type": f"{problem}_classification"})
    )

    def features(rows, labeled=True):
        made = tokenizer([row["text"] for row in rows])
        if labeled:
            made["labels"] = [LABELS[problem](row["label"]) for row in rows]
        return Dataset.from_dict(dict(made))

    given = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "logging_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "restore_callback_states_from_checkpoint": True,
        **arguments,
    }
    return Parts(
        model=model,
        arguments=TrainingArguments(output_dir=str(out / "checkpoints"), **given),
        train=features(sentences(12)),
        eval=features(sentences(9, seed=2)),
        test=features(sentences(9, seed=3)),
        collator=task.collator(tokenizer),
        compute_metrics=task.quick_metrics,
        compute_loss=task.loss(0.0),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        task=task,
        unlabeled=features(sentences(pool, seed=1), labeled=False),
        cache=out / "cache",
    )


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
