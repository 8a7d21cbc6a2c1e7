"""What a run stops with before anything is trained: it would learn nothing, or something else."""

import pytest
from conftest import write_csv

from hf_llm_recipes.errors import RecipeError, RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run


def values(model, tmp_path, **more):
    rows = [
        {"text": f"the {word} was {said}"} for word in ("ball", "soup", "song") for said in ("good", "old")
    ]
    return {
        "name": "early",
        "output": str(tmp_path / "out"),
        "model": {"name": str(model)},
        "data": {"name": str(write_csv(tmp_path / "texts.csv", rows * 6))},
        "trainer": {"max_steps": 1, "use_cpu": True, "disable_tqdm": True},
        **more,
    }


def test_an_encoder_is_not_trained_to_guess_tokens_that_it_reads(tiny_bert, tmp_path):
    with pytest.raises(RunError, match=r"task: BertLMHeadModel reads the tokens behind(.|\n)*`task: mlm`"):
        run(Recipe.from_dict(values(tiny_bert, tmp_path, task={"name": "clm"})))


def test_stages_without_a_pool_are_refused_before_a_model_is_loaded(tmp_path, tiny_bert, monkeypatch):
    from hf_llm_recipes.tuning import _model

    monkeypatch.setattr(_model, "build", lambda *_, **__: pytest.fail("a model was loaded"))
    given = values(tiny_bert, tmp_path, task={"name": "mlm"}, stages=[{"name": "mlm", "max_steps": 1}])
    with pytest.raises(RecipeError, match="stages train on unlabeled rows, and there are none"):
        run(Recipe.from_dict(given))
