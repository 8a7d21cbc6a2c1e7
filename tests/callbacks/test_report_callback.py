"""The page that is drawn while a training runs: in a plain Trainer, and in a run."""

import re
from html.parser import HTMLParser

import pytest
from _tiny_trainer import make_trainer
from transformers import TrainerCallback

from hf_llm_recipes import report as pages
from hf_llm_recipes.callbacks import Report
from hf_llm_recipes.callbacks import report as module
from hf_llm_recipes.callbacks._bound import RunAround
from hf_llm_recipes.callbacks.report import page
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}


class Looks(TrainerCallback):
    """Keeps the page as it was at each step's begin."""

    def __init__(self, path):
        self.path, self.seen = path, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append(self.path.read_text() if self.path.exists() else None)


class Drawn:
    """A run's report, counted; each drawing takes so many seconds of a clock."""

    def __init__(self, monkeypatch, seconds=0.0):
        self.now, self.seconds, self.steps = 0.0, seconds, []
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def __call__(self):
        self.steps.append(self.trainer.state.global_step)
        self.now += self.seconds


def drawn_in(tmp_path, monkeypatch, every=1, steps=4, seconds=0.0, **arguments):
    """At which steps a run's report is drawn, where a step takes a second."""
    drawn, callback = Drawn(monkeypatch, seconds), Report(every)
    callback.enter(RunAround(tmp_path, drawn))

    class Clock(TrainerCallback):
        """A second a step."""

        def on_step_begin(self, args, state, control, **kwargs):
            drawn.now += 1

    drawn.trainer = make_trainer(tmp_path, [Clock(), callback], max_steps=steps, **{**EVALUATED, **arguments})
    drawn.trainer.train()
    return drawn.steps


def test_it_is_drawn_after_each_evaluation_or_after_some(tmp_path, monkeypatch):
    assert drawn_in(tmp_path / "a", monkeypatch) == [1, 2, 3, 4]
    assert drawn_in(tmp_path / "b", monkeypatch, every=3) == [3]
    assert drawn_in(tmp_path / "c", monkeypatch, eval_steps=2) == [2, 4]


def test_drawing_takes_a_fiftieth_of_the_time_at_most(tmp_path, monkeypatch):
    # drawn at second 1, in 0.04 s: not again before 2 s have passed, and so on
    assert drawn_in(tmp_path, monkeypatch, steps=7, seconds=0.04) == [1, 4, 7]


def test_a_plain_trainer_gets_a_page_of_its_own(tmp_path):
    looks = Looks(tmp_path / "report.html")
    make_trainer(tmp_path, [looks, Report()], max_steps=2, **EVALUATED).train()
    assert looks.seen[0] is None
    assert re.search(r"<p>running: step 1 of 2, drawn \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC</p>", looks.seen[1])
    text = looks.path.read_text()
    assert "<p>ended: step 2 of 2, drawn" in text
    # w = 0, then 1: the loss is 1, then 0, and 0 in both evaluations
    assert 'aria-label="loss: 1 at step 1, 0 at step 2, lowest 0, highest 1"' in text
    assert '<polyline points="0.0,0.0 600.0,200.0"/>' in text  # from the top left to the bottom right
    evaluations = text.partition("<caption>Training")[0]
    assert evaluations.count("<tr><td>0</td>") == 2
    assert not list(tmp_path.glob(".report*"))


def test_its_markup_is_whole_and_nothing_in_it_is_obeyed():
    history = [{"step": n, "loss": float(n), "<script>alert(1)</script>": "<b>"} for n in range(70)]
    text = page("<i>run</i>", "running", [*history, {"step": 3, "loss": float("nan")}])
    opened = []

    class Parser(HTMLParser):
        """Every tag that is opened is closed."""

        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "b", "i")
            if tag not in ("meta",):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

        def handle_startendtag(self, tag, attrs):
            assert tag == "polyline"

    Parser().feed(text)
    assert opened == []
    assert "the last 50 of 71" in text
    assert "http" not in text
    assert "Evaluations" not in page("run", "running", history[:1])  # none yet, and no curve of one point
    assert "<svg" not in page("run", "running", history[:1])


def test_a_run_draws_its_own_report_and_says_that_it_is_running(recipe, monkeypatch):
    recipe |= {"callbacks": [{"name": "report"}]}
    recipe["trainer"] |= {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1}
    seen = []

    real = pages.write_meanwhile
    monkeypatch.setattr(
        pages, "write_meanwhile", lambda d: (real(d), seen.append((d / "report.html").read_text()))[0]
    )
    done = run(Recipe.from_dict(recipe))
    assert seen
    assert re.search(r'class="note">running: step 2, drawn [\d: -]+ UTC. Load it again for more.', seen[0])
    assert "Learning curves" in seen[0]
    assert "not finished" not in seen[0]
    assert "resume=true" not in seen[0]
    assert "running: step" not in (done.path / "report.html").read_text()


def test_a_page_that_cannot_be_drawn_costs_no_step(recipe, monkeypatch, caplog):
    recipe |= {"callbacks": [{"name": "report"}]}
    recipe["trainer"] |= {"eval_strategy": "steps", "eval_steps": 2}

    def fails(facts, resolve=None):
        raise RuntimeError("no ink")

    monkeypatch.setattr(pages, "run_page", fails)
    done = run(Recipe.from_dict(recipe))
    assert done.metrics["training"]["steps"] == 4
    assert "report.html was not written: RuntimeError: no ink" in caplog.text


def test_without_evaluations_it_says_what_to_add(tmp_path):
    with pytest.raises(RecipeError, match="there are none\n  do: under `trainer:` add eval_strategy: steps"):
        make_trainer(tmp_path, [Report()]).train()


def test_values_that_cannot_be():
    with pytest.raises(ValueError, match="every is 0; allowed: 1 or more"):
        Report(every=0)
