"""Measure a sparse model in every way to hold its weights, the ways taking turns."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import transformers

from spp_cli.benchmarking.ways import WAYS, Hindered, hindrance
from spp_cli.benchmarking.worker import Subject, serve
from spp_cli.errors import SppError
from spp_cli.progress import Reporter

__all__ = ["bench", "speed"]

Measurement = Mapping[str, Any]


def bench(
    subject: Subject, batch_sizes: Sequence[int], repeats: int, reporter: Reporter
) -> dict[str, Any]:
    """Return what each way takes in time and memory, and what is left out and why.

    ``ways`` has for each its ``linears``, how many are held so; ``bytes`` they take, and those
    ``against_dense``; ``largest_difference`` of a logit to dense storage; and ``results``, one for
    each batch size: ``prefill`` and ``decode`` as ``speed`` gives them, and ``peak_bytes``, of the
    process or of the GPU's tensors, None where the system does not tell; or ``failed``, the reason.

    Each round measures every way once; the first, which warms up, does not count.

    Raises:
        ModelError: the model cannot be loaded, or has no pruned linear.
        SppError: a process was killed.
    """
    skipped = {way: reason for way in WAYS if (reason := hindrance(way, subject.device))}
    with ExitStack() as stack:
        possible = [way for way in WAYS if way not in skipped]
        workers = {way: stack.enter_context(_Worker(way, subject)) for way in possible}
        described: dict[str, Measurement] = {}
        for way in possible:
            try:
                described[way] = workers[way].receive()
            except Hindered as error:
                skipped[way] = str(error)
                del workers[way]
        results = _take_turns(workers, subject, batch_sizes, repeats, reporter)
    dense = described["dense"]
    return {
        "sparsity": dense["sparsity"],
        "pruned_linears": dense["linears"],
        "device": _device_name(subject.device),
        "threads": dense["threads"],
        "dtype": dense["dtype"],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "platform": platform.platform(),
        "prompt_length": subject.prompt_length,
        "new_tokens": subject.new_tokens,
        "repeats": repeats,
        "ways": [
            {
                "way": way,
                "linears": facts["held"],
                "bytes": facts["bytes"],
                "against_dense": facts["bytes"] / dense["bytes"],
                "largest_difference": float(np.abs(facts["logits"] - dense["logits"]).max()),
                "results": results[way],
            }
            for way, facts in described.items()
        ],
        "skipped": [{"way": way, "reason": reason} for way, reason in skipped.items()],
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _take_turns(
    workers: Mapping[str, _Worker],
    subject: Subject,
    batch_sizes: Sequence[int],
    repeats: int,
    reporter: Reporter,
) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each way by batch size."""
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in workers}
    runs = len(workers) * len(batch_sizes) * (repeats + 1)
    with reporter.task("bench", runs, "runs") as progress:
        for size in batch_sizes:
            found: dict[str, list[Measurement]] = {way: [] for way in workers}
            for _ in range(repeats + 1):
                for way, worker in workers.items():
                    found[way].append(worker.ask(size))
                    progress.advance(1, f"{way}, batch size {size}")
            for way in workers:
                counted, dense = found[way][1:], found["dense"][1:]
                results[way].append(_result(size, subject, counted, dense))
    return results


def _result(
    size: int, subject: Subject, counted: Sequence[Measurement], dense: Sequence[Measurement]
) -> dict[str, Any]:
    failed = next((each["failed"] for each in counted if "failed" in each), None)
    if failed:
        return {"batch_size": size, "failed": failed}
    peaks = [each["peak"] for each in counted]
    tokens = {"prefill": size * subject.prompt_length, "decode": size * subject.new_tokens}
    return {
        "batch_size": size,
        **{
            phase: speed(
                number,
                [each[phase] for each in counted],
                [each[phase] for each in dense if "failed" not in each],
            )
            for phase, number in tokens.items()
        },
        "peak_bytes": None if None in peaks else max(peaks),
    }


def speed(tokens: int, seconds: Sequence[float], dense: Sequence[float]) -> dict[str, Any]:
    """Return the median of ``seconds``, their range, and what follows from them.

    ``tokens_per_second``, and its ratio ``against_dense``, above 1 if it is faster; ``verdict`` is
    "faster" or "slower" where the ranges do not overlap, else "unclear". Without numbers of
    ``dense`` storage both are None.
    """
    median = statistics.median(seconds)
    ratio = verdict = None
    if dense:
        ratio = statistics.median(dense) / median
        verdict = "unclear"
        if max(seconds) < min(dense):
            verdict = "faster"
        elif min(seconds) > max(dense):
            verdict = "slower"
    return {
        "seconds": median,
        "range": [min(seconds), max(seconds)],
        "tokens_per_second": tokens / median,
        "against_dense": ratio,
        "verdict": verdict,
    }


class _Worker:
    """The process that holds the model in one way, as a context: it ends with it."""

    def __init__(self, way: str, subject: Subject) -> None:
        self._way = way
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, way, subject), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is seen here

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def ask(self, batch_size: int) -> Measurement:
        """Return a measurement."""
        try:
            self._connection.send(batch_size)
        except BrokenPipeError:
            raise self._ended() from None
        return self.receive()

    def receive(self) -> Measurement:
        """Return what the process sends next; what went wrong there is raised here."""
        try:
            answer: Measurement | Exception = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ended(self) -> SppError:
        self._process.join()
        return SppError(
            f"the process that held the model's weights {self._way} was ended from outside (code "
            f"{self._process.exitcode}); the system may be short of memory. Lower --batch-sizes"
        )
