"""A model with Python code of its own, whose author is trusted: through every command."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from conftest import add_tokenizer, make_model
from typer.testing import CliRunner

import spp_cli
from spp_cli.cli import app

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
# Each of them reads a config, a tokenizer or a model, which may need the model's code.
READERS = {
    *("load_config", "load_tokenizer", "load_model", "empty_model", "open_model", "verify_folder"),
    *("pruned_model", "adapted_model"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder = add_tokenizer(make_model("llama", tmp_path / "base", vocab_size=4096))
    (folder / "own.py").write_text(CODE)
    places = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    own = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": places}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"def add_{n}(x): return x + {n}\n" for n in range(200)))
    read = {"source": str(text), "sequence_length": 32}
    settings = {
        "model": {"path": str(folder), "trust_remote_code": True},
        "prune": {"calibration": {**read, "samples": 2}},
        "finetune": {
            "data": {**read, "samples": 8},
            "max_steps": 1,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
        },
        "merge": {"check_sequences": 1, "check_length": 8},
        "eval": {"perplexity": {"source": str(text), "max_chunks": 1}},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(settings))
    return tmp_path


def spp(*arguments: str) -> str:
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_it_is_pruned_trained_merged_measured_sampled_and_verified(here):
    spp("run", "own.yaml", "--run", "r")
    results = json.loads((here / "workspace/r/eval/results.json").read_text())
    assert set(results["models"]) == {"dense", "prune", "finetune", "merge"}
    page = spp("report", "r", "--layer", "*.layers.0.mlp.up_proj")
    assert "No samples" not in page + Path("workspace/r/report.html").read_text()
    spp("generate", "r", "def", "--max-new-tokens", "2")
    spp("verify", "workspace/r/merge", "--trust-remote-code")
    refused = CliRunner().invoke(app, ["verify", "workspace/r/merge"])
    assert refused.exit_code == 2
    assert "this model needs Python code of its own" in refused.output


def test_no_call_in_the_package_forgets_whether_the_author_is_trusted():
    forgetful = [
        f"{path.name}:{node.lineno}: {node.func.id}"
        for path in Path(spp_cli.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in READERS
        and "trust_remote_code" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not forgetful
