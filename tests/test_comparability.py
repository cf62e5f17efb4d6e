"""Only what was measured alike is compared, and a share needs a loss larger than its error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import change_results
from test_comparison import measured

from spp_cli.card import model_card
from spp_cli.comparability import alike, reasons, recovered, unlike
from spp_cli.comparison import evaluation_of, evaluations
from spp_cli.difference import Side, diff
from spp_cli.report import gather
from spp_cli.reporting.comparison_table import comparison_cells
from spp_cli.reporting.diff_table import diff_table
from spp_cli.status import run_status
from spp_cli.workspace import Run, Workspace

TEXT = {"digest": "d", "length": 32, "device": "cpu", "source": "t", "tokens": 62}
TASK = {"harness": "1", "version": "1", "num_fewshot": 0, "samples": 9, "chat_template": False}
TASK |= {"data": "q", "definition": "p", "device": "cpu"}


def model(nats: float, acc: float, stderr: float = 0.0, **text: Any) -> dict[str, Any]:
    scores = {"metrics": {"acc": acc, "acc_stderr": stderr}, **TASK}
    return {"results": {"perplexity@32": {**TEXT, "nats": nats, **text}, "t": scores}}


def test_shares_are_in_nats_for_perplexity_and_in_accuracy_for_tasks() -> None:
    models = {"dense": model(3.0, 0.5), "prune": model(4.0, 0.3), "merge": model(3.2, 0.45)}
    shares = {"perplexity@32": pytest.approx(0.8), "t": pytest.approx(0.75)}
    assert recovered(models) == {"merge": shares}
    del models["dense"]
    assert recovered(models) == {}


@pytest.mark.parametrize("nats", [3.0, 2.9])
def test_where_nothing_was_lost_nothing_can_come_back(nats: float) -> None:
    models = {"dense": model(3.0, 0.5), "prune": model(nats, 0.5), "merge": model(2.5, 0.6)}
    assert recovered(models) == {"merge": {"perplexity@32": None, "t": None}}


@pytest.mark.parametrize(("stderr", "share"), [(0.07, 0.75), (0.071, None)])
def test_a_loss_of_accuracy_within_its_error_is_none(stderr: float, share: float | None) -> None:
    models = {
        name: model(3.0, acc, stderr)
        for name, acc in (("dense", 0.5), ("prune", 0.3), ("merge", 0.45))
    }
    assert recovered(models)["merge"]["t"] == (share and pytest.approx(share))


@pytest.mark.parametrize(
    ("pruned", "share"), [([1.1, 3.1, 9.1], 0.5), ([1.9, 3.0, 8.4], None), ([1.1, 3.1], 0.5)]
)
def test_perplexities_of_one_text_are_paired(pruned: list[float], share: float | None) -> None:
    """The parts of a text differ by far more than two models do on each of them."""
    models = {
        "dense": model(4.0, 0, parts=[1.0, 3.0, 9.0]),
        "prune": model(4.1, 0, parts=pruned),
        "merge": model(4.05, 0, parts=[]),
    }
    assert recovered(models)["merge"]["perplexity@32"] == (share and pytest.approx(share))


def test_a_metric_of_which_less_is_better_is_lost_when_it_grows() -> None:
    def bits(value: float) -> dict[str, Any]:
        way = {**TASK, "higher_is_better": {"bits_per_byte": False}}
        return {"results": {"t": {"metrics": {"bits_per_byte": value}, **way}}}

    models = {"dense": bits(1.0), "prune": bits(2.0), "merge": bits(1.25)}
    assert recovered(models) == {"merge": {"t": pytest.approx(0.75)}}
    models["prune"] = bits(0.5)
    assert recovered(models) == {"merge": {"t": None}}


@pytest.mark.parametrize("key", [*TASK, "digest", "length"])
def test_any_setting_of_a_measurement_tells_it_from_another(key: str) -> None:
    one = {**TEXT, **TASK}
    other = {**one, key: "other"}
    assert alike(one, dict(one))
    assert not alike(one, other)
    models = {"dense": model(3.0, 0.5), "prune": model(4.0, 0.3), "merge": model(3.2, 0.45)}
    for result in models["merge"]["results"].values():
        result.update({key: "other"} if key in result else {})
    assert None in recovered(models)["merge"].values()
    if key != "length":  # of one digest there is one length
        assert list(unlike(models)) == ["merge"]


def test_results_from_before_a_setting_was_recorded_still_compare() -> None:
    older = {key: value for key, value in TASK.items() if key not in ("definition", "device")}
    assert alike(TASK, older)
    assert reasons([measured(), measured(device="cpu"), measured(definition="p")]) == [[]] * 3


@pytest.fixture
def run(side_by_side: Workspace, tmp_path: Path) -> Run:
    """A run whose merged model was measured on another text under the same name."""
    shutil.copytree(side_by_side.root / "wanda", tmp_path / "runs" / "wanda")
    run = Workspace(tmp_path / "runs").run("wanda")

    def change(document: dict[str, Any]) -> None:
        merged = document["models"]["merge"]["results"]["perplexity@32"]
        merged |= {"digest": "12" * 32, "source": "other.txt", "nats": 1.0, "perplexity": 2.718}
        document["recovered"] = {"merge": {"perplexity@32": -1.33}}  # as it was judged once

    change_results(run, change)
    return run


def test_no_command_compares_what_was_not_measured_alike(run: Run, side_by_side: Workspace) -> None:
    assert evaluation_of(run)["recovered"]["merge"] == {"perplexity@32": None}
    status = run_status(run)
    assert status["perplexity"] == {"name": "perplexity@32", "stages": {"merge": 2.718}}
    assert status["recovered"] is None
    assert evaluations(run)[-1]["recovered"] == {"perplexity@32": None}
    assert gather([run])["runs"][0]["evaluation"]["recovered"]["merge"]["perplexity@32"] is None
    assert "-133" not in (card := model_card(run, "merge"))
    assert "\\*1 perplexity@32: tokens 12121212 of other.txt" in card
    document = diff(Side(side_by_side.run("wanda"), "merge"), Side(run, "merge"))
    assert document["results"] == []
    assert document["not_compared"] == ["perplexity@32"]
    shown = diff_table(document, layers=False)
    assert "not compared, as measured differently: perplexity@32" in shown


def test_a_share_is_marked_where_its_measurement_is(run: Run) -> None:
    rows = evaluations(run)
    for row, why in zip(rows, reasons(rows), strict=True):
        row["incomparable"], row["recovered"] = why, {"perplexity@32": 0.5}
    _, body, _ = comparison_cells(rows, ["stage", "perplexity@32", "recovered"])
    assert [cell.endswith("*1") for cell in body[-1]] == [False, True, True]
    assert "*" not in "".join(cell for line in body[:-1] for cell in line)
