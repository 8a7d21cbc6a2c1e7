"""A name in a recipe -> a class.

Notable:
- No hand-written list: a registry walks its folders, and the file's name is the
  registered name (``tasks/text_classification.py`` -> ``text_classification`` ->
  ``TextClassification``).
- Listing names imports nothing; a file is imported when its name is asked for.
- A user's module adds to a registry with the same decorator:
  ``@TASKS.register`` (named in the recipe's ``imports:``).
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from hf_llm_recipes.errors import RecipeError, did_you_mean

PACKAGE = "hf_llm_recipes"


def snake_case(class_name: str) -> str:
    """Returns the registered name of a class: ``TextClassification`` -> ``text_classification``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()


def registered_name(cls: type) -> str:
    """Returns the file's name where it is the class's (``fixmatch.py``: ``FixMatch``), else snake case."""
    file = cls.__module__.rpartition(".")[2]
    return file if file.replace("_", "") == cls.__name__.lower() else snake_case(cls.__name__)


class Registry:
    """The classes that one key of a recipe can name.

    Args:
        kind: What a user calls it, e.g. ``"task"``.
        folders: Folders of this package whose files hold the classes. Files that
            start with ``_`` and ``base.py`` hold none.
    """

    def __init__(self, kind: str, *folders: str) -> None:
        self.kind = kind
        self._folders = folders
        self._classes: dict[str, type] = {}

    def register(self, cls: type) -> type:
        """Class decorator: makes ``cls`` known under its file's name, else its own in snake case.

        Raises:
            ValueError: another class already has the name.
        """
        name = registered_name(cls)
        known = self._classes.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ValueError(f"{self.kind} `{name}` is already {known.__module__}.{known.__qualname__}")
        self._classes[name] = cls
        return cls

    def names(self) -> list[str]:
        """All registered names, sorted; imports none of the files."""
        return sorted({*self._files(), *self._classes})

    def get(self, name: str, *, where: str | None = None) -> type:
        """Returns the class of that name, importing its file first.

        Raises:
            RecipeError: no such name; names the nearest.
        """
        if name not in self._classes:
            module = self._files().get(name)
            if module is None:
                raise RecipeError(
                    f"unknown {self.kind} `{name}`{did_you_mean(name, self.names())}",
                    where=where,
                    allowed=", ".join(self.names()),
                )
            importlib.import_module(module)
            if name not in self._classes:
                raise ImportError(f"{module} registers no class named for `{name}`")
        return self._classes[name]

    def _files(self) -> dict[str, str]:
        root = Path(__file__).parent
        return {
            found.name: f"{PACKAGE}.{folder.replace('/', '.')}.{found.name}"
            for folder in self._folders
            for found in pkgutil.iter_modules([str(root / folder)])
            if not found.name.startswith("_") and found.name != "base" and not found.ispkg
        }


TASKS = Registry("task", "tasks", "objectives")
METHODS = Registry("method", "methods")
TUNINGS = Registry("tuning", "tuning")
CALLBACKS = Registry("callback", "callbacks")
ALGORITHMS = Registry("algorithm", "algorithms")
AUGMENTATIONS = Registry("augmentation", "data/augmentation")
CORPORA = Registry("corpus", "data/corpora")
STAGES = Registry("stage", "stages")
TARGETS = Registry("export target", "exporting")
