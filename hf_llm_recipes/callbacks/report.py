"""A page that is drawn while a training runs, so that one can look before it ends."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hf_llm_recipes.callbacks._bound import InRun, RunAround
from hf_llm_recipes.errors import RecipeError
from hf_llm_recipes.markup import Html, element, scrolling
from hf_llm_recipes.registry import CALLBACKS

FILE = "report.html"
SHARE = 0.02  # of the time that drawing may take: it waits otherwise
SPEEDS = ("runtime", "per_second")  # ends of names that say nothing of the model
MOST_ROWS = 50
WIDE, HIGH = 600, 200  # of a curve's picture
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:1rem auto;"
    "padding:0 1rem}.scroll{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.2rem .8rem .2rem 0;"
    "text-align:right;font-variant-numeric:tabular-nums}caption{text-align:left}svg{width:100%;"
    "max-width:38rem;height:auto}polyline{fill:none;stroke:currentColor;stroke-width:2}"
)


@CALLBACKS.register
class Report(InRun):
    """Draws ``report.html`` after evaluations; it says that it is of a running training, and of when.

    In a run it is the run's own page, which the finished run replaces. In a Trainer of your own it is a
    small one from the Trainer's log history, in ``output_dir``. Drawing that took t seconds is not done
    again before 50 t have passed.

    Args:
        every: Evaluations from one drawing to the next, ≥ 1.

    Raises:
        ValueError: a value out of range.
        RecipeError: there are no evaluations.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every is {every}; allowed: 1 or more")
        self.every = every
        self.run: RunAround | None = None
        self._wait_until = 0.0

    def enter(self, run: RunAround) -> None:
        """The page is the run's."""
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        """Checks that there will be something to draw after."""
        self._wait_until = 0.0
        if args.eval_strategy == "no":
            raise RecipeError(
                "report is drawn after evaluations, and there are none",
                hint="under `trainer:` add eval_strategy: steps, or take it out of `callbacks`",
            )

    def on_evaluate(self, args, state, control, **kwargs):
        """Draws, where it is time."""
        count = sum(_is_evaluation(one) for one in state.log_history)
        begun = time.monotonic()
        if not state.is_world_process_zero or count % self.every or begun < self._wait_until:
            return
        if self.run is not None:
            self.run.write_report()
        else:
            _write(args, state, "running")
        ended = time.monotonic()
        self._wait_until = ended + (ended - begun) / SHARE

    def on_train_end(self, args, state, control, **kwargs):
        """Draws the last page of a Trainer that is in no run."""
        if self.run is None and state.is_world_process_zero:
            _write(args, state, "ended")


def page(title: str, said: str, history: list[dict[str, Any]]) -> str:
    """Returns a small page of what a Trainer has logged.

    Args:
        title: Of the page.
        said: What state the training is in.
        history: ``trainer.state.log_history``.
    """
    curves = [_curve(name, history) for name in ("loss", "eval_loss")]
    tables = [
        _table("Evaluations", [one for one in history if _is_evaluation(one)]),
        _table("Training", [one for one in history if "loss" in one]),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("title", title),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("style", Html(STYLE)),
    )
    body = element("body", element("main", element("h1", title), element("p", said), *curves, *tables))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _write(args: Any, state: Any, what: str) -> None:
    now = datetime.now(timezone.utc)
    said = f"{what}: step {state.global_step:,} of {state.max_steps:,}, drawn {now:%Y-%m-%d %H:%M:%S} UTC"
    folder = Path(args.output_dir)
    side = folder / f".{FILE}.part"
    side.write_text(page(folder.resolve().name, said, state.log_history), encoding="utf-8")
    side.replace(folder / FILE)


def _is_evaluation(line: dict[str, Any]) -> bool:
    return any(name.startswith("eval_") and name.endswith("_runtime") for name in line)


def _curve(name: str, history: list[dict[str, Any]]) -> Html:
    points = [(one["step"], one[name]) for one in history if _is_finite(one.get(name))]
    if len(points) < 2:
        return Html("")
    first, last = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)
    wide, tall = max(last - first, 1), (high - low) or 1.0
    drawn = " ".join(
        f"{WIDE * (x - first) / wide:.1f},{HIGH - HIGH * (y - low) / tall:.1f}" for x, y in points
    )
    label = (
        f"{name}: {points[0][1]:.4g} at step {first:,}, {points[-1][1]:.4g} at step {last:,}, "
        f"lowest {low:.4g}, highest {high:.4g}"
    )
    box = f"-4 -4 {WIDE + 8} {HIGH + 8}"
    picture = element("svg", element("polyline", points=drawn), viewBox=box, role="img", aria_label=label)
    return element("figure", picture, element("figcaption", label))


def _table(title: str, lines: list[dict[str, Any]]) -> Html:
    if not lines:
        return Html("")
    names = [n for n in dict.fromkeys(n for one in lines for n in one) if not n.endswith(SPEEDS)]
    cut = f", the last {MOST_ROWS} of {len(lines)}" if len(lines) > MOST_ROWS else ""
    head = [element("th", name, scope="col") for name in names]
    rows = [[element("td", _shown(one.get(name))) for name in names] for one in lines[-MOST_ROWS:]]
    made = element(
        "table",
        element("caption", f"{title}{cut}"),
        element("thead", element("tr", *head)),
        element("tbody", *(element("tr", *row) for row in rows)),
    )
    return scrolling(made, title)


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")
