"""A sweep file becomes points: every combination, with a name of its own, or a line why not."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli import yaml12
from spp_cli.errors import ConfigError
from spp_cli.settings import Layer, assigned
from spp_cli.sweeps.outlook import outlook
from spp_cli.sweeps.record import Record, other_file
from spp_cli.sweeps.sweep import Sweep, read_sweep
from spp_cli.workspace import STAGES, Workspace

AXES: dict[str, list[Any]] = {
    "prune.method": ["magnitude", "wanda", {"name": "sparsegpt", "damping": 0.05}],
    "amount": [
        {"prune.sparsity": 0.5},
        {"prune.sparsity": 0.6},
        {"prune.pattern": "2:4"},
        {"name": "most", "prune": {"pattern": "1:8"}},
    ],
    "finetune": ["none", "spp", "masked-lora", {"adapter": "spp", "learning_rate": 0.5}],
    "seed": [0, 1, 2],
    "prune.exclude": [[], ["*.down_proj"], ["*.q_proj", "*.k_proj"]],
    "prune.calibration.samples": [8, 16],
    "merge.packed": [True, False],
}
PRUNED_ALIKE = ("finetune", "merge.packed", "seed")  # what the pruned model does not depend on


def read(text: str | dict[str, Any], flags: Layer | None = None) -> Sweep:
    """Read a sweep file of this content."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "base.yaml").write_text("prune: {pattern: unstructured}\nseed: 3\n")
        file = Path(folder, "many.yaml")
        file.write_text(text if isinstance(text, str) else yaml12.dump(text))
        try:
            return read_sweep(str(file), flags or Layer())
        except ConfigError as error:
            raise ConfigError(*str(error).replace(f"{folder}/", "").splitlines()) from None


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Some of the axes in any order, each with some of its values in any order."""
    names = draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=4, unique=True))
    # Without a finetune nothing is merged: points that differ only there would be the same.
    names = [name for name in names if name != "merge.packed" or "finetune" not in names]
    places = {name: st.permutations(range(len(AXES[name]))) for name in names}
    sizes = {name: draw(st.integers(1, len(AXES[name]))) for name in names}
    return {name: [AXES[name][i] for i in draw(places[name])[: sizes[name]]] for name in names}


@given(grids())
def test_there_is_a_point_for_every_combination_each_with_a_name_that_is_one(grid):
    sweep = read({"grid": grid})
    assert len(sweep.points) == math.prod(map(len, grid.values()))
    names = [point.name for point in sweep.points]
    assert len({name.lower() for name in names}) == len(names)
    for point in sweep.points:
        assert Workspace("nowhere").run(point.name).name == point.config.run == point.name


@given(grids())
def test_a_point_is_named_by_its_values_whatever_else_is_in_the_file(grid):
    whole = {point.name: point.config for point in read({"grid": grid}).points}
    for key, values in grid.items():
        for value in values:
            part = read({"grid": {**grid, key: [value]}, "config": {"eval.limit": 7}}).points
            assert {point.name for point in part} <= set(whole)


@given(grids())
def test_points_are_pruned_alike_if_and_only_if_all_that_pruning_reads_is_the_same(grid):
    sweep = read({"grid": grid})
    kinds = math.prod(len(values) for key, values in grid.items() if key not in PRUNED_ALIKE)
    assert len({point.pruned_as() for point in sweep.points}) == kinds
    assert len({point.made_as() for point in sweep.points}) == len(sweep.points)


@given(grids())
def test_the_order_in_the_file_decides_the_order_and_nothing_else(grid):
    def turned(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value[::-1] for key, value in values.items()}

    there, back = (read({"grid": found}).points for found in (grid, turned(grid)))
    assert list(there) == list(back)[::-1] or {p.name for p in there} == {p.name for p in back}
    assert [point.config for point in there] == [point.config for point in reversed(back)]


def test_values_reach_the_configuration_over_the_base_and_what_is_common():
    sweep = read(
        "base: base.yaml\n"
        "config: {eval: {limit: 100}, eval.perplexity.max_chunks: 3}\n"
        "grid:\n"
        "  prune.method: [wanda, {name: sparsegpt, damping: 0.05}]\n"
        "  amount:\n"
        "    - prune.sparsity: 0.75\n"
        "    - {prune.pattern: 2:4, prune.exclude: ['*.down_proj']}\n"
        "  finetune: [none, spp]\n"
        "points:\n"
        "  - {name: best, prune.method: sparsegpt, prune.sparsity: 0.5, stages: [prune, eval]}\n"
    )
    assert all(point.name == point.config.run for point in sweep.points)
    assert [point.name.removeprefix("many-") for point in sweep.points] == [
        *("wanda-0.75-none", "wanda-0.75-spp", "wanda-2of4-down_proj-none"),
        *("wanda-2of4-down_proj-spp", "sparsegpt-damping-0.05-0.75-none"),
        *("sparsegpt-damping-0.05-0.75-spp", "sparsegpt-damping-0.05-2of4-down_proj-none"),
        *("sparsegpt-damping-0.05-2of4-down_proj-spp", "best"),
    ]
    assert [len(point.stages) for point in sweep.points] == [2, 4] * 4 + [2]
    points = {point.name.removeprefix("many-"): point.config for point in sweep.points}
    prune = points["sparsegpt-damping-0.05-2of4-down_proj-spp"].prune
    assert (prune.method.damping, prune.pattern, prune.sparsity) == (0.05, "2:4", 0.5)
    assert prune.exclude == ("*.down_proj",)
    assert points["best"].prune.method.damping == 0.01
    for config in points.values():
        assert (config.seed, config.eval.limit, config.eval.perplexity.max_chunks) == (3, 100, 3)


def test_stages_are_those_of_the_file_less_what_a_point_leaves_out():
    file = {"stages": ["prune", "finetune", "eval"], "grid": {"finetune": ["none", "spp"]}}
    stages = [point.stages for point in read(file).points]
    assert stages == [("prune", "eval"), ("prune", "finetune", "eval")]
    assert read({"grid": {"seed": [1]}}).points[0].stages == STAGES


def test_a_flag_is_stronger_than_the_base_and_refused_where_it_would_undo_the_grid():
    grid = {"grid": {"finetune": ["none", "spp"]}}
    flags = assigned([("finetune.max_steps", 5, "--set finetune.max_steps=5")])
    assert {point.config.finetune.max_steps for point in read(grid, flags).points} == {5}
    other = assigned([("finetune.adapter", "lora", "--set finetune.adapter=lora")])
    with pytest.raises(ConfigError) as refusal:
        read(grid, other)
    assert str(refusal.value) == (
        "--set finetune.adapter=lora: finetune.adapter differs between the points of the sweep "
        "(many.yaml:4). Leave it out here or there"
    )


MISTAKES = {
    "grd: {seed: [0]}": "many.yaml:1: unknown key 'grd'. Did you mean 'grid'?",
    "base: base.yaml": "many.yaml: has no points. Add grid, such as {prune.sparsity: [0.5]}",
    "grid: [1]": "many.yaml:1: grid must be a mapping of keys to lists",
    "points: {seed: 1}": "many.yaml:1: points must be a list of mappings",
    "grid: {seed: 1}": "many.yaml:1: seed must be a list of values, such as [0.5, 0.75]",
    "grid: {seed: []}": "many.yaml:1: seed must be a list of values, such as [0.5, 0.75]",
    "grid: {sede: [0]}": "many.yaml:1: unknown key 'sede'. Did you mean 'seed'?",
    "grid: {amount: [0.5]}": (
        "many.yaml:1: unknown key 'amount'. A word of your own takes mappings, such as "
        "{prune.sparsity: 0.5}"
    ),
    "grid:\n  seed: [0]\n  prune.spasity: [0.5, 0.6]": (
        "many.yaml:3: unknown key 'prune.spasity'. Did you mean 'sparsity'?"
    ),
    "grid:\n  prune.sparsity:\n    - 0.5\n    - 7.5": (
        "many.yaml:4: prune.sparsity is 7.5; must be a number above 0 and below 1"
    ),
    "grid:\n  amount:\n    - prune.sparsity: 0.5\n    - {prune: {sparsity: 0.6,\n pattern: 4:2}}": (
        "many.yaml:5: prune.pattern is '4:2'; must be unstructured, or N:M with 0 < N < M, for "
        "example 2:4"
    ),
    "grid:\n  seed: [0, 1]\npoints:\n  - {seed: 2, prune.metod: wanda}": (
        "many.yaml:4: unknown key 'prune.metod'. Did you mean 'method'?"
    ),
    "grid: {seed: [0, 0]}": (
        "many.yaml:1: a second point is called seed-0; the first: many.yaml:1. Remove one, or give "
        "it another name"
    ),
    "points:\n - {name: a, seed: 1}\n - {name: A, seed: 2}": (
        "many.yaml:3: a second point is called A; the first: many.yaml:2. Remove one, or give it "
        "another name"
    ),
    "points:\n - {name: a, seed: 1}\n - {name: b, seed: 1}": (
        "many.yaml:3: b comes to the same as a (many.yaml:2). Remove one"
    ),
    "points:\n - {name: a b, seed: 1}": (
        "many.yaml:2: 'a b' cannot be the name of a run: up to 100 letters, digits, '.', '_' and "
        "'-', beginning with a letter or digit. Give the point a name"
    ),
    "points: [{name: a, run: b}]": (
        "many.yaml:1: run cannot differ between points. Set name instead"
    ),
    "grid: {workspace: [a, b]}": (
        "many.yaml:1: workspace cannot differ between points. Set --workspace instead"
    ),
    "grid:\n  prune.sparsity: [0.5]\n  amount: [{prune.sparsity: 0.6}]": (
        "many.yaml:3: prune.sparsity is set by two keys of the grid. Put those that belong "
        "together into mappings under one word"
    ),
    "stages: [prune, evl]\ngrid: {seed: [1]}": (
        "many.yaml:1: stages has 'evl'; must be of prune, finetune, merge, eval. Did you mean "
        "'eval'?"
    ),
    "grid:\n  stages: [[prune, eval], [prune, merge]]": (
        "many.yaml:2: stages lacks finetune, which the others read. Add it"
    ),
    "config: {eval.stages: [merge]}\ngrid: {finetune: [none]}": (
        "many.yaml:2: none has none of the stages that eval.stages names: merge. Add prune to "
        "eval.stages"
    ),
    "base: {seed: 1}\ngrid: {seed: [1]}": (
        "many.yaml:1: base must be the path of a configuration, beside this file. Settings go "
        "under config"
    ),
    "base: nowhere.yaml\ngrid: {seed: [1]}": (
        "nowhere.yaml: no such file. The ready ones are in configs/"
    ),
    f"grid: {{seed: {list(range(200))}, prune.calibration.samples: {list(range(1, 60))}}}": (
        "many.yaml:1: the grid has 11,800 points; a sweep has at most 10,000. Take values out, or "
        "spread them over several sweeps"
    ),
    "grid: {seed: [1]}\ngrid: {seed: [2]}": (
        "many.yaml:2: 'grid' is given twice, first on line 1. Remove one"
    ),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(text):
    with pytest.raises(ConfigError) as refusal:
        read(text)
    assert str(refusal.value) == MISTAKES[text]


def test_mistakes_of_the_grid_of_points_and_of_settings_are_told_at_once():
    with pytest.raises(ConfigError) as refusal:
        read(
            "stages: [prune, evl]\n"
            "config: {seed: -1}\n"
            "grid:\n"
            "  sede: [0, 1]\n"
            "  prune.exclude: x\n"
            "  stages: [[prune, evil], [eval]]\n"
            "  prune.sparsity: [0.5, 2]\n"
            "points:\n"
            "  - 3\n"
        )
    assert [line.partition(": ")[0] for line in str(refusal.value).splitlines()] == [
        f"many.yaml:{line}" for line in (1, 4, 5, 6, 6, 9, 2, 7)
    ]


def test_stages_in_the_wrong_place_are_told_where_they_belong():
    at_the_top = "those of a sweep at the top of its file, or in one of its points"
    for text in ("config: {stages: [prune]}\ngrid: {seed: [1]}", "grid: {prune.stages: [[prune]]}"):
        with pytest.raises(ConfigError, match=at_the_top):
            read(text)
    with pytest.raises(ConfigError, match="the stages of all points belong at the top of the file"):
        read("grid: {stages: [prune, eval]}")


def test_two_sweeps_of_one_workspace_have_no_run_in_common(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "Two sweeps"):
        Path(f"{name}.yaml").write_text("grid: {prune.sparsity: [0.5, 0.6]}")
    one, two = (read_sweep(f"{name}.yaml", Layer()) for name in ("one", "Two sweeps"))
    assert [point.name for point in one.points] == ["one-0.5", "one-0.6"]
    assert [point.name for point in two.points] == ["two-sweeps-0.5", "two-sweeps-0.6"]

    workspace = Workspace("workspace")
    folder = workspace.sweeps / "one"
    folder.mkdir(parents=True)
    values = {point.name: point.values for point in one.points}
    Record(folder, str(Path("one.yaml").resolve()), values).set("one-0.5", "done")
    assert read_sweep("one.yaml", Layer()) == one
    Path("other").mkdir()
    Path("one.yaml").rename("other/one.yaml")
    assert other_file(workspace, "one", "other/one.yaml") == ""  # it has moved
    Path("one.yaml").write_text("grid: {prune.sparsity: [0.7]}")
    with pytest.raises(ConfigError, match=r"has a sweep of this name, of .*/one\.yaml\. Rename"):
        outlook(read_sweep("other/one.yaml", Layer()))


def test_a_sweep_that_an_earlier_version_began_keeps_the_names_of_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("many.yaml").write_text("grid: {prune.sparsity: [0.5, 0.6]}")
    record = Path("workspace/.sweeps/many/points.json")
    record.parent.mkdir(parents=True)
    points = {"0.5": {"state": "done", "error": "", "seconds": 3.0, "values": {}}}
    record.write_text(json.dumps({"format": 1, "file": "many.yaml", "points": points}))
    for _ in range(2):
        sweep = read_sweep("many.yaml", Layer())
        assert [(point.name, point.config.run) for point in sweep.points] == [
            ("0.5", "0.5"),
            ("0.6", "0.6"),
        ]
        kept = Record(record.parent, "many.yaml", {point.name: {} for point in sweep.points})
        kept.set("0.6", "done")
        assert kept.outcomes["0.5"].seconds == 3.0


def test_mistakes_of_all_points_are_told_at_once_each_once():
    with pytest.raises(ConfigError) as refusal:
        read({"grid": {"prune.method": ["wnda", "wanda"], "prune.sparsity": [0.5, 2, 3]}})
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(set(lines)) == 3
    assert sum("prune.method is 'wnda'" in line for line in lines) == 1
