"""A server on loopback that speaks as much of the Hub's HTTP as huggingface_hub needs; blobs in a folder.

It proves this package against this client, not against the real server: no xet, no quotas, no scopes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from hf_llm_recipes.card_license import HUB_IDS

LARGE = (".safetensors", ".parquet", ".bin")
WRITE, READ, OTHER = ("hf_" + letter * 34 for letter in "wro")
USERS = {WRITE: ("tester", "write"), READ: ("tester", "read"), OTHER: ("somebody", "write")}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Entry:
    """A file of a commit."""

    data: bytes
    large: bool

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.large else git_sha1(self.data)


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, Entry], message: str) -> str:
        content = json.dumps([len(self.commits), sorted((name, one.oid) for name, one in files.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """The server and what it holds.

    ``asked`` lists every request as ``"PUT /…"``; ``uploaded`` the sha256 of each large file that arrived.
    ``drop`` connections of uploads are cut, ``refuse`` maps a part of a request to the status it gets, and
    the upload ``held`` (a sha256) sets ``waiting`` and waits for ``gate``.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.uploaded: list[str] = []
        self.drop = 0
        self.refuse: dict[str, int] = {}
        self.held: str | None = None
        self.gate, self.waiting = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch, without the one that every repository begins with."""
        one = self.repositories[name]
        found = one.commits[one.branches[revision]]
        return {path: entry.data for path, entry in found.items() if path != ".gitattributes"}


@contextmanager
def serving(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    server = HubServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        """Quiet."""

    def do_GET(self):
        self._route("GET")

    def do_HEAD(self):
        self._route("HEAD")

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def _route(self, method: str) -> None:
        parts = urlsplit(self.path)
        path = parts.path
        self.server.asked.append(f"{method} {path}")
        status = next((s for part, s in self.server.refuse.items() if part in f"{method} {path}"), None)
        if status is not None:
            self._body()
            self._json(
                {"error": f"refused with {status}"}, status, {"X-Error-Message": f"refused with {status}"}
            )
            return
        for wanted, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method in wanted:
                answer(self, *(part and unquote(part) for part in found.groups()))
                return
        self._body()
        self._json({"error": f"no such place: {method} {path}"}, 404)

    # who asks

    def _user(self) -> tuple[str, str] | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _repository(self, name: str, *, write: bool = False) -> Repository | None:
        """The repository if the token may; else the refusal is sent."""
        user, one = self._user(), self.server.repositories.get(name)
        owns = user is not None and name.split("/")[0] == user[0]
        if one is None or (one.private and not owns):
            self._body()
            status = 404 if user else 401
            self._json({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and not (owns and user[1] == "write"):
            self._body()
            self._json({"error": "Forbidden"}, 403)
            return None
        return one

    # answers

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._bytes(
            json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})}
        )

    def _bytes(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, one in (headers or {}).items():
            self.send_header(key, one)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # places

    def whoami(self):
        user = self._user()
        if user is None:
            self._json({"error": "Invalid username or password."}, 401)
            return
        access = {"auth": {"type": "access_token", "accessToken": {"role": user[1]}}}
        self._json({"type": "user", "name": user[0], "orgs": [], **access})

    def create(self):
        asked, user = json.loads(self._body()), self._user()
        if user is None:
            self._json({"error": "Unauthorized"}, 401)
            return
        name = f"{asked.get('organization') or user[0]}/{asked['name']}"
        if name.split("/")[0] != user[0] or user[1] != "write":
            self._json({"error": "You don't have the rights to create a model there"}, 403)
        elif name in self.server.repositories:
            self._json({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            one = self.server.repositories[name] = Repository(private)
            one.commit(
                "main", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", False)}, "initial commit"
            )
            self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def info(self, name: str, revision: str | None = None):
        one = self._repository(name)
        if one is None:
            return
        sha = one.at(revision or "main")
        if sha is None:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": path} for path in one.commits[sha]]
        about = {"id": name, "modelId": name, "sha": sha, "private": one.private, "siblings": siblings}
        self._json({**about, "tags": [], "downloads": 0, "likes": 0})

    def tree(self, name: str, revision: str, folder: str | None = None):
        one = self._repository(name)
        if one is None:
            return
        sha = one.at(revision)
        if sha is None:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        found = [(path, entry) for path, entry in one.commits[sha].items() if _inside(path, folder)]
        if folder and not found:
            self._json({"error": "no such folder"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self._json([_described(path, entry) for path, entry in sorted(found, key=lambda pair: pair[0])])

    def branch(self, name: str, branch: str):
        one = self._repository(name, write=True)
        if one is None:
            return
        asked = json.loads(self._body() or b"{}")
        if branch in one.branches:
            self._json({"error": "exists"}, 409)
            return
        one.branches[branch] = one.at(asked.get("startingPoint") or "main")
        self._json({}, 201)

    def validate(self):
        asked = json.loads(self._body())
        errors = card_errors(asked["content"])
        self._json({"errors": [{"message": one} for one in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, name: str, revision: str):
        one = self._repository(name, write=True)
        if one is None:
            return
        there = one.commits[one.at(revision)]
        self._json(
            {
                "files": [
                    {
                        "path": asked["path"],
                        "uploadMode": "lfs" if asked["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": there[asked["path"]].oid if asked["path"] in there else None,
                    }
                    for asked in json.loads(self._body())["files"]
                ]
            }
        )

    def batch(self, name: str):
        if self._repository(name, write=True) is None:
            return
        objects = []
        for asked in json.loads(self._body())["objects"]:
            found = {"oid": asked["oid"], "size": asked["size"]}
            if not (self.server.folder / asked["oid"]).is_file():
                found["actions"] = {
                    "upload": {"href": f"{self.server.url}/blobs/{asked['oid']}"},
                    "verify": {"href": f"{self.server.url}/verify"},
                }
            objects.append(found)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, oid: str):
        if oid == self.server.held:
            self.server.waiting.set()
            self.server.gate.wait(60)
        if self.server.drop > 0:
            self.server.drop -= 1
            self.close_connection = True
            self.connection.close()
            return
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            self._json({"error": "another content"}, 400)
            return
        (self.server.folder / oid).write_bytes(data)
        self.server.uploaded.append(oid)
        self._json({})

    def verify(self):
        asked = json.loads(self._body())
        there = (self.server.folder / asked["oid"]).is_file()
        self._json({}, 200 if there else 404)

    def commit(self, name: str, revision: str):
        one = self._repository(name, write=True)
        if one is None:
            return
        lines = [json.loads(line) for line in self._body().splitlines()]
        head = one.at(revision)
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            self._json({"error": "a commit has happened since"}, 412)
            return
        files = dict(one.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Entry(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Entry((self.server.folder / value["oid"]).read_bytes(), True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = one.commit(revision, files, header["summary"])
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def resolve(self, name: str, revision: str, path: str):
        one = self._repository(name)
        if one is None:
            return
        sha = one.at(revision)
        if sha is None:
            self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        entry = one.commits[sha].get(path)
        if entry is None:
            self._json({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        self._bytes(entry.data, 200, {"X-Repo-Commit": sha, "ETag": f'"{entry.oid}"'})


def card_errors(text: str) -> list[str]:
    """What of the Hub's rules for a card's front matter can be told without it."""
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if block is None:
        return []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    errors = []
    if data.get("license", "other") not in HUB_IDS:
        errors.append('"license" must be one of [apache-2.0, mit, …]')
    for model in data.get("model-index", []):
        for result in model["results"]:
            dataset = result["dataset"]
            errors += [
                f'"dataset.{key}" must be a string' for key in dataset if not isinstance(dataset[key], str)
            ]
            errors += ['"value" is missing' for metric in result["metrics"] if "value" not in metric]
    return errors


def _inside(path: str, folder: str | None) -> bool:
    return not folder or path.startswith(f"{folder}/")


def _described(path: str, entry: Entry) -> dict:
    found = {"type": "file", "path": path, "size": len(entry.data), "oid": git_sha1(entry.data)}
    if entry.large:
        found["lfs"] = {"oid": entry.oid, "size": len(entry.data), "pointerSize": 130}
    return found


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = [
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("GET",), f"/api/models/{NAME}", Handler.info),
    (("GET",), f"/api/models/{NAME}/revision/{REVISION}", Handler.info),
    (("GET",), f"/api/models/{NAME}/tree/{REVISION}(?:/(.+))?", Handler.tree),
    (("POST",), f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    (("POST",), f"/api/models/{NAME}/preupload/{REVISION}", Handler.preupload),
    (("POST",), f"/api/models/{NAME}/commit/{REVISION}", Handler.commit),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), "/blobs/([0-9a-f]{64})", Handler.put),
    (("POST",), "/verify", Handler.verify),
    (("GET", "HEAD"), f"/{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
]
