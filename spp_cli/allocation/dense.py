"""The dense model, and the calibration text to look at it with, before anything is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spp_cli.models.activations import ActivationStore
from spp_cli.models.calls import capture_calls
from spp_cli.models.decoder import Linear
from spp_cli.models.gradients import loss_gradients
from spp_cli.models.streaming import BlockSource
from spp_cli.progress import Reporter
from spp_cli.pruning.orders import Round, dense_inputs
from spp_cli.pruning.saved import SavedStatistics
from spp_cli.pruning.statistics import Statistic

__all__ = ["DenseModel"]


@dataclass(frozen=True)
class DenseModel:
    """Everything there is to measure on before pruning begins.

    ``batches`` are calibration tokens, (sequences, tokens) each; ``activations`` makes an empty
    store for the hidden states of so many tokens. ``saved`` is what is known of all inputs already.
    """

    source: BlockSource
    batches: Sequence[Tensor]
    device: torch.device
    activations: Callable[[int], ActivationStore]
    reporter: Reporter
    saved: SavedStatistics | None = None

    @property
    def sequences(self) -> int:
        """How many calibration sequences there are."""
        return sum(map(len, self.batches))

    def blocks_of(self, linears: Sequence[Linear]) -> dict[str, list[Linear]]:
        """Return ``linears`` by the path of their block, in order; blocks without any are left out.

        The weights may be empty: they are there only while ``statistics`` gives them.
        """
        decoder = self.source.decoder
        return {
            f"{decoder.path}.{index}": inside
            for index, inside in enumerate(decoder.by_block(linears))
            if inside
        }

    def statistics(
        self, linears: Sequence[Linear], kind: type[Statistic]
    ) -> Iterator[tuple[str, list[tuple[Linear, Any]]]]:
        """Yield each block's path, and its ``linears`` with what ``kind`` knows of their inputs.

        Linears that no text reaches are left out. One block is in memory at a time, and its weights
        are there until the next is asked for. The text passes every block once, or none if what it
        would tell is ``saved``.
        """
        decoder = self.source.decoder
        of_block = decoder.by_block(linears)
        rounds = self._saved_rounds if self.saved else self.rounds
        for index, groups in rounds(of_block, [kind], "allocation"):
            known = {linear.name: inputs for group, inputs in groups for linear in group}
            if inside := of_block[index]:
                reached = [(linear, known[linear.name]) for linear in inside]
                yield (
                    f"{decoder.path}.{index}",
                    [(linear, inputs[kind]) for linear, inputs in reached if inputs],
                )

    @torch.no_grad()
    def rounds(
        self, linears: Sequence[Sequence[Linear]], kinds: Sequence[type[Statistic]], task: str
    ) -> Iterator[tuple[int, Round]]:
        """Yield each block's index, and its ``linears`` by input, with what the text tells.

        ``task`` is what the progress bar is called.
        """
        self.source.place_shell(self.device)
        self.source.load(0, self.device)
        placed = (batch.to(self.device) for batch in self.batches)
        size = sum(batch.numel() for batch in self.batches)
        calls = capture_calls(self.source.decoder, placed, self.activations(size))
        with self.reporter.task(task, len(linears), "blocks") as progress:
            for index, inside in enumerate(linears):
                block = self.source.load(index, self.device)
                yield index, dense_inputs(block, index, inside, calls, kinds, flow_on=True)
                self.source.free(index)
                progress.advance(1)

    def _saved_rounds(
        self, linears: Sequence[Sequence[Linear]], kinds: Sequence[type[Statistic]], task: str
    ) -> Iterator[tuple[int, Round]]:
        assert self.saved is not None
        with self.reporter.task(task, len(linears), "blocks") as progress:
            for index, inside in enumerate(linears):
                self.source.load(index, self.device)
                yield index, list(self.saved.read(index, inside, kinds, self.device))
                self.source.free(index)
                progress.advance(1)

    def gradients(
        self,
        linears: Sequence[Linear],
        samples: int,
        shift: Callable[[Linear], Tensor] | None = None,
    ) -> Iterator[tuple[Linear, Tensor]]:
        """Yield the gradient of each sequence's loss by the weight of each of ``linears``.

        The loss is the mean cross-entropy of a sequence's predicted tokens, on the first
        ``samples`` of the calibration sequences; the gradients, (out_features, in_features) in
        float32, come block by block, the last block first. Linears that a sequence does not reach
        are left out for it. ``shift`` is added to the weights before.
        """
        sequences = torch.cat(list(self.batches))[:samples].split(1)
        size = sum(sequence.numel() for sequence in sequences)
        passes = len(self.source.decoder.blocks)
        with self.reporter.task("allocation", 2 * passes, "blocks") as progress:
            yield from loss_gradients(
                self.source,
                sequences,
                self.source.decoder.by_block(linears),
                device=self.device,
                activations=self.activations(size * (passes + 1)),
                shift=shift,
                on_block=lambda: progress.advance(1),
            )
