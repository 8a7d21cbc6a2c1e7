"""Whose code may run: a recipe's modules, a checkpoint's Python files, and never a pickle.

Notable:
- A recipe that names code runs it only with ``trust_imports: true``; a checkpoint's own Python files run only
  with ``model.trust_remote_code: true``, and should then be pinned to a commit.
- A run that is loaded was perhaps made by somebody else: what its own files say of trust does not count. The
  user says it, with ``--trust-code``; what this process has trusted already is trusted still.
- The working folder is searched for modules only once a recipe is trusted: no file there can take the place
  of an optional package that is not installed.
"""

from __future__ import annotations

import importlib
import pickle  # its errors only: nothing is unpickled
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import TASKS

KEY = "trust_imports"
COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
NOT_WEIGHTS = ("optimizer.pt", "scheduler.pt", "scaler.pt")
HOW_TO_CONVERT = (
    "convert it once, which reads tensors only: AutoModel….from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(NEW_FOLDER), with the Auto class of its task"
)
HOW_TO_CONVERT_ADAPTER = (
    "convert it once, which reads tensors only: PeftModel.from_pretrained(BASE, FOLDER)"
    ".save_pretrained(NEW_FOLDER)"
)

_trusted: set[str] = set()  # what a recipe of this process was trusted with


def import_modules(recipe: Recipe) -> None:
    """Imports what a recipe names, where it is trusted.

    Raises:
        RecipeError: it names code and is not trusted, is trusted without naming code, or a module cannot be
            imported.
    """
    modules, reward = list(recipe.get("imports", [])), recipe.section("task").get("reward")
    functions = [reward] if isinstance(reward, str) and ":" in reward else []
    place = ("imports",) if modules else ("task", "reward")
    if bool(recipe.get(KEY)) != bool(modules or functions):
        _refuse(recipe, modules + functions, place)
    if modules or functions:
        _search_working_folder()
    for module in [*modules, *(name.partition(":")[0] for name in functions)]:
        _import(module, recipe.where(*place), "imports" if modules else "task.reward")
    _trusted.update(modules, functions)
    model = recipe.section("model")
    if model.get("trust_remote_code") is True:
        _trusted.add(_files_of(model.get("name")))


def _refuse(recipe: Recipe, code: list[str], place: tuple[str, ...]) -> None:
    if not code:
        raise RecipeError(
            f"{KEY} has no effect: the recipe names no code", where=recipe.where(KEY), hint="take it out"
        )
    raise RecipeError(
        f"{'.'.join(place)}: running this recipe runs the code of `{'`, `'.join(code)}`",
        where=recipe.where(*place),
        allowed=f"{KEY}: true, by whoever has read the code",
        hint=f"read it, then add `{KEY}: true` to the recipe, or {KEY}=true on the command line",
    )


def check_run(record: dict[str, Any], recipe: Path, *, trust_code: bool) -> None:
    """Imports what loading a finished run needs, where the user trusts it.

    Args:
        record: ``task.json`` of its ``model/``.
        recipe: Its recipe, which names modules where the task is not one of ours; it need not be there.
        trust_code: What the user says of code that this process has not trusted already.

    Raises:
        RunError: the run brings code and is not trusted, or a module cannot be imported.
    """
    task, model = record["task"], record["model"]
    code = [_files_of(model.get("name"))] if model.get("trust_remote_code") else []
    modules = _modules(task["name"], recipe)
    reward = str(task.get("reward"))
    functions = [reward] if ":" in reward else []
    new = [name for name in [*code, *modules, *functions] if name not in _trusted]
    if new and not trust_code:
        raise RunError(
            f"loading this run runs the code of {', '.join(new)}",
            where=str(recipe.parent),
            hint="read it, then add --trust-code to the command (in Python: trust_code=True)",
        )
    if modules or functions:
        _search_working_folder()
    for module in modules:
        _import_for(task["name"], module, recipe)
    _trusted.update(new)


def _modules(task: str, recipe: Path) -> list[str]:
    if task in TASKS.names() or not recipe.is_file():
        return []
    return list(Recipe.load(recipe).get("imports", []))


def _files_of(name: Any) -> str:
    return f"the checkpoint {name}, its own Python files"


def _import(module: str, where: str, key: str) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{key}: `{module}` cannot be imported: {error}",
            where=where,
            hint="it must be importable from the folder you run in",
        ) from error


def _import_for(task: str, module: str, recipe: Path) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, TypeError, ValueError) as error:
        raise RunError(
            f"the task `{task}` needs the module `{module}`, which cannot be imported: {error}",
            where=str(recipe),
            hint="start from the folder that holds it",
        ) from error


def _search_working_folder() -> None:
    """Behind everything that is installed; an installed script looks into its own folder only."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def code_notes(name: str | None, revision: str | None, trusted: bool) -> list[str]:
    """Returns what a user should know where a checkpoint's own code runs.

    Args:
        name: Of the checkpoint; a folder is pinned by being here.
        revision: Of a Hub id.
        trusted: ``model.trust_remote_code``.
    """
    if not trusted or name is None or Path(name).expanduser().exists():
        return []
    if COMMIT.fullmatch(revision or ""):
        return [f"the code of {name} runs, as it is at commit {revision}"]
    return [
        f"careful: the code of {name} runs, and its owner can change it at any time: pin `model.revision` to "
        "a commit (40 hexadecimal digits)"
    ]


def refuse_pickles(folder: Path, where: str | None = None) -> None:
    """Checks that a model's folder does not hold its weights as pickles only.

    Args:
        folder: Of a model or an adapter; one without any weights passes.
        where: What the user calls it.

    Raises:
        RunError: it does.
    """
    for stem, names in (("adapter", ["adapter_model.bin"]), ("model", PICKLES)):
        kept = "adapter*.safetensors" if stem == "adapter" else "*.safetensors"
        found = sorted(
            file.name for name in names for file in folder.glob(name) if file.name not in NOT_WEIGHTS
        )
        if found and next(folder.glob(kept), None) is None:
            raise RunError(
                f"the weights are a pickle ({found[0]}), which can run code: only safetensors are loaded",
                where=where or str(folder),
                hint=HOW_TO_CONVERT_ADAPTER if stem == "adapter" else HOW_TO_CONVERT,
            )


@contextmanager
def state_is_data(checkpoint: Path | None) -> Iterator[None]:
    """Says plainly that a file of a checkpoint holds more than data; none of it has run.

    Raises:
        RunError: torch's reader, which takes tensors and plain values only, has refused a file.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise RunError(
            f"a file of the checkpoint is damaged or is no data: {str(error).splitlines()[0]}",
            where=str(checkpoint),
            hint="delete this checkpoint; the run then goes on from the one before",
        ) from error


def refuse_kernels(values: dict[str, Any], where: str) -> None:
    """Refuses a ``config.json`` that asks for attention or experts computed by code from the Hub.

    Raises:
        RunError: it does.
    """
    for key, value in values.items():
        named = value.values() if isinstance(value, dict) else [value]
        if key.endswith("_implementation") or key.endswith("_implementation_internal"):
            found = next((name for name in named if isinstance(name, str) and "/" in name), None)
            if found is not None:
                raise RunError(
                    f"its config.json asks for code from the Hub: {key} is `{found}`",
                    where=where,
                    hint="set `model.attn_implementation`, e.g. to sdpa, and take the key out of config.json",
                )


def refuse_code_in_adapter(values: dict[str, Any], where: str) -> None:
    """Refuses keys of an ``adapter_config.json`` by which peft would import any module.

    Raises:
        RunError: such a key is set.
    """
    if values.get("megatron_config") is not None:
        raise RunError("the adapter names modules to import (megatron_config)", where=where)
