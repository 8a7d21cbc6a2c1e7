"""Pairs of answers: their ids, their scores by hand, rows that cannot be used."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks._prompts import left_out_notes
from hf_llm_recipes.tasks.preference import Preference, answer_logprob, preference_scores

TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m.content }} [SEP]{% endfor %}"
    "{% if add_generation_prompt %}[CLS] {% endif %}"
)
ROW = {"prompt": "the ball", "chosen": "good goal", "rejected": "old soup was"}


class Uniform(torch.nn.Module):
    """Logits 0 but for token 7, which is at ln 3: over 4 tokens it has 1/2, the others 1/6."""

    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask=None):
        logits = torch.zeros(*input_ids.shape, 4)
        logits[..., 3] = math.log(3.0)
        return {"logits": logits}


def prepared(folder, rows, template=None, **fields):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "[PAD]"
    tokenizer.chat_template = template
    features, found = Preference(**fields).encode(
        Dataset.from_list(rows), tokenizer, AutoConfig.from_pretrained(folder), labeled=True
    )
    return features, found, tokenizer


def test_an_answers_log_probability_by_hand():
    # behind a prompt of two tokens: 3 with 1/2, then 0 with 1/6
    assert answer_logprob(Uniform(), [1, 2], [3, 0]) == pytest.approx(math.log(0.5) + math.log(1 / 6))


def test_scores_by_hand():
    sums = np.array([[-2.0, -3.0], [-4.0, -1.0], [-1.0, -1.0]])
    means = np.array([[-1.0, -3.0], [-1.0, -1.5], [-0.5, -0.25]])
    scores = preference_scores(sums, means)
    assert scores["preference_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert scores["preference_accuracy_per_token"] == pytest.approx(2 / 3)
    assert scores["margin"] == pytest.approx((2.0 + 0.5 - 0.25) / 3)
    assert scores["rows"] == 3


def test_ids_of_plain_text(tiny_llama):
    features, _, tokenizer = prepared(tiny_llama, [ROW])
    row = features[0]
    ids = tokenizer.convert_tokens_to_ids
    assert row["prompt_ids"] == [2, *ids(["the", "ball"])]  # [CLS] the ball, without the end
    assert row["chosen_ids"] == [*ids(["good", "goal"]), 3]
    assert row["rejected_ids"] == [*ids(["old", "soup", "was"]), 3]


def test_ids_under_a_template(tiny_llama):
    features, _, tokenizer = prepared(tiny_llama, [ROW], TEMPLATE)
    ids = tokenizer.convert_tokens_to_ids
    row = features[0]
    assert row["prompt"] == [{"content": "the ball", "role": "user"}]
    assert row["prompt_ids"] == [2, *ids(["the", "ball"]), 3, 2]
    assert row["chosen_ids"] == [*ids(["good", "goal"]), 3]


def test_an_answer_may_be_the_whole_conversation(tiny_llama):
    asked = {"role": "user", "content": ROW["prompt"]}
    whole = {k: [asked, {"role": "assistant", "content": ROW[k]}] for k in ("chosen", "rejected")}
    expected, *_ = prepared(tiny_llama, [ROW], TEMPLATE)
    for fields in ({}, {"system": "a song"}):
        found, *_ = prepared(tiny_llama, [{**ROW, **whole}], TEMPLATE, **fields)
        assert found["chosen_ids"][:] == expected["chosen_ids"][:]
    other = [{"role": "user", "content": "the team"}, *whole["chosen"][1:]]
    with pytest.raises(DataError, match="of 2 messages that do not begin with the prompt") as caught:
        prepared(tiny_llama, [{**ROW, **whole, "chosen": other}], TEMPLATE)
    assert "row 0, chosen" in str(caught.value)


def test_bad_rows_are_dropped_and_counted_where_asked(tiny_llama):
    rows = [{**ROW, "rejected": " "}, ROW, {**ROW, "rejected": ROW["chosen"]}]
    features, found, _ = prepared(tiny_llama, rows, max_length=20, bad_rows="drop")
    assert features["row"][:] == [1]
    assert found == {"rows": 3, "left_out": 0, "max_length": 20, "bad": 2}
    assert left_out_notes({"train": found}) == ["train: 2 of 3 rows cannot be used and are dropped"]
    with pytest.raises(DataError, match="the answer is ' '"):
        prepared(tiny_llama, rows)
    with pytest.raises(DataError, match="the answer is ' '"):  # nothing is left
        prepared(tiny_llama, rows[:1], bad_rows="drop")


def test_longer_rows_are_left_out_and_counted(tiny_llama):
    long = {**ROW, "rejected": "soup " * 40}
    features, found, _ = prepared(tiny_llama, [ROW, long, ROW], max_length=20)
    assert features["row"][:] == [0, 2]
    assert found == {"rows": 3, "left_out": 1, "max_length": 20}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": None}, "the prompt is 'None'"),
        ({"rejected": "good goal"}, "both answers are the same"),
        ({"chosen": ""}, "the answer is ''"),
        ({"chosen": None}, "the answer is None"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tiny_llama, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        prepared(tiny_llama, [ROW, {**ROW, **changes}])
    assert "row 1" in str(caught.value)


def test_a_missing_column_is_named(tiny_llama):
    with pytest.raises(DataError, match="no column `chosen`"):
        prepared(tiny_llama, [{"prompt": "a", "rejected": "b"}])


def test_messages_without_a_template_are_refused(tiny_llama):
    row = {**ROW, "prompt": [{"role": "user", "content": "the ball"}]}
    with pytest.raises(DataError, match="no chat template"):
        prepared(tiny_llama, [row])


def test_values_out_of_range():
    with pytest.raises(ValueError, match="max_length is 3; allowed: 8 or more"):
        Preference(max_length=3)
    with pytest.raises(ValueError, match="did you mean `max_new_tokens`"):
        Preference(generation={"max_new_token": 3})
