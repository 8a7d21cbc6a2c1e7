"""What runs before a distillation whose teacher is named by its recipe: that recipe."""

from __future__ import annotations

import logging

from hf_llm_recipes import processes
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.recipe import Recipe

log = logging.getLogger("hf_llm_recipes")


def to_train(recipe: Recipe) -> Recipe | None:
    """Returns the recipe of a teacher that is not there yet; None where the run needs none.

    Args:
        recipe: Of the run that the teacher is for.

    Raises:
        RecipeError: it would be its own teacher, at once or through others.
    """
    found = _named_by(recipe)
    if found is None:
        return None
    line = [found]
    while (further := _named_by(line[-1])) is not None:
        if further.values["output"] in [one.values["output"] for one in line]:
            raise RecipeError(
                "the teachers teach each other: " + " <- ".join(str(one.name) for one in (*line, further)),
                where=recipe.where("method", "teacher"),
                allowed="a line of recipes that ends at a model or a recipe of another method",
            )
        line.append(further)
    log.info(f"first the teacher: {recipe.section('method')['teacher']}, into {found.values['output']}")
    return found


def _named_by(recipe: Recipe) -> Recipe | None:
    """The recipe that a distillation names as its teacher and that was not run yet."""
    method = recipe.section("method")
    if method.get("name") != "distillation" or not isinstance(method.get("teacher"), str):
        return None
    if processes.count() > 1:  # a distillation is refused then
        return None
    from hf_llm_recipes.methods._teacher import untrained

    return untrained(method["teacher"])
