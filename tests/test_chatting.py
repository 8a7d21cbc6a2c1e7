"""Talking with a run in the terminal; the answers are those it was taught, or a plain argmax finds them."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import typer.testing
from conftest import write_csv
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_llm_recipes import cli
from hf_llm_recipes.chatting import Pieces, Session, Speaker
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.tasks import _language

sys.path.append(str(__file__).rpartition("/")[0] + "/tasks")
from _tiny_chat import BYE, END, HELLO, HI, LINE, NO_SYSTEM, START, SYSTEM, USER, tiny_llama, tiny_tokenizer

PAIRS = [("hello", "hi"), ("bye", "good day"), ("why", "so it is"), ("be kind", "it is good")]
TURN = [START, USER, LINE]  # how a message of the user begins
ASKS = [START, 7, LINE]  # and the assistant's
COMMAND = [sys.executable, "-m", "hf_llm_recipes.cli"]
TRAINER = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chatting")


@pytest.fixture(scope="module")
def chat(folder):
    """A run that has learnt four answers by heart."""
    rows = [{"prompt": asked, "completion": answered} for asked, answered in PAIRS] * 12
    values = {
        "name": "tiny-chat",
        "output": str(folder / "chat"),
        "model": {"name": str(tiny_llama(folder / "llama"))},
        "data": {"name": str(write_csv(folder / "rows.csv", rows))},
        "task": {"name": "chat"},
        "trainer": {**TRAINER, "max_steps": 60},
    }
    return run(Recipe.from_dict(values)).path


@pytest.fixture(scope="module")
def clm(folder, chat):
    """A run that goes on with texts, for one step."""
    rows = [{"text": f"{asked} {answered}"} for asked, answered in PAIRS] * 12
    values = {
        "name": "tiny-clm",
        "output": str(folder / "clm"),
        "model": {"name": str(folder / "llama")},
        "data": {"name": str(write_csv(folder / "texts.csv", rows))},
        "task": {"name": "clm", "generation": {"max_new_tokens": 5}, "block_size": 32},
        "trainer": {**TRAINER, "max_steps": 1},
    }
    return run(Recipe.from_dict(values)).path


@pytest.fixture
def call(monkeypatch):
    """Runs a command line in this process, with text on its standard input."""
    monkeypatch.setattr(cli, "_log_to_terminal", lambda: None)

    def invoke(*arguments, given="", options=()):
        words = [str(word) for word in (*arguments, *options)]
        return typer.testing.CliRunner().invoke(cli.app, words, input=given, env={"COLUMNS": "200"})

    return invoke


def session(path, **settings):
    """A session whose output is kept: pieces of the answers in `said`, sentences in `noted`."""
    predictor = Predictor.load(path)
    predictor.write_with(settings)
    said, noted = [], []
    return Session(Speaker(predictor), said.append, noted.append), said, noted


def prompts(made):
    """Notes the ids that each answer follows."""
    seen, write = [], made.speaker.write

    def noting(ids, say):
        seen.append(ids)
        return write(ids, say)

    made.speaker.write = noting
    return seen


def test_lines_of_a_pipe_are_messages(call, chat):
    done = call("predict", chat, given="hello\n\n  /new \nwhy\n/new\nbye\n/quit\nbe kind\n")
    assert (done.exit_code, done.stdout) == (0, "hi\nso it is\ngood day\n")


def test_the_conversation_is_kept_until_it_is_forgotten(chat):
    made, said, noted = session(chat)
    seen = prompts(made)
    made.take(["hello", "bye", "/new", "hello", "/system be kind", "hello", "/system", "//hello"])
    first = [*TURN, HELLO, END, LINE, *ASKS]
    answer = tiny_tokenizer()(made.messages[0]["content"])["input_ids"]
    assert seen[0] == seen[2] == first
    assert seen[1] == [*TURN, HELLO, END, LINE, *ASKS, HI, END, LINE, *TURN, BYE, END, LINE, *ASKS]
    assert seen[3] == [START, SYSTEM, LINE, 13, 14, END, LINE, *first]
    assert seen[4] == [*TURN, *answer, END, LINE, *ASKS]  # "/hello" is one word, unknown
    assert "".join(said).splitlines()[0] == "hi"
    assert noted == ["the system says: be kind", "the system says nothing"]
    assert [message["role"] for message in made.messages] == ["user", "assistant"]


def test_pieces_come_with_their_tokens(chat):
    made, said, _ = session(chat)
    made.take(["be kind"])
    assert said == ["it", " is", " good", "\n"]


def test_a_character_of_several_tokens_is_said_whole():
    bytes_ = {10: b"a", 11: "é".encode()[:1], 12: "é".encode()[1:], 13: b"!"}

    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return b"".join(bytes_[i] for i in ids).decode(errors="replace")

    said = []
    pieces = Pieces(Bytes(), said.append)
    pieces.put(torch.tensor([[10, 10]]))  # the prompt
    for i in (10, 11, 12, 13, 11):
        pieces.put(torch.tensor([i]))
    assert (said, pieces.text) == (["a", "é", "!"], "aé!")
    pieces.finish([10, 11, 12, 13, 11])
    assert said[-1] == "\ufffd"


def test_what_is_cut_or_too_long_is_said(chat):
    made, said, noted = session(chat, max_new_tokens=2)
    made.take(["be kind"])
    assert ("".join(said), noted) == ("it is\n", ["(stopped after 2 tokens: --max-new-tokens allows more)"])
    made, said, noted = session(chat, eos_token_id=0, max_new_tokens=500)  # nothing ends an answer
    made.take(["hello", "why " * 56])  # 9 tokens of the prompt: 3 + 1 + 2 + 3, and 55 are left
    assert noted[0] == ("(cut after 55 tokens: all 64 of the model are used; /new forgets the conversation)")
    assert noted[1].startswith("not answered: ")
    assert noted[1].endswith(
        "tokens leave no room for an answer: the model takes 64\n  do: shorten the conversation\n"
        "/new forgets the conversation before it"
    )
    assert made.failed == 1
    assert len(made.messages) == 2  # what was not answered is not kept


def test_too_long_a_line_of_a_pipe_is_an_exit_code(call, chat):
    done = call("predict", chat, given="why " * 56 + "\n/nwe\nhello\n")  # and 8 of the template
    assert (done.exit_code, done.stdout) == (1, "hi\n")
    assert "not answered: 64 tokens leave no room for an answer: the model takes 64" in done.stderr
    assert "unknown command /nwe; allowed: /new, /system TEXT, /quit, /help" in done.stderr


def test_a_template_that_refuses(chat):
    made, said, noted = session(chat)
    made.speaker.tokenizer.chat_template = NO_SYSTEM
    made.take(["/system be kind", "hello"])
    assert said == []
    assert noted[-1] == "not answered: the chat template refuses it: no system here"


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(chat):
    made, said, noted = session(chat)

    def say(piece):
        said.append(piece)
        if piece == " is":
            raise KeyboardInterrupt

    made.say = say
    made.take(["be kind", "/new", "be kind"])
    assert "".join(said) == "it is\nit is\n"
    assert made.messages[-1] == {"role": "assistant", "content": "it is"}
    assert noted == []
    made.interactive = False
    with pytest.raises(KeyboardInterrupt):
        made.take(["/new", "be kind"])


def test_texts_are_gone_on_with_each_by_itself(clm, folder):
    model = AutoModelForCausalLM.from_pretrained(clm / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(clm / "model")
    wanted = []
    for ids in ([HELLO], [BYE, HELLO]):
        for _ in range(5):  # the likeliest token, five times or until the end
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == END:
                break
        wanted.append(tokenizer.decode(ids[1 if ids[0] == HELLO else 2 :], skip_special_tokens=True))
    made, said, noted = session(clm)
    made.take(["hello", "bye hello", "/new"])
    assert "".join(said) == "".join(f"{text}\n" for text in wanted)
    assert noted[-1] == "/new has no effect: this model goes on with each text by itself"


def test_a_terminal_has_a_prompt_and_ctrl_c_does_not_end_it(chat):
    ours, theirs = pty.openpty()
    talk = subprocess.Popen(
        [*COMMAND, "predict", chat],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a `&` of a shell
    )
    os.close(theirs)
    shown = ""

    def until(wanted, nudge=lambda: None):
        nonlocal shown
        ends = time.monotonic() + 240
        while wanted not in shown:
            assert time.monotonic() < ends, shown
            nudge()
            if select.select([ours], [], [], 0.5)[0]:
                shown += os.read(ours, 1024).decode()
        shown = shown.partition(wanted)[2]

    try:
        until("/help shows the commands, /quit or Ctrl-D ends")
        until("> ")
        os.write(ours, b"hello\n")
        until("hi\r\n")
        until("> ")
        until("(/quit or Ctrl-D ends)", lambda: talk.send_signal(signal.SIGINT))  # again if it came too early
        until("> ")
        os.write(ours, b"\x04")
        assert talk.wait(30) == 0
    finally:
        talk.kill()
        os.close(ours)


def test_options_of_how_it_writes(chat):
    predictor = Predictor.load(chat)
    predictor.write_with({"max_new_tokens": 1})
    assert predictor.predict(["be kind"]) == [{"generated": "it"}]
    with pytest.raises(RunError, match="a seed has no effect: the likeliest token is taken"):
        predictor.write_with({}, seed=3)
    drawn = []
    for seed in (3, 3, 4):
        predictor.write_with({"do_sample": True, "temperature": 9.0, "max_new_tokens": 12}, seed)
        drawn.append(predictor.predict(["hello"])[0]["generated"])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("task", "settings", "system"),
    [
        ({"name": "generation", "system": "be kind"}, {"do_sample": False, "max_new_tokens": 64}, "be kind"),
        ({"name": "preference"}, {"do_sample": False, "max_new_tokens": 64}, None),
        ({"name": "chat"}, {"do_sample": False, "max_new_tokens": 128, "eos_token_id": [END]}, None),
    ],
)
def test_every_task_that_writes_takes_the_options(task, settings, system):
    from hf_llm_recipes.registry import TASKS

    made = TASKS.get(task["name"])(**{key: value for key, value in task.items() if key != "name"})
    writing = made.writing(tiny_tokenizer())
    assert (writing.settings, writing.chats, writing.system) == (settings, True, system)
    assert not made.writing(tiny_tokenizer(None)).chats
    changed = made.with_settings({"max_new_tokens": 7, "do_sample": True}).writing(tiny_tokenizer())
    assert changed.settings == {**settings, "max_new_tokens": 7, "do_sample": True}


def test_a_model_that_writes_no_text():
    from hf_llm_recipes.tasks.text_classification import TextClassification

    predictor = Predictor(SimpleNamespace(), None, TextClassification())
    said = "task is text_classification, whose model writes no text: tokens, temperature, .* have no effect"
    with pytest.raises(RunError, match=said) as caught:
        predictor.write_with({"max_new_tokens": 3})
    assert "allowed: runs of the tasks chat, generation, preference, clm and seq2seq" in str(caught.value)
    assert "do: for calibrated probabilities: `evaluate RUN --temperature`, then" in str(caught.value)


def test_an_empty_text_has_nothing_to_go_on_from():
    ends = SimpleNamespace(bos_token_id=None, eos_token_id=None, sep_token_id=None)
    with pytest.raises(DataError, match="the text has no token to go on from"):
        _language.going_on([], None, ends)
    ends.eos_token_id = 3
    assert [_language.going_on(ids, None, ends) for ids in ([], [5, 3], [3, 3])] == [[3], [5], [3]]


def test_predict_of_texts_and_of_a_file_takes_the_options(call, chat, folder):
    rows = write_csv(folder / "asked.csv", [{"prompt": "be kind"}, {"prompt": "hello"}])
    target = folder / "answers.jsonl"
    options = ["--max-new-tokens", 2, "--temperature", 0]
    assert call("predict", chat, "--file", rows, "--output", target, *options).exit_code == 0
    answers = [json.loads(line)["predicted_generated"] for line in target.read_text().splitlines()]
    assert answers == ["it is", "hi"]
    assert call("predict", chat, "be kind", *options).stdout == "it is  <-  be kind\n"
    assert call("predict", chat, given="be kind\n", options=options).stdout == "it is\n"
    wrong = call("predict", chat, "hello", "--sample", "--temperature", 0)
    assert wrong.exit_code == 2
    assert "--temperature 0 goes with --greedy, one above 0 with --sample" in wrong.stderr
