"""Kill it at any moment, fill the disk: what is there is the old result or the new one, whole."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from spp_cli import fingerprint
from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import Fingerprint, Manifest, folder_digest
from spp_cli.publishing import damage, keep_only
from spp_cli.workspace import Run, Workspace

PUBLISHED = {"adapter", "adapter/weights", "config.yaml", "manifest.json", "model.safetensors"}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def made_from(text: str) -> Fingerprint:
    return Fingerprint({"prune": {"sparsity": 0.5}}, {"model": text}, seed=0)


def work_on(run: Run, text: str) -> bool:
    """Write files as a stage does, some of them scratch; return False if it is up to date."""
    partial = run.begin("prune", made_from(text), "seed: 0\n")
    if partial is None:
        return False
    (partial / ".resume" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    (partial / ".resume" / "checkpoint-1" / "optimizer").write_text(text)
    (partial / "adapter").mkdir(exist_ok=True)
    (partial / "adapter" / "weights").write_text(text)
    (partial / ".model.safetensors.1.writing").write_text(text)
    (partial / "left").mkdir(exist_ok=True)
    (partial / "left" / ".tmpAb12Cd").write_text("what a library left")
    (partial / "model.safetensors").write_text(text * 1000)
    (partial / "progress.json").write_text('{"done": 17, "total": 32, "unit": "blocks"}')
    return True


def publish(run: Run, text: str) -> Manifest:
    return run.publish(
        "prune",
        fingerprint=made_from(text),
        output=["adapter", "model.safetensors"],
        metrics={"text": text},
        mask_digest="abc",
        seconds=1.5,
        peak_memory_bytes=None,
        started="2026-01-01T00:00:00+00:00",
    )


def finish(root: Path, text: str) -> None:
    """Run the stage from its beginning, or from where it was interrupted, to its result."""
    run = Workspace(root).run("demo")
    with run.lock("prune"):
        if work_on(run, text):
            publish(run, text)


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def whole_result(root: Path) -> str | None:
    """Open the workspace as the next command does; return the text of its result, checked whole."""
    run = Workspace(root).run("demo")
    assert not (root / "demo" / "prune.old").exists()
    assert run.state("prune") in ("missing", "partial", "done")
    folder, manifest = run.stage("prune"), run.manifest("prune")
    if folder is None or manifest is None:
        assert not (root / "demo" / "prune").exists()
        return None
    assert names_below(folder) == PUBLISHED
    assert manifest.output_digest == folder_digest(folder, manifest.files)
    text = str(manifest.metrics["text"])
    assert manifest.inputs == {"model": text}
    assert (folder / "model.safetensors").read_text() == text * 1000
    return text


def in_a_child(work: Callable[[], object]) -> bool:
    """Run ``work`` in a forked process; return whether it came to its end and was not killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def killed_before(change: int, work: Callable[[], object]) -> Callable[[], None]:
    """Return ``work`` with a SIGKILL to itself right before its ``change``-th change of the disk.

    Python's audit events name each file opened, renamed, removed and made, whoever does it.
    """

    def work_until_killed() -> None:
        seen = count(1)

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            opens = event == "open" and arguments[1] is not None and arguments[1] != "r"
            if (event in CHANGES or opens) and next(seen) == change:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        work()

    return work_until_killed


def every_kill(start: Path | None, root: Path, work: Callable[[], object]) -> Iterator[int]:
    """Kill ``work`` before its first change, its second, and so on, always from ``start``."""
    for change in count(1):
        shutil.rmtree(root, ignore_errors=True)
        if start:
            shutil.copytree(start, root)
        ended = in_a_child(killed_before(change, work))
        yield change
        if ended:
            break


def test_a_first_run_killed_at_any_moment_leaves_nothing_broken(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    results = []
    for _ in every_kill(None, root, lambda: finish(root, "new")):
        results.append(whole_result(root))
        finish(root, "new")
        assert whole_result(root) == "new"
        assert set(os.listdir(root / "demo")) == {".lock", "prune"}
    assert len(results) > 15
    assert results[0] is None
    assert results[-1] == "new"


def test_a_replacement_killed_at_any_moment_leaves_the_old_or_the_new_result(
    tmp_path: Path,
) -> None:
    root, start = tmp_path / "workspace", tmp_path / "start"
    finish(start, "old")
    results = []
    for _ in every_kill(start, root, lambda: finish(root, "new")):
        results.append(whole_result(root))
        finish(root, "new")
        assert whole_result(root) == "new"
        assert set(os.listdir(root / "demo")) == {".lock", "prune"}
    assert len(results) > 20
    assert set(results) == {"old", "new"}
    assert "old" not in results[results.index("new") :]


def test_a_recovery_killed_at_any_moment_can_be_repeated(tmp_path: Path) -> None:
    begin, start, root = tmp_path / "begin", tmp_path / "start", tmp_path / "workspace"
    finish(begin, "old")
    for _ in every_kill(begin, start, lambda: finish(start, "new")):
        if not (start / "demo" / "prune").exists():
            break
    assert (start / "demo" / "prune.old").exists()
    for _ in every_kill(start, root, lambda: Workspace(root).run("demo")):
        assert whole_result(root) == "new"


def test_a_result_whose_replacement_is_gone_comes_back(tmp_path: Path) -> None:
    finish(tmp_path, "old")
    (tmp_path / "demo" / "prune").rename(tmp_path / "demo" / "prune.old")
    assert whole_result(tmp_path) == "old"


def test_kills_at_random_moments_leave_whole_results(tmp_path: Path) -> None:
    def write_results_for_ever() -> None:
        for number in count():
            finish(tmp_path, str(number))

    finish(tmp_path, "first")
    dice = random.Random(0)
    for _ in range(12):
        if not (child := os.fork()):
            write_results_for_ever()
        time.sleep(dice.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert whole_result(tmp_path) is not None


def test_what_was_killed_goes_on_from_what_it_left(tmp_path: Path) -> None:
    def work_and_die() -> None:
        run = Workspace(tmp_path).run("demo")
        with run.lock("prune"):
            work_on(run, "new")
            os.kill(os.getpid(), signal.SIGKILL)

    assert not in_a_child(work_and_die)
    run = Workspace(tmp_path).run("demo")
    assert run.state("prune") == "partial"
    assert run.progress("prune") == {"done": 17, "total": 32, "unit": "blocks"}
    with run.lock("prune"):
        partial = run.begin("prune", made_from("new"), "seed: 0\n")
        assert partial
        assert (partial / ".resume" / "checkpoint-1" / "optimizer").read_text() == "new"
        publish(run, "new")
    assert run.progress("prune") is None
    assert whole_result(tmp_path) == "new"


def test_work_that_is_thrown_away_is_never_half_there_for_the_next(tmp_path: Path) -> None:
    start, root = tmp_path / "start", tmp_path / "workspace"

    def begin(below: Path, *, force: bool) -> Path:
        run = Workspace(below).run("demo")
        with run.lock("prune"):
            partial = run.begin("prune", made_from("new"), "seed: 0\n", force=force)
            assert partial
            return partial

    for block in range(5):
        (begin(start, force=False) / f"block-{block}").write_text("")
    left = set()
    for _ in every_kill(start, root, lambda: begin(root, force=True)):
        left.add(len([name for name in os.listdir(begin(root, force=False)) if "block" in name]))
    assert left == {5, 0}


def test_everything_is_on_the_disk_before_the_result_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = set(), os.fsync

    def note_and_sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    finish(tmp_path, "new")
    run_folder = tmp_path / "demo"
    published = [run_folder, run_folder / "prune", *(run_folder / "prune").rglob("*")]
    assert {path.stat().st_ino for path in published} <= synced


def with_a_full_disk(work: Callable[[], object]) -> None:
    """Run ``work`` where the kernel refuses to let any file grow, and expect its one-line error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with pytest.raises(WorkspaceError, match=r"^cannot write .*: File too large\. Finished stages"):
        work()


def test_a_disk_full_at_publishing_keeps_the_old_result_and_the_work(tmp_path: Path) -> None:
    finish(tmp_path, "old")

    def run_out_of_space() -> None:
        run = Workspace(tmp_path).run("demo")
        with run.lock("prune"):
            work_on(run, "new")
            with_a_full_disk(lambda: publish(run, "new"))

    assert in_a_child(run_out_of_space)
    assert whole_result(tmp_path) == "old"
    partial = tmp_path / "demo" / "prune.partial"
    assert {".resume", "model.safetensors", "fingerprint.json"} <= set(os.listdir(partial))
    assert not [name for name in names_below(tmp_path) if name.endswith(".writing")]
    finish(tmp_path, "new")
    assert whole_result(tmp_path) == "new"


def test_a_disk_full_at_the_beginning_leaves_nothing_of_the_stage(tmp_path: Path) -> None:
    finish(tmp_path, "old")
    before = names_below(tmp_path)

    def run_out_of_space() -> None:
        run = Workspace(tmp_path).run("demo")
        with run.lock("prune"):
            with_a_full_disk(lambda: run.begin("prune", made_from("new"), "seed: 0\n"))

    assert in_a_child(run_out_of_space)
    assert names_below(tmp_path) == before


def test_a_disk_full_on_resuming_keeps_the_work(tmp_path: Path) -> None:
    run = Workspace(tmp_path).run("demo")
    with run.lock("prune"):
        work_on(run, "new")
    before = names_below(tmp_path) - {"demo/prune.partial/.model.safetensors.1.writing"}

    def run_out_of_space() -> None:
        with run.lock("prune"):
            with_a_full_disk(lambda: run.begin("prune", made_from("new"), "seed: 0\n"))

    assert in_a_child(run_out_of_space)
    assert names_below(tmp_path) == before
    finish(tmp_path, "new")
    assert whole_result(tmp_path) == "new"


def test_the_record_lists_the_output_and_nothing_of_the_workspaces_own(tmp_path: Path) -> None:
    finish(tmp_path, "new")
    record = json.loads((tmp_path / "demo" / "prune" / "manifest.json").read_text())
    assert record["files"] == {"adapter/weights": 3, "model.safetensors": 3000}


def test_digests_read_while_publishing_are_remembered_where_the_files_are_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60 * 10**9)
    run = Workspace(tmp_path).run("demo")
    with run.lock("prune"):
        work_on(run, "new")
        manifest = publish(run, "new")
    monkeypatch.setattr(fingerprint, "_sha256", lambda file: pytest.fail(f"{file} is read"))
    folder, cache = tmp_path / "demo" / "prune", Workspace(tmp_path).digest_cache
    assert folder_digest(folder, manifest.files, cache) == manifest.output_digest


def test_damage_names_the_file_and_both_sizes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("whole")
    files = keep_only(tmp_path, ["model.safetensors"])
    assert damage(tmp_path, files) is None
    (tmp_path / "model.safetensors").write_text("who")
    assert damage(tmp_path, files) == f"{tmp_path}/model.safetensors has 3 bytes instead of 5"
    (tmp_path / "model.safetensors").unlink()
    assert damage(tmp_path, files) == f"{tmp_path}/model.safetensors is missing"
