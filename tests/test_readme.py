"""The README's commands and Python are run, in a folder of their own, on a few rows and steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["trainer.max_steps=2", "data.train=train[:64]", "data.eval=validation[:16]", "data.test=test[:32]"]


def blocks(language):
    """The fenced blocks of a language; fences are paired line by line."""
    found, inside = [], None
    for line in README.splitlines():
        if line.startswith("```"):
            if inside is None:
                inside = (line.removeprefix("```"), [])
                continue
            if inside[0] == language:
                found.append("\n".join(inside[1]))
            inside = None
        elif inside is not None:
            inside[1].append(line)
    return found


def commands():
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("newcomer")


def planned(*arguments):
    """What make would do, asked for as from a terminal even where make runs these tests."""
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "-n", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=True
    ).stdout


def test_the_two_commands_are_targets_that_set_themselves_up():
    assert [c for c in commands() if c.startswith("make")][:2] == ["make quickstart", "make test"]
    for target in ("quickstart", "test"):
        plan = planned(target, "VENV=elsewhere", "trainer.max_steps=20")
        assert "-m venv elsewhere" in plan
        assert "--constraint constraints.txt" in plan


def test_a_python_too_old_for_the_pinned_versions_is_told_at_once(tmp_path):
    old = tmp_path / "python3.10"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c \"import sys; sys.version = '3.10.1 (x)'; "
        'sys.version_info = (3, 10, 1); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "quickstart", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"needs Python 3.11 or later, {old} is 3.10.1\n  do: make PYTHON=python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_quickstart_hands_its_overrides_on():
    last = planned("quickstart", "trainer.max_steps=20", "output=a").strip().splitlines()[-1]
    assert " run recipes/quickstart.yaml " in last
    assert last.split()[-2:] in (["trainer.max_steps=20", "output=a"], ["output=a", "trainer.max_steps=20"])


def test_every_other_command_runs(folder):
    ours = [c for c in commands() if c.startswith("hf-llm-recipes")]
    assert len(ours) >= 6
    for command in ours:
        words = command.replace("hf-llm-recipes", f"{sys.executable} -m hf_llm_recipes.cli", 1)
        if " run " in command:
            words += " " + " ".join(f"'{word}'" for word in SMALL)
        done = subprocess.run(words, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_yaml_is_a_recipe_for_few_labels():
    from hf_llm_recipes.data.loading import Source
    from hf_llm_recipes.recipe import Recipe
    from hf_llm_recipes.registry import ALGORITHMS, METHODS

    (block,) = blocks("yaml")
    recipe = Recipe.from_text(block)
    source = recipe.build("data", cls=Source)
    assert (source.unlabeled, source.eval_fraction) == ("raw.csv", 0)
    assert recipe.named(METHODS, "method").takes_unlabeled
    assert recipe.named(ALGORITHMS, "algorithm").students == 1
    assert recipe.get("compare") is True


def test_the_python_runs(folder):
    code = "\n".join(blocks("python"))
    assert len([line for line in code.splitlines() if line.strip()]) == 8
    code = re.sub(r'"trainer\.max_steps=\d+"', ", ".join(f'"{word}"' for word in SMALL), code)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if line.endswith(("degree.", "column's mean."))]
    assert len(answers) == 2


def test_every_recipe_stands_in_the_table_with_what_its_header_says():
    from hf_llm_recipes import shipped

    for recipe in shipped.all_recipes():
        row = next((line for line in README.splitlines() if line.startswith(f"| `{recipe.name}`")), None)
        assert row, f"{recipe.name} is not in the README's table"
        if recipe.header["device"] == "cpu":
            scores = "accuracy|F1 of spans|exact match|bits a byte|loss|reward|L1 of hidden pixels"
            accuracy = re.search(rf"(?:{scores}) (\d+\.\d+)", recipe.header["result"]).group(1)
            minutes = re.search(r"(\d+\.\d) minutes", recipe.header["time"]).group(1)
            memory = re.search(r"(\d+\.\d+) GiB", recipe.header["memory"]).group(1)
            assert accuracy in row
            assert minutes in row
            assert memory in row


def test_every_file_stands_in_the_tree_with_a_remark():
    tree = next(block for block in blocks("") if "hf_llm_recipes/" in block)
    files = [p for p in (ROOT / "hf_llm_recipes").rglob("*.py") if p.name != "__init__.py"]
    assert len(files) > 30
    missing = [p.name for p in files if not re.search(rf"\b{re.escape(p.name)}\b.*\w", tree)]
    assert not missing
