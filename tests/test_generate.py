"""spp generate: every model of a run or a folder says what transformers makes it say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.stages.sparse_model import adapted_model
from spp_cli.workspace import Workspace

PROMPT = "def add_7(x):"
NEW_TOKENS = 12
LENGTH = ["--max-new-tokens", str(NEW_TOKENS)]
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def here(side_by_side: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with the finished runs as workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPP_WORKSPACE", str(side_by_side.root))
    return tmp_path


def generate(*arguments: str, code: int = 0, **how: Any) -> dict[str, Any]:
    """Return the document of ``spp generate --json``."""
    done = CliRunner().invoke(app, ["generate", *arguments, *LENGTH, "--json"], **how)
    assert done.exit_code == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def texts(document: dict[str, Any]) -> dict[str, str]:
    return {each["model"]: each["text"] for each in document["models"]}


def by_transformers(model: Any, folder: Path, *, chat: bool = False, **how: Any) -> str:
    """Return what transformers' own template and generate make of the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")
    if chat:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT}],
            **{"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True},
        )
    written = model.generate(**ids, **{"do_sample": False, "max_new_tokens": NEW_TOKENS, **how})
    return str(tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(run: Path) -> Any:
    parts = {"device": torch.device("cpu"), "dtype": torch.float32, "trust_remote_code": False}
    return adapted_model(run / "prune", run / "finetune", **parts).model


def test_a_run_shows_its_models_as_transformers_has_them(side_by_side: Workspace) -> None:
    run, base = side_by_side.root / "wanda", side_by_side.root.parent / "base"
    found = texts(generate("wanda", PROMPT))
    folders = {"dense": base, "prune": run / "prune", "merge": run / "merge"}
    assert found == {
        f"wanda/{stage}": by_transformers(plain(folder), folder)
        for stage, folder in folders.items()
    }
    finetuned = texts(generate("wanda", PROMPT, "--stage", "finetune"))
    assert finetuned == {"wanda/finetune": by_transformers(adapted(run), run / "prune")}


def test_a_stage_is_named_by_its_run_or_by_its_folder(side_by_side: Workspace) -> None:
    run = side_by_side.root / "wanda"
    named = texts(generate("wanda/merge", PROMPT, "magnitude/prune", str(run / "finetune")))
    assert list(named) == ["wanda/merge", "magnitude/prune", "wanda/finetune"]
    assert texts(generate(str(run), PROMPT)) == texts(generate("wanda/", PROMPT))


def test_any_model_folder_will_do(side_by_side: Workspace, here: Path) -> None:
    shutil.copytree(side_by_side.root / "wanda/merge", here / "elsewhere")
    (here / "elsewhere/manifest.json").unlink()
    (model,) = generate("elsewhere", PROMPT)["models"]
    assert (model["model"], model["stage"]) == ("elsewhere", None)
    assert model["text"] == generate("wanda/merge", PROMPT)["models"][0]["text"]
    assert len(generate("demo", PROMPT, "./elsewhere")["models"]) == 2


def test_drawing_is_by_temperature_and_repeats_with_its_seed(side_by_side: Workspace) -> None:
    drawn = [
        texts(generate("wanda/merge", PROMPT, "--temperature", "1.5", "--seed", seed))
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    folder = side_by_side.root / "wanda/merge"
    torch.manual_seed(1)
    own = by_transformers(plain(folder), folder, do_sample=True, temperature=1.5)
    assert drawn[0] == {"wanda/merge": own}


def test_the_prompt_comes_from_stdin_as_it_is() -> None:
    document = generate("wanda/prune", "-", input=f"{PROMPT}\n    ")
    assert document["prompt"] == f"{PROMPT}\n    "
    assert texts(document) == texts(generate("wanda/prune", f"{PROMPT}\n    "))


def test_chat_puts_the_prompt_into_the_template(side_by_side: Workspace, here: Path) -> None:
    shutil.copytree(side_by_side.root / "wanda/merge", here / "chat")
    (here / "chat/manifest.json").unlink()
    (here / "chat/chat_template.jinja").write_text(CHATML)
    own = by_transformers(plain(here / "chat"), here / "chat", chat=True)
    assert texts(generate("chat", PROMPT, "--chat")) == {"chat": own}
    error = generate("wanda/merge", PROMPT, "--chat", code=2)["error"]
    assert error.startswith("--chat needs a chat template")


def test_a_dense_model_that_is_gone_is_left_out_with_a_warning(
    side_by_side: Workspace, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(side_by_side.root / "magnitude", here / "runs/magnitude")
    for path in (here / "runs/magnitude").rglob("config.yaml"):
        base = str(side_by_side.root.parent / "base")
        path.write_text(path.read_text().replace(base, f"{here}/gone"))
    monkeypatch.setenv("SPP_WORKSPACE", "runs")
    done = CliRunner().invoke(app, ["generate", "magnitude", PROMPT, "--quiet", *LENGTH])
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("warning: the dense model is left out: ")
    error = generate("magnitude/dense", PROMPT, code=2)["error"]
    assert error.startswith(f"{here}/gone: no such folder")


def test_texts_stand_side_by_side_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(columns: int, *paths: str) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        done = CliRunner().invoke(app, ["generate", paths[0], PROMPT, *paths[1:], *LENGTH])
        return done.stdout

    assert shown(160, "wanda").splitlines()[0].split() == ["dense", "pruned", "merged"]
    lines = shown(60, "wanda").splitlines()
    titles = [line for line in lines if line.startswith("── ")]
    assert titles == ["── dense", "── pruned", "── merged"]
    titles = shown(160, "wanda/prune", "magnitude/prune").splitlines()[0].split()
    assert titles == ["wanda/prune", "magnitude/prune"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wanda/purne", "x"], "wanda/purne names no model of a run; must end in one of dense, "),
        (["wanda/eval", "x"], "wanda/eval names no model of a run"),
        (["magnitude/merge", "x"], "magnitude/merge needs a merged model, and run magnitude has"),
        (["magnitude", "x", "--stage", "finetune"], "magnitude/finetune needs a finetuned model"),
        (["wanda", "x", "--stage", "purne"], "--stage is 'purne'; must be one of dense, prune"),
        (["wanda/prune", "x", "--stage", "merge"], "--stage chooses among the stages of a run"),
        (["./nowhere", "x"], "nowhere: no such folder. Give a model's folder or its hub id"),
        (["wanda", " "], "the prompt is empty"),
        (["wanda", "x", "--temperature", "inf"], "--temperature is inf; must be a number"),
        (["wanda", "x " * 99], "the prompt has 1"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], says: str) -> None:
    error = generate(*arguments, code=2)["error"]
    assert error.startswith(says)
    assert "\n" not in error


@pytest.mark.parametrize("prompt", [b"-", b"\xff"])
def test_a_prompt_that_is_no_text_is_a_mistake(prompt: bytes) -> None:
    command = [sys.executable, "-m", "spp_cli", "generate", "wanda", prompt]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the prompt is no text in UTF-8")


def test_a_token_without_an_embedding_is_refused_in_one_line(
    side_by_side: Workspace, tmp_path: Path
) -> None:
    shutil.copytree(side_by_side.root / "wanda" / "prune", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(app, ["generate", "--chat", "model", PROMPT])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: token id 4096 is outside the model's vocabulary of 4096. "
        "Use the tokenizer that belongs to the model\n"
    )
