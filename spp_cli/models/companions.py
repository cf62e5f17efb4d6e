"""What belongs to a model beside its weights: one list for copying, fetching and digests.

Everything does that is not weights in some format, and is not about the model or left by a
training; of sub-folders what transformers reads there, unless they hold another model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from spp_cli.models.origin import LICENCES

__all__ = ["belonging", "companions", "decides"]

_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "tekken.json", "chat_template*",
)  # fmt: skip
_ALWAYS = ("config.json", "generation_config.json", "*.py", *_TOKENIZER)
_PROCESSORS = ("*processor_config.json",)  # of images, sound and video: text never comes there
_TEMPLATES = "additional_chat_templates/*.jinja"
_WEIGHTS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.ggml",
    "*.onnx", "*.onnx_data*", "*.ot", "*.npz", "*.nemo", "*.tflite", "*.mlmodel", "*.pkl",
    "*.distcp", "*.index.json",
)  # fmt: skip
_APART = (
    # hidden; about the model, for people
    ".*", *LICENCES, "README*", "*.md", "*.rst", "*.html", "*.pdf", "*.png", "*.jp*g", "*.gif",
    "*.svg", "*.webp", "*.mp4",
    # data, logs and archives
    "*.jsonl", "*.parquet", "*.arrow", "*.csv", "*.tsv", "*.log", "*.out", "*.err", "*.zip",
    "*.tar", "*.gz", "*.zst", "*.xz", "*.sh", "*.ipynb", "*.lock", "*.y*ml", "events.out.*",
    # left by a training; of adapters, which transformers would look for the weights of
    "adapter_config.json", "trainer_state.json", "*_results.json", "rng_state*", "latest",
    # of the weights in another format, of other libraries, of spp itself
    "params.json", "consolidated*", "configuration.json", "manifest.json", "results.json",
    "fingerprint.json", "progress.json", "spp_*",
)  # fmt: skip
# Folders of the same model in other formats, and what a training leaves: never looked into.
_FOREIGN_FOLDERS = (
    ".*", "__pycache__", "original*", "onnx*", "openvino*", "coreml*", "gguf*", "mlx*", "metal*",
    "checkpoint-*", "global_step*", "runs", "logs", "packed",
)  # fmt: skip


def companions(folder: Path) -> list[str]:
    """Return the files that belong to the model in ``folder`` beside its weights, by name there."""
    return belonging(_names(folder))


def belonging(names: Iterable[str]) -> list[str]:
    """Return of all ``names`` of a model's files those that are its own, weights left out, sorted.

    In a sub-folder that holds weights or a config.json is another model.
    """
    names = list(names)
    others = {
        folder
        for folder, base in map(_split, names)
        if folder and (base == "config.json" or _matches(base, _WEIGHTS))
    }
    return sorted(name for name in names if _split(name)[0] not in others and _belongs(name))


def decides(name: str) -> bool:
    """Whether what a model makes of text may depend on this file that belongs to it."""
    return not _matches(_split(name)[1], _PROCESSORS)


def _belongs(name: str) -> bool:
    folder, base = _split(name)
    if _matches(base, _WEIGHTS):
        return False
    if not folder:
        return _matches(base, _ALWAYS) or not _matches(base, _APART)
    if _matches(folder, _FOREIGN_FOLDERS) or "/" in folder:
        return False
    return fnmatchcase(name, _TEMPLATES) or _matches(base, (*_TOKENIZER, *_PROCESSORS))


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of the files in a folder and one level below; deeper nothing belongs."""
    for path in folder.iterdir():
        if path.is_file():
            yield path.name
        elif path.is_dir() and not _matches(path.name, _FOREIGN_FOLDERS):
            with suppress(PermissionError):
                inner = [file.name for file in path.iterdir() if file.is_file()]
                yield from (f"{path.name}/{name}" for name in inner)


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    return folder, base


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
