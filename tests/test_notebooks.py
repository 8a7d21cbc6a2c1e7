"""The notebooks open in Colab, lie in git without outputs, and run in a clean kernel without errors."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from hf_llm_recipes import shipped
from hf_llm_recipes.recipe import Recipe

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
COLAB = "https://colab.research.google.com"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_every_notebook_is_seen():
    assert len(NOTEBOOKS) >= 2
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


def test_full_settings_of_semi_supervised_are_those_of_the_shipped_recipe():
    cells = {
        cell.id: cell.source
        for cell in nbformat.read(FOLDER / "02_semi_supervised.ipynb", as_version=4).cells
    }
    assert cells["parameters"].startswith("FULL = False")
    found = {"FULL": True}
    exec(cells["parameters"].removeprefix("FULL = False"), found)
    for cell, name in (("data", "data_section"), ("recipe", "values")):
        assigned = [n for n in ast.parse(cells[cell]).body if isinstance(n, ast.Assign)]
        (value,) = (n.value for n in assigned if n.targets[0].id == name)
        found[name] = eval(ast.unparse(value), found)
    ours = found["values"]
    theirs = Recipe.load(shipped.find_recipe("semi_supervised/softmatch-lora")).values
    for key in ("model", "tuning", "task", "algorithm", "compare"):
        assert ours[key] == theirs[key]
    assert ours["method"] == {"name": theirs["method"]}
    assert theirs["trainer"].items() <= ours["trainer"].items()
    assert theirs["data"].items() <= ours["data"].items()
    assert (ours["data"]["unlabeled_limit"], ours["data"]["test"]) == (None, "test")


@each_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads on busy cores wait for each other: ten times as long
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
