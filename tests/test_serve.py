"""A run behind the server, asked by OpenAI's own client; expected texts are what the models were taught,
or the likeliest tokens of the weights that a run saved.
"""

import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch
from conftest import write_csv
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cli.serving.utils import Modality

from hf_llm_recipes import serving
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.run import run
from hf_llm_recipes.tasks._language_task import Writing

sys.path.append(str(Path(__file__).parent / "tasks"))
from _tiny_chat import BYE, END, HELLO, tiny_llama

PAIRS = [("hello", "hi"), ("bye", "good day"), ("why", "so it is"), ("be kind", "it is good")]
LORA = ["tuning.name=lora", "tuning.r=8", "tuning.target_modules=all-linear"]
TUNINGS = {"full": [], "lora": LORA, "four": [*LORA, "quantization.load_in_4bit=true"]}
COMMAND = [sys.executable, "-m", "hf_llm_recipes.cli"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs that have learnt four answers, behind a word of the system."""
    folder = tmp_path_factory.mktemp("serve")
    rows = [{"prompt": asked, "completion": answered} for asked, answered in PAIRS] * 12
    values = {
        "name": "tiny-chat",
        "model": {"name": str(tiny_llama(folder / "llama"))},
        "data": {"name": str(write_csv(folder / "rows.csv", rows))},
        "task": {"name": "chat", "system": "be kind"},
        "trainer": {
            "max_steps": 80,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
    }
    return {
        name: run(Recipe.from_dict(values), *more, f"output={folder / name}").path
        for name, more in TUNINGS.items()
    }


class Served:
    """`serve` in a process of its own.

    Args:
        path: A run.
    """

    def __init__(self, path):
        command = [*COMMAND, "serve", str(path), "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))

    def greeting(self):
        """The lines up to the last one."""
        said = []
        while not said or said[-1] != "Ctrl-C ends it":
            try:
                said.append(self.lines.get(timeout=1 if self.process.poll() is not None else 90))
            except queue.Empty:
                raise AssertionError(self.process.stderr.read()) from None
        return said

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def served(runs):
    """The servers of all three, started side by side, and clients of them."""
    servers = {name: Served(path) for name, path in runs.items()}
    try:
        clients = {}
        for name, server in servers.items():
            server.said = server.greeting()
            url = server.said[0].removeprefix("url:").strip()
            http = openai.DefaultHttpxClient(trust_env=False)
            clients[name] = openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)
        yield servers, clients
    finally:
        for server in servers.values():
            server.kill()


def ask(client, name, *turns, **more):
    """What the model answers, and why it stopped."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    made = client.chat.completions.create(model=name, messages=messages, **more)
    return made.choices[0].message.content, made.choices[0].finish_reason


def stream(client, name, content):
    """The pieces of an answer."""
    messages = [{"role": "user", "content": content}]
    pieces = client.chat.completions.create(model=name, messages=messages, stream=True)
    return [piece.choices[0].delta.content for piece in pieces if piece.choices[0].delta.content]


@pytest.mark.parametrize("name", TUNINGS)
def test_answers_are_those_that_were_taught(served, runs, name):
    _, clients = served
    client = clients[name]
    for asked, answer in PAIRS:
        assert ask(client, name, asked) == (answer, "stop")
        assert "".join(stream(client, name, asked)) == answer
    assert stream(client, name, "be kind") == ["it", " is", " good"]
    talk = ("hello", "hi", "bye", "good day", "so good")  # never learnt: whatever it says, it is the run's
    predictor = Predictor.load(runs[name])
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(talk)]
    assert ask(client, name, *talk)[0].strip() == predictor.predict([messages])[0]["generated"]


def test_the_greeting_can_be_followed(served):
    servers, clients = served
    _, model, curl, most, _ = servers["lora"].said
    assert model == "model:  lora"
    assert most == "answers have at most 128 tokens, unless max_tokens says otherwise"
    assert [one.id for one in clients["lora"].models.list()] == ["lora"]
    done = subprocess.run(
        curl.replace("Hello", "why").replace("curl", "curl --silent --noproxy '*'"),
        shell=True,
        capture_output=True,
        text=True,
    )
    assert '"content":"so it is"' in done.stdout


def test_what_a_request_may_ask_for(served, runs):
    _, clients = served
    client = clients["full"]
    assert ask(client, "full", "be kind", max_tokens=2) == ("it is", "length")
    assert ask(client, "full", "be kind", temperature=0) == ("it is good", "stop")
    drawn = [ask(client, "full", "why", temperature=9.0, seed=seed, max_tokens=20) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    made = client.responses.create(model="full", input="hello")
    assert made.output_text == "hi"
    model = AutoModelForCausalLM.from_pretrained(runs["full"] / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(runs["full"] / "model")
    ids = [BYE, HELLO]
    while len(ids) < 8 and ids[-1] != END:  # six of the likeliest tokens, or fewer
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    written = client.completions.create(model="full", prompt="bye hello", max_tokens=6).choices[0].text
    assert written.strip() == tokenizer.decode(ids[2:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "gpt-5"}, "Server is pinned to 'full'; requested 'gpt-5'"),
        ({"messages": []}, r"messages is \[\]"),
        (
            {"messages": [{"role": "user", "content": "why " * 60}]},
            "leave no room for an answer: the model takes 64",
        ),
        ({"n": 2}, "n is 2, which this server cannot do\n  allowed: 1, or leave it out"),
        ({"logprobs": True}, "logprobs is True, which this server cannot do"),
        ({"response_format": {"type": "json_object"}}, "response_format is .* cannot do"),
        ({"max_tokens": 0}, "0 tokens are asked for"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_cannot_be_done_is_said(served, more, message, streamed):
    _, clients = served
    given = {"model": "full", "messages": [{"role": "user", "content": "hello"}], "stream": streamed, **more}
    with pytest.raises(openai.BadRequestError, match=message):
        clients["full"].chat.completions.create(**given)


def test_ctrl_c_ends_it(served):
    servers, clients = served
    assert ask(clients["four"], "four", "hello") == ("hi", "stop")
    process = servers["four"].process
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert servers["four"].lines.get(timeout=10) == "stopped"
    assert process.stderr.read() == ""


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"127.0.0.1:{port}: cannot listen there: Address already in use"):
            serving.listening("127.0.0.1", port)
    with pytest.raises(RunError, match=r"no-such-host\.invalid:80: cannot listen there"):
        serving.listening("no-such-host.invalid", 80)


def test_the_name_is_the_run_directorys(tmp_path):
    assert serving.served_name(tmp_path / "first" / "model") == "first"
    assert serving.served_name(tmp_path / "elsewhere") == "elsewhere"


def test_whoever_listens_to_every_address_is_told(runs):
    predictor = Predictor.load(runs["full"])
    said = serving.greeting(predictor, "full", "0.0.0.0", 80)
    assert said[-1] == "careful: whoever reaches this machine can ask the model; there is no password"
    assert serving.greeting(predictor, "full", "::1", 80)[0] == "url:    http://[::1]:80/v1"


def test_what_the_system_says_of_messages_that_open_without_it():
    tokenizer = SimpleNamespace(chat_template="any")
    writing = Writing({}, chats=True, system="be kind")
    handler = serving.ChatHandler(writing, SimpleNamespace(_tokenizer=tokenizer), None)
    user, system = {"role": "user", "content": "hello"}, {"role": "system", "content": "so"}
    made = handler.get_processor_inputs_from_messages([user], Modality.LLM)
    assert made == [{"role": "system", "content": "be kind"}, user]
    assert handler.get_processor_inputs_from_messages([system, user], Modality.LLM) == [system, user]
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="this model has no chat template\n  do: ask /v1/completions"):
        handler.get_processor_inputs_from_messages([user], Modality.LLM)


def test_without_the_extra_it_is_named():
    code = (
        "import sys\nsys.modules['uvicorn'] = None\nsys.argv = ['hf-llm-recipes', 'serve', sys.argv[1]]\n"
        "from hf_llm_recipes import cli\ncli._log_to_terminal = lambda: None\n"
        "from hf_llm_recipes import rundir\nrundir.model_folder = lambda path: path\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "run"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs the package `uvicorn`, which is not installed" in done.stderr
    assert "do: pip install 'hf_llm_recipes[serve]'" in done.stderr
