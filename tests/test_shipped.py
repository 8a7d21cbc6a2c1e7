import pytest

from hf_llm_recipes import shipped
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.shipped import all_recipes, find_recipe, folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Recipes of the test's own, and a working directory without any."""
    root = tmp_path / "recipes"
    for name in ("quick.yaml", "classify/lora.yaml", "classify/full.yaml", "tag/full.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n# device: cpu\nmodel: {{name: x}}\n")
    monkeypatch.setattr(shipped, "folder", lambda: root)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return root


def test_the_shipped_recipes_are_there_and_can_be_read():
    found = all_recipes()
    assert len(found) == len(list(folder().rglob("*.yaml"))) > 0
    assert [r.name for r in found] == sorted(r.name for r in found)
    for recipe in found:
        assert find_recipe(recipe.name) == recipe.path
        assert recipe.title
        assert recipe.header["task"]
        assert set(Recipe.load(recipe.path).values) >= {"model", "data", "task"}


def test_a_header_is_read_up_to_the_first_line_that_is_no_comment(root):
    (root / "a.yaml").write_text(
        "# The title: with a colon\n"
        "# task: text_classification\n"
        "# result: accuracy 0.9 (95 %: 0.8 to 1.0)\n"
        "# time:\n"
        "# a remark: no key of a header\n"
        "model: {name: x}\n"
        "# device: gpu\n"
    )
    (root / "b.yaml").write_text("model: {name: x}\n")
    found = {recipe.name: recipe for recipe in all_recipes()}
    assert found["a"].title == "The title: with a colon"
    assert found["a"].header == {
        "task": "text_classification",
        "result": "accuracy 0.9 (95 %: 0.8 to 1.0)",
        "time": "",
    }
    assert (found["b"].title, found["b"].header) == ("", {})


@pytest.mark.parametrize(
    "wanted", ["classify/lora", "classify/lora.yaml", "recipes/classify/lora.yml", "lora", r"classify\lora"]
)
def test_a_shipped_recipe_has_many_spellings(root, wanted):
    assert find_recipe(wanted) == root / "classify" / "lora.yaml"


def test_a_file_goes_before_a_shipped_name(root, tmp_path):
    mine = tmp_path / "work" / "quick"
    mine.write_text("x")
    assert find_recipe("quick").read_text() == "x"
    mine.unlink()
    mine.mkdir()  # a folder of that name is no recipe
    assert find_recipe("quick") == root / "quick.yaml"


def test_a_folder_is_said_to_be_one(root, tmp_path):
    (tmp_path / "work" / "mine").mkdir()
    with pytest.raises(RecipeError, match="mine: is a folder, not a recipe"):
        Recipe.load(find_recipe("mine"))


def test_an_unknown_name_gets_the_nearest(root):
    with pytest.raises(RecipeError) as caught:
        find_recipe("classify/lorra")
    assert str(caught.value) == (
        "there is no recipe `classify/lorra` (did you mean `classify/lora`?)\n"
        "  allowed: a YAML file, or one of: classify/full, classify/lora, quick, tag/full"
    )


def test_a_short_name_of_two_is_none(root):
    with pytest.raises(RecipeError, match="there is no recipe `full`"):
        find_recipe("full")
