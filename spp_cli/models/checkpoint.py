"""Checkpoint folders: find them, read tensors lazily, write shards."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spp_cli.errors import ModelError

__all__ = [
    "DEMO",
    "Checkpoint",
    "ShardWriter",
    "copy_companions",
    "copy_with",
    "is_demo_family",
    "locate",
]

DEMO = "demo"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARD_BYTES = 4 << 30
# What belongs to a model beside its weights. Everything here is copied byte for byte.
_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*", "*.py",
)  # fmt: skip


class Checkpoint:
    """A model folder in the Hugging Face layout, its tensors read only when asked for.

    Raises:
        ModelError: no such folder, no config.json, no safetensors, a shard that is missing,
            truncated or corrupt.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            problem = "a file, not a folder" if self.folder.exists() else "no such folder"
            raise ModelError(f"{folder}: {problem}. Give a model's folder or its hub id")
        self.config = self._read_json(self.folder / "config.json")
        self._files = {path: _open(path) for path in self._shards()}
        self.locations = {
            name: path
            for path, tensors in self._files.items()
            for name in tensors.keys()  # noqa: SIM118
        }

    def _shards(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            try:
                names = sorted(set(self._read_json(self.folder / INDEX)["weight_map"].values()))
            except (KeyError, AttributeError, TypeError):
                raise ModelError(
                    f"{self.folder / INDEX} has no weight_map; it is corrupt. Copy it anew"
                ) from None
            for name in names:
                if not (self.folder / name).is_file():
                    raise ModelError(
                        f"{self.folder}: {name} is missing, {INDEX} names it. Copy the model anew"
                    )
            return [self.folder / name for name in names]
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        pickled = sorted(path.name for path in self.folder.glob("*.bin")) + sorted(
            path.name for path in self.folder.glob("*.pt*")
        )
        if pickled:
            raise ModelError(
                f"{self.folder} has only pickled weights ({pickled[0]}), which can run code when "
                'opened. If you trust them, convert them once: python -c "from transformers import '
                f"AutoModelForCausalLM as M; M.from_pretrained('{self.folder}')"
                ".save_pretrained('converted')\""
            )
        raise ModelError(
            f"{self.folder} has no {SINGLE} and no {INDEX}. Copy or download its weights"
        )

    @staticmethod
    def _read_json(path: Path) -> dict[str, Any]:
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ModelError(
                f"{path.parent} has no {path.name}; it is not a model folder"
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as JSON: {error}. Copy it anew") from error
        if not isinstance(value, dict):
            raise ModelError(f"{path} does not hold a JSON object; it is corrupt. Copy it anew")
        return value

    @property
    def weight_files(self) -> list[str]:
        """Names of the files that hold the weights."""
        return [path.name for path in self._files]

    @property
    def companion_files(self) -> list[str]:
        """Names of the files that belong to the model beside its weights."""
        return sorted(path.name for path in companions(self.folder))

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self._files)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor as it is stored."""
        try:
            tensor: Tensor = self._files[self.locations[name]].get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{self.locations[name]}: cannot read {name}: {error}") from error
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one tensor without reading it."""
        return tuple(self._files[self.locations[name]].get_slice(name).get_shape())

    def stored_name(self, name: str, base_prefix: str) -> str:
        """Return the name under which the model's parameter ``name`` is stored.

        Checkpoints saved from a base model lack the prefix, as many on the hub do.

        Raises:
            ModelError: it is not there.
        """
        prefix = f"{base_prefix}."
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self.locations:
                return candidate
        raise ModelError(
            f"{self.folder} has no tensor {name}, which its config.json asks for. Copy it anew"
        )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is truncated or corrupt: {error}. Copy or download the file anew"
        ) from error


def locate(
    path: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> tuple[Path, bool]:
    """Return the folder of a model, and whether it is the embedded one.

    ``path`` is "demo", a folder, or a hub id, which is downloaded into the hub's cache.

    Raises:
        ModelError: nothing of this is there, or the hub cannot be reached.
    """
    if path == DEMO:
        return Path(str(resources.files("spp_cli"))) / "demo" / "model", True
    folder = Path(path).expanduser()
    if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        return folder, False
    from spp_cli.models.hub import download  # not above: it imports the hub's client

    return download(path, revision, with_code=trust_remote_code), False


def is_demo_family(folder: Path) -> bool:
    """Whether a model is the embedded one or was made from it: it has the same tokenizer."""
    embedded, _ = locate(DEMO)
    files = [path / "tokenizer.json" for path in (embedded, folder)]
    return files[1].is_file() and files[0].read_bytes() == files[1].read_bytes()


def companions(folder: Path) -> Iterator[Path]:
    """Yield the files that belong to a model beside its weights, each once."""
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    yield from sorted(path for path in found if path.suffix not in (".safetensors", ".bin", ".pt"))


def copy_companions(source: Path, target: Path, dtype: str | None = None) -> None:
    """Copy config, tokenizer and generation config, unchanged.

    With ``dtype`` the weights were cast, and config.json's one key that names their type follows:
    transformers would cast them back when it loads the folder.
    """
    for path in companions(source):
        shutil.copyfile(path, target / path.name)
    if dtype is not None:
        config = json.loads((target / "config.json").read_text())
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        if config.get(key) != dtype:
            config[key] = dtype
            (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class ShardWriter:
    """Writes tensors to safetensors shards, at most one shard in memory, then the index."""

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder = folder
        self._limit = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._shards: list[list[str]] = []
        self._bytes = 0
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write ``tensor`` with the next shard."""
        if self._pending and self._bytes + tensor.nbytes > self._limit:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, give the shards their final names, and write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._partial(1).replace(self._folder / SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, start=1):
            file_name = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._partial(number).replace(self._folder / file_name)
            weight_map |= dict.fromkeys(names, file_name)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _partial(self, number: int) -> Path:
        return self._folder / f"shard-{number:05d}.safetensors"

    def _flush(self) -> None:
        self._shards.append(list(self._pending))
        save_file(self._pending, self._partial(len(self._shards)), metadata={"format": "pt"})
        self._total += self._bytes
        self._pending, self._bytes = {}, 0


def copy_with(
    source: Checkpoint, target: Path, replaced: Mapping[str, Tensor], dtype: Any = None
) -> None:
    """Write all tensors of ``source`` to ``target``, with those of ``replaced`` in their place.

    ``dtype``: type for the floating-point tensors; None: as stored. Tensors that are not replaced
    go on bit for bit.
    """
    writer = ShardWriter(target)
    for name in source.locations:
        tensor = replaced[name] if name in replaced else source.tensor(name)
        if tensor.is_floating_point():
            tensor = tensor.to(dtype or tensor.dtype)
        writer.add(name, tensor)
    writer.close()
