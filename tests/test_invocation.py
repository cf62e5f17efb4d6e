"""Which run a command is for, and what it need not be told again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spp_cli.errors import ConfigError, WorkspaceError
from spp_cli.fingerprint import Fingerprint
from spp_cli.invocation import resolve, resolve_for_folder, resolve_stage
from spp_cli.settings import Layer, assigned, dump_yaml, parse_assignment
from spp_cli.workspace import Workspace


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with the default workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPP_WORKSPACE", raising=False)


def flags(*assignments: str) -> Layer:
    return assigned(map(parse_assignment, assignments))


def finish(stage: str, *assignments: str, file: str | None = None, text: str = "") -> str:
    """Leave a finished stage in the workspace, as the pipeline does; return the run's name.

    ``text`` is its output.
    """
    config, name = resolve(stage, file, flags(*assignments))
    run = Workspace(config.workspace).run(name or config.run_name())
    fingerprint = Fingerprint({stage: config.model_dump(mode="json")[stage]}, {}, config.seed)
    with run.lock(stage):
        partial = run.begin(stage, fingerprint, dump_yaml(config))
        assert partial is not None
        (partial / "text").write_text(text)
        run.publish(
            stage,
            fingerprint=fingerprint,
            output=["text"],
            metrics={},
            mask_digest=None,
            seconds=1.0,
            peak_memory_bytes=None,
            started="2026-01-01T00:00:00+00:00",
        )
    return run.name


def write(text: str) -> str:
    Path("a.yaml").write_text(text)
    return "a.yaml"


def test_without_a_word_it_is_the_embedded_model_with_its_own_defaults() -> None:
    config, run = resolve("prune", None, flags())
    assert (config.model.path, config.prune.sparsity, run) == ("demo", 0.75, None)
    assert config.finetune.learning_rate > 4e-3


def test_another_model_has_the_defaults_of_the_paper() -> None:
    config, _ = resolve("prune", None, flags("model=facebook/opt-125m"))
    assert (config.prune.sparsity, config.finetune.learning_rate) == (0.5, 4e-3)


def test_a_later_stage_knows_how_the_run_was_made() -> None:
    made = finish("prune", "model=gpt2", "prune.pattern=2:8", "seed=7", "model.dtype=float32")
    config, run = resolve("finetune", None, flags("finetune.max_steps=3"))
    assert run == made == "gpt2-wanda-2of8"
    assert (config.model.path, config.model.dtype, config.seed) == ("gpt2", "float32", 7)
    assert (config.prune.pattern, config.prune.sparsity) == ("2:8", 0.75)
    assert config.finetune.max_steps == 3


def test_without_a_file_the_stages_to_come_are_those_the_run_began_with() -> None:
    finish("prune", file=write("model: gpt2\nfinetune: {learning_rate: 1e-2}\n"))
    assert resolve("finetune", None, flags())[0].finetune.learning_rate == 1e-2


def test_a_file_speaks_for_the_stages_to_come_alone() -> None:
    finish("prune", file=write("model: gpt2\nfinetune: {learning_rate: 1e-2, epochs: 9}\n"))
    config, _ = resolve("finetune", write("finetune: {epochs: 2}\n"), flags())
    assert (config.finetune.learning_rate, config.finetune.epochs) == (4e-3, 2)
    assert config.model.path == "gpt2"


def test_each_finished_stage_speaks_for_itself() -> None:
    run = finish("prune", "model=gpt2", "prune.sparsity=0.6")
    finish("finetune", f"run={run}", "finetune.epochs=2")
    config, _ = resolve("merge", None, flags())
    assert (config.prune.sparsity, config.finetune.epochs) == (0.6, 2)


def test_the_latest_run_that_has_what_is_needed_is_taken() -> None:
    first = finish("prune", "model=gpt2")
    finish("finetune", f"run={first}")
    second = finish("prune", "model=gpt2", "prune.method=magnitude")
    assert resolve("finetune", None, flags())[1] == second
    assert resolve("merge", None, flags())[1] == first


def test_a_named_run_is_taken_by_its_name() -> None:
    first = finish("prune", "model=gpt2")
    finish("prune", "model=gpt2", "prune.method=magnitude")
    assert resolve("finetune", None, flags(f"run={first}"))[1] == first
    assert resolve("finetune", write(f"run: {first}\n"), flags())[1] == first


def test_a_file_that_names_a_model_takes_the_run_of_its_settings() -> None:
    file = write("model: gpt2\n")
    first = finish("prune", file=file)
    finish("prune", "model=gpt2", "prune.method=magnitude")
    assert resolve("finetune", file, flags())[1] == first


def test_a_file_that_names_another_model_than_the_run_is_refused_with_both_names() -> None:
    made = finish("prune", "model=owner/Llama-7b")
    file = write("seed: 1\nmodel: owner/Llama-13b\n")
    for command in ("finetune", "eval"):
        with pytest.raises(WorkspaceError) as refusal:
            resolve(command, file, flags())
        assert str(refusal.value) == (
            "workspace has no run with a pruned model of owner/Llama-13b (a.yaml:2); "
            "llama-7b-wanda-0.5 is of owner/Llama-7b. Run: spp prune a.yaml"
        )
    with pytest.raises(WorkspaceError) as refusal:
        resolve("finetune", file, flags(f"run={made}"))
    assert str(refusal.value) == (
        "run llama-7b-wanda-0.5 is of owner/Llama-7b, and a.yaml:2 names owner/Llama-13b. "
        "Name a run of that model with --run, or leave the model out"
    )
    other = finish("prune", "model=owner/Llama-13b", "prune.sparsity=0.6")
    finish("prune", "model=owner/Llama-7b", "prune.sparsity=0.6")
    assert resolve("finetune", file, flags())[1] == other
    assert resolve("finetune", write("model: {dtype: float32}\n"), flags())[1] != other


def test_a_revision_is_part_of_a_model_of_the_hub() -> None:
    made = finish("prune", "model.path=owner/a", "model.revision=v1")
    finish("prune", "model.path=owner/b", "run=b")
    file = write("model: {path: owner/a, revision: v1}\n")
    assert resolve("finetune", file, flags())[1] == made
    config, run = resolve("finetune", write("model: owner/a\n"), flags())
    assert (run, config.model.path, config.model.revision) == (made, "owner/a", "v1")
    other = write("model: {path: owner/a, revision: v2}\n")
    with pytest.raises(WorkspaceError, match=r"of owner/a@v2 \(a.yaml:1\); b is of owner/b"):
        resolve("finetune", other, flags())


def test_a_new_run_takes_over_what_is_named_or_the_only_one() -> None:
    def source(*assignments: str, file: str | None = None, from_run: str | None = None) -> Any:
        asked = flags("run=new", *assignments)
        return resolve_stage("finetune", file, asked, from_run=from_run).source

    first = finish("prune", "model=gpt2", "prune.sparsity=0.6")
    assert source() == source(from_run=first) == first
    second = finish("prune", "model=gpt2", "prune.sparsity=0.7", text="another")
    assert source(from_run=first) == first
    assert source(file=write("model: gpt2\nprune: {sparsity: 0.6}\n")) == first
    assert source(file=write(f"run: {second}\n")) == second
    with pytest.raises(WorkspaceError, match=rf"add --from-run with one of: {second}, {first}$"):
        source()
    with pytest.raises(WorkspaceError, match=r"workspace has no run nothing"):
        source(from_run="nothing")
    with pytest.raises(WorkspaceError, match=rf"run {first} is of gpt2, and a.yaml:1 names opt"):
        source(file=write("model: opt\n"), from_run=first)
    with pytest.raises(ConfigError, match=r"--from-run is for a new run\. Name it with --run NAME"):
        resolve_stage("finetune", None, flags(), from_run=first)


def test_a_missing_run_says_the_command_that_makes_it() -> None:
    with pytest.raises(WorkspaceError, match=r"no run with a pruned model yet\. Run: spp prune"):
        resolve("finetune", None, flags())
    finish("prune")
    with pytest.raises(WorkspaceError, match=r"Run: spp finetune"):
        resolve("merge", None, flags())


def test_the_dense_model_is_evaluated_without_a_run() -> None:
    config, run = resolve("eval", None, flags("eval.stages=dense"))
    assert (config.model.path, run) == ("demo", None)


def test_the_workspace_is_that_of_the_flag_the_file_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def workspace(file: str | None, *assignments: str) -> Any:
        return resolve("prune", file, flags(*assignments))[0].workspace

    assert workspace(None) == "workspace"
    monkeypatch.setenv("SPP_WORKSPACE", "from-environment")
    assert workspace(None) == "from-environment"
    assert workspace(write("workspace: from-file\n")) == "from-file"
    assert workspace("a.yaml", "workspace=from-flag") == "from-flag"


def test_a_run_moves_with_its_workspace() -> None:
    finish("prune", "workspace=here")
    Path("here").rename("there")
    config, _ = resolve("finetune", None, flags("workspace=there"))
    assert config.workspace == "there"


def test_a_record_spoilt_by_hand_is_an_error_with_its_place() -> None:
    run = finish("prune")
    Path(f"workspace/{run}/prune/config.yaml").write_text("prune: {sparsity: 7}\n")
    with pytest.raises(ConfigError, match=r"prune/config\.yaml:1: prune\.sparsity is 7"):
        resolve("finetune", None, flags())


def test_a_folder_made_from_the_embedded_model_is_measured_as_it(demo_folder: Path) -> None:
    own = resolve_for_folder(str(demo_folder), None, flags())
    other = resolve_for_folder("somewhere", None, flags())
    assert own.eval.perplexity.sequence_length == 256
    assert other.eval.perplexity.sequence_length == "auto"
