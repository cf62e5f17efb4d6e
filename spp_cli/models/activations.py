"""Hidden states of the calibration batches between blocks: on the device, in memory or on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from spp_cli.models.tensor_file import bytes_of

__all__ = ["ActivationStore", "Offload", "choose_offload", "free_memory"]

Offload = Literal["device", "cpu", "disk"]
_SHARE = 0.5  # of what is free; the rest is for the block, its statistics and the system


class ActivationStore:
    """A list of tensors, one for each batch, handed out on ``device`` wherever they are kept.

    On disk each batch is a file of its own in ``folder``, read and written whole, so that it takes
    memory only while its batch is computed.
    """

    def __init__(self, kind: Offload, device: torch.device, folder: Path | None = None) -> None:
        if kind == "disk":
            assert folder is not None
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._kind = kind
        self._device = device
        self._folder = folder
        self._kept: list[Tensor] = []  # with "disk": empty tensors that remember shape and type

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, tensor: Tensor) -> None:
        """Keep one more batch."""
        self._kept.append(tensor)
        self[len(self._kept) - 1] = tensor

    def __getitem__(self, batch: int) -> Tensor:
        if self._kind != "disk":
            return self._kept[batch].to(self._device)
        like = self._kept[batch]
        tensor = torch.empty(like.shape, dtype=like.dtype)
        with self._path(batch).open("rb") as stream:
            stream.readinto(bytes_of(tensor))
        return tensor.to(self._device)

    def __setitem__(self, batch: int, tensor: Tensor) -> None:
        if self._kind == "disk":
            with self._path(batch).open("wb") as stream:
                stream.write(bytes_of(tensor.cpu().contiguous()))
            self._kept[batch] = torch.empty_like(tensor, device="meta")
        else:
            self._kept[batch] = tensor if self._kind == "device" else tensor.cpu()

    def _path(self, batch: int) -> Path:
        assert self._folder is not None
        return self._folder / f"batch-{batch:05d}.bin"


def choose_offload(size: int, device: torch.device) -> Offload:
    """Return where ``size`` bytes fit: on the device, else in CPU memory, else on disk."""
    if size <= _SHARE * free_memory(device):
        return "device"
    if device.type != "cpu" and size <= _SHARE * free_memory(torch.device("cpu")):
        return "cpu"
    return "disk"


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on ``device``; of a CPU, what the system can give at once."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # another system than Linux
        return 4 << 30
