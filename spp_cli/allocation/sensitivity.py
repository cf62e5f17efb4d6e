"""Sensitivity: the layers by which the loss curves most keep most.

Shao et al. 2023, One-Shot Sensitivity-Aware Mixed Sparsity Pruning for Large Language Models,
arXiv:2310.09499.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spp_cli import processes
from spp_cli.allocation.allocation import Allocated, Allocation
from spp_cli.allocation.budget import balanced, highest_ratio
from spp_cli.deferred import Tensor, torch
from spp_cli.errors import ConfigError, not_finite

if TYPE_CHECKING:
    from spp_cli.allocation.dense import DenseModel
    from spp_cli.models.decoder import Linear

__all__ = ["Sensitivity", "fisher_traces", "hessian_traces"]

_STEP = 0.01  # of the root mean square of a weight: large against what float32 rounds


class Sensitivity(Allocation):
    """Each linear keeps the more, the higher its rank by sensitivity (Algorithm 1 of the paper).

    That is the trace of the Hessian of the loss by its weight, per weight. All linears of the model
    are ranked together; what is left out of the range of possible ratios is clipped, and the mean
    restored, here weighted by the sizes. An expert that none of the sequences reaches has no rank:
    it loses the share asked for.
    """

    unmeasured: ClassVar[frozenset[str]] = frozenset({"width"})

    name: Literal["sensitivity"] = "sensitivity"
    estimate: Literal["fisher", "hutchinson"] = Field(
        "fisher",
        description="Of the Hessian's trace; fisher: squared gradients, from one backward pass; "
        "hutchinson: random probes, from two backward passes each",
    )
    width: float = Field(
        0.1, gt=0, lt=0.5, description="Half of the range of the layers' ratios, α in the paper"
    )
    samples: int = Field(
        8, ge=1, description="Calibration sequences it is measured on; the first ones"
    )
    probes: int = Field(1, ge=1, description="Random probes of hutchinson")

    @property
    def passes(self) -> int:
        return 2 if self.estimate == "fisher" else 4 * self.probes

    @property
    def gradient_samples(self) -> int:
        return self.samples

    def check(self, linears: Sequence[Linear], sparsity: float) -> None:
        if self.estimate == "hutchinson" and any(linear.is_routed for linear in linears):
            raise _jumps()

    def measure(self, linears: Sequence[Linear], dense: DenseModel) -> dict[str, float]:
        """Return the sensitivity of each linear by name; of those that text reaches."""
        from spp_cli.models.experts import has_experts  # not above: it needs transformers

        samples = max(1, self.samples // processes.count())
        if self.estimate == "fisher":
            traces = fisher_traces(dense, linears, samples)
        elif has_experts(dense.source.decoder.model):
            raise _jumps()
        else:
            traces = hessian_traces(dense, linears, samples, self.probes)
        reached = [linear for linear in linears if linear.name in traces]
        if unknown := len(linears) - len(reached):
            dense.reporter.warn(
                f"{unknown} linear layers are reached by none of the sequences that sensitivity is "
                "measured on, and lose the share asked for. Raise prune.allocation.samples"
            )
        return {linear.name: abs(traces[linear.name]) / linear.weight.numel() for linear in reached}

    def allocate(
        self, linears: Sequence[Linear], sparsity: float, measured: Mapping[str, float]
    ) -> Allocated:
        ratios = {linear.name: sparsity for linear in linears}
        if not measured:
            return Allocated(ratios, f"{sparsity:.4g} everywhere: no text reaches these layers")
        sizes = [linear.weight.numel() for linear in linears if linear.name in measured]
        shares = self.ratios(list(measured.values()), sizes, sparsity)
        ratios |= dict(zip(measured, shares, strict=True))
        most, least = (choose(measured, key=measured.__getitem__) for choose in (max, min))
        summary = (
            f"{ratios[most]:.3f} for {most}, the most sensitive, to {ratios[least]:.3f} for {least}"
        )
        return Allocated(ratios, summary, {"sensitivity": measured})

    def ratios(
        self, sensitivities: Sequence[float], sizes: Sequence[int], sparsity: float
    ) -> list[float]:
        """Return the ratio of each linear, given its sensitivity and its size.

        Linears of one sensitivity share the lowest of their ranks.
        """
        ordered = sorted(sensitivities)
        step = 2 * self.width / max(1, len(ordered) - 1)
        ranks = [bisect_left(ordered, sensitivity) for sensitivity in sensitivities]
        wanted = [sparsity + self.width - rank * step for rank in ranks]
        return balanced(wanted, sizes, sparsity, highest_ratio(sparsity))


def fisher_traces(dense: DenseModel, linears: Sequence[Linear], samples: int) -> dict[str, float]:
    """Return by linear the mean over sequences of the squared norm of the loss's gradient.

    Where the model predicts as the text is distributed, the Hessian of a sequence's negative
    log-likelihood has this trace in expectation; the loss is that divided by the tokens.
    """
    squares = (
        (linear, torch.linalg.vector_norm(gradient, dim=1).double().square().sum().item())
        for linear, gradient in dense.gradients(linears, samples)
    )
    return _means(squares, linears, min(samples, dense.sequences))


def hessian_traces(
    dense: DenseModel, linears: Sequence[Linear], samples: int, probes: int
) -> dict[str, float]:
    """Return by linear the mean over sequences and probes of zᵀ H z, z being −1 or 1 at random.

    All linears are probed at once: what two of them do together has the expectation zero. H z is
    taken from gradients where the weights are moved along z, and against it, so that one block at a
    time is in memory, and no graph of a first backward pass is kept for a second.

    Raises:
        ConfigError: the weights are of a type that does not tell them apart where they are moved.
    """
    numbers = {linear.name: number for number, linear in enumerate(linears)}
    steps: dict[str, float] = {}

    def along(probe: int, sign: int) -> Iterator[tuple[Linear, float]]:
        """Yield z · gradient of each sequence, where the weights are moved by ``sign`` steps."""

        def signs(linear: Linear) -> Tensor:
            generator = torch.Generator().manual_seed(probe * len(numbers) + numbers[linear.name])
            drawn = torch.randint(2, linear.weight.shape, generator=generator, dtype=torch.int8)
            return (2 * drawn - 1).to(linear.weight)

        def shift(linear: Linear) -> Tensor:
            steps[linear.name] = _step(linear.weight)
            return signs(linear) * (sign * steps[linear.name])

        for linear, gradient in dense.gradients(linears, samples, shift):
            product = (signs(linear) * gradient).sum(dtype=torch.float64).item()
            yield linear, product * sign / (2 * steps[linear.name])

    curvatures = (
        each for probe in range(probes) for sign in (1, -1) for each in along(probe, sign)
    )
    return _means(curvatures, linears, min(samples, dense.sequences) * probes)


def _step(weight: Tensor) -> float:
    """Return how far each element of ``weight`` is moved."""
    if weight.dtype.itemsize < 4:
        kind = str(weight.dtype).removeprefix("torch.")
        raise ConfigError(
            "prune.allocation.estimate is 'hutchinson', which moves the weights by less than "
            f"{kind} tells apart. Set model.dtype: float32, or estimate: fisher"
        )
    size = torch.linalg.vector_norm(weight).item() / math.sqrt(weight.numel())
    return _STEP * size or _STEP


def _jumps() -> ConfigError:
    return ConfigError(
        "prune.allocation.estimate is 'hutchinson', which moves the weights, so that a router "
        "sends tokens to other experts: a jump of the loss, and no curve. Set estimate: fisher"
    )


def _means(
    values: Iterable[tuple[Linear, float]], linears: Sequence[Linear], count: int
) -> dict[str, float]:
    """Return by linear the sum of its values in all processes, over the sum of their counts.

    In the order of ``linears``; those without a value are left out.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    totals: dict[str, float] = {}
    for linear, value in values:
        totals[linear.name] = totals.get(linear.name, 0.0) + value
    everyone = processes.collect(totals)
    counted = sum(processes.collect(count))
    means = {
        linear.name: sum(each.get(linear.name, 0.0) for each in everyone) / counted
        for linear in linears
        if any(linear.name in each for each in everyone)
    }
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise not_finite(f"the gradient by {name} holds")
    return means
