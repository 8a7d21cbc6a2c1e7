import contextlib
import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORDS, make_tokenizer, sentences
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig

from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.tasks.token_classification import TokenClassification

# [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, the 5, a 6, good 14, ball 15, soup 22; "the-ball" is three tokens
CONFIG = BertConfig(max_position_embeddings=32)
TOKENS = [["the", "ball"], ["a", "good-soup", "the"]]
TAGS = [["O", "B-x"], ["O", "B-x", "I-x"]]
NAMES = ["B-x", "I-x", "O"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rows(tokens=TOKENS, label=TAGS, **columns):
    return Dataset.from_dict({"tokens": tokens, "label": label, **columns})


def loaded(train, held_out=None):
    held_out = train if held_out is None else held_out
    return Loaded(train=train, eval=held_out, test=held_out, description={})


def own_config(names):
    return SimpleNamespace(
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        max_position_embeddings=32,
        model_type="bert",
        pad_token_id=0,
    )


def test_a_word_is_tagged_at_its_first_subword(tokenizer):
    made = TokenClassification().prepare(loaded(rows()), tokenizer, CONFIG)
    assert made.config == {
        "num_labels": 3,
        "id2label": {0: "B-x", 1: "I-x", 2: "O"},
        "label2id": {"B-x": 0, "I-x": 1, "O": 2},
    }
    assert made.train["input_ids"][:] == [[2, 5, 15, 3], [2, 6, 14, 1, 22, 5, 3]]
    assert made.train["labels"][:] == [[-100, 2, 0, -100], [-100, 2, 0, -100, -100, 1, -100]]
    assert made.train["token_items"][:] == [[0, 1, 1, 0], [0, 1, 1, 0, 0, 1, 0]]
    assert made.findings["train"] == {
        "rows": 2,
        "rows_cut": 0,
        "rows_empty": 0,
        "words": 5,
        "words_cut": 0,
        "words_unknown": 0,
        "tokens": 11,
        "tokens_per_row_median": 5.5,
        "tokens_per_row_max": 7,
    }
    assert made.notes == []


def test_all_subwords_are_learned_where_asked_and_judged_at_the_first(tokenizer):
    made = TokenClassification(label_all_subwords=True).prepare(loaded(rows()), tokenizer, CONFIG)
    assert made.train["labels"][1] == [-100, 2, 0, 1, 1, 1, -100]  # B-x, then I-x within the word
    assert made.train["token_items"][1] == [0, 1, 1, 1, 1, 1, 0]
    assert made.test["labels"][1] == [-100, 2, 0, -100, -100, 1, -100]


def test_a_batch_is_padded_on_the_tokenizers_side(tokenizer):
    task = TokenClassification()
    made = task.prepare(loaded(rows()), tokenizer, CONFIG)
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["labels"].tolist()[0] == [-100, 2, 0, -100, -100, -100, -100]
    assert batch["token_items"].tolist()[0] == [0, 1, 1, 0, 0, 0, 0]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 1, 1, 0, 0, 0]
    tokenizer.padding_side = "left"
    try:
        left = task.collator(tokenizer)([made.train[0], made.train[1]])
        plain = task.collator(tokenizer)([{"input_ids": [2, 5, 3]}, {"input_ids": [2, 3]}])
    finally:
        tokenizer.padding_side = "right"
    assert left["token_items"].tolist()[0] == [0, 0, 0, 0, 1, 1, 0]
    assert left["labels"].tolist()[0] == [-100, -100, -100, -100, 2, 0, -100]
    assert plain["input_ids"].tolist() == [[2, 5, 3], [0, 2, 3]]  # as the stock Trainer hands them over


def test_an_item_is_a_word(tokenizer):
    task = TokenClassification()
    made = task.prepare(loaded(rows()), tokenizer, CONFIG)
    batch = dict(made.collator([made.train[0], made.train[1]]))
    logits = torch.arange(2 * 7 * 3.0).reshape(2, 7, 3)
    items, item_rows = task.items(logits, batch)
    assert items.tolist() == [logits[0, 1].tolist(), logits[0, 2].tolist(), *logits[1, [1, 2, 5]].tolist()]
    assert item_rows.tolist() == [0, 0, 1, 1, 1]
    assert task.item_labels(batch["labels"], batch).tolist() == [2, 0, 2, 0, 1]
    assert task.num_item_classes(own_config(NAMES)) == 3
    assert (task.item_problem, task.input_columns, task.stratify_by) == ("tokens", ["tokens"], None)


def test_outcomes_are_those_of_words(tokenizer):
    task = TokenClassification()
    logits = np.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    labels = np.array([[-100, 1, 2, -100], [-100, -100, 0, -100]])
    by_labels = task.outcomes(logits, {"labels": labels})
    by_items = task.outcomes(logits, {"token_items": (labels != -100).astype(int)})
    assert by_items[1] is None
    assert [row.tolist() for row in by_labels[1]] == [[1, 2], [0]]
    for found in (by_labels, by_items):
        assert [row.tolist() for row in found[0]] == [logits[0, 1:3].tolist(), logits[1, 2:3].tolist()]


def test_the_loss_is_the_mean_over_the_labeled_tokens_of_the_step():
    loss = TokenClassification().loss(0.0)
    # softmax of (ln 3, 0) is (3/4, 1/4)
    outputs = {"logits": torch.tensor([[[math.log(3), 0.0], [math.log(3), 0.0], [9.0, 9.0]]])}
    labels = torch.tensor([[0, 1, -100]])
    total = math.log(4 / 3) + math.log(4)
    assert loss(outputs, labels).item() == pytest.approx(total / 2)
    assert loss(outputs, labels, num_items_in_batch=torch.tensor(8)).item() == pytest.approx(total / 8)
    assert loss(outputs, torch.full((1, 3), -100)).item() == 0.0
    # smoothing .2 over two classes: .9 of the label's loss and .1 of the other's
    smooth = TokenClassification().loss(0.2)(outputs, torch.tensor([[0, -100, -100]])).item()
    assert smooth == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


@pytest.mark.parametrize(
    ("label", "fields", "names"),
    [
        ([["n", "v"], ["n", "v", "n"]], {}, ["n", "v"]),
        ([[1, 0], [1, 0, 10]], {}, ["0", "1", "10"]),
        ([["n", "v"], ["n", "v", "n"]], {"labels": ["v", "n"]}, ["v", "n"]),
        ([["1", "0"], ["1", "0", "1"]], {"labels": ["v", "n"]}, ["v", "n"]),
    ],
    ids=["words", "numbers", "given", "numbers-of-given"],
)
def test_tag_names(tokenizer, label, fields, names):
    made = TokenClassification(**fields).prepare(loaded(rows(label=label)), tokenizer, CONFIG)
    assert list(made.config["id2label"].values()) == names
    expected = [[names.index(str(t)) if str(t) in names else int(t) for t in row] for row in label]
    assert [[i for i in row if i != -100] for row in made.train["labels"]] == expected


def test_the_columns_own_names_are_taken(tokenizer):
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-x", "I-x"]))}
    )
    data = Dataset.from_dict({"tokens": TOKENS, "ner_tags": [[0, 1], [0, 1, 2]]}, features=features)
    made = TokenClassification(label="ner_tags").prepare(loaded(data), tokenizer, CONFIG)
    assert list(made.config["id2label"].values()) == ["O", "B-x", "I-x"]
    assert made.train["labels"][0] == [-100, 0, 1, -100]


def test_what_is_cut_is_counted_in_words(tokenizer):
    made = TokenClassification(max_length=5).prepare(loaded(rows()), tokenizer, CONFIG)
    # [CLS] a good - soup: the last token gives way to [SEP], "good-soup" is still seen, "the" is not
    assert made.train["labels"][1] == [-100, 2, 0, -100, -100]
    assert (made.findings["train"]["rows_cut"], made.findings["train"]["words_cut"]) == (1, 1)
    assert made.notes[0] == (
        "train: 1 of 2 rows are longer than 5 tokens; 1 of 5 words are cut: neither learned nor judged"
    )


def test_a_word_that_is_nothing_to_the_tokenizer_keeps_its_place(tokenizer):
    data = rows([["the", " ", "ball"]], [["O", "O", "B-x"]])
    made = TokenClassification().prepare(loaded(data), tokenizer, CONFIG)
    assert made.train["input_ids"][:] == [[2, 5, 1, 15, 3]]
    assert made.train["labels"][:] == [[-100, 1, 1, 0, -100]]
    assert made.notes[0] == "train: 1 words are nothing to the tokenizer and are fed as unknown"


def test_empty_rows_are_counted(tokenizer):
    made = TokenClassification().prepare(loaded(rows([*TOKENS, []], [*TAGS, []])), tokenizer, CONFIG)
    assert made.train["input_ids"][2] == [2, 3]
    assert made.notes[0] == "train: 1 of 3 rows have no word"


def test_a_tag_without_a_word_is_said(tokenizer):
    task = TokenClassification(labels=["O", "B-x", "I-x", "B-y"])
    assert task.prepare(loaded(rows()), tokenizer, CONFIG).notes == ["train split: no word is tagged B-y"]


REFUSED = {
    "no column": ({"label": "tags"}, rows(), "train split: there is no column `tags`"),
    "no words": (
        {},
        rows(["the ball"], [["O"]]),
        "train split, row 0: `tokens` is 'the ball', not a list of words",
    ),
    "no tags": (
        {"labels": NAMES},
        rows([["the"]], ["O"]),
        "train split, row 0: `label` is 'O', not a list of tags",
    ),
    "no tags, none named": (
        {},
        rows([["the"]], ["O"]),
        "train split, row 0: `label` is 'O', not a list of tags",
    ),
    "lengths": ({}, rows(TOKENS, [["O"], ["O", "B-x", "O"]]), "train split, row 0: 1 tags for 2 words"),
    "unknown": (
        {"labels": ["O", "B-x"]},
        rows(),
        "train split, row 1, word 2: label 'I-x' is none of the classes (did you mean `B-x`?)",
    ),
    "no tag": (
        {},
        rows([["a", "the"]] * 2, [["O", "B-x"], ["O", None]]),
        "train split, row 1, word 1: has no label",
    ),
    "one tag": (
        {"labels": ["O", "x"]},
        rows(TOKENS, [["O"] * 2, ["O"] * 3]),
        "train split: all 5 words have one tag",
    ),
    "no word at all": ({"labels": NAMES}, rows([[], []], [[], []]), "train split: all 2 rows are empty"),
    "all different": (
        {},
        rows([list("abcdefghijkl")], [list("mnopqrstuvwx")]),
        "train split: column `label` has 12 different values in 12 words",
    ),
    "too long": ({"max_length": 33}, rows(), "max_length is 33, but the model takes 32 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_row(tokenizer, case):
    fields, data, message = REFUSED[case]
    with pytest.raises(DataError) as caught:
        TokenClassification(**fields).prepare(loaded(data), tokenizer, CONFIG)
    assert str(caught.value).startswith(message)


def test_a_word_that_is_no_text_is_refused(tokenizer):
    data = Dataset.from_dict({"tokens": [["a", None]], "label": [["O", "x"]]})
    with pytest.raises(DataError, match="row 0: word 1 of `tokens` is None, not text"):
        TokenClassification().prepare(loaded(data), tokenizer, CONFIG)


def test_a_slow_tokenizer_is_refused():
    slow = SimpleNamespace(is_fast=False, model_max_length=32)
    with pytest.raises(DataError, match="SimpleNamespace does not say which word a token belongs to"):
        TokenClassification().prepare(loaded(rows()), slow, CONFIG)


def test_a_stream_is_encoded_once_its_tags_are_named(tokenizer):
    stream = rows().to_iterable_dataset()
    made = TokenClassification(labels=NAMES).prepare(loaded(stream, rows()), tokenizer, CONFIG)
    assert next(iter(made.train))["labels"] == [-100, 2, 0, -100]
    with pytest.raises(DataError, match="a stream does not tell its tags"):
        TokenClassification().prepare(loaded(stream, rows()), tokenizer, CONFIG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["a"]}, "labels is ['a']; allowed: two or more different names"),
        ({"max_length": 2}, "max_length is 2; allowed: 3 or more tokens"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(ValueError) as caught:
        TokenClassification(**fields)
    assert str(caught.value) == message


def test_a_tokenizer_whose_words_bring_their_space():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "Ġa": 1, "b": 2, "Ġb": 3, "<unk>": 4, "Ġ": 5}
    bpe = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("Ġ", "b")], unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", pad_token="<unk>", model_max_length=9
    )
    made = TokenClassification().prepare(
        loaded(rows([["b", "a", "b"]], [["O", "x", "O"]])), tokenizer, CONFIG
    )
    assert made.train["input_ids"][:] == [[2, 1, 3]]  # as of the text "b a b"


def test_new_rows_are_encoded_under_the_models_tags(tokenizer):
    task, config = TokenClassification(), own_config(["O", "I-x", "B-x"])
    labeled, _ = task.encode(rows(), tokenizer, config, labeled=True)
    assert labeled["labels"][0] == [-100, 0, 2, -100]
    unlabeled, _ = task.encode(rows().remove_columns("label"), tokenizer, config, labeled=False)
    assert "labels" not in unlabeled.column_names
    assert unlabeled["token_items"][0] == [0, 1, 1, 0]
    with pytest.raises(DataError, match="data: there is no column `label`"):
        task.encode(rows().remove_columns("label"), tokenizer, config, labeled=True)


def test_answers_name_the_words():
    task, config = TokenClassification(), own_config(NAMES)
    logits = np.full((2, 2, 3), -100.0)
    logits[0] = [[0, 0, 5], [5, 0, 0]]
    logits[1, 0] = [5, 0, 0]
    first, second = task.answers({"tokens": [["the", "ball"], ["good", "soup"]]}, logits, config)
    assert first["tokens"] == ["the", "ball"]
    assert first["tags"] == ["O", "B-x"]
    assert first["spans"] == [{"type": "x", "start": 1, "end": 2, "text": "ball"}]
    assert second["tags"] == ["B-x", None]
    assert [a["tags"] for a in task.decode(logits, config)] == [["O", "B-x"], ["B-x"]]


def tagged(rows):
    """Every topic word is a span of its topic."""
    topics = {word: topic for topic, words in WORDS.items() for word in words}
    return [
        {
            "tokens": row["text"].split(),
            "label": [f"B-{topics[w]}" if w in topics else "O" for w in row["text"].split()],
        }
        for row in sentences(rows)
    ]


def test_a_run_from_file_to_answers(recipe, tmp_path):
    from hf_llm_recipes.run import run

    file = tmp_path / "tags.jsonl"
    file.write_text("\n".join(map(json.dumps, tagged(240))))
    values = {**recipe, "data": {"name": str(file)}, "task": {"name": "token_classification"}}
    done = run(
        Recipe.from_dict(values),
        "trainer.max_steps=150",
        "trainer.learning_rate=1e-2",
        "trainer.eval_strategy=epoch",
    )
    assert done.metrics["test"]["rows"] == 24
    assert done.metrics["test"]["f1"] > 0.9  # a word alone tells its tag
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
    written = pd.read_parquet(done.path / "predictions.parquet")
    pairs = [
        (t, p)
        for true, guess in zip(written["label"], written["predicted_label"], strict=True)
        for t, p in zip(true, guess, strict=True)
    ]
    assert np.mean([t == p for t, p in pairs]) == pytest.approx(done.metrics["test"]["token_accuracy"])
    predictor = Predictor.load(done.path)
    texts = ["the old ball", "soup", "", "a very good new song was in the band of old"]
    answers = predictor.predict(texts)
    assert [len(a["tags"]) for a in answers] == [3, 1, 0, 11]
    assert [a["tags"] for a in predictor.predict([t.split() for t in texts], batch_size=1)] == [
        a["tags"] for a in answers
    ]
    assert predictor.predict([{"tokens": ["the", "old", "ball"]}])[0]["tags"] == answers[0]["tags"]
    assert answers[0]["spans"] == [{"type": "sport", "start": 2, "end": 3, "text": "ball"}]
    with pytest.raises(DataError, match="row 1: 3 is no text"):
        predictor.predict(["a", 3])
    card = (done.path / "README.md").read_text()
    assert "F1 of spans" in card
    code = card.split("```python\n")[1].split("```")[0].replace("'tiny'", repr(str(done.path / "model")))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "card", "exec"), {})
    assert [line.split("  ")[1] for line in printed.getvalue().splitlines()] == [
        "Put",
        "your",
        "own",
        "text",
        "here.",
    ]


def test_a_run_of_an_adapter_on_a_model_that_pads_left(recipe, tiny_llama, tmp_path):
    from hf_llm_recipes.run import run

    file = tmp_path / "tags.jsonl"
    file.write_text("\n".join(map(json.dumps, tagged(240))))
    values = {
        **recipe,
        "model": {"name": str(tiny_llama)},
        "tuning": {"name": "lora", "r": 4},
        "data": {"name": str(file)},
        "task": {"name": "token_classification"},
    }
    done = run(Recipe.from_dict(values))
    assert done.metrics["reload"]["logits_max_difference"] < 1e-4
