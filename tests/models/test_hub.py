"""What a hub that does not give the model says, and what spp makes of it; no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest
from hub import served
from huggingface_hub import constants

from spp_cli.errors import ModelError
from spp_cli.models.hub import download

Answer = Callable[[int, str], None]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answer]:
    """A hub on this machine: ``hub(404, "RepoNotFound")`` says how it answers from then on."""
    answer = (200, "")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer[0])
            self.send_header("X-Error-Code", answer[1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    def say(status: int, code: str) -> None:
        nonlocal answer
        answer = (status, code)

    with served(Handler, tmp_path, monkeypatch):
        yield say


class Model(BaseHTTPRequestHandler):
    """A hub with one model, of a config, weights, and the terms on which they are given."""

    FILES: ClassVar = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "README.md": b"its card",
        "LICENSE": b"its terms",
        "model.bin": b"weights once more",
    }

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path:
            self.answer(self.FILES[name])
        elif "/tree/" in self.path:
            self.answer(json.dumps([self.entry(name) for name in self.FILES]).encode())
        else:
            siblings = [{"rfilename": name} for name in self.FILES]
            model = {"id": "owner/name", "sha": "0" * 40, "siblings": siblings}
            self.answer(json.dumps(model).encode())

    do_HEAD = do_GET  # noqa: N815

    def entry(self, name: str) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(self.FILES[name]), "oid": "0" * 40}

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize("with_weights", [False, True])
def test_weights_are_downloaded_only_if_they_are_wanted(
    with_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Model, tmp_path, monkeypatch):
        folder = download("owner/name", with_weights=with_weights)
    names = {
        "config.json",
        "README.md",
        "LICENSE",
        *(["model.safetensors"] if with_weights else []),
    }
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.parametrize(
    ("status", "code", "problem"),
    [
        (404, "RepoNotFound", r"it is not on the hub, or is private \(hf auth login\)"),
        (401, "RepoNotFound", r"it is not on the hub, or is private \(hf auth login\)"),
        (403, "GatedRepo", "its owner must let you in. Ask on its page, then: hf auth login"),
        (404, "RevisionNotFound", "it has no revision v2 on the hub"),
        (400, "", r"\S.*"),
    ],
)
def test_why_a_model_is_not_given_is_said_with_the_way_round(
    hub: Answer, status: int, code: str, problem: str
) -> None:
    hub(status, code)
    says = rf"^model owner/name: no such folder here, and {problem}\. Give the folder of a model"
    with pytest.raises(ModelError, match=says) as error:
        download("owner/name", "v2")
    assert "\n" not in str(error.value)


def test_without_an_answer_the_cache_is_all_there_is(
    hub: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="no connection to the hub, nor a copy in its cache"):
        download("owner/name")
    assert not constants.HF_HUB_OFFLINE
