"""An adapter merged into its base answers as the run does, or nothing is kept."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import sentences, write_csv
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_llm_recipes import merging
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.merging import merge
from hf_llm_recipes.parity import INT8_TOLERANCE, compare
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

LORA = {"name": "lora", "r": 4, "lora_dropout": 0.0}
TEXTS = ["the ball and the goal", "a good soup", "a song"]


@pytest.fixture(scope="module")
def runs(tiny_bert, tiny_llama, tmp_path_factory):
    """Finished runs by name, made when asked for."""
    folder = tmp_path_factory.mktemp("merged")
    data = {"name": str(write_csv(folder / "rows.csv", sentences(90)))}
    classes = {"model": {"name": str(tiny_bert)}, "data": data, "task": {"name": "text_classification"}}
    texts = {"model": {"name": str(tiny_llama)}, "data": data, "task": {"name": "clm", "block_size": 16}}
    values = {
        "lora": {**classes, "tuning": LORA},
        "4bit": {**classes, "tuning": LORA, "quantization": {"load_in_4bit": True}},
        "8bit": {**classes, "tuning": LORA, "quantization": {"load_in_8bit": True}},
        "full": classes,
        "language": {**texts, "tuning": LORA},
    }
    made = {}

    def get(name):
        if name not in made:
            trainer = {"max_steps": 3, "learning_rate": 0.05, "use_cpu": True, "disable_tqdm": True}
            given = {"name": name, "output": str(folder / name), "trainer": trainer, **values[name]}
            made[name] = run(Recipe.from_dict(copy.deepcopy(given))).path
        return made[name]

    return get


@pytest.mark.parametrize("name", ["lora", "4bit"])
def test_a_merged_model_is_a_plain_one_with_the_runs_answers(runs, tmp_path, name):
    folder, parity = merge(runs(name), tmp_path / "out")
    assert folder == tmp_path / "out"
    assert parity.holds
    assert (parity.rows, parity.same_answer) == (9, 1.0)  # a tenth of 90
    assert json.loads((folder / "parity.json").read_text())["rows"] == 9
    wanted = Predictor.load(runs(name)).predict(TEXTS)
    assert [row["label"] for row in Predictor.load(folder).predict(TEXTS)] == [r["label"] for r in wanted]
    # transformers alone, without peft and without this package
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert getattr(model.config, "quantization_config", None) is None
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        probable = model(**inputs).logits.softmax(-1).max(-1).values
    assert probable.tolist() == pytest.approx([row["probability"] for row in wanted], abs=1e-4)
    assert not any("lora" in key for key in load_file(folder / "model.safetensors"))


def test_the_adapter_is_not_lost(runs, tiny_bert, tmp_path):
    """The weights are the base's plus scale x B A, by hand."""
    folder, _ = merge(runs("lora"), tmp_path / "out")
    merged = load_file(folder / "model.safetensors")
    base = load_file(tiny_bert / "model.safetensors")
    adapter = load_file(runs("lora") / "model" / "adapter_model.safetensors")
    scale = json.loads((runs("lora") / "model" / "adapter_config.json").read_text())
    scale = scale["lora_alpha"] / scale["r"]
    pairs = [key.removesuffix(".lora_A.weight") for key in adapter if key.endswith(".lora_A.weight")]
    assert pairs
    for key in pairs:
        name = key.removeprefix("base_model.model.") + ".weight"
        known = next(base[n] for n in (name, name.removeprefix("bert.")) if n in base)
        change = scale * adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"]
        assert change.abs().max() > 1e-3
        assert torch.allclose(merged[name], known + change, atol=1e-6)


def test_the_card_says_so_and_its_code_needs_no_adapter(runs, tmp_path):
    folder, parity = merge(runs("lora"), tmp_path / "lora")
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "peft" not in card.split("## Data")[0]
    assert f"Merged as float32: {parity.sentence()}." in card
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_texts_written_greedily_are_compared_too(runs, tmp_path):
    _, parity = merge(runs("language"), tmp_path / "out", rows=4)
    assert parity.holds
    assert (parity.rows, parity.texts, parity.same_texts) == (4, 2, 2)


def test_eight_bit_arithmetic_is_allowed_its_rounding(runs, tmp_path):
    _, parity = merge(runs("8bit"), tmp_path / "out")
    assert parity.tolerance == INT8_TOLERANCE
    assert parity.holds


def test_half_precision(runs, tmp_path):
    folder, parity = merge(runs("lora"), tmp_path / "out", dtype="bfloat16")
    assert parity.tolerance == 0.1
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_a_model_with_other_answers_is_not_kept(runs, tmp_path, monkeypatch):
    save = merging._save_merged

    def spoilt(directory, folder, dtype, trust_code):
        save(directory, folder, dtype, trust_code)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.classifier.bias.data[0] += 1
        model.save_pretrained(folder)

    monkeypatch.setattr(merging, "_save_merged", spoilt)
    with pytest.raises(RunError, match="the merged model gives other answers: on 9 rows") as caught:
        merge(runs("lora"), tmp_path / "out")
    assert "nothing was kept" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged(runs, tmp_path):
    with pytest.raises(RunError, match="there is nothing to merge"):
        merge(runs("full"), tmp_path / "out")
    with pytest.raises(RunError, match="dtype is 'int4'\n  allowed: float32, bfloat16, float16"):
        merge(runs("lora"), tmp_path / "out", dtype="int4")
    with pytest.raises(RunError, match="rows is 0\n  allowed: 1 or more"):
        merge(runs("lora"), tmp_path / "out", rows=0)
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="exists already; nothing was changed"):
        merge(runs("lora"), tmp_path / "there")
    with pytest.raises(RunError, match="no such run directory"):
        merge(tmp_path / "nowhere")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as context:
        context.setattr("hf_llm_recipes.rundir.free_bytes", lambda path: 1000)
        with pytest.raises(RunError, match="the merged model and its twin beside it need about"):
            merge(runs("lora"), tmp_path / "out")


def test_differences_are_counted():
    wanted = (np.array([[1.0, -1.0], [1.0, -1.0]]), ["a", "b"])  # standard deviation 1
    found = (np.array([[1.0, -1.0], [-0.5, 0.0]]), ["a", "c"])
    parity = compare(wanted, found, 2, 0.5)
    assert (parity.logits_max_difference, parity.in_standard_deviations) == (1.5, 1.5)
    assert (parity.same_answer, parity.texts, parity.same_texts) == (0.5, 2, 1)
    assert not parity.holds
    assert not compare(wanted, (np.full((2, 2), np.nan), ["a", "b"]), 2, 0.5).holds
    one = compare((np.array([[2.0], [4.0]]), []), (np.array([[2.01], [5.0]]), []), 2, 2.0)
    assert (one.same_answer, one.logits_max_difference) == (0.5, 1.0)  # one output: within 1 %
