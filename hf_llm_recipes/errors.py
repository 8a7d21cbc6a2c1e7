"""Errors a user can act on: what happened, where, what is allowed, what to do.

The command line prints them without a traceback; in Python they are ordinary
``ValueError`` subclasses.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """A mistake in the input or the surroundings, not in the library.

    Args:
        what: One sentence with the offending value in it.
        where: ``file:line``, a key's path or a row, e.g. ``"train.csv:17"``.
        allowed: What would have been accepted.
        hint: What to do now.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.allowed, self.hint = what, where, allowed, hint
        lines = [f"{where}: {what}" if where else what]
        if allowed:
            lines.append(f"  allowed: {allowed}")
        if hint:
            lines.append(f"  do: {hint}")
        super().__init__("\n".join(lines))


class RecipeError(UserError):
    """A recipe (or an override on the command line) that cannot be run as written."""


class DataError(UserError):
    """Rows, files or columns that cannot be used as they are."""


class RunError(UserError):
    """A run that cannot start, go on or be read: its directory, disk, device or model."""


class InterruptedRunError(RunError):
    """Training was stopped by a signal after a checkpoint was written.

    Args:
        what: One sentence.
        number: Of the signal; the process ends with 128 more, as shells have it: 130 after Ctrl-C, 143
            after SIGTERM.
        **rest: Of ``UserError``.
    """

    def __init__(self, what: str, *, number: int = 2, **rest: str) -> None:
        super().__init__(what, **rest)
        self.exit_code = 128 + number


class MissingExtraError(ImportError):
    """An optional feature whose packages are not installed.

    Args:
        package: The module that could not be imported.
        extra: The extra of this package that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package `{package}`, which is not installed\n"
            f"  do: pip install 'hf_llm_recipes[{extra}]'"
        )


def visible(text: str) -> str:
    """Returns text that no terminal obeys: control characters but tab and line break become their escapes.

    Marks that turn the direction of writing are among them: what follows one would read as another text.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean `x`?)"`` for the nearest known name, or ``""``."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{near[0]}`?)" if near else ""
