"""The notebooks open in Colab, lie in git without outputs, and run in a clean kernel without errors."""

import ast
from pathlib import Path

import nbformat
import pytest
from _hub_server import WRITE, serving
from nbclient import NotebookClient

from hf_llm_recipes import shipped
from hf_llm_recipes.recipe import Recipe

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PUBLISHING = "06_publish_to_the_hub"
COLAB = "https://colab.research.google.com"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_notebook_is_seen():
    assert len(NOTEBOOKS) >= 6
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} == {".ipynb"}


@each_notebook
def test_it_opens_in_colab(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    title, install = notebook.cells[:2]
    address = f"{COLAB}/github/hf-llm-recipes/hf_llm_recipes/blob/main/notebooks/{path.name}"
    assert title.source.startswith("# ")
    assert f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]({address})" in title.source
    assert 'IN_COLAB = "google.colab" in sys.modules\nif IN_COLAB:\n    %pip install' in install.source
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.accelerator == "GPU"
    assert "colab" in notebook.metadata


@each_notebook
def test_it_has_parameters_and_no_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(code) > 2
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert len({cell.id for cell in cells}) == len(cells)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


@each_notebook
def test_it_defines_nothing_reusable(path):
    cells = nbformat.read(path, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code" and cell.id != "install"]
    assert len(sources) > 2
    found = [node for source in sources for node in ast.walk(ast.parse(source))]
    assert not [n.name for n in found if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("02_semi_supervised", "semi_supervised/softmatch-lora"),
        ("03_chat_qlora", "chat/sft-qlora-4bit"),
        ("04_pretrain_from_scratch", "pretrain/decoder-clm"),
    ],
)
def test_full_settings_are_those_of_the_shipped_recipe(name, recipe):
    ours, theirs = full_settings(name), Recipe.load(shipped.find_recipe(recipe)).values
    seen = 0
    for key in theirs.keys() & {"model", "tuning", "quantization", "data", "task", "algorithm", "compare"}:
        mine, yours = ours[key], theirs[key]
        if isinstance(yours, dict):  # a notebook may say more, and asks its own questions
            mine, yours = ({k: v for k, v in one.items() if k != "examples"} for one in (mine, yours))
            mine = {k: v for k, v in mine.items() if k in yours}
        assert mine == yours
        seen += 1
    assert seen >= 3
    assert ours.get("method", {"name": "supervised"})["name"] == theirs.get("method", "supervised")
    assert theirs["trainer"].items() <= ours["trainer"].items()


def test_full_settings_take_all_of_the_pool_and_the_test_rows():
    data = full_settings("02_semi_supervised")["data"]
    assert (data["unlabeled_limit"], data["test"]) == (None, "test")


def full_settings(name):
    """The recipe of a notebook with ``FULL = True``."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    cells = {cell.id: cell.source for cell in notebook.cells}
    assert cells["parameters"].startswith("FULL = False")
    found = {"FULL": True}
    exec(cells["parameters"].removeprefix("FULL = False"), found)
    for source in cells.values():
        for wanted in ("data_section", "task_section", "values"):
            if f"\n{wanted} = {{" in f"\n{source}":
                assigned = [n for n in ast.parse(source).body if isinstance(n, ast.Assign)]
                (value,) = (n.value for n in assigned if getattr(n.targets[0], "id", "") == wanted)
                found[wanted] = eval(ast.unparse(value), found)
    return found["values"]


@pytest.fixture
def environment(monkeypatch, tmp_path_factory):
    """What a kernel sees: no network, its own folder for the Hub's client."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path_factory.mktemp("home") / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads on busy cores wait for each other: ten times as long


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != PUBLISHING], ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, environment):
    execute(nbformat.read(path, as_version=4), tmp_path)


def test_publishing_pushes_and_loads_what_it_pushed(tmp_path, environment, monkeypatch):
    path = FOLDER / f"{PUBLISHING}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if cell.id == "parameters"]
    assert "\nrepository = None " in parameters.source
    parameters.source = parameters.source.replace("repository = None ", 'repository = "tester/tickets" ')
    (tmp_path / "work").mkdir()
    with serving(tmp_path / "blobs") as hub:
        for name, value in (
            ("HF_HUB_OFFLINE", "0"),
            ("HF_ENDPOINT", hub.url),
            ("HF_TOKEN", WRITE),
            ("HF_HUB_DISABLE_XET", "1"),
            ("HF_HOME", str(tmp_path / "home")),
        ):
            monkeypatch.setenv(name, value)
        execute(notebook, tmp_path / "work")
        sent = hub.files("tester/tickets")
    assert {"README.md", "config.json", "encoder.py", "model.safetensors", "recipe.yaml"} <= set(sent)
    assert "report.html" not in sent
    printed = {
        cell.id: "".join(o.get("text", "") for o in cell.outputs)
        for cell in notebook.cells
        if "outputs" in cell
    }
    assert "everything was there already" in printed["push"]
    assert "from tester/tickets: " in printed["load"]


def execute(notebook, folder):
    """Runs every cell in a clean kernel."""
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)


RENDERED = FOLDER.parent / "docs" / "notebooks"


@pytest.mark.parametrize("name", ["05_classify_your_own_csv", PUBLISHING])
def test_what_docs_show_of_it_is_the_notebook_of_today(name):
    text = (RENDERED / f"{name}.md").read_text(encoding="utf-8")
    sources = [cell.source for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells]
    places = [text.find(source) for source in sources]
    assert -1 not in places, "run `make notebooks`"
    assert places == sorted(places)
    assert text.count("~~~text") >= 4
    for path in ("/tmp/", "/root", "/home/", "/work/"):
        assert path not in text
