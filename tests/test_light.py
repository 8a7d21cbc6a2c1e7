"""What must cost no import of torch, in a fresh interpreter each."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "peft", "bitsandbytes", "numpy", "pandas")


def loaded_after(code):
    """Which of the heavy modules a fresh interpreter holds after the code."""
    code += f"\nimport sys\nprint('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("LOADED")
    return lines[-1].removeprefix("LOADED "), "\n".join(lines[:-1])


def test_importing_the_package_and_reading_a_recipe():
    loaded, printed = loaded_after(
        "import hf_llm_recipes\n"
        "from hf_llm_recipes import errors, recipe, registry, shipped\n"
        "import hf_llm_recipes.cli, hf_llm_recipes.rundir\n"
        "recipe = hf_llm_recipes.Recipe.load(hf_llm_recipes.shipped.all_recipes()[0].path)\n"
        "print(len(recipe.values), hf_llm_recipes.registry.TASKS.names())\n"
    )
    assert loaded == "[]"
    assert "text_classification" in printed


def test_help_and_list():
    loaded, printed = loaded_after(
        "import sys\n"
        "from hf_llm_recipes.cli import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['list'], ['copy', '--help']):\n"
        "    sys.argv = ['hf-llm-recipes', *arguments]\n"
        "    main()\n"
    )
    assert loaded == "[]"
    assert "One YAML recipe" in printed
    assert "quickstart" in printed


def test_a_mistake_in_a_recipe_costs_no_import():
    loaded, _ = loaded_after(
        "import sys\n"
        "from hf_llm_recipes.cli import main\n"
        "wrong = (['run', 'no-such-recipe'], ['run', 'quickstart', 'trainr.x=1'], ['predict', 'x'])\n"
        "for arguments in wrong:\n"
        "    sys.argv = ['hf-llm-recipes', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as done:\n"
        "        assert done.code in (1, 2), done.code\n"
        "    else:\n"
        "        raise AssertionError(arguments)\n"
    )
    assert loaded == "[]"


def test_the_public_names():
    import hf_llm_recipes

    for name in hf_llm_recipes.__all__:
        assert name in dir(hf_llm_recipes)
        assert getattr(hf_llm_recipes, name) is not None
    assert not hasattr(hf_llm_recipes, "no_such_name")
