"""Runs side by side: every number from its record, and no comparison that does not hold."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from spp_cli import comparison
from spp_cli.cli import app
from spp_cli.comparability import reasons
from spp_cli.comparison import rows
from spp_cli.workspace import Run, Workspace


@pytest.fixture
def workspace(side_by_side: Workspace, tmp_path: Path) -> Workspace:
    """A copy, to be changed."""
    shutil.copytree(side_by_side.root, tmp_path / "runs")
    return Workspace(tmp_path / "runs")


def rows_of(workspace: Workspace, *names: str) -> list[dict[str, Any]]:
    return rows([workspace.run(name) for name in names])


def test_a_row_has_what_the_stages_put_on_record(side_by_side: Workspace) -> None:
    dense, prune, finetune, merge = rows_of(side_by_side, "wanda")
    run = side_by_side.run("wanda")
    results = json.loads((run.folder / "eval" / "results.json").read_text())["models"]
    manifests = {stage: run.manifest(stage) for stage in ("prune", "finetune", "merge")}
    for row in (dense, prune, finetune, merge):
        assert row["perplexity"] == results[row["stage"]]["results"]
        assert row["sparsity"] == results[row["stage"]]["sparsity"]
        assert row["incomparable"] == []
    recipe = ["method", "pattern", "target_sparsity", "allocation", "refine", "recover"]
    recipe += ["order", "adapter"]
    assert [dense[key] for key in recipe] == [None] * 8
    wanda = ["wanda", "unstructured", 0.5, "uniform", "none", "none", "one-pass"]
    assert [prune[key] for key in recipe] == [*wanda, None]
    assert [merge[key] for key in recipe] == [*wanda, "spp"]
    assert finetune["settings"]["finetune.learning_rate"] == 0.01
    assert "finetune.learning_rate" not in prune["settings"]
    seconds = [manifest.seconds for manifest in manifests.values()]
    assert prune["minutes"] == pytest.approx(seconds[0] / 60)
    assert merge["minutes"] == pytest.approx(sum(seconds) / 60)
    assert merge["stage_minutes"] == pytest.approx(seconds[2] / 60)
    assert merge["peak_memory_bytes"] == max(m.peak_memory_bytes for m in manifests.values())
    assert merge["bytes_packed"] == manifests["merge"].metrics["packed_bytes"]


def test_the_records_of_a_run_are_read_once_for_all_of_its_models(
    side_by_side: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read_yaml, manifest = comparison.read_yaml, Run.manifest
    monkeypatch.setattr(comparison, "read_yaml", lambda file: reads.append(file) or read_yaml(file))
    monkeypatch.setattr(
        Run, "manifest", lambda run, stage: reads.append(run.folder / stage) or manifest(run, stage)
    )
    assert len(rows_of(side_by_side, "wanda")) == 4
    assert reads
    assert len(reads) == len(set(reads))


def test_bytes_without_a_record_are_those_of_the_archive_but_for_its_headers(
    side_by_side: Workspace,
) -> None:
    dense, prune, _, merge = rows_of(side_by_side, "wanda")
    archive = side_by_side.root / "wanda" / "merge" / "packed"
    header = (archive / "model.packed.safetensors").read_bytes()[:8]
    headers = 8 + int.from_bytes(header, "little")
    assert prune["bytes_packed"] == merge["bytes_packed"] - headers
    assert dense["bytes_packed"] == 2 * _parameters(side_by_side)  # bfloat16


def _parameters(workspace: Workspace) -> int:
    results = json.loads((workspace.root / "wanda" / "eval" / "results.json").read_text())
    return int(results["models"]["dense"]["parameters"])


def test_runs_share_the_row_of_their_dense_model_if_it_was_measured_alike(
    workspace: Workspace,
) -> None:
    shutil.copytree(workspace.root / "wanda", workspace.root / "again")
    found = rows_of(workspace, "wanda", "again", "magnitude")
    dense = [row for row in found if row["stage"] == "dense"]
    assert [row["runs"] for row in dense] == [["wanda", "again"], ["magnitude"]]


def test_numbers_of_another_text_are_marked_in_words(side_by_side: Workspace) -> None:
    found = rows_of(side_by_side, "wanda", "magnitude")
    marked = {row["runs"][0] for row in found if row["incomparable"]}
    assert marked == {"magnitude"}
    source = next(iter(found[0]["perplexity"].values()))["source"]
    (reason,) = found[-1]["incomparable"]
    assert reason.startswith("perplexity@32: tokens ")
    assert f"of {source}, 93 in all, not " in reason
    assert reason.endswith(f"of {source}, 62 in all")


def test_a_row_whose_stage_was_made_anew_says_so_and_keeps_its_old_settings(
    workspace: Workspace,
) -> None:
    path = workspace.root / "magnitude" / "prune" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["output_digest"] = "another"
    manifest["settings"]["prune"]["pattern"] = "1:4"
    path.write_text(json.dumps({**manifest, "sha256": None}))
    (row,) = [row for row in rows_of(workspace, "magnitude") if row["stage"] == "prune"]
    assert row["pattern"] == "2:4"
    assert row["minutes"] is None
    assert row["incomparable"] == [
        "model: the prune of run magnitude was made anew since; "
        "measure it: spp eval --run magnitude"
    ]


def test_a_merged_model_outlives_its_parts(workspace: Workspace) -> None:
    before = rows_of(workspace, "wanda")[-1]
    for stage in ("prune", "finetune"):
        shutil.rmtree(workspace.root / "wanda" / stage)
    row = rows_of(workspace, "wanda")[-1]
    for key in ("method", "pattern", "target_sparsity", "adapter", "sparsity", "perplexity"):
        assert row[key] == before[key]
    assert row["minutes"] is None
    assert row["stage_minutes"] == before["stage_minutes"]


def test_a_run_without_an_evaluation_has_no_rows(workspace: Workspace) -> None:
    assert rows([workspace.run("none-such")]) == []
    (workspace.root / "magnitude" / "eval" / "manifest.json").write_text("{")
    assert rows_of(workspace, "magnitude") == []


def measured(digest: str = "d", length: int = 256, **task: Any) -> dict[str, Any]:
    text = {"digest": digest * 8, "source": "demo", "tokens": 510, "length": length}
    known = {"harness": "0.4.13", "version": "1.0", "num_fewshot": 0, "samples": 200, **task}
    return {
        "outdated": False,
        "model": "demo",
        "model_digest": "f0" * 8,
        "perplexity": {f"perplexity@{length}": text},
        "tasks": {"next-line": known},
    }


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"harness": "0.4.9"}, "next-line: harness 0.4.9, not 0.4.13"),
        ({"harness": None}, "next-line: harness unknown, not 0.4.13"),
        ({"version": "2.0"}, "next-line: version 2.0, not 1.0"),
        ({"num_fewshot": 5}, "next-line: shots 5, not 0"),
        ({"samples": 8}, "next-line: questions 8, not 200"),
        (
            {"digest": "e"},
            "perplexity@256: tokens eeeeeeee of demo, 510 in all, not dddddddd of demo, 510 in all",
        ),
        ({"length": 512}, "perplexity: at 512 tokens, not at 256 tokens"),
    ],
)
def test_a_reason_names_both_values(other: dict[str, Any], reason: str) -> None:
    assert reasons([measured(), measured(**other), measured()]) == [[], [reason], []]


def test_another_dense_model_is_a_reason() -> None:
    other = {**measured(), "model": "opt", "model_digest": "ab" * 8}
    assert reasons([measured(), other]) == [[], ["model: opt (abababab), not demo (f0f0f0f0)"]]


ROWS = st.lists(
    st.builds(
        measured,
        digest=st.sampled_from("de"),
        length=st.sampled_from([128, 256]),
        samples=st.sampled_from([8, 200]),
    )
)


@given(ROWS, st.randoms())
def test_rows_without_a_reason_can_be_compared_with_each_other(rows: list[Any], random: Any):
    found = reasons(rows)
    assert len(found) == len(rows)
    free = [row for row, why in zip(rows, found, strict=True) if not why]
    assert reasons(free) == [[]] * len(free)


@given(ROWS)
def test_most_rows_are_free_of_each_kind_of_reason(rows: list[Any]):
    """What is compared with is the most common setting, so no other is as common."""
    lengths = [any(why.startswith("perplexity: ") for why in found) for found in reasons(rows)]
    assert sum(lengths) <= len(rows) / 2


@pytest.fixture
def compare(side_by_side: Workspace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``spp compare``; the result has exit_code, stdout and stderr."""
    monkeypatch.setenv("SPP_WORKSPACE", str(side_by_side.root))
    return lambda *arguments: CliRunner().invoke(app, ["compare", *arguments])


def test_compare_shows_all_runs_or_those_that_are_named(compare: Any) -> None:
    document = json.loads(compare("--json").stdout)
    assert {name for row in document["rows"] for name in row["runs"]} == {"wanda", "magnitude"}
    text = compare("wanda").stdout
    assert [line.split()[1] for line in text.splitlines()[2:6]] == [
        "dense",
        "prune",
        "finetune",
        "merge",
    ]


def test_what_is_left_is_compared_with_what_is_left(compare: Any) -> None:
    odd = json.loads(compare("--json").stdout)["rows"]
    assert any(row["incomparable"] for row in odd)
    alone = json.loads(compare("--json", "--filter", "method=magnitude").stdout)["rows"]
    assert [row["incomparable"] for row in alone] == [[]]


def test_a_file_is_of_the_format_that_its_name_says(compare: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    done = compare("--sort=-perplexity@32", "--stage", "prune,merge", "--output", str(path))
    assert done.exit_code == 0
    lines = list(csv.DictReader(path.open()))
    assert {line["stage"] for line in lines} == {"prune", "merge"}
    numbers = [float(line["perplexity@32"]) for line in lines]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("suffix", ["csv", "json", "md", "tex", "txt"])
@pytest.mark.parametrize("columns", [[], ["--columns", "run,model_digest,perplexity@32.nats"]])
def test_a_table_replaces_a_table_and_nothing_else(
    compare: Any, tmp_path: Path, suffix: str, columns: list[str]
) -> None:
    path = tmp_path / f"table.{suffix}"
    assert compare(*columns, "--output", str(path)).exit_code == 0
    assert compare("wanda", "--output", str(path)).exit_code == 0
    for text in ("notes.txt\n", "run,loss\n1,2\n", '{"run": 1}', "0.5,0.6\n", "run fast\n---\n"):
        path.write_text(text)
        done = compare("--output", str(path))
        assert done.exit_code == 2
        assert done.stderr == (
            f"error: --output is {path}, which is there and is not a table of spp. "
            "Choose another name, or move it away\n"
        )
        assert path.read_text() == text


def test_nothing_is_written_into_a_stage_or_under_an_unknown_suffix(
    compare: Any, side_by_side: Workspace, tmp_path: Path
) -> None:
    for place in ("new.csv", "deep/new.csv", "model.safetensors", "config.json"):
        done = compare(
            "--format", "csv", "--output", str(side_by_side.root / "wanda/prune" / place)
        )
        assert done.exit_code == 2
        assert "in the prune of run wanda, where only spp prune writes" in done.stderr
    path = tmp_path / "t.xlsx"
    done = compare("--output", str(path))
    assert f"--output is {path}; a table ends in one of .csv, .json, .md, .tex, .txt" in done.stderr
    assert not path.exists()
    assert compare("--format", "csv", "--output", str(path)).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonesuch"], "has no run nonesuch. Runs there: "),
        (["--sort", "perplexity"], "Did you mean 'perplexity@32'?"),
        (["--stage", "pruned"], "--stage is 'pruned'; must be one of dense, prune, "),
        (["--format", "html"], "--format is 'html'; must be one of text, csv, "),
    ],
)
def test_a_mistake_is_told_in_one_line(compare: Any, arguments: list[str], said: str) -> None:
    done = compare(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
