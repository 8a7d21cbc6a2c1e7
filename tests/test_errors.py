import pytest

from hf_llm_recipes.errors import (
    DataError,
    InterruptedRunError,
    MissingExtraError,
    RecipeError,
    RunError,
    UserError,
    did_you_mean,
)


def test_a_message_says_what_where_what_is_allowed_and_what_to_do():
    error = DataError("label 'x' is unknown", where="a.csv:3", allowed="y, z", hint="mend it")
    assert str(error) == "a.csv:3: label 'x' is unknown\n  allowed: y, z\n  do: mend it"
    assert (error.what, error.where, error.allowed, error.hint) == (
        "label 'x' is unknown",
        "a.csv:3",
        "y, z",
        "mend it",
    )
    assert str(RunError("it is full")) == "it is full"


@pytest.mark.parametrize("kind", [RecipeError, DataError, RunError, InterruptedRunError])
def test_they_are_value_errors(kind):
    assert issubclass(kind, UserError)
    assert issubclass(kind, ValueError)


def test_a_missing_package_names_the_extra():
    error = MissingExtraError("bitsandbytes", "quantization")
    assert isinstance(error, ImportError)
    assert str(error) == (
        "this needs the package `bitsandbytes`, which is not installed\n"
        "  do: pip install 'hf_llm_recipes[quantization]'"
    )


def test_the_nearest_name_is_offered():
    assert did_you_mean("lable", ["text", "label"]) == " (did you mean `label`?)"
    assert did_you_mean("zzz", ["text", "label"]) == ""
    assert did_you_mean("x", []) == ""


def test_a_stopped_run_ends_as_shells_have_it():
    assert InterruptedRunError("stopped", hint="go on").exit_code == 130
    assert InterruptedRunError("stopped", number=15).exit_code == 143
