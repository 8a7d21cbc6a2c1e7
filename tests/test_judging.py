import errno
import json
import logging

import pandas as pd
import pytest
from conftest import sentences, write_csv
from datasets import Dataset, Features, Image, Value

from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.judging import _with_file_names, evaluate_run, predict_file
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

ROWS = [{"review": row["text"], "topic": row["label"], "id": str(i)} for i, row in enumerate(sentences(120))]
NEW = [
    {"id": "7", "review": "the ball, the goal"},
    {"id": "8", "review": 'a "söng"'},
    {"id": "9", "review": "x"},
]


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    """A finished run whose data has other column names than the task."""
    return finish(tiny_bert, tmp_path_factory.mktemp("finished"), {}, ROWS)


def finish(model, folder, task, rows):
    values = {
        "name": "tiny",
        "output": str(folder / "out"),
        "model": {"name": str(model)},
        "data": {
            "name": str(write_csv(folder / "rows.csv", rows)),
            "columns": {"text": "review", "label": "topic"},
        },
        "task": {"name": "text_classification", **task},
        "trainer": {"max_steps": 4, "use_cpu": True, "disable_tqdm": True},
    }
    return run(Recipe.from_dict(values))


def test_the_runs_own_test_split_gives_the_runs_own_figures(finished):
    again = evaluate_run(finished.path)
    assert again["accuracy"] == finished.metrics["test"]["accuracy"]
    assert again["f1_macro"] == pytest.approx(finished.metrics["test"]["f1_macro"])
    assert again["rows"] == 12


def test_a_file_is_judged_under_the_runs_columns(finished, tmp_path):
    rows = ROWS[:9]
    answers = tmp_path / "answers.csv"
    predict_file(finished.path, write_csv(tmp_path / "rows.csv", rows), answers)
    frame = pd.read_csv(answers)
    share = float((frame["label"] == frame["predicted_label"]).mean())
    metrics = evaluate_run(finished.path, tmp_path / "rows.csv")
    assert (metrics["rows"], metrics["accuracy"]) == (9, pytest.approx(share))


def test_rows_that_the_run_was_trained_on_are_told(finished, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_llm_recipes"), "propagate", True)
    trained = pd.read_csv(finished.path.parent / "rows.csv", dtype=str).to_dict("records")
    held = set(pd.read_parquet(finished.path / "predictions.parquet")["text"])
    known = [row for row in trained if row["review"] not in held]
    mixed = [*known[:4], {"id": "x", "review": "a text that is new", "topic": known[0]["topic"]}]
    evaluate_run(finished.path, write_csv(tmp_path / "mixed.csv", mixed))
    said = f"of 5 rows of {tmp_path / 'mixed.csv'} are rows of train: the run was trained on them"
    assert said in caplog.text
    caplog.clear()
    evaluate_run(finished.path, write_csv(tmp_path / "fresh.csv", mixed[4:]))
    evaluate_run(finished.path)
    assert "rows of train" not in caplog.text


def write(path, rows):
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        write_csv(path, rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_parquet(path)
    return path


def read(path):
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype={"id": str})
    return (
        pd.read_parquet(path)
        if path.suffix == ".parquet"
        else pd.read_json(path, lines=True, dtype={"id": str})
    )


@pytest.mark.parametrize("source", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_rows_in_any_format_get_their_answers(finished, tmp_path, source, target):
    wanted = tmp_path / "new folder" / f"answers{target}"
    assert predict_file(finished.path, write(tmp_path / f"new{source}", NEW), wanted) == 3
    frame = read(wanted)
    assert frame["id"].astype(str).tolist() == ["7", "8", "9"]
    assert frame["text"].tolist() == ["the ball, the goal", 'a "söng"', "x"]
    assert set(frame["predicted_label"]) <= {"food", "music", "sport"}
    assert frame["predicted_probability"].between(1 / 3, 1).all()
    assert [p.name for p in wanted.parent.iterdir()] == [wanted.name]


@pytest.mark.parametrize(
    ("task", "label", "columns"),
    [
        (
            {"problem": "multi_label", "separator": "|"},
            ["food|sport", "food", "sport", ""],
            {"predicted_labels", "predicted_probabilities"},
        ),
        ({"problem": "regression"}, ["1.5", "2", "-3", "0"], {"predicted_value"}),
    ],
    ids=["multi_label", "regression"],
)
def test_other_problems_write_their_own_columns(tiny_bert, tmp_path, task, label, columns):
    rows = [{**row, "topic": label[i % 4]} for i, row in enumerate(ROWS)]
    done = finish(tiny_bert, tmp_path, task, rows)
    assert evaluate_run(done.path)["rows"] == 12
    for target in (".csv", ".jsonl", ".parquet"):
        predict_file(done.path, write(tmp_path / "new.csv", NEW), tmp_path / f"answers{target}")
        assert columns < set(read(tmp_path / f"answers{target}").columns)


def test_another_format_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(RunError, match=r"cannot write `.xlsx` files\n  allowed: .csv, .jsonl, .parquet"):
        predict_file(tmp_path / "nowhere", tmp_path / "no.csv", tmp_path / "answers.xlsx")


def test_a_column_of_that_name_is_not_overwritten(finished, tmp_path):
    rows = [{**row, "predicted_label": "mine"} for row in NEW]
    with pytest.raises(RunError, match="the file has a column `predicted_label` already\n  do: rename it"):
        predict_file(finished.path, write(tmp_path / "new.csv", rows), tmp_path / "answers.csv")
    assert not (tmp_path / "answers.csv").exists()


def test_answers_that_cannot_be_written_leave_nothing(finished, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("x")
    source = write(tmp_path / "new.csv", NEW)
    with pytest.raises(RunError, match=r"a.csv: cannot be written: .*\n  do: name another file"):
        predict_file(finished.path, source, tmp_path / "file" / "a.csv")
    with monkeypatch.context() as full:
        full.setattr("os.replace", raising(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(RunError, match=r"b\.csv: cannot be written: No space left on device"):
            predict_file(finished.path, source, tmp_path / "b.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new.csv"]
    capfd.readouterr()
    predict_file(finished.path, source, tmp_path / "c.csv")
    assert "Creating CSV" not in capfd.readouterr().err  # no progress bar for one file


def raising(error):
    def fail(*given):
        raise error

    return fail


def test_files_that_cannot_be_used(finished, tmp_path):
    with pytest.raises(DataError, match=r"no.csv` does not exist"):
        evaluate_run(finished.path, tmp_path / "no.csv")
    with pytest.raises(DataError, match=r"new.csv: there is no column `text`"):
        predict_file(finished.path, write(tmp_path / "new.csv", [{"body": "x"}]), tmp_path / "a.csv")
    bad = [{"review": "a", "topic": "sport"}, {"review": "b", "topic": "spotr"}]
    with pytest.raises(
        DataError, match=r"bad.csv, row 1: label 'spotr' is none of the classes \(did you mean `sport`"
    ):
        evaluate_run(finished.path, write(tmp_path / "bad.csv", bad))
    with pytest.raises(DataError, match=r"unlabeled.csv: there is no column `label`"):
        evaluate_run(finished.path, write(tmp_path / "unlabeled.csv", NEW))


def test_images_in_a_file_of_text_are_the_names_of_their_files():
    stored = [{"bytes": None, "path": "new/1.png"}, {"bytes": b"\x89PNG", "path": None}]
    features = Features({"image": Image(decode=False), "predicted_label": Value("string")})
    rows = Dataset.from_dict({"image": stored, "predicted_label": ["cat", "dog"]}, features=features)
    made = _with_file_names(rows)
    assert made["image"][:] == ["new/1.png", None]
    assert made["predicted_label"][:] == ["cat", "dog"]
