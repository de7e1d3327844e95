"""A small Hub on loopback: the endpoints that huggingface_hub uses to make, fill, list and download repositories.

It keeps all in memory, checks tokens, checksums and visibility as the Hub does, and can be told to refuse a request.
Large files travel by LFS, so clients must have HF_HUB_DISABLE_XET set.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

OWNER, TOKEN = "me", "hf_loopback"
PLURALS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE_SUFFIXES = (".safetensors", ".parquet", ".png", ".taae")

Answer = tuple[int, object, dict[str, str]]


class Refusal(Exception):
    """An answer that is an error: its status, and the code by which huggingface_hub knows what it means."""

    def __init__(self, status: int, message: str, code: str = ""):
        self.answer: Answer = (status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})


class Repository:
    """Branches of commits, each commit a mapping of paths to contents."""

    def __init__(self, repo_type: str, name: str, facts: dict):
        self.repo_type, self.name, self.facts = repo_type, name, facts
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")

    @property
    def private(self) -> bool:
        return self.facts["visibility"] == "private"

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{self.name} {branch} {len(self.messages)}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]


class HubServer(ThreadingHTTPServer):
    """The server; `with HubServer() as hub` runs it, `hub.url` is what HF_ENDPOINT is to be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256
        self.requests: list[str] = []
        self.refusals: dict[str, int | None] = {}  # by a pattern of "METHOD /path": a status, or None to hang up

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def repository(self, name: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, name]

    @property
    def written(self) -> list[str]:
        """The requests that change something."""
        return [request for request in self.requests if re.search(r"/create$|/commit/|/branch/|PUT ", request)]


class Handler(BaseHTTPRequestHandler):
    """Finds the route of a request, and answers in JSON or bytes."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_) -> None:
        pass

    def do(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.read_body()
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        try:
            for pattern, status in self.server.refusals.items():
                if re.search(pattern, request) and status is None:
                    self.close_connection = True
                    return
                if re.search(pattern, request):
                    raise Refusal(status, "as the test wants it")
            for pattern, route in ROUTES.items():
                if match := re.fullmatch(pattern, request):
                    status, content, headers = route(self, body, **match.groupdict())
                    break
            else:
                raise Refusal(404, f"there is no {request} here")
        except Refusal as refusal:
            status, content, headers = refusal.answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def must_own(self, name: str) -> None:
        if not self.logged_in():
            raise Refusal(401, "Invalid username or password.")
        if name.partition("/")[0] != OWNER:
            raise Refusal(403, f"You don't have the rights to write under {name}")

    def find(self, repo_type: str, name: str) -> Repository:
        repository = self.server.repositories.get((repo_type, name))
        if repository is None or (repository.private and not self.logged_in()):
            raise Refusal(404 if self.logged_in() else 401, "Repository not found", "RepoNotFound")
        return repository

    # Routes: the body and the groups of the pattern in, an answer out.

    def whoami(self, body: bytes) -> Answer:
        if not self.logged_in():
            raise Refusal(401, "Invalid username or password.")
        return 200, {"type": "user", "name": OWNER, "auth": {"type": "access_token"}}, {}

    def validate_card(self, body: bytes) -> Answer:
        bad = "license: nonsense" in json.loads(body)["content"]
        errors = [{"message": '"license" must be one of the known licences'}] if bad else []
        return (400 if bad else 200), {"errors": errors, "warnings": []}, {}

    def create(self, body: bytes) -> Answer:
        facts = json.loads(body)
        repo_type, name = facts.get("type", "model"), f"{facts['organization'] or OWNER}/{facts['name']}"
        self.must_own(name)
        if (repo_type, name) in self.server.repositories:
            raise Refusal(409, "You already created this model repo")
        self.server.repositories[repo_type, name] = Repository(repo_type, name, facts)
        return 200, {"url": f"{self.server.url}/{name}", "name": name}, {}

    def info(self, body: bytes, kind: str, name: str, revision: str | None = None) -> Answer:
        repository = self.find(PLURALS[kind], name)
        oid = repository.resolve(revision or "main")
        files = [{"rfilename": path} for path in repository.commits[oid]]
        return 200, {"id": name, "sha": oid, "private": repository.private, "siblings": files, "tags": []}, {}

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None = None) -> Answer:
        prefix = f"{folder}/" if folder else ""
        found = {
            path: content
            for path, content in self.find(PLURALS[kind], name).files(revision).items()
            if path.startswith(prefix)
        }
        if not found:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        if "recursive=true" in self.path.lower():
            return 200, [describe(path, content) for path, content in found.items()], {}
        below = {path: path.removeprefix(prefix).partition("/") for path in found}
        folders = sorted({f"{prefix}{first}" for first, slash, _ in below.values() if slash})
        listed = [describe(path, found[path]) for path, (_, slash, _) in below.items() if not slash]
        return 200, [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders] + listed, {}

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> Answer:
        self.must_own(name)
        present = self.find(PLURALS[kind], name).files(revision)
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": object_id(file["path"], present[file["path"]]) if file["path"] in present else None,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": answers}, {}

    def lfs_batch(self, body: bytes, kind: str | None, name: str) -> Answer:
        self.must_own(name)
        objects = [
            {"oid": large["oid"], "size": large["size"]}
            | (
                {}
                if large["oid"] in self.server.stored
                else {"actions": {"upload": {"href": self.large(large["oid"])}}}
            )
            for large in json.loads(body)["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}, {}

    def large(self, oid: str) -> str:
        return f"{self.server.url}/lfs/{oid}"

    def store(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the content is not what was announced")
        self.server.stored[oid] = body
        return 200, {}, {}

    def branch(self, body: bytes, kind: str, name: str, revision: str) -> Answer:
        self.must_own(name)
        repository = self.find(PLURALS[kind], name)
        if revision in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[revision] = repository.branches["main"]
        return 200, {}, {}

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> Answer:
        self.must_own(name)
        repository = self.find(PLURALS[kind], name)
        files, message = dict(repository.files(revision)), ""
        for line in body.splitlines():
            operation, value = json.loads(line).values()
            if operation == "header":
                message = value["summary"]
            elif operation == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation == "lfsFile":
                if value["oid"] not in self.server.stored:
                    raise Refusal(400, "Your push was rejected: an LFS pointer points to a file that does not exist")
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                del files[value["path"]]
        oid = repository.commit(revision, files, message)
        prefix = "" if kind == "models" else f"{kind}/"
        return 200, {"commitUrl": f"{self.server.url}/{prefix}{name}/commit/{oid}", "commitOid": oid}, {}

    def download(self, body: bytes, kind: str | None, name: str, revision: str, path: str) -> Answer:
        repository = self.find(PLURALS[kind or "models"], name)
        oid = repository.resolve(revision)
        headers = {"X-Repo-Commit": oid}
        if path not in repository.commits[oid]:
            return 404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"}
        content = repository.commits[oid][path]
        return 200, content, headers | {"ETag": f'"{object_id(path, content)}"'}


@contextmanager
def logged_in_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    """A Hub on loopback that this process is logged in to, and that it tries again without waiting."""
    with HubServer() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, server.url)
        settings = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
        settings |= {"HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": str(folder / "token")}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


def object_id(path: str, content: bytes) -> str:
    """SHA-256 of a large file, git's own hash of another."""
    if path.endswith(LARGE_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def describe(path: str, content: bytes) -> dict:
    """A file in a listing."""
    file = {"type": "file", "path": path, "size": len(content), "oid": object_id(path, content)}
    if path.endswith(LARGE_SUFFIXES):
        file["lfs"] = {"oid": file["oid"], "size": len(content), "pointerSize": 128}
    return file


REPOSITORY = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
PAGE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = {
    "GET /api/whoami-v2": Handler.whoami,
    "POST /api/validate-yaml": Handler.validate_card,
    "POST /api/repos/create": Handler.create,
    f"GET {REPOSITORY}(/revision/(?P<revision>.+))?": Handler.info,
    f"GET {REPOSITORY}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?": Handler.tree,
    f"POST {REPOSITORY}/preupload/(?P<revision>.+)": Handler.preupload,
    f"POST {REPOSITORY}/branch/(?P<revision>.+)": Handler.branch,
    f"POST {REPOSITORY}/commit/(?P<revision>.+)": Handler.commit,
    rf"POST {PAGE}\.git/info/lfs/objects/batch": Handler.lfs_batch,
    "PUT /lfs/(?P<oid>[0-9a-f]{64})": Handler.store,
    f"(GET|HEAD) {PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": Handler.download,
}
