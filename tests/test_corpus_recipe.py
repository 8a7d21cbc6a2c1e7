"""A corpus through one recipe: cleaned, without duplicates, its own tokenizer trained, judged again."""

import json

import pytest
from conftest import sentences

import hf_llm_recipes.run as engine
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.judging import evaluate_run
from hf_llm_recipes.recipe import Recipe


@pytest.fixture
def values(tmp_path):
    """80 documents; document 0 of train stands in test too, and one is empty."""
    texts = [" ".join(row["text"] for row in sentences(3, seed=i)) for i in range(80)]
    splits = {"train": [*texts[:60], "  \n ", texts[70]], "test": texts[70:]}
    for name, rows in splits.items():
        lines = "\n".join(json.dumps({"text": text}) for text in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {
        "name": "corpus",
        "output": str(tmp_path / "out"),
        "model": {
            "architecture": "hlr_decoder",
            "preset": "tiny",
            "tokenizer": {"train": "bpe", "vocab_size": 300},
        },
        "data": {
            "name": str(tmp_path),
            "train": "train.jsonl",
            "test": "test.jsonl",
            "eval_fraction": 0,
            "clean": True,
            "dedup": "exact",
        },
        "task": {"name": "clm", "block_size": 64},
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 4, "disable_tqdm": True},
    }


def test_cleaned_deduplicated_and_read_by_its_own_tokenizer(values):
    done = engine.run(Recipe.from_dict(values))
    environment = json.loads((done.path / "environment.json").read_text(encoding="utf-8"))
    data = environment["data"]
    assert data["splits"]["train"]["rows"] == 60  # neither the empty document nor the one of test
    assert data["splits"]["test"]["rows"] == 10
    assert data["dedup"]["dropped"] == {"train": {"test": 1}}
    assert any("tokenizer was trained on the train split" in note for note in environment["notes"])
    assert (done.path / "model" / "tokenizer.json").is_file()
    again = evaluate_run(done.path)
    assert again["perplexity"] == pytest.approx(done.metrics["test"]["perplexity"], rel=1e-6)


def test_the_resolved_recipe_runs_again_as_it_is(values, tmp_path):
    done = engine.run(Recipe.from_dict(values))
    again = Recipe.load(done.path / "recipe.yaml", [f"output={tmp_path / 'again'}"])
    assert engine.run(again).metrics["test"] == done.metrics["test"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "tokenizer"), {"train": "bpe", "vocabsize": 300}, "did you mean `vocab_size`"),
        (("model", "tokenizer"), {"train": "bqe", "vocab_size": 300}, "bpe"),
        (("data", "dedup"), "nearly", "near"),
        (("data", "clean"), {"no_such_rule": True}, r"data\.clean\.no_such_rule is an unknown key"),
    ],
)
def test_a_mistake_in_an_inner_section_is_told_with_its_path(values, path, value, message):
    values[path[0]][path[1]] = value
    with pytest.raises(RecipeError, match=message):
        engine.plan(Recipe.from_dict(values))
