"""The embedded model's texts: source code of the standard library of the Python that runs this.

The lists are those of the model's training: it has seen the training modules, none of the others.
"""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from spp_cli.errors import DataError

__all__ = ["TEST_MODULES", "VALIDATION_MODULES", "Part", "missing_modules", "read_texts"]

Part = Literal["train", "validation", "test"]

# Relative to the standard library. Sorted, files before packages: the order of the joined text.
TEST_MODULES = (
    "argparse.py",
    "calendar.py",
    "configparser.py",
    "shutil.py",
    "statistics.py",
    "textwrap.py",
)
VALIDATION_MODULES = (
    "csv.py",
    "tarfile.py",
    "json/__init__.py",
    "json/decoder.py",
    "json/encoder.py",
    "json/scanner.py",
    "json/tool.py",
)
_NOT_TRAINED_ON = {
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "msilib",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


def read_texts(part: Part, folder: Path | None = None) -> list[tuple[str, str]]:
    """Return (name, source code) of each module of ``part``, such as ("json/tool.py", …), in order.

    Modules that this Python lacks are left out. ``folder`` is the standard library by default.

    Raises:
        DataError: not one of the modules is there, as where only compiled files are shipped.
    """
    root = folder or _standard_library()
    names = [name for name in module_names(part, root) if (root / name).is_file()]
    if not names:
        raise DataError(
            f"this Python has no source code of its standard library in {root}, and the embedded "
            "model's text is read from there. Use a Python that ships it, or name another source"
        )
    return [(name, _read(root / name)) for name in names]


def missing_modules(part: Part, folder: Path | None = None) -> tuple[str, ...]:
    """Return the names of ``part`` that this Python lacks: without them, numbers do not compare."""
    root = folder or _standard_library()
    return tuple(name for name in module_names(part, root) if not (root / name).is_file())


def module_names(part: Part, folder: Path) -> tuple[str, ...]:
    """Return the names that belong to ``part``, with "/" on every system, in their fixed order."""
    if part != "train":
        return TEST_MODULES if part == "test" else VALIDATION_MODULES
    held_out = {*TEST_MODULES, *VALIDATION_MODULES}
    return tuple(sorted(name for name in _names_below(folder) if name not in held_out))


def _names_below(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not _is_left_out((here / name).as_posix())]
        yield from ((here / name).as_posix() for name in files if _is_module(name))


def _is_left_out(folder: str) -> bool:
    # All of json is held out, whichever files a Python version has there. config-… is of one build.
    name = Path(folder).name
    return folder == "json" or name in _NOT_TRAINED_ON or name.startswith("config-")


def _is_module(name: str) -> bool:
    # _sysconfigdata… holds the paths and compiler flags of one build: another text on each machine.
    return name.endswith(".py") and not name.startswith("_sysconfigdata")


def _standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _read(file: Path) -> str:
    with tokenize.open(file) as stream:  # honours a coding line
        return stream.read()
