import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
)

from hf_llm_recipes.methods.base import Parts
from hf_llm_recipes.methods.supervised import Supervised, frozen_quantised_base

ROWS = [{"input_ids": [2, 5 + i, 15, 3], "attention_mask": [1] * 4, "labels": i % 2} for i in range(8)]


def collate(rows):
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def parts(model, folder, **more):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    given = {"compute_metrics": None, "compute_loss": None, "processing_class": None, **more}
    return Parts(model=model, arguments=arguments, train=ROWS, eval=ROWS, collator=collate, **given)


def load(folder, **more):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **more)


def test_two_steps(tiny_bert, tmp_path):
    model = load(tiny_bert)
    before = model.classifier.weight.detach().clone()
    trainer = Supervised().build(parts(model, tmp_path))
    assert type(trainer) is Trainer
    assert trainer.train().global_step == 2
    assert not torch.equal(model.classifier.weight, before)
    assert Supervised.arguments_class() is TrainingArguments


def test_the_tasks_loss_and_metrics_are_used(tiny_bert, tmp_path):
    asked = []

    def loss(outputs, labels, num_items_in_batch=None):
        asked.append(int(num_items_in_batch) if num_items_in_batch is not None else None)
        return outputs["logits"].sum() * 0 + 7.0

    more = {"compute_loss": loss, "compute_metrics": lambda prediction: {"rows": len(prediction.label_ids)}}
    trainer = Supervised().build(parts(load(tiny_bert), tmp_path, **more))
    assert trainer.train().training_loss == 7.0
    assert asked == [4, 4]
    assert trainer.evaluate()["eval_rows"] == 8


def quantised(folder, **more):
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["classifier"], **more)
    model = load(folder, quantization_config=config)
    return model.requires_grad_(False)


def test_a_frozen_quantised_base_is_trained_through(tiny_bert, tmp_path):
    model = quantised(tiny_bert)
    model.classifier.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Supervised().build(parts(model, tmp_path))
    assert model.is_quantized  # as before
    trainer.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_a_trained_quantised_weight_is_refused(tiny_bert, tmp_path):
    model = quantised(tiny_bert, bnb_4bit_quant_storage=torch.float32)  # integers cannot be marked at all
    name = "bert.encoder.layer.0.attention.self.query.weight"
    model.get_parameter(name).requires_grad_(True)
    with pytest.raises(
        ValueError, match=f"`{name}` is quantised and cannot be trained; allowed: lora, freeze"
    ):
        Supervised().build(parts(model, tmp_path))
    assert model.is_quantized


def test_the_mark_comes_back_after_an_error(tiny_bert):
    model = quantised(tiny_bert)
    seen = []

    def fail():
        with frozen_quantised_base(model):
            seen.append(model.is_quantized)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert model.is_quantized is True


def test_a_model_that_is_not_quantised_is_left_alone(tiny_bert):
    model = load(tiny_bert)
    with frozen_quantised_base(model):
        assert not getattr(model, "is_quantized", False)
    assert not getattr(model, "is_quantized", False)
