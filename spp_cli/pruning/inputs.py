"""What is known of the inputs of the linears in one block, and which of them read one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from spp_cli import processes
from spp_cli.errors import NumericalError, not_finite
from spp_cli.models.decoder import Linear
from spp_cli.pruning.method import PruningMethod
from spp_cli.pruning.statistics import Statistic
from spp_cli.recovering.recovery import Recovery
from spp_cli.refining.refinement import Refinement

__all__ = ["BlockInputs", "Known", "Sharing"]


class Known:
    """What is known of one input: its statistics by kind, of so many ``tokens``."""

    def __init__(self, statistics: Mapping[type[Statistic], Statistic], tokens: int = 0) -> None:
        self._statistics = statistics
        self.tokens = tokens

    def __getitem__(self, kind: type[Statistic]) -> Statistic:
        """Return the statistic of a kind, or one that does for it; there is one."""
        return next(each for each in self if isinstance(each, kind))

    def __iter__(self) -> Iterator[Statistic]:
        return iter(self._statistics.values())

    def of(self, asking: PruningMethod | Refinement | Recovery) -> Statistic | None:
        """Return the statistic that is asked for; None if none is."""
        return None if asking.statistic is None else self[asking.statistic]

    def update(
        self,
        inputs: Tensor,
        shape: tuple[int, int],
        dense: Tensor | None = None,
        *,
        is_routed: bool = False,
    ) -> None:
        """Count in the inputs that a batch of ``shape`` (sequences, tokens) gave: (…, width).

        ``dense`` are those that the dense block gives, if they are known. With ``is_routed`` the
        tokens are from here and there, in an order of their own, in the dense block perhaps others:
        no sequences, even if all are there, and nothing to compare.
        """
        samples, tokens = shape
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        whole = len(rows) == samples * tokens and not is_routed
        sequences = rows.view(samples if whole else 1, -1, rows.shape[-1])
        self.tokens += len(rows)
        for statistic in self._statistics.values():
            statistic.update(sequences, samples)
            if (
                statistic.reads_dense
                and whole
                and dense is not None
                and dense.shape == inputs.shape
            ):
                statistic.compare(rows, dense.reshape(rows.shape).float())

    def of_samples(self, samples: int) -> None:
        """Have it be of so many sequences: more than were counted, if not all gave inputs."""
        for statistic in self._statistics.values():
            statistic.samples = samples

    def add_up(self) -> None:
        """Make what each process has counted what all together have."""
        for statistic in self._statistics.values():
            statistic.add_up()
        self.tokens = sum(processes.collect(self.tokens))

    def prepare(self, method: PruningMethod, names: str) -> Any:
        """Return what ``method`` makes of its statistic for all linears with this input, ``names``.

        Raises:
            NumericalError: NaN or infinity among the inputs, or the method cannot.
        """
        if not all(statistic.is_finite() for statistic in self._statistics.values()):
            raise not_finite(f"the inputs of {names} hold")
        try:
            return method.prepare(self.of(method))
        except NumericalError as error:
            raise NumericalError(f"{names}: {error}") from error


class Sharing:
    """Which linears are called with the very same tensor, such as q, k and v: seen in one batch."""

    def __init__(self) -> None:
        self.leaders: dict[str, str] = {}  # by linear: the first one with its input
        self.called: list[str] = []  # in order; twice, if a linear is called twice
        self._leader_of_input: dict[tuple[int, int], str] = {}
        self._seen: list[Tensor] = []  # kept for as long as their addresses identify them

    def see(self, name: str, inputs: Tensor) -> None:
        """Note what a linear is called with."""
        self.called.append(name)
        if name not in self.leaders:
            self._seen.append(inputs)
            identity = (id(inputs), inputs._version)
            self.leaders[name] = self._leader_of_input.setdefault(identity, name)

    def end_batch(self) -> None:
        """Let go of the tensors; what is known of the linears stays."""
        self.called.clear()
        self._seen.clear()
        self._leader_of_input.clear()


class BlockInputs:
    """The inputs of the linears of one block: what is known of each, one object a shared input.

    All are of the sequences of all batches of ``shapes``, (sequences, tokens) each, whichever of
    them reach an expert: else its inputs would seem the larger, the fewer come to it.
    """

    def __init__(self, kinds: Iterable[type[Statistic]], shapes: Iterable[tuple[int, int]]) -> None:
        self._kinds = tuple(kinds)
        self._samples = sum(sequences for sequences, _ in shapes)
        self._known: dict[str, Known] = {}

    def count(
        self,
        linear: Linear,
        inputs: Tensor,
        shape: tuple[int, int],
        dense: Tensor | None = None,
    ) -> None:
        """Count in what ``linear`` is called with, on behalf of all that share it.

        ``dense`` is what the dense block would call it with, if that is known.
        """
        if not inputs.numel():
            return
        if linear.name not in self._known:
            self._known[linear.name] = self._nothing(linear, inputs.device)
        self._known[linear.name].update(inputs, shape, dense, is_routed=linear.is_routed)

    def take(self, leader: Linear) -> Known | None:
        """Return, and forget, what all processes know of the inputs of ``leader``.

        None if no process knows anything. All of them have to ask, for the same linear.
        """
        known = self._known.pop(leader.name, None)
        if not any(processes.collect(known is not None)):
            return None
        known = known or self._nothing(leader, leader.weight.device)
        known.of_samples(self._samples)
        known.add_up()
        return known

    def _nothing(self, linear: Linear, device: torch.device) -> Known:
        return Known({kind: kind(linear.in_features, device) for kind in self._kinds})
