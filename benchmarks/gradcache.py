"""Training with cached gradients (GradCache) beside sentence-transformers'.

Runs `train_speed.py` on texts of one length with `--mini-batch`: both sides start from the same
random T5 weights, train on the same pairs and hold the activations of the same number of texts at a
time. Each side is a process of its own, in turn; the ratio of their rates and the peak memory of
each are printed.

    python benchmarks/gradcache.py
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Options:
    """What to measure; the rest is as in `train_speed.py`."""

    mini_batches: tuple[int, ...] = (16,)
    """Texts encoded at once with their activations; 0 encodes the batch at once."""
    batch_size: int = 64
    """Pairs in a batch."""
    max_tokens: int = 64
    """Tokens of every text."""
    batches: int = 1
    """Each side trains on these twice; the second pass is timed."""
    rounds: int = 3
    """Pairs of processes; the ratio is the median over the rounds."""
    size: str = "small"
    """Shape of the encoder."""


def main() -> None:
    """Runs the benchmark."""
    options = tyro.cli(Options, description=__doc__)
    for mini_batch in options.mini_batches:
        print(f"{options.batch_size} pairs, {mini_batch or 'all'} texts at a time", flush=True)
        command = [
            sys.executable, str(Path(__file__).with_name("train_speed.py")), "--fixed-length",
            f"--mini-batch={mini_batch}", f"--batch-size={options.batch_size}",
            f"--max-tokens={options.max_tokens}", f"--batches={options.batches}",
            f"--rounds={options.rounds}", f"--model={options.size}",
        ]  # fmt: skip
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
