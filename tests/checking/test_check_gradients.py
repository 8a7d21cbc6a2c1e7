"""8x1 is 1x8, and no tensor is dead: planted in models that are wrong, and not told of right ones."""

import json
import math
import shutil

import pytest
import torch
from _planted import found, jsonl, recipe_of, report_of, said
from _tiny_chat import said as turns
from _tiny_chat import tiny_llama
from conftest import FILLER, sentences
from transformers import LlamaForCausalLM

from hf_llm_recipes.checking.gradients import dead, failed, lonely, split_matters, unusable
from hf_llm_recipes.checking.probe import Gradient, difference, shortened, stirred


def test_differences_by_hand():
    first = Gradient(1.0, {"a": torch.tensor([3.0, 4.0]), "b": None})
    second = Gradient(1.0, {"a": torch.tensor([3.0, 4.5]), "b": None})
    assert difference(first, second) == pytest.approx(0.1)  # 0.5 of a length of 5
    assert difference(first, first) == 0.0


def test_a_split_that_matters():
    (finding,) = split_matters(0.43, 1e-3, 8, packed=False)
    assert finding.level == "error"
    assert (
        "8 rows in one batch and one at a time give gradients that differ by 43 % (allowed: 0.1 %)"
        in finding.what
    )
    (finding,) = split_matters(0.43, 1e-3, 8, packed=True)
    assert "`task.packing: false`" in finding.do
    (finding,) = split_matters(0.43, 1e-3, 8, packed=True, unpacked="none")
    assert "`task.packing: none`" in finding.do
    assert not split_matters(1e-6, 1e-3, 8, packed=False)


def test_a_loss_that_is_none():
    assert unusable(Gradient(0.0, {}))[0].what == "the loss of the first rows is exactly zero"
    assert unusable(Gradient(math.nan, {}))[0].what == "the loss of the first rows is nan"
    assert not unusable(Gradient(2.0, {}))


def test_tensors_without_a_gradient():
    alive, still = torch.ones(2), torch.zeros(2)
    (finding,) = dead(Gradient(1.0, {"head.weight": alive, "layers.0.pool.weight": None}))
    assert (finding.level, finding.what) == (
        "info",
        "1 of 2 trainable tensors get no gradient: layers.pool.weight",
    )
    (finding,) = dead(Gradient(1.0, {"head.weight": alive, "q.lora_A.default.weight": still}))
    assert finding.level == "warning"
    assert "target_modules" in finding.do
    assert dead(Gradient(1.0, {"head.weight": None}))[0].level == "error"
    assert not dead(Gradient(1.0, {"head.weight": alive}))


def test_a_step_that_fails_is_told():
    finding = failed(IndexError("index out of range in self"), 8)
    assert finding.what == "a training step on 8 rows fails: IndexError: index out of range in self"


def test_contrastive_learning_from_one_row():
    assert lonely(1)[0].level == "error"
    assert not lonely(16)


def test_rows_are_cut_with_what_belongs_to_their_tokens():
    row = {"input_ids": list(range(10)), "labels": [-100] * 6 + [6, 7, 8, 9], "row": 3}
    assert shortened(row, 4) == {"input_ids": [4, 5, 6, 7], "labels": [-100, -100, 6, 7], "row": 3}
    block = {"input_ids": list(range(10)), "seq_lengths": [3, 5, 2]}
    assert shortened(block, 6) == {"input_ids": list(range(6)), "seq_lengths": [3, 3]}
    assert shortened(block, 10) is block


def test_zeros_are_stirred_and_put_back():
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.bias.zero_()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with stirred(model) as count:
        assert count == 1
        assert model.bias.abs().min() > 0
        assert torch.equal(model.weight, before["weight"])
    assert torch.equal(model.bias, before["bias"])


def rows_of(tmp_path):
    data = jsonl(tmp_path / "rows.jsonl", sentences(60))
    return {"name": data, "train": "train[:40]", "test": "train[40:]", "eval_fraction": 0}


@pytest.mark.parametrize("method", ["supervised", "self_training", "semi_supervised"])
def test_a_run_of_each_method(method, tiny_bert, tmp_path):
    pool = {"unlabeled": jsonl(tmp_path / "pool.jsonl", sentences(40, seed=9))}
    more = {} if method == "supervised" else {"method": {"name": method, "warm_start": "none"}}
    data = {**rows_of(tmp_path), **(pool if more else {})}
    tuning = {"name": "lora", "r": 2, "lora_dropout": 0.1}
    values = recipe_of(tiny_bert, data, {"name": "text_classification"}, tuning=tuning, **more)
    report = report_of(values, tmp_path)
    assert report.exit_code == 0, report.of("error")
    split = report.model["batch_split"]
    assert split["rows"] == 8
    assert split["gradient_difference"] < 1e-5
    assert split["own_method"] == (method != "semi_supervised")
    assert not found(report, "gradients")  # LoRA's A has a gradient although B is zero before the first step


def test_a_loss_that_hangs_on_the_split(tiny_bert, tmp_path, monkeypatch):
    from hf_llm_recipes.tasks import token_classification
    from hf_llm_recipes.tasks.token_classification import _mean_loss

    def own_mean(outputs, labels, num_items_in_batch=None, *, label_smoothing):
        return _mean_loss(outputs, labels, None, label_smoothing=label_smoothing)

    monkeypatch.setattr(token_classification, "_mean_loss", own_mean)
    rows = [{"tokens": r["text"].split()[: 2 + i % 6], "label": []} for i, r in enumerate(sentences(24))]
    rows = [{**row, "label": ["B-x" if len(word) > 3 else "O" for word in row["tokens"]]} for row in rows]
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "train": "train[:16]", "test": "train[16:]"}
    values = recipe_of(tiny_bert, {**data, "eval_fraction": 0}, {"name": "token_classification"})
    report = report_of(values, tmp_path)
    assert "the result hangs on how a step is cut into batches" in said(report, "gradients")
    assert report.exit_code == 1


def test_rows_that_the_model_has_no_embedding_for(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    file = folder / "tokenizer.json"
    given = json.loads(file.read_text(encoding="utf-8"))
    given["model"]["vocab"] |= dict.fromkeys(FILLER, 5000)  # of 33 that the model has
    file.write_text(json.dumps(given), encoding="utf-8")
    report = report_of(recipe_of(folder, rows_of(tmp_path), {"name": "text_classification"}), tmp_path)
    assert "a training step on 8 rows fails: IndexError" in said(report, "gradients")
    assert report.exit_code == 1


def test_outliers_of_other_rows_do_not_count_in_8bit(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:  # columns that some rows bring above LLM.int8()'s threshold, some do not
        layer.input_layernorm.weight.data[::4] = 4.0
        layer.post_attention_layernorm.weight.data[::4] = 4.0
    model.save_pretrained(folder)
    words = ("hi", "bye", "good", "day", "be", "kind", "why", "so")
    rows = [{"messages": turns(f"{a} {b}", f"{b} {a} it")} for a, b in zip(words * 2, words[::-1] * 2)]
    more = {"tuning": "lora", "quantization": {"load_in_8bit": True}}
    values = recipe_of(folder, jsonl(tmp_path / "rows.jsonl", rows), {"name": "chat"}, **more)
    assert report_of(values, tmp_path).model["batch_split"]["gradient_difference"] < 1e-3
