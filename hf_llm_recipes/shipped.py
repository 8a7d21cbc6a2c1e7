"""The recipes that come with the package: finding them, and reading their headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hf_llm_recipes.errors import RecipeError, did_you_mean

HEADER_KEYS = ("task", "method", "device", "time", "memory", "result", "command")


@dataclass(frozen=True)
class ShippedRecipe:
    """A shipped recipe's file and what its header says.

    Args:
        name: As ``run`` takes it, e.g. ``"classify/lora"``.
        path: The file.
        title: The header's first line.
        header: ``task``, ``method``, ``device``, ``time``, ``memory``, ``result``, ``command``.
    """

    name: str
    path: Path
    title: str
    header: dict[str, str]


def folder() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def all_recipes() -> list[ShippedRecipe]:
    """Every shipped recipe, by name."""
    root = folder()
    return sorted((_read(path, root) for path in root.rglob("*.yaml")), key=lambda recipe: recipe.name)


def find_recipe(wanted: str) -> Path:
    """Returns a recipe's file: a path as it is, else the shipped recipe of that name.

    Raises:
        RecipeError: neither; names the nearest.
    """
    path = Path(wanted)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        raise RecipeError(f"`{wanted[:60]}…` is no name of a file or a recipe") from None
    bare = re.sub(r"^recipes/", "", wanted.replace("\\", "/"))
    bare = re.sub(r"\.ya?ml$", "", bare)
    known = {recipe.name: recipe.path for recipe in all_recipes()}
    short = [name for name in known if name.rsplit("/", 1)[-1] == bare]
    if bare in known:
        return known[bare]
    if len(short) == 1:
        return known[short[0]]
    if path.exists():  # a folder; reading it says so
        return path
    raise RecipeError(
        f"there is no recipe `{wanted[:200]}`{did_you_mean(bare, known)}",
        allowed=f"a YAML file, or one of: {', '.join(known)}",
    )


def _read(path: Path, root: Path) -> ShippedRecipe:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    header: dict[str, str] = {}
    for line in lines[1:]:
        key, colon, value = line.partition(":")
        if colon and key in HEADER_KEYS:
            header[key] = value.strip()
    name = path.relative_to(root).with_suffix("").as_posix()
    return ShippedRecipe(name, path, lines[0] if lines else "", header)
