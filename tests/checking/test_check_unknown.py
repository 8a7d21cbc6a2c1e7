"""Signs that a tokenizer does not know: counted by hand, and nothing said where it knows all."""

from _planted import found, jsonl, recipe_of, report_of, said


def report(tiny_bert, tmp_path, first, **task):
    """Of four train rows, two eval rows without a sign that is unknown, and two test rows with one each."""
    files = {"name": [first, "a old ball", "the ball", "a ball"], "eval": ["new ball", "old ball"]}
    files["test"] = ["the \u0416 ball", "a \u0416 ball"]
    made = {}
    for part, texts in files.items():
        rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
        made[part] = jsonl(tmp_path / f"{part}.jsonl", rows)
    return report_of(recipe_of(tiny_bert, made, {"name": "text_classification", **task}), tmp_path)


def test_unknown_tokens_are_counted_and_shown(tiny_bert, tmp_path):
    # [CLS] the \u5149 \u5149 \u56fd ball [SEP] is 7 tokens; the other rows have 5, 4 and 4
    (finding,) = found(report(tiny_bert, tmp_path, "the \u5149 \u5149 \u56fd ball"), "unknown")
    assert finding.level == "warning"
    assert finding.what == (
        "3 of 20 tokens (15.0 %) are the tokenizer's unknown one, the same whatever stood there, "
        "mostly \u5149 \u56fd; test: 2 (20.0 %)"
    )
    assert finding.where == "train split (name.jsonl)"


def test_of_few_it_is_told_and_of_none_nothing_is(tiny_bert, tmp_path):
    made = report(tiny_bert, tmp_path, "the ball")
    assert "2 of 10 tokens (20.0 %)" in said(made, "unknown")
    assert "[test split (test.jsonl)]" in said(made, "unknown")
    for name in ("train", "rest"):
        rows = [{"text": "the ball", "label": "ab"[i % 2]} for i in range(4)]
        jsonl(tmp_path / f"{name}.jsonl", rows)
    data = {"name": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "rest.jsonl"), "eval_fraction": 0}
    known = recipe_of(tiny_bert, data, {"name": "text_classification"})
    assert not found(report_of(known, tmp_path), "unknown")
