"""Beginnings and ends of what is generated: each fault planted, and a clean chat of which nothing is said."""

from types import SimpleNamespace

from _planted import found, jsonl, recipe_of, report_of, said
from _tiny_chat import BYE, CHATML, END, HELLO, HI, NO_END_TOKEN, tiny_llama, tiny_tokenizer
from _tiny_chat import said as turns

from hf_llm_recipes.checking.turns import (
    double_beginning,
    nothing_learnt,
    too_long_to_write,
    unfinished,
)

PLACES, WHERE = [10, 11, 12], "train split"


def test_a_row_that_begins_twice():
    tokenizer = SimpleNamespace(bos_token_id=1, bos_token="<s>")
    (finding,) = double_beginning([[1, 5], [1, 1, 5], [5, 1, 1]], tokenizer, PLACES, WHERE)
    assert finding.level == "error"
    assert finding.what == "1 of 3 rows begin with '<s>' twice (rows 11)"
    none = SimpleNamespace(bos_token_id=None, bos_token=None)
    assert not double_beginning([[1, 1]], none, [0], WHERE)


def test_rows_without_a_supervised_token():
    labels = [[-100, HI, END], [-100, -100], [HI, -100]]  # the first label of a causal row has no place
    (finding,) = nothing_learnt(labels, PLACES, WHERE, shifted=True)
    assert (finding.level, finding.what) == (
        "warning",
        "2 of 3 rows have no token that carries loss (rows 11, 12)",
    )
    assert not nothing_learnt(labels[2:], [0], WHERE, shifted=False)
    (every,) = nothing_learnt([[-100, -100]], [0], WHERE, shifted=True)
    assert every.level == "error"


def test_an_answer_whose_end_is_not_learnt():
    tokenizer = tiny_tokenizer(CHATML)
    labels = [[-100, HI, END], [-100, HI, END, 4], [-100, BYE, HELLO, HI]]  # 4: a line break
    (finding,) = unfinished(labels, [END], tokenizer, PLACES, WHERE)
    assert finding.level == "warning"
    assert finding.what.startswith(
        "in 1 of 3 rows (33.3 %) the end of the answer, '<|im_end|>', carries no loss"
    )
    assert "(rows 12)" in finding.what
    assert not unfinished(labels[:2], [END], tokenizer, PLACES[:2], WHERE)
    (never,) = unfinished(labels[2:], [], tokenizer, [12], WHERE)
    assert never.level == "error"
    assert never.what == "no token ends an answer: the model will never learn to stop"


def test_answers_longer_than_what_may_be_written():
    (finding,) = too_long_to_write([[-100, HI, END], [HI, BYE, HI, END]], 3, WHERE)
    assert "1 of 2 answers (50.0 %) have more tokens than `task.max_new_tokens: 3`" in finding.what
    assert "`task.max_new_tokens: 4`" in finding.do
    assert not too_long_to_write([[HI, END]], 3, WHERE)


def chat(tmp_path, template=CHATML, **task):
    model = tiny_llama(tmp_path / "model", template=template)
    words = ("hi", "bye", "good", "day", "why", "it is", "so it", "be kind")
    rows = [{"messages": turns("hello", f"{word} good day")} for word in words]
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "train": "train[:5]", "test": "train[5:]"}
    return report_of(recipe_of(model, {**data, "eval_fraction": 0}, {"name": "chat", **task}), tmp_path)


def test_a_clean_chat(tmp_path):
    report = chat(tmp_path)
    assert not found(report, "turns")
    assert any("by its renderings of what came before" in note for note in report.notes)
    assert report.model["batch_split"]["packed"] is True
    assert report.model["batch_split"]["gradient_difference"] < 1e-4


def test_a_template_without_an_end(tmp_path):
    report = chat(tmp_path, NO_END_TOKEN)
    assert "the chat template writes no special token behind the assistant's words" in said(report, "turns")
    assert report.exit_code == 1


def test_a_cut_that_takes_the_end(tmp_path):
    report = chat(tmp_path, max_length=11, truncation="cut")
    assert "carries no loss (rows 0, 1, 2, 3, 4)" in said(report, "turns")
    assert found(report, "turns")[0].level == "error"


def test_generation_and_preference_end_with_their_token(tmp_path):
    model = tiny_llama(tmp_path / "model")
    words = ("hi", "bye", "good", "day", "why", "kind", "it", "is")
    rows = [{"prompt": f"hello {w}", "answer": w, "chosen": w, "rejected": f"{w} so"} for w in words]
    data = {"name": jsonl(tmp_path / "rows.jsonl", rows), "train": "train[:5]", "test": "train[5:]"}
    data["eval_fraction"] = 0
    report = report_of(recipe_of(model, data, {"name": "generation", "max_new_tokens": 1}), tmp_path)
    assert report.samples[0].supervised == 2
    assert "5 of 5 answers (100.0 %) have more tokens than `task.max_new_tokens: 1`" in said(report, "turns")
    values = recipe_of(model, data, {"name": "preference"}, method="dpo", tuning={"name": "lora", "r": 2})
    report = report_of(values, tmp_path)
    assert report.exit_code == 0, report.of("error")
    assert not found(report, "turns")
    assert [sample.label for sample in report.samples[:2]] == ["chosen", "rejected"]
    assert [sample.supervised for sample in report.samples[:2]] == [2, 3]
    assert report.model["batch_split"]["own_method"] is True
    values = recipe_of(model, data, {"name": "generation", "reward": "contains"}, method="grpo")
    values["trainer"] |= {"num_generations": 2, "bf16": False, "max_completion_length": 4}
    report = report_of(values, tmp_path)
    assert report.exit_code == 0, report.of("error")
    assert report.samples[0].label == "what it writes is learnt by its reward, contains"
    assert report.splits["train"]["supervised_tokens"] is None
    assert "batch_split" not in report.model
