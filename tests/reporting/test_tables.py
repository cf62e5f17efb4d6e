"""Tables as plain text: they are what the README shows."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from spp_cli.reporting.tables import (
    evaluation_table,
    run_table,
    status_table,
    table,
    verify_table,
)

CELLS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9)


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=1)
    )
)
def test_every_line_of_a_table_ends_in_the_same_column(rows: list[list[str]]) -> None:
    lines = table(rows[0], rows).splitlines()
    if len(rows[0]) > 1:
        assert len(set(map(len, lines))) == 1
    assert [line.split() for line in lines[2:]] == rows


def model(perplexity: float, acc: float, sparsity: float) -> dict[str, Any]:
    return {
        "sparsity": sparsity,
        "nonzero_parameters": round(5.48e6 * (1 - 0.8 * sparsity)),
        "results": {
            "perplexity@256": {"perplexity": perplexity},
            "next-line": {"metrics": {"acc": acc, "acc_stderr": 0.024, "acc_norm": 0.5}},
        },
    }


def test_an_evaluation_shows_every_stage_and_what_came_back() -> None:
    document = {
        "models": {"dense": model(18.5, 0.35, 0), "prune": model(57.5, 0.31, 0.75)},
        "recovered": {},
    }
    assert evaluation_table(document) == "\n".join(
        [
            "                            dense         pruned",
            "------------------  -------------  -------------",
            "sparsity                   0.0000         0.7500",
            "non-zero weights           5.48 M         2.19 M",
            "perplexity@256              18.50          57.50",
            "next-line acc       0.350 ± 0.024  0.310 ± 0.024",
            "next-line acc_norm          0.500          0.500",
        ]
    )
    document["models"]["merge"] = model(24.4, 0.34, 0.75)
    document["recovered"] = {"merge": {"perplexity@256": 0.756, "next-line": 0.75}}
    lines = evaluation_table(document).splitlines()
    assert lines[0].split() == ["dense", "pruned", "merged", "recovered"]
    assert lines[4].split() == ["perplexity@256", "18.50", "57.50", "24.40", "76%"]
    assert lines[5].endswith("75%")
    assert lines[6].split() == ["next-line", "acc_norm", "0.500", "0.500", "0.500"]


def test_a_perplexity_that_a_merge_has_changed_is_remarked_on() -> None:
    models = {name: model(24.4, 0.34, 0.75) for name in ("finetune", "merge")}
    for each in models.values():
        each["results"]["perplexity@256"] |= {
            "nats": 3.19,
            "digest": "a",
            "length": 256,
            "source": "text",
            "tokens": 255,
        }
    assert "rounding" not in evaluation_table({"models": models})
    models["merge"]["results"]["perplexity@256"]["perplexity"] = 26.84
    note = evaluation_table({"models": models}).splitlines()[-1]
    assert note.startswith("perplexity@256: merged is +10.00% from finetuned")
    models["merge"]["results"]["perplexity@256"]["digest"] = "b"  # of another text
    assert "+10.00%" not in evaluation_table({"models": models})


def test_a_task_that_one_stage_lacks_is_a_dash_there() -> None:
    lacking = {"results": {"boolq": {"metrics": {"acc": 0.7}}}}
    document = {"models": {"dense": model(18.5, 0.35, 0), "prune": lacking}}
    lines = evaluation_table(document).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["–", "–", "–", "–", "–", "0.700"]


def test_the_status_shows_states_progress_and_the_length_of_a_perplexity() -> None:
    stages = {
        "prune": {"state": "done"},
        "finetune": {"state": "partial", "progress": {"done": 17, "total": 32, "unit": "steps"}},
        "merge": {"state": "missing"},
    }
    row = {
        "run": "demo-wanda-0.75",
        "stages": stages,
        "sparsity": 0.75,
        "block_sparsity": 0.5,
        "perplexity": {
            "name": "perplexity@256",
            "stages": {"dense": 18.5, "prune": 57.5, "finetune": 24.41, "merge": 24.4},
        },
        "recovered": 0.756,
    }
    lines = status_table(
        [
            row,
            {
                **row,
                "sparsity": None,
                "block_sparsity": None,
                "perplexity": None,
                "recovered": None,
            },
        ]
    ).splitlines()
    assert lines[0].split()[:5] == ["run", "prune", "finetune", "merge", "sparsity"]
    assert lines[0].split()[5:7] == ["of", "blocks"]
    assert lines[2].split()[1:7] == ["done", "partial", "17/32", "–", "0.7500", "0.5000"]
    assert lines[2].endswith("18.50 → 57.50 → 24.40 (@256)        76%")
    assert lines[3].split()[-4:] == ["–", "–", "–", "–"]


def test_a_run_shows_when_and_how_long_each_stage_took() -> None:
    done = {
        "state": "done",
        "finished": "2026-11-24T08:27:01+00:00",
        "seconds": 8.8,
        "peak_memory_bytes": 2**29,
    }
    lines = run_table({"prune": done, "merge": {"state": "missing"}}).splitlines()
    assert lines[2].split() == ["prune", "done", "2026-11-24", "08:27", "8.8", "s", "0.50", "GiB"]
    assert lines[3].split() == ["merge", "–", "–", "–", "–"]


def test_a_check_ends_in_a_line_for_all_layers() -> None:
    layer = {"name": "q", "shape": [4, 8], "sparsity": 0.5, "violations": 1, "filled": 2}
    lines = verify_table({"layers": [layer, layer], "sparsity": 0.5}).splitlines()
    assert lines[2].split() == ["q", "4", "×", "8", "0.5000", "1", "2"]
    assert lines[4].split() == ["all", "0.5000", "2", "4"]
