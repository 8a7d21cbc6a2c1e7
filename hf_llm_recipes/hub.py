"""The Hub: whose token, which repository, and files that go there in one commit.

Notable:
- The token is read by huggingface_hub from its own places and handed to its client; nothing here keeps it.
- Whatever the network or the server answers becomes one sentence with what to do.
- ``create_commit`` and not ``upload_folder``, which makes several commits of a large folder. Large files are
  sent before the commit: one that is there already, after an interruption too, is not sent again.
- No huggingface_hub at import.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_llm_recipes.checkpoints import BLOCK, sha256
from hf_llm_recipes.errors import RecipeError, RunError, UserError
from hf_llm_recipes.recipe import Recipe

log = logging.getLogger("hf_llm_recipes")

RECORD = "hub.json"  # in a run's directory: what was pushed from it
MAIN = "main"
KEY = "push_to_hub"
LOG_IN = "make a token with write rights (Settings > Access tokens), then `hf auth login`, or set HF_TOKEN"
# what decides how a repository is loaded: a file of another model beside ours would be loaded in its place
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json"),
    *("config.json", "adapter_config.json"),
)


class NoNetworkError(RunError):
    """The Hub was not reached: nothing is wrong with what was to be sent."""


@dataclass(frozen=True, kw_only=True)
class PushToHub:
    """Where a run goes: the ``push_to_hub:`` section of a recipe, and the options of ``push``.

    Args:
        name: ``user/name``; without a user the token's; None: the run's name.
        private: Whether a repository that is made is private. One that is there stays as it is.
        existing: Whether files of a repository that holds something else may be overwritten.
        base: Of an adapter whose base is a folder here: where that base lies on the Hub.
        revision: The branch; made where there is none.
        message: Of the commit.
        report: Whether ``report.html`` goes along, which shows texts of test rows.

    Raises:
        RunError: no name of a repository.
    """

    name: str | None = None
    private: bool = True
    existing: bool = False
    base: str | None = None
    revision: str = MAIN
    message: str | None = None
    report: bool = True

    def __post_init__(self) -> None:
        for name in (self.name, self.base):
            if name is not None:
                check_name(name)


@dataclass(frozen=True)
class Remote:
    """What lies in a branch of a repository.

    Args:
        commit: Its newest; None where there is no such branch yet.
        files: Name -> hash: sha256 of a large file, git's sha1 of any other.
        private: Whether the repository is.
    """

    commit: str | None
    files: Mapping[str, str] = field(default_factory=dict)
    private: bool = True

    def same(self, name: str, path: Path) -> bool:
        """Whether a file is there with just this content."""
        known = self.files.get(name)
        return known is not None and known == (sha256(path) if len(known) == 64 else _git_sha1(path))


@dataclass(frozen=True)
class Sent:
    """A push that is done.

    Args:
        repository: ``user/name``.
        revision: The branch.
        commit: Its newest commit.
        url: Of the repository, for a browser.
        new: Whether a commit was made; False where everything was there already.
    """

    repository: str
    revision: str
    commit: str
    url: str
    new: bool


def settings_of(recipe: Recipe) -> PushToHub | None:
    """Returns a recipe's ``push_to_hub:``: true, a name, or a mapping; None where it is not given, or false.

    Raises:
        RecipeError: a key, type or value that it does not take.
    """
    value = recipe.get(KEY)
    if not value:
        return None
    asked = PushToHub() if value is True else recipe.build(KEY, cls=PushToHub)
    if asked.name:
        return asked
    try:
        check_name(recipe.name)
    except RunError as error:
        raise RecipeError(
            f"{KEY}: the run's name {error.what}",
            where=recipe.where(KEY),
            allowed=error.allowed,
            hint=f"`{KEY}: user/name`",
        ) from None
    return replace(asked, name=recipe.name)


def check_name(name: str) -> None:
    """Checks what a repository is to be called.

    Args:
        name: ``user/name`` or ``name``.

    Raises:
        RunError: the Hub knows no such names.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise RunError(
            f"{name!r} is no name of a repository",
            allowed="user/name: letters, digits, - _ and . (not first, last or twice), at most 96 characters",
        ) from None


def connect() -> Any:
    """Returns huggingface_hub's client with the user's token.

    Raises:
        RunError: there is no token, or huggingface_hub is told to stay offline.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise RunError(
            "huggingface_hub is told to stay offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)",
            hint="unset that variable to push",
        )
    token = get_token()
    if token is None:
        raise RunError(
            "there is no token for the Hub", allowed="one of `hf auth login`, or in HF_TOKEN", hint=LOG_IN
        )
    return HfApi(endpoint=constants.ENDPOINT, token=token, library_name="hf_llm_recipes")


def own_name(api: Any, name: str) -> str:
    """Returns ``user/name``: the token's user where none is given.

    Raises:
        RunError: the token is refused or may only read.
    """
    with told(name):
        who = api.whoami()
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise RunError(f"the token of {who['name']} may only read", hint=LOG_IN)
    return name if "/" in name else f"{who['name']}/{name}"


def make(api: Any, repository: str, *, private: bool) -> None:
    """Makes a repository where there is none; one that is there stays as it is.

    Raises:
        RunError: the token may not, or the network.
    """
    with told(repository):
        api.create_repo(repository, private=private, exist_ok=True)


def look(api: Any, repository: str, revision: str) -> Remote:
    """Returns what lies in a branch.

    Raises:
        RunError: there is no such repository, or the network.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    with told(repository):
        about = api.repo_info(repository)
        try:
            commit = about.sha if revision == MAIN else api.repo_info(repository, revision=revision).sha
        except RevisionNotFoundError:
            return Remote(None, private=about.private)
        found = api.list_repo_tree(repository, recursive=True, revision=commit)
        files = {one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in found if _is_file(one)}
    return Remote(commit, files, about.private)


def is_there(api: Any, repository: str) -> bool:
    """Whether this token can see a model of that name.

    Raises:
        RunError: the token is refused, or the network.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with told(repository):
        try:
            api.repo_info(repository)
        except RepositoryNotFoundError:
            return False
    return True


def commit(
    api: Any,
    repository: str,
    files: Mapping[str, Path],
    *,
    message: str,
    revision: str = MAIN,
    onto: Remote,
    delete: tuple[str, ...] = (),
) -> Sent:
    """Sends files in one commit.

    Args:
        api: Of ``connect``.
        repository: ``user/name``, which is there.
        files: Name in the repository -> file.
        message: The commit's first line.
        revision: The branch; made where there is none.
        onto: What was looked at: where another commit has come since, nothing is changed.
        delete: Names in the repository that go.

    Raises:
        RunError: the token may not, the server rejects it, or the network.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in delete]
    with told(repository):
        if onto.commit is None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        done = api.create_commit(
            repository, operations, commit_message=message, revision=revision, parent_commit=onto.commit
        )
    url = f"{api.endpoint}/{repository}" + ("" if revision == MAIN else f"/tree/{revision}")
    return Sent(repository, revision, done.oid, url, done.oid != onto.commit)


def stale(remote: Remote, files: Mapping[str, Path]) -> tuple[str, ...]:
    """Returns files of another model that lie in a repository and would be loaded in place of ours."""
    return tuple(
        name
        for name in remote.files
        if name not in files and any(fnmatch.fnmatchcase(name, pattern) for pattern in MODEL_FILES)
    )


def read_record(directory: Path) -> dict[str, dict[str, Any]]:
    """Returns ``user/name@branch`` -> ``commit`` and ``files`` of what was pushed from a run."""
    try:
        found = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_record(directory: Path, sent: Sent, files: Mapping[str, Path]) -> None:
    """Keeps what was pushed, so that the same run may go to the same place again."""
    kept = read_record(directory)
    kept[f"{sent.repository}@{sent.revision}"] = {"commit": sent.commit, "files": sorted(files)}
    try:
        (directory / RECORD).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        log.warning(
            f"{RECORD} cannot be written ({error.strerror}): another push of this run needs --existing"
        )


@contextmanager
def told(repository: str) -> Iterator[None]:
    """Turns what the client raises into a sentence with what to do.

    Raises:
        NoNetworkError: nobody answered.
        RunError: the token was refused, or the server rejected something.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except UserError:
        raise
    except (HTTPError, ConnectionError, TimeoutError, PermissionError, RuntimeError, ValueError) as error:
        raise _told(error, repository) from error


def _told(error: BaseException, repository: str) -> RunError:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    answer = next((one for one in causes if isinstance(one, HfHubHTTPError)), None)
    if isinstance(error, ValueError) and not isinstance(error, HTTPError):
        return _rejected(repository, str(error))
    if answer is not None:
        return _answered(answer, repository)
    if any(isinstance(one, (HTTPError, ConnectionError, TimeoutError)) for one in causes):
        said = f"{type(causes[-1]).__name__}: {causes[-1]}"
        return NoNetworkError(
            f"the Hub cannot be reached: {said}",
            where=constants.ENDPOINT,
            hint="check the network (and HTTPS_PROXY), then push again: what has arrived is not sent twice",
        )
    return RunError(f"the upload failed: {error}", where=repository, hint="push again")


def _answered(error: Any, repository: str) -> RunError:
    status, said = error.response.status_code, (error.server_message or "").strip()
    if status == 401:
        return RunError("the Hub refused the token", where=repository, hint=LOG_IN)
    if status == 403:
        return RunError(
            f"this token may not write there{f' ({said})' if said else ''}",
            where=repository,
            hint=f"push under your own name, or {LOG_IN}",
        )
    if status == 404:
        return RunError("is not on the Hub, or this token cannot see it", where=repository)
    if status in (409, 412):
        return RunError(
            "somebody has changed the repository since it was looked at; nothing was overwritten",
            where=repository,
            hint="push again",
        )
    if status == 429 or status >= 500:
        return RunError(
            f"the Hub answers {status}{f' ({said})' if said else ''}",
            where=repository,
            hint="push again later: what has arrived is not sent twice",
        )
    return _rejected(repository, f"{status}: {said or error}")


def _rejected(repository: str, said: str) -> RunError:
    return RunError(
        f"the Hub rejected it: {said}", where=repository, hint="mend what it names, then push again"
    )


def _is_file(entry: Any) -> bool:
    from huggingface_hub.hf_api import RepoFile

    return isinstance(entry, RepoFile)


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
