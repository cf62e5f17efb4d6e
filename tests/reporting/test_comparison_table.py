"""Columns of a comparison: sorting, filtering, and the same numbers in every format."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spp_cli.errors import ConfigError
from spp_cli.reporting.columns import cells, check, filtered, ordered, split, without_settings
from spp_cli.reporting.comparison_table import comparison

NUMBERS = st.floats(allow_nan=False) | st.integers(-3, 3).map(float)
WORDS = st.text("ab|&_%\\~^{}#$*,\"'\n é", max_size=8)


def row(
    run: str | None = "r",
    method: str | None = "wanda",
    sparsity: float | None = 0.5,
    perplexity: float = 20.0,
    **more: Any,
) -> dict[str, Any]:
    text = {"perplexity": perplexity, "nats": 3.0, "source": "demo", "digest": "d", "tokens": 9}
    recipe = {"pattern": "2:4", "target_sparsity": 0.5}
    recipe |= dict.fromkeys(("allocation", "refine", "recover"))
    return {
        **{"run": run, "runs": [run or "r"], "stage": "prune", "model": "demo"},
        **{"model_digest": "f0", "method": method, **recipe, "order": None, "adapter": None},
        **{"settings": {"prune.calibration.samples": 8}, "sparsity": sparsity},
        "perplexity": {"perplexity@256": text},
        "tasks": {"next-line": {"metrics": {"acc": 0.5, "acc_stderr": 0.035}}},
        **{"zeroshot": None, "zeroshot_tasks": [], "recovered": {"perplexity@256": 0.8}},
        **{"bytes_packed": 2**20, "minutes": 1.5, "stage_minutes": 1.5},
        **{"peak_memory_bytes": 2**30, "incomparable": [], **more},
    }


ROWS = st.lists(
    st.builds(
        row,
        run=WORDS,
        method=st.none() | WORDS.filter(bool),
        sparsity=st.none() | st.floats(0, 1),
        perplexity=NUMBERS,
    ),
    max_size=8,
)
COLUMN = st.sampled_from(["run", "method", "sparsity", "perplexity@256"])
KEYS = st.lists(st.builds("{}{}".format, st.sampled_from(["", "-"]), COLUMN), max_size=3)


@given(ROWS.filter(bool), KEYS)
def test_sorting_only_changes_the_order_and_sorting_again_nothing(rows: Any, keys: Any) -> None:
    once = ordered(rows, keys)
    assert sorted(map(id, once)) == sorted(map(id, rows))
    assert list(map(id, ordered(once, keys))) == list(map(id, once))


@given(ROWS.filter(bool), st.sampled_from(["sparsity", "perplexity@256"]), st.booleans())
def test_sorting_is_by_value_then_by_the_order_before_and_absent_values_are_last(
    rows: Any, name: str, descending: bool
) -> None:
    found = ordered(rows, ["-" * descending + name])
    places = [next(i for i, old in enumerate(rows) if old is new) for new in found]
    values = [cells(one)[name] for one in found]
    present = [value for value in values if value is not None]
    assert values[len(present) :] == [None] * (len(values) - len(present))
    assert present == sorted(present, reverse=descending)
    for i in range(1, len(values)):
        assert values[i] != values[i - 1] or places[i] > places[i - 1]


@given(ROWS.filter(bool), st.sampled_from(["sparsity", "perplexity@256"]), NUMBERS)
def test_a_filter_and_its_opposite_share_the_rows_out(rows: Any, name: str, limit: float) -> None:
    def passing(operator: str) -> list[int]:
        return [id(one) for one in filtered(rows, [f"{name} {operator} {limit!r}"])]

    having = [id(one) for one in rows if cells(one)[name] is not None]
    assert sorted(passing("=") + passing("!=")) == sorted(map(id, rows))
    assert sorted(passing("<") + passing(">=")) == sorted(having)
    assert sorted(passing("<=") + passing(">")) == sorted(having)
    assert set(passing("<=")) & set(passing(">=")) == set(passing("="))


def test_filters_are_all_to_be_passed() -> None:
    rows = [row("opt-2of4", sparsity=0.5), row("opt-0.7", sparsity=0.7), row("demo", sparsity=0.7)]
    found = filtered(rows, ["run~opt-*", "sparsity>=0.6", "prune.calibration.samples = 8"])
    assert [one["run"] for one in found] == ["opt-0.7"]
    assert filtered(rows, ["adapter="]) == rows
    assert filtered(rows, ["adapter!="]) == []


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("sparsity", "must be COLUMN OP VALUE"),
        ("=3", "must be COLUMN OP VALUE"),
        ("method < 4", "< compares numbers"),
        ("sparsity > much", "> compares numbers"),
        ("spersity > 0", "names 'spersity', an unknown column. Did you mean 'sparsity'? Columns: "),
    ],
)
def test_a_filter_that_means_nothing_is_told_in_one_line(expression: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        filtered([row()], [expression])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_column_is_told_with_all_that_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        check("nextline.acc", [row()], "--sort")
    assert "--sort names 'nextline.acc'" in str(error.value)
    assert "Did you mean 'next-line.acc'?" in str(error.value)
    for name in without_settings([row()]):
        assert name in str(error.value)


@given(ROWS.filter(bool))
def test_csv_and_json_have_every_digit_and_every_sign(rows: Any) -> None:
    names = without_settings(rows)
    found = list(csv.DictReader(io.StringIO(comparison(rows, None, "csv"), newline="")))
    assert [list(line) for line in found] == [names] * len(rows)
    for line, one in zip(found, rows, strict=True):
        for name, value in cells(one).items():
            if name in names:
                text = line[name]
                assert (text or None) == (value or None) or float(text) == value
    assert json.loads(comparison(rows, ["run", "sparsity"], "json")) == [
        {"run": one["run"], "sparsity": one["sparsity"]} for one in rows
    ]


ODD = "perplexity@256: tokens ab of c_4 & more, not cd of demo"


def test_a_table_leaves_out_what_is_empty_or_the_same_and_marks_what_does_not_compare() -> None:
    rows = [row("a"), row("b", sparsity=0.75, perplexity=math.inf, incomparable=[ODD])]
    assert comparison(rows, None, "text").splitlines() == [
        "run  stage  sparsity  perplexity@256  next-line.acc  recovered"
        "  bytes_packed  minutes  peak_memory_bytes",
        "---  -----  --------  --------------  -------------  ---------"
        "  ------------  -------  -----------------",
        "a    prune    0.5000           20.00  0.500 ± 0.035        80%"
        "      1.00 MiB     1.50           1.00 GiB",
        "b    prune    0.7500           inf*1  0.500 ± 0.035      80%*1"
        "      1.00 MiB     1.50           1.00 GiB",
        "",
        "In all rows: model demo, method wanda, pattern 2:4, target_sparsity 0.5",
        f"*1 {ODD}",
    ]


def test_of_a_task_the_number_is_shown_by_which_it_is_judged() -> None:
    tasks = {
        "arc_easy": {"acc": 0.5, "acc_stderr": 0.01, "acc_norm": 0.4, "acc_norm_stderr": 0.01},
        "gsm8k": {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.01},
    }
    rows = [row(tasks={name: {"metrics": metrics} for name, metrics in tasks.items()})]
    header, _, line = comparison(rows, None, "text").splitlines()
    assert "arc_easy.acc  gsm8k.exact_match,strict  recovered" in header
    assert "0.500 ± 0.010" in line
    assert "0.250 ± 0.010" in line
    assert split("run,gsm8k.exact_match,strict, arc_easy.acc_norm", rows) == [
        "run",
        "gsm8k.exact_match,strict",
        "arc_easy.acc_norm",
    ]
    assert split("-gsm8k.exact_match,strict,run", rows)[0] == "-gsm8k.exact_match,strict"


def test_a_mark_whose_number_is_not_shown_is_at_the_first_column() -> None:
    rows = [row("a"), row("b", incomparable=[ODD])]
    assert comparison(rows, ["run", "method"], "text").splitlines()[3:] == [
        "b*1   wanda",
        "",
        f"*1 {ODD}",
    ]


def test_a_mean_is_marked_if_one_of_its_tasks_is() -> None:
    odd = row("b", zeroshot=0.6, zeroshot_tasks=["rte"], incomparable=["rte: shots 5, not 0"])
    assert "0.600*1" in comparison([odd], ["run", "zeroshot"], "text")


def test_markdown_and_latex_take_every_sign() -> None:
    rows = [row("a_b|c", method="50%"), row("b", method="~\\^", incomparable=[ODD])]
    names = ["run", "method", "perplexity@256", "next-line.acc"]
    assert comparison(rows, names, "markdown").splitlines() == [
        "| run | method | perplexity@256 | next-line.acc |",
        "| :-- | --: | --: | --: |",
        r"| a\_b\|c | 50% | 20.00 | 0.500 ± 0.035 |",
        r"| b | ~\\^ | 20.00\*1 | 0.500 ± 0.035 |",
        "",
        rf"\*1 {ODD.replace('_', chr(92) + '_')}",
    ]
    assert comparison(rows, names, "latex").splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"run & method & perplexity@256 & next-line.acc \\",
        r"\midrule",
        r"a\_b|c & 50\% & 20.00 & 0.500 $\pm$ 0.035 \\",
        r"b & \textasciitilde{}\textbackslash{}\textasciicircum{} & 20.00*1 "
        r"& 0.500 $\pm$ 0.035 \\",
        r"\bottomrule",
        r"\multicolumn{4}{l}{\footnotesize *1 perplexity@256: tokens ab of c\_4 \& more, "
        r"not cd of demo} \\",
        r"\end{tabular}",
    ]
