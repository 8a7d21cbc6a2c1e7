"""Adapters that missed a module, and a model that does not come back as it was saved."""

import pytest
import torch
from _planted import found, jsonl, recipe_of, report_of, said
from conftest import sentences

from hf_llm_recipes.checking import reload
from hf_llm_recipes.checking.reload import differs
from hf_llm_recipes.checking.weights import missing


@pytest.fixture
def rows(tmp_path):
    data = jsonl(tmp_path / "rows.jsonl", sentences(40))
    return {"name": data, "train": "train[:24]", "test": "train[24:]", "eval_fraction": 0}


def lora(tiny_bert, rows, **tuning):
    return recipe_of(
        tiny_bert, rows, {"name": "text_classification"}, tuning={"name": "lora", "r": 2, **tuning}
    )


def test_names_that_no_module_goes_by():
    found_ = ["bert.0.query", "bert.1.query"]
    places = [*found_, "bert.0.key", "pooler.dense"]
    (finding,) = missing(["query", "quary"], found_, places, "target_modules")
    assert finding.level == "error"
    assert finding.what == "no module goes by the name quary (did you mean `query`?)"
    assert finding.where == "tuning.target_modules"
    (finding,) = missing(["query", "key"], found_, places, "target_modules")
    assert finding.what == "key names modules, but none that got an adapter"
    assert not missing(["query"], found_, places, "target_modules")
    assert not missing("all-linear", found_, places, "target_modules")
    assert not missing(None, found_, places, "target_modules")


def test_a_target_that_is_not_there(tiny_bert, rows, tmp_path):
    report = report_of(lora(tiny_bert, rows, target_modules=["query", "q_proj"]), tmp_path)
    assert "error: no module goes by the name q_proj" in said(report, "weights")
    assert report.exit_code == 1


def test_what_the_adapter_is_on_and_that_it_comes_back(tiny_bert, rows, tmp_path):
    report = report_of(lora(tiny_bert, rows, target_modules=["query", "value"]), tmp_path)
    assert report.model["adapter"] == {"query": 2, "value": 2}
    # of 2 layers and 2 matrices each, r = 2: A is 2 x 32, B is 32 x 2; the head is 3 x 32 and 3
    assert report.model["trainable"] == 4 * 2 * (2 * 32) + 3 * 32 + 3
    assert report.model["reload"]["logits_max_difference"] < 1e-5
    assert not report.findings


def test_a_head_that_is_lost(tiny_bert, rows, tmp_path, monkeypatch):
    """As peft does without the task's type: the head is trained, and not saved."""
    from peft import PeftModel

    whole = PeftModel.save_pretrained

    def without_head(model, folder, **given):
        whole(model, folder, **given)
        from safetensors.torch import load_file, save_file

        tensors = load_file(f"{folder}/adapter_model.safetensors")
        few = {name: torch.randn_like(t) if "classifier" in name else t for name, t in tensors.items()}
        save_file(few, f"{folder}/adapter_model.safetensors")

    monkeypatch.setattr(PeftModel, "save_pretrained", without_head)
    report = report_of(lora(tiny_bert, rows, target_modules=["query"]), tmp_path)
    assert "saved and loaded again, the model gives other logits" in said(report, "reload")
    assert report.exit_code == 1


def test_differences_and_sizes(tiny_bert, rows, tmp_path, monkeypatch):
    assert differs(0.5, 1e-3)[0].level == "error"
    assert not differs(1e-6, 1e-3)
    monkeypatch.setattr(reload, "LARGEST_BYTES", 10)
    report = report_of(recipe_of(tiny_bert, rows, {"name": "text_classification"}), tmp_path)
    (finding,) = found(report, "reload")
    assert (finding.level, "was not tried" in finding.what) == ("info", True)
    assert report.exit_code == 0
