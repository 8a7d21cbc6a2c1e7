"""Samples while training: what is written, that training is the same without, resume, bad input."""

import json

import pytest
import torch
from conftest import sentences
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Trainer,
    TrainingArguments,
)

from hf_llm_recipes.callbacks.samples import FILE, Samples
from hf_llm_recipes.errors import RecipeError


def trainer_of(folder, out, callbacks, *, model=None, **arguments):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    torch.manual_seed(0)
    rows = [
        tokenizer(row["text"], max_length=10, padding="max_length", truncation=True) for row in sentences(8)
    ]
    data = Dataset.from_list([{**row, "labels": row["input_ids"]} for row in rows])
    given = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 2, **arguments}
    quiet = {"use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    return Trainer(
        model=model or AutoModelForCausalLM.from_pretrained(folder),
        args=TrainingArguments(
            str(out / "checkpoints"), restore_callback_states_from_checkpoint=True, **{**quiet, **given}
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def lines(out):
    return [json.loads(line) for line in (out / FILE).read_text().splitlines()]


def test_every_second_evaluation_each_text_is_continued_and_training_is_the_same(tiny_llama, tmp_path):
    with_samples = trainer_of(tiny_llama, tmp_path, [Samples(["the", "a very"], every=2, max_new_tokens=3)])
    with_samples.train()
    found = lines(tmp_path)
    assert [(line["step"], line["text"]) for line in found] == [
        *((2, "the"), (2, "a very")),
        *((4, "the"), (4, "a very")),
    ]
    assert all(len(line["sample"].split()) <= 3 for line in found)
    without = trainer_of(tiny_llama, tmp_path / "without", [])
    without.train()
    for one, other in zip(with_samples.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_goes_on_counting_and_takes_out_later_lines(tiny_llama, tmp_path):
    trainer_of(tiny_llama, tmp_path, [Samples(["the"], every=3)], max_steps=6).train()
    assert [line["step"] for line in lines(tmp_path)] == [3, 6]
    again = Samples(["the"], every=3)
    trainer = trainer_of(tiny_llama, tmp_path, [again], max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-4"))
    assert [line["step"] for line in lines(tmp_path)] == [3, 6]
    (kept,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, Samples))
    assert kept.evaluations == 6


def test_masks_are_filled_with_the_likeliest_token(tiny_bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **small))
    text = "the [MASK] was good"
    trainer = trainer_of(tiny_bert, tmp_path, [Samples([text])], model=model, max_steps=1)
    trainer.train()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = trainer.model.eval()(input_ids=ids).logits[0, 2].argmax()
    ids[0, 2] = best
    assert lines(tmp_path)[-1]["sample"] == tokenizer.decode(ids[0], skip_special_tokens=True)
    with pytest.raises(RecipeError, match="'the ball' has no mask token to fill"):
        trainer_of(tiny_bert, tmp_path, [Samples(["the ball"])], model=model).train()


def test_without_evaluations_or_texts_it_is_refused(tiny_llama, tmp_path):
    with pytest.raises(RecipeError, match="samples are made at evaluations, and there are none"):
        trainer_of(tiny_llama, tmp_path, [Samples(["the"])], eval_strategy="no").train()
    trainer = trainer_of(tiny_llama, tmp_path, [Samples(["the"])])
    trainer.processing_class = trainer.callback_handler.processing_class = None
    with pytest.raises(RecipeError, match="samples are of texts"):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"texts": []}, r"texts is \[\]"),
        ({"texts": ["a"], "every": 0}, "every is 0 and max_new_tokens 32"),
        ({"texts": ["a"], "max_new_tokens": 0}, "every is 1 and max_new_tokens 0"),
    ],
)
def test_wrong_values_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Samples(**given)
