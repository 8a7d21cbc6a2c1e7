"""What each kind of task shows and flags; expected probabilities are softmaxes of the model's own logits."""

import re
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_llm_recipes.chatting import Written
from hf_llm_recipes.demo.base import MOST_SHOWN, probability_table
from hf_llm_recipes.demo.classifying import ImagePanel, TextPanel
from hf_llm_recipes.demo.command import check_shown, greeting, panel_of, run_name
from hf_llm_recipes.demo.flagged import Columns, Flagged
from hf_llm_recipes.demo.tagging import TokenPanel
from hf_llm_recipes.demo.writing import WritingPanel
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.objectives.clm import Clm
from hf_llm_recipes.tasks._language_task import Writing
from hf_llm_recipes.tasks.chat import Chat
from hf_llm_recipes.tasks.generation import Generation
from hf_llm_recipes.tasks.preference import Preference

sys.path.append(str(Path(__file__).parent))
from _tiny_panels import NAMES, image_predictor, text_predictor, token_predictor

EVIL = '<img src="//x.example/a" onerror=alert(1)>'


def cells(shown):
    """The rows of the one table, as texts."""
    rows = re.findall(r"<tr>(.*?)</tr>", shown)
    return [
        [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.split("</t[dh]>", row)[:-1]] for row in rows
    ]


def probabilities(predictor, *texts):
    encoded = predictor.tokenizer(*texts, return_tensors="pt")
    with torch.no_grad():
        return torch.softmax(predictor.model(**encoded).logits[0].double(), -1).tolist()


def test_a_text_gets_each_class_with_its_probability(tiny_bert):
    predictor = text_predictor(tiny_bert)
    panel = TextPanel(predictor)
    asked = panel.ask(None, "the new song")
    wanted = dict(zip(NAMES, probabilities(predictor, "the new song"), strict=True))
    best = sorted(wanted, key=wanted.get, reverse=True)
    assert [row[:2] for row in cells(asked.shown)[1:]] == [[name, f"{wanted[name]:.3f}"] for name in best]
    assert f'<p class="answer">{best[0]}' in asked.shown
    assert panel.labeled(asked, "music") == {"text": "the new song", "label": "music"}
    assert panel.unlabeled(asked) == {"text": "the new song"}
    with pytest.raises(DataError, match="no right answer is chosen\n  do: choose one, or flag without"):
        panel.labeled(asked, None)


def test_a_pair(tiny_bert):
    predictor = text_predictor(tiny_bert, text="a", text_pair="b", label="same")
    panel = TextPanel(predictor)
    asked = panel.ask(None, "new ball", "old song")
    assert cells(asked.shown)[1][1] == f"{max(probabilities(predictor, 'new ball', 'old song')):.3f}"
    assert panel.labeled(asked, "sport") == {"a": "new ball", "b": "old song", "same": "sport"}
    with pytest.raises(DataError, match="there is no second text\n  do: write something"):
        panel.ask(None, "new ball", " ")


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ({"label": "topics"}, {"topics": ["food", "sport"]}),
        ({"label": "topics", "separator": "|"}, {"topics": "food|sport"}),
        ({"label": NAMES}, {"food": 1, "music": 0, "sport": 1}),
    ],
)
def test_any_number_of_classes(tiny_bert, task, wanted):
    predictor = text_predictor(tiny_bert, problem="multi_label", **task)
    panel = TextPanel(predictor)
    asked = panel.ask(None, "the new song")
    logits, _ = predictor.logits(predictor.task.read_inputs(["the new song"]), labeled=False)
    each = 1 / (1 + np.exp(-logits[0].astype(float)))
    assert asked.right == [name for name, share in zip(NAMES, each, strict=True) if share >= 0.5]
    assert {row[0]: row[1] for row in cells(asked.shown)[1:]} == {
        name: f"{share:.3f}" for name, share in zip(NAMES, each, strict=True)
    }
    assert panel.labeled(asked, ["sport", "food"]) == {"text": "the new song", **wanted}
    none = panel.labeled(asked, [])
    assert none == {
        "text": "the new song",
        **{k: {list: [], str: "", int: 0}[type(v)] for k, v in wanted.items()},
    }


def test_a_number(tiny_bert):
    predictor = text_predictor(tiny_bert, ["value"], problem="regression", label="stars")
    panel = TextPanel(predictor)
    asked = panel.ask(None, "the new song")
    with torch.no_grad():
        value = float(predictor.model(**predictor.tokenizer("the new song", return_tensors="pt")).logits)
    assert f'<p class="answer">{value:.4f}</p>' in asked.shown
    assert panel.labeled(asked, 3) == {"text": "the new song", "stars": 3.0}
    with pytest.raises(DataError, match="no right number is given"):
        panel.labeled(asked, None)


def test_what_is_too_long_is_told(tiny_bert):
    asked = TextPanel(text_predictor(tiny_bert, max_length=8)).ask(None, "song " * 10)
    assert "too long: its last 4 tokens were not read" in asked.shown  # 8 with [CLS] and [SEP]: 6 of 10


@pytest.mark.parametrize("given", [None, "", " \n"])
def test_nothing_is_no_question(tiny_bert, given):
    with pytest.raises(DataError, match="there is no text\n  do: write something"):
        TextPanel(text_predictor(tiny_bert)).ask(None, given)


def test_half_a_character_is_refused(tiny_bert):
    with pytest.raises(DataError, match="the text holds half a character"):
        TextPanel(text_predictor(tiny_bert)).ask(None, "a \ud83d b")


def test_nothing_that_is_asked_becomes_markup(tiny_bert):
    shown = TokenPanel(token_predictor(tiny_bert)).ask(None, f"{EVIL} </script>").shown
    assert "<img" not in shown
    assert "&lt;/script&gt;" in shown
    assert "<img" not in probability_table([EVIL, "b"], [0.5, 0.5], EVIL)


def test_of_many_classes_the_likeliest_are_shown():
    names = [f"c{i}" for i in range(25)]
    shown = probability_table(names, [i / 300 for i in range(25)], "all")
    assert [row[0] for row in cells(shown)[1:]] == [f"c{i}" for i in range(24, 24 - MOST_SHOWN, -1)]
    assert "5 less likely classes are not shown" in shown


def test_words_get_tags_that_are_put_right_line_by_line(tiny_bert):
    predictor = token_predictor(tiny_bert)
    panel = TokenPanel(predictor)
    asked = panel.ask(None, "the new  song")
    with torch.no_grad():
        logits = predictor.model(**predictor.tokenizer("the new song", return_tensors="pt")).logits[0, 1:4]
    best = torch.softmax(logits.double(), -1).max(-1)
    tags = [panel.names[int(i)] for i in best.indices]
    words = ["the", "new", "song"]
    assert [row[:3] for row in cells(asked.shown)[1:]] == [
        [word, tag, f"{share:.3f}"]
        for word, tag, share in zip(words, tags, best.values.tolist(), strict=True)
    ]
    assert asked.right == "\n".join(f"{word} {tag}" for word, tag in zip(words, tags, strict=True))
    row = panel.labeled(asked, "the O\nnew  B-x\n\n song\tI-x\n")
    assert row == {"words": words, "tags": ["O", "B-x", "I-x"]}
    assert panel.unlabeled(asked) == {"words": words}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("the O\nnew O", "2 lines for 3 words\n  allowed: one line a word"),
        ("the O\nold O\nsong O", "'old O' is not 'new' and a tag"),
        (
            "the O\nnew B-y\nsong O",
            r"'new B-y' is not 'new' and a tag \(did you mean `B-x`\?\)\n  allowed: O, ",
        ),
        ("", "there is no tag"),
    ],
)
def test_tags_that_do_not_fit_are_told(tiny_bert, lines, said):
    panel = TokenPanel(token_predictor(tiny_bert))
    with pytest.raises(DataError, match=said):
        panel.labeled(panel.ask(None, "the new song"), lines)


def test_words_behind_the_end_are_told(tiny_bert):
    predictor = token_predictor(tiny_bert)
    predictor.task.max_length = 4
    asked = TokenPanel(predictor).ask(None, "the new song")
    assert "too long: its last 1 words were not read" in asked.shown
    assert asked.right.splitlines()[2] == "song O"


def test_an_image_is_kept_beside_the_rows(tmp_path):
    predictor = image_predictor()
    Image.new("RGB", (9, 9), "white").save(tmp_path / "a.PNG")
    flagged = Flagged(tmp_path / "kept" / "f.jsonl", Columns())
    panel = panel_of(predictor, flagged)
    asked = panel.ask(None, str(tmp_path / "a.PNG"))
    pixels = predictor.tokenizer(Image.new("RGB", (9, 9), "white"), return_tensors="pt")
    with torch.no_grad():
        best = torch.softmax(predictor.model(**pixels).logits[0].double(), -1).max()
    assert cells(asked.shown)[1][1] == f"{best:.3f}"
    row = panel.labeled(asked, "light")
    kept = Path(row["image"])
    assert kept.parent == (tmp_path / "kept" / "f-images")
    assert kept.read_bytes() == (tmp_path / "a.PNG").read_bytes()
    assert row == panel.labeled(asked, "light")  # one copy
    assert list(kept.parent.iterdir()) == [kept]
    assert predictor.predict([str(kept)]) == predictor.predict([str(tmp_path / "a.PNG")])


def test_a_broken_image_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    panel = ImagePanel(image_predictor(), tmp_path)
    with pytest.raises(DataError, match="the image cannot be read"):
        panel.ask(None, str(tmp_path / "a.png"))
    with pytest.raises(DataError, match="there is no image\n  do: choose a file"):
        panel.ask(None, None)


class Parrot:
    """Says what it was asked; ids are the texts themselves."""

    def __init__(self, *, chats, system=None):
        self.writing = Writing({}, chats, system)
        self.heard = []

    def asked(self, messages):
        self.heard.append([turn["content"] for turn in messages])
        return messages

    def begun(self, text):
        return text

    def write(self, ids, say):
        text = ids[-1]["content"] if isinstance(ids, list) else ids
        return Written(f" {text}!", 3, "length" if "long" in text else "end")


def talking(task, columns=(), **how):
    panel = WritingPanel.__new__(WritingPanel)
    panel.predictor, panel.task, panel.columns = None, task, list(columns)
    panel.kind = {Chat: "chat", Generation: "generation", Preference: "preference", Clm: "clm"}[type(task)]
    panel.speaker = Parrot(**{"chats": True, **how})
    return panel


def test_a_conversation_is_kept_and_flagged_whole():
    panel = talking(Chat(), ["messages"], system="be kind")
    first = panel.ask(None, "hello")
    second = panel.ask(first, f"so {EVIL} long")
    assert panel.speaker.heard == [["be kind", "hello"], ["be kind", "hello", "hello!", f"so {EVIL} long"]]
    assert second.right == f"so {EVIL} long!"
    assert "<img" not in second.shown
    assert "stopped after 3 tokens, as many as the run allows" in second.shown
    turns = [("user", "hello"), ("assistant", "hello!"), ("user", f"so {EVIL} long"), ("assistant", "good")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert panel.labeled(second, "good") == {"messages": messages}
    assert panel.unlabeled(second) == {"messages": messages[:-1]}


@pytest.mark.parametrize(
    ("task", "columns", "labeled", "unlabeled"),
    [
        (Chat(), ["prompt", "completion"], {"prompt": "why", "completion": "so"}, {"prompt": "why"}),
        (Chat(), ["instruction", "output"], {"instruction": "why", "output": "so"}, {"instruction": "why"}),
        (Generation(), [], {"prompt": "why", "answer": "so"}, {"prompt": "why"}),
        (Preference(), [], {"prompt": "why", "chosen": "so", "rejected": "why!"}, {"prompt": "why"}),
    ],
)
def test_rows_of_a_question_each(task, columns, labeled, unlabeled):
    panel = talking(task, columns)
    asked = panel.ask(None, "why")
    assert panel.labeled(asked, "so") == labeled
    assert panel.unlabeled(asked) == unlabeled
    with pytest.raises(DataError, match="this conversation is longer\n  do: press New conversation"):
        panel.labeled(panel.ask(asked, "and"), "so")


def test_a_text_is_gone_on_with():
    panel = talking(Clm(), chats=False)
    asked = panel.ask(panel.ask(None, "once"), "upon")
    assert asked.right == " upon!"
    assert panel.labeled(asked, " a time") == {"text": "upon a time"}


def test_rows_without_an_answer_take_none():
    panel = talking(Generation(answer_column=None, reward="builtins:len"))
    with pytest.raises(DataError, match="have no column for an answer\n  do: flag without an answer"):
        panel.labeled(panel.ask(None, "why"), "so")


def test_tasks_without_a_page_are_refused():
    from hf_llm_recipes.objectives.mlm import Mlm

    with pytest.raises(
        RunError, match="task is mlm, for which there is no page\n  allowed: runs of the tasks te"
    ):
        check_shown(Mlm())


def test_the_greeting_says_where(tmp_path):
    made = Flagged(tmp_path / "f.jsonl", Columns())
    assert greeting(made, "127.0.0.1", 80) == [
        "page:    http://127.0.0.1:80",
        f"flagged: {tmp_path}/f.jsonl, without an answer: {tmp_path}/f-unlabeled.jsonl",
        "Ctrl-C ends it",
    ]
    assert greeting(made, "0.0.0.0", 80)[-1].startswith(
        "careful: whoever reaches this machine can use the page"
    )
    assert run_name(tmp_path / "mine" / "model") == "mine"
