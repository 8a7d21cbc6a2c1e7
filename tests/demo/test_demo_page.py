"""The page in a browser, and the way back: what is flagged there trains the next run."""

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from html import unescape
from importlib import util
from pathlib import Path

import pytest
from conftest import sentences, write_csv

from hf_llm_recipes.demo.classifying import TextPanel
from hf_llm_recipes.demo.command import demo
from hf_llm_recipes.demo.flagged import Columns, Flagged
from hf_llm_recipes.errors import MissingExtraError, RunError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run

sys.path.append(str(Path(__file__).parents[1]))
from _chromium import CHROMIUM, Chromium

pytest.importorskip("gradio")
EVIL = "<img src=//x.example/a onerror=alert(1)> ${alert(1)} {{value}} </script> the song"
# whom the process looks up or connects to, but itself
WATCHED = """
import sys
def seen(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = given[1][0] if event == "socket.connect" and isinstance(given[1], tuple) else given[0]
        if isinstance(host, str) and host not in ("127.0.0.1", "localhost"):
            print("ELSEWHERE", event, host, file=sys.stderr, flush=True)
sys.addaudithook(seen)
from hf_llm_recipes.cli import main
main()
"""


@pytest.fixture(scope="module")
def done(tiny_bert, tmp_path_factory):
    """A run whose data calls its text otherwise, and has a column more; labels are hostile."""
    folder = tmp_path_factory.mktemp("demo")
    rows = [
        {"id": str(i), "review": row["text"], "topic": f"<b>{row['label']}</b>"}
        for i, row in enumerate(sentences(60))
    ]
    (folder / "rows").mkdir()
    write_csv(folder / "rows" / "train.csv", rows)
    values = {
        "name": "tiny",
        "output": str(folder / "run"),
        "model": {"name": str(tiny_bert)},
        "data": {"name": str(folder / "rows"), "columns": {"text": "review", "label": "topic"}},
        "task": {"name": "text_classification"},
        "trainer": {
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        },
    }
    return values, run(Recipe.from_dict(values)).path


class Shown:
    """``demo`` in a process of its own.

    Args:
        *arguments: Behind ``demo``.
    """

    def __init__(self, *arguments):
        command = [sys.executable, "-c", WATCHED, "demo", *map(str, arguments), "--port", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.said = []
        while not self.said or self.said[-1] != "Ctrl-C ends it":
            try:
                self.said.append(self.lines.get(timeout=120))
            except queue.Empty:
                self.process.kill()
                raise AssertionError(self.process.communicate()[1]) from None
        self.url = self.said[0].removeprefix("page:").strip()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def stop(self):
        """Ctrl-C; what was written to standard error."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0
        return self.process.stderr.read()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_user_asks_and_flags(done, tmp_path):
    _, path = done
    file = tmp_path / "flagged.jsonl"
    page = Shown(path, "--flagged", file)
    try:
        with Chromium(tmp_path / "chromium") as browser:
            browser.open(page.url)
            nothing = "document.querySelector('#said').innerText == 'Nothing was asked yet.'"
            browser.click_until("#flag", nothing)
            browser.write("#input-0 textarea", EVIL)
            browser.click("#ask")
            shown = browser.shows("#answer tbody").split("\n")
            answer = Predictor.load(path).predict([EVIL])[0]
            assert shown[0].split("\t")[:2] == [answer["label"], f"{answer['probability']:.3f}"]
            assert len(shown) == 3
            browser.click("#flag")
            said = "document.querySelector('#said').innerText"
            browser.until(f"{said}.includes('no right answer is chosen')")
            assert not file.exists()
            browser.click("#right label:nth-of-type(2)")
            browser.write("#input-0 textarea", "written later")  # a flag is of what was answered
            browser.click("#flag")
            browser.until(f"{said}.includes('Flagged: a row was added')")
            browser.click("#flag-unlabeled")
            browser.until(f"{said}.includes('for data.unlabeled of the next run')")
            if util.find_spec("captum"):
                browser.click("#explain")
                assert browser.shows("#why h3") == f"Why {answer['label']}?"
                assert browser.value("document.querySelectorAll('#why p.attributed.text mark').length") > 10
                assert "onerror" in browser.value("document.querySelector('#why').innerText")
            if util.find_spec("axe_core_python"):
                assert browser.violations() == {}
            browser.resize(360)
            assert browser.value("document.scrollingElement.scrollWidth") <= 360
            assert browser.complaints() == []
            elsewhere = [one for one in browser.requested() if not one.startswith((page.url, "data:"))]
            assert elsewhere == []
            assert len(browser.requested()) > 10
            browser.prefer("dark")
            browser.open(page.url)
            browser.shows("#ask")
            colour = browser.value("getComputedStyle(document.querySelector('.hlr')).color")
            assert min(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) > 180
        asked = urllib.request.Request(page.url, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked)
        noise = page.stop()
    finally:
        page.process.kill()
    assert page.lines.get(timeout=10) == "stopped"
    assert "ELSEWHERE" not in noise
    assert "Traceback" not in noise
    names = ["<b>food</b>", "<b>music</b>", "<b>sport</b>"]
    assert json.loads(file.read_text()) == {"id": None, "review": EVIL, "topic": names[1]}
    assert json.loads((tmp_path / "flagged-unlabeled.jsonl").read_text()) == {
        "id": None,
        "review": EVIL,
        "topic": None,
    }


def test_flagged_rows_train_the_next_run(done, tmp_path, monkeypatch):
    values, path = done
    flagged = Flagged(tmp_path / "flagged.jsonl", Columns.of_run(path / "model"))
    panel = TextPanel(Predictor.load(path))
    for i, row in enumerate(sentences(48, seed=7)):
        asked = panel.ask(None, row["text"])
        if i < 30:
            flagged.add(panel.labeled(asked, f"<b>{row['label']}</b>"), labeled=True)
        else:
            flagged.add(panel.unlabeled(asked), labeled=False)

    def again(name, *overrides):
        made = run(Recipe.from_dict({**values, "output": str(tmp_path / name)}), *overrides).path
        told = json.loads((made / "environment.json").read_text())["data"]["splits"]
        return {part: found["rows"] for part, found in told.items()}

    # by the defaults a tenth of 30 rows each, of every class, is held out
    assert again("alone", f"data.name={tmp_path}/flagged.jsonl") == {"train": 24, "eval": 3, "test": 3}
    monkeypatch.chdir(tmp_path)
    joined = again("joined", "data.train=train+flagged.jsonl")
    assert joined == {"train": 72, "eval": 9, "test": 9}  # of 60 + 30
    semi = ["method=semi_supervised", "data.unlabeled=flagged-unlabeled.jsonl", "data.pool_overlap=drop"]
    semi += ["trainer.per_device_train_batch_size=4"]
    found = again("semi", *semi)
    assert found == {"train": 48, "eval": 6, "test": 6, "unlabeled": 18}


def test_what_cannot_be_shown_is_told_before_the_page_opens(done, tmp_path):
    _, path = done
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"127.0.0.1:{port}: cannot listen there: Address already in use"):
            demo(path, tmp_path / "f.jsonl", "127.0.0.1", port, print)
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot be written: Is a directory"):
        demo(path, tmp_path / "d.jsonl", "127.0.0.1", 0, print)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("model: {}\n")
    with pytest.raises(RunError, match="has no model: the run has not finished\n  do: hf-llm-recipes run "):
        demo(tmp_path / "begun", tmp_path / "f.jsonl", "127.0.0.1", 0, print)
    with pytest.raises(RunError, match="no such run directory"):
        demo(tmp_path / "nowhere", tmp_path / "f.jsonl", "127.0.0.1", 0, print)


def test_without_the_extras_they_are_named(done, tmp_path, monkeypatch):
    from hf_llm_recipes.demo.page import Handlers

    _, path = done
    panel = TextPanel(Predictor.load(path))
    handlers = Handlers(panel, Flagged(tmp_path / "f.jsonl", Columns()))
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    _, said = handlers.explain(panel.ask(None, "the song"))
    assert "needs the package `captum`, which is not installed\n  do: pip install" in unescape(said)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_llm_recipes.demo.page")
    with pytest.raises(
        MissingExtraError, match=r"needs the package `gradio`.*\n  do: pip install 'hf_llm_rec"
    ):
        demo(path, tmp_path / "f.jsonl", "127.0.0.1", 0, print)
