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
        RecipeError: it would be its own teacher.
    """
    method = recipe.section("method")
    if method.get("name") != "distillation" or not isinstance(method.get("teacher"), str):
        return None
    if processes.count() > 1:  # a distillation is refused then
        return None
    from hf_llm_recipes.methods._teacher import untrained

    found = untrained(method["teacher"])
    if found is None:
        return None
    if found.name == recipe.name and found.section("method") == method:
        where = recipe.where("method", "teacher")
        raise RecipeError("the recipe names itself as its teacher", where=where, allowed="another recipe")
    log.info(f"first the teacher: {method['teacher']}, into {found.values['output']}")
    return found
