"""What a command does with the runs in a workspace: run, skip, refuse, go on, and remember."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_base_and_text, make_model

from spp_cli.config import SppConfig
from spp_cli.errors import ModelError, NumericalError, WorkspaceError
from spp_cli.invocation import resolve_stage
from spp_cli.pipeline import StageOutcome, run_stages, up_to_date
from spp_cli.plan import stage_actions
from spp_cli.progress import Silent
from spp_cli.settings import Layer, read_yaml
from spp_cli.stages import finetune
from spp_cli.status import run_status
from spp_cli.workspace import STAGES, Workspace

SETTINGS: dict[str, Any] = {
    "prune": {"calibration": {"source": "text.txt", "samples": 2, "sequence_length": 32}},
    "finetune": {
        "data": {"source": "text.txt", "samples": 8, "sequence_length": 32},
        "max_steps": 4,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.01,
    },
    "merge": {"check_sequences": 1, "check_length": 8},
    "eval": {"perplexity": {"source": "text.txt", "sequence_length": 32, "max_chunks": 2}},
}


class Bars(Silent):
    """A reporter that notes which bars were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def task(self, name: str, total: float, unit: str = ""):
        self.opened.append(name)
        return super().task(name, total, unit)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a text, and a workspace with a run of all stages."""
    folder = tmp_path_factory.mktemp("finished")
    make_base_and_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run()
    return folder


@pytest.fixture(autouse=True)
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of that folder."""
    folder = tmp_path / "here"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


def run(
    *stages: str,
    name: str = "r",
    force: bool = False,
    reporter: Silent | None = None,
    changes: dict[str, Any] | None = None,
    source: str | None = None,
) -> list[StageOutcome]:
    """Run stages, all if none is named; ``changes`` are settings by their dotted keys."""
    settings = json.loads(json.dumps({**SETTINGS, "model": {"path": "base"}}))
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        section = settings
        for part in sections:
            section = section[part]
        section[last] = value
    config = SppConfig.model_validate(settings)
    return run_stages(
        stages or STAGES, config, reporter or Silent(), run=name, force=force, source=source
    )


def states(name: str = "r") -> dict[str, str]:
    stages = run_status(Workspace("workspace").run(name))["stages"]
    return {stage: found["state"] for stage, found in stages.items()}


def digest(stage: str, name: str = "r") -> str:
    manifest = Workspace("workspace").run(name).manifest(stage)
    assert manifest is not None
    return manifest.output_digest


def skipped(outcomes: list[StageOutcome]) -> list[str]:
    return [outcome.stage for outcome in outcomes if outcome.skipped]


def test_what_is_up_to_date_is_skipped():
    assert states() == dict.fromkeys(STAGES, "done")
    reporter = Bars()
    assert skipped(run(reporter=reporter)) == list(STAGES)
    assert reporter.opened == []


def test_what_an_earlier_version_made_without_a_setting_has_its_default():
    record = Path("workspace/r/prune/manifest.json")
    manifest = json.loads(record.read_bytes())
    del manifest["settings"]["prune"]["recover"]
    record.write_text(json.dumps({**manifest, "sha256": None, "fingerprint": "of then"}))
    assert skipped(run()) == list(STAGES)
    with pytest.raises(WorkspaceError, match=r"prune\.recover\.name: not set → least-squares"):
        run("prune", changes={"prune.recover": "least-squares"})


def test_force_makes_anew_and_the_same_settings_give_the_same_bytes():
    before = {stage: digest(stage) for stage in STAGES}
    assert skipped(run(force=True)) == []
    assert {stage: digest(stage) for stage in STAGES} == before


def test_another_run_of_the_same_settings_has_the_same_results():
    outcomes = run(name="other")
    assert skipped(outcomes) == []
    assert [digest(stage, "other") for stage in STAGES] == [digest(stage) for stage in STAGES]


def test_a_new_prune_makes_what_follows_stale_until_it_is_made_anew():
    run("prune", force=True, changes={"prune.sparsity": 0.6})
    assert states() == {"prune": "done", "finetune": "stale", "merge": "stale", "eval": "stale"}
    with pytest.raises(WorkspaceError, match=r"merge needs a finetuned model.*stale: its prune"):
        run("merge")
    assert skipped(run(changes={"prune.sparsity": 0.6})) == ["prune"]
    assert states() == dict.fromkeys(STAGES, "done")


@pytest.mark.parametrize(
    ("stage", "key", "was", "becomes"),
    [
        ("prune", "prune.sparsity", 0.5, 0.6),
        ("finetune", "finetune.learning_rate", 0.01, 0.02),
        ("merge", "merge.check_length", 8, 16),
        ("finetune", "seed", 0, 1),
    ],
)
def test_other_settings_are_refused_with_the_difference_and_change_nothing(
    stage, key, was, becomes
):
    before = digest(stage)
    with pytest.raises(WorkspaceError) as refusal:
        run(stage, changes={key: becomes})
    assert f"with other settings: {key}: {was} → {becomes}. Add --force" in str(refusal.value)
    assert digest(stage) == before
    assert states() == dict.fromkeys(STAGES, "done")


def test_globs_in_another_order_are_another_setting_for_the_first_counts():
    ratios = {"layers.0.*": 0.6, "*.mlp.*": 0.4}
    run("prune", name="globs", changes={"prune.allocation": ratios})
    assert skipped(run("prune", name="globs", changes={"prune.allocation": ratios})) == ["prune"]
    turned = dict(reversed(ratios.items()))
    with pytest.raises(WorkspaceError, match=r"prune\.allocation: \["):
        run("prune", name="globs", changes={"prune.allocation": turned})


def test_another_dense_model_is_refused_like_another_setting():
    make_model("llama", Path("base"), torch.bfloat16, vocab_size=4096, intermediate_size=128)
    with pytest.raises(WorkspaceError, match=r"other settings: model\.digest: \w+ → \w+"):
        run("prune")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.device", "cpu"),
        ("prune.offload", "disk"),
        ("prune.calibration.batch_size", 1),
        ("finetune.check_mask_every", 1),
        ("finetune.checkpoint_every", 1),
        ("finetune.base_storage", "packed"),
        ("finetune.gradient_checkpointing", True),
    ],
)
def test_where_it_runs_and_how_it_is_watched_is_no_setting_of_the_result(key, value):
    stages = ["prune", "finetune", "merge"]
    assert skipped(run(*stages, changes={key: value})) == stages


def test_of_rows_at_once_and_accumulation_the_product_alone_is_a_setting():
    shared_out = {"finetune.batch_size": 1, "finetune.gradient_accumulation_steps": 2}
    assert skipped(run("finetune", "merge", changes=shared_out)) == ["finetune", "merge"]
    with pytest.raises(
        WorkspaceError, match=r"finetune\.batch_size × gradient_accumulation_steps: 2 → 1\. Add"
    ):
        run("finetune", changes={"finetune.batch_size": 1})


def test_a_run_of_another_seed_links_what_no_seed_decides():
    (outcome,) = run("prune", name="other", changes={"seed": 1})
    assert outcome.manifest.borrowed_from == "r"
    assert (outcome.manifest.seed, outcome.manifest.output_digest) == (1, digest("prune"))


def test_a_record_of_before_with_a_seed_that_no_stage_reads_and_without_keys_that_decide_nothing():
    for stage, keys in {"prune": ["offload"], "finetune": ["report_to"]}.items():
        record = Path(f"workspace/r/{stage}/manifest.json")
        manifest = json.loads(record.read_bytes())
        for key in keys:
            del manifest["settings"][stage][key]
        seed = 7 if stage == "prune" else 0
        record.write_text(
            json.dumps({**manifest, "sha256": None, "seed": seed, "fingerprint": "of then"})
        )
    assert skipped(run()) == list(STAGES)


def test_a_changed_text_is_read_anew_by_every_stage_that_reads_it():
    text = Path("text.txt")
    text.write_text(text.read_text().replace("add", "sub"))
    before = digest("prune")
    assert skipped(run()) == []
    assert digest("prune") != before
    assert states() == dict.fromkeys(STAGES, "done")


def test_a_changed_text_to_validate_on_is_read_anew():
    text = Path("text.txt").read_text()
    Path("held-out.txt").write_text(text.replace("add", "sub"))
    held_out = {"finetune.data.validation_source": "held-out.txt"}
    run("prune", "finetune", name="other", changes=held_out)
    assert skipped(run("finetune", name="other", changes=held_out)) == ["finetune"]
    Path("held-out.txt").write_text(text.replace("add", "mul"))
    assert skipped(run("finetune", name="other", changes=held_out)) == []


def test_two_runs_are_trained_on_the_same_rows_tokenized_once():
    (kept,) = Path("workspace/.training").iterdir()
    before = kept.stat().st_mtime_ns
    run("prune", "finetune", name="other", changes={"finetune.learning_rate": 0.1})
    assert list(Path("workspace/.training").iterdir()) == [kept]
    assert kept.stat().st_mtime_ns == before
    digests = set()
    for name in ("r", "other"):
        manifest = Workspace("workspace").run(name).manifest("finetune")
        assert manifest is not None
        digests.add(manifest.metrics["train"]["digest"])
    assert len(digests) == 1


def test_two_methods_are_calibrated_with_the_same_tokens_drawn_once():
    kept = Path("workspace/.calibration")
    written = {path: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert len(written) == 1  # of the run that is there
    (outcome,) = run("prune", name="other", changes={"prune.method": "sparsegpt"})
    assert {path: path.stat().st_mtime_ns for path in kept.iterdir()} == written
    (known,) = run("prune")
    assert outcome.manifest.metrics["calibration"] == known.manifest.metrics["calibration"]
    assert {found.name for found in Workspace("workspace").runs()} == {"r", "other"}


def test_a_method_that_asks_for_no_inputs_draws_no_tokens():
    shutil.rmtree("workspace/.calibration")
    run("prune", name="other", changes={"prune.method": "magnitude"})
    assert not Path("workspace/.calibration").exists()


def test_a_pruned_model_is_made_anew_when_one_of_its_several_texts_changed():
    Path("more.txt").write_text("for name in names: print(name)\n" * 100)
    several = {"prune.calibration.source": {"text.txt": 1, "more.txt": 1}}
    (first,) = run("prune", name="other", changes=several)
    assert first.manifest.metrics["calibration"]["source"] == "1 of more.txt, 1 of text.txt"
    assert skipped(run("prune", name="other", changes=several)) == ["prune"]
    Path("more.txt").write_text("for name in names: yield name\n" * 100)
    (again,) = run("prune", name="other", changes=several)
    assert not again.skipped
    other = {"prune.calibration.source": {"text.txt": 3, "more.txt": 1}}
    with pytest.raises(WorkspaceError, match=r"prune\.calibration\.source\.text\.txt: 1.0 → 3.0"):
        run("prune", name="other", changes=other)


def bytes_of(name: str) -> dict[str, bytes]:
    folder = Path("workspace") / name / "prune"
    own = ("manifest.json", "config.yaml")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in own]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_model_that_another_run_has_pruned_is_linked_bit_for_bit_and_then_stands_alone():
    reporter = Bars()
    (outcome,) = run("prune", name="other", reporter=reporter)
    assert reporter.opened == []
    assert (outcome.skipped, outcome.manifest.borrowed_from) == (False, "r")
    assert bytes_of("other") == bytes_of("r")
    weights = [Path(f"workspace/{name}/prune/model.safetensors") for name in ("r", "other")]
    assert weights[0].samefile(weights[1])
    records = [Path(f"workspace/{name}/prune/config.yaml") for name in ("r", "other")]
    assert not records[0].samefile(records[1])
    assert skipped(run("prune", name="other")) == ["prune"]

    before = bytes_of("r")
    run("prune", name="other", force=True, changes={"prune.sparsity": 0.6})
    assert bytes_of("r") == before
    shutil.rmtree("workspace/r")
    run("finetune", name="other", changes={"prune.sparsity": 0.6})
    assert states("other")["finetune"] == "done"


def test_to_force_a_pruning_is_to_do_it_and_its_bytes_are_those_of_the_one_that_was_linked():
    run("prune", name="linked")
    reporter = Bars()
    (outcome,) = run("prune", name="made", force=True, reporter=reporter)
    assert (outcome.manifest.borrowed_from, reporter.opened[-1:]) == (None, ["prune"])
    assert bytes_of("made") == bytes_of("linked")


def test_a_later_stage_knows_its_model_by_content_wherever_that_lies():
    def chosen(text: str) -> str | None:
        Path("a.yaml").write_text(text)
        return resolve_stage("finetune", "a.yaml", Layer()).run

    assert chosen("model: base\n") == "r"
    Path("base").rename("moved")
    assert chosen("model: moved\n") == chosen("model: base\n") == "r"
    make_model("llama", Path("base"), torch.bfloat16, vocab_size=4096, intermediate_size=128)
    for name in ("base", "demo"):
        with pytest.raises(WorkspaceError) as refusal:
            chosen(f"model: {name}\n")
        assert f"a pruned model of {name} (a.yaml:1); r is of base. Run: spp prune a.yaml" in str(
            refusal.value
        )


def test_the_advice_to_keep_both_works_and_links_what_is_the_same():
    keep = r"finetune\.learning_rate: 0\.01 → 0\.02\. .* --run NAME --from-run r to keep both$"
    faster = {"finetune.learning_rate": 0.02}
    with pytest.raises(WorkspaceError, match=keep):
        run("finetune", changes=faster)
    reporter = Bars()
    run("finetune", name="both", changes=faster, reporter=reporter, source="r")
    assert reporter.opened == ["finetune"]
    assert skipped(run("finetune", name="both", changes=faster, source="r")) == ["finetune"]
    weights = [Path(f"workspace/{name}/prune/model.safetensors") for name in ("r", "both")]
    assert weights[0].samefile(weights[1])
    assert read_yaml("workspace/both/prune/config.yaml").get("run") == "both"
    run("merge", name="third", changes={"merge.check_length": 16}, source="r")
    assert states("third") == {**dict.fromkeys(STAGES[:3], "done"), "eval": "missing"}
    with pytest.raises(WorkspaceError, match="run both has a finetune that is not that of r"):
        run("merge", name="both", source="r")


def test_one_stage_is_evaluated_without_the_dense_model_and_beside_what_was_measured_of_it():
    results = Path("workspace/r/eval/results.json")
    before = json.loads(results.read_text())
    shutil.rmtree("base")
    changes = {"eval.stages": ["merge"], "eval.perplexity.max_chunks": 1}
    reporter = Bars()
    assert skipped(run("eval", changes=changes, reporter=reporter)) == []
    assert reporter.opened == ["perplexity@32"]  # of the merged model alone
    after = json.loads(results.read_text())
    assert list(after["models"]) == list(before["models"])
    for stage in ("dense", "prune", "finetune"):
        assert after["models"][stage] == before["models"][stage]
    assert after["models"]["merge"] != before["models"]["merge"]
    assert skipped(run("eval", changes=changes)) == ["eval"]
    with pytest.raises(ModelError, match="base: no such folder"):
        run("eval", changes={"eval.stages": ["dense", "merge"]})


def test_without_hard_links_the_files_are_copied(monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("spp_cli.publishing.os.link", refused)
    (outcome,) = run("prune", name="other")
    assert outcome.manifest.borrowed_from == "r"
    assert bytes_of("other") == bytes_of("r")
    weights = [Path(f"workspace/{name}/prune/model.safetensors") for name in ("r", "other")]
    assert not weights[0].samefile(weights[1])


@pytest.mark.parametrize("spoil", ["other settings", "damaged", "another text"])
def test_what_is_not_the_same_or_not_whole_is_not_linked(spoil):
    changes = {"prune.sparsity": 0.6} if spoil == "other settings" else {}
    if spoil == "damaged":
        Path("workspace/r/prune/model.safetensors").write_bytes(b"")
    if spoil == "another text":
        Path("text.txt").write_text(Path("text.txt").read_text().replace("add", "sub"))
    (outcome,) = run("prune", name="other", changes=changes)
    assert outcome.manifest.borrowed_from is None


def test_a_killed_link_leaves_nothing_that_a_pruning_would_go_on_with(monkeypatch):
    def dying(*_: object) -> None:
        raise Killed

    before = bytes_of("r")
    with monkeypatch.context() as patch:
        patch.setattr("spp_cli.runs.sync_output", dying)
        with pytest.raises(Killed):
            run("prune", name="other")
    assert states("other")["prune"] == "missing"
    shutil.rmtree("workspace/r/merge")
    lent = Path("workspace/r/prune").rename("lent")  # so that it has to be pruned now
    (outcome,) = run("prune", name="other")
    assert outcome.manifest.borrowed_from is None
    lent.rename("workspace/r/prune")
    assert bytes_of("r") == before == bytes_of("other")


def test_a_lender_that_is_replaced_at_this_moment_lends_nothing(monkeypatch):
    from spp_cli import runs

    link = runs.link_output

    def replaced_meanwhile(*given: Any) -> None:
        link(*given)
        Path("workspace/r/prune/manifest.json").unlink()

    monkeypatch.setattr(runs, "link_output", replaced_meanwhile)
    reporter = Bars()
    (outcome,) = run("prune", name="other", reporter=reporter)
    assert outcome.manifest.borrowed_from is None
    assert "prune" in reporter.opened
    assert skipped(run("prune", name="other")) == ["prune"]


def test_a_run_is_up_to_date_until_a_setting_an_input_or_a_file_changes():
    def is_current(**changes: Any) -> bool:
        settings = {**SETTINGS, "model": {"path": "base"}, **changes}
        return up_to_date(STAGES, SppConfig.model_validate(settings), run="r")

    assert is_current()
    assert not is_current(seed=1)
    assert not is_current(merge={"check_sequences": 2, "check_length": 8})
    Path("workspace/r/merge/model.safetensors").write_bytes(b"")
    assert not is_current()
    run("merge", force=True)
    assert is_current()
    Path("text.txt").write_text("another\n" * 500)
    assert not is_current()


def test_the_dense_model_is_measured_once_for_all_runs():
    reporter = Bars()
    run("prune", name="other", changes={"prune.sparsity": 0.6})
    run("eval", name="other", reporter=reporter)
    assert reporter.opened == ["perplexity@32"]  # of the pruned model alone
    run("eval", name="other", reporter=reporter, changes={"eval.perplexity.max_chunks": 1})
    assert reporter.opened == ["perplexity@32"] * 3  # of both, on another text


def test_an_evaluation_of_other_stages_adds_to_what_is_there():
    run("prune", name="other")
    run("eval", name="other", changes={"eval.stages": ["dense"]})
    (outcome,) = run("eval", name="other", changes={"eval.stages": ["prune"]})
    models = json.loads((outcome.folder / "results.json").read_text())["models"]
    assert list(models) == ["dense", "prune"]


def test_a_stage_without_what_it_reads_says_what_to_run_and_creates_nothing():
    with pytest.raises(
        WorkspaceError, match=r"finetune needs a pruned model, and run new has none"
    ):
        run("finetune", name="new")
    assert not Path("workspace/new").exists()


def test_a_loss_of_nan_leaves_the_earlier_adapter_as_it_was():
    before = digest("finetune")
    wild = {"finetune.learning_rate": 1e30, "finetune.max_grad_norm": 1e30}
    with pytest.raises(NumericalError, match=r"(nan|inf) at step \d"):
        run("finetune", force=True, changes=wild)
    assert digest("finetune") == before
    assert states() == dict.fromkeys(STAGES, "done")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, other, whose finetune was killed at its end."""

    def dying(trainer: finetune.AdapterTrainer) -> int:
        raise Killed

    run("prune", name="other")
    with monkeypatch.context() as patch:
        patch.setattr(finetune.AdapterTrainer, "load_best", dying)
        with pytest.raises(Killed):
            run("finetune", name="other")


def test_unfinished_work_is_not_lost_to_other_settings_and_the_plan_says_so(unfinished):
    work = Path("workspace/other/finetune.partial")
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}

    def planned(**changes: Any) -> str:
        settings = json.loads(json.dumps({**SETTINGS, "model": "base"}))
        settings["finetune"] |= changes
        return stage_actions(SppConfig.model_validate(settings), "other")["finetune"]["action"]

    difference = "finetune.learning_rate: 0.01 → 0.02"
    with pytest.raises(WorkspaceError) as refusal:
        run("finetune", name="other", changes={"finetune.learning_rate": 0.02})
    assert str(refusal.value).startswith(
        f"run other has an unfinished finetune with other settings: {difference}. Add --force"
    )
    assert planned(learning_rate=0.02).startswith(f"refuse: {difference} (--force discards")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert planned(gradient_checkpointing=True) == planned() == "resume"


def test_unfinished_work_of_another_input_is_discarded_with_a_word(unfinished):
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text.replace("add", "sub"))
    reporter = Bars()
    run("prune", "finetune", name="other", reporter=reporter)
    assert reporter.warnings[-1:] == [
        "finetune: data, prune changed since the unfinished finetune of run other was begun, "
        "which is discarded"
    ]


def test_status_tells_how_far_a_killed_stage_had_come_and_it_ends_as_if_never_killed(unfinished):
    status = run_status(Workspace("workspace").run("other"))["stages"]["finetune"]
    assert status == {"state": "partial", "progress": {"done": 4, "total": 4, "unit": "steps"}}
    (outcome,) = run("finetune", name="other")
    undisturbed = Workspace("workspace").run("r").manifest("finetune")
    assert undisturbed is not None
    assert outcome.manifest.metrics == undisturbed.metrics
    assert outcome.manifest.output_digest == undisturbed.output_digest


def flip(file: Path) -> None:
    """Change the last byte of a file: its size stays."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def take_that_of_another_run(file: Path) -> None:
    run("prune", "finetune", name="other", changes={"seed": 1})
    other = Path("workspace/other", *file.parts[-2:])
    assert other.stat().st_size == file.stat().st_size
    shutil.copyfile(other, file)


@pytest.mark.parametrize("damage", [flip, take_that_of_another_run])
@pytest.mark.parametrize("by", ["merge", "eval"])
def test_an_adapter_that_is_not_the_one_on_record_is_refused_unless_trusted(damage, by):
    damage(adapter := Path("workspace/r/finetune/adapter.safetensors"))
    with pytest.raises(WorkspaceError) as refusal:
        run(by, force=True)
    assert str(refusal.value) == (
        f"{adapter} has changed since: its digest is not the one on record, so the finetune of "
        "run r cannot be trusted. Make it again: spp finetune --run r --force"
    )
    assert states() == dict.fromkeys(STAGES, "done")
    run(by, force=True, changes={"trust_files": True})


@pytest.mark.parametrize("by", ["finetune", "merge", "eval"])
def test_weights_that_are_not_those_on_record_are_refused(by):
    flip(Path("workspace/r/prune/model.safetensors"))
    with pytest.raises(WorkspaceError, match=r"model\.safetensors has changed since.*spp prune"):
        run(by, force=True)


def test_a_result_that_has_changed_is_not_lent():
    flip(Path("workspace/r/prune/model.safetensors"))
    reporter = Silent()
    (outcome,) = run("prune", name="other", reporter=reporter)
    assert outcome.manifest.borrowed_from is None
    assert "model.safetensors has changed since" in reporter.warnings[0]


def test_a_forced_evaluation_measures_again():
    reporter = Bars()
    run("eval", force=True, reporter=reporter)
    assert [name.partition("@")[0] for name in reporter.opened] == ["perplexity"] * 4


@pytest.mark.parametrize("content", ["[]", "null", "{}", ""])
def test_a_damaged_evaluation_is_refused_and_then_measured_again_as_advised(content):
    results = Path("workspace/r/eval/results.json")
    before = results.read_text()
    results.write_text(content.ljust(len(before)) if content else content)
    assert states()["eval"] == "damaged"
    with pytest.raises(WorkspaceError, match=r"Make it again: spp eval --run r --force$"):
        run("eval")
    reporter = Silent()
    run("eval", force=True, reporter=reporter)
    assert reporter.warnings == ["workspace/r/eval is damaged, and what it has found is left out"]
    assert states()["eval"] == "done"
    assert json.loads(results.read_text()) == json.loads(before)


def test_an_adapter_without_its_base_is_no_model_to_measure():
    shutil.rmtree("workspace/r/prune")
    (outcome,) = run("eval", changes={"eval.stages": ["dense", "finetune", "merge"]})
    found = json.loads((outcome.folder / "results.json").read_text())["models"]
    assert {"dense", "merge"} <= found.keys()
    with pytest.raises(WorkspaceError, match="none of the stages finetune is there yet"):
        run("eval", changes={"eval.stages": ["finetune"]})
