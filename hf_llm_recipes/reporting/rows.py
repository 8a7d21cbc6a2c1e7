"""The rows that a model gets wrong most surely, and those it is least sure of, from its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_llm_recipes.markup import Html, element, number, shortened, table

MOST = 10  # rows of a table
PROBABILITY = "probability_"
OURS = ("label", "predicted_label", "prediction", "probability", "predicted_spans")
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Ranking:
    """Rows in an order, and what is told of each.

    Args:
        title: Of the table.
        said: What the order is.
        rows: Numbers of the rows, first the most remarkable.
        header: Of the figures that are told.
        figures: Of one row.
    """

    title: str
    said: str
    rows: list[int]
    header: Sequence[str]
    figures: Callable[[int], Sequence[Any]]


def rankings(columns: Columns) -> list[Ranking]:
    """Returns what can be said of the rows of a run's predictions; nothing of columns not known."""
    if not columns or not next(iter(columns.values())):
        return []
    classes = [name.removeprefix(PROBABILITY) for name in columns if name.startswith(PROBABILITY)]
    labeled = "label" in columns and "predicted_label" in columns
    if classes and labeled and isinstance(columns["label"][0], str):
        return _single_label(columns, classes)
    if classes and labeled:
        return _multi_label(columns, classes)
    if "tokens" in columns and labeled:
        return _tagged(columns)
    if "prediction" in columns and "label" in columns:
        return _numbers(columns)
    if "gold" in columns and "answer_f1" in columns:
        return _answered(columns)
    if "reward" in columns:
        return _lowest(columns, "reward", "the lowest reward")
    if "chosen_logprob" in columns and "rejected_logprob" in columns:
        return _preferences(columns)
    if "loss" in columns and "tokens" in columns:
        return _unlikely(columns)
    return []


def tables(columns: Columns) -> list[Html]:
    """Returns a table a ranking."""
    made = []
    for one in rankings(columns):
        if not one.rows:
            continue
        rows = [
            [number(columns["row"][i] if "row" in columns else i), *one.figures(i), _text(columns, i)]
            for i in one.rows[:MOST]
        ]
        shown = _text(columns, one.rows[0]) != ""
        header = ["row", *one.header, *(["text"] if shown else [])]
        rows = rows if shown else [row[:-1] for row in rows]
        made.append(element("h3", one.title))
        made.append(table(f"{one.said}; rows count from 0", header, rows, numbers=[0]))
    return made


def _single_label(columns: Columns, classes: list[str]) -> list[Ranking]:
    labels, predicted = columns["label"], columns["predicted_label"]
    count = range(len(labels))
    ordered = [sorted((columns[PROBABILITY + name][i] for name in classes), reverse=True) for i in count]
    wrong = [i for i in count if labels[i] != predicted[i]]
    margin = [one[0] - one[1] if len(one) > 1 else one[0] for one in ordered]

    def figures(i: int) -> Sequence[Any]:
        top = columns[PROBABILITY + predicted[i]][i]
        of_label = columns.get(PROBABILITY + labels[i])
        return (
            labels[i],
            element("span", predicted[i], class_="good" if labels[i] == predicted[i] else "bad"),
            number(top, 3),
            number(of_label[i], 3) if of_label else "–",
        )

    header = ("label", "answer", "probability", "of the label")
    return [
        Ranking(
            "Surest mistakes",
            f"{len(wrong):,} of {len(labels):,} rows are wrong; those whose answer was surest",
            sorted(wrong, key=lambda i: -ordered[i][0]),
            header,
            figures,
        ),
        Ranking(
            "Least sure answers",
            "rows whose two likeliest answers lie nearest, right ones among them",
            sorted(count, key=lambda i: margin[i]),
            header,
            figures,
        ),
    ]


def _multi_label(columns: Columns, classes: list[str]) -> list[Ranking]:
    labels, predicted = columns["label"], columns["predicted_label"]
    count = range(len(labels))

    def off(i: int) -> float:
        return max(abs((name in labels[i]) - columns[PROBABILITY + name][i]) for name in classes)

    def unsure(i: int) -> float:
        return min(abs(columns[PROBABILITY + name][i] - 0.5) for name in classes)

    def figures(i: int) -> Sequence[Any]:
        return (
            ", ".join(labels[i]) or "none",
            ", ".join(predicted[i]) or "none",
            number(off(i), 3),
            number(0.5 + unsure(i), 3),
        )

    header = ("labels", "answer", "largest error", "least sure decision")
    wrong = [i for i in count if set(labels[i]) != set(predicted[i])]
    return [
        Ranking(
            "Surest mistakes",
            f"{len(wrong):,} of {len(labels):,} rows are wrong; those with the largest error of one label",
            sorted(wrong, key=lambda i: -off(i)),
            header,
            figures,
        ),
        Ranking(
            "Least sure answers",
            "rows with a label whose probability is nearest to one half",
            sorted(count, key=unsure),
            header,
            figures,
        ),
    ]


def _tagged(columns: Columns) -> list[Ranking]:
    labels, predicted = columns["label"], columns["predicted_label"]
    sure = columns.get("probability")

    def wrong(i: int) -> int:
        return sum(a is not None and a != b for a, b in zip(labels[i], predicted[i], strict=False))

    def least(i: int) -> float:
        return min((p for p in sure[i] if p is not None), default=1.0) if sure else 1.0

    def figures(i: int) -> Sequence[Any]:
        return (number(wrong(i)), number(len(labels[i])), number(least(i), 3))

    rows = [i for i in range(len(labels)) if wrong(i)]
    return [
        Ranking(
            "Most words wrong",
            f"{len(rows):,} of {len(labels):,} rows have a wrong word; wrong words are marked label → answer",
            sorted(rows, key=lambda i: -wrong(i)),
            ("words wrong", "words", "least probability"),
            figures,
        )
    ]


def _numbers(columns: Columns) -> list[Ranking]:
    targets, found = columns["label"], columns["prediction"]
    return [
        Ranking(
            "Largest errors",
            "rows whose prediction is farthest off",
            sorted(range(len(targets)), key=lambda i: -abs(targets[i] - found[i])),
            ("label", "prediction", "error"),
            lambda i: (number(targets[i]), number(found[i]), number(found[i] - targets[i])),
        )
    ]


def _answered(columns: Columns) -> list[Ranking]:
    scores, count = columns["score"], len(columns["score"])
    wrong = [i for i in range(count) if not columns["exact_match"][i]]

    def figures(i: int) -> Sequence[Any]:
        golds, answer = " | ".join(columns["gold"][i]), columns["answer"][i]
        said = element("span", answer or "no answer", class_="bad")
        return golds or "no answer", said, number(scores[i], 3), number(columns["answer_f1"][i], 3)

    return [
        Ranking(
            "Surest mistakes",
            f"{len(wrong):,} of {count:,} answers are not exactly right; those that were surest",
            sorted(wrong, key=lambda i: -scores[i]),
            ("right", "answer", "probability", "F1"),
            figures,
        )
    ]


def _lowest(columns: Columns, key: str, said: str) -> list[Ranking]:
    values = columns[key]
    return [
        Ranking(
            "Worst answers",
            f"rows with {said}",
            sorted(range(len(values)), key=lambda i: values[i]),
            (key,),
            lambda i: (number(values[i], 3),),
        )
    ]


def _preferences(columns: Columns) -> list[Ranking]:
    margins = [a - b for a, b in zip(columns["chosen_logprob"], columns["rejected_logprob"], strict=True)]
    return [
        Ranking(
            "Preferences missed by most",
            "rows whose rejected answer is most likely beside the chosen one; margin in nats",
            sorted(range(len(margins)), key=lambda i: margins[i]),
            ("margin", "chosen log-probability", "rejected log-probability"),
            lambda i: (
                number(margins[i], 3),
                number(columns["chosen_logprob"][i], 3),
                number(columns["rejected_logprob"][i], 3),
            ),
        )
    ]


def _unlikely(columns: Columns) -> list[Ranking]:
    each = [
        loss / tokens if tokens else 0.0
        for loss, tokens in zip(columns["loss"], columns["tokens"], strict=True)
    ]
    return [
        Ranking(
            "Least likely texts",
            "rows with the highest loss a token, in nats",
            sorted(range(len(each)), key=lambda i: -each[i]),
            ("loss a token", "tokens"),
            lambda i: (number(each[i], 3), number(columns["tokens"][i])),
        )
    ]


def _text(columns: Columns, i: int) -> Any:
    """What the row says, as far as it is kept; a tagged row with its mistakes."""
    if "tokens" in columns and "label" in columns:
        return element("div", _words(columns, i), class_="text")
    said = [
        (name, values[i])
        for name, values in columns.items()
        if name not in OURS and not name.startswith(PROBABILITY) and isinstance(values[i], str)
    ]
    if not said:
        return ""
    text = "\n".join(f"{name}: {value}" if len(said) > 1 else value for name, value in said)
    return element("div", shortened(text), class_="text")


def _words(columns: Columns, i: int) -> str:
    said = []
    for word, label, answer in zip(
        columns["tokens"][i], columns["label"][i], columns["predicted_label"][i], strict=False
    ):
        said.append(word if label == answer or label is None else f"{word} [{label} → {answer}]")
    return shortened(" ".join(map(str, said)))
