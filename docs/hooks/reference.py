"""mkdocs hook: the reference pages, walked out of the code at every build; nothing of them is kept by hand.

Notable:
- The fields are those that the strict reader of recipes takes (``recipe._signature``), so that a page cannot
  name a key that a recipe refuses.
- Registries, commands and public names are found, not listed: a new file is on the page of its kind.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.structure.files import File

import hf_llm_recipes
from hf_llm_recipes import planning, recipe, registry, shipped
from hf_llm_recipes.cli import app
from hf_llm_recipes.registry import METHODS, Registry

REFERENCE = "reference"
API = "api"
KEYS = {  # top-level keys that no registered class reads; what they do is said here alone
    "name": "Of the run; its folder is `runs/NAME`. Without it the file's name.",
    "output": "The run's folder, in place of `runs/NAME`.",
    "resume": "`true` goes on in the folder `output`, from its last whole checkpoint.",
    "seed": f"Of every random source; {planning.SEED} if not given.",
    "imports": "Modules of yours that register blocks; read only with `trust_imports: true`.",
    "trust_imports": "Allows `imports:` and rewards of yours to run.",
    "compare": "`true` trains the supervised baseline too and prints the paired difference.",
}
READERS = {  # classes that are in no registry; the build fails where a key has no reader here and no registry
    "model": "hf_llm_recipes.tuning._model.ModelSource",
    "data": "hf_llm_recipes.data.loading.Source",
    "evaluate": "hf_llm_recipes.assessing.section.Assessment",
    "push_to_hub": "hf_llm_recipes.hub.PushToHub",
    "trainer": None,
    "quantization": None,
}


def on_config(config):
    """Puts the generated pages behind those that are written."""
    config.nav.append({"Reference": [{title: address} for title, address, _ in reference_pages()]})
    config.nav.append({"Python": [{title: address} for title, address, _ in api_pages()]})
    return config


def on_files(files, config):
    """Adds the generated pages."""
    for _, address, text in (*reference_pages(), *api_pages()):
        files.append(File.generated(config, address, content=text))
    return files


def on_post_page(output, **_):
    """Names the theme's search dialog for screen readers."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def registries() -> dict[str, Registry]:
    """``{"tasks": …}``: every registry of the package."""
    return {name.lower(): one for name, one in vars(registry).items() if isinstance(one, Registry)}


@functools.cache
def reference_pages() -> list[tuple[str, str, str]]:
    """Title, address and Markdown of every page about recipes and commands."""
    pages = [
        ("A recipe's keys", f"{REFERENCE}/recipe.md", _recipe_page()),
        *((name.capitalize(), f"{REFERENCE}/{name}.md", _registry_page(name)) for name in registries()),
        ("Shipped recipes", f"{REFERENCE}/recipes.md", _recipes_page()),
        ("Command line", f"{REFERENCE}/command-line.md", _commands_page()),
    ]
    return pages


@functools.cache
def api_pages() -> list[tuple[str, str, str]]:
    """Title, address and Markdown of every page about Python; mkdocstrings fills them."""
    public = [f"hf_llm_recipes.{module}.{name}" for name, module in hf_llm_recipes._NAMES.items()]
    public.insert(0, "hf_llm_recipes.load")
    callbacks = [_path(registry.CALLBACKS.get(name)) for name in registry.CALLBACKS.names()]
    root = Path(hf_llm_recipes.__file__).parent
    models = [f"hf_llm_recipes.models.{file.stem}" for file in sorted((root / "models").glob("[a-z]*.py"))]
    bases = sorted(
        ".".join(file.relative_to(root.parent).with_suffix("").parts) for file in root.rglob("base.py")
    )
    bases = [base for base in bases if ".models." not in base]
    errors = ["hf_llm_recipes.errors"]
    pages = (
        ("Running and loading", "python", "`import hf_llm_recipes` imports no torch.", public),
        ("Callbacks", "callbacks", "Each works in any plain `Trainer`.", callbacks),
        ("Architectures", "models", "To read; their code travels with a checkpoint.", models),
        ("Base classes", "bases", "What a block of yours inherits from.", bases),
        ("Errors", "errors", "What happened, where, what is allowed, what to do.", errors),
    )
    return [
        (title, f"{API}/{name}.md", f"# {title}\n\n{said}\n\n" + "\n".join(f"::: {one}\n" for one in found))
        for title, name, said, found in pages
    ]


def block(cls: type, rest: type | None = None, refused: dict[str, str] | None = None) -> str:
    """A class's docstring, and its arguments as a table."""
    text, told, raises = _docstring(cls)
    defaults = _defaults(cls)
    rows = [
        f"| `{key}` | {_cell(recipe._describe(hint))} "
        f"| {'required' if required else _code(defaults.get(key))} | {_cell(told.get(key, ''))} |"
        for key, (hint, required) in recipe._signature(cls).items()
    ]
    parts = [text]
    if rows:
        parts.append("| key | takes | default | |\n|---|---|---|---|\n" + "\n".join(rows))
    if rest is not None:
        parts.append(f"Other keys are arguments of `{_path(rest)}`.")
    if refused:
        parts.append(_refused(refused))
    parts += [f"Refused: {_inline(what)}" for what in raises]
    return "\n\n".join(part for part in parts if part) + "\n"


def _registry_page(name: str) -> str:
    found = registries()[name]
    use = next((f"{key}: NAME" for key in recipe.SECTIONS if key == found.kind), None)
    use = use or next((f"{key}: [{{name: NAME}}]" for key in recipe.LISTS if key in (found.kind, name)), None)
    use = use or "data: {name: local/NAME}"
    parts = [f"# {name.capitalize()}\n\nIn a recipe: `{use}`."]
    for one in found.names():
        cls = found.get(one)
        extra = {}
        if found is registry.TUNINGS:
            extra = {"rest": cls.rest(), "refused": cls.refused()}
        shown = one.replace("_", "-") if found is registry.CORPORA else one
        parts.append(f"## {shown}\n\n`{_path(cls)}`\n\n{block(cls, **extra)}")
        if found is METHODS:
            parts.append(f"`trainer:` is read by `{_path(cls.arguments_class())}`.")
    return "\n\n".join(parts) + "\n"


def _recipe_page() -> str:
    from transformers import BitsAndBytesConfig

    kinds = {found.kind: name for name, found in registries().items()}
    rows = []
    for key in recipe.TOP_KEYS:
        page = key if key in registries() else kinds.get(key)
        if key not in KEYS and key not in READERS and page is None:
            raise LookupError(f"the key `{key}` of a recipe has no place in {REFERENCE}/recipe.md")
        said = KEYS.get(key) or (f"See [{page}]({page}.md)." if page else f"See [below](#{key}).")
        takes = recipe._describe(recipe.SCALARS[key]) if key in recipe.SCALARS else "a section"
        rows.append(f"| `{key}` | {'a list' if key in recipe.LISTS else takes} | {said} |")
    sections = "\n".join(f"## {key}\n\n{block(_class(path))}" for key, path in READERS.items() if path)
    method = METHODS.get("supervised")
    ours = {**planning.TRAINER_DEFAULTS, **method.argument_defaults()}
    defaults = "\n".join(f"| `{key}` | `{value}` |" for key, value in ours.items())
    return f"""# A recipe's keys

A section is the keyword arguments of one class. `hf-llm-recipes show RECIPE` prints all defaults and
the class that reads each section. An unknown key is an error with its line and the nearest known name.

| key | takes | |
|---|---|---|
{chr(10).join(rows)}

{sections}
## trainer

The arguments of the method's own class, for most methods `{_path(method.arguments_class())}`;
[Methods](methods.md) names each. Where upstream's default would surprise, this package has another:

| key | default here |
|---|---|
{defaults}

{_refused(planning.TRAINER_REFUSED)}

## quantization

The arguments of `{_path(BitsAndBytesConfig)}`; one of `load_in_4bit: true` and `load_in_8bit: true` is given.
"""


def _recipes_page() -> str:
    parts = ["# Shipped recipes\n\nAs `hf-llm-recipes run NAME` and `hf-llm-recipes copy NAME` take them."]
    for one in shipped.all_recipes():
        header = "\n".join(f"| {key} | {_cell(value)} |" for key, value in one.header.items())
        text = "\n".join(f"    {line}" for line in one.path.read_text(encoding="utf-8").splitlines())
        parts.append(
            f"## {one.name}\n\n{_inline(one.title)}\n\n| | |\n|---|---|\n{header}\n\n"
            f'??? note "The file"\n\n    ```yaml\n{text}\n    ```'
        )
    return "\n\n".join(parts) + "\n"


def _commands_page() -> str:
    parts = ["# Command line\n\n`hf-llm-recipes COMMAND --help` says the same."]
    for name, command in typer.main.get_command(app).commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
        words = " ".join(_argument(p) for p in arguments)
        rows = [f"| `{p.name.upper()}` | | {_cell(p.help or '')} |" for p in arguments]
        rows += [
            f"| `{', '.join((*p.opts, *p.secondary_opts))}` "
            f"| {_code(_shown_default(p))} | {_cell(p.help or '')} |"
            for p in options
        ]
        table = "| | default | |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
        said = _inline(inspect.cleandoc(command.help or ""))
        parts.append(f"## {name}\n\n```text\nhf-llm-recipes {name} {words}\n```\n\n{said}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _argument(parameter: Any) -> str:
    word = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return word if parameter.required else f"[{word}]"


def _shown_default(parameter: Any) -> Any:
    value = parameter.default
    return None if value is None or value is ... or value == [] else value


def _docstring(cls: type) -> tuple[str, dict[str, str], list[str]]:
    """Text, ``{argument: what it is}`` and what is raised, of a class's Google docstring."""
    text, told, raises = [], {}, []
    for section in griffe.parse_google(griffe.Docstring(inspect.getdoc(cls) or ""), warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            text.append(_inline(section.value))
        elif section.kind is griffe.DocstringSectionKind.parameters:
            told |= {one.name: one.description for one in section.value}
        elif section.kind is griffe.DocstringSectionKind.raises:
            raises += [one.description for one in section.value]
    text += [_inline(f"`{name}`: {what}") for name, what in told.items() if name.startswith("*")]
    return "\n\n".join(text), told, raises


def _defaults(cls: type) -> dict[str, Any]:
    found = {name: one.default for name, one in inspect.signature(cls).parameters.items()}
    for one in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if one.default_factory is not dataclasses.MISSING:
            found[one.name] = one.default_factory()
    return found


def _refused(refused: dict[str, str]) -> str:
    rows = "\n".join(f"| `{key}` | {_cell(why)} |" for key, why in refused.items())
    return f"Not to be set:\n\n| key | instead |\n|---|---|\n{rows}"


def _inline(text: str) -> str:
    """Docstring text as Markdown: ``code`` becomes `code`, and no angle bracket opens a tag."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(piece if piece.startswith("`") else piece.replace("<", "&lt;") for piece in pieces)


def _cell(text: str) -> str:
    return " ".join(_inline(text).split()).replace("|", "\\|")


def _code(value: Any) -> str:
    if value is None:
        return ""
    shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else str(value)
    return "`" + shown.replace("|", "\\|") + "`"


def _class(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _path(found: type) -> str:
    module = importlib.import_module(found.__module__)
    return f"{module.__name__}.{found.__qualname__}"
