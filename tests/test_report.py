"""A report says what its run's folder holds, escapes it, loads nothing, and is drawn of a broken run too."""

import itertools
import json
import logging
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import typer.testing

from hf_llm_recipes import cli, evaluation, markup, report
from hf_llm_recipes.errors import RunError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.reporting import charts, comparing, facts, page, rows, training

EVIL = "<script>alert(1)</script>"
VOID = ("meta", "br")


class Page(HTMLParser):
    """What a browser would see: tags in balance, ids, tables, texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.words, self.tables = [], [], [], [], []
        self.cell = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th", "caption"):
            self.cell = ""

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append(self.cell)
        if tag == "caption":
            self.tables[-1]["caption"] = self.cell

    def handle_data(self, data):
        self.words.append(data)
        if self.cell is not None:
            self.cell += data

    @property
    def text(self):
        return " ".join(self.words)

    def table(self, caption):
        (found,) = [table["rows"] for table in self.tables if table["caption"].startswith(caption)]
        return found

    def has(self, caption):
        return any(table["caption"].startswith(caption) for table in self.tables)


def write_run(folder, values=None, *, metrics=None, environment=None, log=(), predictions=None, model=True):
    """A run's folder as a run would leave it."""
    folder.mkdir(parents=True)
    values = values or {"name": "mine", "model": "m", "data": "d.csv", "task": "text_classification"}
    (folder / "recipe.yaml").write_text(Recipe.from_dict(values).dump())
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    if environment is not None:
        (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if predictions is not None:
        pyarrow.parquet.write_table(pyarrow.table(predictions), folder / "predictions.parquet")
    if model:
        (folder / "model").mkdir()
        (folder / "model" / "task.json").write_text("{}")
    return folder


def logged(steps=4, **more):
    return [
        {
            "step": 10 * i,
            "time": 1.7e9 + 5 * i,
            "loss": 2.0 / i,
            "learning_rate": 0.1 / i,
            "grad_norm": 1.0,
            **more,
        }
        for i in range(1, steps + 1)
    ]


PROBABILITIES = [[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.65, 0.35]]  # of ham and spam
LABELS = [0, 1, 1, 0]
TEXTS = ["see you", "buy now", "cheap pills", "at noon"]


def classified(names=("ham", "spam"), texts=TEXTS):
    """Scores and predictions of four rows."""
    logits = np.log(PROBABILITIES)
    test = evaluation.classification(logits, LABELS, list(names), bootstrap=20)
    columns = {
        "text": list(texts),
        "label": [names[i] for i in LABELS],
        "predicted_label": [names[int(row.argmax())] for row in logits],
        **{f"probability_{name}": [row[i] for row in PROBABILITIES] for i, name in enumerate(names)},
    }
    return test, columns


@pytest.fixture
def run(tmp_path):
    test, columns = classified()
    metrics = {"test": test, "training": {"steps": 40, "minutes": 1.5, "peak_memory_gib": {"host": 2.0}}}
    environment = {
        "python": "3.12.1",
        "packages": {"torch": "2.9"},
        "device": {"cpu": "a cpu", "gpus": []},
        "seeds": {"python": 7},
        "data": {"origin": "a file", "splits": {"test": {"rows": 4, "fingerprint": "abc"}}},
        "notes": ["two rows were empty"],
    }
    return write_run(
        tmp_path / "run", metrics=metrics, environment=environment, log=logged(), predictions=columns
    )


def drawn(folder, **more):
    return Page(report.write(folder, **more).read_text(encoding="utf-8"))


def test_the_confusion_matrix_has_the_counts(run):
    # ham twice right; of two spam one is taken for ham
    found = drawn(run)
    assert found.table("Rows by label and answer") == [
        ["label ↓ answer →", "ham", "spam"],
        ["ham", "2", "0"],
        ["spam", "1", "1"],
    ]
    assert found.table("Mixed up most")[1:] == [["spam", "ham", "1", "50.0 %"]]


def test_the_reliability_diagram_has_the_counts(run):
    # two answers of 0.65, both right, lie in (9/15, 10/15]; two of 0.9, one right, in (13/15, 14/15]
    found = drawn(run)
    bins = found.table("Decisions by the probability")[1:]
    assert len(bins) == 15
    assert [one for one in bins if one[1] != "0"] == [
        ["0.60 – 0.67", "2", "0.650", "1.000"],
        ["0.87 – 0.93", "2", "0.900", "0.500"],
    ]
    # 2/4 · |1 − 0.65| + 2/4 · |0.5 − 0.9|
    assert "Expected calibration error 0.3750." in found.text
    assert "0.60 to 0.67: 2 decisions, 100 % right; 0.87 to 0.93: 2 decisions, 50 % right" in found.text


def test_scores_stand_with_their_intervals(run):
    found = drawn(run)
    scores = {row[0]: row[1:] for row in found.table("Scores on 4 test rows")[1:]}
    assert scores["accuracy"][0] == "0.7500"
    low, high = json.loads((run / "metrics.json").read_text())["test"]["intervals_95"]["accuracy"]
    assert scores["accuracy"][1] == f"{low:.4f} – {high:.4f}"
    assert scores["majority baseline"] == ["0.5000", "–"]


def test_the_rows_that_are_worth_reading(run):
    found = drawn(run)
    # only row 1 is wrong; the margins are 0.8, 0.8, 0.3, 0.3
    assert found.table("1 of 4 rows are wrong")[1:] == [["1", "spam", "ham", "0.900", "0.100", "buy now"]]
    assert [row[0] for row in found.table("rows whose two likeliest")[1:]] == ["2", "3", "0", "1"]


def test_a_page_loads_nothing_and_is_small(run):
    text = report.write(run).read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in found.tags}
    for tag, attrs in found.tags:
        assert "src" not in attrs
        for key in ("href", "xlink:href"):
            assert attrs.get(key, "#").startswith("#"), (tag, attrs)
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(text) < 2 * 2**20


def test_a_page_can_be_read_aloud(run):
    found = drawn(run)
    tags = [tag for tag, _ in found.tags]
    assert dict(found.tags)["html"] == {"lang": "en"}
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("footer") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert any(a.get("name") == "viewport" for _, a in found.tags)
    assert len(found.ids) == len(set(found.ids))
    pointed = [i for _, a in found.tags for i in (a.get("aria-labelledby") or "").split()]
    pointed += [a["href"][1:] for tag, a in found.tags if tag == "a"]
    pointed += [a["xlink:href"][1:] for tag, a in found.tags if tag == "use"]
    assert set(pointed) <= set(found.ids)
    assert len(pointed) > 20
    assert all(table["caption"] for table in found.tables)
    assert all(cell for table in found.tables for cell in table["rows"][0])
    assert all("scope" in a for tag, a in found.tags if tag == "th")
    drawings = [a for tag, a in found.tags if tag == "svg"]
    assert len(drawings) >= 5
    assert all(a["role"] == "img" for a in drawings)
    assert tags.count("desc") == len(drawings)


def test_nothing_of_the_data_becomes_markup(tmp_path):
    test, columns = classified(
        names=(EVIL, '"><b>&amp;'), texts=[EVIL, "a\x1b[31mb", "x" * 5000, "$x^2$ -->"]
    )
    test["notes"] = [EVIL]
    folder = write_run(
        tmp_path / "<i>run",
        {"name": "<b>mine<b>", "model": EVIL, "data": {"name": EVIL, "text": f"{EVIL}--"}, "task": EVIL},
        metrics={
            "test": test,
            "training": {"guard": {EVIL: EVIL}},
            "data": {EVIL: {EVIL: EVIL}},
            "method": {"first_labels": {"held_out": {EVIL: 0.5}, "used": EVIL}, EVIL: EVIL, "guard": [EVIL]},
        },
        environment={
            "notes": [EVIL],
            "packages": {EVIL: EVIL},
            "data": {"origin": EVIL, "notes": [EVIL], "splits": {EVIL: {"columns": [EVIL], "origin": EVIL}}},
            "device": {"gpus": [EVIL]},
        },
        log=[{"step": i, "loss": 1.0, f"{EVIL}/x": i, "eval_$x$": i, 'a" id="b': i * i} for i in range(1, 4)],
        predictions=columns,
    )
    (folder / EVIL.replace("/", "|")).write_text("")
    samples = [{"step": i, "text": EVIL, "written": EVIL} for i in (1, 2)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    text = report.write(folder).read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "b", "i"} & {tag for tag, _ in found.tags}
    assert not [key for _, attrs in found.tags for key in attrs if key.startswith("on")]
    assert found.text.count(EVIL) > 20
    assert "$x$" in found.text  # no mathematics
    assert "a\\x1b[31mb" in found.text
    assert "x" * 600 + " … (4,400 more characters)" in found.text
    assert EVIL not in text


def test_an_unfinished_run_says_so_and_is_drawn(tmp_path):
    folder = write_run(tmp_path / "run", log=logged(), model=False)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 50, "loss": 0.')
    found = drawn(folder)
    assert "This run has not finished: it was not judged. The log ends at step 40." in found.text
    assert f"hf-llm-recipes run {folder}/recipe.yaml output={folder} resume=true" in found.text
    assert "log.jsonl: 1 torn line was left out" in found.text
    assert "training: 2.0000 at step 10, 0.5000 at step 40; lowest 0.5000, highest 2.0000." in found.text
    assert "Result" not in found.words


def test_a_run_that_logged_nothing_is_drawn(tmp_path):
    found = drawn(write_run(tmp_path / "run", model=False))
    assert "This run has not finished: it was not judged. Nothing was logged." in found.text


def test_files_that_cannot_be_read_are_told(run):
    (run / "environment.json").write_text("{torn")
    (run / "predictions.parquet").write_bytes(b"PAR1")
    (run / "log.jsonl").write_text('[1]\n{"step": 10, "loss": "nan"}\n{"loss": 1}\n')
    (run / "recipe.yaml").write_text("name: [")
    found = drawn(run)
    for said in (
        "environment.json cannot be read: ",
        "predictions.parquet cannot be read: ",
        "log.jsonl: 2 torn lines were left out",
        "recipe.yaml cannot be read: ",
    ):
        assert said in found.text
    assert "0.7500" in found.text


def test_figures_of_another_kind_cost_one_section_and_are_told(run, caplog):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"]["calibration"]["bins"] = 5
    (run / "metrics.json").write_text(json.dumps(metrics))
    with caplog.at_level(logging.WARNING, "hf_llm_recipes"):
        found = drawn(run)
    said = "calibration cannot be drawn: TypeError: 'int' object is not iterable"
    assert said in found.words
    assert f"{run}: {said}" in caplog.text
    assert found.has("Rows by label and answer")


def test_a_stream_has_no_number_of_rows(tmp_path):
    streamed = {"data": {"splits": {"train": {"rows": None, "columns": ["text"]}, "test": {"rows": 4}}}}
    found = drawn(write_run(tmp_path / "run", environment=streamed))
    assert "rows: – train, 4 test." in found.text


def test_the_path_of_the_home_folder_is_nowhere(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    (run / "predictions.parquet").write_bytes(b"PAR1")
    (run / "metrics.json").unlink()
    text = report.write(run).read_text(encoding="utf-8")
    assert str(run.parent) not in text
    assert "hf-llm-recipes run ~/run/recipe.yaml output=~/run resume=true" in text


def test_a_run_without_its_model_says_so(run):
    shutil.rmtree(run / "model")
    assert "This run has no model: model/ is missing or not whole." in drawn(run).text


def test_of_many_predictions_the_first_are_read_and_it_is_told(run, monkeypatch):
    monkeypatch.setattr(facts, "MOST_CELLS", 10)  # of five columns
    assert "predictions.parquet: 2 of its 4 rows were looked at" in drawn(run).text


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(RunError, match="no such run directory"):
        report.write(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"is no run directory: there is no recipe\.yaml"):
        report.write(tmp_path / "empty")
    with pytest.raises(RunError, match="is no run directory"):
        report.write_comparison([run, tmp_path / "empty"], tmp_path / "c.html")
    with pytest.raises(RunError, match="is named twice"):
        report.write_comparison([run, f"{run}/."], tmp_path / "c.html")
    with pytest.raises(RunError, match="17 runs are too many for one page"):
        report.write_comparison([run] * 17, tmp_path / "c.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written: File exists"):
        report.write(run, tmp_path / "file" / "r.html")
    assert not (tmp_path / "c.html").exists()


def test_a_report_that_fails_is_told_and_raises_nothing(run, monkeypatch, caplog):
    monkeypatch.setattr(report, "page", lambda *given, **named: 1 / 0)
    with caplog.at_level(logging.WARNING, "hf_llm_recipes"):
        report.write_at_end(run)
    assert "report.html was not written: ZeroDivisionError: division by zero" in caplog.text
    assert f"the run itself is whole; try again with: hf-llm-recipes report {run}" in caplog.text
    assert not (run / "report.html").exists()


def test_without_matplotlib_the_words_remain(run, monkeypatch):
    monkeypatch.setattr(charts, "can_draw", lambda: False)
    found = drawn(run)
    assert "svg" not in dict(found.tags)
    assert "training: 2.0000 at step 10" in found.text
    assert "pip install 'hf_llm_recipes[report]'" in found.text


def test_the_same_folder_gives_the_same_page(run):
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first


def test_what_stands_beside_a_run(tmp_path):
    test, _ = classified()
    other = {"accuracy": 0.5, "intervals_95": {"accuracy": [0.25, 0.75]}}
    metrics = {
        "test": test,
        "before": other,
        "comparison": {
            "supervised": other,
            "supervised_minutes": 1.0,
            "minutes": 2.0,
            "difference": 0.25,
            "difference_95": [-0.05, 0.5],
        },
        "baselines": {"probe": {**other, "rows": 3}},
        "method": {"test_student": other, "test_raw_weights": other},
    }
    found = drawn(write_run(tmp_path / "run", metrics=metrics))
    beside = {row[0]: row for row in found.table("On the same test rows")[1:]}
    assert list(beside) == [
        "this run",
        "supervised baseline",
        "before training",
        "student, not exported",
        "raw weights, not exported",
        "probe, frozen features",
    ]
    assert beside["probe, frozen features"][1:] == ["0.50000.2500 – 0.7500", "3"]
    assert "+25.0 points" in found.text
    assert "95 %: -5.0 to +50.0" in found.text
    assert "2.00 minutes of training, 1.00 of the supervised baseline" in found.text


def test_predicted_stands_beside_measured(tmp_path):
    training_ = {
        "minutes": 2.0,
        "peak_memory_gib": {"host": 4.0},
        "minutes_before": 0.5,
        "predicted": {
            "minutes": 3.0,
            "minutes_by_part": {"preparation": 1.0, "training": 3.0, "baseline": 2.0},  # the last never came
            "peak_memory_gib": {"host": 3.0},
        },
        "parameters": {"trainable": 5, "total": 20},
        "energy": {"kwh": 0.0123456, "co2e_kg": 0.00069, "country": "FRA", "how": "measured"},
        "ema": {"exported": "averaged_weights", "beside": "raw_weights", "updates": 1200, "decay": 0.98765},
    }
    found = drawn(write_run(tmp_path / "run", metrics={"training": training_}))
    assert found.table("Predicted before the training")[1:] == [
        ["minutes of training", "2.00", "3.00", "1.50"],
        ["minutes of preparation", "0.50", "1.00", "2.00"],
        ["peak memory, host, GiB", "4.00", "3.00", "0.75"],
    ]
    assert "5 of 20 weights trained (25.00 %)" in found.text
    assert "0.0123 kWh, 0.00069 kg CO₂e by the electricity mix of FRA (measured)" in found.text
    said = "The averaged weights are judged and saved, the raw weights judged beside them"
    assert f"{said} (an average over 1,200 steps, decay 0.9877)" in found.text


def test_steps_a_second_leave_out_evaluations_and_pauses():
    log = [
        {"step": 10, "time": 100.0, "loss": 1.0},
        {"step": 20, "time": 105.0, "loss": 1.0},  # 2 a second
        {"step": 20, "time": 300.0, "eval_loss": 1.0},
        {"step": 30, "time": 305.0, "loss": 1.0},  # an evaluation lies between
        {"step": 40, "time": 315.0, "loss": 1.0},  # 1 a second
        {"step": 50, "time": 9999.0, "loss": 1.0},  # the run lay still
        {"step": 60, "time": 10001.5, "loss": 1.0},  # 4 a second
    ]
    assert training.steps_per_second(log) == ([20, 40, 60], [2.0, 1.0, 4.0])


def test_pseudo_labels_beside_the_prior(tmp_path):
    test, _ = classified()
    # of eight logs the last quarter is two: (0.2 + 0.4) / 2 of ham, (0.8 + 0.6) / 2 of spam
    shares = [0.9] * 6 + [0.2, 0.4]
    log = [
        {
            "step": i,
            "loss": 1.0,
            "unlabeled/kept": i / 8,
            "unlabeled/class_0": share,
            "unlabeled/class_1": 1 - share,
        }
        for i, share in enumerate(shares, 1)
    ]
    method = {
        "prior": [0.5, 0.5],
        "guard": ["step 6: turned down"],
        "guard_steps_waited": 3,
        "unlabeled_rows_seen": 100,
        "strong_rows_computed": 40,
        "first_labels": {
            "used": "mixture",
            "held_out": {"probe": 0.75, "fine_tuned": 0.5},
            "powers": {"probe": 1.5},
        },
        "rounds": [{"round": 1, "pool_rows": 12, "agreement": 0.25, "eval": {"eval_accuracy": 0.5}}],
        "labels_settled": True,
        "cross_fit": {"metric": "f1", "semi_supervised": 0.25, "supervised": 0.5, "folds": 3, "rows": 9},
    }
    found = drawn(write_run(tmp_path / "run", metrics={"test": test, "method": method}, log=log))
    assert "ham: pseudo-labels 0.300, prior 0.500; spam: pseudo-labels 0.700, prior 0.500." in found.text
    assert "kept (weight above zero): 0.1250 at step 1, 1.0000 at step 8" in found.text
    assert "step 6: turned down" in found.words
    assert "the unlabeled loss waited for 3 steps" in found.words
    assert "100 rows of the pool seen, 40 of them computed" in found.text
    assert found.table("Sources of the pool's first labels")[1:] == [
        ["probe", "0.750", "1.500"],
        ["fine tuned", "0.500", "–"],
    ]
    assert found.table("What each round took")[1:] == [["1", "12", "0.2500", "0.5000"]]
    assert "The labels had settled." in found.text
    assert "f1 was 0.2500 with the pool and 0.5000 without: the run trained without the pool." in found.text


def test_stages_samples_and_what_else_is_logged(tmp_path):
    log = [{"step": i, "loss": 1.0, "rewards/margins": i / 2, "kl": i * 2.0, "clip/low": 0.5} for i in (1, 2)]
    folder = write_run(
        tmp_path / "run", metrics={"stages": [{"steps": 3, "last_loss": 0.5}], "test": {}}, log=log
    )
    (folder / "stage-0.jsonl").write_text('{"step": 1, "loss": 4.0}\n{"step": 2, "loss": 2.0}\n')
    samples = [{"step": i, "text": "Once", "written": f"upon {i}"} for i in range(200)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    found = drawn(folder)
    assert "Stage 1: Loss" in found.words
    assert "training: 4.0000 at step 1, 2.0000 at step 2" in found.text
    assert "margins: 0.5000 at step 1, 1.0000 at step 2" in found.text
    assert "kl: 2.0000 at step 1, 4.0000 at step 2" in found.text
    assert "The same at every log: clip/low 0.5000." in found.words
    assert found.table("Stages before the task")[1:] == [["1", "3", "0.5000"]]
    written = found.table("Behind 'Once'")[1:]
    assert (written[0], written[-1], len(written)) == (["0", "upon 0"], ["199", "upon 199"], 60)


def test_what_the_callbacks_log_has_its_place(tmp_path):
    log = [
        {"step": i, "loss": 1.0, "throughput/tokens_per_second": 100.0 * i, "memory/host_peak_gib": float(i)}
        | {"gradients/encoder": 10.0**i, "gradients/head": 1.0}
        for i in (1, 2, 3)
    ]
    text = report.write(write_run(tmp_path / "run", log=log)).read_text(encoding="utf-8")
    parts = dict(re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', text, re.DOTALL))
    assert "tokens per second: 100 at step 1, 300 at step 3" in parts["speed"]
    assert "host peak gib: 1.0000 at step 1, 3.0000 at step 3" in parts["speed"]
    assert "encoder: 10.0000 at step 1, 1,000 at step 3" in parts["curves"]
    assert "method" not in parts


def ranked(columns):
    return {one.title: one.rows for one in rows.rankings(columns)}


def test_the_rows_of_every_kind_of_task():
    many = {
        "label": [["a"], ["a", "b"], []],
        "predicted_label": [["a"], ["a"], []],
        "probability_a": [0.75, 0.6, 0.45],
        "probability_b": [0.1, 0.2, 0.3],
    }
    # row 1 lacks b; the least sure decisions lie 0.25, 0.1 and 0.05 from one half
    assert ranked(many) == {"Surest mistakes": [1], "Least sure answers": [2, 1, 0]}
    tagged = {
        "tokens": [["x", "y"], ["z"], ["u", "v", "w"]],
        "label": [["O", "B"], ["O"], ["O", "O", None]],
        "predicted_label": [["B", "B"], ["O"], ["B", "B", None]],
        "probability": [[0.5, 0.75], [0.9], [0.6, 0.7, None]],
    }
    assert ranked(tagged) == {"Most words wrong": [2, 0]}
    assert "u [O → B] v [O → B] w" in rows.tables(tagged)[1]
    # errors of 1, -3 and 2
    assert ranked({"label": [1.0, 5.0, 0.0], "prediction": [2.0, 2.0, 2.0]}) == {"Largest errors": [1, 2, 0]}
    assert ranked({"row": [0, 1], "generated": ["a", "b"], "reward": [0.5, 0.0]}) == {"Worst answers": [1, 0]}
    # margins of 1 and -2
    preferred = {"chosen_logprob": [-1.0, -4.0], "rejected_logprob": [-2.0, -2.0]}
    assert ranked(preferred) == {"Preferences missed by most": [1, 0]}
    # 2 and 3 nats a token; one row has none
    assert ranked({"loss": [8.0, 3.0, 0.0], "tokens": [4, 1, 0]}) == {"Least likely texts": [1, 0, 2]}
    assert ranked({"something": [1]}) == ranked({}) == ranked({"label": []}) == {}


def test_many_classes_show_pairs_and_no_matrix(tmp_path):
    count = 31
    matrix = [[0] * count for _ in range(count)]
    matrix[3][5], matrix[3][3] = 6, 2
    test = {"labels": [f"c{i}" for i in range(count)], "confusion_matrix": matrix, "rows": 8}
    found = drawn(write_run(tmp_path / "run", metrics={"test": test}))
    assert "31 classes: only pairs are shown." in found.text
    assert found.table("Mixed up most")[1:] == [["c3", "c5", "6", "75.0 %"]]


def answered(tmp_path, name, hits, values=None, fingerprint="same"):
    labels = ["a"] * len(hits)
    predictions = {
        "text": [f"row {i}" for i in range(len(hits))],
        "label": labels,
        "predicted_label": ["a" if hit else "b" for hit in hits],
        "probability_a": [0.75 if hit else 0.25 for hit in hits],
        "probability_b": [0.25 if hit else 0.75 for hit in hits],
    }
    accuracy = sum(hits) / len(hits)
    test = {"accuracy": accuracy, "intervals_95": {"accuracy": [accuracy / 2, 1.0]}, "rows": len(hits)}
    return write_run(
        tmp_path / name,
        values,
        metrics={"test": test, "training": {"steps": 40, "minutes": 2.0}},
        environment={"data": {"splits": {"test": {"fingerprint": fingerprint}}}},
        log=logged(),
        predictions=predictions,
    )


OURS, THEIRS = [1] * 6 + [0] + [1] * 3, [0] * 6 + [1] + [1] * 3


def test_two_runs_on_the_same_rows_are_compared_row_by_row(tmp_path):
    values = {"name": "mine", "model": "m", "data": "d.csv", "task": "text_classification"}
    first = answered(tmp_path, "first", OURS, {**values, "trainer": {"learning_rate": 0.1}})
    second = answered(tmp_path, "second", THEIRS, {**values, "trainer": {"learning_rate": 0.2}, "seed": 3})
    path = report.write_comparison([first, second], tmp_path / "both.html")
    found = Page(path.read_text(encoding="utf-8"))
    # six rows against one: p = 2 · (C(7,0) + C(7,1)) / 2⁷; the difference is (1 − 6) / 10
    ((*cells, edges),) = found.table("Pairs of runs on the same test rows")[1:]
    told = ["share of rows right", "6", "1", "McNemar, exact binomial", "0.125", "-0.5000"]
    assert cells == ["first and second", *told]
    low, high = map(float, edges.split(" to "))
    assert low < -0.5 < high
    scores = found.table("Scores on each run's test rows")[1:]
    assert [row[0] for row in scores] == ["first", "second"]
    assert scores[0][1:] == ["0.90000.4500 – 1.0000", "10"]
    assert found.table("Keys in which the recipes differ") == [
        ["key", "first", "second"],
        ["trainer.learning_rate", "0.1", "0.2"],
        ["seed", "–", "3"],
    ]
    assert "first: 2.0000 at step 10, 0.5000 at step 40" in found.text
    assert "not all judged on the same test rows" not in found.text


def test_other_test_rows_are_told_and_not_paired(tmp_path):
    first = answered(tmp_path, "first", OURS)
    second = answered(tmp_path, "second", THEIRS, fingerprint="other")
    found = Page(report.write_comparison([first, second], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "The runs were not all judged on the same test rows" in found.text
    assert not found.has("Pairs of runs")
    assert "They do not differ." in found.text


def test_runs_that_agree_everywhere_are_as_good(tmp_path):
    runs = [facts.read(answered(tmp_path, name, OURS)) for name in "ab"]
    test = ["McNemar, exact binomial", "1", "+0.0000", "0.0000 – 0.0000"]
    assert comparing.tested(*runs) == ["share of rows right", "0", "0", *test]


def test_runs_whose_rows_have_a_number_are_tested_by_it(tmp_path):
    runs = [
        facts.read(
            write_run(
                tmp_path / name,
                metrics={"test": {"rmse": error}},
                predictions={"label": [1.0] * 6, "prediction": [1.0 + error + i / 100 for i in range(6)]},
            )
        )
        for name, error in (("a", 0.5), ("b", 0.25))
    ]
    # every row is 0.25 nearer: all six signs alike, p = 2 / 2⁶
    cells = comparing.tested(*runs)
    assert cells[:6] == ["absolute error", "–", "–", "Wilcoxon signed-rank", "0.0312", "-0.2500"]
    unknown = facts.read(write_run(tmp_path / "c", predictions={"document": [1]}))
    assert comparing.tested(unknown, unknown) is None
    assert comparing.tested(facts.read(write_run(tmp_path / "d")), unknown) is None


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    one, other = answered(tmp_path, "a/run", OURS), answered(tmp_path, "b/run", THEIRS)
    assert comparing.names_of([facts.read(one), facts.read(other)]) == [str(one), str(other)]


def test_an_unfinished_run_is_compared_by_its_curves(tmp_path):
    done = answered(tmp_path, "done", OURS)
    crashed = write_run(tmp_path / "crashed", log=logged(3), model=False)
    found = Page(report.write_comparison([done, crashed], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "crashed: This run has not finished" in found.text
    assert "crashed: 2.0000 at step 10, 0.6667 at step 30" in found.text
    spent = {row[0]: row[4:] for row in found.table("What was run, and what it cost")[1:]}
    assert spent["crashed"] == ["not finished", "–", "–", "–"]


def test_differences_from_the_shipped_recipe(tmp_path):
    from hf_llm_recipes.run import plan
    from hf_llm_recipes.shipped import find_recipe

    shipped = find_recipe("quickstart")
    same = plan(Recipe.load(shipped)).recipe.values
    found = drawn(write_run(tmp_path / "a", {**same, "name": "quickstart"}), resolve=plan)
    assert "The shipped recipe quickstart, unchanged." in found.text
    changed = plan(Recipe.load(shipped, ["trainer.learning_rate=0.5", "tuning.r=4"])).recipe.values
    found = drawn(write_run(tmp_path / "b", {**changed, "name": "quickstart"}), resolve=plan)
    assert found.table("Differences from the shipped recipe")[1:] == [
        ["trainer.learning_rate", "0.002", "0.5"],
        ["tuning.r", "16", "4"],
    ]
    mine = drawn(write_run(tmp_path / "c", {**changed, "name": "mine"}), resolve=plan)
    assert not mine.has("Differences from the shipped recipe")


def test_a_shipped_recipe_that_cannot_be_read_here_is_left_out(tmp_path, caplog):
    def resolve(recipe):
        raise ImportError("no bitsandbytes")

    values = {"name": "quickstart", "model": "m", "data": "d", "task": "t"}
    with caplog.at_level(logging.INFO, "hf_llm_recipes"):
        found = drawn(write_run(tmp_path / "run", values), resolve=resolve)
    assert "the report compares no recipe: no bitsandbytes" in caplog.text
    assert "The recipe as it was run" in found.text


def test_the_command_writes_one_page_or_a_comparison(tmp_path, monkeypatch):
    first, second = answered(tmp_path, "first", OURS), answered(tmp_path, "second", THEIRS)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        done = typer.testing.CliRunner().invoke(cli.app, ["report", *map(str, arguments)])
        return SimpleNamespace(code=done.exit_code, out=done.output, error=str(done.exception or ""))

    assert call(first).out.strip().endswith("first/report.html")
    assert "<title>mine</title>" in (first / "report.html").read_text(encoding="utf-8")
    assert call(first).code == 0  # its own page is drawn again
    assert call(first, second).out.strip() == "comparison.html"
    again = call(first, second)
    assert "exists already; nothing was changed" in again.error
    assert call(first, second, "--output", "deep/both.html").out.strip() == "deep/both.html"
    assert "2 runs compared" in Path("deep/both.html").read_text(encoding="utf-8")
    assert "exists already" in call(first, "--output", "deep/both.html").error


def test_figures_are_told_as_one_reads_them():
    said = [
        markup.number(x) for x in (None, True, 12345, 0.5, 2e-5, 0.0, 1234.5, 2000.0, 3e7, float("nan"), "x")
    ]
    assert said == [
        "–",
        "yes",
        "12,345",
        "0.5000",
        "2e-05",
        "0.0000",
        "1,234.5",
        "2,000",
        "3e+07",
        "nan",
        "x",
    ]
    assert markup.shortened("a\n\nb\n\n\n\nc") == "a\n\nb\n⏎ × 4\nc"
    assert markup.interval([0.25, 0.5], 2) == "0.25 – 0.50"
    assert markup.interval([-0.5, 0.25], 2) == "-0.50 to 0.25"
    assert markup.element("p", "a<b", markup.element("br"), None, class_='"x"') == (
        '<p class="&quot;x&quot;">a&lt;b<br></p>'
    )


def luminance(colour):
    colour = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_apart_in_light_and_dark():
    assert contrast("#000000", "#fff") == pytest.approx(21)
    themes = [dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in page.STYLE.split("@media")[:2]]
    assert [len(theme) for theme in themes] == [20, 20]
    for theme in themes:
        for ink, back, least in (  # WCAG 2.2: 4.5 for text, 3 for curves
            *((ink, back, 4.5) for ink in ("ink", "dim", "accent") for back in ("card", "back")),
            ("warn-ink", "warn-back", 4.5),
            ("good", "card", 4.5),
            ("bad", "card", 4.5),
            *((f"s{i}", "card", 3) for i in range(charts.SERIES)),
        ):
            assert contrast(theme[ink], theme[back]) >= least, (ink, back)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """
const done = (found) => { const out = document.createElement('pre'); out.id = 'measured';
  out.textContent = JSON.stringify(found); document.body.append(out); };
const judge = window.axe ? axe.run(document) : Promise.resolve({violations: []});
judge.then((judged) => { const frame = document.createElement('iframe');
  frame.style = 'width:360px;height:800px;border:0';
  frame.onload = () => { const inner = frame.contentDocument.scrollingElement;
    done({wide: inner.scrollWidth, dark: matchMedia('(prefers-color-scheme: dark)').matches,
      violations: judged.violations.map((v) => v.id + ': ' + v.nodes[0].html)}); };
  frame.srcdoc = PHONE; document.body.append(frame); });
"""


def in_chromium(text, folder, *, dark):
    """Opens a page with axe-core, where it is installed, and in a phone's width; returns what was found."""
    found = util.find_spec("axe_core_python")
    axe = Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8") if found else ""
    phone = json.dumps(text).replace("<", "\\u003c")
    script = f"<script>{axe}</script><script>const PHONE = {phone};{MEASURE}</script></body>"
    (folder / "page.html").write_text(text.replace("</body>", script), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'chromium'}", "--virtual-time-budget=60000", "--dump-dom"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [*command, (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return json.loads(unescape(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)[1]))


def looked_at(run):
    """A run whose rows were looked at once more: groups, temperature, views, attributions."""
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    bins = metrics["test"]["calibration"]["bins"]
    scores = {"loss": 0.5, "ece": 0.25, "brier": 0.125, "bins": bins}
    groups = [
        {"name": name, "rows": rows, "few": rows < 30, "accuracy": share, "intervals_95": {"accuracy": edges}}
        for name, rows, share, edges in (
            (EVIL, 40, 0.75, [0.6, 0.86]),
            ("b", 60, 0.5, [0.38, 0.62]),
            ("c", 3, 1.0, [0.44, 1.0]),
        )
    ]
    gap = {"highest": EVIL, "lowest": "b", "difference": 0.25, "difference_95": [0.05, 0.42], "pairs": 1}
    metrics["slices"] = {
        "who": {
            "by": "who",
            "score": "accuracy",
            "groups": groups,
            "gap": gap,
            "alike": {"test": "chi-square of equal shares", "statistic": 6.25, "p": 0.0124},
            "notes": ["fewer than 30 rows, left out of the gap: c"],
        }
    }
    metrics["temperature"] = {
        "temperature": 1.5,
        "fitted_rows": 70,
        "before": scores,
        "after": {**scores, "loss": 0.4},
        "loss_difference": -0.1,
        "loss_difference_95": [-0.2, -0.05],
        "notes": [],
    }
    view = {"name": "tfidf_substitute", "value": 0.7, "difference": -0.05, "difference_95": [-0.1, 0.0]}
    metrics["robustness"] = {
        "score": "accuracy",
        "plain": 0.75,
        "seed": 0,
        "views": [{**view, "answers_changed": 0.125}],
        "notes": ["mask is left out: the tokenizer has no mask token"],
    }
    path.write_text(json.dumps(metrics))
    pieces = [(0, 0, 3, 1.0), (0, 4, 7, -0.5)]
    explanation = {
        "texts": [f"buy now {EVIL}"],
        "answer": "spam (0.90)",
        "target": "spam",
        "logit": 2.0,
        "masked_logit": 1.5,
        "pieces": [dict(zip(("text", "start", "end", "weight"), one, strict=True)) for one in pieces],
        "missing": 0.0,
        "steps": 32,
    }
    rows = [{"row": 1, "label": "ham", "explanation": explanation}]
    (run / "attributions.json").write_text(json.dumps({"rows": rows}))
    return run


def test_what_was_looked_at_once_more(run):
    found = drawn(looked_at(run))
    assert found.table("accuracy by who")[1:] == [
        [EVIL, "40", "0.7500", "0.6000 – 0.8600"],
        ["b", "60", "0.5000", "0.3800 – 0.6200"],
        ["c", "3 (few)", "1.0000", "0.4400 – 1.0000"],
    ]
    assert f"Gap of accuracy: 0.2500 (95 %: 0.0500 – 0.4200) between {EVIL} (highest) and b" in found.text
    assert "p = 0.0124" in found.text
    assert found.table("On the test rows")[1:] == [
        ["before", "0.5000", "0.2500", "0.1250"],
        ["after", "0.4000", "0.2500", "0.1250"],
    ]
    assert found.table("Test rows under each augmentation")[2] == [
        "tfidf substitute",
        "0.7000",
        "-0.0500",
        "-0.1000 to 0.0000",
        "12.5 %",
    ]
    assert found.table("Row 1, label ham: logits")[1:] == [["buy", "+1.000"], ["now", "-0.500"]]
    marks = [attrs for tag, attrs in found.tags if tag == "mark"]
    assert [(one["class"], one.get("title")) for one in marks[2:]] == [
        ("for", "+1.000"),
        ("against", "-0.500"),
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_what_was_looked_at_once_more(run, tmp_path, dark):
    text = report.write(looked_at(run)).read_text(encoding="utf-8")
    found = in_chromium(text, tmp_path, dark=dark)
    assert found == {"violations": [], "wide": found["wide"], "dark": dark}
    assert found["wide"] <= 360


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_an_error(run, tmp_path, dark):
    if dark:
        other = answered(tmp_path, "other", OURS)
        text = report.write_comparison([run, other], tmp_path / "c.html").read_text(encoding="utf-8")
    else:
        text = report.write(run).read_text(encoding="utf-8")
    found = in_chromium(text, tmp_path, dark=dark)
    assert found["violations"] == []
    assert found["wide"] <= 360  # the page itself never scrolls sideways
    assert found["dark"] == dark
