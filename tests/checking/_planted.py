"""Small recipes with and without a fault in them, and what a check of one found."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tasks"))  # of _tiny_chat

from hf_llm_recipes.checking.core import check
from hf_llm_recipes.recipe import Recipe

TRAINER = {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def recipe_of(model, data, task, **more):
    """A recipe as a dict; ``data`` is a file or a section."""
    section = {"name": str(data)} if isinstance(data, str) else data
    given = {"name": "planted", "model": {"name": str(model)}, "data": section, "task": task}
    return {**given, "trainer": dict(TRAINER), **more}


def report_of(values, folder, *, estimate=False):
    """What a check says of a recipe."""
    file = folder / "planted.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return check(Recipe.load(file), estimate=estimate)


def found(report, part):
    """The findings of a part."""
    return [finding for finding in report.findings if finding.part == part]


def said(report, part):
    """The findings of a part, as text."""
    return "\n".join(f"{f.level}: {f.what} [{f.where}] do: {f.do}" for f in found(report, part))
