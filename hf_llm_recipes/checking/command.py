"""`hf-llm-recipes check`: a recipe's file -> its report, and the report to terminal, JSON or HTML."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from hf_llm_recipes.checking.base import Report
from hf_llm_recipes.errors import RunError, UserError
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.shipped import find_recipe


def check_file(recipe: str, overrides: Sequence[str], *, estimate: bool = True) -> Report:
    """Returns the report of a recipe; one that cannot be read is a finding, too.

    Args:
        recipe: A file or a name.
        overrides: ``key=value``.
        estimate: Whether memory and time are estimated.
    """
    report = Report(recipe)
    with report.timed("recipe"):
        try:
            loaded = Recipe.load(find_recipe(recipe), overrides)
        except UserError as error:
            report.refused("recipe", error)
            return report
    import datasets

    from hf_llm_recipes.checking.core import check

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return check(loaded, estimate=estimate)


def write(report: Report, *, as_json: bool, html: Path | None) -> None:
    """Writes a report to the terminal or, as JSON, to stdout; and to a page where one is named.

    Raises:
        RunError: the page cannot be written.
    """
    if html is not None:
        from hf_llm_recipes.checking.page import page

        try:
            html.write_text(page(report), encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(html)) from error
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
        return
    from hf_llm_recipes.checking.screen import show

    show(report, Console(width=None if sys.stdout.isatty() else 120))
