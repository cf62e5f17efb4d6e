"""Stand-ins for the hub on this machine: no test goes beyond it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pytest
from huggingface_hub import constants

WRITER, READER = "hf_mayWrite", "hf_mayRead"


@contextmanager
def served(
    handler: type[BaseHTTPRequestHandler], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Make what ``handler`` answers the hub, and ``cache`` its cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


class Repository:
    """A model on the stand-in: its files by branch, and the messages of its commits."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.branches: dict[str, dict[str, bytes]] = {"main": {}}
        self.messages: list[str] = []

    def write(self, folder: Path, branch: str = "main") -> Path:
        """Write the files of a branch into ``folder``."""
        folder.mkdir()
        for name, content in self.branches[branch].items():
            (folder / name).write_bytes(content)
        return folder


class WritableHub(BaseHTTPRequestHandler):
    """What of the hub's HTTP interface a client needs to make repositories and to commit to them.

    Large files come by Git LFS, as clients without Xet send them. State is that of a subclass made
    by ``writable_hub``.
    """

    repositories: ClassVar[dict[str, Repository]]
    large: ClassVar[dict[str, bytes]]  # what came by LFS, by its SHA-256
    sent: ClassVar[list[str]]  # the requests, "POST /api/repos/create"
    refuse_large_after: ClassVar[int]  # so many large files are taken; then the line breaks

    def respond(self) -> None:
        self.sent.append(f"{self.command} {self.path}")
        body = self.body()
        if self.path == "/":
            self.answer(200)
        elif self.command == "PUT":
            self.take(self.path.rpartition("/")[2], body)
        elif not self.is_known():
            self.answer(401, {"error": "Invalid username or password."})
        elif self.command == "POST" and self.token() != WRITER:
            self.answer(403, {"error": "You may not do this."})
        else:
            self.route(body)

    do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815

    def route(self, body: bytes) -> None:
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        model = re.match(r"/(?:api/models/)?([\w-]+/[\w-]+)(?:\.git)?(?:/(.*))?$", self.path)
        assert model, self.path
        name, rest = model.groups()
        repository = self.repositories.get(name)
        if repository is None:
            return self.answer(404, {"error": "Not found"}, "RepoNotFound")
        action, _, branch = (rest or "revision/main").partition("/")
        if action == "branch":
            known = branch in repository.branches
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            return self.answer(409 if known else 200)
        work = {"revision": self.tell, "preupload": self.sort, "commit": self.commit}
        if action in work:
            return work[action](name, repository, branch, body)
        assert rest == "info/lfs/objects/batch"
        return self.ask_for(json.loads(body)["objects"])

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[name] = Repository(private=private)
        self.answer(200, {"url": f"{constants.ENDPOINT}/{name}"})

    def tell(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        siblings = [{"rfilename": file} for file in repository.branches[branch]]
        known = {"id": name, "sha": "0" * 40, "private": repository.private, "siblings": siblings}
        self.answer(200, known)

    def sort(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def ask_for(self, wanted: list[dict[str, Any]]) -> None:
        """Ask for the large files that are not here yet."""
        objects = []
        for each in wanted:
            found = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.large:
                found["actions"] = {"upload": {"href": f"{constants.ENDPOINT}/lfs/{each['oid']}"}}
            objects.append(found)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def take(self, digest: str, content: bytes) -> None:
        if len(self.large) >= self.refuse_large_after:
            return self.answer(400, {"error": "the line broke"})
        assert hashlib.sha256(content).hexdigest() == digest
        self.large[digest] = content
        self.answer(200)

    def commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        files = repository.branches[branch]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        url = f"{constants.ENDPOINT}/{name}/commit/{'1' * 40}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": "1" * 40})

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def is_known(self) -> bool:
        return self.token() in (WRITER, READER)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, value: Any = None, code: str = "") -> None:
        content = json.dumps(value).encode() if value is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def writable_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[WritableHub]]:
    """Make an empty hub that takes commits from whoever has the token ``WRITER``."""
    state = {"repositories": {}, "large": {}, "sent": [], "refuse_large_after": 1000}
    hub = type("Hub", (WritableHub,), state)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with served(hub, cache, monkeypatch):
        yield hub
