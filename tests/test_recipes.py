"""Every shipped recipe is read by the code it configures, and says what it measured."""

import re

import pytest

from hf_llm_recipes import shipped
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import plan

RECIPES = shipped.all_recipes()


def test_the_shipped_recipes_are_found():
    names = [recipe.name for recipe in RECIPES]
    assert len(names) >= 8
    wanted = ["full", "freeze", "lora", "dora", "qlora-4bit", "qlora-8bit"]
    assert {"quickstart", *(f"classify/{name}" for name in wanted)} <= set(names)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_every_section_is_taken_by_its_class(recipe, monkeypatch):
    # a mistake must not cost a download: nothing is fetched before every section is bound
    monkeypatch.setattr("hf_llm_recipes.assets.resolve_model", lambda *a, **k: pytest.fail("fetched"))
    bound = plan(Recipe.load(recipe.path))
    assert {"model", "data", "task", "tuning", "method", "trainer"} <= set(bound.readers)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_the_header_says_what_it_is_and_what_was_measured(recipe):
    assert recipe.title
    assert recipe.header["command"] == f"hf-llm-recipes run {recipe.name}"
    assert {"task", "method", "device", "result"} <= set(recipe.header)
    values = Recipe.load(recipe.path).values
    assert recipe.header["task"] == values["task"]["name"]
    if recipe.header["device"] == "cpu":
        assert re.search(r"\d\.\d minutes", recipe.header["time"])
        assert re.search(r"\d\.\d+ GiB", recipe.header["memory"])
        assert re.search(
            r"(accuracy|F1 of spans|exact match) \d\d\.\d % \(95 % interval \d\d\.\d–\d\d\.\d\)"
            r"|(bits a byte|loss|reward|L1 of hidden pixels) \d\.\d+ \(95 % interval \d\.\d+–\d\.\d+\)",
            recipe.header["result"],
        )
    else:
        assert "not measured" in recipe.header["result"]


def test_a_shipped_recipe_is_found_by_path_name_or_last_part():
    wanted = shipped.folder() / "classify" / "lora.yaml"
    for name in ("classify/lora", "recipes/classify/lora.yaml", "lora", str(wanted)):
        assert shipped.find_recipe(name).resolve() == wanted.resolve()
