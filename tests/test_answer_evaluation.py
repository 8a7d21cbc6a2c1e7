"""Scores of answers: worked by hand, and against the published formulas written out again."""

import re
import string
from collections import Counter

import pytest

from hf_llm_recipes.answer_evaluation import answering, exact_match, f1, parts
from hf_llm_recipes.errors import DataError

# answer, right answers, exact match, F1
SQUAD = [
    ("The Eiffel Tower!", ["Eiffel Tower"], 1, 1.0),
    ("in Paris, France", ["Paris"], 0, 0.5),  # precision 1/3, recall 1
    ("Paris", ["Lyon", "in Paris"], 0, 2 / 3),  # the better of 0 and (1, 1/2)
    ("a b b", ["b b c"], 0, 0.8),  # without the article: "b b" against "b b c"
    ("Lyon", ["Paris"], 0, 0.0),
    ("", ["Paris"], 0, 0.0),
    ("", [], 1, 1.0),
    ("Paris", [], 0, 0.0),
]
# longest run of parts over the lengths: 2 · run / (answer + gold)
CMRC = [
    ("踢爆，", ["踢爆"], 1, 1.0),
    ("光荣和", ["光荣和ω-force"], 0, 6 / 7),  # 光 荣 和 ωforce
    ("甲乙丙丁", ["甲丙丁"], 0, 4 / 7),  # the run is 丙丁, the common characters were three
    ("8 人", ["8人"], 0, 1.0),
    ("乙", ["甲"], 0, 0.0),
]


@pytest.mark.parametrize(
    ("rule", "case"), [("squad", c) for c in SQUAD] + [("cmrc", c) for c in CMRC], ids=lambda c: str(c)[:30]
)
def test_a_score_worked_by_hand(rule, case):
    answer, golds, exact, overlap = case
    assert exact_match(answer, golds, rule) == exact
    assert f1(answer, golds, rule) == pytest.approx(overlap)


def published(answer, golds):
    """SQuAD 2.0's evaluation, written from its description: exact match and F1 of one question."""

    def plain(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def overlap(gold):
        ours, theirs = plain(answer).split(), plain(gold).split()
        if not ours or not theirs:
            return int(ours == theirs)
        same = sum((Counter(ours) & Counter(theirs)).values())
        if not same:
            return 0
        precision, recall = same / len(ours), same / len(theirs)
        return 2 * precision * recall / (precision + recall)

    golds = [gold for gold in golds if plain(gold)] or [""]
    return max(int(plain(answer) == plain(gold)) for gold in golds), max(map(overlap, golds))


def test_the_whole_is_that_of_the_published_script():
    more = [
        ("It was the team's 3rd goal.", ["the teams 3rd goal", "3rd goal"]),
        ("the", ["The."]),
        ("é a", ["É"]),
    ]
    cases = [case[:2] for case in SQUAD] + more
    wanted = [published(*case) for case in cases]
    found = answering(*zip(*cases, strict=True), bootstrap=0)
    assert found["exact_match"] == pytest.approx(sum(one for one, _ in wanted) / len(cases))
    assert found["answer_f1"] == pytest.approx(sum(one for _, one in wanted) / len(cases))
    assert len({value for _, value in wanted}) > 3


def test_what_is_reported_and_its_intervals():
    answers, golds, exact, overlaps = zip(*SQUAD, strict=True)
    found = answering(answers, golds, bootstrap=200)
    assert (found["problem"], found["rows"], found["scoring"]) == ("answers", 8, "squad")
    assert found["counts"] == {"answerable": 6, "answered": 6}
    assert found["exact_match"] == sum(exact) / 8
    assert found["exact_match_answerable"] == pytest.approx(1 / 6)
    assert found["answer_f1_answerable"] == pytest.approx(sum(overlaps[:6]) / 6)
    assert found["right_to_be_silent"] == 0.5
    for name, (low, high) in found["intervals_95"].items():
        assert low <= found[name] <= high
    assert low < high
    again = answering(answers, golds, bootstrap=200)
    assert again["intervals_95"] == found["intervals_95"]


def test_the_parts_of_silence_are_told_only_where_there_are_both():
    assert "right_to_be_silent" not in answering(["x", "y"], [["x"], ["z"]], bootstrap=0)
    alone = answering(["x"], [["x"]])
    assert alone["notes"] == ["one row: no interval can be given"]
    assert alone["intervals_95"] == {}


def test_parts_of_mixed_text():
    assert parts("在GPU 上，用了3.5秒", "cmrc") == ["在", "gpu", "上", "用", "了", "3", ".", "5", "秒"]
    assert parts("The state-of-the-art", "squad") == ["stateoftheart"]


@pytest.mark.parametrize(
    ("answers", "golds", "rule", "message"),
    [
        ([], [], "squad", "0 answers to 0 questions"),
        (["a"], [["a"], ["b"]], "squad", "1 answers to 2 questions"),
        (["a"], [["a"]], "words", "scoring is 'words'"),
    ],
)
def test_what_cannot_be_scored(answers, golds, rule, message):
    with pytest.raises(DataError) as caught:
        answering(answers, golds, scoring=rule)
    assert message in str(caught.value)
