"""spp eval: measured once, remembered, and honest about what came back."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import add_tokenizer, make_model

from spp_cli.adapters.attach import save_adapter
from spp_cli.adapters.spp import SPP
from spp_cli.config import SppConfig
from spp_cli.evaluation import results
from spp_cli.evaluation.harness import harness_version
from spp_cli.progress import Silent
from spp_cli.reporting.tables import evaluation_table
from spp_cli.stages import evaluate, prune
from spp_cli.stages.evaluate import RESULTS, evaluate_folder
from spp_cli.stages.sparse_model import pruned_model
from spp_cli.stages.stage import Sources


class Counting(Silent):
    """A reporter that notes which bars were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[str] = []

    def task(self, name: str, total: float, unit: str = ""):
        self.bars.append(name)
        return super().task(name, total, unit)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """A tiny dense model with the embedded tokenizer, and the same pruned."""
    dense = make_model("llama", tmp_path / "dense", vocab_size=4096)
    add_tokenizer(dense)
    (tmp_path / "prune").mkdir()
    settings = SppConfig.model_validate({"prune": {"method": "magnitude", "pattern": "2:4"}})
    prune.run(settings, Sources(dense, True), tmp_path / "prune", Silent())
    digests = {"dense": "d", "prune": "p"}
    return Sources(dense, True, {"prune": tmp_path / "prune"}, digests, tmp_path / "cache")


def config_of(*tasks: str) -> SppConfig:
    perplexity = {"sequence_length": 32, "max_chunks": 4}
    return SppConfig.model_validate(
        {"eval": {"tasks": tasks, "perplexity": perplexity, "limit": 5}}
    )


def run(config: SppConfig, sources: Sources, target: Path) -> tuple[dict, list[str]]:
    """Return results.json and the bars that were shown."""
    target.mkdir()
    reporter = Counting()
    evaluate.run(config, sources, target, reporter)
    return json.loads((target / RESULTS).read_text()), reporter.bars


def test_each_stage_has_its_perplexity_sparsity_and_sizes(sources, tmp_path):
    document, _ = run(config_of("perplexity"), sources, tmp_path / "eval")
    models = document["models"]
    assert list(models) == ["dense", "prune"]
    assert models["dense"]["sparsity"] == 0
    assert models["prune"]["sparsity"] == 0.5
    lost = models["dense"]["nonzero_parameters"] - models["prune"]["nonzero_parameters"]
    assert lost == 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 96) // 2
    result = models["prune"]["results"]["perplexity@32"]
    assert result["perplexity"] == pytest.approx(math.exp(result["nats"]))
    assert result["tokens"] == 4 * 31


def test_what_was_measured_is_not_measured_again(sources, tmp_path):
    first, bars = run(config_of("perplexity"), sources, tmp_path / "a")
    assert bars == ["perplexity@32"] * 2
    second, bars = run(config_of("perplexity"), sources, tmp_path / "b")
    assert bars == []
    assert second == first
    changed = Sources(
        sources.model, True, sources.stages, {**sources.digests, "prune": "other"}, sources.cache
    )
    _, bars = run(config_of("perplexity"), changed, tmp_path / "c")
    assert bars == ["perplexity@32"]  # only of the model that is another one


def test_another_task_adds_to_the_results_that_still_hold(sources, tmp_path):
    run(config_of("perplexity"), sources, tmp_path / "a")
    sources.stages["eval"] = tmp_path / "a"
    document, _ = run(config_of("next-line"), sources, tmp_path / "b")
    assert set(document["models"]["dense"]["results"]) == {"perplexity@32", "next-line"}
    assert document["models"]["dense"]["results"]["next-line"]["harness"] == harness_version()
    sources.stages["eval"] = tmp_path / "b"
    changed = Sources(
        sources.model, True, sources.stages, {**sources.digests, "prune": "other"}, sources.cache
    )
    document, _ = run(config_of("perplexity"), changed, tmp_path / "c")
    assert set(document["models"]["dense"]["results"]) == {"perplexity@32", "next-line"}
    assert set(document["models"]["prune"]["results"]) == {"perplexity@32"}


@pytest.mark.parametrize("other", [{"source": "other.txt"}, {"max_chunks": 3}])
def test_a_stage_measured_on_another_text_is_compared_with_none(sources, tmp_path, other):
    text = tmp_path / "other.txt"
    text.write_text("".join(f"line {number} of another text\n" for number in range(60)))
    sources.stages["merge"], sources.digests["merge"] = sources.stages["prune"], "m"
    document, _ = run(config_of("perplexity"), sources, tmp_path / "a")
    assert list(document["recovered"]) == ["merge"]
    assert "*1" not in evaluation_table(document)
    sources.stages["eval"] = tmp_path / "a"
    changed = {**other, "source": str(text)} if "source" in other else other
    settings = {"sequence_length": 32, "max_chunks": 4, **changed}
    config = SppConfig.model_validate({"eval": {"stages": ["merge"], "perplexity": settings}})
    document, _ = run(config, sources, tmp_path / "b")
    assert list(document["models"]) == ["dense", "prune", "merge"]
    assert document["recovered"] == {"merge": {"perplexity@32": None}}
    shown = evaluation_table(document)
    (row,) = (line for line in shown.splitlines() if line.startswith("perplexity@32 "))
    assert row.split()[-2].endswith("*1")
    assert row.split()[-1] == "–"
    assert "*1 perplexity@32: tokens " in shown


@pytest.mark.parametrize(("recorded", "kept"), [("d", True), ("e", False), (None, False)])
def test_what_was_measured_of_a_dense_model_that_is_not_read_holds_if_it_is_on_record(
    sources, tmp_path, recorded, kept
):
    sources.digests["dense"] = "d" * 64
    before, _ = run(config_of("perplexity"), sources, tmp_path / "a")
    sources.stages["eval"] = tmp_path / "a"
    del sources.digests["dense"]
    if recorded:  # by its first digits, as prune has it
        sources.digests["dense"] = recorded * 16
    config = SppConfig.model_validate(
        {"eval": {"stages": ["prune"], "perplexity": {"sequence_length": 32, "max_chunks": 4}}}
    )
    shutil.rmtree(sources.model)
    after, bars = run(config, sources, tmp_path / "b")
    assert bars == []
    if not kept:
        del before["models"]["dense"]
    assert after["models"] == before["models"]


def test_any_folder_gives_the_numbers_of_its_stage(sources, tmp_path):
    document, _ = run(config_of("perplexity"), sources, tmp_path / "eval")
    alone = evaluate_folder(config_of("perplexity"), tmp_path / "prune", Silent())
    (model,) = alone["models"].values()
    assert model["results"] == document["models"]["prune"]["results"]


def test_a_python_without_some_of_the_test_text_is_a_warning_for_the_embedded_model(
    demo_folder, monkeypatch
):
    monkeypatch.setattr(results, "missing_modules", lambda part: ("calendar.py",))
    reporter = Silent()
    evaluate_folder(config_of("perplexity"), demo_folder, reporter)
    assert reporter.warnings == [
        "this Python lacks calendar.py of the embedded model's test text; "
        "its numbers do not compare with those of other machines"
    ]


def test_an_adapter_counts_as_what_it_merges_into(sources, tmp_path):
    finetuned = tmp_path / "finetune"
    sparse = pruned_model(tmp_path / "prune", dtype=None, trust_remote_code=False)
    names = list(sparse.linears)
    sparse.load(torch.device("cpu"), SPP(), names)
    description = {
        "adapter": SPP().model_dump(mode="json"),
        "layers": names,
        "mask_digest": sparse.masks.digest,
    }
    save_adapter(sparse.model, finetuned, description)
    sources.stages["finetune"] = finetuned
    sources.digests["finetune"] = "f"
    document, _ = run(config_of("perplexity"), sources, tmp_path / "eval")
    pruned, adapted = document["models"]["prune"], document["models"]["finetune"]
    for figure in ("sparsity", "parameters", "nonzero_parameters"):
        assert adapted[figure] == pruned[figure]
    # A new adapter is the identity.
    nats = pruned["results"]["perplexity@32"]["nats"]
    assert adapted["results"]["perplexity@32"]["nats"] == pytest.approx(nats, rel=1e-6)
