"""Planted faults in answers, windows and splits, and clean rows of which nothing is said."""

from types import SimpleNamespace

from _planted import jsonl, recipe_of, report_of, said

from hf_llm_recipes.checking import answers
from hf_llm_recipes.checking.probe import shortened
from hf_llm_recipes.errors import DataError

NAMES = ["ball", "team", "goal", "coach", "bread", "soup", "salt", "song", "drum", "tune", "oven", "band"]
TASK = {"name": "question_answering", "max_length": 14, "doc_stride": 4, "max_question_length": 2}


def row(one, other, question="the old", **more):
    """Which is old? The name behind that word; twelve words, which are two windows."""
    context = f"the good {other} was in the new score and the old {one} was"
    return {
        "question": question,
        "context": context,
        "answer": one,
        "answer_start": context.find(one),
        **more,
    }


def rows():
    return [row(one, NAMES[i - 1]) for i, one in enumerate(NAMES)]


def checked(tiny_bert, tmp_path, made, **task):
    data = {"name": jsonl(tmp_path / "rows.jsonl", made), "train": "train[:8]", "test": "train[8:]"}
    return report_of(recipe_of(tiny_bert, {**data, "eval_fraction": 0}, {**TASK, **task}), tmp_path)


def test_rows_without_a_fault(tiny_bert, tmp_path):
    report = checked(tiny_bert, tmp_path, rows())
    assert report.exit_code == 0
    assert not said(report, "answers")
    assert "leakage" not in {one.part for one in report.findings}
    assert report.labels["train"] == {"windows with the answer": 8, "windows without": 8}
    assert report.splits["train"]["length"]["unit"] == "windows"
    assert report.splits["train"]["rows_cut"] == 0
    assert report.model["reload"]["logits_max_difference"] < 1e-6
    assert report.model["batch_split"]["gradient_difference"] < 1e-4


def test_which_tokens_carry_loss(tiny_bert, tmp_path):
    report = checked(tiny_bert, tmp_path, rows())
    marked = {}
    for sample in report.samples:
        marked[sample.label] = [(piece.text.strip(), piece.note) for piece in sample.pieces if piece.loss]
    assert marked.pop("no answer in this window") == [("[CLS]", "start and end")]
    assert marked
    assert all(found == [(label.strip("'"), "start and end")] for label, found in marked.items())


def test_answers_at_another_place(tiny_bert, tmp_path):
    made = rows()
    made[2]["answer_start"] -= 4
    made[5]["answer"] = "plate"
    report = checked(tiny_bert, tmp_path, made)
    told = said(report, "answers")
    assert report.exit_code == 1
    assert "error: 2 of 8 rows (25.0 %) have no answer where they say: row 2: `answer_start` is" in told
    assert "(the nearest place that has it is" in told
    assert "row 5: `answer_start` is" in told
    assert "the context does not hold the answer" in told
    assert "`task.bad_rows: drop` leaves them out" in told
    dropped = checked(tiny_bert, tmp_path, made, bad_rows="drop")
    assert dropped.exit_code == 0
    assert "warning: 2 of 8 rows (25.0 %) have no answer where they say" in said(dropped, "answers")
    assert "as it is, these rows are left out" in said(dropped, "answers")
    assert "2 of 8 rows (25.0 %) cannot be learnt from and are left out" in said(dropped, "lengths")


def test_rows_without_an_answer(tiny_bert, tmp_path):
    made = rows()
    made[3] |= {"answer": "", "answer_start": None}
    report = checked(tiny_bert, tmp_path, made)
    assert "error: 1 of 8 rows (12.5 %) have no answer (rows 3)" in said(report, "answers")
    assert "`task.unanswerable: true`" in said(report, "answers")
    allowed = checked(tiny_bert, tmp_path, made, unanswerable=True)
    assert not said(allowed, "answers")


def test_answers_that_no_window_holds(tiny_bert, tmp_path):
    made = rows()
    context = made[1]["context"]
    made[1] |= {"answer": context[4:-4], "answer_start": 4}  # twelve of the fourteen tokens
    report = checked(tiny_bert, tmp_path, made)
    told = said(report, "answers")
    assert (
        "warning: in 1 of 8 rows (12.5 %) the answer lies in no window of 14 tokens, and are left out" in told
    )
    assert "2 of 14 windows hold a part of the answer and are taught that it is not there" in told


def test_answers_that_could_never_be_given(tiny_bert, tmp_path):
    made = rows()
    made[1] |= {"answer": "old ball" if "old ball" in made[1]["context"] else "old team"}
    made[1]["answer_start"] = made[1]["context"].find(made[1]["answer"])
    report = checked(tiny_bert, tmp_path, made, max_answer_length=1)
    assert "warning: 1 of 8 answers (12.5 %) have more tokens than `task.max_answer_length: 1`" in (
        said(report, "answers")
    )


def test_answers_that_stop_within_a_word(tiny_bert, tmp_path):
    made = rows()
    made[0] |= {"answer": made[0]["answer"][:3]}
    told = said(checked(tiny_bert, tmp_path, made), "answers")
    assert (
        "in 1 of 8 windows (12.5 %) the answer does not begin and end where tokens do, and more is learnt"
        in told
    )
    assert "row 0 has 'bal' and learns 'ball'" in told


def test_labels_that_say_something_else():
    (finding,) = answers.misaligned([(4, "the old", "ball"), (5, "ball", "ball")], "train split")
    assert finding.level == "error"
    assert (
        "in 1 of 2 windows the tokens that are learnt do not say the answer: row 4 has 'ball'" in finding.what
    )
    assert not answers.misaligned([(5, " ball", "ball")], "train split")


def test_questions_that_are_cut(tiny_bert, tmp_path):
    made = rows()
    made[0]["question"] = "the very old"
    assert "warning: 1 of 8 questions (12.5 %) are cut at their end" in (
        said(checked(tiny_bert, tmp_path, made), "answers")
    )


def test_contexts_that_splits_share(tiny_bert, tmp_path):
    made = rows()
    made[9] = row("ball", "band", question="a ball")  # train's row 0 asks about the same
    report = checked(tiny_bert, tmp_path, made)
    assert "warning: 1 of 4 rows (25.0 %) ask about a context of train: row 1 and train's row 0" in (
        said(report, "leakage")
    )
    made[9] = made[0]
    assert "error: 1 of 4 rows (25.0 %) are rows of train" in said(
        checked(tiny_bert, tmp_path, made), "leakage"
    )


def test_contexts_that_are_nearly_shared():
    text = " ".join(f"word{i}" for i in range(60))
    contexts = {"test": ["other", f"{text} end"], "train": ["first", text, text]}
    (finding,) = answers.nearly_shared(contexts, {"test": "test split", "train": "train split"})
    assert finding.what.startswith("1 of 2 contexts nearly repeat one of train: row 1's and train's row 1's")
    assert not answers.nearly_shared({"test": [text], "train": [text]}, {"test": "t", "train": "t"})


def test_one_question_with_two_answers(tiny_bert, tmp_path):
    made = rows()
    made[4] = {**made[0], "answer": "score", "answer_start": made[0]["context"].find("score")}
    told = said(checked(tiny_bert, tmp_path, made), "answers")
    assert (
        "1 questions have more than one answer to learn: 'the old' has 'ball' in row 0 and 'score' in row 4"
        in told
    )


def test_an_answer_that_cannot_be_read():
    bad = DataError("`answers` is 'x'", where="row 1")
    (finding,) = answers.wrong_places([("q", "c", []), ("q", "c", bad)], "train split", dropped=False)
    assert "1 of 2 rows (50.0 %) have no answer where they say: row 1: `answers` is 'x'" in finding.what
    (every,) = answers.without_answer([("q", "c", [])], "train split", allowed=True)
    assert every.do == "there is nothing to learn: check the columns"


def test_what_is_lost_of_all():
    counts = dict.fromkeys(
        ["windows_cut", "rows_too_long", "questions_cut", "rows_without_answer", "rows_bad"], 0
    )
    counts |= {"rows": 3, "rows_lost": 3, "max_length": 14, "windows": 9}
    task = SimpleNamespace(max_answer_length=30)
    (finding,) = answers.outside_windows(counts, "test split", task, learnt=False)
    assert finding.level == "error"
    assert "in 3 of 3 rows (100.0 %)" in finding.what
    assert "cannot be answered rightly" in finding.what


def test_a_window_is_cut_around_its_answer():
    window = {
        "input_ids": list(range(100)),
        "attention_mask": [1] * 100,
        "labels": [70, 72, 100],
        "context_at": 5,
    }
    cut = shortened(window, 20)
    start, end, length = cut["labels"]
    assert cut["input_ids"][start : end + 1] == [70, 71, 72]
    assert (length, len(cut["input_ids"]), len(cut["attention_mask"])) == (20, 20, 20)
    assert shortened({**window, "labels": [95, 99, 100]}, 20)["labels"] == [15, 19, 20]
    assert shortened({**window, "labels": [70, 99, 100]}, 20)["labels"] == [10, 19, 20]
