"""Measure what an adapter costs: time and memory as ratios to a frozen layer and a frozen model.

    python scripts/bench_finetune.py             single layers, then a model of four blocks
    python scripts/bench_finetune.py --json      the ratios of single layers, as JSON
    python scripts/bench_finetune.py --device cuda    the same, and a model of LLaMA-7B's shapes

Frozen means forward and backward to the inputs only: two matrix products. All variants of a shape
take turns in one run, so that what else the machine does falls on all of them; the median counts.
The two released forms are SPP as its authors' code computes it, in plain autograd and beside the
frozen product: with A repeated to the size of the weight and that branch recomputed in the backward
("repeat"), and with one product for each row group ("memory").
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spp_cli import memory
from spp_cli.adapters.adapter import AdaptedLinear
from spp_cli.adapters.frozen import DenseWeight, PackedWeight
from spp_cli.adapters.lora import LoRA
from spp_cli.adapters.masked_full import MaskedFull
from spp_cli.adapters.masked_lora import MaskedLoRA
from spp_cli.adapters.multiplicative import Multiplicative
from spp_cli.adapters.spp import SPP

SPARSITY = 0.75
ROUNDS = 15


class Released(AdaptedLinear):
    """SPP in plain autograd: by one repeated matrix, or by a product for each row group."""

    def __init__(self, base: DenseWeight, repeats: bool) -> None:
        super().__init__(base, None)
        self.repeats = repeats
        self.A = nn.Parameter(torch.randn(16, self.in_features, device=base.dense.device))
        self.B = nn.Parameter(torch.zeros(self.out_features, 1, device=base.dense.device))

    def forward(self, hidden_states: Tensor) -> Tensor:
        W, A, B = self.weight, self.A.to(hidden_states.dtype), self.B.to(hidden_states.dtype)
        branch = _repeated if self.repeats else _by_group
        return nn.functional.linear(hidden_states, W) + branch(hidden_states, W, A, B) * 2


def _repeated(X: Tensor, W: Tensor, A: Tensor, B: Tensor) -> Tensor:
    def branch(X: Tensor, W: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return nn.functional.linear(X, A.repeat_interleave(len(W) // len(A), dim=0) * B * W)

    return checkpoint(branch, X, W, A, B, use_reentrant=False)


def _by_group(X: Tensor, W: Tensor, A: Tensor, B: Tensor) -> Tensor:
    pairs = zip(A, W.chunk(len(A)), strict=True)
    return torch.cat([nn.functional.linear(X * a, rows) for a, rows in pairs], dim=-1) * B.flatten()


def sparse_weight(rows: int, columns: int, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    keep = torch.rand(rows, columns, device=device) >= SPARSITY
    weight = torch.randn(rows, columns, device=device) / columns**0.5
    return weight.to(dtype).masked_fill(~keep, 0), keep


class Frozen(nn.Linear):
    """A frozen linear of the given weight."""

    def __init__(self, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None


VARIANTS: dict[str, Callable[[Tensor, Tensor], nn.Module]] = {
    "frozen": lambda weight, keep: Frozen(weight),
    "lora": lambda weight, keep: LoRA().wrap(DenseWeight(weight), None),
    "spp": lambda weight, keep: SPP().wrap(DenseWeight(weight), None),
    "spp-packed": lambda weight, keep: SPP().wrap(PackedWeight(weight, keep), None),
    "multiplicative": lambda weight, keep: Multiplicative().wrap(DenseWeight(weight), None),
    "masked-lora": lambda weight, keep: MaskedLoRA().wrap(DenseWeight(weight, keep), None),
    "masked-full": lambda weight, keep: MaskedFull().wrap(DenseWeight(weight, keep), None),
    "released-repeat": lambda weight, keep: Released(DenseWeight(weight), True),
    "released-memory": lambda weight, keep: Released(DenseWeight(weight), False),
}


def seconds(run: Callable[[], object], device: str) -> float:
    begun = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def layers(tokens: int, size: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return by variant the time of a step of one layer, in steps of the frozen one."""
    torch.manual_seed(0)
    weight, keep = sparse_weight(size, size, dtype, device)
    inputs = torch.randn(tokens, size, dtype=dtype, device=device, requires_grad=True)
    upstream = torch.randn(tokens, size, dtype=dtype, device=device)
    variants = {name: make(weight, keep) for name, make in VARIANTS.items()}

    def step(layer: nn.Module) -> None:
        inputs.grad = None
        layer.zero_grad()
        layer(inputs).backward(upstream)

    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, layer in variants.items():
            step(layer)  # what the one before left in caches and heap is its own
            times[name].append(seconds(lambda layer=layer: step(layer), device))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {name: round(median / medians["frozen"], 2) for name, median in medians.items()}


@dataclass(frozen=True)
class Shape:
    """A Llama and one batch of its text."""

    blocks: int
    hidden: int
    intermediate: int
    sequences: int
    tokens: int
    dtype: torch.dtype


ON_CPU = Shape(4, 1024, 2816, 4, 512, torch.float32)
ON_GPU = Shape(8, 4096, 11008, 4, 2048, torch.bfloat16)


def model_step(shape: Shape, device: str, variant: str) -> tuple[float, int]:
    """Return the seconds of a training step, and the peak memory in bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 128,
        vocab_size=4096,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).to(shape.dtype).requires_grad_(False)
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, nn.Linear):
            weight, keep = sparse_weight(*module.weight.shape, shape.dtype, "cpu")
            parent, _, child = name.rpartition(".")
            setattr(
                model.model.layers.get_submodule(parent), child, VARIANTS[variant](weight, keep)
            )
    model.to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None
    embeddings = model.get_input_embeddings()
    tokens = torch.randint(4096, (shape.sequences, shape.tokens), device=device)

    def step() -> None:
        hidden_states = (
            embeddings(tokens).detach().requires_grad_()
        )  # a frozen model, too, needs it
        model(inputs_embeds=hidden_states, labels=tokens).loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()

    step()
    memory.forget_peaks()
    took = statistics.median(seconds(step, device) for _ in range(3))
    return took, peak(device)


def peak(device: str) -> int:
    """Return the most bytes held since ``forget_peaks``: by the GPU's tensors or the process."""
    return memory.gpu_peak() if device != "cpu" else memory.process_peak()


def models(shape: Shape, device: str, variants: Iterable[str]) -> None:
    """Print time and memory of a training step by variant, each in a process of its own."""
    print(
        f"{'model of ' + str(shape.blocks) + ' blocks':<18} {'step':>6} {'tokens/s':>9} {'peak':>9}"
    )
    frozen = None
    for variant in variants:
        command = [sys.executable, __file__, "--device", device, "--variant", variant]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took, most = json.loads(done.stdout)
        frozen = frozen or took
        speed = shape.sequences * shape.tokens / took
        print(
            f"{variant:<18} {took / frozen:>6.2f} {speed:>9.0f} {most / 2**20:>5.0f} MiB",
            flush=True,
        )


def packed_bytes() -> float:
    """Return the resident bytes of a packed frozen weight by those of the dense in bfloat16."""
    weight, keep = sparse_weight(2048, 2048, torch.bfloat16, "cpu")
    packed = PackedWeight(weight, keep)
    size = sum(part.numel() * part.element_size() for part in packed.state_dict().values())
    return round(size / (weight.numel() * 2), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="ratios of single layers as JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = ON_CPU if arguments.device == "cpu" else ON_GPU
    if arguments.variant:
        print(json.dumps(model_step(shape, arguments.device, arguments.variant)))
        return
    shapes = {"1024x1024": (2048, 1024), "2048x2048": (512, 2048)}
    if arguments.device == "cuda":
        shapes = {"4096x4096": (8192, 4096)}
    found: dict[str, Any] = {
        name: layers(tokens, size, shape.dtype, arguments.device)
        for name, (tokens, size) in shapes.items()
    }
    found["packed_bytes"] = packed_bytes()
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"{'single layer':<18} " + " ".join(f"{name:>10}" for name in shapes))
    for variant in VARIANTS:
        print(f"{variant:<18} " + " ".join(f"{found[name][variant]:>10.2f}" for name in shapes))
    print(f"packed: {found['packed_bytes']:.4f} of the bytes in bfloat16\n")
    models(shape, arguments.device, VARIANTS)


if __name__ == "__main__":
    main()
