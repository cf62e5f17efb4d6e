"""What a hub that does not give the model says, and what spp makes of it; no network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest
from hub import served
from huggingface_hub import constants

from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import INDEX
from spp_cli.models.hub import download, in_cache

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


SINGLE: dict[str, bytes] = {"model.safetensors": b"weights"}
SHARDS = {
    INDEX: b'{"weight_map": {"a": "x.safetensors", "b": "p/x.safetensors"}}',
    "x.safetensors": b"weights",
    "p/x.safetensors": b"more",
}
BELONGING = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "own[1].tiktoken": b"YQ== 0",
    "preprocessor_config.json": b"{}",
    "additional_chat_templates/rag.jinja": b"{{ a }}",
}
TERMS = {"README.md": b"its card", "LICENSE": b"its terms"}
CODE = {"modeling_own.py": b"pass"}
OTHERS = dict.fromkeys(
    (
        "model.bin", "consolidated.safetensors", "params.json", "original/tokenizer.model",
        "original/consolidated.00.pth", "onnx/model.onnx", "onnx/tokenizer.json", "model-q4.gguf",
        "lora/adapter_config.json", "lora/tokenizer.json", "lora/adapter_model.safetensors",
        "picture.png", "model.fp16.safetensors",
    ),
    b"of no use",
)  # fmt: skip


class Model(BaseHTTPRequestHandler):
    """A hub with one model: its weights in files of several formats, and all that comes along."""

    FILES: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self.answer(self.FILES[unquote(self.path).split("/resolve/")[1].partition("/")[2]])
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


@pytest.mark.parametrize("weights", [SINGLE, SHARDS, {**SHARDS, **SINGLE}], ids=len)
@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("with_code", [False, True])
def test_a_model_is_fetched_with_all_that_belongs_to_it_and_no_weights_twice(
    weights: dict[str, bytes],
    with_weights: bool,
    with_code: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = type("Hub", (Model,), {"FILES": BELONGING | TERMS | CODE | OTHERS | weights})
    with served(hub, tmp_path, monkeypatch):
        folder = download("owner/name", with_weights=with_weights, with_code=with_code)
    loaded = SINGLE if SINGLE.keys() <= weights.keys() else weights
    index = {name: content for name, content in weights.items() if name.endswith(".json")}
    expected = BELONGING | TERMS | index | (CODE if with_code else {})
    expected |= loaded if with_weights else {}
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_in(folder)}
    assert found == expected
    assert in_cache("owner/name") == folder
    assert in_cache("owner/other") is None


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_copy_that_an_earlier_version_fetched_is_enough_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = type("Hub", (Model,), {"FILES": BELONGING | TERMS | SINGLE})
    with served(hub, tmp_path, monkeypatch):
        folder = download("owner/name")
        (folder / "own[1].tiktoken").unlink()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert download("owner/name") == folder
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
        with pytest.raises(ModelError, match="nor a copy in its cache"):
            download("owner/name")


def test_a_hub_that_falters_leaves_the_copy_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = type("Hub", (Model,), {"FILES": BELONGING | SINGLE})
    with served(hub, tmp_path, monkeypatch):
        folder = download("owner/name")
        for method in ("do_GET", "do_HEAD"):
            monkeypatch.setattr(hub, method, lambda self: self.send_error(400, "out of order"))
        assert download("owner/name") == folder
        with pytest.raises(
            ModelError, match="model other/name: no such folder here, and Bad request"
        ):
            download("other/name")


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
