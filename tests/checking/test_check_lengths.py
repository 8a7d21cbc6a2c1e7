"""What truncation takes, counted by hand."""

import numpy as np
from _planted import TRAINER, found, jsonl, recipe_of, report_of, said
from _tiny_chat import said as turns
from _tiny_chat import tiny_llama

from hf_llm_recipes.checking.lengths import Lengths, told
from hf_llm_recipes.tasks.text_classification import TextClassification


def texts(count, length):
    """Rows of so many words; [CLS] and [SEP] come around them."""
    return [
        {
            "text": " ".join(["the", "ball", "new", "old"][(i + k) % 4] for k in range(length)),
            "label": "ab"[i % 2],
        }
        for i in range(count)
    ]


def data(tmp_path, train, rest=None):
    rest = rest or [{"text": f"{'very ' * (i + 1)}good", "label": "ab"[i % 2]} for i in range(4)]
    return {
        "name": jsonl(tmp_path / "train.jsonl", train),
        "eval": jsonl(tmp_path / "eval.jsonl", rest[:2]),
        "test": jsonl(tmp_path / "test.jsonl", rest[2:]),
    }


def test_tokens_cut_of_texts_are_counted(tiny_bert, tmp_path):
    train = texts(6, 4) + texts(2, 10)  # 6 and 12 tokens with [CLS] and [SEP]
    values = recipe_of(tiny_bert, data(tmp_path, train), {"name": "text_classification", "max_length": 8})
    report = report_of(values, tmp_path)
    facts = report.splits["train"]
    assert (facts["rows"], facts["rows_cut"], facts["tokens_cut"]) == (8, 2, 2 * (12 - 8))
    assert facts["tokens"] == 6 * 6 + 2 * 8
    assert facts["length"]["max"] == 12
    (finding,) = found(report, "lengths")
    assert finding.level == "warning"
    assert (
        "2 of 8 rows (25.0 %) are longer than 8 tokens and are cut: 8 of 60 tokens are not seen"
        in finding.what
    )
    assert "`task.max_length: 12` would keep all of them whole" in finding.do
    assert finding.where == "train split (train.jsonl)"


def test_nothing_is_said_where_nothing_is_cut(tiny_bert, tmp_path):
    values = recipe_of(tiny_bert, data(tmp_path, texts(8, 4)), {"name": "text_classification"})
    report = report_of(values, tmp_path)
    assert not found(report, "lengths")
    assert report.splits["train"]["rows_cut"] == 0
    assert sum(report.splits["train"]["histogram"]["counts"]) == 8


def test_supervised_tokens_of_dropped_conversations(tmp_path):
    model = tiny_llama(tmp_path / "model")
    # <|im_start|> user LINE hello <|im_end|> LINE <|im_start|> assistant LINE hi … <|im_end|> LINE
    short = [{"messages": turns("hello", " ".join(["hi", "bye"][: 1 + i % 2]))} for i in range(6)]
    long = [{"messages": turns("hello", "good day be kind hi bye good day be kind")}]
    rest = [{"messages": turns("why", word)} for word in ("hi", "bye", "good", "day")]
    values = recipe_of(model, data(tmp_path, short + long, rest), {"name": "chat", "max_length": 14})
    report = report_of(values, tmp_path)
    facts = report.splits["train"]
    assert facts["supervised_tokens"] == 3 * 2 + 3 * 3  # the words and the end token
    assert facts["supervised_tokens_cut"] == 10 + 1
    assert facts["rows_cut"] == 1
    assert facts["tokens_cut"] == 9 + 10 + 2
    text = said(report, "lengths")
    assert "1 of 7 rows (14.3 %) are longer than 14 tokens and are left out" in text
    assert "11 of 26 supervised ones, are not seen" in text
    assert "cut_left_turns" in text


def test_tokens_of_both_answers_of_a_preference(tmp_path):
    model = tiny_llama(tmp_path / "model")
    # a prompt: <|im_start|> user LINE hello <|im_end|> LINE <|im_start|> assistant LINE; behind it words, end
    short = [{"prompt": "hello", "chosen": "hi", "rejected": "good day"} for _ in range(5)]
    long = [{"prompt": "hello", "chosen": "hi " * 8, "rejected": "bye"}]
    rest = [{"prompt": "why", "chosen": word, "rejected": "so"} for word in ("hi", "bye", "good", "day")]
    more = {"method": "dpo", "trainer": {**TRAINER, "max_steps": 1}}
    task = {"name": "preference", "max_length": 14}
    report = report_of(recipe_of(model, data(tmp_path, short + long, rest), task, **more), tmp_path)
    facts = report.splits["train"]
    assert facts["tokens"] == 5 * (9 + 3)  # with the longer answer
    assert facts["supervised_tokens"] == 5 * (2 + 3)
    assert facts["tokens_read"] == 5 * (9 + 2 + 9 + 3)
    assert facts["supervised_tokens_cut"] == 9 + 2
    assert "11 of 36 supervised ones, are not seen" in said(report, "lengths")


def test_no_shorter_limit_than_the_present_one_is_advised():
    whole = np.array([*[10] * 199, 40])  # the 99th percentile is 10
    (finding,) = told(
        {"train": Lengths(whole, np.minimum(whole, 20), 20)},
        TextClassification(max_length=20),
        {"train": "t"},
    )
    assert finding.do.startswith("`task.max_length: 40` would keep all of them whole")


def test_a_model_that_takes_no_more_is_said():
    lengths = Lengths(np.array([4, 40]), np.array([4, 32]), 32)
    (finding,) = told({"train": lengths}, TextClassification(), {"train": "train split"})
    assert "the model takes 32 tokens and the longest row has 40: split the rows" in finding.do


def test_no_longer_limit_than_the_models_is_advised():
    whole = np.array([10, 20, 30, 300])
    where = {"train": "train split"}
    lengths = Lengths(whole, np.minimum(whole, 15), 15, most=32)
    (finding,) = told({"train": lengths}, TextClassification(max_length=15), where)
    said = "`task.max_length: 32` is what the model takes and would keep 75.0 % of the rows whole"
    assert finding.do.startswith(said)
    lengths = Lengths(whole, np.minimum(whole, 32), 32, most=32)
    (finding,) = told({"train": lengths}, TextClassification(max_length=32), where)
    assert finding.do.startswith("the model takes no more; the longest row has 300: split the rows")
