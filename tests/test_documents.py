"""Every command, recipe and piece of Python of the documentation is run on a few rows, or read strictly.

The rule (CONTRIBUTING.md): a page is one reader, who starts in an empty folder with data of their own and
does what the page says from top to bottom. What cannot be run here is marked ``<!-- parsed: why -->`` and is
still parsed and planned.
"""

import configparser
import copy
import json
import os
import re
import subprocess
import sys

import _documents
import pytest
import typer
from _documents import ROOT, blocks, commands, figures, normal, table_rows
from conftest import WORDS, make_tokenizer, sentences, write_csv

from hf_llm_recipes import assets, cli, shipped
from hf_llm_recipes.errors import UserError
from hf_llm_recipes.planning import plan
from hf_llm_recipes.recipe import Recipe

PAGES = _documents.page_paths()
OURS = "hf-llm-recipes"
TAKES_RECIPE = ("run", "check", "estimate", "show")
SMALL = ["trainer.max_steps=2", "trainer.warmup_steps=1", "trainer.use_cpu=true", "trainer.logging_steps=1"]
ROWS = {  # of corpora: enough for every recipe that a page runs
    # something is learnt there: what looks at probabilities refuses answers that are a guess
    "reviews.csv": ["trainer.max_steps=30", "trainer.learning_rate=1e-2", "trainer.warmup_steps=3"],
    "local/python-docstrings": ["data.train=train[:64]", "data.eval=validation[:16]", "data.test=test[:16]"],
    "local/python-names": ["data.train=train[:16]", "data.test=test[:16]"],
    "local/python-source": ["data.train=train[:12]", "data.eval=validation[:2]", "data.test=test[:2]"],
    "local/digits": ["data.test=test[:32]"],
    "local/dates": ["data.train=train[:64]", "data.eval=validation[:16]", "data.test=test[:16]"],
}
FEW = {  # recipes whose settings want more rows, or more time, than the others
    "semi_supervised/softmatch-lora": [
        "data.train=train[:160]",
        "data.labels_per_class=4",
        "method.warm_start=none",
    ],
    "semi_supervised/digits-vit": ["data.train=train[:160]", "data.labels_per_class=4"],
    "semi_supervised/ner": ["data.unlabeled=train[16:48]", "data.pool_overlap=drop", "method.guard=true"],
    "pretrain/sentence-contrastive": ["model.tokenizer.vocab_size=300", "data.train=train[:128]"],
    "decoder.yaml": [
        "model.tokenizer.vocab_size=300",
        "task.generation.max_new_tokens=2",
        "task.block_size=64",
    ],
    "few.yaml": ["method.warm_start=none"],
    "reward.yaml": ["trainer.max_completion_length=2", "task.max_new_tokens=2", "trainer.max_steps=1"],
}
relative = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """What stands in for the models of the pages: six layers of width 32, and a tiny Llama that chats."""
    import torch
    from tasks._tiny_chat import END, tiny_tokenizer
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    encoder, decoder = tmp_path_factory.mktemp("encoder"), tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    words = make_tokenizer(encoder)
    words.model_max_length = 64
    words.save_pretrained(encoder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    wide = {"max_position_embeddings": 64, "initializer_range": 0.2}
    config = BertConfig(vocab_size=len(words), num_hidden_layers=6, **wide, **sizes)
    BertModel(config).save_pretrained(encoder)
    talk = tiny_tokenizer()
    talk.model_max_length = 512
    talk.save_pretrained(decoder)
    ends = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": END}
    config = LlamaConfig(
        vocab_size=len(talk), num_hidden_layers=2, max_position_embeddings=512, **sizes, **ends
    )
    LlamaForCausalLM(config).save_pretrained(decoder)
    return {"local/minilm": str(encoder), "local/smollm2-135m": str(decoder)}


@pytest.fixture
def reader(tmp_path, tiny_models, monkeypatch):
    """A reader's folder with the data that pages speak of; tiny models under the names of the real ones."""
    resolve = assets.resolve_model
    monkeypatch.setattr(
        assets, "resolve_model", lambda name, *a, **k: tiny_models.get(name) or resolve(name, *a, **k)
    )
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


def write_data(folder):
    """Files of the forms that pages describe, of generated words."""
    rows = [{**row, "text": row["text"] + " the old" * (i % 4)} for i, row in enumerate(sentences(120))]
    write_csv(folder / "reviews.csv", rows)
    write_csv(folder / "new.csv", sentences(12, seed=9))
    write_csv(folder / "raw.csv", [{"text": row["text"]} for row in sentences(60, seed=1)])
    pairs = zip(rows, sentences(120, seed=2), strict=True)
    write_csv(
        folder / "pairs.csv",
        [{"first": a["text"], "second": b["text"], "label": str(i % 2)} for i, (a, b) in enumerate(pairs)],
    )
    classes = ["food", "music", "food;music", "sport"]
    write_csv(
        folder / "several.csv", [{"text": r["text"], "label": classes[i % 4]} for i, r in enumerate(rows)]
    )
    write_csv(folder / "stars.csv", [{"text": r["text"], "label": 0.5 * (i % 9)} for i, r in enumerate(rows)])
    topics = {word: f"B-{topic}" for topic, some in WORDS.items() for word in some}
    tags = [
        {"tokens": (words := r["text"].split()), "label": [topics.get(w, "O") for w in words]} for r in rows
    ]
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    asked = [("hello", "good day"), ("hi", "be kind"), ("why", "so it is"), ("bye", "bye")]
    forms = {
        "tags.jsonl": tags,
        "talks.jsonl": [{"messages": said}] * 40,
        "prefer.jsonl": [{"prompt": q, "chosen": a, "rejected": "why"} for q, a in asked * 10],
        "prompts.jsonl": [{"prompt": q, "answer": a} for q, a in asked * 10],
        "answers.jsonl": [_answered(row) for row in rows],
    }
    for name, lines in forms.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _answered(row):
    """A question whose answer is the row's first topic word."""
    word = next(w for w in row["text"].split() if w in WORDS[row["label"]])
    return {
        "question": f"the {row['label']}",
        "context": row["text"],
        "answers": {"text": [word], "answer_start": [row["text"].index(word)]},
    }


class Page:
    """What a page has made so far: the last recipe it wrote, its Python names, and what commands printed."""

    def __init__(self, capfd):
        self.capfd, self.recipe, self.names, self.ran, self.outputs = capfd, None, {}, [], set()

    def do(self, block, run=True):
        """Runs a block, or only reads it."""
        if block.language == "yaml":
            self.read_recipe(block)
        elif block.language == "python" and run:
            exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        elif block.language in ("bash", "console"):
            for command in commands(block):
                self.command(command, run and not command.parsed_only)

    def read_recipe(self, block):
        """Plans a recipe; a fragment is read over the page's last recipe, or over the one that it names."""
        given = Recipe.from_text(block.text, source=f"line {block.line}").values
        if block.title is not None:
            with open(block.title, "w", encoding="utf-8") as file:
                file.write(block.text)
            self.recipe = block.title
            plan(Recipe.load(block.title))
            return
        over = block.mark[1] if block.mark and block.mark[0] == "over" else None
        base = over or self.recipe or "classify/lora"
        whole = Recipe.load(shipped.find_recipe(base)).values
        for key, value in given.items():
            whole[key] = _over(whole.get(key), value)
        plan(Recipe.from_dict({k: v for k, v in whole.items() if v is not None}, source=f"line {block.line}"))

    def command(self, command, run):
        """Runs a command of ours on a few rows, or parses and plans it; of others sees that it would work."""
        if command.words[0] != OURS:
            other_program(command.words)
            return
        parsed = parse(command.words[1:])
        if not run and parsed.info_name != "copy":
            self.plan(parsed)
            return
        words = [*command.words[1:], *small(parsed)]
        code, out = self.call(words)
        assert code == 0, f"{' '.join(words)}\n{out}"
        self.ran.append(str(command))
        printed = {normal(line) for line in out.splitlines()}
        missing = [line for line in command.shown if "…" not in line and normal(line) not in printed]
        assert not missing, f"{command} does not print\n{missing}\nbut\n{out}"

    def plan(self, parsed):
        """Plans the recipe of a command that is not run, unless an earlier command would have left it."""
        name, overrides = parsed.params.get("recipe"), parsed.params.get("overrides") or []
        self.outputs |= {word.removeprefix("output=") for word in overrides if word.startswith("output=")}
        if parsed.info_name not in TAKES_RECIPE or name in ("model", "augmentation"):
            return
        if os.path.dirname(name) not in self.outputs:
            plan(Recipe.load(shipped.find_recipe(name), overrides))

    def call(self, words):
        """Exit code and output of the command line."""
        before = sys.argv
        sys.argv = [OURS, *words]
        self.capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code or 0
        finally:
            sys.argv = before
        out = self.capfd.readouterr()
        return code, out.out + out.err


def _over(old, new):
    """A section of a fragment over a whole recipe's: another name replaces it, else keys are replaced."""
    named = (
        isinstance(old, dict)
        and isinstance(new, dict)
        and old.get("name") == new.get("name", old.get("name"))
    )
    return {**old, **new} if named else copy.deepcopy(new)


def parse(words):
    """The context of a command as the CLI parses it; an unknown command or option raises."""
    command = typer.main.get_command(cli.app).commands[words[0]]
    return command.make_context(words[0], list(words[1:]))


def small(parsed):
    """Overrides that make a command take seconds."""
    name = parsed.params.get("recipe")
    if parsed.info_name == "show" and name == "augmentation":
        return ["method.warm_start=none"]
    if parsed.info_name not in TAKES_RECIPE or name in (None, "model"):
        return []
    path = shipped.find_recipe(name)
    wanted = Recipe.load(path, parsed.params["overrides"] or [])
    rows = ROWS.get(wanted.section("data")["name"], [])
    few = FEW.get(name, [])
    given = [*SMALL, *rows, *few]
    if "trainer.save_steps=1" in (parsed.params["overrides"] or []):
        given.append("trainer.save_strategy=steps")
    return given


def other_program(words):
    """Looks whether a command of another program would find what it names."""
    if words[0] == "make":
        surroundings = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, env=surroundings, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    elif words[:2] == ["pip", "install"]:
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(setup["options.extras_require"]), extra
    elif words[0] == "hf":
        from huggingface_hub.cli.hf import app

        command = app
        for word in words[1:]:
            command = command.get_command(None, word)
            assert command is not None, words
    elif words[0] in ("python", "bash"):
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(word.split("=")[0] in text for word in words if word.startswith("--")), words
    else:
        raise AssertionError(f"nobody looks at `{words[0]}`")


@relative
def test_a_page_does_what_it_says(path, reader, capfd):
    page = Page(capfd)
    text = path.read_text(encoding="utf-8")
    # the README's commands and Python, the translation's among them, are run by test_readme.py
    for block in blocks(text):
        page.do(block, run=not path.name.startswith("README"))
    found = [one for block in blocks(text) if block.language == "bash" for one in commands(block)]
    if not path.name.startswith("README"):
        assert page.ran == [str(one) for one in found if one.words[0] == OURS and not one.parsed_only]


def test_most_commands_are_run_and_the_others_say_why_not():
    found = [block for path in PAGES for block in blocks(path.read_text(encoding="utf-8"))]
    found = [one for block in found if block.language in ("bash", "console") for one in commands(block)]
    ours = [one for one in found if one.words[0] == OURS]
    run = [one for one in ours if not one.parsed_only]
    assert len(ours) > 80
    assert len(run) > 0.85 * len(ours)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```bash\nhf-llm-recipes run quickstart --fast\n```", "No such option"),
        ("```bash\nhf-llm-recipes run clasify/lora\n```", "there is no recipe"),
        ("```bash\nhf-llm-recipes run classify/lora trainer.max_step=2\n```", "did you mean `max_steps`"),
        ("```yaml\ntuning: {name: lora, rank: 8}\n```", "rank is an unknown key"),
        ("```bash\npip install '.[speed]'\n```", "speed"),
        ("```bash\nmake quickly\n```", "quickly"),
        ("```bash\ncurl https://example.org\n```", "nobody looks at"),
        ("```ruby\n1\n```", "a block of `ruby`"),
        ("```bash\nmake test\n", "is not closed"),
    ],
)
def test_what_would_rot_is_seen(text, wrong, reader, capfd):
    with pytest.raises((UserError, AssertionError, cli.USAGE_ERROR)) as told:
        _read(f"<!-- parsed: a test -->\n{text}", capfd)
    assert wrong in f"{told.value} {getattr(told.value, 'message', '')}"


def _read(text, capfd):
    page = Page(capfd)
    for block in blocks(text):
        page.do(block)


def test_output_that_is_shown_is_compared(reader, capfd):
    (block,) = blocks("```console\n$ hf-llm-recipes copy classify/lora a.yaml\na.yaml\nsaved it\n```")
    with pytest.raises(AssertionError, match="saved it"):
        Page(capfd).do(block)


README, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))


def test_the_translation_has_the_commands_and_figures_of_the_original():
    assert "](README.zh-CN.md)" in README
    assert "](README.md)" in CHINESE
    theirs, ours = _commands(README), _commands(CHINESE)
    assert len(ours) >= 16
    assert ours <= theirs
    assert not figures(CHINESE) - figures(README)
    same = [row for row in _figure_rows(CHINESE) if row in _figure_rows(README)]
    assert len(same) == len(_figure_rows(CHINESE)) == 5 + 7
    (theirs,), (ours,) = (
        [b.text for b in blocks(text) if b.language == "yaml"] for text in (README, CHINESE)
    )
    assert Recipe.from_text(ours).values == Recipe.from_text(theirs).values


def _commands(text):
    found = [block for block in blocks(text) if block.language in ("bash", "console")]
    return {(block.language, str(one)) for block in found for one in commands(block)}


def _figure_rows(text):
    """The numbers of every table row that has more than three, sorted: languages order them differently."""
    rows = [sorted(re.findall(r"\d[\d.,]*\d|\d", " ".join(row))) for row in table_rows(text)]
    return [row for row in rows if len(row) > 3]


@pytest.mark.parametrize("name", ["choosing", "overfitting", "checks", "howto/few-labels"])
def test_figures_of_guides_stand_in_the_readme_or_the_lab(name):
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    lab = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    found = {number for number in figures(text) if "." in number or "," in number}
    assert found
    assert not found - figures(README) - figures(lab)


def test_figures_are_found():
    text = "of 22.7M and 7,900 rows `0.5` 81.5 % (+4.1), [x](a-12.md) 3 of 44\n```\n77\n```"
    assert figures(text) == {"7,900", "81.5", "4.1", "44"}
