import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from hf_llm_recipes.callbacks.samples import Samples
from hf_llm_recipes.errors import RunError


@pytest.fixture
def llama(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = "[PAD]"
    return AutoModelForCausalLM.from_pretrained(tiny_llama), tokenizer


def arguments(tmp_path):
    return SimpleNamespace(output_dir=str(tmp_path / "checkpoints"))


def state(step, first=True):
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]


def greedy(model, tokenizer, text, count):
    """One token after the other by the largest logit, without a cache."""
    ids = tokenizer(text)["input_ids"][:-1]  # the end that the tokenizer writes
    begin = len(ids)
    for _ in range(count):
        ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[begin:], skip_special_tokens=True)


def test_it_writes_what_greedy_decoding_writes_and_draws_nothing(llama, tmp_path):
    model, tokenizer = llama
    samples = Samples(texts=["the ball", "a song"], max_new_tokens=4)
    model.train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    samples.on_train_begin(arguments(tmp_path), state(0), None, model=model)
    samples.on_evaluate(arguments(tmp_path), state(5), None, model=model, processing_class=tokenizer)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert lines(tmp_path) == [
        {"step": 5, "text": text, "written": greedy(model, tokenizer, text, 4)}
        for text in ("the ball", "a song")
    ]


def test_a_resumed_run_takes_out_what_comes_after_its_checkpoint(llama, tmp_path):
    model, tokenizer = llama
    samples = Samples(texts=["the"], max_new_tokens=1)
    for step in (2, 4, 6):
        samples.on_evaluate(arguments(tmp_path), state(step), None, model=model, processing_class=tokenizer)
    samples.on_train_begin(arguments(tmp_path), state(4), None, model=model)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


def test_other_processes_write_nothing(llama, tmp_path):
    model, tokenizer = llama
    given = {"model": model, "processing_class": tokenizer}
    Samples(texts=["the"]).on_evaluate(arguments(tmp_path), state(2, first=False), None, **given)
    assert not (tmp_path / "samples.jsonl").exists()


def classifier(folder, auto=AutoModelForSequenceClassification, **config):
    model = auto.from_pretrained(folder, **config)
    return {"model": model, "processing_class": AutoTokenizer.from_pretrained(folder)}


def with_bias(model, *values):
    """Every row has these logits."""
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor(values))


@pytest.mark.parametrize(
    ("problem", "bias", "written"),
    [
        (None, (0.0, math.log(3)), "food (0.75)"),  # softmax: 1 : 3
        ("multi_label_classification", (math.log(4), math.log(1.5)), "sport (0.80), food (0.60)"),
        ("multi_label_classification", (-1.0, -2.0), "none"),
    ],
)
def test_a_classifier_tells_its_answer(tiny_bert, tmp_path, problem, bias, written):
    names = {"id2label": {0: "sport", 1: "food"}, "problem_type": problem}
    given = classifier(tiny_bert, **names)
    with_bias(given["model"], *bias)
    given["model"].train()
    samples = Samples(texts=["the ball", "the soup"])
    samples.on_train_begin(arguments(tmp_path), state(0), None, **given)
    samples.on_evaluate(arguments(tmp_path), state(3), None, **given)
    assert given["model"].training
    assert lines(tmp_path) == [
        {"step": 3, "text": text, "written": written} for text in ("the ball", "the soup")
    ]


def test_numbers_and_tags(tiny_bert, tmp_path):
    number = classifier(tiny_bert, num_labels=1)
    with_bias(number["model"], 0.25)
    tags = classifier(tiny_bert, AutoModelForTokenClassification, id2label={0: "O", 1: "B-x"})
    with_bias(tags["model"], 0.0, 1.0)
    for step, given in enumerate((number, tags)):
        Samples(texts=["the ball"]).on_evaluate(arguments(tmp_path), state(step), None, **given)
    assert [line["written"] for line in lines(tmp_path)] == ["0.25", "the/B-x ball/B-x"]


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_a_model_that_answers_nothing_is_refused(tiny_bert, tmp_path, auto):
    with pytest.raises(RunError, match="neither writes nor classifies texts"):
        Samples(texts=["the"]).on_train_begin(
            arguments(tmp_path), state(0), None, **classifier(tiny_bert, auto)
        )


def test_a_model_of_images_is_refused(tiny_bert, tmp_path):
    given = classifier(tiny_bert) | {"processing_class": None}
    with pytest.raises(RunError, match="BertForSequenceClassification reads no texts"):
        Samples(texts=["the"]).on_train_begin(arguments(tmp_path), state(0), None, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": []}, "one or more"),
        ({"texts": [""]}, "one or more"),
        ({"texts": ["a"], "max_new_tokens": 0}, "allowed: 1 or more"),
    ],
)
def test_values_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        Samples(**given)
