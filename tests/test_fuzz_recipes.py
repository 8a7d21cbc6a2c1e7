"""Every generated mistake in a recipe gives a plan or an error that a user can act on."""

import pytest
import yaml
from _fuzzing import load_fuzz, outcomes

from hf_llm_recipes.errors import RecipeError, UserError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.shipped import all_recipes


def test_recipes(tmp_path):
    found = outcomes("recipes", 700, tmp_path)
    assert sum(found.values()) >= 600
    assert set(found) <= {"planned", "RecipeError", "RunError", "DataError", "MissingExtraError"}
    assert found["planned"] > 20
    assert found["RecipeError"] > 200


def test_names(tmp_path):
    found = outcomes("names", 200, tmp_path)
    assert sum(found.values()) >= 100
    assert set(found) <= {"found", "RecipeError"}


def test_each_key_of_each_shipped_recipe_may_be_missing(tmp_path):
    """Without any one key a recipe is planned or refused in words; no draw, every key."""
    judge, tried = load_fuzz().judge_recipe, 0
    for recipe in all_recipes()[::4]:
        values = Recipe.load(recipe.path).values
        for section, inner in values.items():
            for key in [None, *(inner if isinstance(inner, dict) else [])]:
                kept = {k: v for k, v in values.items() if k != section}
                if key is not None:
                    kept[section] = {k: v for k, v in inner.items() if k != key}
                tried += 1
                try:
                    judge((yaml.safe_dump(kept, sort_keys=False), []), tmp_path)
                except UserError:
                    continue
    assert tried > 200


FOUND = [  # what the fuzzer found, mended
    ("trainer: {accelerator_config: nowhere.json}", "trainer: FileNotFoundError"),
    ("quantization: {load_in_4bit: true, bnb_4bit_compute_dtype: x}", "quantization: AttributeError"),
    ("model: {name: " + "a" * 3000 + "}", "cannot be looked for: File name too long"),
]


@pytest.mark.parametrize(("text", "message"), FOUND, ids=["file", "dtype", "name"])
def test_what_was_found(tmp_path, text, message):
    rest = {"model": "local/minilm", "data": "x.csv", "task": "text_classification"}
    values = {**rest, **yaml.safe_load(text)}
    with pytest.raises(UserError, match=message) as caught:
        load_fuzz().judge_recipe((yaml.safe_dump(values), []), tmp_path)
    assert "recipe.yaml:" in str(caught.value)
    assert len(FOUND) == 3


def test_a_case_that_hangs_is_a_fault(tmp_path):
    import time

    fuzz = load_fuzz()
    before, fuzz.SECONDS = fuzz.SECONDS, 1
    try:
        assert fuzz.outcome(lambda case, folder: time.sleep(30), None, tmp_path) == ("slow", "slow")
    finally:
        fuzz.SECONDS = before


def test_an_error_of_nobody_is_a_fault(tmp_path):
    def judge(case, folder):
        raise {"ours": RecipeError("no"), "theirs": KeyError("x")}[case]

    fuzz = load_fuzz()
    assert fuzz.outcome(judge, "ours", tmp_path) == ("RecipeError", None)
    kind, fault = fuzz.outcome(judge, "theirs", tmp_path)
    assert kind == "fault"
    assert fault.startswith("KeyError at test_fuzz_recipes.py:")
