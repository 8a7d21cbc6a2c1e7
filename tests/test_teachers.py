"""A distillation whose teacher is named by its recipe: it is trained first, once, and gone on with."""

import pytest
import yaml
from safetensors.torch import load_file

import hf_llm_recipes.run as engine
from hf_llm_recipes import teachers
from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.methods._teacher import load_teacher, recipe_of, untrained
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks.text_classification import TextClassification


@pytest.fixture
def file(recipe, tmp_path, monkeypatch):
    """A teacher's recipe; runs go into the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    values = {**recipe, "compare": False, "trainer": {**recipe["trainer"], "max_steps": 2}}
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def student(recipe, teacher, output):
    method = {"name": "distillation", "teacher": str(teacher)}
    return Recipe.from_dict({**recipe, "method": method, "output": str(output)})


def test_the_teacher_is_trained_first_and_once(recipe, file, tmp_path, monkeypatch):
    trained, real = [], engine._Runner.run

    def counted(runner):
        trained.append(str(runner.plan.recipe.get("output")))
        return real(runner)

    monkeypatch.setattr(engine._Runner, "run", counted)
    where = recipe_of(str(file)).values["output"]
    first = engine.run(student(recipe, file, tmp_path / "first"))
    engine.run(student(recipe, where, tmp_path / "second"))  # the run by its folder
    engine.run(student(recipe, file, tmp_path / "third"))
    assert trained == [where, *(str(tmp_path / name) for name in ("first", "second", "third"))]
    assert first.metrics["method"]["teacher"] == str(file)
    one, *others = (load_file(tmp_path / n / "model/model.safetensors") for n in ("first", "second", "third"))
    for other in others:
        assert all((value == other[name]).all() for name, value in one.items())


def test_what_a_recipe_says_is_where_its_teacher_is(file, tmp_path):
    where = recipe_of(str(file)).values["output"]
    assert where.startswith("runs/teachers/tiny-")
    assert recipe_of("semi_supervised/softmatch-lora").get("compare") is None  # its baseline teaches nobody
    assert recipe_of("local/minilm") is None
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**values, "output": "elsewhere", "resume": True}))
    assert recipe_of(str(file)).values["output"] == where
    file.write_text(yaml.safe_dump({**values, "seed": 7}))
    assert recipe_of(str(file)).values["output"] != where


def test_a_teacher_that_was_stopped_is_gone_on_with(file, tmp_path):
    where = tmp_path / untrained(str(file)).values["output"]
    assert untrained(str(file)).values["resume"] is False
    where.mkdir(parents=True)
    (where / "recipe.yaml").write_text("name: tiny\n")
    assert untrained(str(file)).values["resume"] is True
    (where / "metrics.json").write_text("{}")
    assert untrained(str(file)) is None


def test_a_teacher_that_was_not_run_is_named_with_the_command(file):
    with pytest.raises(
        RunError, match=r"the teacher's recipe was not run yet[\s\S]*output=runs/teachers/tiny-"
    ):
        load_teacher(str(file), TextClassification(), None)


def test_a_recipe_is_not_its_own_teacher(recipe, file):
    values = {**recipe, "method": {"name": "distillation", "teacher": str(file)}}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match="teach each other: tiny <- tiny"):
        engine.run(Recipe.load(file))


def test_two_recipes_do_not_teach_each_other(recipe, file, tmp_path):
    other = tmp_path / "other.yaml"
    for path, teacher in ((file, other), (other, file)):
        values = {**recipe, "name": path.stem, "method": {"name": "distillation", "teacher": str(teacher)}}
        path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=r"teach each other: other <- large <- other[\s\S]*ends at"):
        engine.run(Recipe.load(file))
    assert not (tmp_path / "runs").exists()


def test_a_line_of_teachers_is_trained_from_its_end(recipe, file, tmp_path):
    middle = tmp_path / "middle.yaml"
    method = {"name": "distillation", "teacher": str(file)}
    middle.write_text(yaml.safe_dump({**recipe, "name": "middle", "compare": False, "method": method}))
    engine.run(student(recipe, middle, tmp_path / "out"))
    assert sorted(p.name.split("-")[0] for p in (tmp_path / "runs/teachers").iterdir()) == ["middle", "tiny"]


def test_only_a_distillation_has_a_teacher_to_train(recipe, file):
    assert teachers.to_train(Recipe.from_dict(recipe)) is None
    found = teachers.to_train(student(recipe, file, "out"))
    assert found.values["trainer"]["max_steps"] == 2
