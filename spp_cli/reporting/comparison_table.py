"""A comparison as text, CSV, JSON, Markdown or LaTeX; what does not compare is marked below."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from spp_cli.foreign import as_cell
from spp_cli.reporting.columns import (
    RECIPE,
    are_columns,
    cells,
    error_of,
    headline,
    measured_by,
    without_settings,
)
from spp_cli.reporting.tables import binary_size, table

__all__ = [
    "FORMATS", "comparison", "comparison_cells", "in_markdown", "is_comparison", "markdown",
    "shown",
]  # fmt: skip

Row = Mapping[str, Any]
Notes = dict[str, str]  # by the note itself its mark
FORMATS = ("text", "csv", "json", "markdown", "latex")
_NOTHING = "–"
_LATEX = {
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
}


def comparison(rows: Sequence[Row], columns: Sequence[str] | None, form: str) -> str:
    """Return the rows in one of ``FORMATS``, with these columns, or those that say something.

    CSV and JSON have every column but the settings, and every digit. The others have one number
    for each task, leave out what is empty, say once below the table what is the same everywhere,
    and mark with a star and a number each cell that ``incomparable`` speaks of.
    """
    if form in ("csv", "json"):
        names = columns or without_settings(rows)
        found = [cells(row) for row in rows]
        lines = [{name: line.get(name) for name in names} for line in found]
        return _csv(names, lines) if form == "csv" else json.dumps(lines, indent=2)
    write: Callable[..., str] = {"text": _text, "markdown": markdown, "latex": _latex}[form]
    return write(*comparison_cells(rows, columns))


def is_comparison(beginning: bytes) -> bool:
    """Whether a file that begins so is a comparison, by the names of its columns."""
    lines = beginning.decode(errors="replace").splitlines()
    return bool(lines) and any(are_columns(_columns_of(form, lines)) for form in FORMATS)


def _columns_of(form: str, lines: Sequence[str]) -> list[str]:
    """Return the names of the columns of a comparison of this form; [] if it is none."""
    first, *rest = lines
    if form == "json":
        start = "\n".join(lines).partition("{")
        with suppress(ValueError):
            return list(json.JSONDecoder().raw_decode(f"{{{start[2]}")[0]) if first == "[" else []
    if form == "csv":
        names = next(csv.reader([first]), [])
        return names if len(names) > 1 else []  # a lone word could be the first of any text
    if form == "text" and rest and re.fullmatch(r"-+( +-+)*", rest[0]):
        return first.split()
    if form == "markdown" and rest and rest[0].startswith("| :-- "):
        return first.strip("| ").replace("\\", "").split(" | ")
    if form == "latex" and first.startswith(r"\begin{tabular}") and len(rest) > 1:
        return rest[1].removesuffix(r" \\").replace("\\", "").split(" & ")
    return []


def comparison_cells(
    rows: Sequence[Row], columns: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the names of the columns, the rows as people read them, and the notes below them."""
    common = {} if columns else _common(rows)
    names = list(columns or _telling(rows, common))
    notes = _notes(rows)
    body = [_line(row, names, notes) for row in rows]
    below = [f"*{mark} {note}" for note, mark in notes.items()]
    if common:
        shared = (f"{name} {shown(name, value)}" for name, value in common.items())
        below = [f"In all rows: {', '.join(shared)}", *below]
    return names, body, below


def _common(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what is the same in all rows that have it, of the settings that have a column."""
    values = {name: {row[name] for row in rows} - {None} for name in RECIPE}
    is_table = len(rows) > 1
    return {name: found.pop() for name, found in values.items() if is_table and len(found) == 1}


def _telling(rows: Sequence[Row], common: Mapping[str, Any]) -> list[str]:
    names = ["run", "stage", *RECIPE, "sparsity", *headline(rows), "recovered"]
    names += ["bytes_packed", "minutes", "peak_memory_bytes"]
    found = [cells(row) for row in rows]
    return [
        name
        for name in names
        if name not in common and any(line.get(name) is not None for line in found)
    ]


def _notes(rows: Sequence[Row]) -> Notes:
    reasons = dict.fromkeys(reason for row in rows for reason in row["incomparable"])
    return {reason: str(number) for number, reason in enumerate(reasons, start=1)}


def _line(row: Row, names: Sequence[str], notes: Notes) -> list[str]:
    found = cells(row)
    marks: dict[str, list[str]] = {}
    for reason in row["incomparable"]:
        concerned = _concerned(reason, row, names, found)
        for name in concerned or names[:1]:
            marks.setdefault(name, []).append(notes[reason])
    return [
        shown(name, found.get(name), found) + ("*" + ",".join(marks[name]) if name in marks else "")
        for name in names
    ]


def _concerned(reason: str, row: Row, names: Sequence[str], found: Mapping[str, Any]) -> list[str]:
    """Return the columns of the numbers that a reason speaks of."""
    about = reason.partition(": ")[0]
    return [
        name
        for name in names
        if found.get(name) is not None
        for measured in [measured_by(name, row)]
        if measured == about
        or measured.startswith((f"{about}@", f"{about}."))
        or (measured == "zeroshot" and about in row["zeroshot_tasks"])
    ]


def shown(name: str, value: Any, found: Mapping[str, Any] | None = None) -> str:
    """Return the value of a column as people read it.

    ``found`` are all cells of its row, among which its standard error may be.
    """
    found = found or {}
    if value is None:
        return _NOTHING
    if name in ("bytes_packed", "peak_memory_bytes"):
        return binary_size(value)
    if name.split(".")[0] == "recovered":
        return f"{round(100 * value)}%"
    if isinstance(value, float) and (places := _places(name, found)) is not None:
        error = found.get(error_of(name))
        return f"{value:.{places}f}" + (f" ± {error:.{places}f}" if error is not None else "")
    return f"{value:g}" if isinstance(value, float) else _plain(value)


def _places(name: str, found: Mapping[str, Any]) -> int | None:
    """Return the decimals of a column as other tables have them; None: as many as it has."""
    if name == "sparsity":
        return 4
    if name in ("minutes", "stage_minutes"):
        return 2
    if name.startswith("perplexity@") and "." not in name:
        return 2
    return 3 if name == "zeroshot" or error_of(name) in found else None


def _plain(value: Any) -> str:
    """Return a value as CSV has it: floats with every digit, lists as JSON, nothing for None."""
    if value is None:
        return ""
    return as_cell(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _csv(names: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(as_cell, names))
    writer.writerows([_plain(line[name]) for name in names] for line in lines)
    return stream.getvalue().removesuffix("\n")


def _text(names: Sequence[str], body: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    return "\n".join([table(names, body), *([""] if below else []), *below])


def markdown(names: Sequence[str], body: Sequence[Sequence[str]], below: Sequence[str] = ()) -> str:
    """Return a table in Markdown, the first column to the left, and the notes below it."""
    lines = [f"| {' | '.join(map(in_markdown, cells))} |" for cells in (names, *body)]
    lines.insert(1, "|" + "|".join([" :-- ", *[" --: "] * (len(names) - 1)]) + "|")
    return "\n\n".join(["\n".join(lines), *map(in_markdown, below)])


def in_markdown(text: str) -> str:
    """Return a text with no sign left that Markdown takes for more than itself."""
    return "".join(f"\\{sign}" if sign in r"\|*_`<>[]" else sign for sign in text)


def _latex(names: Sequence[str], body: Sequence[Sequence[str]], below: Sequence[str]) -> str:
    """Return a tabular in the manner of booktabs; needs the package of that name."""
    lines = [" & ".join(map(_in_latex, cells)) + r" \\" for cells in (names, *body)]
    notes = [
        rf"\multicolumn{{{len(names)}}}{{l}}{{\footnotesize {_in_latex(note)}}} \\"
        for note in below
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            *notes,
            r"\end{tabular}",
        ]
    )


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
