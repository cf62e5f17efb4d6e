"""In which order the linears of a block are pruned, and what text each sees before it is.

An order yields the linears of a block in groups that read one input, each with what is known of it.
The groups that are ready together come as one round: whoever asks prunes them in place before
asking for the next. Of several processes each has its own batches, and all see the same rounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from weakref import ReferenceType, ref

import greenlet
import torch
from torch import Tensor, nn

from spp_cli import processes
from spp_cli.errors import ModelError
from spp_cli.models.activations import choose_offload
from spp_cli.models.calls import BlockCalls
from spp_cli.models.decoder import Linear
from spp_cli.models.heap import return_free_memory
from spp_cli.pruning.inputs import BlockInputs, Known, Sharing
from spp_cli.pruning.statistics import Statistic

__all__ = [
    "ORDERS",
    "Group",
    "OnePass",
    "Order",
    "Round",
    "TwoPass",
    "choose_order",
    "dense_inputs",
]

_COSTS_NOTHING_UP_TO = 0.5  # sparsity; measured, see the README

Group = tuple[list[Linear], Known | None]
Round = list[Group]


class Order(ABC):
    """How the calibration text flows through one block while its linears are pruned."""

    @abstractmethod
    def rounds(
        self,
        block: nn.Module,
        index: int,
        linears: Sequence[Linear],
        calls: BlockCalls,
        kinds: Sequence[type[Statistic]],
        *,
        is_last: bool,
    ) -> Iterator[Round]:
        """Yield groups to prune; at the end the text has flowed through the pruned block.

        Args:
            linears: those of the ``index``-th block that are to be pruned, in any order.
            calls: its hidden states are replaced by the block's outputs, unless it ``is_last``.
            kinds: the statistics to collect of every input. One that ``reads_dense`` is shown what
                the dense block gives too, if the order prunes within the block.

        Linears that no text reached come with None.
        """


class TwoPass(Order):
    """As published: all statistics from the dense block, then all linears, then the block again."""

    def rounds(
        self,
        block: nn.Module,
        index: int,
        linears: Sequence[Linear],
        calls: BlockCalls,
        kinds: Sequence[type[Statistic]],
        *,
        is_last: bool,
    ) -> Iterator[Round]:
        seen = dense_inputs(block, index, linears, calls, kinds)
        return_free_memory()  # else what a block takes at its peak is a matter of luck
        yield seen
        del seen
        return_free_memory()
        if not is_last:
            calls.flow_through(block, index)


def dense_inputs(
    block: nn.Module,
    index: int,
    linears: Sequence[Linear],
    calls: BlockCalls,
    kinds: Sequence[type[Statistic]],
    *,
    flow_on: bool = False,
) -> Round:
    """Return the groups of ``linears`` with what is known of them from the block as it is.

    With ``flow_on`` the block's outputs become the hidden states of ``calls``; without, nothing is
    computed behind the last linear.
    """
    inputs, sharing = BlockInputs(kinds, calls.shapes), Sharing()
    last: str | None = None  # the linear behind which nothing more is to be seen

    def see(linear: Linear, tensor: Tensor) -> None:
        sharing.see(linear.name, tensor)
        if sharing.leaders[linear.name] == linear.name:
            inputs.count(linear, tensor, calls.shapes[batch])
        if linear.name == last:
            raise _SeenEnough

    with _called(linears, see):
        for batch in range(len(calls.shapes)):
            with suppress(_SeenEnough):
                output = calls.run(block, index, batch)
                if flow_on:
                    calls.hidden_states[batch] = output
            each_once = sorted(sharing.called) == sorted(linear.name for linear in linears)
            if batch == 0 and each_once and linears and not flow_on:
                last = sharing.called[-1]
            sharing.end_batch()
    groups = _by_leader(linears, _as_all_see(sharing.leaders))
    by_name = {linear.name: linear for linear in linears}
    return [(group, inputs.take(by_name[leader])) for leader, group in groups.items()]


class OnePass(Order):
    """Each linear as soon as its whole input is there; the text flows on through what is left.

    Every batch's forward runs in a greenlet of its own that is suspended where it calls a linear,
    until all batches are there and the linear, with those that read the same input, is pruned. So
    the activations of all batches within the block are in memory together.

    For a statistic that ``reads_dense`` each batch flows through the dense block as well, one
    linear ahead: it is past a linear before that is pruned, so that no second block is needed.
    """

    def __init__(self) -> None:
        # By the linears of a block: of each its leader, and when it is called.
        self._known: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def rounds(
        self,
        block: nn.Module,
        index: int,
        linears: Sequence[Linear],
        calls: BlockCalls,
        kinds: Sequence[type[Statistic]],
        *,
        is_last: bool,
    ) -> Iterator[Round]:
        leaders, in_turn = self._see_sharing(block, index, linears, calls)
        remaining = _by_leader(linears, leaders)
        inputs = BlockInputs(kinds, calls.shapes)
        pruned: set[str] = set()

        def see(linear: Linear, tensor: Tensor) -> None:
            greenlet.getcurrent().parent.switch((linear, tensor))

        with _called(linears, see):
            flows = [_Flow(block, index, batch, calls) for batch in range(len(calls.shapes))]
            if any(kind.reads_dense for kind in kinds):
                turns = {linear.name: turn for turn, linear in enumerate(in_turn)}
                for batch, flow in enumerate(flows):
                    flow.dense = _DenseFlow(block, index, batch, calls, turns)
            for flow in flows:
                flow.go_on(inputs, leaders, pruned)
            # The batches wait at different linears where a router sends their tokens different
            # ways; the one that is called first is the one that no batch comes to later.
            while at := _first_waiting(in_turn, flows):
                group = remaining.pop(leaders[at.name])
                for flow in flows:
                    flow.leave_dense(group, for_good=not remaining)
                yield [(group, inputs.take(at))]
                pruned.update(linear.name for linear in group)
                if is_last and not remaining:
                    break
                for flow in flows:
                    if flow.at is at:
                        flow.go_on(inputs, leaders, pruned)
        yield [(group, None) for group in remaining.values()]

    def _see_sharing(
        self, block: nn.Module, index: int, linears: Sequence[Linear], calls: BlockCalls
    ) -> tuple[dict[str, str], list[Linear]]:
        """Return each linear's leader, and the linears in the order in which they are called.

        Both are learned from one batch through the first block of its kind; each block of that
        kind is held to them while the text flows.
        """
        paths = {id(module): path for path, module in block.named_modules()}
        kind = tuple(paths[id(linear.module)] for linear in linears)
        if kind not in self._known:
            sharing = Sharing()
            with _called(linears, lambda linear, tensor: sharing.see(linear.name, tensor)):
                calls.run(block, index, 0)
            number = {linear.name: i for i, linear in enumerate(linears)}
            leaders = _as_all_see(sharing.leaders)
            called = processes.give_out(sharing.called)
            self._known[kind] = (
                [number[leaders.get(linear.name, linear.name)] for linear in linears],
                _turns([linear.name for linear in linears], called),
            )
        leading, turns = self._known[kind]
        return (
            {
                linear.name: linears[leader].name
                for linear, leader in zip(linears, leading, strict=True)
            },
            [linears[number] for number in sorted(range(len(linears)), key=turns.__getitem__)],
        )


def _first_waiting(in_turn: Sequence[Linear], flows: Sequence[_Flow]) -> Linear | None:
    """Return the linear that is called first of those where any process has a batch waiting."""
    waiting = (i for i, linear in enumerate(in_turn) if any(flow.at is linear for flow in flows))
    first = processes.agree_on_lowest(next(waiting, len(in_turn)))
    return in_turn[first] if first < len(in_turn) else None


def _as_all_see(leaders: dict[str, str]) -> dict[str, str]:
    """Return the leader of each linear as the first process saw it that has seen it called."""
    seen = processes.collect(leaders)
    return {name: leader for one in reversed(seen) for name, leader in one.items()}


def _turns(names: Sequence[str], called: Sequence[str]) -> list[float]:
    """Return when each linear is called; an expert that was not, with those beside it."""
    turns = {name: float(turn) for turn, name in enumerate(called)}

    def turn(number: int, name: str) -> float:
        if name in turns:
            return turns[name]
        experts = name.rsplit(".", 2)[0]
        beside = [i for i, other in enumerate(names) if other.startswith(f"{experts}.")]
        seen = [i for i in beside if names[i] in turns]
        if not seen:
            return float(len(called))
        nearest = max((i for i in seen if i < number), default=seen[0])
        return turns[names[nearest]] + (0.5 if nearest < number else -0.5)

    return [turn(number, name) for number, name in enumerate(names)]


class _DenseFlow:
    """The way of one batch through the dense block, as far as its linears are dense still.

    It waits at each linear, and keeps what those that lead others are called with until it is asked
    for. ``turns`` has the turn of each linear by name.
    """

    def __init__(
        self, block: nn.Module, index: int, batch: int, calls: BlockCalls, turns: dict[str, int]
    ) -> None:
        self._turns = turns
        self._turn: float = -1  # of the linear where it waits
        self._inputs: dict[str, Tensor] = {}

        def run() -> None:
            calls.run(block, index, batch)

        self._way = greenlet.greenlet(run)

    def input_of(self, leader: Linear) -> Tensor | None:
        """Return what ``leader`` is called with; None if it is not called for this batch."""
        while self._turn < self._turns[leader.name]:
            self._go_on()
        return self._inputs.pop(leader.name, None)

    def pass_by(self, group: Sequence[Linear]) -> None:
        """Flow on until all of ``group`` have computed with their weights as they are."""
        last = max(self._turns[linear.name] for linear in group)
        while self._turn <= last:
            self._go_on()

    def _go_on(self) -> None:
        if arrived := self._way.switch():
            linear, tensor = arrived
            self._turn = self._turns[linear.name]
            self._inputs.setdefault(linear.name, tensor)
        else:
            self._turn = float("inf")


class _Flow:
    """The way of one batch through a block; it waits at the linear ``at``, None if it is out."""

    def __init__(self, block: nn.Module, index: int, batch: int, calls: BlockCalls) -> None:
        self.at: Linear | None = None
        self.dense: _DenseFlow | None = None  # the same batch, one linear ahead
        self._shape = calls.shapes[batch]
        self._inputs: dict[str, ReferenceType[Tensor]] = {}  # by leader

        def run() -> None:
            calls.hidden_states[batch] = calls.run(block, index, batch)

        self._way = greenlet.greenlet(run)

    def go_on(self, inputs: BlockInputs, leaders: dict[str, str], pruned: set[str]) -> None:
        """Flow through the linears that are pruned, to the next that is not, and count its input.

        Raises:
            ModelError: a linear's input is not that of its leader, or comes when it is pruned.
        """
        while arrived := self._way.switch():
            linear, tensor = arrived
            leader = leaders[linear.name]
            if linear.name not in pruned:
                self._inputs[leader] = ref(tensor)
                dense = self.dense.input_of(linear) if self.dense else None
                inputs.count(linear, tensor, self._shape, dense)
                self.at = linear
                return
            if leader not in self._inputs or self._inputs[leader]() is not tensor:
                raise ModelError(
                    f"the model calls {linear.name} again, or in another way than in its other "
                    "blocks, so it cannot be pruned in one pass. Set --order two-pass"
                )
        self.at = None

    def leave_dense(self, group: Sequence[Linear], *, for_good: bool) -> None:
        """Have the dense flow pass by ``group``, which is about to be pruned, or end there."""
        if for_good:
            self.dense = None
        elif self.dense:
            self.dense.pass_by(group)


class _SeenEnough(Exception):
    """Ends the forward of a block: what comes now changes nothing."""


@contextmanager
def _called(linears: Sequence[Linear], see: Callable[[Linear, Tensor], None]) -> Iterator[None]:
    """Have ``see`` called with each linear, and its input, before the linear computes."""

    def hook_for(linear: Linear) -> Callable[..., None]:
        return lambda module, args: see(linear, args[0])

    hooks = [linear.module.register_forward_pre_hook(hook_for(linear)) for linear in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _by_leader(linears: Sequence[Linear], leaders: dict[str, str]) -> dict[str, list[Linear]]:
    """Return the linears by the first of those that read the same input, in order."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(leaders.get(linear.name, linear.name), []).append(linear)
    return groups


ORDERS: dict[str, type[Order]] = {"one-pass": OnePass, "two-pass": TwoPass}


def choose_order(
    sparsity: float, held: int, device: torch.device, kinds: Iterable[type[Statistic]]
) -> str:
    """Return the name of the order that suits: one-pass where it costs no quality and fits.

    Args:
        sparsity: the share of zeros asked for.
        held: bytes that the suspended forwards of one pass hold.
        kinds: the statistics to collect. One that ``reads_dense`` makes good in one pass what
            earlier linears of the block have lost, whatever the sparsity.
    """
    mends = any(kind.reads_dense for kind in kinds)
    if (mends or sparsity <= _COSTS_NOTHING_UP_TO) and choose_offload(held, device) == "device":
        return "one-pass"
    return "two-pass"
