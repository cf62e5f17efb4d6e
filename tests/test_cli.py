"""The command line: help, flags, exit codes, and what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spp_cli import __version__, fields
from spp_cli.cli import app
from spp_cli.commands import COMMANDS
from spp_cli.flags import FLAGS
from spp_cli.settings import assigned, validate

SMALL = ["--samples", "2", "--sequence-length", "64"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with the default workspace and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPP_WORKSPACE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def spp(*arguments: str) -> Any:
    """Run a command in this process; the result has exit_code, stdout and stderr."""
    return CliRunner().invoke(app, arguments)


def spawn(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("command", [[], *map(str.split, COMMANDS)], ids=lambda c: "-".join(c))
def test_help_is_there_and_needs_no_torch(command: list[str]) -> None:
    end = spawn(
        "import sys\nfrom spp_cli.cli import app\n"
        f"try:\n    app({[*command, '--help']!r})\nexcept SystemExit as end:\n    code = end.code\n"
        "slow = ['torch', 'transformers', 'datasets']\n"
        f"slow += {['spp_cli.config'] if not command else []}  # a list of names needs less\n"
        "heavy = [name for name in slow if name in sys.modules]\n"
        "sys.exit(f'{code} {heavy}')"
    )
    assert end.stderr.strip() == "0 []"
    assert "Usage: " in end.stdout


@pytest.mark.parametrize("command", sorted(FLAGS))
def test_every_option_has_its_help_and_its_panel(command: str) -> None:
    text = spp(*command.split(), "--help").stdout
    flat = " ".join(text.replace("│", " ").split())
    for flag in FLAGS[command]:
        assert flag.description
        assert flag.option in flat
        assert f" {flag.panel} " in text
        assert " ".join(flag.description.split()[:3]) in flat


@pytest.mark.parametrize("command", sorted(FLAGS))
def test_no_two_options_of_a_command_share_a_name(command: str) -> None:
    options = [flag.option for flag in FLAGS[command]]
    assert len(set(options)) == len(options)


def test_help_shows_the_defaults_and_those_of_the_embedded_model() -> None:
    text = " ".join(spp("prune", "--help").stdout.replace("│", " ").split())
    assert "[default: 0.5; embedded model: 0.75]" in text
    assert "magnitude|wanda|sparsegpt" in text


def test_every_flag_sets_a_key_that_there_is() -> None:
    for flag in {flag for flags in FLAGS.values() for flag in flags}:
        keys = tuple(flag.key.split("."))
        method = fields.plugin_at(keys[:-1])
        names = method.load(method.default).model_fields if method else [keys[-1]]
        assert method is not None or fields.find(keys) is not None
        assert keys[-1] in names


def test_a_flag_reads_its_value_as_the_field_wants_it() -> None:
    by_name = {flag.option: flag for flag in FLAGS["finetune"]}
    given = {
        "--learning-rate": "1e-2",
        "--r": "8",
        "--target-modules": ["*.q_proj", "*.k_proj,*.v_proj"],
        "--gradient-checkpointing": True,
        "--train-on-prompt": False,
        "--sequence-length": "auto",
        "--data": "2024",
    }
    config = validate(assigned(by_name[name].assignment(value) for name, value in given.items()))
    finetune = config.finetune
    assert (finetune.learning_rate, finetune.adapter.r) == (0.01, 8)
    assert finetune.target_modules == ("*.q_proj", "*.k_proj", "*.v_proj")
    assert finetune.gradient_checkpointing
    assert not finetune.data.train_on_prompt
    assert (finetune.data.sequence_length, finetune.data.source) == ("auto", "2024")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--sparsity", "7.5"], "--sparsity: prune.sparsity is 7.5; must be a number"),
        (
            ["prune", "--method", "wnda"],
            "--method: prune.method is 'wnda'; must be one of magnitude",
        ),
        (["prune", "--pattern", "4:2"], "--pattern: prune.pattern is '4:2'; must be unstructured"),
        (
            ["prune", "--pattern", "2:4", "--sparsity", "0.75"],
            "--sparsity: prune.sparsity is 0.75; but",
        ),
        (
            ["prune", "--set", "prune.methd=wanda"],
            "unknown key 'prune.methd'. Did you mean 'method'?",
        ),
        (["prune", "none.yaml"], "none.yaml: no such file"),
        (["calibrate", "none.yaml"], "none.yaml: no such file"),
        (["calibrate", "--model", "./none"], "none: no such folder. Give a model's folder"),
        (["calibrate", "--model", "x", "--workspace", "/dev/null"], "/dev/null is not a folder"),
        (
            ["calibrate", "--calibration", "{demo: 0}"],
            "--calibration: prune.calibration.source is {'demo': 0}; the weight of demo must be",
        ),
        (["prune", "--run", "a/b"], "--run: run is 'a/b'; must be letters"),
        (["finetune"], "workspace has no run with a pruned model yet. Run: spp prune"),
        (["merge"], "workspace has no run with a finetuned model yet. Run: spp finetune"),
        (["eval"], "workspace has no run with a pruned model yet. Run: spp prune"),
        (["eval", "--path", ".", "--stage", "merge"], "leave --stage and --run out"),
        (["status", "mine"], "workspace has no run mine. Runs there: none"),
        (["verify", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str
) -> None:
    end = spp(*arguments)
    assert end.exit_code == 2
    assert end.stdout == ""
    assert end.stderr.startswith("error: ")
    assert message in end.stderr
    assert end.stderr.count("\n") == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--sparcity", "1"],
        ["calibrate", "--preview", "-1"],
        ["prone"],
        ["verify"],
        ["run", "a", "b"],
    ],
)
def test_a_command_that_cannot_be_read_is_the_users_mistake_too(arguments: list[str]) -> None:
    end = spp(*arguments)
    assert end.exit_code == 2
    assert "Usage: " in end.stderr


def test_debug_shows_where_an_error_came_from() -> None:
    end = spp("prune", "none.yaml", "--debug")
    assert "Traceback" in end.stderr
    assert end.stderr.splitlines()[-1].startswith("error: none.yaml")


@pytest.mark.parametrize("place", ["before", "after"])
def test_json_is_one_document_on_stdout_even_for_an_error(place: str) -> None:
    end = spp("--json", "merge") if place == "before" else spp("merge", "--json")
    assert end.exit_code == 2
    document = json.loads(end.stdout)
    assert document["exit_code"] == 2
    assert end.stderr == f"error: {document['error']}\n"


def test_version_is_said() -> None:
    end = spp("--version")
    assert (end.exit_code, end.stdout) == (0, f"spp {__version__}\n")


def test_an_empty_workspace_has_no_runs_and_that_is_no_error() -> None:
    assert spp("status").stdout == "workspace has no runs yet\n"
    assert json.loads(spp("status", "--json").stdout) == {"workspace": "workspace", "runs": []}


def test_prune_says_that_it_takes_the_embedded_model_and_prints_one_document() -> None:
    end = spp("prune", *SMALL, "--json")
    assert end.exit_code == 0, end.stderr
    document = json.loads(end.stdout)
    assert document["stage"] == "prune"
    assert document["run"] == "demo-wanda-0.75"
    assert document["folder"] == "workspace/demo-wanda-0.75/prune"
    assert not document["skipped"]
    assert document["metrics"]["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert "model: the embedded one (5.5 M parameters" in end.stderr


def test_calibrate_keeps_what_prune_then_takes() -> None:
    end = spp("calibrate", *SMALL, "--preview", "1", "--json")
    assert end.exit_code == 0, end.stderr
    kept = json.loads(end.stdout)
    assert Path(kept["path"]).parent == Path("workspace/.calibration")
    assert (kept["source"], kept["recipe"], kept["is_new"]) == ("demo", "documents", True)
    assert (kept["samples"], kept["length"], kept["seed"]) == (2, 64, 0)
    (text,) = kept["preview"]
    assert 0 < len(text) <= 160
    assert "model: the embedded one" in end.stderr

    lines = spp("calibrate", *SMALL, "--preview", "9").stdout.splitlines()
    assert lines[0] == f"tokens   {kept['path']} (drawn before)"
    assert lines[3:5] == ["samples  2 × 64, seed 0", f"digest   {kept['digest']}"]
    assert lines[6] == f"1  {text}"
    assert len(lines) == 8
    assert json.loads(spp("calibrate", *SMALL, "--seed", "1", "--json").stdout)["is_new"]

    pruned = json.loads(spp("prune", *SMALL, "--json").stdout)
    assert pruned["metrics"]["calibration"] == {
        key: kept[key] for key in ("source", "recipe", "samples", "length", "digest")
    }


def test_what_was_pruned_is_skipped_then_seen_checked_and_measured() -> None:
    [warning] = spp("prune", *SMALL, "--pattern", "2:4", "--quiet").stderr.splitlines()
    assert warning.startswith("warning: fewer tokens than it has inputs reached model.layers.")
    again = spp("prune", *SMALL, "--pattern", "2:4")
    assert again.stdout == "prune is up to date: workspace/demo-wanda-2of4/prune\n"

    status = json.loads(spp("status", "demo-wanda-2of4", "--json").stdout)
    assert status["stages"]["prune"]["state"] == "done"
    assert status["sparsity"] == 0.5
    assert "demo-wanda-2of4" in spp("status").stdout

    folder = "workspace/demo-wanda-2of4/prune"
    assert spp("verify", folder).exit_code == 0
    broken = spp("verify", folder, "--pattern", "1:4", "--json")
    assert broken.exit_code == 1
    assert not json.loads(broken.stdout)["ok"]
    assert broken.stderr.startswith("error: ")

    chunks = ["--set", "eval.perplexity.max_chunks=2", "--tasks", "perplexity"]
    whole = json.loads(spp("eval", *chunks, "--json").stdout)
    assert list(whole["results"]["models"]) == ["dense", "prune"]
    assert spp("eval", *chunks, "--stage", "dense").exit_code == 0
    alone = json.loads(spp("eval", "--path", folder, *chunks, "--json").stdout)
    perplexity = whole["results"]["models"]["prune"]["results"]["perplexity@256"]["perplexity"]
    (model,) = alone["models"].values()
    assert model["results"]["perplexity@256"]["perplexity"] == pytest.approx(perplexity)
    assert "perplexity@256" in spp("eval", "--path", folder, *chunks).stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_result_that_cannot_be_written_is_an_error_of_one_line() -> None:
    command = [sys.executable, "-m", "spp_cli", "status"]
    with open("/dev/full", "w") as full:
        end = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert end.returncode == 2
    assert end.stderr.startswith("error: stdout: [Errno 28] No space left on device.")
    assert end.stderr.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_one_line_that_says_how_to_go_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "spp_cli", "prune", "--samples", "512"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where the tests run in the background, SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("calibration:"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert rest.splitlines()[-1].startswith("interrupted. Finished stages are kept")
    assert "Traceback" not in rest
    assert not Path("workspace/demo-wanda-0.75/prune").exists()
    found = json.loads(spp("status", "--json").stdout)["runs"]
    # "missing" has no run: it is too early for a block to have been pruned.
    assert [run["stages"]["prune"]["state"] for run in found] in (["partial"], [])
