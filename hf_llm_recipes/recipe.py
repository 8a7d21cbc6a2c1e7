"""A recipe: one YAML file read strictly, with the line of every key kept for messages.

Notable:
- A section is the keyword arguments of exactly one class. ``Recipe.arguments`` checks a
  section against that class's own fields, so no upstream option is declared again.
- YAML 1.2 scalars: ``2e-5`` is a number, ``no`` is a word, ``null`` means "not given".
- No torch here. The classes that sections are checked against are handed in by ``run``.
"""

from __future__ import annotations

import collections.abc
import copy
import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hf_llm_recipes.errors import RecipeError, UserError, did_you_mean
from hf_llm_recipes.registry import Registry

SCALARS: dict[str, Any] = {
    "name": str,
    "output": str,
    "resume": bool,
    "seed": int,
    "imports": list[str],
    "trust_imports": bool,
    "compare": bool,
    "push_to_hub": dict | str | bool,
}
SECTIONS = ("model", "tuning", "quantization", "data", "task", "method", "algorithm", "trainer", "evaluate")
LISTS = ("augmentation", "stages", "callbacks")
TOP_KEYS = (*SCALARS, *SECTIONS, *LISTS)
MAX_NODES = 10_000  # a recipe has some dozens; this bounds alias bombs
MAX_DEPTH = 20
MAX_BYTES = 1_000_000  # of a file; a recipe has some thousands

_CORE_SCHEMA = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _CORE_SCHEMA:
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _to_float(node.value))


_YAML = "tag:yaml.org,2002:"
_TAGS = {_YAML + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


def _to_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


Place = tuple  # the path of a key, e.g. ("trainer", "learning_rate") or ("callbacks", 0, "name")


@dataclasses.dataclass
class Recipe:
    """One run, as written.

    Args:
        values: The sections as plain Python values.
        source: What messages call the file.
        places: The line of each key (``"recipes/x.yaml:12"``), or the override that set it.
    """

    values: dict[str, Any]
    source: str = "recipe"
    places: dict[Place, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Reads a YAML file and applies ``key=value`` overrides to it.

        Raises:
            RecipeError: the file cannot be read, is no YAML mapping, has an unknown or doubled
                top-level key, or an override is malformed.
        """
        path = Path(path)
        recipe = cls.from_text(_file_text(path), source=str(path))
        recipe.values.setdefault("name", path.stem if _is_file_name(path.stem) else "run")
        for override in overrides:
            recipe.override(override)
        return recipe

    @classmethod
    def from_text(cls, text: str, source: str = "recipe") -> Recipe:
        """Reads YAML text; see ``load``."""
        values, places = _parse(text, source)
        if values is None:
            raise RecipeError("is empty", where=source, allowed=", ".join(TOP_KEYS))
        if not isinstance(values, dict):
            raise RecipeError(
                f"is a {_kind(values)}, not a mapping of keys", where=source, allowed=", ".join(TOP_KEYS)
            )
        recipe = cls(values, source, places)
        recipe._check_top()
        return recipe

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "recipe") -> Recipe:
        """A recipe from plain Python values, checked like a file."""
        recipe = cls(copy.deepcopy(values), source)
        recipe._check_top()
        return recipe

    @property
    def name(self) -> str:
        """The run's name: the key ``name``, else the file's."""
        return self.values.get("name", "run")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a top-level key, ``default`` where it is not given or null."""
        value = self.values.get(key)
        return default if value is None else value

    def where(self, *path: str | int) -> str:
        """``file:line`` (or the override) that set the key, or its nearest parent's."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.source

    def override(self, text: str) -> None:
        """Applies one ``a.b.c=value``; the value is read as YAML. ``a.b=null`` takes a key out.

        Raises:
            RecipeError: no ``=``, an empty path, or a path through something that has no keys.
        """
        dotted, equals, raw = text.partition("=")
        where = f"override `{text}`"
        path = tuple(int(part) if part.isdigit() else part for part in dotted.strip().split("."))
        if not equals or not all(part != "" for part in path):
            raise RecipeError("is not key=value", where=where, hint="e.g. trainer.max_steps=20")
        value, _ = _parse(raw, where)
        parent = self._parent(path, where)
        _assign(parent, path[-1], value, where)
        for place in [p for p in self.places if p[: len(path)] == path]:
            del self.places[place]
        self.places[path] = where
        for end in range(1, len(path)):
            self.places.setdefault(path[:end], where)
        self._check_top()

    def named(self, registry: Registry, *path: str | int, default: str | None = None) -> type:
        """Returns the class that a section names by its key ``name``.

        A section may be the bare name: ``tuning: full`` is ``tuning: {name: full}``.

        Raises:
            RecipeError: no name given, or unknown.
        """
        section = self.section(*path)
        name = section.get("name", default)
        if name is None:
            raise RecipeError(
                f"{_dotted(path)} needs a name",
                where=self.where(*path),
                allowed=", ".join(registry.names()),
            )
        if not isinstance(name, str):
            raise RecipeError(
                f"{_dotted(path)}.name is {_show(name)}, not a word", where=self.where(*path, "name")
            )
        return registry.get(name, where=f"{self.where(*path, 'name')}: {_dotted(path)}")

    def section(self, *path: str | int) -> dict[str, Any]:
        """Returns a section as a mapping; a bare name becomes ``{"name": …}``, nothing ``{}``."""
        value: Any = self.values
        for part in path:
            value = value[part] if isinstance(part, int) else value.get(part)
        if value is None:
            return {}
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            raise RecipeError(
                f"{_dotted(path)} is a {_kind(value)}, not a mapping of keys", where=self.where(*path)
            )
        return value

    def arguments(
        self,
        *path: str | int,
        cls: type,
        rest: type | None = None,
        named: bool = False,
        refused: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Returns a section's keys, checked against the arguments of the class that reads it.

        Args:
            *path: The section.
            cls: The class whose keyword arguments the section is.
            rest: A class to which ``cls`` passes what it does not take itself.
            named: Whether the section's ``name`` chose the class (then it is left out).
            refused: Arguments that a recipe may not set, with what to do instead.

        Raises:
            RecipeError: unknown or refused key, wrong type, or a required key is missing.
        """
        given = {k: v for k, v in self.section(*path).items() if not (named and k == "name")}
        known = {**(_signature(rest) if rest else {}), **_signature(cls)}
        refused = refused or {}
        for key, value in given.items():
            self._check_key((*path, key), value, known, refused)
            inner = _inner_section(known[key][0])
            if inner is not None and isinstance(value, dict):
                self.arguments(*path, key, cls=inner)
        missing = [k for k, (_, required) in known.items() if required and given.get(k) is None]
        if missing:
            raise RecipeError(
                f"{_dotted((*path, missing[0]))} is missing",
                where=self.where(*path),
                allowed=f"{_describe(known[missing[0]][0])}",
                hint=f"add `{missing[0]}:` under `{_dotted(path)}:`",
            )
        return given

    def build(
        self,
        *path: str | int,
        cls: type,
        rest: type | None = None,
        named: bool = False,
        refused: dict[str, str] | None = None,
    ) -> Any:
        """Returns ``cls(**section)``; what the class itself refuses is reported at the section's line.

        Raises:
            RecipeError: as ``arguments``, or the class raised ValueError or TypeError.
        """
        given = self.arguments(*path, cls=cls, rest=rest, named=named, refused=refused)
        return self.located(lambda: cls(**given), *path)

    def located(self, make: typing.Callable[[], Any], *path: str | int) -> Any:
        """Returns ``make()``; its ValueError or TypeError becomes a RecipeError with the line.

        A ``UserError`` stays what it is; one that names no place, or only a key of the section
        (``data.columns``), gets the line.
        """
        try:
            return make()
        except UserError as error:
            key = self._key_of(error, path)
            if key is None and error.where not in (None, _dotted(path)):
                raise
            where = self.where(*path, key) if key else self.where(*path)
            said = f"{error.where or _dotted(path)}: {error.what}"
            raise type(error)(said, where=where, allowed=error.allowed, hint=error.hint) from error
        except (ValueError, TypeError) as error:
            key = _key_in(str(error), self.section(*path))
            where = self.where(*path, key) if key else self.where(*path)
            raise RecipeError(f"{_dotted(path)}: {error}", where=where) from error

    def constructed(self, make: typing.Callable[[], Any], *path: str | int) -> Any:
        """As ``located``, for a class of upstream's, which may raise anything when it gets odd values."""
        try:
            return self.located(make, *path)
        except (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError) as error:
            said = f"{_dotted(path)}: {type(error).__name__}: {error}"
            key = _key_in(str(error), self.section(*path))
            raise RecipeError(said, where=self.where(*path, key) if key else self.where(*path)) from error

    def _key_of(self, error: UserError, path: Place) -> str | None:
        """The key of a section that an error is about: its place, or what its sentence names."""
        if error.where is None:
            return _key_in(error.what, self.section(*path))
        inside = error.where.removeprefix(f"{_dotted(path)}.")
        return inside if inside != error.where and inside.isidentifier() else None

    def dump(self) -> str:
        """The recipe as YAML that reads back to the same values, without the path of the home folder."""
        return dump_yaml(
            {k: without_home(self.values[k]) for k in TOP_KEYS if self.values.get(k) is not None}
        )

    def differences(self, other: Recipe) -> list[str]:
        """Lines ``key: ours -> theirs`` for every value that differs, except those of this one command."""
        ours, theirs = (_flatten(without_home(one.values)) for one in (self, other))
        skip = ("output", "resume", "trust_imports", "push_to_hub")
        return [
            f"{_dotted(path)}: {_show(ours.get(path))} -> {_show(theirs.get(path))}"
            for path in sorted({*ours, *theirs}, key=str)
            if ours.get(path) != theirs.get(path) and path[0] not in skip
        ]

    def _check_top(self) -> None:
        known = {key: (hint, False) for key, hint in SCALARS.items()}
        known |= dict.fromkeys(SECTIONS, (dict | str, False)) | dict.fromkeys(LISTS, (list, False))
        for key, value in self.values.items():
            self._check_key((key,), value, known, {"hub_model_id": "write `push_to_hub: user/name`"})
        name = self.values.get("name")
        if name is not None and not _is_file_name(name):
            raise RecipeError(
                f"name is {_show(name)}, which cannot be a folder's name",
                where=self.where("name"),
                allowed="up to 100 characters without / and \\, and neither . nor ..",
            )

    def _check_key(
        self, path: Place, value: Any, known: dict[str, tuple[Any, bool]], refused: dict[str, str]
    ) -> None:
        key, where = path[-1], self.where(*path)
        if key in refused:
            raise RecipeError(f"{_dotted(path)} cannot be set here", where=where, hint=refused[key])
        if key not in known:
            raise RecipeError(
                f"{_dotted(path)} is an unknown key{did_you_mean(str(key), known)}",
                where=where,
                allowed=_listing([k for k in known if k not in refused]),
            )
        hint = known[key][0]
        if value is None or fits(value, hint):
            return
        raise RecipeError(
            f"{_dotted(path)} is {_show(value)} (a {_kind(value)}){_near_choice(value, hint)}",
            where=where,
            allowed=_describe(hint),
        )

    def _parent(self, path: Place, where: str) -> Any:
        here: Any = self.values
        for depth, part in enumerate(path[:-1]):
            if depth == 0 and part in SECTIONS and isinstance(here.get(part), str):
                here[part] = {"name": here[part]}  # `tuning: lora` seen as {name: lora}
            if isinstance(here, list):
                here = _item(here, part, where)
            elif isinstance(here, dict):
                if here.get(part) is None:
                    here[part] = {}
                here = here[part]
            else:
                raise RecipeError(f"`{_dotted(path[:depth])}` has no keys", where=where)
        return here


def _is_file_name(name: str) -> bool:
    odd = any(mark in name for mark in "/\\\0\n") or any("\ud800" <= mark <= "\udfff" for mark in name)
    return 0 < len(name.encode("utf-8", "replace")) <= 100 and name.strip(" .") != "" and not odd


def without_home(value: Any) -> Any:
    """Returns values in which paths below the home folder begin with ``~``, as every section reads them."""
    if isinstance(value, dict):
        return {key: without_home(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_home(one) for one in value]
    home = str(Path.home())
    if isinstance(value, str) and len(home) > 1 and (value == home or value.startswith(f"{home}/")):
        return f"~{value[len(home) :]}"
    return value


def home_as_tilde(text: str) -> str:
    """Returns text in which ``~`` stands wherever the path of the home folder stood."""
    home = str(Path.home())
    return text if len(home) < 2 else re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)


def dump_yaml(values: Any) -> str:
    """YAML text under the same scalar rules as ``Recipe.load``."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value may be given where an argument is annotated with ``hint``.

    A class that YAML cannot write (``torch.dtype``) is left to the constructor.
    """
    if hint in (Any, inspect.Parameter.empty):
        return True
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _fits_union(value, inner)
    if origin is typing.Literal:
        return value in inner
    if origin is typing.Annotated:
        return fits(value, inner[0])
    return _fits_container(value, origin or hint, inner)


def _fits_union(value: Any, members: tuple) -> bool:
    choices = [m for m in members if isinstance(m, type) and issubclass(m, enum.Enum)]
    if isinstance(value, str) and choices:  # `SchedulerType | str`: the enumeration decides
        return any(fits(value, choice) for choice in choices)
    return any(fits(value, member) for member in members)


def _fits_container(value: Any, kind: Any, inner: tuple) -> bool:
    if kind is None or kind is type(None):
        return value is None
    if not isinstance(kind, type):
        return True
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if issubclass(kind, enum.Enum):
        return value in [member.value for member in kind]
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if issubclass(kind, collections.abc.Mapping):
        return isinstance(value, dict) and (not inner or all(fits(v, inner[1]) for v in value.values()))
    if kind in (list, set, frozenset, tuple, collections.abc.Sequence, collections.abc.Iterable):
        items = [i for i in inner if i is not Ellipsis]
        return isinstance(value, list) and (not items or all(any(fits(v, i) for i in items) for v in value))
    return True


def _inner_section(hint: Any) -> type | None:
    """The dataclass whose keyword arguments a mapping is, where the argument takes no other mapping."""
    members = typing.get_args(hint) or (hint,)
    if any((typing.get_origin(member) or member) is dict for member in members):
        return None
    return next((m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


def _signature(cls: type) -> dict[str, tuple[Any, bool]]:
    """``{argument: (annotation, required)}`` of a class's constructor."""
    try:
        hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    except NameError:  # an annotation under TYPE_CHECKING; the names are known all the same
        hints = {}
    declared = _declared_choices(cls)
    found = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        required = parameter.default is parameter.empty
        hint = hints.get(name, parameter.empty)
        if hint is parameter.empty and not required and parameter.default is not None:
            hint = type(parameter.default)
        found[name] = (hint, required)
    return {name: (declared.get(name, hint), required) for name, (hint, required) in found.items()}


def _declared_choices(cls: type) -> dict[str, Any]:
    """Arguments whose dataclass field lists its choices: upstream takes any other word in silence."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return {f.name: typing.Literal[tuple(f.metadata["choices"])] for f in fields if f.metadata.get("choices")}


def _file_text(path: Path) -> str:
    where = str(path)
    try:
        odd = path.exists() and not path.is_dir() and not path.is_file()
        raw = b"" if odd else _beginning(path)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(
            "no such recipe", where=where, hint="`hf-llm-recipes list` shows the shipped ones"
        ) from None
    except IsADirectoryError:
        raise RecipeError("is a folder, not a recipe", where=where) from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"is not UTF-8 text (byte {error.start})", where=where, hint="save it as UTF-8"
        ) from None
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=where[:200]) from None
    except ValueError:  # a NUL in the name
        raise RecipeError("is no name of a file", where=repr(where)[:200]) from None
    if odd:
        raise RecipeError("is no file of text but a device or a pipe", where=where)
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"is larger than {MAX_BYTES:,} bytes: this is no recipe", where=where)
    return text


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _parse(text: str, source: str) -> tuple[Any, dict[Place, str]]:
    loader = _Loader(_printable(text, source))
    try:
        node = loader.get_single_node()
        places: dict[Place, str] = {}
        budget = [MAX_NODES]
        return (None if node is None else _plain(loader, node, (), source, places, budget)), places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"is not valid YAML: {problem}", where=line) from None
    except RecursionError:
        raise RecipeError("is nested too deeply", where=source) from None
    finally:
        loader.dispose()


def _printable(text: str, source: str) -> str:
    found = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise RecipeError(f"holds the control character {found.group()!r}", where=f"{source}:{line}")
    return text


def _plain(
    loader: _Loader, node: yaml.Node, path: Place, source: str, places: dict[Place, str], budget: list[int]
) -> Any:
    here = f"{source}:{node.start_mark.line + 1}" if not source.startswith("override") else source
    budget[0] -= 1
    if budget[0] < 0 or len(path) > MAX_DEPTH:
        raise RecipeError(f"has more than {MAX_NODES:,} values or {MAX_DEPTH} levels", where=here)
    if path and path not in places:
        places[path] = here
    if node.tag not in _TAGS:
        raise RecipeError(
            f"the tag `{node.tag.replace(_YAML, '!!')[:60]}` is not read",
            where=here,
            allowed="plain values: text, numbers, true, false, null, lists and mappings",
        )
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, (*path, i), source, places, budget) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, source, places, budget)
    return _scalar(loader, node, here)


def _scalar(loader: _Loader, node: yaml.ScalarNode, where: str) -> Any:
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError, OverflowError):  # `!!int x`, or a number of thousands of digits
        kind = node.tag.rpartition(":")[2]
        raise RecipeError(f"`{node.value[:60]}` is no {kind} that can be read", where=where) from None


def _mapping(
    loader: _Loader, node: yaml.Node, path: Place, source: str, places: dict[Place, str], budget: list[int]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = f"{source}:{key_node.start_mark.line + 1}"
        key = _scalar(loader, key_node, where) if isinstance(key_node, yaml.ScalarNode) else None
        if key == "<<":
            raise RecipeError("merges another mapping (`<<`)", where=where, hint="write the keys out")
        if not isinstance(key, str):
            raise RecipeError(f"{_dotted((*path, key_node.value))}: a key must be a word", where=where)
        if key in found:
            raise RecipeError(
                f"{_dotted((*path, key))} is given twice (first at line "
                f"{places[(*path, key)].rsplit(':', 1)[-1]})",
                where=where,
            )
        places[(*path, key)] = where
        found[key] = _plain(loader, value_node, (*path, key), source, places, budget)
    return found


def _assign(parent: Any, key: str | int, value: Any, where: str) -> None:
    if isinstance(parent, list):
        _item(parent, key, where)
        parent[key] = value
    elif not isinstance(parent, dict):
        raise RecipeError(f"`{key}` cannot be set on {_show(parent)}", where=where)
    elif value is None:
        parent.pop(key, None)
    else:
        parent[key] = value


def _item(items: list, index: str | int, where: str) -> Any:
    if not isinstance(index, int) or index >= len(items):
        raise RecipeError(
            f"`{index}` is no item of a list of {len(items)}", where=where, allowed=f"0 to {len(items) - 1}"
        )
    return items[index]


def _flatten(values: Any, path: Place = ()) -> dict[Place, Any]:
    if isinstance(values, dict) and values:
        return {k: v for key, value in values.items() for k, v in _flatten(value, (*path, key)).items()}
    return {path: values}


def _key_in(message: str, section: dict[str, Any]) -> str | None:
    """The longest key that the message names as a word, else the key whose text it quotes, if any."""
    named = [key for key in section if re.search(rf"(?<![\w.]){re.escape(str(key))}(?!\w)", message)]
    quoted = [key for key, value in section.items() if isinstance(value, str) and f"`{value}`" in message]
    return max(named or quoted, key=len, default=None)


def _near_choice(value: Any, hint: Any) -> str:
    return did_you_mean(value, [str(c) for c in _choices(hint)]) if isinstance(value, str) else ""


def _choices(hint: Any) -> list:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    return [choice for inner in typing.get_args(hint) for choice in _choices(inner)]


def _describe(hint: Any) -> str:
    choices = _choices(hint)
    if choices:
        return _listing([str(choice) for choice in choices])
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    words |= {list: "a list", tuple: "a list", set: "a list", type(None): "null"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(i) for i in inner if i is not type(None)))
    if dataclasses.is_dataclass(hint):
        return "a mapping"
    if origin is list and inner:
        return f"a list of: {_describe(inner[0])}"
    return words.get(origin or hint, getattr(hint, "__name__", str(hint)))


def _listing(words: list[str], most: int = 24) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f", … ({more} more)" if more > 0 else "")


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "true/false", int: "whole number"}
    return names.get(type(value), {float: "number", type(None): "null"}.get(type(value), "value"))


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(str(part) for part in path)
