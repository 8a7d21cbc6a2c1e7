"""Prompts with rewards: features by hand, rewards by hand, functions of the user's that misbehave."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_llm_recipes.errors import DataError
from hf_llm_recipes.tasks import _rewards
from hf_llm_recipes.tasks.generation import Generation

ROWS = [{"prompt": "the ball", "answer": "good goal"}, {"prompt": "a song", "answer": "old tune"}]


def halves(text, row):
    return 0.5


def raises(text, row):
    raise KeyError("nothing")


def gives_text(text, row):
    return "much"


def features(folder, rows, **fields):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "[PAD]"
    task = Generation(**fields)
    made, found = task.encode(
        Dataset.from_list(rows), tokenizer, AutoConfig.from_pretrained(folder), labeled=True
    )
    return task, made, found, tokenizer


def test_only_the_answer_and_its_end_are_learned(tiny_llama):
    task, made, _, tokenizer = features(tiny_llama, ROWS)
    ids = tokenizer.convert_tokens_to_ids
    answer = [*ids(["good", "goal"]), 3]
    assert made[0]["input_ids"] == [2, *ids(["the", "ball"]), *answer]
    assert made[0]["labels"] == [-100, -100, -100, *answer]
    batch = task.collator(tokenizer)(list(made))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist()[0] == [-100, -100, -100, *answer]


@pytest.mark.parametrize(
    ("reward", "written", "answer", "value"),
    [
        ("exact_match", " Good\n goal ", "good goal", 1.0),
        ("exact_match", "good goals", "good goal", 0.0),
        ("contains", "It is 42, I think", "42", 1.0),
        ("contains", "It is 421", "42", 0.0),
        ("last_number", "First 3, so 1,234.5", "because #### 1234.5", 1.0),
        ("last_number", "no number", "#### 7", 0.0),
        ("last_number", "it is -7", "#### 7", 0.0),
        ("token_f1", "Axis; out", "out, axis", 1.0),
        ("token_f1", "the axis axis is", "axis, out", 2 * 1 / (4 + 2)),  # one word in common
        ("token_f1", "", "axis", 0.0),
    ],
)
def test_rewards_by_hand(reward, written, answer, value):
    assert _rewards.reward_of(reward)(written, {"answer": answer}) == value


def test_the_mean_reward_of_what_the_model_writes(tiny_llama):
    task, made, _, tokenizer = features(tiny_llama, ROWS, reward=f"{__name__}:halves", max_new_tokens=3)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    judged = task.judge_model(model, made, Dataset.from_list(ROWS), tokenizer)
    assert judged.metrics["reward"] == 0.5
    assert judged.columns["row"] == [0, 1]
    assert len(judged.columns["generated"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"raised KeyError: 'nothing'[\s\S]*for the text 'abc'"),
        ("gives_text", "gave 'much' for the text 'abc'"),
    ],
)
def test_a_reward_that_misbehaves_is_told_with_its_row(name, message):
    task = Generation(reward=f"{__name__}:{name}")
    with pytest.raises(DataError, match=message) as caught:
        task.rewarded("abc", ROWS[0], 7)
    assert "row 7" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": "exact_matc"}, "did you mean `exact_match`"),
        ({"reward": "no_such_module:f"}, "cannot be imported"),
        ({"reward": f"{__name__}:ROWS"}, "is no function"),
        ({"answer_column": None}, "needs an answer"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: 1 or more"),
        ({"generation": {"max_new_tokens": 3}}, "stands in the key `max_new_tokens`"),
    ],
)
def test_fields_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Generation(**fields)


def test_rows_too_long_are_left_out_and_counted(tiny_llama):
    rows = [*ROWS, {"prompt": "the " * 40, "answer": "song"}]
    _, made, found, _ = features(tiny_llama, rows, max_length=20)
    assert len(made) == 2
    assert found == {"rows": 3, "left_out": 1, "max_length": 20}


def test_rows_of_the_pool_that_are_left_out_are_said_too(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = "[PAD]"
    rows = Dataset.from_list(ROWS)
    pool = Dataset.from_list([{"prompt": "a tune"}, {"prompt": "the " * 40}])
    loaded = SimpleNamespace(train=rows, eval=None, test=rows, unlabeled=pool)
    made = Generation(max_length=20).prepare(loaded, tokenizer, AutoConfig.from_pretrained(tiny_llama))
    assert made.unlabeled["row"][:] == [0]
    assert made.notes == ["unlabeled: 1 of 2 rows are longer than 20 tokens and are left out"]


def test_a_split_of_which_nothing_fits_is_refused(tiny_llama):
    with pytest.raises(DataError, match="none of 1 rows has 20 tokens or fewer"):
        features(tiny_llama, [{"prompt": "the " * 40, "answer": "song"}], max_length=20)
