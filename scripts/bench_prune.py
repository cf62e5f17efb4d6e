"""Measure spp prune: what it costs in forward passes, and how its memory grows with the model.

    python scripts/bench_prune.py --speed      each method and order, as multiples of a forward pass
                                  --method fista --method alps      of these alone
    python scripts/bench_prune.py --memory     peak memory for 4, 16 and 64 blocks of one size
    python scripts/bench_prune.py --json       the ratios of --speed at 50 %, as JSON

A random Llama, made in a temporary folder; nothing is downloaded. Ratios count, seconds do not: the
forward pass is that of the calibration text through the decoder blocks, measured in the same run
before and after each method. The time of a method is that of the whole stage: reading, statistics,
pruning, masks, writing. If llm-compressor is importable, its oneshot stands beside, on a model that
is in memory already.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

VOCABULARY = 4096
CASES = (
    ("magnitude", "two-pass"),
    ("wanda", "one-pass"),
    ("wanda", "two-pass"),
    ("sparsegpt", "one-pass"),
    ("sparsegpt", "two-pass"),
    ("fista", "one-pass"),
    ("fista", "two-pass"),
    ("mrp", "two-pass"),
    ("ria", "two-pass"),
    ("isc", "two-pass"),
    ("alps", "two-pass"),
)
_SHORT = 5  # times that what takes a second is measured: the median counts
OTHERS = (("wanda", "llm-compressor"), ("sparsegpt", "llm-compressor"))  # if it is importable


@dataclass(frozen=True)
class Shape:
    """A Llama and its calibration text."""

    blocks: int
    hidden: int
    samples: int
    length: int
    batch: int
    dtype: str
    device: str

    @property
    def intermediate(self) -> int:
        return self.hidden * 11 // 4


SPEED_ON_CPU = Shape(4, 1024, 32, 512, 4, "float32", "cpu")
SPEED_ON_GPU = Shape(8, 4096, 128, 2048, 4, "bfloat16", "cuda")
MEMORY = Shape(4, 512, 16, 512, 4, "bfloat16", "cpu")


def make_model(folder: Path, shape: Shape) -> None:
    """Save a random Llama with the embedded tokenizer, and calibration tokens for it."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from spp_cli.models.checkpoint import locate

    torch.manual_seed(0)
    heads = shape.hidden // 64
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        vocab_size=VOCABULARY,
        max_position_embeddings=shape.length,
    )
    dtype = getattr(torch, shape.dtype)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("demo")[0] / name, folder / name)
    tokens = torch.randint(3, VOCABULARY, (shape.samples, shape.length))
    save_file({"tokens": tokens}, folder / "tokens.safetensors")


def prune(folder: Path, shape: Shape, method: str, order: str, pattern: str) -> float:
    """Prune a model through the stage itself; return the seconds it took."""
    from spp_cli.config import SppConfig
    from spp_cli.progress import Silent
    from spp_cli.stages import prune
    from spp_cli.stages.stage import Sources

    how = {"sparsity": 0.5} if pattern == "unstructured" else {}
    calibration = {
        "source": str(folder / "tokens.safetensors"),
        "samples": shape.samples,
        "sequence_length": shape.length,
        "batch_size": shape.batch,
    }
    settings = {"method": method, "order": order, "pattern": pattern, "calibration": calibration}
    config = SppConfig.model_validate(
        {"model": {"device": shape.device}, "prune": {**settings, **how}}
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as target:
        begun = time.perf_counter()
        prune.run(config, Sources(folder, False), Path(target), Silent())
        return time.perf_counter() - begun


def prune_with_llmcompressor(folder: Path, shape: Shape, method: str, pattern: str) -> float:
    """Prune the blocks with llm-compressor; return the seconds it took, reading and writing not."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers import pruning
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    kind = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}[method]
    modifier = getattr(pruning, kind)(
        sparsity=0.5,
        mask_structure="0:0" if pattern == "unstructured" else pattern,
        targets=["Linear"],
        ignore=["re:.*lm_head"],
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=shape.dtype)
    rows = load_file(folder / "tokens.safetensors")["tokens"].tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    begun = time.perf_counter()
    oneshot(
        model=model.to(shape.device),
        dataset=data,
        recipe=modifier,
        num_calibration_samples=shape.samples,
        max_seq_length=shape.length,
        batch_size=shape.batch,
    )
    return time.perf_counter() - begun


class ForwardPass:
    """The calibration text through the decoder blocks of the dense model, nothing else."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._device = shape.device
        dtype = torch.float32 if shape.device == "cpu" else getattr(torch, shape.dtype)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._model.to(shape.device)
        tokens = torch.randint(3, VOCABULARY, (shape.samples, shape.length), device=shape.device)
        self._batches = tokens.split(shape.batch)
        self._pass(self._batches[:1])  # warms up

    def seconds(self) -> float:
        begun = time.perf_counter()
        self._pass(self._batches)
        return time.perf_counter() - begun

    def _pass(self, batches: Any) -> None:
        import torch

        with torch.no_grad():
            for batch in batches:
                self._model.base_model(batch, use_cache=False)
        if self._device != "cpu":
            torch.cuda.synchronize()


def speed(
    root: Path, shape: Shape, patterns: list[str], methods: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Return by pattern, method and order the time in forward passes, of some methods or all."""
    cases = [case for case in CASES if not methods or case[0] in methods]
    others = [case for case in OTHERS if not methods or case[0] in methods]
    folder = root / "model"
    make_model(folder, shape)
    forward = ForwardPass(folder, shape)
    make_model(root / "small", replace(shape, blocks=1, hidden=128, samples=2, length=64))
    for method, order in cases:  # imports what is imported once
        prune(root / "small", replace(shape, samples=2, length=64), method, order, "2:4")
    found: dict[str, dict[str, Any]] = {}
    for pattern in patterns:
        ratios = found.setdefault(pattern, {})
        for method, order in cases + others * (find_spec("llmcompressor") is not None):
            around = [forward.seconds()]
            if order == "llm-compressor":
                took = prune_with_llmcompressor(folder, shape, method, pattern)
            else:
                times = _SHORT if method == "magnitude" else 1
                took = statistics.median(
                    prune(folder, shape, method, order, pattern) for _ in range(times)
                )
            around.append(forward.seconds())
            ratio = round(took / statistics.mean(around), 3)
            if method == "magnitude":
                ratios[method] = ratio
            else:
                ratios.setdefault(method, {})[order] = ratio
            print(
                f"{pattern:<12}  {method:<9}  {order if method != 'magnitude' else '':<14}"
                f"  {ratio:>14.2f}  {took:>8.2f}",
                file=sys.stderr,
                flush=True,
            )
    return found


def in_a_process(*arguments: str) -> list[str]:
    """Run this script anew, so that its peak memory is its own; return the words it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def memory(root: Path) -> None:
    """Print the peak memory of pruning by the number of blocks, the median of three runs."""
    print(f"{'blocks':>6}  {'weights':>9}  {'peak memory':>11}")
    for blocks in (4, 16, 64):
        folder = root / str(blocks)
        in_a_process("--make", str(folder), "--blocks", str(blocks))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        # The allocator's luck makes a difference of some per cent between runs.
        peaks = [int(in_a_process("--peak", str(folder))[0]) for _ in range(3)]
        peak = statistics.median(peaks)
        print(f"{blocks:>6}  {size / 2**20:>5.0f} MiB  {peak / 2**10:>7.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="peak memory by number of blocks")
    parser.add_argument("--speed", action="store_true", help="time in forward passes")
    parser.add_argument("--json", action="store_true", help="ratios of --speed at 50 %% as JSON")
    parser.add_argument(
        "--method",
        action="append",
        choices=sorted({method for method, _ in CASES}),
        help="of these alone; may be given more than once",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SPEED_ON_CPU if arguments.device == "cpu" else SPEED_ON_GPU
    if arguments.make:
        make_model(arguments.make, Shape(**{**vars(MEMORY), "blocks": arguments.blocks}))
    elif arguments.peak:
        from spp_cli.memory import peak_memory

        prune(arguments.peak, MEMORY, "wanda", "two-pass", "2:4")
        print(peak_memory() // 1024)
    else:
        with tempfile.TemporaryDirectory() as root:
            if arguments.json:
                found = speed(Path(root), shape, ["unstructured"], arguments.method)
                print(json.dumps(found["unstructured"]))
                return
            if arguments.memory or not arguments.speed:
                memory(Path(root))
            if arguments.speed or not arguments.memory:
                print(
                    "pattern       method     order           forward passes   seconds",
                    file=sys.stderr,
                )
                speed(Path(root), shape, ["unstructured", "2:4"], arguments.method)


if __name__ == "__main__":
    main()
