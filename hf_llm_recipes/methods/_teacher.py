"""Teachers: a finished run, a recipe that is run for it, or a checkpoint that needs no head of ours."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from hf_llm_recipes import shipped, trust
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.rundir import METRICS, MODEL, RECIPE, RECORD, path_of
from hf_llm_recipes.tuning import _model
from hf_llm_recipes.tuning._model import ModelSource

TEACHERS = Path("runs") / "teachers"
OWN = ("compare", "push_to_hub", "resume")  # keys of a recipe that its run as a teacher goes without


@dataclass
class Answering:
    """A teacher that answers rows as they were read.

    Args:
        model: In ``eval()``.
        processor: Its own tokenizer or image processor.
        task: Makes features of rows for it: the student's columns, the teacher's length.
        columns: Of its logits, in the order of the student's classes.
    """

    model: Any
    processor: Any
    task: Any
    columns: list[int]


def load_teacher(name: str, task: Any, processor: Any) -> Any:
    """Returns the model of a finished run, or of a checkpoint that needs no head of ours.

    Args:
        name: A run directory, its ``model/``, or what ``model.name`` takes.
        task: The student's.
        processor: The student's tokenizer or image processor.

    Raises:
        RunError: there is none, its task is another, or it reads other tokens than the student.
    """
    folder = _run_of(name)
    if folder is None:
        return _published(name, task, processor)
    record = _record(name, folder, task)
    if task.processor == "tokenizer":
        _check_tokens(name, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), processor)
    return _of_run(folder, record, task, processor)


def load_answering(name: str, task: Any, id2label: dict[int, str]) -> Answering:
    """Returns a teacher that has a tokenizer of its own and the student's classes, in whatever order.

    Args:
        name: A run directory, its ``model/``, or a checkpoint with a head: a folder or a Hub id.
        task: The student's, with one answer a row.
        id2label: The student's classes.

    Raises:
        RunError: there is none, or its task, its classes or their kind are others.
    """
    folder = _run_of(name)
    if folder is None:
        source = ModelSource(name=name)
        model = _model.load_plain(source, task.auto_class, _model.choose_precision("auto", frozen_base=True))
        processor, length = _model.load_processor(source, task.processor), None
    else:
        record = _record(name, folder, task)
        theirs = TASKS.get(record["task"]["name"])(**{k: v for k, v in record["task"].items() if k != "name"})
        if theirs.item_problem != task.item_problem:
            raise RunError(
                f"the teacher answers {theirs.item_problem}, the student {task.item_problem}", where=name
            )
        processor, length = _own_processor(folder, task), record["task"].get("max_length")
        model = _of_run(folder, record, task, processor)
    if "max_length" in {field.name for field in dataclasses.fields(task)}:
        task = dataclasses.replace(task, max_length=length)
    return Answering(model, processor, task, _columns(name, model.config, id2label, task))


def recipe_of(name: str) -> Recipe | None:
    """Returns the recipe that a teacher's name stands for; its ``output`` says where the teacher is.

    The folder is named after what the recipe says: a changed recipe is another teacher.

    Args:
        name: A shipped recipe by its whole name, or a YAML file; None is returned for any other.
    """
    file = next((one.path for one in shipped.all_recipes() if one.name == name), None)
    if file is None and path_of(name).suffix in (".yaml", ".yml") and path_of(name).is_file():
        file = path_of(name)
    if file is None:
        return None
    recipe = Recipe.load(file)
    for key in OWN:
        recipe.values.pop(key, None)
    recipe.values.pop("output", None)
    digest = hashlib.sha256(recipe.dump().encode()).hexdigest()
    recipe.values["output"] = str(TEACHERS / f"{recipe.name.replace('/', '-')}-{digest[:8]}")
    return recipe


def untrained(name: str) -> Recipe | None:
    """Returns the recipe that must run before a teacher of that name answers; None where none must."""
    recipe = recipe_of(name)
    if recipe is None or (path_of(recipe.values["output"]) / METRICS).is_file():
        return None
    recipe.values["resume"] = (path_of(recipe.values["output"]) / RECIPE).is_file()
    return recipe


def _run_of(name: str) -> Path | None:
    """The ``model/`` of a finished run, of a recipe's too; None for any other name."""
    recipe = recipe_of(name)
    path = path_of(name if recipe is None else recipe.values["output"])
    found = next((f for f in (path, path / MODEL) if (f / RECORD).is_file()), None)
    if found is None and recipe is not None:
        raise RunError(
            "the teacher's recipe was not run yet",
            where=name,
            hint=f"`run` does it first; by hand: hf-llm-recipes run {name} output={path}",
        )
    return found


def _record(name: str, folder: Path, task: Any) -> dict[str, Any]:
    """What a run's model says of itself; its classes by number."""
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    trust.check_run(record, folder.parent / RECIPE, trust_code=False)
    theirs, ours = record["task"]["name"], type(task).__module__.rpartition(".")[2]
    if theirs != ours:
        raise RunError(f"the teacher was trained for {theirs}, the student for {ours}", where=name)
    config = record["config"]
    if "id2label" in config:
        config["id2label"] = {int(i): label for i, label in config["id2label"].items()}
    return record


def _of_run(folder: Path, record: dict[str, Any], task: Any, processor: Any) -> Any:
    return _model.load_saved(
        folder,
        auto_class=task.auto_class,
        source=task.fit_model(ModelSource(**record["model"])),
        updates=record["config"],
        pad_token_id=getattr(processor, "pad_token_id", None),
        quantization=record["quantization"],
    )


def _own_processor(folder: Path, task: Any) -> Any:
    if task.processor == "tokenizer":
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)


def _columns(name: str, theirs: Any, ours: dict[int, str], task: Any) -> list[int]:
    if task.item_problem == "regression" and theirs.num_labels == 1:
        return [0]
    place = {label: i for i, label in theirs.id2label.items()}
    if set(place) != set(ours.values()):
        raise RunError(
            f"the teacher's classes are {list(theirs.id2label.values())}, "
            f"the student's {list(ours.values())}",
            where=name,
            hint="name the same classes in both recipes (`task.labels`)",
        )
    return [place[ours[i]] for i in range(len(ours))]


def _published(name: str, task: Any, processor: Any) -> Any:
    if not task.vocabulary_labels:
        raise RunError(
            "is no finished run, and only a run has this task's classes",
            where=name,
            hint="train the teacher with a recipe of the same task, then name its run directory",
        )
    source = task.fit_model(ModelSource(name=name))  # it gets the student's batches, packed or not
    _check_tokens(name, _model.load_tokenizer(source), processor)
    precision = _model.choose_precision("auto", frozen_base=True)
    return _model.load_plain(source, task.auto_class, precision)


def _check_tokens(name: str, theirs: Any, ours: Any) -> None:
    if theirs.get_vocab() != ours.get_vocab():
        raise RunError(
            f"the teacher's tokenizer ({len(theirs):,} tokens) is not the student's ({len(ours):,})",
            where=name,
            hint="both read the same token ids: give the student `model.tokenizer` of the teacher",
        )
