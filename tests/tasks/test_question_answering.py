"""Question answering: windows and labels by hand, answers of a rigged model, and runs of every tuning."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertConfig, DistilBertConfig
from typer.testing import CliRunner

from hf_llm_recipes import cli
from hf_llm_recipes.data.loading import Loaded
from hf_llm_recipes.errors import DataError, RunError
from hf_llm_recipes.judging import evaluate_run, predict_file
from hf_llm_recipes.predictor import Predictor
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.reporting.rows import rankings
from hf_llm_recipes.run import estimate, plan, run
from hf_llm_recipes.tasks.question_answering import QuestionAnswering, span_loss
from hf_llm_recipes.tasks.text_classification import TextClassification

# [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, the 5, a 6, was 8, in 9, of 10, very 11, new 12, old 13, good 14,
# ball 15, team 16, coach 18
CONFIG = BertConfig(max_position_embeddings=32)
CONTEXT = "the old ball was in the new team and the good coach was very old"
ROWS = [
    {"question": "a coach", "context": CONTEXT, "answers": {"text": ["good coach"], "answer_start": [41]}},
    {"question": "old", "context": "the new team", "answers": {"text": ["new"], "answer_start": [4]}},
]
SMALL = {"max_length": 14, "doc_stride": 3, "max_question_length": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def prepared(tokenizer, rows=ROWS, **task):
    data = Dataset.from_list(rows)
    loaded = Loaded(train=data, eval=None, test=data, description={})
    return QuestionAnswering(**{**SMALL, **task}).prepare(loaded, tokenizer, CONFIG)


def test_a_long_context_becomes_windows_that_share_tokens(tokenizer):
    made = prepared(tokenizer)
    assert made.train["input_ids"][:] == [
        [2, 6, 18, 3, 5, 13, 15, 8, 9, 5, 12, 16, 7, 3],  # the old ball was in the new team and
        [2, 6, 18, 3, 12, 16, 7, 5, 14, 18, 8, 11, 13, 3],  # new team and the good coach was very old
        [2, 13, 3, 5, 12, 16, 3],
    ]
    # start, end, tokens; the first window has no answer and points at [CLS]
    assert made.train["labels"][:] == [[0, 0, 14], [8, 9, 14], [4, 4, 7]]
    assert made.train["row"][:] == [0, 0, 1]
    assert (made.train["context_at"][:], made.train["nothing_at"][:]) == ([4, 4, 3], [0, 0, 0])
    assert (made.train["starts"][2], made.train["ends"][2]) == ([0, 4, 8], [3, 7, 12])
    assert made.config == {"num_labels": 2}
    counts = made.findings["train"]
    assert (counts["rows"], counts["windows"], counts["windows_with_answer"]) == (2, 3, 2)
    assert counts["rows_lost"] == counts["rows_bad"] == counts["windows_cut"] == counts["rows_inexact"] == 0
    assert made.notes[0] == "train: 3 windows of up to 14 tokens from 2 rows"
    batch = made.collator([made.train[1], made.train[2]])
    assert batch["input_ids"].tolist()[1] == [2, 13, 3, 5, 12, 16, 3, *[0] * 7]
    assert batch["labels"].tolist() == [[8, 9, 14], [4, 4, 7]]


def test_a_tokenizer_that_pads_on_the_left_moves_no_place(tokenizer):
    made = prepared(tokenizer)
    tokenizer.padding_side = "left"
    try:
        batch = made.collator([made.train[1], made.train[2]])
    finally:
        tokenizer.padding_side = "right"
    assert batch["attention_mask"].tolist()[1] == [1] * 7 + [0] * 7


def test_answers_in_two_columns_are_recognised(tokenizer):
    flat = [
        {
            "question": r["question"],
            "context": r["context"],
            "answer": r["answers"]["text"][0],
            "answer_start": at,
        }
        for r, at in zip(ROWS, ("41", "4"), strict=True)  # as a CSV file has them
    ]
    assert prepared(tokenizer, flat).train["labels"][:] == [[0, 0, 14], [8, 9, 14], [4, 4, 7]]
    named = [{**{k: v for k, v in r.items() if "answer" not in k}, "gold": r["answers"]} for r in ROWS]
    made = prepared(tokenizer, named, answers_column="gold")
    assert made.train["labels"][:] == [[0, 0, 14], [8, 9, 14], [4, 4, 7]]


def test_an_answer_that_no_window_holds_is_not_learnt(tokenizer):
    # "new team and the good" needs more shared tokens than one
    cut = {
        "question": "a",
        "context": CONTEXT,
        "answers": {"text": ["in the new team and the good"], "answer_start": [17]},
    }
    made = prepared(tokenizer, [cut, ROWS[1]], doc_stride=1)
    assert made.train["row"][:] == [1]
    assert set(made.test["row"]) == {0, 1}  # judged all the same
    assert made.findings["train"]["rows_lost"] == 1
    assert made.findings["train"]["windows_cut"] == 2
    assert "train: 1 of 2 rows have an answer that no window holds and are left out" in made.notes
    assert "test: 1 of 2 rows have an answer that no window holds, and cannot be right" in made.notes


def test_a_long_question_is_cut_and_counted(tokenizer):
    made = prepared(tokenizer, [{**ROWS[1], "question": "the old ball was very good"}])
    assert made.train["input_ids"][0][:6] == [2, 5, 13, 15, 8, 3]
    assert made.findings["train"]["questions_cut"] == 1
    assert "train: 1 of 1 rows have a question that is cut" in made.notes


def test_an_answer_that_is_too_long_to_be_given_is_told(tokenizer):
    made = prepared(tokenizer, max_answer_length=1)  # "good coach"
    assert made.findings["train"]["rows_too_long"] == 1
    assert any("train: 1 of 2 rows have an answer of more tokens than" in note for note in made.notes)
    assert prepared(tokenizer, max_answer_length=2).findings["train"]["rows_too_long"] == 0


def test_rows_without_an_answer(tokenizer):
    silent = {"question": "a ball", "context": "the new team", "answers": {"text": [], "answer_start": []}}
    made = prepared(tokenizer, [silent, ROWS[1]], unanswerable=True)
    assert made.train["labels"][:] == [[0, 0, 8], [4, 4, 7]]
    assert made.findings["train"]["rows_without_answer"] == 1
    all_have = prepared(tokenizer, ROWS, unanswerable=True)
    assert "train: every row has an answer: it is not learnt to give none" in all_have.notes


def test_chinese_answers_ask_for_their_own_scores(tokenizer):
    chinese = {
        "question": "a",
        "context": "the 新的 team",
        "answers": {"text": ["新的"], "answer_start": [4]},
    }
    assert any("`task.scoring: cmrc`" in note for note in prepared(tokenizer, [chinese]).notes)
    assert not any("cmrc" in note for note in prepared(tokenizer, [chinese], scoring="cmrc").notes)
    assert not any("cmrc" in note for note in prepared(tokenizer).notes)


def changed(**values):
    return [ROWS[0], {**ROWS[1], **values}]


REFUSED = {
    "another place": (
        changed(answers={"text": ["new"], "answer_start": [5]}),
        {},
        "train split, row 1: `answer_start` is 5, where the context has 'ew ', not the answer 'new'",
    ),
    "no answer": (changed(answers={"text": [], "answer_start": []}), {}, "train split, row 1: has no answer"),
    "no context": (changed(context=" "), {}, "train split, row 1: `context` is ' '"),
    "no question": (changed(question=None), {}, "train split, row 1: `question` is None"),
    "no column": ([{"context": "a", "answers": None}], {}, "train split: there is no column `question`"),
    "no answers": (
        [{"question": "a", "context": "a", "label": "a"}],
        {},
        "train split: there is neither a column `answers` nor `answer` with `answer_start`",
    ),
    "no room": (
        ROWS,
        {"doc_stride": 7},
        "windows of 14 tokens with questions of up to 4 leave 7 for the context, of which 7 would be shared",
    ),
    "too long": (ROWS, {"max_length": 33}, "max_length is 33, but the model takes 32 tokens"),
    "all are lost": (
        [{**ROWS[0], "answers": {"text": [CONTEXT], "answer_start": [0]}}],
        {},
        "train split: there is no window with an answer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_row(tokenizer, case):
    rows, task, message = REFUSED[case]
    with pytest.raises(DataError) as caught:
        prepared(tokenizer, rows, **task)
    assert str(caught.value).startswith(message)


def test_the_place_that_was_meant_is_told(tokenizer):
    with pytest.raises(
        DataError, match=r"the nearest place that has it is 4: mend the row, or set `task.bad_rows"
    ):
        prepared(tokenizer, REFUSED["another place"][0])


def test_bad_rows_are_left_out_where_asked(tokenizer):
    made = prepared(tokenizer, REFUSED["another place"][0], bad_rows="drop")
    assert made.train["row"][:] == [0, 0]
    assert made.findings["train"]["rows_bad"] == 1
    assert "train: 1 of 2 rows cannot be used and are left out" in made.notes
    with pytest.raises(DataError, match="row 0: `answer_start` is 5"):
        prepared(tokenizer, REFUSED["another place"][0][1:], bad_rows="drop")


def test_a_stream_and_a_slow_tokenizer_are_refused(tokenizer):
    task = QuestionAnswering(**SMALL)
    with pytest.raises(DataError, match="questions are read whole"):
        task.encode(Dataset.from_list(ROWS).to_iterable_dataset(), tokenizer, CONFIG, labeled=True)
    slow = SimpleNamespace(is_fast=False, model_max_length=32, num_special_tokens_to_add=lambda pair: 3)
    with pytest.raises(DataError, match="does not say which characters a token stands for"):
        task.encode(Dataset.from_list(ROWS), slow, CONFIG, labeled=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 7}, "max_length is 7; allowed: 8 or more"),
        ({"doc_stride": -1}, "doc_stride is -1; allowed: 0 or more"),
        ({"max_answer_length": 0}, "max_answer_length is 0; allowed: 1 or more"),
        ({"no_answer_threshold": 1.0}, "no_answer_threshold has no effect without `unanswerable: true`"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(ValueError) as caught:
        QuestionAnswering(**fields)
    assert str(caught.value) == message


def test_what_the_model_does_not_take_is_no_feature(tokenizer):
    rows = Dataset.from_list(ROWS)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    try:
        task = QuestionAnswering(**SMALL)
        bert, _ = task.encode(rows, tokenizer, CONFIG, labeled=False)
        distil, _ = task.encode(rows, tokenizer, DistilBertConfig(max_position_embeddings=32), labeled=False)
    finally:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert "token_type_ids" in bert.column_names
    assert bert["token_type_ids"][2] == [0, 0, 0, 1, 1, 1, 1]
    assert "token_type_ids" not in distil.column_names
    assert "labels" not in bert.column_names


def test_the_loss_is_the_mean_over_windows_and_padding_is_no_place():
    # three tokens and one of padding, which the stock heads would count
    outputs = {
        "start_logits": torch.tensor([[math.log(2), 0.0, 0.0, 9.0]]),
        "end_logits": torch.tensor([[0.0, 0.0, math.log(6), 9.0]]),
    }
    labels = torch.tensor([[0, 2, 3]])
    expected = (math.log(4 / 2) + math.log(8 / 6)) / 2
    assert span_loss(outputs, labels).item() == pytest.approx(expected)
    # eight windows in the step: 24 labels, as the Trainer counts them
    assert span_loss(outputs, labels, num_items_in_batch=torch.tensor(24)).item() == pytest.approx(
        expected / 8
    )
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1; allowed for this task: 0"):
        QuestionAnswering().loss(0.1)


class Rigged:
    """A model whose logits are a function of token and place: 0 but where they are given."""

    device, config = torch.device("cpu"), CONFIG

    def __init__(self, starts, ends):
        self.starts, self.ends = starts, ends

    def __call__(self, input_ids, attention_mask):
        given = []
        for wanted in (self.starts, self.ends):
            logits = torch.zeros(input_ids.shape)
            for token, value in wanted.items():
                logits[input_ids == token] = value
            given.append(logits)
        return {"start_logits": given[0], "end_logits": given[1]}


def judged(tokenizer, model, rows=ROWS, **task):
    one, data = QuestionAnswering(**{**SMALL, **task}), Dataset.from_list(rows)
    features, _ = one.encode(data, tokenizer, CONFIG, labeled=True)
    return one.judge_model(model, features, data, tokenizer)


def test_the_best_span_of_all_windows_is_the_answer(tokenizer):
    # good 14 starts, coach 18 ends (in the question too, which is no answer); in row 1 new 12, and team 16
    found = judged(tokenizer, Rigged({14: 5.0, 12: 3.0}, {18: 5.0, 16: 2.0}))
    assert found.columns["answer"] == ["good coach", "new team"]
    assert found.columns["start"] == [41, 4]
    assert found.columns["gold"] == [["good coach"], ["new"]]
    assert found.columns["exact_match"] == [1.0, 0.0]
    assert found.columns["answer_f1"] == [1.0, pytest.approx(2 / 3)]
    assert (found.metrics["exact_match"], found.metrics["answer_f1"]) == (0.5, pytest.approx(5 / 6))
    # row 1's six spans score 0+0, 0+0, 0+2, 3+0, 3+2 and 0+2; the answer's share:
    scores = [0, 0, 2, 3, 5, 2]
    assert found.columns["score"][1] == pytest.approx(math.exp(5) / sum(map(math.exp, scores)))


def test_an_answer_has_no_more_tokens_than_allowed(tokenizer):
    model = Rigged({13: 5.0}, {16: 5.0})  # old ... team: six tokens apart
    assert judged(tokenizer, model).columns["answer"][0] == "old ball was in the new team"
    shorter = judged(tokenizer, model, max_answer_length=3).columns["answer"][0]
    assert len(shorter.split()) <= 3


def test_the_report_ranks_answers_that_are_wrong(tokenizer):
    found = judged(tokenizer, Rigged({14: 5.0, 12: 3.0}, {18: 5.0, 16: 2.0}))
    (ranking,) = rankings(found.columns)
    assert ranking.rows == [1]  # "new team" for "new"
    assert ranking.said.startswith("1 of 2 answers are not exactly right")
    right, answer, *_ = ranking.figures(1)
    assert (right, "new team" in str(answer)) == ("new", True)


def test_silence_must_win_in_every_window(tokenizer):
    silent = {"question": "a ball", "context": CONTEXT, "answers": {"text": [], "answer_start": []}}
    model = Rigged({2: 4.0, 14: 3.0}, {2: 4.0, 18: 3.0})  # [CLS] 8, "good coach" 6
    found = judged(tokenizer, model, [silent, ROWS[0]], unanswerable=True)
    assert found.columns["answer"] == ["", ""]
    assert found.columns["start"] == [None, None]
    assert found.metrics["right_to_be_silent"] == 1.0
    bold = judged(tokenizer, model, [silent, ROWS[0]], unanswerable=True, no_answer_threshold=2.5)
    assert bold.columns["answer"] == ["good coach"] * 2
    assert judged(tokenizer, model, [ROWS[0]]).columns["answer"] == ["good coach"]


def test_a_model_that_diverged_is_told(tokenizer):
    with pytest.raises(DataError, match="row 1: a logit is not finite"):
        judged(tokenizer, Rigged({5: math.nan}, {}), [{**ROWS[0], "context": "new old", **NEW}, ROWS[1]])


NEW = {"answers": {"text": ["new"], "answer_start": [0]}}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def many(rows=48):
    """Which thing is old? Its name stands behind that word."""
    things = ["ball", "team", "goal", "bread", "soup", "song"]
    made = []
    for i in range(rows):
        one, other = things[i % 6], things[(i + 1 + i // 6) % 6]
        text = f"the good {other} was in the old {one} and a very new score"
        made.append(
            {
                "id": f"q{i}",
                "question": "the old",
                "context": text,
                "answer": one,
                "answer_start": text.find(one),
            }
        )
    return made


def values(tiny_bert, folder, **more):
    return {
        "name": "tiny",
        "output": str(folder / "out"),
        "model": {"name": str(tiny_bert)},
        "data": {"name": str(jsonl(folder / "rows.jsonl", many()))},
        "task": {"name": "question_answering", "max_length": 14, "doc_stride": 3, "max_question_length": 2},
        "trainer": {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        **more,
    }


TUNINGS = {
    "full": {},
    "freeze": {"tuning": {"name": "freeze", "last": 1}},
    "lora": {"tuning": {"name": "lora", "r": 4, "target_modules": ["query", "value"]}},
    "4-bit": {
        "tuning": {"name": "lora", "r": 4, "target_modules": ["query", "value"]},
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    },
}


@pytest.fixture(scope="module")
def with_segments(tiny_bert, tmp_path_factory):
    """The tiny BERT with a tokenizer that tells question and context apart."""
    folder = shutil.copytree(tiny_bert, tmp_path_factory.mktemp("segments") / "model")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=TUNINGS)
def finished(request, with_segments, tmp_path_factory):
    """A run of each tuning."""
    if request.param == "4-bit":
        pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp(request.param)
    return run(Recipe.from_dict(values(with_segments, folder, **TUNINGS[request.param]))), request.param


def test_a_run_of_each_tuning(finished):
    done, tuning = finished
    scores = done.metrics["test"]
    assert scores["rows"] == 5
    assert {"exact_match", "answer_f1"} <= set(scores["intervals_95"])
    assert done.metrics["before"]["exact_match"] <= 1
    assert done.metrics["reload"]["logits_max_difference"] <= done.metrics["reload"]["tolerance"]
    written = pd.read_parquet(done.path / "predictions.parquet")
    assert written["id"].str.match(r"q\d+$").all()
    assert written["exact_match"].mean() == pytest.approx(scores["exact_match"])
    assert evaluate_run(done.path)["answer_f1"] == pytest.approx(scores["answer_f1"])
    card = (done.path / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForQuestionAnswering" in card
    assert "pipeline_tag: question-answering" in card
    if tuning in ("full", "freeze"):
        stock, info = AutoModelForQuestionAnswering.from_pretrained(
            done.path / "model", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert type(stock).__name__ == "BertForQuestionAnswering"


@pytest.mark.parametrize("finished", ["lora"], indirect=True)
def test_an_adapter_sees_question_and_context_apart(finished):
    """peft's model for question answering drops `token_type_ids`: merged, it would be another model."""
    done, _ = finished
    rows = Dataset.from_list(ROWS)
    predictor = Predictor.load(done.path)
    features, _ = predictor.task.encode(rows, predictor.tokenizer, CONFIG, labeled=False)
    assert "token_type_ids" in features.column_names
    both = predictor.task.probe(predictor.model, features, predictor.tokenizer)
    alone = predictor.task.probe(
        predictor.model, features.remove_columns("token_type_ids"), predictor.tokenizer
    )
    assert np.abs(both - alone).max() > 1e-3
    whole = Predictor.load(done.path, merged=True)
    assert np.abs(both - predictor.task.probe(whole.model, features, whole.tokenizer)).max() < 1e-4


def test_new_questions(finished, tmp_path):
    done, tuning = finished
    predictor = Predictor.load(done.path)
    context = "the good soup was in the old ball"
    by_pair = predictor.predict([("the old", context)])
    by_row = predictor.predict([{"question": "the old", "context": context}])
    assert by_pair == by_row
    assert by_pair[0]["answer"] in context
    assert context[by_pair[0]["start"] :].startswith(by_pair[0]["answer"])
    assert 0 < by_pair[0]["score"] <= 1
    with pytest.raises(DataError, match="'the old' is no question with its context"):
        predictor.predict(["the old"])
    if tuning != "full":
        return
    text = tmp_path / "context.txt"
    text.write_text(context, encoding="utf-8")
    for given in (context, str(text)):
        said = CliRunner().invoke(cli.app, ["predict", str(done.path), "the old", "--context", given])
        assert said.output == f"{by_pair[0]['answer']} ({by_pair[0]['score']:.2f})  <-  the old\n"
    predict_file(done.path, jsonl(tmp_path / "new.jsonl", many(3)), tmp_path / "answers.jsonl")
    found = pd.read_json(tmp_path / "answers.jsonl", lines=True)
    assert found["predicted_answer"].str.len().gt(0).all()


def test_a_context_is_for_questions_alone():
    with pytest.raises(RunError, match="the run's task is text_classification, which takes no context"):
        Predictor(None, None, TextClassification()).asked_about(["x"], "y")
    assert "--context has an effect only with questions" in (
        CliRunner().invoke(cli.app, ["predict", "nowhere", "--context", "x"]).output
    )


def test_what_a_run_needs_is_estimated(tiny_bert, tmp_path):
    found = estimate(Recipe.from_dict(values(tiny_bert, tmp_path)))
    assert found.probed
    assert found.steps == 3
    assert {"weights", "activations"} <= {part.name for part in found.memory}


def test_only_supervised_training_takes_it(tiny_bert, tmp_path):
    from hf_llm_recipes.errors import RecipeError

    with pytest.raises(RecipeError, match="method self_training cannot train the task question_answering"):
        plan(Recipe.from_dict(values(tiny_bert, tmp_path, method="self_training")))


def test_texts_whose_places_are_marked_are_not_cleaned(tiny_bert, tmp_path):
    from hf_llm_recipes.errors import RecipeError

    made = values(tiny_bert, tmp_path)
    made["data"]["clean"] = False
    assert plan(Recipe.from_dict(made)).source.clean is None
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: {name: x}\ndata:\n  name: rows.jsonl\n  clean: true\ntask: question_answering\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        plan(Recipe.load(file))
    assert str(caught.value) == (
        f"{file}:4: data.clean would move the places that labels of the task question_answering count in "
        "characters\n  allowed: tasks whose labels are no places in a text\n  do: take it out, and clean the "
        "texts before their answers are marked"
    )


def test_it_learns(tiny_bert):
    data = Dataset.from_list(many(96))
    task = QuestionAnswering(max_length=24, max_question_length=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_bert)
    features, _ = task.encode(data, tokenizer, model.config, labeled=True)
    collate, optimizer = task.collator(tokenizer), torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = task.judge_model(model.eval(), features, data, tokenizer).metrics["exact_match"]
    for step in range(60):
        chosen = range(32 * step % 96, 32 * step % 96 + 32)
        batch = collate([features[place] for place in chosen])
        labels = batch.pop("labels")
        task.loss(0.0)(model(**batch), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.judge_model(model.eval(), features, data, tokenizer).metrics["exact_match"]
    assert before < 0.5 < 0.9 < after
