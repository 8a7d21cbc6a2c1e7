import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

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


def test_a_model_that_writes_no_text_is_refused(tiny_bert, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    with pytest.raises(RunError, match="BertForSequenceClassification writes no text"):
        Samples(texts=["the"]).on_train_begin(arguments(tmp_path), state(0), None, model=model)


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
