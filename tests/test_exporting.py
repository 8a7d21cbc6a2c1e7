"""A run's model in other programs' forms answers as the run does, or nothing is kept."""

import copy
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import sentences, write_csv
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_llm_recipes import exported, exporting, parity
from hf_llm_recipes.cli import app
from hf_llm_recipes.errors import MissingExtraError, RunError
from hf_llm_recipes.exporting import export
from hf_llm_recipes.exporting.adapter import Adapter
from hf_llm_recipes.exporting.gguf import known_to_llama_cpp
from hf_llm_recipes.exporting.onnx import Onnx
from hf_llm_recipes.predictor import PADDING, Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

LORA = {"name": "lora", "r": 4, "lora_dropout": 0.0}
TEXTS = ["the ball and the goal", "a good soup", "a song"]
DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
VISION = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_channels": 1,
}


@pytest.fixture(scope="module")
def runs(tiny_bert, tiny_llama, tmp_path_factory):
    """Finished runs by name, made when asked for."""
    folder = tmp_path_factory.mktemp("exported")
    rows = {"name": str(write_csv(folder / "rows.csv", sentences(90)))}
    classes = {"model": {"name": str(tiny_bert)}, "data": rows, "task": {"name": "text_classification"}}
    texts = {"data": rows, "task": {"name": "clm", "block_size": 16}}
    ours = {
        "architecture": "hlr_decoder",
        "tokenizer": {"train": "bpe", "vocab_size": 300},
        "config": DECODER,
    }
    values = {
        "lora": {**classes, "tuning": LORA},
        "4bit": {**classes, "tuning": LORA, "quantization": {"load_in_4bit": True}},
        "full": classes,
        "tags": {
            "model": {"name": str(tiny_bert)},
            "data": {"name": str(_tags(folder))},
            "task": {"name": "token_classification"},
        },
        "language": {**texts, "model": {"name": str(tiny_llama)}, "tuning": LORA},
        "ours": {**texts, "model": ours},
        "images": {
            "model": {"architecture": "hlr_vision", "config": VISION},
            "data": {"name": "local/digits"},
            "task": {"name": "image_classification"},
        },
    }
    made = {}

    def get(name):
        if name not in made:
            trainer = {"max_steps": 3, "learning_rate": 0.05, "use_cpu": True, "disable_tqdm": True}
            given = {"name": name, "output": str(folder / name), "trainer": trainer, **values[name]}
            made[name] = run(Recipe.from_dict(copy.deepcopy(given))).path
        return made[name]

    return get


def _tags(folder):
    made = []
    for row in sentences(60):
        words = row["text"].split()
        made.append({"tokens": words, "label": ["B-X" if w in ("ball", "soup") else "O" for w in words]})
    path = folder / "tags.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """An adapter on a 4-bit base as ONNX, and its parity."""
    return export(runs("4bit"), tmp_path_factory.mktemp("onnx") / "whole", "onnx")


def card_code(folder):
    """The program of a folder's card, for a clean process in that folder's parent."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def edit_card(folder, text):
    """Asks another text than the card does."""
    code = card_code(folder).replace("Put your own text here.", text)
    (folder / "README.md").write_text(f"```python\n{code}```")


def run_card(folder, **more):
    """Runs it where neither torch nor this package can be imported."""
    blocked = "import sys\nsys.modules['torch'] = sys.modules['hf_llm_recipes'] = None\n"
    code = blocked + card_code(folder)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, capture_output=True, text=True, **more
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_onnx_answers_as_the_run_and_so_does_the_cards_code(runs, whole):
    folder, found = whole
    assert found.holds
    assert (found.rows, found.same_answer, found.tolerance) == (9, 1.0, 1e-3)
    assert json.loads((folder / "parity.json").read_text()) == dataclasses.asdict(found)
    card = (folder / "README.md").read_text()
    assert f"Exported to onnx: {found.sentence()}." in card
    assert "library_name: onnx\n" in card
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert not list(folder.glob("*.safetensors"))
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    assert labels == {"0": "food", "1": "music", "2": "sport"}

    wanted = Predictor.load(runs("4bit")).predict(["Put your own text here."])[0]
    said = dict(line.split("  ")[::-1] for line in run_card(folder))
    assert list(said) == ["food", "music", "sport"]
    assert float(said[wanted["label"]]) == pytest.approx(wanted["probability"], abs=2e-3)
    # rows of another length and number than the example's, padded too, by this package
    labels = [answer["label"] for answer in Predictor.load(runs("4bit")).predict(TEXTS)]
    assert [answer["label"] for answer in Predictor.load(folder).predict(TEXTS)] == labels


def test_the_program_answers_not_the_shell(whole, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(whole[0], folder)
    model = Predictor.load(folder).model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    ids = torch.ones(1, 40, dtype=torch.long)  # 32 positions
    with pytest.raises(RunError, match=r"the exported program did not take input_ids \(1, 40\)"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    (folder / "model.onnx").write_bytes(b"spoilt")
    with pytest.raises(RunError, match="the exported program could not be loaded"):
        Predictor.load(folder)
    (folder / "export.json").write_text("{}")
    with pytest.raises(RunError, match=r"export\.json is damaged"):
        Predictor.load(folder)
    (folder / "export.json").write_text('{"export_format": "openvino"}')
    with pytest.raises(RunError, match="holds a program for 'openvino'\n  allowed: onnx, executorch"):
        Predictor.load(folder)


def test_eight_bit_weights_of_a_tagger(runs, tmp_path):
    folder, found = export(runs("tags"), tmp_path / "small", "onnx-int8")
    assert found.holds
    assert found.rounded
    assert found.tolerance == 0.1
    assert 0 < found.rms_in_standard_deviations < 0.1
    text = "the ball and a soup"
    tags = Predictor.load(folder).predict([text.split()])[0]["tags"]
    edit_card(folder, text)
    assert [line.split("  ") for line in run_card(folder)] == [
        [tag, word] for tag, word in zip(tags, text.split(), strict=True)
    ]
    program = (folder / "model.onnx").read_bytes()
    assert b"MatMulInteger" in program


def test_a_model_with_other_answers_is_not_kept(runs, tmp_path, monkeypatch):
    write = Adapter.write

    def spoilt(self, job, rows, folder):
        write(self, job, rows, folder)
        weights = load_file(folder / "adapter_model.safetensors")
        head = next(key for key in weights if key.endswith("classifier.bias"))
        save_file(
            {**weights, head: weights[head] + torch.tensor([1.0, 0, 0])}, folder / "adapter_model.safetensors"
        )

    monkeypatch.setattr(Adapter, "write", spoilt)
    with pytest.raises(RunError, match="the adapter export gives other answers: on 9 rows") as caught:
        export(runs("lora"), tmp_path / "out", "adapter")
    assert "nothing was kept; raise --tolerance" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    _, found = export(runs("lora"), tmp_path / "out", "adapter", tolerance=100.0)
    assert found.logits_max_difference == pytest.approx(1, abs=1e-5)  # the head is the folder's
    assert found.tolerance == 100


def test_onnx_of_images(runs, tmp_path):
    folder, found = export(runs("images"), tmp_path / "images", "onnx")
    assert found.holds
    Image.fromarray(np.full((8, 8), 250, "uint8")).save(tmp_path / "image.png")
    wanted = Predictor.load(runs("images")).predict([str(tmp_path / "image.png")])[0]
    said = dict(line.split("  ")[::-1] for line in run_card(folder))
    assert float(said[wanted["label"]]) == pytest.approx(wanted["probability"], abs=2e-3)


def test_onnx_of_a_language_model_writes_the_same_texts(runs, tmp_path):
    folder, found = export(runs("language"), tmp_path / "language", "onnx", rows=4)
    assert found.holds
    assert (found.rows, found.texts, found.same_texts) == (4, 2, 2)
    # prompts of different lengths, padded on the left in one batch
    wanted = [a["generated"] for a in Predictor.load(runs("language")).predict(TEXTS)]
    assert [a["generated"] for a in Predictor.load(folder).predict(TEXTS)] == wanted
    edit_card(folder, TEXTS[0])
    assert "\n".join(run_card(folder)).strip()[:40] == wanted[0].strip()[:40]


def test_a_folder_for_llama_cpp_is_the_llama_that_our_decoder_is(runs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, found = export(runs("ours"), tmp_path / "ours", "gguf")
    assert found.holds
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float32}
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")["input_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = Predictor.load(runs("ours")).model
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, ours(ids).logits, atol=1e-5)
    assert "convert_hf_to_gguf.py" in (folder / "README.md").read_text()
    half, rounded = export(runs("ours"), tmp_path / "half", "gguf", dtype="bfloat16")
    assert rounded.tolerance == 0.1
    assert {value.dtype for value in load_file(half / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("model_type", "known"),
    [
        ("llama", True),
        ("mistral", True),
        ("qwen2_moe", True),
        ("gpt_neox", True),
        ("opt", False),
        ("ctrl", False),
    ],
)
def test_architectures_of_llama_cpp(model_type, known):
    assert known_to_llama_cpp(model_type) is known


def test_the_adapter_alone_loads_by_peft_with_its_head(runs, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    folder, found = export(runs("lora"), tmp_path / "adapter", "adapter")
    assert found.logits_max_difference == 0
    assert not (folder / "model.safetensors").exists()
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    mine = Predictor.load(runs("lora"))
    inputs = mine.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        assert torch.allclose(model(**inputs).logits, mine.model(**inputs).logits, atol=1e-6)
    assert "library_name: peft" in (folder / "README.md").read_text()


def test_an_adapter_whose_base_is_gone(tiny_bert, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    values = {
        "name": "orphan",
        "output": str(tmp_path / "orphan"),
        "model": {"name": str(base)},
        "data": {"name": str(write_csv(tmp_path / "rows.csv", sentences(30)))},
        "task": {"name": "text_classification"},
        "tuning": LORA,
        "trainer": {"max_steps": 1, "use_cpu": True, "disable_tqdm": True},
    }
    path = run(Recipe.from_dict(values)).path
    shutil.rmtree(base)
    for to in ("adapter", "onnx"):
        with pytest.raises(
            RunError, match=f"the base of the run's adapter cannot be found: the model folder `{base}`"
        ):
            export(path, tmp_path / to, to)
    assert not (tmp_path / "adapter").exists()


def test_executorch_answers_as_the_run(runs, tmp_path):
    pytest.importorskip("executorch")
    folder, found = export(runs("lora"), tmp_path / "lora", "executorch")
    assert found.holds
    assert (folder / "model.pte").is_file()
    code = card_code(folder)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("to", "module", "extra"),
    [("onnx", "onnxruntime", "onnx"), ("executorch", "executorch", "executorch"), ("gguf", "gguf", "gguf")],
)
def test_a_missing_extra_is_said_before_anything_is_loaded(runs, tmp_path, monkeypatch, to, module, extra):
    find = importlib.util.find_spec
    hidden = lambda name, *more: None if name == module else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    monkeypatch.setattr(exporting, "ask", None)  # would be called where something is loaded
    name = "ours" if to == "gguf" else "lora"
    with pytest.raises(MissingExtraError, match=rf"hf_llm_recipes\[{extra}\]"):
        export(runs(name), tmp_path / "out", to)


def test_what_cannot_be_exported(runs, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"no target `onx` \(did you mean `onnx`\?\)") as caught:
        export(runs("full"), tmp_path / "out", "onx")
    assert "adapter, executorch, gguf, onnx, onnx-int8" in str(caught.value)
    with pytest.raises(RunError, match="no such run directory"):
        export(tmp_path / "nowhere", tmp_path / "out", "onnx")
    with pytest.raises(RunError, match="rows is 0\n  allowed: 1 or more"):
        export(runs("full"), tmp_path / "out", "onnx", rows=0)
    with pytest.raises(RunError, match=r"tolerance is 0\n  allowed: a number above 0"):
        export(runs("full"), tmp_path / "out", "onnx", tolerance=0)
    with pytest.raises(RunError, match="the run's model is whole: it has no adapter to export"):
        export(runs("full"), tmp_path / "out", "adapter")
    with pytest.raises(RunError, match="AutoModelForSequenceClassification is not exported to gguf"):
        export(runs("full"), tmp_path / "out", "gguf")
    with pytest.raises(RunError, match=r"llama\.cpp reads no WordLevel tokenizer"):
        export(runs("language"), tmp_path / "out", "gguf")
    with pytest.raises(RunError, match="--dtype float16 has no effect on this target"):
        export(runs("full"), tmp_path / "out", "onnx", dtype="float16")
    with pytest.raises(RunError, match="dtype is 'int4'\n  allowed: float32, bfloat16, float16"):
        export(runs("ours"), tmp_path / "out", "gguf", dtype="int4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(RunError, match="exists and is not empty; nothing was changed"):
        export(runs("full"), tmp_path / "full", "onnx")
    monkeypatch.setattr("hf_llm_recipes.rundir.free_bytes", lambda path: 1000)
    with pytest.raises(RunError, match="the onnx export need about"):
        export(runs("full"), tmp_path / "out", "onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_memory_is_looked_at_before_anything_is_loaded(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "free_memory", lambda: 2**20)
    monkeypatch.setattr(exporting, "ask", None)
    count = sum(p.numel() for p in Predictor.load(runs("full")).model.parameters())
    assert parity.count_weights(runs("full") / "model", "AutoModelForSequenceClassification") == count
    monkeypatch.setattr(Onnx, "memory", 2**21 // count + 1)
    with pytest.raises(
        RunError, match=r"the onnx export needs about 0\.00 GiB of memory, 0\.00 GiB are free"
    ):
        export(runs("full"), tmp_path / "out", "onnx")
    with pytest.raises(RunError, match=r"merging needs about 7\.45 GiB of memory, 0\.00 GiB are free"):
        parity.need_memory(8 * 10**9, "merging")


def test_an_unfinished_run(runs, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(runs("full"), copied)
    (copied / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"has no metrics.json: the run has not finished"):
        export(copied, tmp_path / "out", "onnx")
    shutil.rmtree(copied / "model")
    with pytest.raises(RunError, match="has no model: the run has not finished"):
        export(copied, tmp_path / "out", "onnx")


def test_an_architecture_that_cannot_be_traced_is_named(runs, tmp_path, monkeypatch):
    from transformers.exporters import OnnxExporter

    def fails(*given, **more):
        raise RuntimeError("no translation of aten.odd\nmore")

    monkeypatch.setattr(OnnxExporter, "export", fails)
    with pytest.raises(RunError, match="a bert model could not be exported: RuntimeError: no translation of"):
        export(runs("full"), tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_the_figures(runs, tmp_path):
    from typer.testing import CliRunner

    told = CliRunner().invoke(app, ["export", str(runs("lora")), str(tmp_path / "out"), "--to", "adapter"])
    assert told.exit_code == 0
    assert (
        "the adapter export is the run's: on 9 rows its logits differ from those of the run by at most 0 "
        in told.output
    )


def test_padding_of_tags_is_not_compared():
    """Three words and one: the place behind the one holds no logits."""

    class Two:
        class task:  # noqa: N801
            judges_model = False

        model = None

        def logits(self, rows, labeled):
            padded = np.full((2, 3, 2), PADDING, dtype=np.float32)
            padded[0], padded[1, 0] = [[1, 2], [3, 4], [5, 6]], [7, 8]
            return padded, None

    found, texts = parity.answers(Two(), None)
    assert found.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert texts == []


def test_rounded_weights_are_held_to_errors_and_changed_answers():
    wanted = (np.array([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [1.0, -1.0]]), [])  # standard deviation 1
    shifted = wanted[0] + np.array([[0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = parity.compare(wanted, (shifted, []), 4, 0.2, rounded=True)
    assert found.rms_in_standard_deviations == pytest.approx((0.16 / 8) ** 0.5)  # 0.141
    assert found.holds
    assert not parity.compare(wanted, (shifted, []), 4, 0.1, rounded=True).holds
    turned = wanted[0] * np.array([[-0.01], [1.0], [1.0], [1.0]])  # one of four answers changes
    changed = parity.compare(wanted, (turned, []), 4, 0.9, rounded=True)
    assert changed.same_answer == 0.75
    assert changed.holds
    assert not dataclasses.replace(changed, tolerance=0.24, rms_in_standard_deviations=0.0).holds
    assert not parity.compare(wanted, (np.full((4, 2), np.nan), []), 4, 0.5, rounded=True).holds


def test_a_row_too_many_is_asked_for_one_by_one():
    """A program of one row is called once a row; rows padded on the left are cut to what they hold."""
    calls = []

    class Output(dict):
        pass

    def program(input_ids, attention_mask):
        calls.append(input_ids.tolist())
        return Output(logits=input_ids[..., None].float())

    run_it = exported._in_rows(program, 1)
    ids = torch.tensor([[1, 2], [3, 4]])
    assert run_it(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"][..., 0].tolist() == [
        [1, 2],
        [3, 4],
    ]
    assert calls == [[[1, 2]], [[3, 4]]]
    calls.clear()
    padded = run_it(input_ids=ids, attention_mask=torch.tensor([[0, 1], [1, 1]]))
    assert calls == [[[2]], [[3, 4]]]
    assert padded["logits"][..., 0].tolist() == [[0, 2], [3, 4]]
