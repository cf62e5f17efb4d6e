"""The model card: true to the records, of no other digest, and the user's once it is edited."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from conftest import add_tokenizer, make_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.models.origin import front_matter
from spp_cli.workspace import Workspace

TERMS = """---
license: other
license_name: llama2
license_link: LICENSE.txt
language: [en]
---
"""


def typed(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json", "--quiet"])
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run ``sparse`` of a model in the hub's cache, all its stages finished."""
    folder = tmp_path_factory.mktemp("card")
    base = folder / "models--owner--base-1B" / "snapshots" / ("a" * 40)
    make_model("llama", base, torch.bfloat16, vocab_size=4096)
    add_tokenizer(base)
    (base / "README.md").write_text(TERMS)
    (base / "LICENSE.txt").write_text("The terms.")
    text = folder / "private" / "text.txt"
    text.parent.mkdir()
    text.write_text("".join(f"def add_{n}(x): return x + {n}\n" for n in range(200)))
    read = {"source": str(text), "sequence_length": 32}
    settings = {
        "model": {"path": str(base)},
        "prune": {"pattern": "2:4", "calibration": {**read, "samples": 2}},
        "finetune": {
            "data": {**read, "samples": 8},
            **{"max_steps": 2, "batch_size": 2, "gradient_accumulation_steps": 1},
        },
        "merge": {"check_sequences": 1, "check_length": 8},
        "eval": {"perplexity": {**read, "max_chunks": 2}},
    }
    (folder / "small.yaml").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("SPP_WORKSPACE", raising=False)
        typed("run", "small.yaml", "--run", "sparse")
    return folder


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of that folder."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("SPP_WORKSPACE", raising=False)
    return tmp_path / "here"


CARD = Path("workspace/sparse/merge/README.md")


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.usefixtures("here")
def test_the_front_matter_is_what_the_hub_reads() -> None:
    assert front_matter(CARD) == {
        "base_model": "owner/base-1B",
        "license": "other",
        "license_name": "llama2",
        "license_link": "LICENSE.txt",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sparse", "pruned", "spp", "wanda", "2:4"],
    }
    assert (CARD.parent / "LICENSE.txt").read_text() == "The terms."


@pytest.mark.usefixtures("here")
def test_the_card_says_what_the_records_do() -> None:
    card, run = CARD.read_text(), Workspace("workspace").run("sparse")
    pruned, merged = run.manifest("prune"), run.manifest("merge")
    assert pruned
    assert merged
    recipe = section(card, "What it is")
    for fact in (
        "owner/base-1B, revision aaaa",
        pruned.settings["model"]["digest"],
        "Wanda",
        "2:4, 2 weights kept of every 4",
        repr(merged.metrics["sparsity"]),
        f"{merged.metrics['block_sparsity']!r} of all their weights",
        pruned.metrics["calibration"]["digest"][:16],
        "2 steps of 2 rows, learning rate",
        merged.mask_digest,
    ):
        assert fact in recipe.replace("\\", "")
    results = json.loads(Path("workspace/sparse/eval/results.json").read_text())["models"]
    table = section(card, "Results")
    assert "| dense | pruned | finetuned | merged | recovered |" in table
    for model in results.values():
        assert f"{model['results']['perplexity@32']['perplexity']:.2f}" in table
    assert "62 tokens of text.txt in sequences of 32" in table  # each but a first
    assert "That of owner/base-1B: llama2, see [LICENSE.txt](LICENSE.txt)" in card


def test_no_folder_of_this_machine_is_in_it(here: Path, finished: Path) -> None:
    for stage in ("merge", "prune"):
        typed("card", f"sparse/{stage}", "--force")
        card = Path(f"workspace/sparse/{stage}/README.md").read_text()
        assert "text.txt" in card
        for folder in (str(here), str(finished), "private/", "/tmp"):
            assert folder not in card


@pytest.mark.usefixtures("here")
def test_a_card_changes_no_digest_and_makes_nothing_stale() -> None:
    records = {path: path.read_bytes() for path in Path("workspace").rglob("manifest.json")}
    CARD.unlink()
    typed("card", "sparse")
    typed("card", "sparse/prune")
    assert all(
        stage["skipped"] for stage in typed("run", "small.yaml", "--run", "sparse")["stages"]
    )
    assert {path: path.read_bytes() for path in records} == records
    assert "README.md" not in json.loads((CARD.parent / "manifest.json").read_text())["files"]


@pytest.mark.usefixtures("here")
def test_results_of_another_model_are_not_told_as_those_of_this_one() -> None:
    typed("finetune", "small.yaml", "--run", "sparse", "--learning-rate", "0.1", "--force")
    typed("merge", "--run", "sparse", "--force")
    table = section(CARD.read_text(), "Results")
    assert "| dense | pruned |" in table
    assert "merged" not in table
    typed("eval", "--run", "sparse", "--stage", "merge")
    assert "| dense | pruned | merged |" in section(CARD.read_text(), "Results")


@pytest.mark.usefixtures("here")
def test_a_card_of_an_unmeasured_model_says_so_and_eval_adds_the_results() -> None:
    shutil.rmtree("workspace/sparse/eval")
    typed("card", "sparse")
    assert section(CARD.read_text(), "Results").strip() == "Not measured yet."
    assert "spp eval" not in section(CARD.read_text(), "How it was made")
    typed("eval", "small.yaml", "--run", "sparse")
    assert "perplexity@32" in section(CARD.read_text(), "Results")


@pytest.mark.usefixtures("here")
def test_what_somebody_has_edited_stays_until_force() -> None:
    own = CARD.read_text().replace("## Results", "Mind the gap.\n\n## Results")
    CARD.write_text(own)
    typed("eval", "small.yaml", "--run", "sparse")
    assert CARD.read_text() == own
    assert "was edited by hand. Add --force" in typed("card", "sparse", code=2)["error"]
    assert CARD.read_text() == own
    typed("card", "sparse", "--force")
    assert "Mind the gap" not in CARD.read_text()


@pytest.mark.usefixtures("here")
def test_an_unknown_licence_is_said_to_be_so() -> None:
    path = Path("workspace/sparse/prune/manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["metrics"]["origin"]  # as in the record of an older spp
    path.write_text(json.dumps({**manifest, "sha256": None}))
    Path("workspace/sparse/merge/LICENSE.txt").rename("LICENSE.txt")
    merged = Path("workspace/sparse/merge/manifest.json")
    manifest = json.loads(merged.read_text())
    del manifest["files"]["LICENSE.txt"]
    merged.write_text(json.dumps({**manifest, "sha256": None}))
    typed("card", "sparse")
    assert front_matter(CARD)["license"] == "unknown"
    assert "base_model" not in front_matter(CARD)
    assert section(CARD.read_text(), "Licence").startswith("\nUnknown: no card of aaaa")


@pytest.mark.usefixtures("here")
def test_a_merged_model_outlives_its_parts_and_so_does_its_card() -> None:
    shutil.rmtree("workspace/sparse/prune")
    shutil.rmtree("workspace/sparse/finetune")
    typed("card", "sparse")
    card = CARD.read_text()
    assert "2:4" in front_matter(CARD)["tags"]
    assert "Merged, it is a plain model again, 50.0% of those weights zero." in card


@pytest.mark.usefixtures("here")
def test_what_the_card_tells_to_type_works(monkeypatch: pytest.MonkeyPatch) -> None:
    card = CARD.read_text().replace("path/to/this/folder", str(CARD.parent))
    (python,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(python, names)
    assert isinstance(names["model"], type(AutoModelForCausalLM.from_pretrained(CARD.parent)))
    (verify,) = re.findall(r"^spp (verify .*)", card, re.MULTILINE)
    assert typed(*shlex.split(verify))["ok"]
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    base, text = "models--owner--base-1B/snapshots/" + "a" * 40, "private/text.txt"
    yaml = yaml.replace("path: " + "a" * 40, f"path: {base}").replace("text.txt", text)
    Path("sparse.yaml").write_text(yaml)
    commands = re.findall(r"^spp (\w+ sparse.yaml)", card, re.MULTILINE)
    assert commands == [f"{stage} sparse.yaml" for stage in ("prune", "finetune", "merge", "eval")]
    for command in commands:
        name, *arguments = shlex.split(command)
        typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore
    again = typed("prune", "sparse.yaml", "--run", "again")
    assert again["metrics"]["sparsity"] == 0.5
    masks = [Path(f"workspace/{run}/prune/keep_masks.safetensors") for run in ("sparse", "again")]
    assert masks[0].read_bytes() == masks[1].read_bytes()


@pytest.mark.usefixtures("here")
def test_a_mistake_is_told_in_one_line() -> None:
    for name, says in (
        ("sparse/finetune", "sparse/finetune names no model of run sparse; must be one of merge"),
        ("nowhere", "workspace has no run nowhere. Runs there: sparse"),
    ):
        assert typed("card", name, code=2)["error"].startswith(says)
    shutil.rmtree("workspace/sparse/merge")
    says = "a model card needs a merged model, and run sparse has none. Run: spp merge --run sparse"
    assert typed("card", "sparse", code=2)["error"] == says


def test_it_is_written_without_torch(here: Path) -> None:
    code = (
        "import sys; from spp_cli.__main__ import main\n"
        "sys.argv = ['spp', 'card', 'sparse']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True)
