"""The report of a run, and of several side by side: one HTML file that loads nothing from elsewhere.

Notable:
- It is drawn from the run's folder alone, so that `report RUN` draws it again, of an unfinished run too.
- At the end of a run a report that cannot be drawn is told; the run and its figures stand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hf_llm_recipes import __version__, rundir
from hf_llm_recipes.errors import RunError, UserError
from hf_llm_recipes.markup import Html, bullets, element, note, number
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.reporting import charts, comparing, further, result, surroundings, training
from hf_llm_recipes.reporting.facts import Facts, read
from hf_llm_recipes.reporting.page import page
from hf_llm_recipes.rundir import RunDirectory, path_of, writing
from hf_llm_recipes.shipped import all_recipes

log = logging.getLogger("hf_llm_recipes")

REPORT, COMPARISON = "report.html", "comparison.html"
MOST_RUNS = 16  # of one comparison
Resolve = Callable[[Recipe], Any]  # ``run.plan``: a recipe -> something whose ``recipe`` has all defaults


def write(
    run: str | Path,
    output: str | Path | None = None,
    *,
    resolve: Resolve | None = None,
    running: bool = False,
) -> Path:
    """Writes the report of one run; returns where.

    Args:
        run: Its directory; it need not have finished.
        output: The file; ``report.html`` in the run's directory, unless it is given.
        resolve: Writes a recipe's defaults out; without it, the shipped recipe is not compared.
        running: Whether it is training just now.

    Raises:
        RunError: no run's directory, or the file cannot be written.
    """
    facts = read(run)
    facts.running = running
    text = run_page(facts, resolve)
    if output is None:
        directory = RunDirectory.existing(run)
        with writing(directory.path, "name another file with --output"):
            return directory.write_text(REPORT, text)
    return _written(output, text)


def write_comparison(runs: Sequence[str | Path], output: str | Path) -> Path:
    """Writes several runs side by side; returns where.

    Raises:
        RunError: one is no run's directory, one is named twice, too many, or the file cannot be written.
    """
    if len(runs) > MOST_RUNS:
        raise RunError(f"{len(runs)} runs are too many for one page", allowed=f"up to {MOST_RUNS}")
    seen: dict[Path, str] = {}
    for run in runs:
        place = path_of(run).resolve()
        if place in seen:
            raise RunError("is named twice", where=str(run), hint="name different runs")
        seen[place] = str(run)
    return _written(output, comparison_page([read(run) for run in runs]))


def write_meanwhile(directory: Path) -> None:
    """Writes the report of a run that is training; what goes wrong is told and costs no step."""
    write_at_end(directory, running=True)


def write_at_end(directory: Path, resolve: Resolve | None = None, *, running: bool = False) -> None:
    """Writes the report of a run that has just ended; what goes wrong is told and costs no result.

    Args:
        directory: Of the run.
        resolve: As for ``write``.
        running: As for ``write``.
    """
    try:
        write(directory, resolve=resolve, running=running)
    except Exception as error:  # whatever it is, hours of training are not to end in it
        log.warning(
            "%s was not written: %s: %s\n  the run itself is whole; try again with: hf-llm-recipes report %s",
            REPORT,
            type(error).__name__,
            error,
            directory,
        )


def run_page(facts: Facts, resolve: Resolve | None = None) -> str:
    """Returns the page of one run."""
    charts.restart()
    sections = [_made(make, facts) for make in SECTIONS]
    recipe = surroundings.recipe(facts, _shipped(facts, resolve))
    return page(facts.name, _made(_lead, facts), [*sections[:-2], recipe, *sections[-2:]], _footer())


def comparison_page(runs: Sequence[Facts]) -> str:
    """Returns the page of several runs."""
    charts.restart()
    names = comparing.names_of(runs)
    sections = [
        *(_state(run, name) for name, run in zip(names, runs, strict=True)),
        comparing.scores(runs, names),
        comparing.paired(runs, names),
        comparing.curves(runs, names),
        comparing.recipes(runs, names),
    ]
    lead = element("p", ", ".join(names), class_="lead")
    return page(f"{len(runs)} runs compared", lead, sections, _footer())


def _made(make: Callable[[Facts], Html], facts: Facts) -> Html:
    """A part of the page; where figures are not of the kind they should be, a sentence that says so."""
    try:
        return make(facts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = (
            f"{make.__name__.strip('_').replace('_', ' ')} cannot be drawn: {type(error).__name__}: {error}"
        )
        log.warning("%s: %s", facts.path, said)
        return element("section", note(said, "warning"), aria_label=said)


def _lead(facts: Facts) -> Html:
    """What was trained on what, in two sentences."""
    weights = facts.metrics.get("training", {}).get("parameters", {})
    model = facts.section("model")
    trained = f" ({weights['trainable']:,} of {weights['total']:,} weights)" if weights.get("total") else ""
    method = facts.section("method").get("name", "supervised")
    algorithm = facts.section("algorithm").get("name")
    method = f"{method} ({algorithm})" if algorithm else method
    what = (
        f"{model.get('name') or model.get('architecture') or 'a model'}, tuning "
        f"{facts.section('tuning').get('name', 'full')}{trained}, task "
        f"{facts.section('task').get('name', '?')}, method {method}."
    )
    splits = facts.environment.get("data", {}).get("splits", {})
    rows = ", ".join(f"{number(one.get('rows'))} {name}" for name, one in splits.items())
    data = f"Data: {facts.section('data').get('name', '?')}" + (f", rows: {rows}." if rows else ".")
    times = [one["time"] for one in facts.log if isinstance(one.get("time"), int | float)]
    last = datetime.fromtimestamp(times[-1], timezone.utc) if times else None
    ended = f" Last log {last:%Y-%m-%d %H:%M} UTC." if last else ""
    return element("p", f"{what} {data}{ended}", class_="lead")


def _state(facts: Facts, name: str = "") -> Html:
    """What is missing of the run, or could not be read; nothing of a whole one."""
    said: list[Any] = []
    of = f"{name}: " if name else ""
    if facts.running:
        now = datetime.now(timezone.utc)
        step = f"step {facts.log[-1]['step']:,}" if facts.log else "nothing is logged yet"
        said.append(note(f"{of}running: {step}, drawn {now:%Y-%m-%d %H:%M:%S} UTC. Load it again for more."))
    elif not facts.finished:
        steps = f" The log ends at step {facts.log[-1]['step']:,}." if facts.log else " Nothing was logged."
        command = RunDirectory(facts.path).resume_command()
        said.append(note(f"{of}This run has not finished: it was not judged.{steps}", "warning"))
        said.append(element("p", "To go on: ", element("code", command)))
    elif not (facts.path / rundir.MODEL / rundir.RECORD).is_file():
        said.append(note(f"{of}This run has no model: {rundir.MODEL}/ is missing or not whole.", "warning"))
    if facts.troubles:
        said.append(bullets(f"{of}{one}" for one in facts.troubles))
    return element("section", *said, aria_label=f"{of}State of the run") if said else Html("")


def _shipped(facts: Facts, resolve: Resolve | None) -> tuple[str, Sequence[str]] | None:
    """The shipped recipe of the run's name that is nearest to it, with what differs."""
    if resolve is None or facts.recipe is None:
        return None
    found = []
    for one in all_recipes():
        if facts.name not in (one.name, one.name.rsplit("/", 1)[-1]):
            continue
        try:
            theirs = resolve(Recipe.load(one.path)).recipe
        except (UserError, ImportError) as error:  # an extra that is not installed here
            log.info("the report compares no recipe: %s", error)
            continue
        found.append((one.name, theirs.differences(facts.recipe)))
    return min(found, key=lambda pair: len(pair[1]), default=None)


def _written(output: str | Path, text: str) -> Path:
    path = path_of(output)
    with writing(path, "name another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        RunDirectory(path.parent).write_text(path.name, text)
    return path


def _footer() -> str:
    drawn = "" if charts.can_draw() else " Curves are drawn with: pip install 'hf_llm_recipes[report]'."
    return f"Written by hf_llm_recipes {__version__}. This file loads nothing from elsewhere.{drawn}"


SECTIONS: tuple[Callable[[Facts], Html], ...] = (
    _state,
    result.result,
    training.curves,
    training.speed_and_memory,
    training.method,
    result.confusion,
    result.calibration,
    further.temperature,
    further.slices,
    further.robustness,
    result.remarkable_rows,
    further.attributions,
    training.samples,
    surroundings.data,
    surroundings.environment,
    surroundings.files,
)
