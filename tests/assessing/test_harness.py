"""lm-eval on a run's causal model: a local task, worked by hand from the model's own probabilities."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from hf_llm_recipes.assessing import harness, tables
from hf_llm_recipes.errors import DataError, MissingExtraError, RunError
from hf_llm_recipes.predictor import Predictor

ROWS = [
    {"question": "the ball and the", "choices": ["goal", "soup"], "answer": 0},
    {"question": "a very good", "choices": ["song", "bread", "team"], "answer": 1},
    {"question": "in the new", "choices": ["oven", "match"], "answer": 0},
]
TASK = """task: tiny_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def given(tmp_path):
    """A YAML file of a task with its rows."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = tmp_path / "tiny_words.yaml"
    path.write_text(TASK.format(rows=rows))
    return path


@pytest.fixture(scope="module")
def predictor(tiny_llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.pad_token = "[PAD]"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="float32").eval()
    task = SimpleNamespace(auto_class="AutoModelForCausalLM")
    return Predictor(model, tokenizer, task)


def by_hand(predictor):
    """The share of rows whose answer is the likeliest choice behind the question."""
    hits = []
    for row in ROWS:
        scores = []
        for choice in row["choices"]:
            before = predictor.tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            after = predictor.tokenizer(choice, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([before + after])
            with torch.inference_mode():
                logprobs = predictor.model(ids).logits[0].log_softmax(-1)
            scores.append(sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after)))
        hits.append(scores.index(max(scores)) == row["answer"])
    return sum(hits) / len(hits)


def test_a_local_task_is_judged(predictor, given):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    found = harness.evaluate(predictor, [str(given)])
    assert found["tiny_words"]["rows"] == 3
    assert found["tiny_words"]["acc"] == pytest.approx(by_hand(predictor))
    assert "acc_stderr" in found["tiny_words"]
    with pytest.raises(DataError, match="lm-eval has no task `no_such_task`"):
        harness.evaluate(predictor, ["no_such_task"])


def test_figures_are_named_as_one_reads_them():
    found = harness._figures(
        {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "f1_stderr,none": "N/A"},
        {"original": 9, "effective": 4},
    )
    assert found == {"rows": 4, "acc": 0.5, "acc_stderr": 0.1, "em (strict)": 1.0}
    assert tables.tables({"lm_eval": {"tiny": found}}).renderables[0].row_count == 2


def test_code_in_a_task_is_refused(predictor, given, monkeypatch):
    installed(monkeypatch)
    given.write_text(given.read_text() + "process_results: !function mine.score\n")
    with pytest.raises(
        RunError, match=r"names Python code or another file .*\n  do: read it, then add --trust-code"
    ):
        harness.evaluate(predictor, [str(given)])


def installed(monkeypatch):
    """Lets the imports pass; what is tested comes before the first use."""
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks"):
        stand_in = SimpleNamespace(simple_evaluate=None, HFLM=None, TaskManager=None)
        monkeypatch.setitem(sys.modules, name, stand_in)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("task: [", "is no YAML"),
        ("- a", "names no `task:`"),
        ("group: x", "names no `task:`"),
    ],
)
def test_files_that_are_no_tasks(given, text, message):
    if text is None:
        with pytest.raises(RunError, match=message):
            harness._check_file(given.with_name("nowhere.yaml"), False)
        return
    given.write_text(text)
    with pytest.raises(RunError, match=message):
        harness._task_name(str(given))


def test_runs_without_a_causal_model_and_without_the_extra(predictor, given, monkeypatch):
    other = Predictor(None, None, SimpleNamespace(auto_class="AutoModelForSequenceClassification"))
    with pytest.raises(RunError, match="lm-eval judges causal language models, and this run has none"):
        harness.evaluate(other, [str(given)])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf_llm_recipes\[lm-eval\]'"):
        harness.evaluate(predictor, [str(given)])
