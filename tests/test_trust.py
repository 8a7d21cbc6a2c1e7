"""No code runs that nobody trusted, no pickle is opened, and no secret stays in a run."""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentences, write_csv
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from hf_llm_recipes import checkpoints, secrets_scan, trust
from hf_llm_recipes.convert import convert_checkpoint
from hf_llm_recipes.errors import RecipeError, RunError, UserError
from hf_llm_recipes.judging import evaluate_run, predict_file
from hf_llm_recipes.methods.distillation import load_teacher
from hf_llm_recipes.predictor import Predictor, saved_task
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks.text_classification import TextClassification
from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource

PACKAGE = Path(trust.__file__).parent
CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

class TheirsConfig(BertConfig):
    model_type = "theirs"

class TheirsForSequenceClassification(BertForSequenceClassification):
    config_class = TheirsConfig

class TheirsTokenizer(PreTrainedTokenizerFast):
    pass
"""


def go(values, *overrides):
    import hf_llm_recipes.run  # noqa: F401

    return sys.modules["hf_llm_recipes.run"].run(Recipe.from_dict(values), *overrides)


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(autouse=True)
def nothing_is_trusted(monkeypatch):
    monkeypatch.setattr(trust, "_trusted", set())
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code-has-run"


@pytest.fixture
def theirs(tiny_bert, tmp_path, marker):
    """A checkpoint whose configuration, model and tokenizer are Python files of its own."""
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_bert, folder)
    (folder / "code_theirs.py").write_text(CODE.format(marker=str(marker)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {
        "AutoConfig": "code_theirs.TheirsConfig",
        "AutoModelForSequenceClassification": "code_theirs.TheirsForSequenceClassification",
    }
    change_json(folder / "config.json", model_type="theirs", auto_map=auto_map, architectures=["TheirsModel"])
    change_json(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "code_theirs.TheirsTokenizer"]},
        tokenizer_class="TheirsTokenizer",
    )
    return folder


def checked(folder, recipe):
    from hf_llm_recipes.checking.command import check_file

    path = folder.parent / "checked.yaml"
    path.write_text(Recipe.from_dict({**recipe, "model": {"name": str(folder)}}).dump())
    if check_file(str(path), [], estimate=False).exit_code:
        raise RunError("refused")


LOADERS = {
    "check": checked,
    "run": lambda folder, recipe: go({**recipe, "model": {"name": str(folder)}}),
    "configuration": lambda folder, recipe: _model.load_config(ModelSource(name=str(folder)), {}),
    "tokenizer": lambda folder, recipe: _model.load_tokenizer(ModelSource(name=str(folder))),
    "show model": lambda folder, recipe: _model.skeleton(_model.named_config(str(folder))),
    "convert": lambda folder, recipe: convert_checkpoint(str(folder), folder.parent / "new"),
    "teacher": lambda folder, recipe: load_teacher(str(folder), TextClassification(), None),
}


@pytest.mark.parametrize("way", list(LOADERS))
def test_code_of_a_checkpoint_does_not_run_unless_the_recipe_says_so(
    theirs, recipe, marker, monkeypatch, way
):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    with pytest.raises((UserError, ValueError)):
        LOADERS[way](theirs, recipe)
    assert not marker.exists()
    assert asked == []  # nobody is asked by a prompt that waits for 15 seconds
    assert len(LOADERS) == 7


def test_the_refusal_says_what_to_do(theirs):
    with pytest.raises(
        RunError, match=r"ships its own code: read it, then set `model\.trust_remote_code: true`"
    ):
        _model.load_config(ModelSource(name=str(theirs)), {})


def test_a_trusted_checkpoint_runs_and_its_run_asks_again_elsewhere(
    theirs, recipe, marker, monkeypatch, tmp_path
):
    done = go({**recipe, "model": {"name": str(theirs), "trust_remote_code": True}}, "trainer.max_steps=1")
    assert marker.read_text() == "ran"
    assert done.metrics["reload"]["logits_max_difference"] <= 1e-3  # loaded again in the same process
    marker.unlink()
    monkeypatch.setattr(trust, "_trusted", set())  # another process, perhaps of somebody else
    rows = write_csv(tmp_path / "new.csv", sentences(4))
    ways = (
        lambda: Predictor.load(done.path),
        lambda: Predictor.load(done.path / "model"),
        lambda: saved_task(done.path),
        lambda: evaluate_run(done.path),
        lambda: predict_file(done.path, rows, tmp_path / "answers.csv"),
        lambda: load_teacher(str(done.path), TextClassification(), None),
    )
    for way in ways:
        with pytest.raises(
            RunError, match=r"runs the code of the checkpoint .*theirs.*\n  do: read it, then add --tr"
        ):
            way()
    assert not marker.exists()
    monkeypatch.setitem(sys.modules, "none", None)
    assert len(Predictor.load(done.path, trust_code=True).predict(["the ball"])) == 1


def test_code_from_the_hub_should_be_pinned_to_a_commit():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert trust.code_notes("a/b", commit, True) == [f"the code of a/b runs, as it is at commit {commit}"]
    for revision in (None, "main", commit[:7], commit.upper()):
        (said,) = trust.code_notes("a/b", revision, True)
        assert "its owner can change it at any time: pin `model.revision` to a commit" in said
    assert trust.code_notes("a/b", None, False) == []
    assert trust.code_notes(str(PACKAGE), None, True) == []


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_configuration_cannot_ask_for_kernels_from_the_hub(tiny_bert, tmp_path, key):
    folder = tmp_path / "theirs"
    shutil.copytree(tiny_bert, folder)
    ways = (
        lambda: _model.load_config(ModelSource(name=str(folder)), {}),
        lambda: _model.load_plain(
            ModelSource(name=str(folder)), "AutoModel", _model.choose_precision("auto", frozen_base=True)
        ),
        lambda: convert_checkpoint(folder, tmp_path / "new"),
    )
    for value in ("kernels-community/x", {"": "kernels-community/x"}):
        change_json(folder / "config.json", **{key: value})
        for way in ways:
            with pytest.raises(RunError, match=f"asks for code from the Hub: {key} is `kernels-community/x`"):
                way()
    change_json(folder / "config.json", **{key: "sdpa"})
    ways[0]()


def test_nor_do_libraries_fetch_kernels_by_themselves():
    code = "import hf_llm_recipes, os; print(os.environ['USE_HUB_KERNELS'])"
    plain = {key: value for key, value in os.environ.items() if key != "USE_HUB_KERNELS"}
    for given, wanted in ((plain, "0"), ({**plain, "USE_HUB_KERNELS": "1"}, "1")):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=given, check=True
        )
        assert done.stdout.strip() == wanted


def test_code_that_would_generate_is_not_fetched_with_the_model(tiny_llama, tmp_path, marker):
    folder = tmp_path / "writes"
    shutil.copytree(tiny_llama, folder)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(marker)))
    precision = _model.choose_precision("auto", frozen_base=True)
    model = _model.load_plain(ModelSource(name=str(folder)), "AutoModelForCausalLM", precision)
    model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=1, pad_token_id=0)
    assert not marker.exists()


RECORDS = [
    ("{", "is damaged"),
    ("[]", "is damaged"),
    ("{}", "is damaged"),
    ('{"task": {"name": 1}, "config": {}, "model": {}}', "is damaged"),
    (
        '{"task": {"name": "text_classification", "x": 1}, "config": {}, "model": {"name": "a"}}',
        "what cannot be",
    ),
    ("[" * 100_000, "is damaged"),
]


@pytest.mark.parametrize(("text", "message"), RECORDS)
def test_a_record_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(RunError, match=message):
        saved_task(tmp_path)
    assert len(RECORDS) == 6


def test_an_attention_kernel_from_the_hub_is_code_too():
    with pytest.raises(ValueError, match="attn_implementation `kernels-community/x` is code from the Hub"):
        ModelSource(name="a/b", attn_implementation="kernels-community/x")
    assert ModelSource(name="a/b", attn_implementation="kernels-community/x", trust_remote_code=True)


# -- a recipe's own modules ------------------------------------------------------------------------


def user_module(folder, marker, name):
    text = f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"
    text += "\ndef reward(text, row):\n    return 1\n"
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.mark.parametrize(
    ("key", "code"), [("imports", "imports"), ("task", "task.reward")], ids=["imports", "reward"]
)
def test_a_recipe_that_names_code_asks_for_trust(tmp_path, marker, monkeypatch, key, code):
    name = user_module(tmp_path, marker, f"of_a_user_{key}")
    monkeypatch.chdir(tmp_path)
    task = {"name": "generation", "reward": f"{name}:reward"} if key == "task" else "chat"
    values = {"model": {"name": "x"}, "task": task} | ({"imports": [name]} if key == "imports" else {})
    path = tmp_path / "r.yaml"
    path.write_text(Recipe.from_dict(values).dump())
    named = name if key == "imports" else f"{name}:reward"
    with pytest.raises(RecipeError) as caught:
        trust.import_modules(Recipe.load(path))
    line = 1 + path.read_text().splitlines().index(
        f"- {name}" if key == "imports" else f"  reward: {name}:reward"
    )
    line -= key == "imports"  # the key's line, not its first item's
    assert str(caught.value) == (
        f"{path}:{line}: {code}: running this recipe runs the code of `{named}`\n"
        "  allowed: trust_imports: true, by whoever has read the code\n"
        "  do: read it, then add `trust_imports: true` to the recipe, or trust_imports=true on the "
        "command line"
    )
    assert not marker.exists()
    trust.import_modules(Recipe.load(path, ["trust_imports=true"]))
    assert marker.read_text() == "ran"
    sys.modules.pop(name)


def test_trust_without_code_has_no_effect_and_is_refused():
    with pytest.raises(RecipeError, match="trust_imports has no effect: the recipe names no code"):
        trust.import_modules(Recipe.from_dict({"trust_imports": True}))


@pytest.mark.parametrize("module", ["no_such_module", "", ".relative"])
def test_a_module_that_cannot_be_imported_is_named(module):
    values = {"imports": [module], "trust_imports": True}
    with pytest.raises(RecipeError, match=re.escape(f"imports: `{module}` cannot be imported")):
        trust.import_modules(Recipe.from_dict(values))


def test_trust_is_no_other_recipe_when_a_run_goes_on():
    one, other = {"imports": ["a"], "trust_imports": True}, {"imports": ["a"]}
    assert Recipe.from_dict(one).differences(Recipe.from_dict(other)) == []


def test_a_reward_of_a_loaded_run_is_code(tmp_path, marker, monkeypatch):
    name = user_module(tmp_path, marker, "of_a_stranger")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "model").mkdir(parents=True)
    task = {"name": "generation", "reward": f"{name}:reward"}
    record = {"task": task, "config": {}, "model": {"name": "x"}, "quantization": None}
    (tmp_path / "run" / "model" / "task.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="loading this run runs the code of of_a_stranger:reward"):
        saved_task(tmp_path / "run" / "model")
    assert not marker.exists()
    assert saved_task(tmp_path / "run" / "model", trust_code=True).reward == f"{name}:reward"
    assert marker.exists()
    sys.modules.pop(name)


def test_files_in_the_working_folder_do_not_stand_in_for_packages(tmp_path, marker):
    """A folder from elsewhere may hold wandb.py, kernels.py, …: libraries import those that are there."""
    for name in ("kernels", "wandb", "liger_kernel", "mlflow", "deepspeed", "flash_attn", "comet_ml"):
        user_module(tmp_path, marker, name)
    (tmp_path / "r.yaml").write_text("model: local/minilm\ndata: rows.csv\ntask: text_classification\n")
    script = Path(sys.executable).parent / "hf-llm-recipes"
    done = subprocess.run(
        [str(script), "show", "r.yaml"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


# -- pickles ---------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "ran"))


def plant(path, marker):
    path.write_bytes(pickle.dumps(Bomb(marker)))
    return path


def plant_zip(path, marker):
    torch.save({"x": Bomb(marker)}, path)
    return path


def test_the_planted_pickles_would_run(tmp_path, marker):
    plant_zip(tmp_path / "a.bin", marker)
    torch.load(tmp_path / "a.bin", weights_only=False)
    assert marker.read_text() == "ran"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "weights.pt", "m.pkl"]
)
@pytest.mark.parametrize("planted", [plant, plant_zip])
def test_a_model_of_pickles_is_refused_with_the_way_to_convert(
    tiny_bert, recipe, tmp_path, marker, name, planted
):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").unlink()
    planted(folder / name, marker)
    with pytest.raises(RunError) as caught:
        ModelSource(name=str(folder))
    assert f"the weights are a pickle ({name}), which can run code: only safetensors" in str(caught.value)
    assert "AutoModel….from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER)" in str(
        caught.value
    )
    with pytest.raises((OSError, ValueError)):
        convert_checkpoint(str(folder), tmp_path / "new")
    assert not marker.exists()
    assert ModelSource(architecture="hlr_encoder", preset="tiny", tokenizer=str(folder)).path == str(folder)


def test_what_the_message_advises_works(tiny_bert, tmp_path):
    from transformers import AutoModel

    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_bert, old)
    weights = load_file(old / "model.safetensors")
    torch.save(weights, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    AutoModel.from_pretrained(old, use_safetensors=False).save_pretrained(new)
    made = load_file(new / "model.safetensors")
    assert made.keys() == weights.keys()
    assert all(torch.equal(made[key], weights[key]) for key in made)


@pytest.fixture(scope="module")
def adapter_run(tiny_bert, tmp_path_factory):
    """A finished LoRA run with its checkpoints."""
    folder = tmp_path_factory.mktemp("adapter-run")
    values = {
        "output": str(folder / "out"),
        "model": {"name": str(tiny_bert)},
        "data": {"name": str(write_csv(folder / "rows.csv", sentences(60)))},
        "task": {"name": "text_classification"},
        "tuning": {"name": "lora", "r": 2},
        "trainer": {"max_steps": 2, "save_steps": 1, "use_cpu": True, "disable_tqdm": True},
    }
    return go(values).path


def test_an_adapter_of_pickles_is_refused_with_the_way_to_convert(adapter_run, tmp_path, marker):
    folder = shutil.copytree(adapter_run / "model", tmp_path / "model")
    (folder / "adapter_model.safetensors").unlink()
    plant_zip(folder / "adapter_model.bin", marker)
    with pytest.raises(
        RunError, match=r"pickle \(adapter_model.bin\)(.|\n)*PeftModel.from_pretrained\(BASE, FOLDER\)"
    ):
        Predictor.load(folder)
    assert not marker.exists()


def test_an_adapter_cannot_name_modules_to_import(adapter_run, tmp_path):
    folder = shutil.copytree(adapter_run / "model", tmp_path / "model")
    change_json(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="os")
    with pytest.raises(RunError, match=r"the adapter names modules to import \(megatron_config\)"):
        Predictor.load(folder)
    change_json(folder / "adapter_config.json", megatron_config=None)
    Predictor.load(folder)
    values = {"model": {"name": "x"}, "data": {"name": "x.csv"}, "task": {"name": "text_classification"}}
    with pytest.raises(RecipeError, match=r"tuning.megatron_core cannot be set here"):
        go({**values, "tuning": {"name": "lora", "megatron_core": "os"}})


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin", "training_args.bin"]
)
def test_a_pickle_planted_in_a_checkpoint_does_not_run(adapter_run, tmp_path, marker, name):
    folder = shutil.copytree(adapter_run, tmp_path / "out")
    for made in ("metrics.json", "README.md"):
        (folder / made).unlink()
    shutil.rmtree(folder / "model")
    checkpoint = folder / "checkpoints" / "checkpoint-1"
    shutil.rmtree(folder / "checkpoints" / "checkpoint-2")
    if name == "adapter_model.bin":
        (checkpoint / "adapter_model.safetensors").unlink()
    plant_zip(checkpoint / name, marker)
    values = Recipe.load(folder / "recipe.yaml").values | {"output": str(folder), "resume": True}
    (checkpoint / checkpoints.MANIFEST).unlink()
    checkpoints.seal(checkpoint)  # whoever plants a file can mend the hashes
    if name == "training_args.bin":  # never read
        go(values)
    else:
        with pytest.raises(RunError, match="a file of the checkpoint is damaged or is no data: Weights only"):
            go(values)
    assert not marker.exists()


def test_our_own_state_files_are_read_without_running_them():
    """Every reader in the package: torch with weights_only, numpy without pickles, and no other unpickler."""
    seen = {"torch.load": 0, "np.load": 0}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                barred = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
                assert not names & (barred if path.name != "trust.py" else barred - {"pickle"}), path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in seen:
                seen[called] += 1
            assert called != "torch.load" or given.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            barred = ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads")
            assert called not in barred, f"{path}:{node.lineno}"
    assert seen["torch.load"] >= 4
    assert seen["np.load"] >= 4


def test_numpy_refuses_a_planted_pickle(tmp_path, marker):
    np.save(tmp_path / "a.npy", np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "a.npy")
    assert not marker.exists()


# -- secrets ---------------------------------------------------------------------------------------

SECRETS = {  # made up, in the form of real ones
    "a Hugging Face token": "hf_" + "aB3dE5fG7h" * 3 + "iJ9k",
    "an API key (sk-…)": "sk-proj-" + "a1B2c3D4" * 5,
    "an AWS key": "AKIA" + "ABCDEFGH12345678",
    "a GitHub token": "ghp_" + "a1B2c3D4e5F6" * 3,
    "a GitLab token": "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
    "a Slack token": "xoxb-" + "123456789012-abcdef",
    "a Google API key": "AIza" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "the value of the variable MY_API_KEY": "correct horse battery",
    "the path of your home folder": "/home/somebody",
}
ENVIRONMENT = {"MY_API_KEY": "correct horse battery", "TOKENIZERS_PARALLELISM": "false", "HF_TOKEN": "short"}


@pytest.mark.parametrize("kind", list(SECRETS))
def test_a_planted_secret_is_found_with_file_and_line_and_not_shown(tmp_path, kind):
    assert len(SECRETS) == 10
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.md").write_text(f"one\ntwo\nx = '{SECRETS[kind]}'\n")
    (tmp_path / "clean.md").write_text(
        "hf_ sk-learn-is-a-library-without-numbers /home/somebodyelse ghp_short\n"
    )
    found = secrets_scan.scan(tmp_path, environment=ENVIRONMENT, home="/home/somebody")
    assert [str(one) for one in found] == [f"model/notes.md:3 holds {kind}"]
    assert SECRETS[kind] not in repr(found)


def test_secrets_are_found_inside_what_is_no_text(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    token = SECRETS["a Hugging Face token"]
    pq.write_table(pa.table({"n": [1, 2], "text": ["x", f"my {token}"]}), tmp_path / "predictions.parquet")
    torch.save({"hub_token": token}, tmp_path / "training_args.bin")
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"from": token})
    found = [str(one) for one in secrets_scan.scan(tmp_path, environment={}, home="/home/somebody")]
    assert found == [
        "model.safetensors holds a Hugging Face token",
        "predictions.parquet:1 holds a Hugging Face token",
        "training_args.bin holds a Hugging Face token",
    ]


def test_a_damaged_file_is_searched_as_it_lies_there(tmp_path):
    token = SECRETS["a Hugging Face token"]
    file = tmp_path / "rng_state.pth"
    torch.save({"hub_token": token}, file)
    whole = file.read_bytes()
    for place in range(1, 200):  # the directory of the archive, and some of what is before it
        file.write_bytes(whole[:-place] + bytes([whole[-place] ^ 0xFF]) + whole[len(whole) - place + 1 :])
        found = secrets_scan.scan(tmp_path, environment={}, home="/home/somebody")
        assert [str(one) for one in found] == ["rng_state.pth holds a Hugging Face token"], place
    file.unlink()
    (tmp_path / "predictions.parquet").write_bytes(f"PAR1 {token}".encode())
    found = secrets_scan.scan(tmp_path, environment={}, home="/home/somebody")
    assert [str(one) for one in found] == ["predictions.parquet holds a Hugging Face token"]


def test_what_is_found_is_told(tmp_path, caplog):
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text(SECRETS["an AWS key"])
    with caplog.at_level("WARNING", logger="hf_llm_recipes"):
        secrets_scan.warn(tmp_path)
    assert len(caplog.messages) == 11
    assert caplog.messages[0] == "careful: 00.txt:1 holds an AWS key: look at it before you pass the run on"
    assert caplog.messages[10] == "careful: 2 more such places"


@pytest.mark.parametrize("tuning", [{"name": "full"}, {"name": "lora", "r": 2}], ids=["full", "lora"])
def test_a_run_holds_no_secret_of_its_surroundings(tiny_bert, tmp_path, monkeypatch, tuning):
    home = tmp_path / "home" / "somebody"
    shutil.copytree(tiny_bert, home / "models" / "base")
    write_csv(home / "rows.csv", sentences(60))
    monkeypatch.setenv("HOME", str(home))
    secrets = {
        "HF_TOKEN": SECRETS["a Hugging Face token"],
        "WANDB_API_KEY": "0123456789abcdef",
        "DB_PASSWORD": "open sesame",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    work = home / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    values = {
        "model": {"name": str(home / "models" / "base")},
        "data": {"name": str(home / "rows.csv")},
        "task": {"name": "text_classification"},
        "tuning": tuning,
        "trainer": {
            "max_steps": 2,
            "save_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "load_best_model_at_end": True,
        },
    }
    done = go(values, "output=runs/mine")
    files = [path for path in done.path.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert [str(one) for one in secrets_scan.scan(done.path)] == []
    raw = b"".join(path.read_bytes() for path in files)
    for value in secrets.values():
        assert value.encode() not in raw
    assert Recipe.load(done.path / "recipe.yaml").section("model")["name"] == "~/models/base"
    assert len(Predictor.load(done.path).predict(["the ball"])) == 1


def test_a_recipe_with_home_written_out_is_the_same_recipe(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    one = Recipe.from_dict(
        {"data": {"name": "/home/somebody/rows.csv", "columns": {"text": "/home/somebodyelse"}}}
    )
    assert "name: ~/rows.csv" in one.dump()
    assert "/home/somebodyelse" in one.dump()
    assert one.differences(Recipe.from_text(one.dump())) == []


def test_the_configuration_of_an_unknown_type_stays_unknown(theirs, marker):
    with pytest.raises(ValueError):
        AutoConfig.from_pretrained(theirs, trust_remote_code=False)
    assert not marker.exists()
