"""Training on a GPU beside sentence-transformers, after the speed that the GPU can reach at all.

First the ceiling: one large matrix product in bfloat16, in JAX and in torch. Then `train_speed.py`
for small, base and large at 64, 128 and 512 tokens without padding and on real lengths, in
bfloat16, sentence-transformers with torch's scaled-dot-product attention. Needs one GPU, JAX with
CUDA and torch with CUDA; `--toy` runs the same way on a CPU in a minute, and its figures mean
nothing.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --toy
"""

import importlib.metadata
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

REPEATS = 20


@dataclass(frozen=True)
class Options:
    """What to measure."""

    toy: bool = False
    """A tiny model and small products on the CPU, to try the benchmark itself."""
    sizes: tuple[str, ...] = ("small", "base", "large")
    """Shapes of `train_speed.py`."""
    lengths: tuple[int, ...] = (64, 128, 512)
    """Tokens of each text, without padding; the longest is also the limit of the real lengths."""
    tokens_per_batch: int = 65536
    """Pairs in a batch are chosen so that it has this many tokens without padding."""
    rounds: int = 3
    """Pairs of processes each."""
    gemm: Literal["", "jax", "torch"] = ""
    """Set by the benchmark itself: measure the product and print TFLOP/s."""


def _product_tflops_per_s(options: Options) -> float:
    """The best of several products of square matrices, bfloat16."""
    size = 512 if options.toy else 8192
    seconds = []
    if options.gemm == "jax":
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_platforms", "cpu" if options.toy else "cuda")
        a = jnp.ones((size, size), jnp.bfloat16)
        product = jax.jit(lambda x: x @ x)
        product(a).block_until_ready()
        for _ in range(REPEATS):
            began = time.perf_counter()
            product(a).block_until_ready()
            seconds.append(time.perf_counter() - began)
    else:
        import torch

        device = "cpu" if options.toy else "cuda"
        b = torch.ones((size, size), dtype=torch.bfloat16, device=device)
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            (b @ b)[0, 0].item()
            seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e12


def _device(options: Options) -> str:
    if options.toy:
        return f"CPU ({platform.processor() or platform.machine()}), toy sizes"
    import torch

    return str(torch.cuda.get_device_name())


def _measure(options: Options) -> None:
    packages = ("jax", "flax", "torch", "transformers", "sentence-transformers")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    print(f"device: {_device(options)}\nPython {platform.python_version()}, {versions}", flush=True)
    toy = ["--toy"] if options.toy else []
    for side in ("jax", "torch"):
        subprocess.run([sys.executable, __file__, f"--gemm={side}", *toy], check=True)
    sizes = ("toy",) if options.toy else options.sizes
    lengths = (16, 32) if options.toy else options.lengths
    tokens = 512 if options.toy else options.tokens_per_batch
    for size in sizes:
        for length in (*lengths, 0):
            limit = length or max(lengths)
            named = f"texts of {length} tokens" if length else f"real lengths up to {limit}"
            print(f"\n{size}, {named}", flush=True)
            subprocess.run(
                [
                    sys.executable, str(Path(__file__).with_name("train_speed.py")),
                    f"--model={size}", f"--max-tokens={limit}",
                    f"--batch-size={tokens // (2 * limit)}",
                    f"--rounds={1 if options.toy else options.rounds}", "--batches=4",
                    "--compute-dtype=bfloat16", f"--device={'cpu' if options.toy else 'cuda'}",
                    *(["--fixed-length"] if length else []),
                ],
                check=True,
            )  # fmt: skip


def main() -> None:
    """Runs the benchmark, or one product of it."""
    options = tyro.cli(Options, description=__doc__)
    if options.gemm:
        print(f"{options.gemm}: {_product_tflops_per_s(options):.2f} TFLOP/s in bfloat16")
    else:
        _measure(options)


if __name__ == "__main__":
    main()
