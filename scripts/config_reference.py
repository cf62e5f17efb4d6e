"""Write the configuration reference into docs/configuration.md, from the models themselves.

    python scripts/config_reference.py            rewrite the part between the two markers
    python scripts/config_reference.py --check    exit 1 if it is not as it should be

``--page FILE`` names another file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from spp_cli import fields
from spp_cli.config import SppConfig

BEGIN = "<!-- configuration reference: written by scripts/config_reference.py -->"
END = "<!-- end of the configuration reference -->"
PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def reference() -> str:
    """Return the tables as Markdown: one a section, one a method or adapter with keys."""
    sections: dict[str, list[tuple[str, FieldInfo]]] = {}
    for key, field in fields.walk():
        section = key.split(".")[0] if "." in key else ""
        sections.setdefault(section, []).append((key, field))
    order = [name for name in ("", *SppConfig.model_fields) if name in sections]
    parts = [
        f"## {name or 'Top level'}\n\n{markdown_table(sections[name])}"
        + "".join(plugin_tables(sections[name]))
        for name in order
    ]
    return "\n\n".join(parts)


def plugin_tables(keys: Iterable[tuple[str, FieldInfo]]) -> Iterator[str]:
    """Yield the table of every method or adapter that the given keys choose from."""
    for key, field in keys:
        chooses = fields.plugin(field)
        classes = {name: chooses.load(name) for name in chooses.table()} if chooses else {}
        for name, method in classes.items():
            own = {part: info for part, info in method.model_fields.items() if part != "name"}
            if own:
                yield f"\n\nWith `{key}: {{name: {name}, …}}`:\n\n{markdown_table(own.items())}"


def markdown_table(keys: Iterable[tuple[str, FieldInfo]]) -> str:
    """Return one line a key: name, default, what is allowed, what it means."""
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, field in keys:
        default = fields.as_text(fields.default(field))
        meaning = re.sub(r"([*|])", r"\\\1", field.description or "")  # signs of Markdown's own
        cells = [f"`{key}`", f"`{default}`", fields.allowed(field), meaning]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """Return a page with the reference in its place; SystemExit if it has no place for it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"no place for the reference. Add these two lines:\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


def main() -> None:
    """Rewrite the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if the file is stale")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write")
    options = parser.parse_args()
    found = options.page.read_text(encoding="utf-8")
    wanted = rewritten(found)
    if options.check:
        stale = f"{options.page} is stale. Run: python scripts/config_reference.py"
        sys.exit(stale if wanted != found else 0)
    options.page.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
