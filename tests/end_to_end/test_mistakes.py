"""Bad input: one clear line for each mistake, nothing half-written, existing results intact."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end.mistakes import configuration, models, runs, texts
from end_to_end.mistakes.place import End, check, make_folder, spawned, typed
from end_to_end.mistakes.row import RUN, Mistake

TABLE = [
    *configuration.MISTAKES,
    *models.MISTAKES,
    *texts.MISTAKES,
    *runs.MISTAKES,
]
# Once more as a process of their own: what libraries print by themselves shows only there.
ALSO_AS_A_PROCESS = (
    "several mistakes in one file",
    "a config.json that contradicts itself",
    "no tokenizer",
    "an encoder and decoder",
    "a training row without its answer",
)
UNREACHABLE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "no_proxy": "*"}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the mistakes are made in copies of."""
    folder = tmp_path_factory.mktemp("finished")
    make_folder(folder)
    return folder


@pytest.fixture(autouse=True)
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the finished folder."""
    folder = tmp_path / "here"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    for name in ("SPP_WORKSPACE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return folder


def named(name: str) -> Mistake:
    """Return a row of the table."""
    return next(mistake for mistake in TABLE if mistake.name == name)


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake.name)
def test_a_mistake_is_answered_by_one_line_and_nothing_is_written(mistake: Mistake) -> None:
    check(mistake)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALSO_AS_A_PROCESS)
def test_as_a_process_of_its_own_no_library_adds_a_word(name: str) -> None:
    check(named(name), spawned)


def test_debug_shows_the_traceback_before_the_line() -> None:
    for spoil in (mistake := named("a weight of NaN")).spoil:
        spoil()
    end = typed(f"{mistake.command} --quiet --debug")
    first, *_, last = end.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == f"error: {mistake.says}"
    assert end.code == 2


def test_a_run_in_use_names_the_process_that_holds_it() -> None:
    code = (
        "import time\nfrom spp_cli.workspace import Workspace\n"
        "with Workspace('workspace').run('base-wanda-0.5').lock('finetune'):\n"
        "    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        says = (
            f"run base-wanda-0.5 is in use by pid {holder.pid} on host … (spp finetune since …). "
            "Wait for it, or choose another --run"
        )
        check(Mistake("in use", "spp merge --run base-wanda-0.5 --force", says))
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (
            "spp prune --model owner/nowhere",
            "model owner/nowhere: no such folder here, and no connection to the hub, nor a copy in "
            "its cache. Give the folder of a model with --model",
        ),
        (
            "spp prune small.yaml --run new --calibration c4",
            "data set allenai/c4 (en/…): no connection to the hub, nor a copy in its cache. "
            "Set prune.calibration.source to a file of text or rows, or a folder of them",
        ),
        (
            "spp eval small.yaml --text wikitext2",
            "data set Salesforce/wikitext (…): no connection to the hub, nor a copy in its cache. "
            "Put a copy at DATA_FOLDER/Salesforce/wikitext and set eval.data_folder, or set …",
        ),
    ],
    ids=["model", "calibration", "evaluation"],
)
def test_without_a_network_the_way_round_is_told_at_once(command: str, problem: str) -> None:
    def unconnected(command: str) -> End:
        return spawned(command, {**UNREACHABLE, "HF_HOME": str(Path("hub").absolute())})

    check(Mistake("no network", command, problem), unconnected)


def test_what_is_not_installed_is_named_with_the_way_to_install_it() -> None:
    # Python imports this file on its start: the package is as good as not there.
    Path("sitecustomize.py").write_text("import sys\nsys.modules['lm_eval'] = None\n")
    says = (
        "evaluation on tasks needs the package lm-eval, which is not installed. "
        'Run: pip install "spp-cli[eval]"'
    )

    def without_extra(command: str) -> End:
        path = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
        return spawned(command, {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"})

    check(Mistake("no extra", "spp eval small.yaml --tasks boolq", says), without_extra)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "folder", "room"),
    [
        ("spp prune small.yaml --run new --sparsity 0.7", "workspace/new/prune", 200_000),
        ("spp prune small.yaml --run base-wanda-0.5 --force", f"{RUN}/prune", 200_000),
        ("spp finetune small.yaml --run base-wanda-0.5 --force", f"{RUN}/finetune", 40_000),
        ("spp merge small.yaml --run base-wanda-0.5 --force", f"{RUN}/merge", 200_000),
    ],
    ids=["prune", "prune again", "finetune", "merge"],
)
def test_a_full_disk_leaves_what_was_finished_as_it_was(
    command: str, folder: str, room: int
) -> None:
    def full(command: str) -> End:
        end = spawned(command, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room,) * 2))
        shutil.rmtree(f"{folder}.partial", ignore_errors=True)  # a stage that had begun may stay
        return end

    says = (
        f"cannot write {folder}.partial: the disk is full. Finished stages are intact. "
        "Free some space, then run the same command again"
    )
    check(Mistake("full disk", command, says), full)


def test_the_stages_before_a_mistake_keep_their_results() -> None:
    Path("rows.jsonl").write_text('["no object"]\n')
    end = typed("spp run small.yaml --run new --quiet")
    assert end.code == 2
    assert end.stderr.startswith("error: rows.jsonl:1: ")
    assert [path.name for path in Path("workspace/new").iterdir() if path.is_dir()] == ["prune"]
    assert typed("spp verify workspace/new/prune").code == 0
