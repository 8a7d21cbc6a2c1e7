import sys

import pytest

from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.registry import TASKS, TUNINGS, Registry, registered_name, snake_case


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("TextClassification", "text_classification"),
        ("Lora", "lora"),
        ("MLMTask", "mlm_task"),
        ("T5Corruption", "t5_corruption"),
    ],
)
def test_snake_case(class_name, name):
    assert snake_case(class_name) == name


def test_names_are_the_files_and_listing_imports_none_of_them():
    before = set(sys.modules)
    assert {"full", "freeze", "lora"} <= set(TUNINGS.names())
    assert "base" not in TUNINGS.names()
    assert not [n for n in TUNINGS.names() if n.startswith("_")]
    assert set(sys.modules) == before


def test_every_listed_name_gives_a_class_of_that_name():
    names = TUNINGS.names()
    assert len(names) >= 3
    for name in names:
        assert registered_name(TUNINGS.get(name)) == name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean `text_classification`") as caught:
        TASKS.get("text_clasification", where="a.yaml:3")
    assert str(caught.value).startswith("a.yaml:3: unknown task `text_clasification`")


def test_a_user_class_registers_itself_and_cannot_take_a_taken_name():
    registry = Registry("thing")

    @registry.register
    class MyThing:
        pass

    assert registry.get("my_thing") is MyThing
    other = type("MyThing", (), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match="already"):
        registry.register(other)


@pytest.mark.parametrize(
    ("module", "class_name", "name"),
    [
        ("hf_llm_recipes.algorithms.fixmatch", "FixMatch", "fixmatch"),
        ("hf_llm_recipes.tasks.text_classification", "TextClassification", "text_classification"),
        ("my_module", "MyTask", "my_task"),
    ],
)
def test_the_registered_name_is_the_files_where_it_spells_the_class(module, class_name, name):
    assert registered_name(type(class_name, (), {"__module__": module})) == name
