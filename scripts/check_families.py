"""Prune a tiny model of every decoder class of transformers, and check the masks from outside spp.

    python scripts/check_families.py [FAMILY ...] [--order two-pass]
    python scripts/check_families.py --write docs/families.md

Each is pruned to 50 % by Wanda, in two passes and in one. Then plain transformers loads the dense
and the pruned model, hooks of this script take the norms of what each linear layer is called with,
and every mask has to be the better half of each row by |weight| · norm, as computed here. All that
is not pruned has to be as it was, and named by spp_sparsity.json. Of spp only the pruning is used.

exact: all of that holds. refused: spp said in one line that it does not prune this. Exit code 1 if
any is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tiny_families import VOCABULARY, families, save
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spp_cli.config import SppConfig
from spp_cli.errors import SppError
from spp_cli.progress import Silent
from spp_cli.stages import prune
from spp_cli.stages.stage import Sources

ORDERS = ("two-pass", "one-pass")
_SEQUENCES, _LENGTH, _BATCH = 6, 48, 4  # the last batch is smaller
_NEAR = 1e-3  # two scores that differ by less, in relation, may come in either order


@dataclass
class Found:
    """What came of one family in one order: "exact", "refused" or "wrong", and why."""

    family: str
    order: str
    verdict: str
    why: str = ""
    record: dict[str, Any] = field(default_factory=dict)


def config_of(order: str, tokens: Path) -> SppConfig:
    calibration = {"source": str(tokens), "samples": _SEQUENCES, "sequence_length": _LENGTH}
    calibration["batch_size"] = _BATCH
    how = {"method": "wanda", "sparsity": 0.5, "order": order, "calibration": calibration}
    return SppConfig.model_validate({"model": {"device": "cpu"}, "prune": how})


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class Norms:
    """The norms of the inputs of each linear by name of its weight: (in,), of all tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.squares: dict[str, Tensor] = {}
        self._hooks = []
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                self._hooks.append(module.register_forward_pre_hook(self._linear(path)))
            elif is_fused(module):
                self._hooks.append(
                    module.register_forward_pre_hook(self._experts(path), with_kwargs=True)
                )

    def _add(self, name: str, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        self.squares[name] = self.squares.get(name, 0) + rows.square().sum(0)

    def _linear(self, path: str) -> Any:
        return lambda module, args: self._add(f"{path}.weight", args[0])

    def _experts(self, path: str) -> Any:
        """Return a hook that computes what each expert's two products are given."""

        def hook(module: Any, args: Any, kwargs: Any) -> None:
            states, index, *_ = [*args, *kwargs.values()]
            states = states.reshape(-1, states.shape[-1])
            first = module.gate_up_proj if module.has_gate else module.up_proj
            bias = getattr(module, "gate_up_proj_bias" if module.has_gate else "up_proj_bias", None)
            for number in range(len(first)):
                inputs = states[(index == number).any(-1)]
                weight = first[number].T if not module.is_transposed else first[number]
                middle = inputs @ weight + (bias[number] if bias is not None else 0)
                middle = module._apply_gate(middle) if module.has_gate else module.act_fn(middle)
                name = "gate_up_proj" if module.has_gate else "up_proj"
                self._add(f"{path}.{name}[{number}]", inputs)
                self._add(f"{path}.down_proj[{number}]", middle)

        return hook

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def is_fused(module: nn.Module) -> bool:
    """Whether it holds all experts in tensors of three axes, by transformers' own interface."""
    return all(hasattr(module, name) for name in ("has_gate", "is_transposed")) and hasattr(
        module, "_apply_gate" if getattr(module, "has_gate", False) else "act_fn"
    )


@contextmanager
def norms(model: PreTrainedModel, tokens: Tensor) -> Iterator[dict[str, Tensor]]:
    counted = Norms(model)
    try:
        with torch.no_grad():
            for batch in tokens.split(_BATCH):
                model(batch, use_cache=False)
        yield {name: squares.sqrt() for name, squares in counted.squares.items()}
    finally:
        counted.close()


@dataclass(frozen=True)
class Matrix:
    """A weight in a model: its parameter, what of it, and whether that is (in, out)."""

    parameter: nn.Parameter
    index: Any = ...
    transposed: bool = False

    @property
    def value(self) -> Tensor:
        """The weight: (out, in) if it is a matrix."""
        weight = self.parameter.detach()[self.index]
        return weight.T if self.transposed else weight


def matrices(model: PreTrainedModel) -> dict[str, Matrix]:
    """Return by name each weight; of joint experts each projection, as name[expert, projection]."""
    found: dict[str, Matrix] = {}
    transposed = {
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Conv1D)
    }
    fused = {path: module for path, module in model.named_modules() if is_fused(module)}
    for name, parameter in model.named_parameters():
        experts: Any = fused.get(name.rpartition(".")[0])
        if experts is None or parameter.dim() != 3:
            found[name] = Matrix(parameter, ..., name in transposed)
            continue
        halves = [slice(None)]
        if name.endswith("gate_up_proj"):
            rows = parameter.shape[2 if experts.is_transposed else 1]
            halves = [slice(0, rows // 2), slice(rows // 2, rows)]
            if not experts.is_concatenated:
                halves = [slice(0, None, 2), slice(1, None, 2)]
        for number in range(len(parameter)):
            for half, rows in enumerate(halves):
                index = (number, slice(None), rows) if experts.is_transposed else (number, rows)
                found[f"{name}[{number}, {half}]"] = Matrix(parameter, index, experts.is_transposed)
    return found


def block_of(name: str) -> int:
    """Return the number of the block: the first number in the name, −1 outside the blocks."""
    numbers = re.findall(r"\.(\d+)\.", name)
    return int(numbers[0]) if numbers else -1


def problem_of(name: str, dense: Tensor, pruned: Tensor, norm: Tensor | None) -> str:
    """Return why a mask is not the better half of each row; empty if it is.

    What no token reached has no ``norm``: there the larger half of the whole matrix has to stay.
    """
    keep = pruned != 0
    if not torch.equal(pruned, dense * keep):
        return f"{name}: kept weights changed"
    scores = dense.abs().double() * (1 if norm is None else norm)
    if norm is None:
        scores, keep = scores.flatten()[None], keep.flatten()[None]
    width = scores.shape[1]
    if not (keep.sum(1) == width - width // 2).all():
        return f"{name}: not half of each row"
    worst_kept = scores.masked_fill(~keep, torch.inf).amin(1)
    best_dropped = scores.masked_fill(keep, -torch.inf).amax(1)
    wrong = (worst_kept < best_dropped * (1 - _NEAR)).float().mean().item()
    return f"{name}: {wrong:.0%} of the rows hold others than the best" if wrong else ""


def problem_in(name: str, dense: Matrix, pruned: Matrix, known: dict[str, Tensor]) -> str:
    """Return why a weight that was changed is not pruned as it has to be; empty if it is."""
    if dense.value.dim() != 2:
        return f"{name} is no matrix and was changed"
    norm = known.get(re.sub(r", \d\]", "]", name))
    if norm is None and ".experts." not in name:
        return f"{name} was never called and was pruned"
    reached = norm is not None and bool(norm.any())
    return problem_of(name, dense.value, pruned.value, norm if reached else None)


def on_record(name: str, record: Any) -> bool:
    """Whether a record of sparsity says of a weight that it stays dense."""
    whole = re.sub(r"\[.*\]$", "", name)
    globs = (re.escape(glob).replace(r"\*", r"\d+") for glob in record.get("dense", {}))
    return any(re.fullmatch(glob, whole) for glob in globs)


def problems(dense: Path, pruned: Path, order: str, tokens: Tensor, record: Any) -> list[str]:
    """Return what is wrong with a pruned model, by the dense one."""
    before, after = load(dense), load(pruned)
    old, new = matrices(before), matrices(after)
    changed = [name for name in old if not torch.equal(old[name].value, new[name].value)]
    if not changed:
        return ["nothing was pruned"]
    if outside := [name for name in changed if block_of(name) < 0]:
        return [f"{outside[0]} is in no block and was changed"]
    found = []
    for block in sorted({block_of(name) for name in changed}):
        here = [name for name in changed if block_of(name) == block]
        # In one pass each linear reads what the pruned ones before it give, and it alone is dense.
        with norms(after if order == "one-pass" else before, tokens) as known:
            found += [problem_in(name, old[name], new[name], known) for name in here]
        for name in here:
            old[name].parameter.data[old[name].index] = new[name].parameter.data[new[name].index]
    blocks = {re.split(r"\.\d+\.", name)[0] for name in changed}
    for name, matrix in old.items():
        inside = block_of(name) >= 0 and re.split(r"\.\d+\.", name)[0] in blocks
        is_matrix = matrix.value.dim() > 1 and not name.endswith("bias")  # those of all experts
        if inside and name not in changed and is_matrix:
            found += [f"{name} stays dense and is not on record"] * (not on_record(name, record))
    return [problem for problem in found if problem]


def check(family: str, order: str, folder: Path) -> Found:
    """Prune a family's model in ``folder`` in one order, and check the result."""
    tokens = torch.randint(
        3, VOCABULARY, (_SEQUENCES, _LENGTH), generator=torch.Generator().manual_seed(0)
    )
    path, target = folder / "tokens.safetensors", folder / order
    save_file({"tokens": tokens}, path)
    target.mkdir()
    try:
        prune.run(config_of(order, path), Sources(folder / "dense", False), target, Silent())
    except SppError as error:
        return Found(family, order, "refused", str(error))
    except Exception as error:  # noqa: BLE001  a family that ends so is a finding
        return Found(family, order, "wrong", f"{type(error).__name__}: {error}")
    record = json.loads((target / "spp_sparsity.json").read_bytes())
    found = problems(folder / "dense", target, order, tokens, record)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Found(
        family, order, "wrong" if found else "exact", found[0] + more if found else "", record
    )


def checked(family: str, orders: Sequence[str]) -> Iterator[Found]:
    """Yield what comes of a family in each order; "no model" if none can be made this small."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            model = save(family, folder / "dense")
            with torch.no_grad():
                model(torch.randint(3, VOCABULARY, (2, 24)), use_cache=False)
            load(folder / "dense")
        except Exception as error:  # noqa: BLE001  a family that ends so is a finding
            yield Found(family, "", "no model", f"{type(error).__name__}: {error}")
            return
        for order in orders:
            yield check(family, order, folder)


PAGE = """# Model families

`scripts/check_families.py` makes a tiny random model of every decoder class that transformers
{version} has a configuration for, prunes it to 50 % with Wanda, and checks each mask from outside
spp: plain transformers, its own hooks, its own scores, its own choice. It takes a few minutes,
needs nothing but an installed `spp`, and writes this page. A class's name here is its `model_type`.
Where "few" is said below, it is at most 8 in a tiny model and at most 64 in a large one.

{counts}

*exact*: every mask is the better half of each row, all other weights are as they were, and what
stays dense is on record. *refused*: `spp prune` ends in one line that says why; `--method
magnitude` needs no text and prunes most of these too.

## What stays dense

Besides vectors, such as norms and biases. `spp plan` shows this for a model, with sizes, and so do
`spp_sparsity.json`, the manifest, the model card and the report. In these all linear layers of the
blocks are pruned: {whole}.

| family | stays dense, in each block | why |
|---|---|---|
{dense}

## What is refused, or not tried

| family | order | why |
|---|---|---|
{refused}
"""


def page(found: Sequence[Found]) -> str:
    """Return the page of the documentation that says what was found."""
    exact = [each for each in found if each.verdict == "exact"]
    dense = {each.family: each.record["dense"] for each in exact}
    whole = ", ".join(sorted({each.family for each in exact if not each.record["dense"]}))
    rows = [
        f"| {family} | `{short(name)}` | {entry['why']} |"
        for family, entries in sorted(dense.items())
        for name, entry in sorted(entries.items())
    ]
    refused = [
        f"| {each.family} | {each.order or '–'} | {short_reason(each)} |"
        for each in found
        if each.verdict != "exact"
    ]
    counts = "\n".join(f"- {line}" for line in summary(found))
    return PAGE.format(
        version=transformers.__version__,
        counts=counts,
        whole=whole,
        dense="\n".join(rows),
        refused="\n".join(refused),
    )


def short(name: str) -> str:
    """Return the name of a matrix inside its block."""
    return re.sub(r"^.*?\.\*\.", "", name).removesuffix(".weight")


def short_reason(found: Found) -> str:
    """Return why a family was refused, without the folders and names of one try."""
    why = " ".join(found.why.split())
    if found.verdict == "no model":
        return f"no tiny model could be made: {why.partition(':')[0]}"
    why = re.sub(r"/\S+/dense(/config\.json)?:? ?", "", why)
    return re.sub(r"\. (Set|Leave|Copy|Only|Give) .*$", "", why).replace("|", "\\|")


def summary(found: Sequence[Found]) -> list[str]:
    """Return a line for each order, and one for the classes of which no model could be made."""
    lines = []
    for order in sorted({each.order for each in found}, reverse=True):
        counts = Counter(each.verdict for each in found if each.order == order)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        lines.append(f"{order}: {told}" if order else f"not tried: {counts['no model']}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=families())
    parser.add_argument("--order", action="append", choices=ORDERS)
    parser.add_argument("--write", type=Path, help="write the page of the documentation here")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = []
    for family in chosen.families:
        for each in checked(family, chosen.order or ORDERS):
            found.append(each)
            line = " ".join(each.why.split())
            print(f"{each.family:24} {each.order:9} {each.verdict:8} {line}", flush=True)
    print("\n".join(summary(found)))
    if chosen.write:
        chosen.write.write_text(page(found))
    return int(any(each.verdict == "wrong" for each in found))


if __name__ == "__main__":
    sys.exit(main())
