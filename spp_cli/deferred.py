"""Modules that are imported when something of them is used: torch takes seconds to load.

What is read to check a configuration, the methods' own settings among it, must not wait for them.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["deferred"]


class _Deferred:
    """Stands for a module; the first attribute that is asked for imports it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<module {self._name!r}, when it is needed>"


def deferred(name: str) -> Any:
    """Return what stands for the module ``name``, and imports it when it is used.

    To be bound where type checkers do not look; they see the plain import::

        if TYPE_CHECKING:
            import torch
        else:
            torch = deferred("torch")
    """
    return _Deferred(name)
