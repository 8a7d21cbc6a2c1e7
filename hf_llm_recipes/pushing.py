"""A finished run -> one commit on the Hub: model, tokenizer, code, card, recipe, metrics and report.

Notable:
- Nothing is sent before everything was looked at: the run, its weights, secrets in any file, the token,
  what lies in the repository already.
- The card that is sent names the repository, so that its code can be copied and run.
- A run that is to be pushed at its end asks the Hub before the training; a push that fails after it costs
  no result.
- No torch here.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_llm_recipes import card, hub, processes, rundir, secrets_scan, trust
from hf_llm_recipes.errors import RecipeError, RunError, UserError
from hf_llm_recipes.hub import PushToHub
from hf_llm_recipes.recipe import Recipe
from hf_llm_recipes.report import REPORT
from hf_llm_recipes.rundir import RunDirectory

log = logging.getLogger("hf_llm_recipes")

ADAPTER = "adapter_config.json"
WEIGHTS = (".safetensors", ".onnx", ".pte", ".gguf")
MOST_SHOWN = 8


@dataclass(frozen=True)
class Pushed:
    """What a push sends, or has sent.

    Args:
        name: ``user/name``.
        sizes: Name in the repository -> bytes.
        notes: What a user should know.
        sent: None of a dry run.
    """

    name: str
    sizes: Mapping[str, int]
    notes: tuple[str, ...]
    sent: hub.Sent | None = None


@dataclass(frozen=True)
class _Bundle:
    """Files by their name in the repository, and where the record of pushes lies."""

    files: dict[str, Path]
    directory: Path
    base: str | None
    notes: list[str]


def push(directory: str | Path, to: PushToHub, *, dry_run: bool = False) -> Pushed:
    """Sends a finished run, or a model's folder made from one, to the Hub in one commit.

    Args:
        directory: A run directory, its ``model/``, or what ``merge`` made.
        to: Where it goes.
        dry_run: Whether only the files are listed: nothing is asked of the Hub and nothing is sent.

    Raises:
        RunError: no finished run, nothing to send, a secret in a file, no token or one that may not, a
            repository of something else, the server's refusal, or no network.
    """
    with tempfile.TemporaryDirectory() as side:
        bundle = _bundle(Path(directory), to, Path(side))
        if "/" in (to.name or ""):
            _name_places(bundle, to.name, Path(side))
        sizes = {name: path.stat().st_size for name, path in bundle.files.items()}
        _refuse_secrets(bundle.files)
        if dry_run:
            return Pushed(to.name or _run_name(bundle.directory), sizes, tuple(bundle.notes))
        api = hub.connect()
        name = hub.own_name(api, to.name or _run_name(bundle.directory))
        _name_places(bundle, name, Path(side))
        sent = _send(api, bundle, replace(to, name=name))
    hub.write_record(bundle.directory, sent, bundle.files)
    return Pushed(name, sizes, tuple(bundle.notes), sent)


def before_training(recipe: Recipe) -> PushToHub | None:
    """Asks the Hub whether the run can go there, before the training is paid; makes an empty repository.

    Returns:
        Where it will go, in full; None where the recipe pushes nothing.

    Raises:
        RecipeError: a mistake in the recipe, or an adapter whose base nobody else has.
        RunError: as ``push``.
    """
    asked = hub.settings_of(recipe)
    if asked is None:
        return None
    from hf_llm_recipes.planning import plan

    bound = plan(recipe)  # a mistake elsewhere in the recipe is told before anything is made
    if bound.tuning.uses_adapter:
        recipe.located(lambda: _reachable_base(bound.model.name, asked.base), "model")
    elif asked.base:
        raise RecipeError("base has an effect only with an adapter", where=recipe.where(hub.KEY))
    if not processes.is_main():
        return asked
    try:
        return _promised(asked, recipe.get("output"))
    except hub.NoNetworkError as error:
        later = "check the network, or take `push_to_hub` out and push the finished run later"
        raise RunError(error.what, where=error.where, hint=later) from error


def _promised(asked: PushToHub, output: str | None) -> PushToHub:
    """Where a run will go, once the Hub has said that it can."""
    api = hub.connect()
    to = replace(asked, name=hub.own_name(api, asked.name))
    hub.make(api, to.name, private=to.private)
    remote = hub.look(api, to.name, to.revision)
    _check_readers(to, remote)
    here = hub.read_record(Path(output)) if output else {}
    others = [name for name in remote.files if name != ".gitattributes"]
    if others and not to.existing and not _ours(here, to, remote):
        raise _of_something_else(to, others)
    log.info(f"the run will be pushed to {api.endpoint}/{to.name}")
    return to


def after_run(directory: Path, to: PushToHub | None) -> dict[str, Any] | None:
    """Pushes a run that has just finished; a failure is told, with the command that pushes later.

    Returns:
        ``url`` and ``commit``, or ``error`` and ``command``; None where nothing was asked for, and in all
        processes but the first.
    """
    if to is None or not processes.is_main():
        return None
    try:
        done = push(directory, to)
    except UserError as error:
        return {"error": str(error), "command": command(directory, to)}
    return {"url": done.sent.url, "commit": done.sent.commit}


def command(directory: Path, to: PushToHub) -> str:
    """The command that pushes a run."""
    words = ["hf-llm-recipes", "push", str(directory), str(to.name)]
    words += [] if to.private else ["--public"]
    words += ["--existing"] if to.existing else []
    words += ["--base", to.base] if to.base else []
    words += [] if to.revision == hub.MAIN else ["--revision", to.revision]
    words += ["--message", to.message] if to.message else []
    words += [] if to.report else ["--no-report"]
    return shlex.join(words)


def _bundle(directory: Path, to: PushToHub, side: Path) -> _Bundle:
    """Every file that goes, under its name in the repository."""
    folder = rundir.model_folder(directory)
    run = folder.parent if (folder.parent / rundir.RECIPE).is_file() else None
    notes: list[str] = []
    if run is not None:
        _check_finished(RunDirectory(run))
    else:
        notes.append(f"{folder.name} lies in no run: it goes without recipe, metrics and report")
    trust.refuse_pickles(folder)
    files = _model_files(folder)
    base = _base(folder, to, notes)
    if run is not None:
        _add_run_files(run, files, to, side, notes)
    _note_licence(folder, notes)
    return _Bundle(dict(sorted(files.items())), run or folder, base, notes)


def _check_finished(run: RunDirectory) -> None:
    found = run.metrics().get("reload")
    if found and not found["logits_max_difference"] <= found["tolerance"]:
        raise RunError(
            f"the saved model gives other answers than the trained one (logits differ by "
            f"{found['logits_max_difference']:.3g}): it is not to be shipped",
            where=str(run.path),
            hint="train again; nothing was sent",
        )


def _model_files(folder: Path) -> dict[str, Path]:
    """The model's files; hidden ones are ours or an editor's."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")) or path.is_dir():
            continue
        if path.is_symlink() or not path.is_file():
            raise RunError(
                "is a link: what it leads to may be no part of the model",
                where=str(path),
                hint="put the file itself in its place, or take it out; nothing was sent",
            )
        files[name] = path
    for needed, what in ((WEIGHTS, "no weights"), (rundir.CARD, "no model card")):
        if not any(name.endswith(needed) for name in files):
            raise RunError(f"holds {what}; nothing was sent", where=str(folder), hint="copy the run again")
    return files


def _base(folder: Path, to: PushToHub, notes: list[str]) -> str | None:
    """Where an adapter's base lies on the Hub, if it lies there."""
    if not (folder / ADAPTER).is_file():
        if to.base:
            raise RunError("base has an effect only with an adapter", where=str(folder))
        return None
    values = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    name = _reachable_base(values.get("base_model_name_or_path"), to.base)
    if name is None:
        notes.append(
            f"its base {values['base_model_name_or_path']} is not on the Hub: others need hf_llm_recipes to "
            "load the adapter; what `merge` makes needs nothing"
        )
    return name


def _reachable_base(name: str | None, given: str | None) -> str | None:
    """The Hub id of an adapter's base; None of ``local/…``, which this package fetches.

    Raises:
        RunError: it is a folder on this machine.
    """
    if given:
        return given
    if name and name.startswith(card.PACKAGED):
        return None
    if name and card.is_hub_id(name):
        return name
    raise RunError(
        f"the adapter's base is the folder `{Path(name or '').name}` of this machine, which nobody else has",
        hint="push the base too and name it (--base user/base, in a recipe `push_to_hub.base`), or `merge` "
        "and push what that makes",
    )


def _name_places(bundle: _Bundle, name: str, side: Path) -> None:
    """What names a place on this machine names the Hub's: card, record, and an adapter's base."""
    text = _without_place(bundle.files[rundir.CARD].read_text(encoding="utf-8"))
    bundle.files[rundir.CARD] = _written(side / rundir.CARD, card.on_the_hub(text, name, bundle.base))
    adapter = bundle.files.get(ADAPTER)
    if rundir.RECORD in bundle.files:
        record = json.loads(bundle.files[rundir.RECORD].read_text(encoding="utf-8"))
        if adapter is None:
            record["model"] = {**_kept(record["model"]), "name": name}
        elif bundle.base:
            record["model"] |= {"name": bundle.base}
        bundle.files[rundir.RECORD] = _written(side / rundir.RECORD, _json(record))
    if adapter is not None and bundle.base:
        values = json.loads(adapter.read_text(encoding="utf-8"))
        if values["base_model_name_or_path"] != bundle.base:
            values |= {"base_model_name_or_path": bundle.base, "revision": None}
            bundle.files[ADAPTER] = _written(side / ADAPTER, _json(values))


def _kept(model: Mapping[str, Any]) -> dict[str, Any]:
    """What of a ``model:`` section still holds of the weights that were trained from it."""
    gone = ("name", "architecture", "preset", "config", "tokenizer", "revision", "keep_layers")
    return {key: value for key, value in model.items() if key not in gone}


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _add_run_files(run: Path, files: dict[str, Path], to: PushToHub, side: Path, notes: list[str]) -> None:
    text = (run / rundir.RECIPE).read_text(encoding="utf-8")
    files[rundir.RECIPE] = _written(side / rundir.RECIPE, _without_place(text))
    files[rundir.METRICS] = run / rundir.METRICS
    if not (run / REPORT).is_file():
        notes.append(f"there is no {REPORT}: `hf-llm-recipes report {run}` draws it")
    elif to.report:
        files[REPORT] = run / REPORT
        notes.append(f"{REPORT} shows texts of test rows; --no-report leaves it out")


def _without_place(text: str) -> str:
    """YAML without ``push_to_hub:``: whoever runs the recipe again has another place."""
    return re.sub(rf"^{hub.KEY}:[^\n]*\n(?:[ ]+[^\n]*\n)*", "", text, flags=re.MULTILINE)


def _note_licence(folder: Path, notes: list[str]) -> None:
    text = (folder / rundir.CARD).read_text(encoding="utf-8")
    if not re.search(r"^license: ", text.split("\n---", 1)[0], re.MULTILINE):
        notes.append("the card states no licence: name the base's under `model.license` of the recipe")


def _refuse_secrets(files: Mapping[str, Path]) -> None:
    found = secrets_scan.scan_files(files)
    if not found:
        return
    lines = [str(one) for one in found[:MOST_SHOWN]]
    lines += [f"and {len(found) - MOST_SHOWN} more places"] if len(found) > MOST_SHOWN else []
    raise RunError(
        "what was to be sent holds what should stay here; nothing was sent:\n    " + "\n    ".join(lines),
        hint="take it out of the file; a token that others may have seen should be revoked",
    )


def _send(api: Any, bundle: _Bundle, to: PushToHub) -> hub.Sent:
    if bundle.base and not hub.is_there(api, bundle.base):
        raise RunError(
            f"the adapter's base `{bundle.base}` is not on the Hub, or this token cannot see it",
            hint="push the base first, name another place of it with --base, or `merge` and push that",
        )
    hub.make(api, to.name, private=to.private)
    remote = hub.look(api, to.name, to.revision)
    bundle.notes.extend(_check_readers(to, remote))
    record = hub.read_record(bundle.directory)
    gone = hub.stale(remote, bundle.files)
    if _ours(record, to, remote):
        earlier = record[f"{to.name}@{to.revision}"]["files"]
        left = [name for name in earlier if name in remote.files and name not in bundle.files]
        gone = tuple(dict.fromkeys([*gone, *left]))
    elif not to.existing:
        changed = [n for n, p in bundle.files.items() if n in remote.files and not remote.same(n, p)]
        if changed or gone:
            raise _of_something_else(to, [*changed, *gone])
    message = to.message or f"{_run_name(bundle.directory)}, by hf_llm_recipes"
    return hub.commit(
        api, to.name, bundle.files, message=message, revision=to.revision, onto=remote, delete=gone
    )


def _ours(record: Mapping[str, Any], to: PushToHub, remote: hub.Remote) -> bool:
    """Whether nothing has come to the branch since this run was pushed there."""
    known = record.get(f"{to.name}@{to.revision}", {}).get("commit")
    return known is not None and known == remote.commit


def _check_readers(to: PushToHub, remote: hub.Remote) -> list[str]:
    """What is to be said of who can read the repository; one that is there stays as it is."""
    if to.private and not remote.private:
        raise RunError(
            "is public: whatever is sent there can be read by anybody; nothing was sent",
            where=str(to.name),
            hint="add --public (in a recipe `push_to_hub.private: false`), or choose another name",
        )
    return [] if to.private or not remote.private else [f"{to.name} is private, and stays so"]


def _of_something_else(to: PushToHub, names: list[str]) -> RunError:
    shown = ", ".join(names[:MOST_SHOWN])
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return RunError(
        f"holds something that was not pushed from this run, and would be overwritten: {shown}{more}",
        where=f"{to.name}@{to.revision}",
        hint="choose another name, or add --existing (in a recipe `push_to_hub.existing: true`)",
    )


def _run_name(directory: Path) -> str:
    if (directory / rundir.RECIPE).is_file():
        return Recipe.load(directory / rundir.RECIPE).name
    return directory.resolve().name


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
