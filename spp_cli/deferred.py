"""torch and numpy, imported when something of them is used: torch takes seconds to load.

What is read to check a configuration, the methods' own settings among it, must not wait for them.
``from spp_cli.deferred import Tensor, torch`` reads and is checked like the import it stands for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "np", "torch"]


class _Deferred:
    """Stands for a module; the first attribute that is asked for imports it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = importlib.import_module(self._name)
        # From now on all is found without this function, which torch.compile would not follow.
        vars(self).update(vars(module))
        return getattr(module, attribute)

    def __repr__(self) -> str:
        return f"<module {self._name!r}, when it is needed>"


if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np, torch = _Deferred("numpy"), _Deferred("torch")
    Tensor = (
        "Tensor"  # for annotations alone, which nobody evaluates; isinstance wants torch.Tensor
    )
