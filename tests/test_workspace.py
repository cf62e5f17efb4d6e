"""What a workspace knows of its runs: what is done, stale, damaged, and what may be replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.errors import WorkspaceError
from spp_cli.fingerprint import Fingerprint, Manifest
from spp_cli.workspace import STAGES, Run, Workspace

CONFIG = "seed: 0\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Workspace(tmp_path / "workspace").run("demo")


def made_from(settings: dict[str, Any] | None = None, **inputs: str) -> Fingerprint:
    return Fingerprint({"prune": settings or {"sparsity": 0.5}}, inputs, seed=0)


def finish(
    run: Run, stage: str, fingerprint: Fingerprint, text: str = "weights", *, force: bool = False
) -> Manifest | None:
    """Make a stage whose output is ``text``; return None if it was up to date."""
    with run.lock(stage):
        partial = run.begin(stage, fingerprint, CONFIG, force=force)
        if partial is None:
            return None
        (partial / "model.safetensors").write_text(text)
        return run.publish(
            stage,
            fingerprint=fingerprint,
            output=["model.safetensors"],
            metrics={"perplexity": 18.5},
            mask_digest=None,
            seconds=2.0,
            peak_memory_bytes=10**9,
            started="2026-01-01T00:00:00+00:00",
        )


def output(run: Run, stage: str) -> str:
    return (run.folder / stage / "model.safetensors").read_text()


def finish_chain(run: Run, text: str = "weights") -> None:
    """Make prune, finetune and merge, each from what the one before it left."""
    fingerprint = made_from(model=text)
    for stage in ("prune", "finetune", "merge"):
        manifest = finish(run, stage, fingerprint, f"{stage} {text}")
        assert manifest
        fingerprint = Fingerprint({}, {stage: manifest.output_digest}, seed=0)


def test_a_stage_that_was_never_run_is_missing_and_nothing_is_created(run: Run) -> None:
    assert run.state("prune") == "missing"
    assert run.stage("prune") is None
    assert run.manifest("prune") is None
    assert run.progress("prune") is None
    assert run.holder() == {}
    assert not run.exists()
    assert not run.folder.parent.exists()


def test_a_finished_stage_has_its_output_its_configuration_and_its_record(run: Run) -> None:
    fingerprint = made_from(model="abc")
    manifest = finish(run, "prune", fingerprint)
    assert manifest == run.manifest("prune")
    assert manifest
    assert run.state("prune") == "done"
    assert run.stage("prune") == run.require("prune", for_stage="finetune") == run.folder / "prune"
    assert sorted(os.listdir(run.folder / "prune")) == [
        "config.yaml",
        "manifest.json",
        "model.safetensors",
    ]
    assert (run.folder / "prune" / "config.yaml").read_text() == CONFIG
    assert manifest.made_from().digest == manifest.fingerprint == fingerprint.digest
    assert manifest.metrics == {"perplexity": 18.5}
    assert manifest.files == {"model.safetensors": 7}
    assert manifest.versions["python"] == sys.version.split()[0]
    assert manifest.started < manifest.finished


def test_the_stage_at_work_is_running_and_the_others_are_not(run: Run) -> None:
    finish(run, "prune", made_from())
    with run.lock("finetune"):
        run.begin("finetune", made_from(), CONFIG)
        assert [run.state(stage) for stage in STAGES] == ["done", "running", "missing", "missing"]
    assert run.state("finetune") == "partial"


def test_an_up_to_date_stage_is_not_run_again(run: Run) -> None:
    assert finish(run, "prune", made_from(model="abc"))
    assert finish(run, "prune", made_from(model="abc")) is None
    assert finish(run, "prune", made_from(model="abc"), "anew", force=True)
    assert output(run, "prune") == "anew"


def test_other_settings_are_refused_with_every_difference_and_the_way_on(run: Run) -> None:
    finish(run, "prune", made_from({"sparsity": 0.5, "method": "wanda", "pattern": "2:4"}))
    other = made_from({"sparsity": 0.75, "method": "magnitude", "pattern": "2:4"})
    with pytest.raises(WorkspaceError) as caught:
        finish(run, "prune", other, "other")
    assert str(caught.value) == (
        "run demo has a pruned model with other settings: "
        "prune.sparsity: 0.5 → 0.75; prune.method: wanda → magnitude. "
        "Add --force to replace it, or --run NAME to keep both"
    )
    assert output(run, "prune") == "weights"
    assert not (run.folder / "prune.partial").exists()
    assert finish(run, "prune", other, "other", force=True)
    assert output(run, "prune") == "other"


def test_a_changed_input_needs_no_force_and_the_old_result_stays_until_the_new_one_is_there(
    run: Run,
) -> None:
    finish(run, "prune", made_from(model="abc"), "old")
    with run.lock("prune"):
        assert run.begin("prune", made_from(model="other"), CONFIG)
        assert output(run, "prune") == "old"
    assert finish(run, "prune", made_from(model="other"), "new")
    assert output(run, "prune") == "new"


def test_a_changed_input_does_not_excuse_changed_settings(run: Run) -> None:
    finish(run, "prune", made_from(model="abc"))
    with pytest.raises(WorkspaceError, match=r"prune\.sparsity: 0\.5 → 0\.9"):
        finish(run, "prune", made_from({"sparsity": 0.9}, model="other"))


def test_an_evaluation_with_other_settings_is_never_refused(run: Run) -> None:
    finish(run, "eval", made_from({"tasks": ["perplexity"]}))
    assert finish(run, "eval", made_from({"tasks": ["next-line"]}))
    assert finish(run, "eval", made_from({"tasks": ["next-line"]})) is None


def test_an_interrupted_stage_goes_on_only_with_the_same_fingerprint(run: Run) -> None:
    def begin_with(fingerprint: Fingerprint, *, force: bool = False) -> list[str]:
        with run.lock("prune"):
            partial = run.begin("prune", fingerprint, CONFIG, force=force)
            assert partial
            left = sorted(set(os.listdir(partial)) - {"config.yaml", "fingerprint.json"})
            (partial / "block-0").write_text("")
            return left

    assert begin_with(made_from(model="abc")) == []
    assert begin_with(made_from(model="abc")) == ["block-0"]
    assert begin_with(made_from(model="other")) == []
    with pytest.raises(WorkspaceError) as caught:
        begin_with(made_from({"sparsity": 0.9}, model="other"))
    assert str(caught.value) == (
        "run demo has an unfinished prune with other settings: prune.sparsity: 0.5 → 0.9. "
        "Add --force to discard it, or --run NAME to keep both"
    )
    assert begin_with(made_from(model="other")) == ["block-0"]  # and nothing was lost
    assert begin_with(made_from({"sparsity": 0.9}, model="other"), force=True) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"settings": {}}'])
def test_an_interrupted_stage_of_unknown_fingerprint_begins_anew(run: Run, text: str) -> None:
    with run.lock("prune"):
        partial = run.begin("prune", made_from(), CONFIG)
        assert partial
        (partial / "block-0").write_text("")
        (partial / "fingerprint.json").write_text(text)
        assert run.begin("prune", made_from(), CONFIG) == partial
        assert not (partial / "block-0").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_progress_that_cannot_be_read_is_none(run: Run, text: str) -> None:
    with run.lock("prune"):
        partial = run.begin("prune", made_from(), CONFIG)
        assert partial
        (partial / "progress.json").write_text(text)
    assert run.progress("prune") is None


def test_a_new_prune_makes_everything_after_it_stale(run: Run) -> None:
    finish_chain(run)
    finish(run, "prune", made_from(model="other"), "other")
    assert [run.state(stage) for stage in STAGES] == ["done", "stale", "stale", "missing"]
    with pytest.raises(WorkspaceError) as caught:
        run.require("finetune", for_stage="merge")
    assert str(caught.value) == (
        "merge needs a finetuned model, and that of run demo is stale: its prune has changed "
        "since. Run: spp finetune --run demo"
    )


def test_the_same_output_made_anew_makes_nothing_stale(run: Run) -> None:
    finish_chain(run)
    finish(run, "prune", made_from(model="weights"), "prune weights", force=True)
    assert [run.state(stage) for stage in STAGES[:3]] == ["done", "done", "done"]


def test_a_merged_model_outlives_the_stages_it_was_made_from(run: Run) -> None:
    finish_chain(run)
    for stage in ("prune", "finetune"):
        for path in (run.folder / stage).iterdir():
            path.unlink()
        (run.folder / stage).rmdir()
    assert run.state("merge") == "done"


def test_a_stage_that_is_needed_and_missing_or_unfinished_says_how_to_make_it(run: Run) -> None:
    with pytest.raises(WorkspaceError) as caught:
        run.require("prune", for_stage="finetune")
    assert str(caught.value) == (
        "finetune needs a pruned model, and run demo has none. Run: spp prune --run demo"
    )
    with run.lock("prune"):
        run.begin("prune", made_from(), CONFIG)
    with pytest.raises(WorkspaceError, match="that of run demo is unfinished"):
        run.require("prune", for_stage="finetune")


def change(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGE = {
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest.json is corrupt": lambda folder: (folder / "manifest.json").write_text("{"),
    "manifest.json has changed since it was written": lambda folder: change(folder, metrics={}),
    "manifest.json is corrupt ": lambda folder: (folder / "manifest.json").write_text("[" * 99999),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors has 3 bytes instead of 7": lambda folder: os.truncate(
        folder / "model.safetensors", 3
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_never_used_and_replaced_only_with_force(run: Run, damage: str) -> None:
    finish(run, "prune", made_from())
    DAMAGE[damage](run.folder / "prune")
    assert run.state("prune") == "damaged"
    with pytest.raises(
        WorkspaceError, match=f"{damage.strip()}, so the prune of run demo cannot be trust"
    ):
        run.require("prune", for_stage="finetune")
    with pytest.raises(WorkspaceError, match=r"Make it again: spp prune --run demo --force$"):
        finish(run, "prune", made_from())
    assert finish(run, "prune", made_from(), force=True)
    assert run.state("prune") == "done"


def test_the_result_of_another_stage_is_damage(run: Run) -> None:
    finish(run, "prune", made_from())
    (run.folder / "prune").rename(run.folder / "merge")
    assert run.state("merge") == "damaged"


@pytest.mark.parametrize("name", ["prune", "prune.partial"])
def test_a_file_in_place_of_a_stage_can_be_replaced(run: Run, name: str) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / name).write_text("")
    assert finish(run, "prune", made_from(), force=True)
    assert run.state("prune") == "done"


def test_runs_are_listed_by_their_latest_activity(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for number, name in enumerate(("first", "second", "third")):
        finish(workspace.run(name), "prune", made_from())
        for path in (tmp_path / name, *(tmp_path / name).iterdir()):
            os.utime(path, (number, number))
    assert [run.name for run in workspace.runs()] == ["third", "second", "first"]
    finish(workspace.run("first"), "finetune", made_from())
    assert workspace.latest().name == workspace.latest("finetune").name == "first"
    with pytest.raises(
        WorkspaceError, match=r"has no run with a merged model yet\. Run: spp merge$"
    ):
        workspace.latest("merge")


def test_what_is_not_a_run_is_not_listed(tmp_path: Path) -> None:
    for name in ("my notes", ".cache", "-x", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    workspace = Workspace(tmp_path)
    assert workspace.runs() == []
    with pytest.raises(WorkspaceError, match=r"has no run yet\. Run: spp prune$"):
        workspace.latest()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a b", ".hidden", "-x", "a\n", "ä"])
def test_a_run_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkspaceError, match=r"^--run is .* must be letters, digits"):
        Workspace(tmp_path).run(name)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True))
def test_a_run_with_a_plain_name_lies_right_below_the_workspace(name: str) -> None:
    assert Workspace("workspace").run(name).folder.parent == Path("workspace")


def test_a_workspace_or_run_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("missing")
    for root in ("file", "file/below/it", "nowhere"):
        with pytest.raises(
            WorkspaceError, match=r"is not a folder\. Move it, or choose another --"
        ):
            Workspace(tmp_path / root)
    with pytest.raises(WorkspaceError, match=r"run file cannot be there: .* choose another --run$"):
        Workspace(tmp_path).run("file")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder nobody may write")
def test_a_workspace_that_cannot_be_written_is_one_clear_line() -> None:
    run = Workspace("/sys/kernel/workspace").run("demo")
    with pytest.raises(WorkspaceError, match=r"^cannot write .*may write with --workspace$"):
        finish(run, "prune", made_from())
    assert not run.folder.parent.exists()


def test_a_name_that_is_too_long_for_the_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"^cannot write .*File name too long"):
        finish(Workspace(tmp_path).run("a" * 300), "prune", made_from())
    assert os.listdir(tmp_path) == []


def test_the_workspace_does_not_wait_for_torch() -> None:
    program = "import sys, spp_cli.workspace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_what_killed_writers_left_goes_with_the_next_stage_wherever_it_is(run: Run) -> None:
    finish(run, "merge", made_from())
    root, name = run.folder.parent, ".README.md.4711.writing"
    folders = (root, root / ".cache" / "evaluations", root / ".sweeps" / "s", run.folder / "merge")
    for folder in (*folders, run.folder / ".find-lr.x.writing"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("half")
    Workspace(root).remove_leftovers()
    with run.lock("merge"):
        pass
    assert not list(root.rglob("*.writing"))
    assert run.state("merge") == "done"
