"""Checkpoint folders: find them, and read their tensors one at a time."""

from __future__ import annotations

import json
import re
import shutil
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from spp_cli.errors import ModelError
from spp_cli.models.companions import companions, decides
from spp_cli.models.origin import licence_files
from spp_cli.models.quantized import refuse_quantized
from spp_cli.models.tensor_file import TensorFile
from spp_cli.reading import read_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "DEMO",
    "Checkpoint",
    "at_hand",
    "copy_companions",
    "is_demo_family",
    "locate",
    "read_config",
    "tokenizer_files",
]

DEMO = "demo"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS_KEY = "transformers_weights"  # of config.json: the file to read instead
_AN_INDEX = ".safetensors.index.json"


class Checkpoint:
    """A model folder in the Hugging Face layout, its tensors read only when asked for.

    Without ``weights_needed`` a folder that has no weights at all will do.

    Raises:
        ModelError: no such folder, no config.json, no safetensors, a shard that is missing,
            truncated or corrupt, or weights that are quantized.
    """

    def __init__(self, folder: str | Path, *, weights_needed: bool = True) -> None:
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        refuse_quantized(self.folder, self.config)
        # An index alone comes with the configuration of a large model of the hub.
        wanted = weights_needed or any(self.folder.glob("*.safetensors"))
        if not wanted and (self.folder / INDEX).is_file():
            wanted = any((self.folder / name).is_file() for name in self._names(INDEX))
        self._files = {path: _open(path) for path in (self._shards() if wanted else [])}
        self.locations = {
            name: path for path, tensors in self._files.items() for name in tensors.names()
        }
        types = {name: self._files[path].type_code(name) for name, path in self.locations.items()}
        if types:
            refuse_quantized(self.folder, self.config, types)

    def _shards(self) -> list[Path]:
        """Return the files that transformers reads, of all that are there, in its order."""
        if named := self.config.get(WEIGHTS_KEY):
            return self._named(str(named))
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        if (self.folder / INDEX).is_file():
            return self._indexed(INDEX)
        refuse_quantized(self.folder, self.config, {})
        raise self._nothing_to_read()

    def _named(self, name: str) -> list[Path]:
        """Return the files that config.json names, which come before all others."""
        path = self.folder / name
        if not (_is_inside(name) and path.is_file() and name.endswith((".safetensors", _AN_INDEX))):
            raise ModelError(
                f"{self.folder}/config.json: {WEIGHTS_KEY} is {name!r}; must be a .safetensors "
                "file in this folder, or the index of several. Copy it there, or drop the key"
            )
        return self._indexed(name) if name.endswith(_AN_INDEX) else [path]

    def _indexed(self, index: str) -> list[Path]:
        names = self._names(index)
        for name in names:
            if not (self.folder / name).is_file():
                raise ModelError(
                    f"{self.folder}: {name} is missing, {index} names it. Copy the model anew"
                )
        return [self.folder / name for name in names]

    def _names(self, index: str) -> list[str]:
        """Return the names of the files that an index names, there or not."""
        try:
            weight_map = _read_json(self.folder / index)["weight_map"]
            names = sorted({str(name) for name in weight_map.values()})
        except (KeyError, AttributeError, TypeError):
            raise ModelError(
                f"{self.folder / index} has no weight_map; it is corrupt. Copy it anew"
            ) from None
        if outside := [name for name in names if not _is_inside(name)]:
            raise ModelError(
                f"{self.folder / index} names {outside[0]!r}, which is outside of its folder. "
                "Copy the weights into it, and name them there"
            )
        return names

    def _nothing_to_read(self) -> ModelError:
        pickled = sorted(path.name for path in self.folder.glob("*.bin")) + sorted(
            path.name for path in self.folder.glob("*.pt*")
        )
        if pickled:
            return ModelError(
                f"{self.folder} has only pickled weights ({pickled[0]}), which can run code when "
                'opened. If you trust them, convert them once: python -c "from transformers import '
                f"AutoModelForCausalLM as M; M.from_pretrained('{self.folder}')"
                ".save_pretrained('converted')\""
            )
        problem = f"{self.folder} has no {SINGLE} and no {INDEX}"
        if others := sorted(path.name for path in self.folder.glob("*.safetensors")):
            return ModelError(
                f"{problem}, and {others[0]} is not read by transformers either. If it holds all "
                f"weights of the model, name it {SINGLE}"
            )
        return ModelError(f"{problem}. Copy or download its weights")

    @property
    def weight_files(self) -> list[str]:
        """Names of the files that hold the weights, relative to the folder."""
        return [path.relative_to(self.folder).as_posix() for path in self._files]

    @property
    def companion_files(self) -> list[str]:
        """Names, relative to the folder, of what belongs to the model beside its weights."""
        return companions(self.folder)

    @property
    def deciding_files(self) -> list[str]:
        """Names of all files that decide what the model makes of text, relative to the folder."""
        return sorted([*self.weight_files, *filter(decides, self.companion_files)])

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self._files)

    def main_dtype(self) -> torch.dtype | None:
        """Return the type that transformers gives all weights where config.json names none."""
        if not self._files:
            return None
        from safetensors import safe_open  # not above: it loads numpy

        path, tensors = next(iter(self._files.items()))
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())  # in an order of its own, of which the first counts
        types = (tensors.dtype(name) for name in names)
        return next((it for it in types if it.is_floating_point and it.itemsize > 1), None)

    def tensor(self, name: str, index: int | None = None) -> Tensor:
        """Return one tensor as it is stored, or what is at ``index`` of its first axis."""
        try:
            return self._files[self.locations[name]].read(name, index)
        except OSError as error:
            raise ModelError(f"{self.locations[name]}: cannot read {name}: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading it."""
        return self._files[self.locations[name]].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of one tensor without reading it."""
        return self._files[self.locations[name]].dtype(name)


def read_config(folder: Path) -> dict[str, Any]:
    """Return what the config.json of a model's folder says.

    Raises:
        ModelError: no such folder, or no config.json that can be read.
    """
    if not folder.is_dir():
        problem = "a file, not a folder" if folder.exists() else "no such folder"
        raise ModelError(f"{folder}: {problem}. Give a model's folder or its hub id")
    return _read_json(folder / "config.json")


def _is_inside(name: str) -> bool:
    """Whether a name leads out of no folder. What is there may be a link, as in the hub's cache."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}; it is not a model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}. Copy it anew") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object; it is corrupt. Copy it anew")
    return value


def _open(path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{path} is truncated or corrupt: {error}. Copy or download the file anew"
        ) from error


def locate(
    path: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    with_weights: bool = True,
) -> tuple[Path, bool]:
    """Return the folder of a model, and whether it is the embedded one.

    ``path`` is "demo", a folder, or a hub id, which is downloaded into the hub's cache, its weights
    only if they are wanted.

    Raises:
        ModelError: nothing of this is there, or the hub cannot be reached.
    """
    if path == DEMO:
        return Path(str(resources.files("spp_cli"))) / "demo" / "model", True
    if not _is_hub_id(path):
        return Path(path).expanduser(), False
    from spp_cli.models.hub import download  # not above: it imports the hub's client

    folder = download(path, revision, with_code=trust_remote_code, with_weights=with_weights)
    return folder, False


def _is_hub_id(path: str) -> bool:
    """Whether a path is no folder that is there, and could be an id of the hub."""
    could_be = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not path.startswith(".")
    return bool(could_be) and not Path(path).expanduser().exists()


def at_hand(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model that is on this machine; None if it would be downloaded."""
    if path == DEMO or not _is_hub_id(path):
        return locate(path)[0]
    from spp_cli.models.hub import in_cache  # not above: it imports the hub's client

    return in_cache(path, revision)


def is_demo_family(folder: Path) -> bool:
    """Whether a model is the embedded one or was made from it: it has the same tokenizer."""
    embedded, _ = locate(DEMO)
    files = [path / "tokenizer.json" for path in (embedded, folder)]
    return files[1].is_file() and files[0].read_bytes() == files[1].read_bytes()


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the files that decide what a model's tokenizer does, in order."""
    of_the_model = ("config.json", "generation_config.json")
    return [name for name in companions(folder) if decides(name) and name not in of_the_model]


def copy_companions(source: Path, target: Path, dtype: str | None = None) -> list[str]:
    """Copy all that belongs to a model but its weights, and its licence; return the names.

    With ``dtype`` the weights were cast, and the keys of config.json that name their type follow,
    those of a composite model's parts too: transformers would cast them back when it loads the
    folder. A key that names the files of the weights is left out: they have the usual names in
    ``target``.
    """
    copied = [*companions(source), *(path.name for path in licence_files(source))]
    for name in copied:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    config = read_json(target / "config.json")
    changes = {key: value for key, value in config.items() if key != WEIGHTS_KEY}
    if dtype is not None:
        changes["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
        for key, part in changes.items():
            if isinstance(part, dict):
                types = dict.fromkeys(part.keys() & {"torch_dtype", "dtype"}, dtype)
                changes[key] = part | types
    if changes != config:
        (target / "config.json").write_text(json.dumps(changes, indent=2) + "\n")
    return copied
