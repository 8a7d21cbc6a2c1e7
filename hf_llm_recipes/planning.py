"""Recipe -> plan: every section bound to the class that reads it, before anything is loaded.

A typo costs seconds; what has no effect with the chosen method is refused.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

from hf_llm_recipes import hub, rundir, trust
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import (
    ALGORITHMS,
    AUGMENTATIONS,
    CALLBACKS,
    METHODS,
    STAGES,
    TASKS,
    TUNINGS,
    Registry,
    registered_name,
)
from hf_llm_recipes.training import device_defaults

SEED = 42
DEFAULT_ALGORITHM = "softmatch"
# Where upstream's default would surprise: no log on short runs, a NaN shown as 0.0, a resume
# that forgets the callbacks' counters, checkpoints without end.
TRAINER_DEFAULTS: dict[str, Any] = {
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "restore_callback_states_from_checkpoint": True,
    "save_total_limit": 2,
    "per_device_eval_batch_size": 32,
}
TRAINER_REFUSED = {
    "output_dir": "set the top-level key `output`",
    "seed": "set the top-level key `seed`",
    "resume_from_checkpoint": "set the top-level key `resume: true`, with `output`",
    "do_train": "it has no effect here",
    "do_eval": "it has no effect here",
    "do_predict": "it has no effect here",
    "push_to_hub": "set the top-level key `push_to_hub: user/name`, or push later: `hf-llm-recipes push`",
    "hub_model_id": "set the top-level key `push_to_hub: user/name`",
    "hub_token": "log in with `hf auth login`; a recipe holds no secrets",
    "use_cache": "the task decides it",
    "remove_unused_columns": "the task hands over only what the model takes",
    "label_names": "the task decides it",
}


@dataclass
class Plan:
    """A recipe with every section bound to the class that reads it.

    Args:
        recipe: The recipe with the defaults of our own classes written out.
        source: ``data.loading.Source``.
        model: ``tuning._model.ModelSource``.
        task: A registered task.
        tuning: A registered tuning.
        quantization: Arguments of ``BitsAndBytesConfig``, or None.
        method: A registered method.
        trainer: Arguments of the method's ``arguments_class``, checked.
        algorithm: A registered algorithm, or None where the method takes none.
        augmentation: Registered augmentations, in order.
        stages: Registered stages, in order.
        assessment: ``assessing.section.Assessment``, what is looked at beyond the scores.
        callbacks: Registered callbacks, one instance each.
        readers: For every section the class that reads it.
    """

    recipe: Recipe
    source: Any
    model: Any
    task: Any
    tuning: Any
    quantization: dict[str, Any] | None
    method: Any
    trainer: dict[str, Any]
    algorithm: Any
    augmentation: list[Any]
    stages: list[Any]
    assessment: Any
    callbacks: list[Any]
    readers: dict[str, str]

    @property
    def seed(self) -> int:
        """Of every random source."""
        return self.recipe.get("seed", SEED)


def plan(recipe: Recipe) -> Plan:
    """Binds every section of a recipe to its class.

    Raises:
        RecipeError: a key, type or value that its class does not take, with file and line.
    """
    from hf_llm_recipes.assessing.section import Assessment
    from hf_llm_recipes.data.loading import Source
    from hf_llm_recipes.tuning._model import ModelSource

    trust.import_modules(recipe)
    for needed in ("model", "data", "task"):
        if not recipe.section(needed):
            raise RecipeError(f"{needed} is missing", where=recipe.source, hint=f"add a `{needed}:` section")
    task_class = recipe.named(TASKS, "task")
    tuning_class = recipe.named(TUNINGS, "tuning", default="full")
    method_class = recipe.named(METHODS, "method", default="supervised")
    task_name = registered_name(task_class)
    if task_name in method_class.for_task:
        method_class = METHODS.get(method_class.for_task[task_name])
    _check_pairing(recipe, task_class, method_class)
    model = recipe.build("model", cls=ModelSource)
    source = recipe.build("data", cls=Source)
    task = recipe.build("task", cls=task_class, named=True)
    tuning = recipe.build(
        "tuning", cls=tuning_class, rest=tuning_class.rest(), named=True, refused=tuning_class.refused()
    )
    method = recipe.build("method", cls=method_class, named=True)
    quantization = _quantization(recipe)
    trainer = _trainer(recipe, method_class)
    algorithm = _algorithm(recipe, method_class)
    _check_pool_is_used(recipe, source, method_class)
    if source.clean is not None and task_class.places:
        raise RecipeError(
            f"data.clean would move the places that labels of the task {task_name} count in characters",
            where=recipe.where("data", "clean"),
            allowed="tasks whose labels are no places in a text",
            hint="take it out, and clean the texts before their answers are marked",
        )
    augmentation, augmentation_readers = _listed(recipe, AUGMENTATIONS, "augmentation")
    stages, stage_readers = _listed(recipe, STAGES, "stages")
    callbacks, callback_readers = _listed(recipe, CALLBACKS, "callbacks", method_class.refused_callbacks)
    readers = {
        "model": ModelSource,
        "tuning": (tuning_class, tuning_class.rest()),
        "data": Source,
        "task": task_class,
        "method": method_class,
        "trainer": method_class.arguments_class(),
        **({"evaluate": Assessment} if recipe.section("evaluate") else {}),
    }
    if hub.settings_of(recipe) is not None:
        readers[hub.KEY] = hub.PushToHub
    if quantization is not None:
        from transformers import BitsAndBytesConfig

        readers["quantization"] = BitsAndBytesConfig
    bound = {"model": model, "data": source, "task": task, "tuning": tuning, "method": method}
    if algorithm is not None:
        readers["algorithm"] = type(algorithm)
        bound["algorithm"] = algorithm
    return Plan(
        recipe=_resolved(recipe, bound, trainer),
        source=source,
        model=model,
        task=task,
        tuning=tuning,
        quantization=quantization,
        method=method,
        trainer=trainer,
        algorithm=algorithm,
        augmentation=augmentation,
        stages=stages,
        assessment=recipe.build("evaluate", cls=Assessment),
        callbacks=callbacks,
        readers={k: _class_path(v) for k, v in readers.items()}
        | augmentation_readers
        | stage_readers
        | callback_readers,
    )


def _quantization(recipe: Recipe) -> dict[str, Any] | None:
    if not recipe.section("quantization"):
        return None
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        from hf_llm_recipes.errors import MissingExtraError

        raise MissingExtraError("bitsandbytes", "quantization") from error
    given = recipe.arguments("quantization", cls=BitsAndBytesConfig)
    recipe.constructed(lambda: BitsAndBytesConfig(**given), "quantization")
    if bool(given.get("load_in_4bit")) == bool(given.get("load_in_8bit")):
        raise RecipeError(
            "quantization chooses neither or both of the widths",
            where=recipe.where("quantization"),
            allowed="load_in_4bit: true, or load_in_8bit: true",
        )
    return given


def _trainer(recipe: Recipe, method_class: type) -> dict[str, Any]:
    from hf_llm_recipes.callbacks._trackers import check_trackers
    from hf_llm_recipes.methods._bounds import check_bounds

    arguments = method_class.arguments_class()
    given = recipe.arguments("trainer", cls=arguments, refused=TRAINER_REFUSED)
    check_bounds(recipe, given)
    recipe.located(lambda: check_trackers(given.get("report_to")), "trainer")
    resolved = {**TRAINER_DEFAULTS, **method_class.argument_defaults(), **given}
    recipe.constructed(
        lambda: arguments(**{**device_defaults(), "bf16": False, **resolved}, output_dir="checkpoints"),
        "trainer",
    )
    return resolved


def _listed(
    recipe: Recipe, registry: Registry, key: str, refused: dict[str, str] | None = None
) -> tuple[list[Any], dict[str, str]]:
    """Instances of a list's named blocks, and who reads each."""
    made, readers = [], {}
    for i in range(len(recipe.get(key, []))):
        cls = recipe.named(registry, key, i)
        if reason := (refused or {}).get(registered_name(cls)):
            raise RecipeError(reason, where=recipe.where(key, i), hint="take it out")
        made.append(recipe.build(key, i, cls=cls, named=True))
        readers[f"{key}.{i}"] = _class_path(cls)
    return made, readers


def _algorithm(recipe: Recipe, method_class: type) -> Any:
    """The recipe's algorithm; None where the method takes none."""
    if method_class.takes_algorithm:
        cls = recipe.named(ALGORITHMS, "algorithm", default=DEFAULT_ALGORITHM)
        return recipe.build("algorithm", cls=cls, named=True)
    for key in ("algorithm", "augmentation"):
        if recipe.get(key):
            raise RecipeError(
                f"{key} has no effect with this method",
                where=recipe.where(key),
                allowed="method: semi_supervised",
                hint=f"take it out, or `{key}=null` on the command line",
            )
    return None


def _check_pairing(recipe: Recipe, task_class: type, method_class: type) -> None:
    """Refuses a method that cannot train the task, and the other way round."""
    task, method = registered_name(task_class), registered_name(method_class)
    if task_class.methods is not None and method not in task_class.methods:
        raise RecipeError(
            f"method {method} cannot train the task {task}",
            where=recipe.where("method"),
            allowed=", ".join(task_class.methods),
        )
    if method_class.tasks is not None and task not in method_class.tasks:
        raise RecipeError(
            f"method {method} cannot train the task {task}",
            where=recipe.where("task"),
            allowed=", ".join(f"task: {name}" for name in method_class.tasks),
        )


def _check_pool_is_used(recipe: Recipe, source: Any, method_class: type) -> None:
    if source.unlabeled is None or method_class.takes_unlabeled or recipe.get("stages"):
        return
    raise RecipeError(
        "data.unlabeled has no effect with this method",
        where=recipe.where("data", "unlabeled"),
        allowed="method: semi_supervised, self_training, propagation or distillation, or `stages:`",
        hint="take it out, or `data.unlabeled=null` on the command line",
    )


def _resolved(recipe: Recipe, bound: dict[str, Any], trainer: dict[str, Any]) -> Recipe:
    """A copy with the defaults of our own classes written out, upstream's left to upstream."""
    copied = copy.deepcopy(recipe)
    names = {"tuning": "full", "method": "supervised", "algorithm": DEFAULT_ALGORITHM}
    for key, instance in bound.items():
        section = dict(recipe.section(key))
        if key in names:
            section.setdefault("name", names[key])
        if dataclasses.is_dataclass(instance):
            given = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
            inner = {k: dataclasses.asdict(v) for k, v in given.items() if dataclasses.is_dataclass(v)}
            section |= given | inner
        copied.values[key] = {k: v for k, v in section.items() if v is not None}
    copied.values["trainer"] = trainer
    copied.values.setdefault("seed", SEED)
    return copied


def recipe_text(plan: Plan) -> str:
    """The resolved recipe, without the keys that belong to this one run."""
    kept = copy.deepcopy(plan.recipe)
    kept.values.pop("output", None)
    kept.values.pop("resume", None)
    return (
        f"# {plan.recipe.name} as it was run; run it again with: hf-llm-recipes run {rundir.RECIPE}\n"
        + kept.dump()
    )


def _class_path(found: Any) -> str:
    classes = found if isinstance(found, tuple) else (found,)
    return " + ".join(f"{c.__module__}.{c.__qualname__}" for c in classes if c is not None)
