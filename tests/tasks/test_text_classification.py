import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_tokenizer
from datasets import ClassLabel, Dataset, Features, Value
from transformers import BertConfig, RobertaConfig, RobertaModel, T5Config

from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks.text_classification import TextClassification

# [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, the 5, a 6, new 12, old 13, good 14,
# ball 15, goal 17, bread 21, soup 22, song 27
TEXTS = ["the ball", "a good soup", "the old song", "bread zebra"]
IDS = [[2, 5, 15, 3], [2, 6, 14, 22, 3], [2, 5, 13, 27, 3], [2, 21, 1, 3]]
CONFIG = BertConfig(max_position_embeddings=32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's
    return made


def rows(**columns):
    return Dataset.from_dict(columns)


def loaded(train, held_out=None, test=None):
    held_out = train if held_out is None else held_out
    return Loaded(train=train, eval=held_out, test=held_out if test is None else test, description={})


def model_config(prepared):
    return SimpleNamespace(**prepared.config)


def test_one_label_a_row(tokenizer):
    task = TextClassification()
    data = rows(text=TEXTS, label=["sport", "food", "sport", "food"])
    made = task.prepare(loaded(data), tokenizer, CONFIG)
    assert made.config == {
        "num_labels": 2,
        "id2label": {0: "food", 1: "sport"},
        "label2id": {"food": 0, "sport": 1},
        "problem_type": "single_label_classification",
    }
    for split in (made.train, made.eval, made.test):
        assert split["input_ids"][:] == IDS
        assert split["labels"][:] == [1, 0, 1, 0]
        assert set(split.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert made.findings["train"] == {
        "rows": 4,
        "rows_cut": 0,
        "tokens_cut": 0,
        "rows_empty": 0,
        "tokens": 18,
        "tokens_per_row_median": 4.5,
        "tokens_per_row_max": 5,
    }
    assert made.notes == []
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["input_ids"].tolist() == [[2, 5, 15, 3, 0], [2, 6, 14, 22, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]


def test_the_metric_of_four_rows():
    logits = np.array([[0.0, 0.0, 1.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    prediction = SimpleNamespace(predictions=(logits, "hidden states"), label_ids=np.array([2, 0, 1, 0]))
    scores = TextClassification().quick_metrics(prediction)
    assert scores["accuracy"] == 0.75  # the last row is wrong
    # food: precision 1, recall 1/2 -> 2/3; music: 1/2, 1 -> 2/3; sport: 1
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_the_answers_of_one_label():
    config = SimpleNamespace(num_labels=2, id2label={0: "food", 1: "sport"})
    answers = TextClassification().decode(np.array([[0.0, math.log(3)], [0.0, 0.0]]), config)
    assert [a["label"] for a in answers] == ["sport", "food"]
    assert [a["probability"] for a in answers] == pytest.approx([0.75, 0.5])


def test_pairs(tokenizer):
    task = TextClassification(text="first", text_pair="second")
    data = rows(first=["the ball", "soup"], second=["goal", "a song"], label=[1, 0])
    made = task.prepare(loaded(data), tokenizer, CONFIG)
    assert made.train["input_ids"][:] == [[2, 5, 15, 3, 17, 3], [2, 22, 3, 6, 27, 3]]
    assert made.train["token_type_ids"][:] == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert made.config["id2label"] == {0: "0", 1: "1"}
    assert made.train["labels"][:] == [1, 0]


FLAGS = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({}, {"label": [["x"], ["x", "fun"], [], ["fun"]]}),
        ({}, {"label": ["x", "fun,x", "", "fun"]}),
        ({"separator": "|"}, {"label": ["x", "x | fun | x", "", "fun"]}),
        ({"labels": ["fun", "x"]}, {"label": ["1", "0,x", "", "0"]}),
        ({"label": ["fun", "x"]}, {"fun": [0, 1, 0, 1], "x": [1, 1, 0, 0]}),
        ({"label": ["fun", "x"]}, {"fun": ["0", "1", "0", "1"], "x": [True, True, False, False]}),
    ],
    ids=["lists", "comma", "bar", "numbers", "columns", "text-and-bool-columns"],
)
def test_many_labels_a_row(tokenizer, fields, columns):
    task = TextClassification(problem="multi_label", **fields)
    made = task.prepare(loaded(rows(text=TEXTS, **columns)), tokenizer, CONFIG)
    assert made.train["labels"][:] == FLAGS
    assert made.config["id2label"] == {0: "fun", 1: "x"}
    assert made.config["problem_type"] == "multi_label_classification"
    assert made.collator([made.train[0]])["labels"].dtype == torch.float32


def test_the_metric_and_answers_of_many_labels():
    task = TextClassification(problem="multi_label")
    logits = np.array([[-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [math.log(3), -1.0]])
    scores = task.quick_metrics(SimpleNamespace(predictions=logits, label_ids=np.array(FLAGS)))
    assert scores["subset_accuracy"] == 0.75  # row 1 lacks its second label
    assert scores["f1_micro"] == pytest.approx(2 * 3 / (3 + 4))  # 3 hits, 3 predicted, 4 true
    assert scores["f1_macro"] == pytest.approx((1 + 2 / 3) / 2)
    answers = task.decode(logits, SimpleNamespace(num_labels=2, id2label={0: "fun", 1: "x"}))
    assert [a["labels"] for a in answers] == [["x"], ["fun"], [], ["fun"]]
    assert answers[3]["probabilities"] == pytest.approx({"fun": 0.75, "x": 1 / (1 + math.e)})


def test_numbers_as_targets(tokenizer):
    task = TextClassification(problem="regression")
    made = task.prepare(loaded(rows(text=TEXTS, label=["1", "2.5", "-3", "1e2"])), tokenizer, CONFIG)
    assert made.train["labels"][:] == [1.0, 2.5, -3.0, 100.0]
    assert made.config["num_labels"] == 1
    assert made.config["problem_type"] == "regression"
    assert task.stratify_by is None
    logits = np.array([[1.0], [2.0], [3.0], [4.0]])
    labels = np.array([1.0, 2.0, 3.0, 6.0])
    scores = task.quick_metrics(SimpleNamespace(predictions=logits, label_ids=labels))
    assert (scores["mae"], scores["rmse"]) == (0.5, 1.0)  # one error of 2 in 4 rows
    assert scores["spearman"] == pytest.approx(1.0)
    assert task.decode(logits, None)[1] == {"value": 2.0}
    assert task.judge(logits, labels, None)["mae"] == 0.5


def test_predictions_are_written_with_their_texts(tmp_path):
    task = TextClassification(text="first", text_pair="second")
    config = SimpleNamespace(num_labels=2, id2label={0: "no", 1: "yes"})
    data = rows(first=["a"], second=["b"], other=[1])
    task.write_predictions(
        tmp_path / "p.parquet", data, np.array([[0.0, math.log(4)]]), np.array([0]), config
    )
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert frame[["first", "second", "label", "predicted_label"]].values.tolist() == [["a", "b", "no", "yes"]]
    assert frame["probability_yes"][0] == pytest.approx(0.8)
    assert "other" not in frame


# Two rows, two outputs. softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) is (1/2, 1/2).
LOGITS = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])


def test_the_loss_of_one_label():
    loss = TextClassification().loss(0.0)
    labels = torch.tensor([1, 0])
    total = math.log(4 / 3) + math.log(2)
    assert loss({"logits": LOGITS}, labels).item() == pytest.approx(total / 2)
    assert loss({"logits": LOGITS}, labels, num_items_in_batch=8).item() == pytest.approx(total / 8)
    assert loss({"logits": LOGITS}, labels, num_items_in_batch=torch.tensor(8)).item() == pytest.approx(
        total / 8
    )


def test_the_loss_with_label_smoothing():
    loss = TextClassification().loss(0.2)
    first = 0.8 * math.log(4 / 3) + 0.2 * (math.log(4) + math.log(4 / 3)) / 2
    assert loss({"logits": LOGITS}, torch.tensor([1, 0])).item() == pytest.approx((first + math.log(2)) / 2)


def test_the_loss_of_many_labels():
    loss = TextClassification(problem="multi_label").loss(0.0)
    # sigmoid(0) = 1/2 three times; sigmoid(ln 3) = 3/4 where the flag is 1
    total = 3 * math.log(2) + math.log(4 / 3)
    labels = torch.tensor([[0, 1], [1, 0]])
    assert loss({"logits": LOGITS}, labels).item() == pytest.approx(total / 4)
    assert loss({"logits": LOGITS}, labels, num_items_in_batch=16).item() == pytest.approx(total / 16)


def test_the_loss_of_a_number():
    loss = TextClassification(problem="regression").loss(0.0)
    logits, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 0.0])  # errors 1 and 3
    assert loss({"logits": logits}, labels).item() == 5.0
    assert loss({"logits": logits}, labels, num_items_in_batch=20).item() == 0.5
    assert loss({"logits": logits.to(torch.bfloat16)}, labels).dtype == torch.float32


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_label_smoothing_goes_with_one_label_only(problem):
    with pytest.raises(ValueError, match=f"label_smoothing_factor has no meaning for a {problem} task"):
        TextClassification(problem=problem).loss(0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": ["a", "b"]}, "label is a list of columns, which goes with multi_label, not single_label"),
        (
            {"label": ["a", "b"], "problem": "multi_label", "labels": ["x", "y"]},
            "labels has no effect where label",
        ),
        ({"separator": ";"}, "separator has an effect only on a multi_label text column"),
        ({"separator": ";", "problem": "multi_label", "label": ["a", "b"]}, "separator has an effect only"),
        ({"problem": "regression", "labels": ["a", "b"]}, "labels has no effect on regression"),
        ({"labels": ["a"]}, "allowed: two or more different names"),
        ({"labels": ["a", "a"]}, "allowed: two or more different names"),
        ({"max_length": 2}, "max_length is 2; allowed: 3 or more tokens"),
    ],
)
def test_fields_that_do_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        TextClassification(**fields)


def test_class_order_follows_the_columns_own_names(tokenizer):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["sport", "food", "music"])})
    train = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 1]}, features=features)
    other = Features({"text": Value("string"), "label": ClassLabel(names=["food", "music", "sport"])})
    test = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 1]}, features=other)
    made = TextClassification().prepare(loaded(train, test=test), tokenizer, CONFIG)
    assert made.config["id2label"] == {0: "sport", 1: "food", 2: "music"}
    assert made.train["labels"][:] == [0, 1, 2, 1]
    assert made.test["labels"][:] == [1, 2, 0, 2]  # the same names, numbered otherwise there


def test_labels_reorder_or_rename_the_columns_own(tokenizer):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 1, 1]}, features=features)
    reordered = TextClassification(labels=["pos", "neg"]).prepare(loaded(data), tokenizer, CONFIG)
    assert reordered.train["labels"][:] == [1, 0, 0, 0]
    renamed = TextClassification(labels=["bad", "good"]).prepare(loaded(data), tokenizer, CONFIG)
    assert renamed.train["labels"][:] == [0, 1, 1, 1]
    assert renamed.config["id2label"] == {0: "bad", 1: "good"}


def test_labels_given_for_digits_of_a_csv(tokenizer):
    data = rows(text=TEXTS, label=["1", "0", "1", "0"])
    made = TextClassification(labels=["bad", "good"]).prepare(loaded(data), tokenizer, CONFIG)
    assert made.train["labels"][:] == [1, 0, 1, 0]
    stars = rows(text=TEXTS, label=["1", "2", "3", "1"])
    for column in (["1", "2", "3", "1"], [1, 2, 3, 1]):
        stars = rows(text=TEXTS, label=column)
        made = TextClassification(labels=["1", "2", "3"]).prepare(loaded(stars), tokenizer, CONFIG)
        assert made.train["labels"][:] == [0, 1, 2, 0]


def test_numbers_are_classes_by_value(tokenizer):
    data = rows(text=TEXTS * 2, label=["10", "9", "10", "2"] * 2)
    made = TextClassification().prepare(loaded(data), tokenizer, CONFIG)
    assert made.config["id2label"] == {0: "2", 1: "9", 2: "10"}


def test_classes_without_a_training_row_are_said(tokenizer):
    data = rows(text=TEXTS, label=["a", "b", "a", "b"])
    made = TextClassification(labels=["a", "b", "c"]).prepare(loaded(data), tokenizer, CONFIG)
    assert made.notes == ["train split: no row of class c"]


GOOD = {"text": TEXTS, "label": ["a", "b", "a", "b"]}
REFUSED = {
    "column": (
        {},
        {"txt": TEXTS, "label": GOOD["label"]},
        "train split: there is no column `text` (did you mean `txt`?)\n  allowed: txt, label\n"
        "  do: name it in `task.text`, or rename it in `data.columns`",
    ),
    "label column": (
        {"label": "lable"},
        GOOD,
        "train split: there is no column `lable` (did you mean `label`?)\n  allowed: text, label\n"
        "  do: name it in `task.label`",
    ),
    "pair column": ({"text_pair": "second"}, GOOD, "there is no column `second`"),
    "no label": ({}, {**GOOD, "label": ["a", "b", "", "b"]}, "train split, row 2: has no label"),
    "null label": ({}, {**GOOD, "label": ["a", None, "a", "b"]}, "train split, row 1: has no label"),
    "no labels of two rows": (
        {},
        {"text": [f"is  this\n{'a' * 60}", *TEXTS[1:]], "label": [None, "b", "", "b"]},
        f"train split, row 0: has no label: 'is this {'a' * 51}…'; 2 of 4 rows have none",
    ),
    "no labels at all": (
        {"problem": "multi_label"},
        {**GOOD, "label": ["", "", "", ""]},
        "train split: column `label` holds no label in any of 4 rows",
    ),
    "one class": ({}, {**GOOD, "label": ["a"] * 4}, "train split: all 4 rows have one class ('a')"),
    "empty texts": (
        {},
        {**GOOD, "text": ["", " ", "\n", "\t"]},
        "train split: all 4 texts are empty\n  do: check `task.text`",
    ),
    "null text": (
        {},
        {**GOOD, "text": ["a", "b", None, "c"]},
        "train split, row 2: `text` is None, not text",
    ),
    "number as text": ({}, {**GOOD, "text": [1, 2, 3, 4]}, "train split, row 0: `text` is 1, not text"),
    "too many classes": (
        {},
        {**GOOD, "label": ["0.5", "0.7", "0.9", "0.1"]},
        "train split: column `label` has 4 different values in 4 rows\n"
        "  do: is it the label? for numbers set `task.problem: regression`",
    ),
    "too long": (
        {"max_length": 33},
        GOOD,
        "max_length is 33, but the model takes 32 tokens\n  allowed: 3 to 32",
    ),
    "target": (
        {"problem": "regression"},
        {**GOOD, "label": ["1", "2", "-100", "3"]},
        "train split, row 2: label '-100' is transformers' mark",
    ),
    "flag": (
        {"problem": "multi_label", "label": ["x", "y"]},
        {"text": TEXTS, "x": [0, 1, 2, 0], "y": [0, 0, 0, 0]},
        f"train split, row 2: label 2 is no flag; the row is {TEXTS[2]!r}\n  allowed: 0 or 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_row(tokenizer, case):
    fields, columns, message = REFUSED[case]
    with pytest.raises(DataError) as caught:
        TextClassification(**fields).prepare(loaded(rows(**columns)), tokenizer, CONFIG)
    assert message in str(caught.value)


@pytest.mark.parametrize("split", ["eval", "test"])
def test_held_out_rows_are_checked_too(tokenizer, split):
    good = rows(**GOOD)
    for columns, message in (
        ({**GOOD, "label": ["a", "b", "c", "b"]}, f"{split} split, row 2: label 'c' is none of the classes"),
        ({"text": TEXTS, "lable": GOOD["label"]}, f"{split} split: there is no column `label`"),
        ({"txt": TEXTS, "label": GOOD["label"]}, f"{split} split: there is no column `text`"),
        ({**GOOD, "text": [""] * 4}, f"{split} split: all 4 texts are empty"),
    ):
        data = loaded(good)
        setattr(data, split, rows(**columns))
        with pytest.raises(DataError) as caught:
            TextClassification().prepare(data, tokenizer, CONFIG)
        assert message in str(caught.value)


def test_some_empty_texts_are_counted_and_said(tokenizer):
    data = rows(text=["the ball", "", "  ", "soup"], label=["a", "b", "a", "b"])
    made = TextClassification().prepare(loaded(data), tokenizer, CONFIG)
    assert made.findings["eval"]["rows_empty"] == 2
    assert "eval: 2 of 4 texts are empty" in made.notes
    assert made.train["input_ids"][1] == [2, 3]


def test_what_is_cut_is_counted_exactly(tokenizer):
    # with [CLS] and [SEP] 4, 5, 7 and 12 tokens; 5 are kept
    texts = ["the ball", "the old ball", "the old new good ball", "a a a a a a a a a a"]
    data = rows(text=texts, label=["a", "b", "a", "b"])
    made = TextClassification(max_length=5).prepare(loaded(data), tokenizer, CONFIG)
    assert made.train["input_ids"][:] == [
        [2, 5, 15, 3],
        [2, 5, 13, 15, 3],
        [2, 5, 13, 12, 3],
        [2, 6, 6, 6, 3],
    ]
    assert (made.findings["train"]["rows_cut"], made.findings["train"]["tokens_cut"]) == (2, 2 + 7)
    assert made.notes[0] == (
        "train: 2 of 4 rows (50.0 %) are longer than 5 tokens and are cut; 9 tokens are not seen"
    )


def test_what_is_cut_of_pairs_is_counted_exactly(tokenizer):
    data = rows(first=["the old ball goal", "a"], second=["a good soup", "song"], label=["a", "b"])
    task = TextClassification(text="first", text_pair="second", max_length=7)
    made = task.prepare(loaded(data), tokenizer, CONFIG)
    assert [len(ids) for ids in made.train["input_ids"]] == [7, 5]
    assert made.findings["train"]["tokens_cut"] == 4 + 3 + 3 - 7
    assert made.findings["train"]["rows_cut"] == 1


def test_the_limit_is_the_smaller_of_tokenizer_and_model(tokenizer):
    task = TextClassification()
    assert task._length(tokenizer, BertConfig(max_position_embeddings=16)) == 16
    assert task._length(tokenizer, BertConfig(max_position_embeddings=64)) == 32  # the tokenizer's
    assert task._length(tokenizer, T5Config()) == 32  # relative positions: no bound
    assert task._length(tokenizer, RobertaConfig(max_position_embeddings=18, pad_token_id=1)) == 16
    assert task._length(tokenizer, RobertaConfig(max_position_embeddings=18, pad_token_id=0)) == 17


@pytest.mark.parametrize("pad", [0, 1])
def test_robertas_longest_input_is_what_it_can_take(tokenizer, pad):
    config = RobertaConfig(
        vocab_size=33,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=12,
        pad_token_id=pad,
        type_vocab_size=1,
    )
    model = RobertaModel(config)
    longest = TextClassification()._length(tokenizer, config)
    assert model(torch.full((1, longest), 5)).last_hidden_state.shape == (1, longest, 8)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 5))


def test_a_stream_is_encoded_as_it_is_read(tokenizer):
    data = rows(text=TEXTS, label=["b", "a", "b", "a"], other=[1, 2, 3, 4])
    split = loaded(data.to_iterable_dataset(), held_out=data)
    made = TextClassification(labels=["a", "b"]).prepare(split, tokenizer, CONFIG)
    got = list(made.train)
    assert [row["input_ids"] for row in got] == IDS
    assert [row["labels"] for row in got] == [1, 0, 1, 0]
    assert set(got[0]) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert made.findings["train"] == {"rows": "a stream"}
    assert made.findings["eval"]["rows"] == 4
    with pytest.raises(
        DataError, match=r"a stream does not tell its classes\n  do: name them under `task.labels`"
    ):
        TextClassification().prepare(split, tokenizer, CONFIG)


def test_a_stream_that_does_not_know_its_columns(tokenizer):
    from datasets import IterableDataset

    def read():
        yield from ({"text": t, "label": "a", "other": 1} for t in TEXTS)

    split = loaded(IterableDataset.from_generator(read), held_out=rows(**GOOD))
    made = TextClassification(labels=["a", "b"]).prepare(split, tokenizer, CONFIG)
    assert [set(row) for row in made.train] == [
        {"input_ids", "attention_mask", "token_type_ids", "labels"}
    ] * 4
    with pytest.raises(DataError, match="there is no column `body`"):
        TextClassification(text="body", labels=["a", "b"]).prepare(split, tokenizer, CONFIG)


def test_new_rows_are_encoded_under_the_models_classes(tokenizer):
    task = TextClassification()
    config = BertConfig(max_position_embeddings=32, id2label={0: "food", 1: "sport"})
    encoded, found = task.encode(rows(text=TEXTS), tokenizer, config, labeled=False)
    assert encoded["input_ids"][:] == IDS
    assert "labels" not in encoded.column_names
    assert found["rows"] == 4
    labeled = rows(text=TEXTS, label=["sport", "food", "sport", "food"])
    assert task.encode(labeled, tokenizer, config, labeled=True)[0]["labels"][:] == [1, 0, 1, 0]
    with pytest.raises(DataError, match="data, row 0: label 'music' is none of the classes"):
        task.encode(rows(text=["a"], label=["music"]), tokenizer, config, labeled=True)
    with pytest.raises(DataError, match="data: there is no column `text`"):
        task.encode(rows(body=["a"]), tokenizer, config, labeled=False)


def test_the_full_metrics_name_the_classes():
    config = SimpleNamespace(num_labels=2, id2label={0: "food", 1: "sport"})
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    metrics = TextClassification().judge(logits, np.array([0, 1, 0, 0]), config)
    assert metrics["accuracy"] == 0.75
    assert set(metrics["per_class"]) == {"food", "sport"}
    assert TextClassification().stratify_by == "label"
    assert TextClassification(problem="multi_label").stratify_by is None


def with_pool(pool, train=None):
    split = loaded(train or rows(text=TEXTS, label=["sport", "food", "sport", "food"]))
    split.unlabeled = pool
    return split


def test_a_pool_is_encoded_without_labels(tokenizer):
    pool = rows(text=["a good soup", "bread zebra", " "], other=[1, 2, 3])
    made = TextClassification().prepare(with_pool(pool), tokenizer, CONFIG)
    assert made.unlabeled["input_ids"][:] == [IDS[1], IDS[3], [2, 3]]
    assert set(made.unlabeled.column_names) == {"input_ids", "attention_mask", "token_type_ids"}
    assert made.findings["unlabeled"] == {
        "rows": 3,
        "rows_cut": 0,
        "tokens_cut": 0,
        "rows_empty": 1,
        "tokens": 11,
        "tokens_per_row_median": 4,
        "tokens_per_row_max": 5,
    }
    assert made.notes == ["unlabeled: 1 of 3 texts are empty"]
    assert TextClassification().prepare(loaded(rows(**GOOD)), tokenizer, CONFIG).unlabeled is None


def test_labels_of_a_pool_are_not_looked_at(tokenizer):
    plain = rows(text=TEXTS)
    for strange in (
        rows(text=TEXTS, label=["music", "", None, "food"]),
        rows(text=TEXTS, label=[7.5, 1.0, 2.0, 3.0]),
        rows(text=TEXTS, label=[0, 1, 2, 1]).cast_column("label", ClassLabel(names=["x", "y", "z"])),
    ):
        made = TextClassification().prepare(with_pool(strange), tokenizer, CONFIG)
        same = TextClassification().prepare(with_pool(plain), tokenizer, CONFIG)
        assert made.unlabeled.to_list() == same.unlabeled.to_list()
        assert made.config == same.config
        assert made.notes == []


def test_pairs_and_cut_rows_of_a_pool(tokenizer):
    train = rows(first=["a", "the"] * 2, second=["song", "ball"] * 2, label=["x", "y"] * 2)
    pool = rows(first=["the old ball goal", "a"], second=["a good soup", "song"])
    task = TextClassification(text="first", text_pair="second", max_length=7)
    made = task.prepare(with_pool(pool, train), tokenizer, CONFIG)
    assert [len(ids) for ids in made.unlabeled["input_ids"]] == [7, 5]
    assert made.notes == [
        "unlabeled: 1 of 2 rows (50.0 %) are longer than 7 tokens and are cut; 3 tokens are not seen"
    ]
    assert task.input_columns == ["first", "second"]
    assert TextClassification(text="body").input_columns == ["body"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": TEXTS}, "unlabeled rows: there is no column `text` (did you mean `txt`?)"),
        ({"text": ["a", None]}, "unlabeled rows, row 1: `text` is None, not text"),
        ({"text": [1, 2]}, "unlabeled rows, row 0: `text` is 1, not text"),
        ({"text": ["", " "]}, "unlabeled rows: all 2 texts are empty"),
    ],
)
def test_a_pool_that_cannot_be_used(tokenizer, columns, message):
    with pytest.raises(DataError) as caught:
        TextClassification().prepare(with_pool(rows(**columns)), tokenizer, CONFIG)
    assert message in str(caught.value)


def test_a_class_without_labels_is_said_beside_a_pool(tokenizer):
    task = TextClassification(labels=["food", "music", "sport"])
    made = task.prepare(with_pool(rows(text=TEXTS)), tokenizer, CONFIG)
    assert made.notes == [
        "train split: no row of class music: no row of the pool can be taken for one either"
    ]


@pytest.mark.parametrize(
    ("labels", "named"),
    [(["a", "b", "b", "a"], None), (["a", "b", "b", "b"], "a"), (["b", "a", "c", "b"], "a, c")],
)
def test_classes_of_one_labeled_row_are_said_beside_a_pool(tokenizer, labels, named):
    task = TextClassification(labels=["a", "b", "c"] if "c" in labels else ["a", "b"])
    train = rows(text=TEXTS, label=labels)
    made = task.prepare(with_pool(rows(text=TEXTS), train), tokenizer, CONFIG)
    note = f"train split: one row only of class {named}: what the pool teaches of it hangs on that row"
    assert made.notes == ([note] if named else [])
    assert task.prepare(loaded(train), tokenizer, CONFIG).notes == []  # without a pool


def test_a_long_list_of_classes_of_one_row_is_cut(tokenizer):
    labels = [f"c{i:02}" for i in range(22)]
    train = rows(text=["the ball"] * 23, label=[*labels, "c00"])
    made = TextClassification(labels=labels).prepare(with_pool(rows(text=TEXTS), train), tokenizer, CONFIG)
    assert len(made.notes) == 1
    assert "c01, c02" in made.notes[0]
    assert "c20, … (1 more): what the pool" in made.notes[0]


def test_the_items_of_one_label_are_its_rows():
    task = TextClassification()
    items, of_rows = task.items(LOGITS.to(torch.bfloat16), {})
    assert (items.dtype, items.shape) == (torch.float32, (2, 2))
    assert of_rows.tolist() == [0, 1]
    assert task.item_labels(torch.tensor([1, 0]), {}).tolist() == [1, 0]
    assert task.num_item_classes(SimpleNamespace(num_labels=5)) == 5
    assert task.item_problem == "single_label"


def test_the_items_of_many_labels_are_choices_of_no_and_yes():
    task = TextClassification(problem="multi_label")
    logits = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    items, of_rows = task.items(logits, {})
    assert items.tolist() == [[0, 1], [0, -2], [0, 3], [0, 0.5], [0, 0], [0, -1]]
    assert of_rows.tolist() == [0, 0, 0, 1, 1, 1]
    # the probability of yes is the sigmoid that the task itself uses
    assert torch.allclose(items.softmax(-1)[:, 1], logits.sigmoid().reshape(-1))
    labels = task.item_labels(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), {})
    assert labels.tolist() == [1, 0, 0, 0, 1, 1]
    assert labels.dtype == torch.int64
    assert task.num_item_classes(SimpleNamespace(num_labels=3)) == 2
    assert task.item_problem == "multi_label"


def test_gradients_reach_the_logits_through_items():
    logits = torch.tensor([[1.0, -2.0]], requires_grad=True)
    items, _ = TextClassification(problem="multi_label").items(logits, {})
    (items * torch.tensor([[5.0, 1.0], [5.0, 3.0]])).sum().backward()
    assert logits.grad.tolist() == [[1.0, 3.0]]  # the constant side of a choice gives none


def test_a_number_has_no_items():
    task = TextClassification(problem="regression")
    with pytest.raises(ValueError, match="has no classes to guess; use `method: self_training`"):
        task.items(torch.zeros(2, 1), {})
    assert task.item_problem == "regression"


def test_lengths_are_those_of_the_token_ids():
    features = rows(input_ids=IDS)
    assert TextClassification().lengths(features).tolist() == [4, 5, 5, 4]


def test_one_text_where_pairs_are_read():
    with pytest.raises(DataError, match=r"one text, where the run reads pairs \(`text` and `second`\)"):
        TextClassification(text_pair="second").read_inputs(["a song"])
    with pytest.raises(ValueError, match="examples are single texts, and text_pair makes every row two"):
        TextClassification(text_pair="second", examples=["a song"])
