"""The built wheel works in an environment of its own: recipes inside, the command on its PATH."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh virtual environment with the wheel installed by pip; its dependencies are this one's."""
    source, built, target = (tmp_path_factory.mktemp(name) for name in ("source", "built", "env"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("hf_llm_recipes", "recipes"):  # a copy: building leaves a build/ folder in its source
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(built), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    (site,) = target.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--force-reinstall", str(wheel)], check=True)
    return site


def run(installed, *arguments, cwd):
    return subprocess.run(
        [str(installed.parents[2] / "bin" / "hf-llm-recipes"), *arguments],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_python_file_and_recipe_is_in_the_wheel(installed):
    package = ROOT / "hf_llm_recipes"
    sources = {p.relative_to(ROOT).as_posix() for p in package.rglob("*.py")}
    recipes = {f"hf_llm_recipes/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "recipes").rglob("*.yaml")}
    found = {
        p.relative_to(installed).as_posix()
        for p in (installed / "hf_llm_recipes").rglob("*")
        if p.suffix in (".py", ".yaml")
    }
    assert len(sources) > 30
    assert len(recipes) >= 8
    assert sources | recipes == found


def test_list_and_run_work_from_the_wheel(installed, recipe, tmp_path):
    from hf_llm_recipes.recipe import Recipe

    listed = run(installed, "list", cwd=tmp_path)
    assert "classify/qlora-4bit" in listed.stdout
    (tmp_path / "mine.yaml").write_text(Recipe.from_dict(recipe).dump())
    done = run(installed, "run", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"results: {recipe['output']}" in done.stdout
    where = run(installed, "run", "nothing.yaml", cwd=tmp_path)
    assert where.returncode == 1
    assert str(ROOT) not in where.stderr
