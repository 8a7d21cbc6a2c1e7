import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import sentences, write_csv
from datasets import Dataset

import hf_llm_recipes
from hf_llm_recipes.errors import DataError, RecipeError, RunError
from hf_llm_recipes.predictor import Predictor, save_record
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.registry import TASKS
from hf_llm_recipes.run import run

TEXTS = ["the ball and the goal", "a good soup", "song", ""]


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    values = {
        "name": "tiny",
        "output": str(folder / "out"),
        "model": {"name": str(tiny_bert)},
        "data": {"name": str(write_csv(folder / "rows.csv", sentences(120)))},
        "task": {"name": "text_classification"},
        "trainer": {"max_steps": 4, "use_cpu": True, "disable_tqdm": True},
    }
    return run(Recipe.from_dict(values)).path


@pytest.fixture(scope="module")
def predictor(finished):
    return Predictor.load(finished)


def test_texts_rows_and_data_sets_get_the_same_answers(predictor):
    answers = predictor.predict(TEXTS)
    assert [set(a) for a in answers] == [{"label", "probability"}] * 4
    assert {a["label"] for a in answers} <= {"food", "music", "sport"}
    assert predictor.predict([{"text": text, "other": 1} for text in TEXTS]) == answers
    assert predictor.predict(Dataset.from_dict({"text": TEXTS})) == answers
    assert predictor.predict(tuple(TEXTS)) == answers
    assert predictor.predict(pd.Series(TEXTS)) == answers


def test_answers_keep_the_order_of_the_texts(predictor):
    one = predictor.predict(TEXTS, batch_size=1)
    backwards = predictor.predict(TEXTS[::-1], batch_size=3)
    assert [a["label"] for a in one] == [a["label"] for a in backwards[::-1]]
    assert [a["probability"] for a in one] == pytest.approx(
        [a["probability"] for a in backwards[::-1]], abs=1e-5
    )


def test_the_model_folder_alone_is_enough(finished, predictor, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "elsewhere")
    assert Predictor.load(tmp_path / "elsewhere").predict(TEXTS) == predictor.predict(TEXTS)
    assert hf_llm_recipes.load(finished / "model").predict(TEXTS) == predictor.predict(TEXTS)


def test_labels_are_read_where_they_are_asked_for(predictor):
    rows = Dataset.from_list(sentences(6))
    logits, labels = predictor.logits(rows, labeled=True, batch_size=4)
    assert (logits.shape, logits.dtype) == ((6, 3), np.float32)
    assert labels.tolist() == [2, 0, 1, 2, 0, 1]  # sport, food, music in alphabetical order
    assert predictor.logits(rows, labeled=False)[1] is None


def test_nothing_to_answer(predictor):
    assert predictor.predict([]) == []


def test_one_text_is_not_taken_for_its_letters(predictor):
    with pytest.raises(
        DataError, match=r"one text was given where a list of texts is taken\n  do: \['the ball'\]"
    ):
        predictor.predict("the ball")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a", None], "row 1: None is no text"),
        (["a", 3], "row 1: 3 is no text"),
        ([None], "row 0: None is no text"),
        ([{"text": "a"}, "b"], "row 1: 'b' is no row"),
        ([{"text": None}], "data, row 0: `text` is None, not text"),
        ([{"body": "a"}], "data: there is no column `text`"),
        (["", " "], "data: all 2 texts are empty"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(predictor, rows, message):
    with pytest.raises(DataError) as caught:
        predictor.predict(rows)
    assert str(caught.value).startswith(message)


def test_what_is_no_finished_run(finished, tmp_path):
    with pytest.raises(RunError, match="no such run directory"):
        Predictor.load(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is no run directory: there is no recipe.yaml"):
        Predictor.load(tmp_path)
    shutil.copy(finished / "recipe.yaml", tmp_path)
    with pytest.raises(RunError, match=r"has no model: the run has not finished\n  do: .* resume=true"):
        Predictor.load(tmp_path)


def test_the_record_says_what_the_weights_do_not(tmp_path):
    save_record(
        tmp_path,
        task={"name": "text_classification", "max_length": 8},
        config={"id2label": {0: "a", 1: "ü"}},
        model={"name": "x"},
        quantization=None,
    )
    text = (tmp_path / "task.json").read_text(encoding="utf-8")
    assert "ü" in text
    assert json.loads(text)["task"] == {"name": "text_classification", "max_length": 8}


def test_a_task_of_the_users_is_imported_again(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "shouting.py").write_text(
        "from dataclasses import dataclass\n"
        "from hf_llm_recipes.registry import TASKS\n"
        "from hf_llm_recipes.tasks.text_classification import TextClassification\n\n"
        "@TASKS.register\n"
        "@dataclass(kw_only=True)\n"
        "class Shouting(TextClassification):\n"
        "    def decode(self, logits, config):\n"
        "        return [{'label': a['label'].upper()} for a in super().decode(logits, config)]\n"
    )
    record = json.loads((folder / "model" / "task.json").read_text())
    record["task"]["name"] = "shouting"
    (folder / "model" / "task.json").write_text(json.dumps(record))
    with pytest.raises(RecipeError, match="unknown task `shouting`"):
        Predictor.load(folder)
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text("imports: [shouting]\n" + recipe)
    with pytest.raises(RunError, match=r"runs the code of shouting\n  do: read it, then add --trust-code"):
        Predictor.load(folder)
    with pytest.raises(RunError, match=r"`shouting` needs the module `shouting`, which cannot be imported"):
        Predictor.load(folder, trust_code=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(TASKS, "_classes", dict(TASKS._classes))
    try:
        predictor = Predictor.load(folder, trust_code=True)
        assert predictor.predict(["song"])[0]["label"] in {"FOOD", "MUSIC", "SPORT"}
    finally:
        sys.modules.pop("shouting", None)
