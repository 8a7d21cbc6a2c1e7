"""`evaluate:` in a recipe and on the command line, through a run: what is kept, drawn, used and refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import typer.testing
from conftest import sentences, write_csv
from datasets import Dataset
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from hf_llm_recipes import cli, report
from hf_llm_recipes.assessing import engine, robustness
from hf_llm_recipes.assessing.section import Assessment, check
from hf_llm_recipes.errors import DataError, RecipeError, RunError
from hf_llm_recipes.judging import assess_run, compare_runs, predict_file
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

SPOILT = {"sport": "food", "food": "music", "music": "sport"}  # every sixth label: no model is always right
ROWS = [
    {
        "text": row["text"] + i % 5 * " the",
        "label": SPOILT[row["label"]] if i % 6 == 0 else row["label"],
        "who": "x" if i % 7 < 3 else "y",
    }
    for i, row in enumerate(sentences(600))
]
EVALUATE = {
    "slices": ["who", "length"],
    "temperature": True,
    "robustness": ["substitute", "delete"],
    "metrics": ["balanced_accuracy"],
}


def values(model, folder, rows=ROWS, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "name": "tiny",
        "output": str(folder / "out"),
        "model": {"name": str(model)},
        "data": {
            "name": str(write_csv(folder / "rows.csv", rows)),
            "test_fraction": 0.2,
            "eval_fraction": 0.2,
        },
        "task": {"name": "text_classification"},
        "trainer": {"max_steps": 40, "learning_rate": 3e-3, "use_cpu": True, "disable_tqdm": True},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    """A run whose recipe asks for everything."""
    folder = tmp_path_factory.mktemp("assessed")
    return run(Recipe.from_dict(values(tiny_bert, folder, evaluate=EVALUATE))).path


@pytest.fixture(scope="module")
def metrics(finished):
    return json.loads((finished / "metrics.json").read_text())


def predictions(path):
    return report.read(path).predictions


def test_groups_have_the_scores_of_their_rows(finished, metrics):
    columns = predictions(finished)
    found = metrics["slices"]["who"]
    assert [one["name"] for one in found["groups"]] == ["x", "y"]
    who = {row["text"] + row["label"]: row["who"] for row in ROWS}
    for one in found["groups"]:
        chosen = [
            (label, answer)
            for text, label, answer in zip(
                columns["text"], columns["label"], columns["predicted_label"], strict=True
            )
            if who[text + label] == one["name"]
        ]
        assert one["rows"] == len(chosen) > 30
        assert one["accuracy"] == pytest.approx(accuracy_score(*zip(*chosen, strict=True)))
    assert sum(one["rows"] for one in metrics["slices"]["length"]["groups"]) == 120
    assert metrics["slices"]["length"]["groups"][0]["name"].endswith("tokens")


def test_more_scores_stand_among_the_others(finished, metrics):
    columns = predictions(finished)
    wanted = balanced_accuracy_score(columns["label"], columns["predicted_label"])
    assert metrics["test"]["balanced_accuracy"] == pytest.approx(wanted)
    low, high = metrics["test"]["intervals_95"]["balanced_accuracy"]
    assert low <= wanted <= high
    assert next(iter(metrics["test"]["intervals_95"])) == "accuracy"  # the run is still called by it


def test_the_temperature_changes_probabilities_and_no_answer(finished, metrics, tmp_path):
    heat = metrics["temperature"]["temperature"]
    assert json.loads((finished / "model" / "temperature.json").read_text())["temperature"] == heat
    texts = [row["text"] for row in ROWS[:20]]
    plain, calibrated = Predictor.load(finished), Predictor.load(finished, calibrated=True)
    first, second = plain.predict(texts), calibrated.predict(texts)
    assert [one["label"] for one in first] == [one["label"] for one in second]
    rows = Dataset.from_dict({"text": texts})
    logits, _ = plain.logits(rows, labeled=False)
    shares = np.exp(logits / heat) / np.exp(logits / heat).sum(1, keepdims=True)
    assert [one["probability"] for one in second] == pytest.approx(shares.max(1).tolist(), abs=1e-5)
    assert metrics["temperature"]["before"]["loss"] == pytest.approx(metrics["test"]["loss"], abs=1e-6)
    source = write_csv(tmp_path / "new.csv", [{"text": text} for text in texts])
    predict_file(finished, source, tmp_path / "answers.jsonl", calibrated=True)
    told = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [one["predicted_probability"] for one in told] == pytest.approx(shares.max(1).tolist(), abs=1e-5)


def test_views_are_compared_row_by_row(finished, metrics):
    found = metrics["robustness"]
    assert [one["name"] for one in found["views"]] == ["substitute", "delete"]
    assert found["plain"] == pytest.approx(metrics["test"]["accuracy"])
    for one in found["views"]:
        assert one["difference"] == pytest.approx(one["value"] - found["plain"])
        assert one["difference_95"][0] <= one["difference"] <= one["difference_95"][1]
        assert one["answers_changed"] >= abs(one["difference"])
    again = assess_run(finished, Assessment(robustness=["substitute", "delete"]))
    assert again["robustness"] == found  # the same views every time


def test_the_page_shows_all_of_it(finished):
    text = report.write(finished).read_text(encoding="utf-8")
    for said in ("Groups of rows", "Changed rows", "Temperature", "balanced accuracy", "Reliability after"):
        assert said in text


def command(*words):
    done = typer.testing.CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "200"})
    return done.exit_code, done.output + str(done.exception or "")


def test_the_command_keeps_what_it_finds(finished, tmp_path):
    copied = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((copied / "metrics.json").read_text())
    code, said = command("evaluate", copied, "--by", "label", "--metric", "roc_auc", "--view", "swap")
    assert code == 0, said
    assert "widest gap of accuracy" in said
    assert "roc_auc" in said
    after = json.loads((copied / "metrics.json").read_text())
    assert set(after["slices"]) == {"who", "length", "label"}  # what was there stays
    assert after["temperature"] == before["temperature"]
    assert [one["name"] for one in after["robustness"]["views"]] == ["swap"]
    assert "roc_auc" in after["test"]["intervals_95"]
    assert "By label" in (copied / "report.html").read_text(encoding="utf-8")


def test_a_file_is_looked_at_and_nothing_is_kept(finished, tmp_path):
    before = (finished / "metrics.json").read_text()
    data = write_csv(tmp_path / "mine.csv", [{**row, "shop": "ab"[i % 2]} for i, row in enumerate(ROWS[:90])])
    out = tmp_path / "out.json"
    code, said = command("evaluate", finished, "--by", "shop", "--data", data, "--output", out)
    assert code == 0, said
    assert [one["rows"] for one in json.loads(out.read_text())["slices"]["shop"]["groups"]] == [45, 45]
    assert (finished / "metrics.json").read_text() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "whom"], "there is no column `whom` to slice by (did you mean `who`?)"),
        (["--by", "text"], "column `text`: 120 different values in 120 rows make no groups"),
        (["--metric", "jaccard"], "metric `jaccard` does not fit a task of single_label"),
        (["--view", "maks"], "unknown view `maks` (did you mean `mask`?)"),
        (["--view", "rotate"], "view `rotate` does not fit these rows"),
        (["--view", "column"], "view `column` needs arguments"),
        (["--by", "who", "--against", "other"], "--against and --lm-eval go alone"),
        (["--test", "mcnemar"], "--test has an effect only with --against"),
        (["--lm-eval", "x", "--data", "y.csv"], "--data has no effect on --lm-eval"),
        (["--lm-eval", "x"], "lm-eval judges causal language models, and this run has none"),
    ],
)
def test_what_cannot_be_looked_at(finished, words, message):
    code, said = command("evaluate", finished, *words)
    assert code != 0
    assert message in " ".join(said.replace("│", " ").split())


def test_options_without_an_effect(finished):
    for words, message in (
        (["predict", finished, "--calibrated"], "--calibrated has an effect only with texts or --file"),
        (
            ["report", finished, "other", "--attributions", "--output", "x"],
            "--attributions goes with one run",
        ),
    ):
        code, said = command(*words)
        assert code != 0
        assert message in " ".join(said.replace("│", " ").split())


def test_an_answer_is_explained_on_the_command_line(finished):
    pytest.importorskip("captum", reason="the extra attributions is not installed")
    code, said = command("explain", finished, "the ball, a goal")
    assert code == 0, said
    assert "with every word masked" in said
    code, said = command("explain", finished, "the ball", "--target", "spotr")
    assert "there is no class `spotr` (did you mean `sport`?)" in said


def test_language_is_grouped_by_characters():
    rows = Dataset.from_dict(
        {"text": ["ab", "abcd"] * 3, "messages": [[{"role": "user", "content": "abc"}]] * 6}
    )
    task = SimpleNamespace(judges_model=True, input_columns=["text"])
    found = engine.Subject(SimpleNamespace(task=task), rows).groups("length")
    assert (found.names, found.number_N.tolist()) == (["2 characters", "4 characters"], [0, 1] * 3)
    assert engine._characters(rows[0]["messages"]) == 3
    stream = rows.to_iterable_dataset()
    with pytest.raises(DataError, match="a stream of test rows is read once only"):
        check(Assessment(slices=["length"]), task, stream, None)
    check(Assessment(), task, stream, None)


def test_a_recipe_is_refused_before_it_trains(tiny_bert, tmp_path):
    wrong = [
        ({"slices": ["whom"]}, {}, "evaluate: there is no column `whom` to slice by"),
        ({"temperature": True}, {"eval_fraction": 0}, "needs held-out rows, and the data has no eval split"),
        ({"metrics": ["explained_variance"]}, {}, "does not fit a task of single_label"),
        ({"robustness": ["cutout"]}, {}, "view `cutout` does not fit these rows"),
    ]
    for i, (asked, data, message) in enumerate(wrong):
        given = values(tiny_bert, tmp_path / str(i), evaluate=asked)
        given["data"].update(data)
        with pytest.raises(DataError, match=message):
            run(Recipe.from_dict(given))
        assert not (tmp_path / str(i) / "out").exists()
    given = values(tiny_bert, tmp_path / "typo", evaluate={"slice": ["who"]})
    with pytest.raises(RecipeError, match=r"evaluate.slice is an unknown key \(did you mean `slices`\?\)"):
        run(Recipe.from_dict(given))


def test_what_fails_at_the_end_costs_no_run(finished, caplog):
    predictor = Predictor.load(finished)
    rows = Dataset.from_list([{**row, "id": str(i)} for i, row in enumerate(ROWS[:60])])
    asked = Assessment(slices=["id", "who"])
    with pytest.raises(DataError, match="60 different values"):
        engine.assess(predictor, asked, rows, None)
    found = engine.assess(predictor, asked, rows, None, lenient=True)
    assert list(found["slices"]) == ["who"]
    assert "id was not measured: column `id`: 60 different values" in caplog.text


def test_two_runs_on_the_same_rows(finished, tiny_bert, tmp_path):
    given = values(tiny_bert, tmp_path, trainer={"max_steps": 1, "use_cpu": True, "disable_tqdm": True})
    other = run(Recipe.from_dict(given)).path
    found = compare_runs(finished, other)
    ours, theirs = predictions(finished), predictions(other)
    right = [
        [a == b for a, b in zip(one["label"], one["predicted_label"], strict=True)] for one in (ours, theirs)
    ]
    assert found["only_first"] == sum(a and not b for a, b in zip(*right, strict=True))
    assert (found["first"], found["second"]) == (np.mean(right[0]), np.mean(right[1]))
    assert found["rows"] == 120
    code, said = command("evaluate", finished, "--against", other)
    assert code == 0, said
    assert "McNemar" in said
    assert "second − first" in said
    data = write_csv(tmp_path / "mine.csv", ROWS[:50])
    assert compare_runs(finished, other, data=data, test="wilcoxon")["rows"] == 50
    rows = ROWS[:400]
    elsewhere = run(Recipe.from_dict(values(tiny_bert, tmp_path / "b", rows, trainer=given["trainer"]))).path
    with pytest.raises(RunError, match=r"the runs were judged on other test rows: 120 rows, .* and 80 rows"):
        compare_runs(finished, elsewhere)
    (elsewhere / "predictions.parquet").unlink()
    with pytest.raises(RunError, match=r"has no predictions\.parquet to compare by\n  do: add --data FILE"):
        compare_runs(finished, elsewhere)
    (elsewhere / "metrics.json").unlink()
    with pytest.raises(RunError, match="the run has not finished"):
        compare_runs(finished, elsewhere)


def test_numbers_and_tags_have_row_scores_of_their_own():
    assert robustness.row_scores([[1.5], [0.0]], [1.0, 2.0], "regression")[1].tolist() == [0.5, 2.0]
    sets = robustness.row_scores([[1.0, -1.0], [1.0, 1.0]], [[1, 0], [0, 1]], "multi_label")
    assert (sets[0], sets[1].tolist()) == ("subset_accuracy", [1.0, 0.0])
    logits = [[[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [-100.0, -100.0]]]
    tags = robustness.row_scores(logits, [[0, 0], [1, -100]], "tokens")
    assert (tags[0], tags[1].tolist()) == ("share_of_words_right", [0.5, 0.0])
    with pytest.raises(DataError, match="robustness to augmentations is not measured of a task of language"):
        robustness.check("language")


def test_tags_keep_their_places_under_every_view():
    names = set(robustness.views_of(None, "text", same_length=True))
    assert names == {"cutoff", "mask", "substitute", "tfidf_substitute"}
    assert "delete" in robustness.views_of(None, "text", same_length=False)
    assert set(robustness.views_of(None, "image", same_length=False)) == {
        "cutout",
        "noise",
        "rotate",
        "shift",
    }
