"""Speed and memory of the feed alone: read, shuffle, pack and hand out pre-tokenised pairs.

Writes shards of synthetic pairs (lengths log-normal, as of questions and passages), then reads
batches of them in a process of its own for every number of records, and prints pairs a second and
the most memory that process and its workers held. The host's memory must not grow with the shards.

    python benchmarks/feed.py
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

WARM_UP_BATCHES = 10


@dataclass(frozen=True)
class Options:
    """What to measure."""

    records: tuple[int, ...] = (100_000, 1_000_000)
    """Pairs in the shards, one measurement each."""
    batch_size: int = 2048
    """Pairs in a batch."""
    batches: int = 150
    """Batches timed, after a warm-up."""
    row_tokens: int = 128
    """Length of a packed row; texts are cut to it."""
    workers: int = 0
    """Processes that read and pack; 0 uses threads of this process."""
    records_per_shard: int = 100_000
    side: str = ""
    """Set by the benchmark itself: read this folder and print the figures as JSON."""


def _write(folder: Path, records: int, options: Options) -> None:
    """Pairs of random ids with random hashes; query lengths around 12, positives around 55."""
    from jina_jax.shards.array_record import ShardWriter, encode_record

    rng = np.random.default_rng(records)
    for first in range(0, records, options.records_per_shard):
        count = min(options.records_per_shard, records - first)
        lengths_NS = np.exp(rng.normal((2.5, 4.0), (0.4, 0.7), (count, 2))).astype(int)
        lengths_NS = np.clip(lengths_NS, 2, 512)
        ids = rng.integers(3, 32000, lengths_NS.max(), dtype=np.uint16)
        hashes = rng.bytes(32 * count)
        with ShardWriter(folder / f"{first:08d}") as writer:
            for i, (query, positive) in enumerate(lengths_NS.tolist()):
                pair = [hashes[32 * i : 32 * i + 16], hashes[32 * i + 16 : 32 * i + 32]]
                writer.write(encode_record(pair, [ids[:query], ids[:positive]]))


def _peak_bytes(process: str) -> int:
    """The most memory that a process held: its high-water mark of resident pages."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _children() -> list[str]:
    """Processes that any thread of this one started."""
    return " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children")).split()


def _read(folder: Path, options: Options) -> dict[str, float]:
    from jina_jax.config import FeedConfig
    from jina_jax.feed.mixture import interleave
    from jina_jax.feed.pipeline import batches
    from jina_jax.shards.array_record import ShardSet

    config = FeedConfig(
        options.batch_size, options.row_tokens, options.row_tokens, options.row_tokens,
        workers=options.workers,
    )  # fmt: skip
    shards = ShardSet(sorted(folder.iterdir()))
    one_source = interleave([(0, np.ones(1))], WARM_UP_BATCHES + options.batches)
    feed = batches({"synthetic": shards}, one_source, config, seed=0)
    for _ in range(WARM_UP_BATCHES):
        next(feed)
    real, positions, peak_bytes, began = 0, 0, 0, time.perf_counter()
    for batch in feed:
        if batch.step == WARM_UP_BATCHES + options.batches - 1:  # while the workers still live
            peak_bytes = _peak_bytes("self") + sum(_peak_bytes(child) for child in _children())
        real += int(np.count_nonzero(batch.arrays.segments_RL))
        positions += batch.arrays.segments_RL.size
    seconds = time.perf_counter() - began
    return {
        "pairs_per_s": options.batches * options.batch_size / seconds,
        "padding_share": 1 - real / positions,
        "peak_bytes": peak_bytes,
    }


def _measure(options: Options) -> None:
    for records in options.records:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), records, options)
            on_disk = sum(f.stat().st_size for f in Path(folder).iterdir())
            flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in
                     ("batch_size", "batches", "row_tokens", "workers")]  # fmt: skip
            command = [sys.executable, __file__, f"--side={folder}", *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{records:,} pairs ({on_disk / 1e6:.0f} MB of shards): "
            f"{figures['pairs_per_s']:,.0f} pairs/s, {figures['padding_share']:.1%} padding, "
            f"peak {figures['peak_bytes'] / 2**20:.0f} MiB",
            flush=True,
        )


def main() -> None:
    """Runs the benchmark, or one measurement of it."""
    options = tyro.cli(Options, description=__doc__)
    if options.side:
        print(json.dumps(_read(Path(options.side), options)))
    else:
        _measure(options)


if __name__ == "__main__":
    main()
