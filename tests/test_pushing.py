"""Runs that go to a server on loopback over real HTTP, and come back in a clean process."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from _hub_server import OTHER, READ, WRITE, serving
from conftest import sentences, write_csv
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import save_file

from hf_llm_recipes import hub, pushing, secrets_scan
from hf_llm_recipes.cli import app, main
from hf_llm_recipes.comparison import baseline_recipe
from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.hub import NoNetworkError, PushToHub
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.pushing import push
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

TEXT = "the ball and the goal"
LORA = {"name": "lora", "r": 4, "lora_dropout": 0.0}
ALWAYS = {"README.md", "metrics.json", "recipe.yaml", "report.html", "task.json", "tokenizer.json"}
ALWAYS |= {"tokenizer_config.json"}


@pytest.fixture(scope="module")
def runs(tiny_bert, tmp_path_factory):
    """Finished runs by name, made when asked for."""
    folder = tmp_path_factory.mktemp("runs")
    base = {
        "model": {"name": str(tiny_bert), "license": "MIT"},
        "data": {"name": str(write_csv(folder / "rows.csv", sentences(60))), "license": "CC-BY-4.0"},
        "task": {"name": "text_classification"},
    }
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {"architecture": "hlr_encoder", "config": sizes, "tokenizer": str(tiny_bert)}
    values = {
        "full": base,
        "lora": {**base, "tuning": LORA},
        "4bit": {**base, "tuning": LORA, "quantization": {"load_in_4bit": True}},
        "custom": {**base, "model": own},
    }
    made = {}

    def get(name):
        if name not in made:
            trainer = {"max_steps": 2, "learning_rate": 0.05, "use_cpu": True, "disable_tqdm": True}
            given = {"name": name, "output": str(folder / name), "trainer": trainer, **values[name]}
            made[name] = run(Recipe.from_dict(copy.deepcopy(given))).path
        return made[name]

    return get


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub on loopback, for this process, with a token that may write."""
    with serving(tmp_path / "blobs") as one:
        monkeypatch.setattr(constants, "ENDPOINT", one.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield one


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of a run, to spoil or to push more than once."""
    left = shutil.ignore_patterns(hub.RECORD)  # of another test's server
    return lambda name="full": shutil.copytree(runs(name), tmp_path / name, ignore=left)


def surroundings(server, tmp_path):
    """Of a clean process: its own home, and the server in place of the Hub."""
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "PYTHONPATH")}
    home = {"HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": WRITE, "HF_HUB_DISABLE_XET": "1"}
    return {**kept, **home, "HF_ENDPOINT": server.url}


def send_base(tiny_bert, folder):
    """The base of the adapters goes there as it is."""
    api = hub.connect()
    hub.make(api, "tester/bert", private=True)
    files = {file.name: file for file in tiny_bert.iterdir()}
    hub.commit(api, "tester/bert", files, message="base", onto=hub.look(api, "tester/bert", "main"))


def own_logits(path):
    predictor = Predictor.load(path)
    inputs = predictor.tokenizer(TEXT, return_tensors="pt")
    with torch.inference_mode():
        return predictor.model(**inputs).logits[0].tolist()


# what goes


def test_a_run_goes_in_one_private_commit(runs, server):
    done = push(runs("full"), PushToHub(name="tester/full"))
    one = server.repositories["tester/full"]
    assert one.private
    assert one.messages == ["initial commit", "full, by hf_llm_recipes"]
    sent = server.files("tester/full")
    assert set(sent) == ALWAYS | {"config.json", "model.safetensors"}
    assert done.sizes == {name: len(data) for name, data in sent.items()}
    assert (done.sent.commit, done.sent.new) == (one.branches["main"], True)
    assert done.sent.url == f"{server.url}/tester/full"
    for name in ("metrics.json", "report.html", "recipe.yaml"):
        assert sent[name] == (runs("full") / name).read_bytes()
    assert sent["model.safetensors"] == (runs("full") / "model" / "model.safetensors").read_bytes()


def test_the_card_names_the_repository_and_its_front_matter_comes_back_unchanged(runs, server):
    push(runs("full"), PushToHub(name="tester/full"))
    text = server.files("tester/full")["README.md"].decode()
    card = ModelCard(text)
    written = yaml.safe_load(text.split("---\n")[1])
    assert card.data.to_dict() == written
    assert (written["license"], written["library_name"]) == ("mit", "transformers")
    name, results = model_index_to_eval_results(written["model-index"])
    assert name == "full"
    test = json.loads((runs("full") / "metrics.json").read_text())["test"]
    assert {r.metric_name: r.metric_value for r in results}["Accuracy"] == test["accuracy"]
    assert "- license: CC-BY-4.0" in text
    assert "model_id = 'tester/full'\n" in text


def test_a_public_repository_a_branch_a_message_and_no_report(runs, server):
    to = PushToHub(name="full", private=False, revision="v/1", message="the first", report=False)
    done = push(runs("full"), to)
    one = server.repositories["tester/full"]  # the token's own
    assert not one.private
    assert one.messages[-1] == "the first"
    assert "report.html" not in server.files("tester/full", "v/1")
    assert server.files("tester/full") == {}  # the main branch is as it was
    assert done.sent.url == f"{server.url}/tester/full/tree/v/1"


def test_a_repository_that_is_there_stays_private_or_public(copied, server):
    path = copied()
    push(path, PushToHub(name="tester/full"))
    assert "tester/full is private, and stays so" in push(path, PushToHub(name="full", private=False)).notes
    assert server.repositories["tester/full"].private
    server.repositories["tester/full"].private = False
    with pytest.raises(
        RunError, match="tester/full: is public: whatever is sent there can be read by anybody"
    ):
        push(path, PushToHub(name="tester/full"))
    push(path, PushToHub(name="tester/full", private=False))


def test_what_merge_made_goes_with_its_own_card(runs, server, tmp_path):
    from hf_llm_recipes.merging import merge

    folder, _ = merge(runs("lora"), tmp_path / "whole", rows=2)
    done = push(folder, PushToHub(name="tester/whole"))
    sent = server.files("tester/whole")
    assert {"model.safetensors", "parity.json"} <= set(sent)
    assert "adapter_config.json" not in sent
    assert b"## Parity" in sent["README.md"]
    assert "lies in no run: it goes without recipe" in done.notes[0]


def test_an_exported_program_counts_as_weights(copied, server, tmp_path):
    folder = copied() / "model"
    (folder / "model.safetensors").rename(folder / "model.onnx")
    shutil.move(folder, tmp_path / "exported")
    push(tmp_path / "exported", PushToHub(name="tester/onnx"))
    assert "model.onnx" in server.files("tester/onnx")
    assert json.loads(server.files("tester/onnx")["task.json"])["model"]["name"] == "tester/onnx"


def test_a_dry_run_asks_nothing_and_needs_no_token(copied, server, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    path = copied()
    app(["push", str(path), "tester/full", "--dry-run"], standalone_mode=False)
    said = capsys.readouterr()
    assert server.asked == []
    assert not (path / hub.RECORD).exists()
    size = (path / "model" / "model.safetensors").stat().st_size
    assert f"{size:>14,}  model.safetensors\n" in said.out
    assert "bytes in 9 files\nnothing was sent; without --dry-run it goes to tester/full\n" in said.out
    assert "careful: report.html shows texts of test rows" in said.err


# the way back


PULL = """
import contextlib, io, json, sys
sys.modules["hf_llm_recipes"] = None  # whoever imports it fails
import bitsandbytes.nn.modules, torch
from huggingface_hub import hf_hub_download
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False  # else bfloat16 on some CPUs, from a width of 64 on
from peft import AutoPeftModelForSequenceClassification as AutoPeft
from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer, BitsAndBytesConfig

def logits(name, model):
    inputs = AutoTokenizer.from_pretrained(name, trust_remote_code=False)(TEXT, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(**inputs).logits[0].tolist()

def card_says(name):
    text = open(hf_hub_download(name, "README.md"), encoding="utf-8").read()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(text.split("```python\\n")[1].split("```")[0].replace("Put your own text here.", TEXT), {})
    return printed.getvalue().splitlines()

bits = json.load(open(hf_hub_download("tester/4bit", "task.json")))["quantization"]
found = {
    "full": logits("tester/full", Auto.from_pretrained("tester/full")),
    "lora": logits("tester/lora", AutoPeft.from_pretrained("tester/lora", num_labels=3)),
    "4bit": logits("tester/4bit", AutoPeft.from_pretrained(
        "tester/4bit", num_labels=3, quantization_config=BitsAndBytesConfig(**bits))),
    "custom": logits("tester/custom", Auto.from_pretrained("tester/custom", trust_remote_code=True)),
    "card": {name: card_says(f"tester/{name}") for name in ("full", "lora", "4bit", "custom")},
}
del sys.modules["hf_llm_recipes"]
import hf_llm_recipes
from huggingface_hub import snapshot_download
found["load"] = {
    name: hf_llm_recipes.load(snapshot_download(f"tester/{name}")).predict([TEXT])[0]["probability"]
    for name in ("full", "lora", "4bit", "custom")
}
print(json.dumps(found))
"""


def test_everything_comes_back_in_a_clean_process(runs, server, tiny_bert, tmp_path):
    """Full weights, adapters (one on a 4-bit base), our architecture as remote code; each card's code."""
    send_base(tiny_bert, tmp_path)
    for name in ("full", "lora", "4bit", "custom"):
        base = "tester/bert" if name in ("lora", "4bit") else None
        push(runs(name), PushToHub(name=f"tester/{name}", base=base))
    custom = server.files("tester/custom")
    assert {"encoder.py", "layers.py", "base.py"} <= set(custom)
    done = subprocess.run(
        [sys.executable, "-c", f"TEXT = {TEXT!r}\n{PULL}"],
        cwd="/",
        env=surroundings(server, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("full", "lora", "4bit", "custom"):
        assert found[name] == pytest.approx(own_logits(runs(name)), abs=1e-4), name
        lines = found["card"][name]  # a probability and a label a class
        assert sorted(line.split()[1] for line in lines) == ["food", "music", "sport"]
        said = [float(line.split()[0]) for line in lines]
        assert said == pytest.approx(torch.tensor(found[name]).softmax(0).tolist(), abs=1e-3)
        assert found["load"][name] == pytest.approx(max(said), abs=1e-3)
    assert json.loads(server.files("tester/lora")["adapter_config.json"])["base_model_name_or_path"] == (
        "tester/bert"
    )
    assert ModelCard(server.files("tester/lora")["README.md"].decode()).data.base_model == "tester/bert"


def test_an_adapter_whose_base_nobody_else_has_is_refused(runs, server):
    with pytest.raises(RunError, match="which nobody else has\n  do: push the base too and name it"):
        push(runs("lora"), PushToHub(name="tester/lora"))
    with pytest.raises(RunError, match="the adapter's base `tester/gone` is not on the Hub"):
        push(runs("lora"), PushToHub(name="tester/lora", base="tester/gone"))
    with pytest.raises(RunError, match="base has an effect only with an adapter"):
        push(runs("full"), PushToHub(name="tester/full", base="tester/bert"))
    assert server.repositories == {}


# interrupted, repeated, existing


def test_a_dropped_connection_is_taken_up_again(copied, server):
    server.drop = 1
    push(copied(), PushToHub(name="tester/full"))
    assert server.drop == 0
    assert len(server.uploaded) == 1
    assert "model.safetensors" in server.files("tester/full")


def test_a_killed_push_is_repeated_and_sends_nothing_twice(copied, server, tmp_path):
    path = copied()
    save_file({"more": torch.ones(3)}, path / "model" / "more.safetensors")
    server.held = hub.sha256(path / "model" / "model.safetensors")
    command = [sys.executable, "-m", "hf_llm_recipes.cli", "push", str(path), "tester/full"]
    child = subprocess.Popen(command, env=surroundings(server, tmp_path), stderr=subprocess.DEVNULL)
    small = hub.sha256(path / "model" / "more.safetensors")
    while not (server.waiting.wait(0.05) and small in server.uploaded):
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert server.repositories["tester/full"].messages == ["initial commit"]
    server.held = None
    server.gate.set()
    push(path, PushToHub(name="tester/full"))
    assert server.uploaded.count(small) == 1
    assert len(server.repositories["tester/full"].messages) == 2
    assert {"more.safetensors", "model.safetensors"} <= set(server.files("tester/full"))


def test_the_same_run_again_sends_nothing_and_a_changed_one_only_what_changed(copied, server):
    path = copied()
    first = push(path, PushToHub(name="tester/full"))
    again = push(path, PushToHub(name="tester/full"))
    assert (again.sent.commit, again.sent.new) == (first.sent.commit, False)
    card = path / "model" / "README.md"
    card.write_text(card.read_text() + "\nMore.\n")
    changed = push(path, PushToHub(name="tester/full", report=False))
    assert changed.sent.new
    assert len(server.uploaded) == 1  # the weights, once
    assert server.files("tester/full")["README.md"].endswith(b"\nMore.\n")
    assert "report.html" not in server.files("tester/full")  # it was sent before and is not wanted now


def test_a_repository_of_something_else_is_not_overwritten_unless_asked(
    copied, runs, server, tiny_bert, tmp_path
):
    send_base(tiny_bert, tmp_path)
    before = server.files("tester/bert")
    to = PushToHub(name="tester/bert")
    with pytest.raises(RunError, match=r"and would be overwritten: config.json") as caught:
        push(copied(), to)
    assert "--existing" in str(caught.value)
    assert server.files("tester/bert") == before
    # an adapter over whole weights: those would be loaded in its place
    push(runs("custom"), PushToHub(name="tester/own"))
    existing = PushToHub(name="tester/own", existing=True, base="tester/bert")
    push(copied("lora"), existing)
    assert {"config.json", "model.safetensors"} & set(server.files("tester/own")) == set()
    assert "encoder.py" in server.files("tester/own")  # what changes nothing of the loading stays


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(copied, server):
    path = copied()
    push(path, PushToHub(name="tester/full"))
    one = server.repositories["tester/full"]
    one.commit("main", dict(one.commits[one.branches["main"]]), "by hand")
    (path / "metrics.json").write_text((path / "metrics.json").read_text() + "\n")
    with pytest.raises(RunError, match=r"and would be overwritten: metrics.json\n"):
        push(path, PushToHub(name="tester/full"))


# refused


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        ("hf_" + "x" * 34, "tester/full", "the Hub refused the token\n  do: make a token with write rights"),
        (READ, "tester/full", "the token of tester may only read"),
        (OTHER, "tester/full", "this token may not write there .*rights to create a model there"),
    ],
)
def test_tokens_that_may_not(runs, server, monkeypatch, token, name, message):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RunError, match=message):
        push(runs("full"), PushToHub(name=name))
    assert server.repositories == {}


def test_without_a_token_offline_or_without_a_network(runs, server, monkeypatch):
    to = PushToHub(name="tester/full")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        NoNetworkError, match=r"the Hub cannot be reached: Connect.*\n  do: check the network"
    ):
        push(runs("full"), to)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RunError, match="there is no token for the Hub\n  allowed: one of `hf auth login`"):
        push(runs("full"), to)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="told to stay offline"):
        push(runs("full"), to)
    assert server.asked == []


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ({"/commit/": 422}, "the Hub rejected it: 422: refused with 422"),
        ({"PUT /blobs/": 403}, "this token may not write there .refused with 403"),
        ({"/commit/": 503}, "the Hub answers 503 .*\n  do: push again later"),
        ({"/commit/": 412}, "somebody has changed the repository since"),
    ],
)
def test_what_the_server_rejects_leaves_the_repository_empty(copied, server, refuse, message):
    server.refuse = refuse
    path = copied()
    with pytest.raises(RunError, match=message):
        push(path, PushToHub(name="tester/full"))
    assert server.files("tester/full") == {}
    assert not (path / hub.RECORD).exists()
    server.refuse = {}
    assert push(path, PushToHub(name="tester/full")).sent.new  # and then it goes


def test_a_card_that_the_hub_refuses_is_told_with_its_reason(copied, server):
    path = copied()
    card = path / "model" / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: mine"))
    with pytest.raises(RunError, match=r'Invalid metadata in README.md.\n- "license" must be one of'):
        push(path, PushToHub(name="tester/full"))
    assert server.uploaded == []


def test_a_secret_in_any_file_stops_everything(copied, server, monkeypatch):
    path = copied()
    (path / "model" / "notes.txt").write_text("fine\nhf_" + "a1" * 17 + "\n")
    monkeypatch.setenv("MY_API_KEY", "open-sesame")
    (path / "metrics.json").write_text(
        (path / "metrics.json").read_text().replace("{", '{"a": "open-sesame",', 1)
    )
    with pytest.raises(RunError, match="nothing was sent") as caught:
        push(path, PushToHub(name="tester/full"))
    assert "\n    metrics.json:1 holds the value of the variable MY_API_KEY\n" in str(caught.value)
    assert "\n    notes.txt:2 holds a Hugging Face token\n" in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert server.asked == []


def test_weights_of_any_size_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets_scan, "PIECE", 100)
    monkeypatch.setattr(secrets_scan, "OVERLAP", 50)
    token = b"hf_" + b"a1" * 17  # 37 bytes
    for begin in range(0, 230, 7):  # within a piece, across two, at the end
        (tmp_path / "model.gguf").write_bytes(b"\0" * begin + token + b"\0" * (230 - begin))
        found = secrets_scan.scan(tmp_path, environment={}, home="/home/somebody")
        assert [str(one) for one in found] == ["model.gguf holds a Hugging Face token"], begin


def test_runs_that_cannot_go(copied, server, tmp_path):
    to, path = PushToHub(name="tester/full"), copied()

    def refused(message, where=path):
        with pytest.raises(RunError, match=message):
            push(where, to)

    metrics = json.loads((path / "metrics.json").read_text())
    metrics["reload"] |= {"logits_max_difference": 0.5}
    (path / "metrics.json").write_text(json.dumps(metrics))
    refused(r"gives other answers than the trained one \(logits differ by 0.5\)")
    (path / "metrics.json").unlink()
    refused("has no metrics.json: the run has not finished")
    (path / "metrics.json").write_text(json.dumps({}))
    (path / "model" / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    refused("is a link: what it leads to may be no part of the model")
    (path / "model" / "link.txt").unlink()
    (path / "model" / "model.safetensors").rename(path / "model" / "weights")
    refused("holds no weights; nothing was sent")
    (path / "model" / "weights").rename(path / "model" / "pytorch_model.bin")
    refused("the weights are a pickle")
    shutil.rmtree(path / "model")
    refused("has no model: the run has not finished")
    refused("no such run directory", tmp_path / "nothing")
    assert server.asked == []


@pytest.mark.parametrize("name", ["a/b/c", "user/", "-x", "a b", "x" * 97, "user/name..", ""])
def test_names_that_the_hub_does_not_know(name):
    with pytest.raises(RunError, match="is no name of a repository\n  allowed: user/name"):
        PushToHub(name=name)


# from a recipe


def test_push_to_hub_in_a_recipe():
    def asked(value, **more):
        return hub.settings_of(Recipe.from_dict({"name": "mine", "push_to_hub": value, **more}))

    assert asked(True) == PushToHub(name="mine")
    assert asked("me/mine") == PushToHub(name="me/mine")
    assert asked({"private": False}) == PushToHub(name="mine", private=False)
    assert asked(False) is None
    assert asked(None) is None
    with pytest.raises(
        RecipeError, match=r"the run's name 'my run' is no name of a repository(.*\n)*.*user/name"
    ):
        asked(True, name="my run")
    with pytest.raises(RecipeError, match=r"push_to_hub.privat is an unknown key \(did you mean `private`"):
        asked({"privat": True})
    with pytest.raises(RunError, match="push_to_hub: 'a/b/c' is no name of a repository"):
        asked("a/b/c")
    with pytest.raises(
        RecipeError, match="hub_model_id cannot be set here\n  do: write `push_to_hub: user/name`"
    ):
        Recipe.from_dict({"hub_model_id": "me/mine"})


def test_the_place_is_no_part_of_what_was_trained(recipe, tmp_path):
    here, there = (Recipe.from_dict({**recipe, "push_to_hub": name}) for name in ("me/a", "me/b"))
    assert here.differences(there) == []  # a run may be taken up for another place
    assert baseline_recipe(here, tmp_path, 4).get("push_to_hub") is None


def test_a_push_that_cannot_work_is_told_before_the_training(
    recipe, server, monkeypatch, tiny_bert, tmp_path
):
    def refused(message, **values):
        with pytest.raises((RecipeError, RunError), match=message):
            run(Recipe.from_dict({**recipe, **values}))
        assert not Path(recipe["output"]).exists()

    refused("which nobody else has", tuning=LORA, push_to_hub=True)
    refused("base has an effect only with an adapter", push_to_hub={"base": "tester/bert"})
    assert server.repositories == {}
    send_base(tiny_bert, tmp_path)
    refused("holds something that was not pushed from this run", push_to_hub="tester/bert")
    server.repositories["tester/bert"].private = False
    refused("tester/bert: is public", push_to_hub={"name": "tester/bert", "existing": True})
    monkeypatch.setenv("HF_TOKEN", OTHER)
    refused("this token may not write there", push_to_hub="tester/mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(
        r"cannot be reached(.*\n)*.*take `push_to_hub` out and push the finished run later", push_to_hub=True
    )
    monkeypatch.delenv("HF_TOKEN")
    refused("there is no token for the Hub", push_to_hub=True)


def test_a_push_that_fails_after_the_training_costs_no_result(recipe, server, monkeypatch, capsys, tmp_path):
    server.refuse = {"/commit/": 500}
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps({**recipe, "push_to_hub": {"name": "tester/tiny", "private": False}}))
    monkeypatch.setattr(sys, "argv", ["hf-llm-recipes", "run", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    path = Path(recipe["output"])
    assert ended.value.code == 1
    assert f"results: {path}" in said.out
    assert "not pushed: tester/tiny: the Hub answers 500 (refused with 500)" in said.err
    command = f"hf-llm-recipes push {path} tester/tiny --public"
    assert f"to push it later: {command}\n" in said.err
    server.refuse = {}
    app(command.split()[1:], standalone_mode=False)
    assert not server.repositories["tester/tiny"].private
    assert "model.safetensors" in server.files("tester/tiny")
    assert (
        b"push_to_hub" not in server.files("tester/tiny")["recipe.yaml"]
    )  # whoever runs it has another place
    assert b"push_to_hub" not in server.files("tester/tiny")["README.md"]
    assert b"push_to_hub" in (path / "recipe.yaml").read_bytes()  # but a run that is taken up again keeps it


def test_of_several_processes_one_asks_and_pushes(recipe, runs, server, monkeypatch):
    path = runs("full")
    monkeypatch.setattr(pushing.processes, "is_main", lambda: False)
    to = pushing.before_training(Recipe.from_dict({**recipe, "push_to_hub": "tester/tiny"}))
    assert to == PushToHub(name="tester/tiny")
    assert pushing.after_run(path, to) is None
    assert server.asked == []
    monkeypatch.setattr(pushing.processes, "is_main", lambda: True)
    assert pushing.after_run(path, to)["url"] == f"{server.url}/tester/tiny"


def test_an_adapter_on_a_base_of_the_hub_is_trained_and_pushed_by_one_command(
    recipe, server, tiny_bert, tmp_path
):
    """In a process of its own: the base is downloaded, and the run goes up."""
    send_base(tiny_bert, tmp_path)
    values = {**recipe, "model": {"name": "tester/bert"}, "tuning": LORA, "push_to_hub": "tiny-lora"}
    (tmp_path / "tiny.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "hf_llm_recipes.cli", "run", str(tmp_path / "tiny.yaml")]
    done = subprocess.run(
        command, env=surroundings(server, tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"the run will be pushed to {server.url}/tester/tiny-lora" in done.stderr
    assert re.search(rf"pushed: {server.url}/tester/tiny-lora$", done.stdout, re.MULTILINE)
    sent = server.files("tester/tiny-lora")
    assert set(sent) == ALWAYS | {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "tester/bert"
    assert ModelCard(sent["README.md"].decode()).data.base_model == "tester/bert"
    assert not push(Path(recipe["output"]), PushToHub(name="tester/tiny-lora")).sent.new


def test_the_command_that_pushes_later_says_all_that_was_asked():
    to = PushToHub(
        name="me/x", private=False, existing=True, base="me/b", revision="v1", message="it's", report=False
    )
    assert pushing.command(Path("runs/my run"), to) == (
        "hf-llm-recipes push 'runs/my run' me/x --public --existing --base me/b --revision v1 "
        "--message 'it'\"'\"'s' --no-report"
    )
