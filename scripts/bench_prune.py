"""Measure spp prune: how its memory grows with the model, and what it costs in forward passes.

    python scripts/bench_prune.py --memory     peak memory for 4, 16 and 64 blocks of one size
    python scripts/bench_prune.py --speed      seconds of each method as multiples of a forward pass

Random Llamas, made in a temporary folder; nothing is downloaded. Ratios count, seconds do not.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HIDDEN, INTERMEDIATE, VOCABULARY = 512, 1408, 4096
SAMPLES, LENGTH, BATCH = 16, 512, 4
METHODS = ("magnitude", "wanda", "sparsegpt")


def make_model(folder: Path, blocks: int) -> None:
    """Save a random bfloat16 Llama of ``blocks`` blocks with the embedded tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from spp_cli.models.checkpoint import locate

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("demo")[0] / name, folder / name)


def prune(folder: Path, method: str) -> float:
    """Prune a model through the stage itself, at 2:4; return the seconds it took."""
    from spp_cli.config import SppConfig
    from spp_cli.progress import Silent
    from spp_cli.stages import prune
    from spp_cli.stages.stage import Sources

    calibration = {"samples": SAMPLES, "sequence_length": LENGTH, "batch_size": BATCH}
    config = SppConfig.model_validate(
        {"prune": {"method": method, "pattern": "2:4", "calibration": calibration}}
    )
    with tempfile.TemporaryDirectory() as target:
        begun = time.perf_counter()
        prune.run(config, Sources(folder, True), Path(target), Silent())
        return time.perf_counter() - begun


def forward(folder: Path) -> float:
    """Return the seconds of one forward pass of the calibration text, without the head."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(3, VOCABULARY, (SAMPLES, LENGTH))
    with torch.no_grad():
        model.base_model(tokens[:BATCH])
        begun = time.perf_counter()
        for batch in tokens.split(BATCH):
            model.base_model(batch, use_cache=False)
    return time.perf_counter() - begun


def in_a_process(*arguments: str) -> list[str]:
    """Run this script anew, so that its peak memory is its own; return the words it prints."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def memory(root: Path) -> None:
    """Print the peak memory of pruning by the number of blocks."""
    print(f"{'blocks':>6}  {'weights':>9}  {'peak memory':>11}")
    for blocks in (4, 16, 64):
        folder = root / str(blocks)
        in_a_process("--make", str(folder), "--blocks", str(blocks))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        (peak,) = in_a_process("--peak", str(folder))
        print(f"{blocks:>6}  {size / 2**20:>5.0f} MiB  {int(peak) / 2**10:>7.0f} MiB", flush=True)


def speed(root: Path) -> None:
    """Print the time of each method as a multiple of a forward pass."""
    folder = root / "model"
    make_model(folder, 8)
    passes = forward(folder)
    print(f"{'method':<10}  forward passes")
    for method in METHODS:
        print(f"{method:<10}  {prune(folder, method) / passes:>14.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="peak memory by number of blocks")
    parser.add_argument("--speed", action="store_true", help="time in forward passes")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_model(arguments.make, arguments.blocks)
    elif arguments.peak:
        prune(arguments.peak, "wanda")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    else:
        with tempfile.TemporaryDirectory() as root:
            if arguments.memory or not arguments.speed:
                memory(Path(root))
            if arguments.speed or not arguments.memory:
                speed(Path(root))


if __name__ == "__main__":
    main()
