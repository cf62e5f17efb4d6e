"""A process that holds one model in one way, and measures it when asked.

Each way has a process of its own, so that its peak of memory is its own, and nothing that another
leaves in heap or caches counts for it.
"""

from __future__ import annotations

import signal
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from spp_cli import memory
from spp_cli.benchmarking.ways import WAYS, Hindered, keep_masks, stored_bytes
from spp_cli.errors import ModelError
from spp_cli.models.checkpoint import Checkpoint
from spp_cli.models.heap import return_free_memory
from spp_cli.models.loading import compute_dtype, load_model, quiet
from spp_cli.sparsity.masks import FILE_NAME, KeepMasks

__all__ = ["Subject", "serve"]

_CHECKED = 16  # tokens whose logits are compared


@dataclass(frozen=True)
class Subject:
    """The model that is measured, where, and on how many tokens."""

    folder: Path
    device: torch.device
    trust_remote_code: bool
    prompt_length: int
    new_tokens: int


def serve(connection: Connection, way: str, subject: Subject) -> None:
    """Send what there is to say of the model, then a measurement for each batch size received.

    What goes wrong is sent in its place.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is told, and ends this one
    sys.stdout = sys.stderr
    warnings.simplefilter("ignore")
    try:
        held = _Held(way, subject)
        connection.send(held.described)
        while True:
            connection.send(held.measure(connection.recv()))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - all of them end in the process that asks
        connection.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return the error itself, or as one of Python's own: not all of torch's can be sent."""
    ours = type(error).__module__.startswith("spp_cli")
    return error if ours else RuntimeError(f"{type(error).__name__}: {error}")


class _Held:
    def __init__(self, way: str, subject: Subject) -> None:
        self._subject = subject
        self._model = load_model(
            Checkpoint(subject.folder),
            dtype=compute_dtype(subject.device),
            trust_remote_code=subject.trust_remote_code,
        ).requires_grad_(False)
        recorded = (subject.folder / FILE_NAME).exists()
        keep = keep_masks(self._model, KeepMasks(subject.folder) if recorded else {})
        if not keep:
            raise ModelError(
                f"{subject.folder} has no pruned linear, so there is nothing to gain. "
                "Prune it first: spp prune"
            )
        kept = sum(int(mask.count_nonzero()) for mask in keep.values())
        linears = WAYS[way](self._model, keep, subject.device)
        # No end of a text ends a measurement, nor does anything that the model's makers advise.
        self._model.generation_config = GenerationConfig(use_cache=True, pad_token_id=0)
        self.described = {
            "linears": len(keep),
            "held": len(linears),
            "sparsity": 1 - kept / sum(mask.numel() for mask in keep.values()),
            "bytes": stored_bytes(linears),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "logits": self._logits(way),
        }

    def _logits(self, way: str) -> Any:
        """Return logits (tokens, vocabulary) in float32, as an array that can be sent."""
        try:
            with torch.no_grad():
                tokens = self._tokens(1)[:, :_CHECKED]
                logits: Tensor = self._model(tokens).logits
        except (RuntimeError, NotImplementedError) as error:
            if way == "2:4":  # torch calls it a prototype
                raise Hindered(f"torch cannot: {' '.join(str(error).split())}") from error
            raise
        return logits[0].float().cpu().numpy()

    def _tokens(self, batch_size: int) -> Tensor:
        """Return random prompts, the same in every process: (batch_size, prompt_length) int64."""
        vocabulary = self._model.config.get_text_config().vocab_size
        shape = (batch_size, self._subject.prompt_length)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, shape, generator=generator).to(self._subject.device)

    def measure(self, batch_size: int) -> dict[str, Any]:
        """Return the seconds of prefill and of decoding, and the peak in bytes, None if unknown.

        ``failed`` instead: the memory does not suffice.
        """
        tokens = self._tokens(batch_size)
        clock = _Clock(self._subject.device)
        return_free_memory()
        knows_peak = memory.forget_peaks() or self._on_gpu
        try:
            with torch.no_grad(), quiet():
                begun = clock.now()
                self._model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=self._subject.new_tokens + 1,  # the prefill gives the first
                    stopping_criteria=[clock],
                )
        except (torch.OutOfMemoryError, MemoryError):
            return {"failed": "out of memory"}
        peak = memory.gpu_peak() if self._on_gpu else memory.process_peak()
        return {
            "prefill": clock.times[0] - begun,
            "decode": clock.times[-1] - clock.times[0],
            "peak": peak if knows_peak else None,
        }

    @property
    def _on_gpu(self) -> bool:
        return self._subject.device.type == "cuda"


class _Clock(StoppingCriteria):
    """Notes when each token was there, and stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: list[float] = []

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.times.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
