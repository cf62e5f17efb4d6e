"""spp report: a page from records and models that needs nothing else; no text becomes a tag."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from browser import CHROMIUM, chromium
from conftest import make_base_and_text
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from spp_cli.cli import app
from spp_cli.config import SppConfig
from spp_cli.pipeline import run_stages
from spp_cli.progress import Silent
from spp_cli.report import gather
from spp_cli.reporting import figures
from spp_cli.workspace import STAGES, Workspace

SETTINGS: dict[str, Any] = {
    "model": {"path": "base"},
    "prune": {"calibration": {"source": "text.txt", "samples": 2, "sequence_length": 32}},
    "finetune": {
        "data": {"source": "text.txt", "samples": 8, "sequence_length": 32},
        **{"max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 1},
        "learning_rate": 0.01,
    },
    "merge": {"check_sequences": 1, "check_length": 8},
    "eval": {"perplexity": {"source": "text.txt", "sequence_length": 32, "max_chunks": 3}},
}
PROMPT = "def add_7(x):"
EVIL = "<script>alert(1)</script>\"'&\x1b[31m"


def make(name: str, stages: tuple[str, ...] = STAGES, **prune: Any) -> None:
    config = SppConfig.model_validate({**SETTINGS, "prune": {**SETTINGS["prune"], **prune}})
    run_stages(stages, config, Silent(), run=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, two whole runs, one that is only pruned, and a page on all."""
    folder = tmp_path_factory.mktemp("report")
    make_base_and_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make("first", method="wanda", sparsity=0.5)
        make("second", method="magnitude", sparsity=0.5)
        make("pruned", ("prune",), method="sparsegpt", pattern="2:4")
        prompts = ("--prompt", PROMPT, "--prompt", EVIL, "--prompt", "x" * 500)
        document = report("first", "second", "pruned", *prompts)
        assert document["file"] == "workspace/report.html"
        assert document["warnings"] == []
    return folder


@pytest.fixture(scope="module")
def tree(finished: Path) -> ElementTree.Element:
    """The page on all runs."""
    return parsed(finished / "workspace/report.html")


def section(tree: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [each for each in tags(tree, "section") if each.get("id") == name]
    return found


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of that folder."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def report(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Return the document of a report that is made in this process."""
    done = CliRunner().invoke(app, ["report", *arguments, "--json"])
    assert done.exit_code == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def parsed(path: str | Path) -> ElementTree.Element:
    """Return the page as a tree; it is well-formed XML, or this fails."""
    return ElementTree.fromstring(Path(path).read_text(encoding="utf-8"))


def tags(tree: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [each for each in tree.iter() if each.tag.rpartition("}")[2] == name]


def test_one_page_tells_all_of_a_run(tree):
    run = section(tree, "run-first")
    text = "".join(run.itertext())
    assert "Base was pruned with Wanda: 50.0% of the weights of 14 linear layers" in text
    assert "was then trained for 3 steps of 2 rows of text.txt" in text
    headers = [cell.text for cell in tags(run, "th")]
    assert {"dense", "pruned", "finetuned", "merged", "perplexity@32"} <= set(headers)
    titles = [cell.text for cell in tags(run, "h4")]
    for title in ("Loss while finetuning", "Error of each layer's output", "Zeros by layer"):
        assert title in titles
    assert len(tags(run, "svg")) == 5
    assert "spp run first.yaml" in text
    assert "learning_rate: 0.01" in text


def test_several_runs_are_compared_before_each_is_told(tree):
    together = section(tree, "together")
    titles = [cell.text for cell in tags(together, "h4")]
    assert titles == ["Perplexity against sparsity", "Loss while finetuning"]
    lines = [cell.text for cell in tags(together, "th")]
    assert {"first", "second"} <= set(lines)
    assert [each.get("id") for each in tags(tree, "section")][1:] == [
        f"run-{name}" for name in ("first", "second", "pruned")
    ]


def test_it_loads_nothing_and_no_text_becomes_a_tag(tree, finished):
    assert not tags(tree, "script")
    assert not tags(tree, "link")
    assert any("<script>alert(1)" in (each.text or "") for each in tags(tree, "pre"))
    for each in tree.iter():
        for name, value in each.attrib.items():
            assert not name.startswith("on")
            if name.rpartition("}")[2] in ("href", "src"):
                assert value.startswith(("#", "data:")), value
    page = (finished / "workspace/report.html").read_text()
    assert not re.search(r"url\((?!#)|@import", page)
    assert "\x1b" not in page


def test_no_two_things_of_a_page_have_one_id_and_every_reference_leads_somewhere(tree):
    ids = [value for each in tree.iter() if (value := each.get("id"))]
    assert len(ids) == len(set(ids))
    named = [
        value[1:]
        for each in tree.iter()
        for name, value in each.attrib.items()
        if name.rpartition("}")[2] == "href" and value.startswith("#")
    ]
    named += re.findall(r"url\(#(.*?)\)", ElementTree.tostring(tree, encoding="unicode"))
    assert named
    assert set(named) <= set(ids)


def test_samples_are_what_the_models_would_write_anywhere(tree, finished):
    sample = next(
        each for each in tags(section(tree, "run-first"), "div") if each.get("class") == "sample"
    )
    shown = [cell.text or "" for cell in tags(sample, "pre")]
    assert shown[0] == PROMPT
    tokenizer = AutoTokenizer.from_pretrained(finished / "base")
    ids = tokenizer(PROMPT, return_tensors="pt")
    runs = finished / "workspace/first"
    for place, folder in enumerate((finished / "base", runs / "prune", runs / "merge"), start=1):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        written = model.generate(**ids, do_sample=False, max_new_tokens=48)
        own = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert printable(shown[place]) == printable(own)


def printable(text: str) -> str:
    """Return what a random model writes without the signs that no page may hold."""
    return "".join(sign for sign in text if sign.isprintable() and sign not in " \ufffd")


def test_without_prompts_the_evaluation_text_begins(here):
    tree = parsed(report("first")["file"])
    samples = [each for each in tags(tree, "div") if each.get("class") == "sample"]
    text = Path("text.txt").read_text()
    prompts = [tags(sample, "pre")[0].text for sample in samples]
    assert len(prompts) == 3
    assert all(prompt.strip() in text for prompt in prompts)
    assert text.startswith(prompts[0])


def test_plots_come_as_files_too(here):
    document = report("first", "--no-samples", "--plots", "pictures")
    names = sorted(path.name for path in Path("pictures").iterdir())
    assert sorted(map(str, Path("pictures").iterdir())) == sorted(document["plots"])
    plots = ("loss", "output_error", "sparsity", "stages", "weights")
    assert names == sorted(f"first-{plot}.{suffix}" for plot in plots for suffix in ("png", "svg"))
    for path in Path("pictures").glob("*.svg"):
        parsed(path)
    assert report("first", "--no-samples", "--plots", "pictures")["plots"] == document["plots"]


def test_the_histogram_is_of_the_layers_named(here):
    tree = parsed(report("first", "--no-samples", "--layer", "*.1.mlp.*")["file"])
    captions = [each.text for each in tags(tree, "figcaption")]
    assert any(text.startswith("model.layers.1.mlp.gate_proj and 2 more") for text in captions)
    text = "".join(tree.itertext())
    assert "pruned, 50.0% zeros" in text
    assert "merged, 50.0% zeros" in text


def test_a_run_of_an_older_spp_has_no_map_of_errors_and_the_page_says_so(here):
    path = Path("workspace/first/prune/manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["metrics"]["output_error_from"]
    for layer in manifest["metrics"]["layers"].values():
        del layer["output_error"]
    path.write_text(json.dumps({**manifest, "sha256": None}))
    tree = parsed(report("first", "--no-samples")["file"])
    assert "Error of each layer's output" not in [each.text for each in tags(tree, "h4")]
    assert "pruned before spp recorded them" in "".join(tree.itertext())


def test_a_dense_model_that_is_gone_costs_what_it_is_needed_for_and_no_more(here):
    Path("base").rename("moved")
    document = report("first")
    (warning,) = document["warnings"]
    assert "base" in warning
    assert warning in "".join(parsed(document["file"]).itertext())
    assert "base" in report("first", "--prompt", "x", code=2)["error"]


def test_models_that_are_no_longer_those_on_record_write_nothing(here):
    weights = Path("workspace/first/merge/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 0xFF
    weights.write_bytes(content)
    (warning,) = report("first")["warnings"]
    assert warning.startswith("No samples and no histogram of weights: ")
    assert f"{weights} has changed since" in warning


def test_without_matplotlib_the_page_has_all_but_plots(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    document = report("first", "--no-samples")
    assert 'pip install "spp-cli[plot]"' in document["warnings"][0]
    tree = parsed(document["file"])
    assert not tags(tree, "svg")
    assert document["warnings"][0] in "".join(tree.itertext())
    assert "spp-cli[plot]" in report("first", "--plots", "pictures", code=2)["error"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["third"], "workspace has no run third. Runs there: "),
        (["first", "--no-samples", "--prompt", "x"], "--prompt asks for samples, and --no-samples"),
        (["first", "--prompt", " "], "--prompt is empty"),
        (["first", "--output", "base"], "--output is base, a folder. Name a file in it: base/"),
        (["first", "--output", "base/config.json"], "--output is base/config.json; a report ends"),
        (["first", "--output", "own.html"], "--output is own.html, which is there and is not a"),
        (
            ["first", "--output", "workspace/first/merge/page.html"],
            "--output is workspace/first/merge/page.html, in the merge of run first, where only",
        ),
        (["first", "--plots", "workspace/first/merge"], "--plots is workspace/first/merge, in the"),
        (["first", "--plots", "text.txt"], "--plots is text.txt, which is not a folder"),
        (
            ["first", "--no-samples", "--plots", "mine"],
            "a file of --plots is mine/first-sparsity.png, which is there and is not a plot of spp",
        ),
        (["first", "--no-samples", "--layer", "x_proj"], "--layer has 'x_proj', which matches no"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(here, arguments, says):
    Path("own.html").write_text("<html><title>mine</title></html>")
    Path("mine").mkdir()
    Path("mine/first-sparsity.png").write_bytes(b"mine")
    assert report(*arguments, code=2)["error"].startswith(says)
    assert not (here / "workspace/first/report.html").exists()


def test_records_are_read_without_torch(finished):
    code = (
        "import sys; from spp_cli.report import gather; from spp_cli.workspace import Workspace\n"
        "from spp_cli.commands import report\n"
        "gather(Workspace('workspace').runs())\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=finished, check=True)


def test_the_configuration_on_the_page_makes_the_run_again(here):
    (run,) = gather([Workspace("workspace").run("first")])["runs"]
    assert run["commands"][1:] == ["spp run first.yaml", "spp report first"]
    Path("first.yaml").write_text(run["config"])
    done = CliRunner().invoke(app, ["run", "first.yaml", "--json"])
    assert done.exit_code == 0, done.stderr
    assert all(stage["skipped"] for stage in json.loads(done.stdout)["stages"])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; apt-get install chromium")
def test_a_browser_shows_it_without_complaint_request_or_overflow(finished, tmp_path):
    file = finished / "workspace/report.html"
    paper = set()
    with chromium() as page:
        for width, scheme in ((1280, "light"), (390, "light"), (390, "dark"), (320, "dark")):
            page.open(file, width=width, scheme=scheme)
            assert page.run("innerWidth") == width
            assert page.run("document.documentElement.scrollWidth") <= width
            out = (
                "[...document.querySelectorAll('h1, h2, h3, p, figure, .scroll, pre, .sample')]"
                ".filter(each => each.getBoundingClientRect().right > innerWidth).length"
            )
            assert page.run(out) == 0
            paper.add(page.run("getComputedStyle(document.body).backgroundColor"))
        assert page.run("document.querySelectorAll('svg').length") > 5
        page.print(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert page.complaints == []
        assert {url.partition(":")[0] for url in page.requests} <= {"file", "data"}
        assert {url for url in page.requests if url.startswith("file")} == {file.resolve().as_uri()}
    assert len(paper) == 2


def test_colours_keep_their_contrast_on_white_and_on_black():
    for colour in (*figures.COLOURS, figures.INK):
        light = luminance(colour)
        assert min(1.05 / (light + 0.05), (light + 0.05) / 0.05) >= 3


def luminance(colour: str) -> float:
    """Return the relative luminance as WCAG 2 defines it, 0 to 1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
