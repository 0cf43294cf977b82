r"""Speed and memory of the feed alone: read, shuffle, pack and hand out pre-tokenised pairs.

Writes shards of synthetic pairs (lengths log-normal, as of questions and passages), then reads
batches of them in a process of its own for every number of records, and prints pairs a second and
the most memory that process and its workers held. The host's memory must not grow with the shards.
With --processes it tells too what one of so many hosts does for a pair of the whole batch, beside
one that does it alone: processor time, bytes read, bytes held.

With --delay-s the shards are read from an object store of this machine, one Python process on the
same cores, which waits so long before each answer. With --needed-per-s batches are taken as
training takes them, and what counts is how long it waits.

    python benchmarks/feed.py --processes 1 2 4 8
    python benchmarks/feed.py --records 2000000 --records-per-shard 1000 --delay-s 0.05 \
        --needed-per-s 20000
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
if TYPE_CHECKING:
    from bucket_shards import Counted

    from jina_jax.shards.shard_set import ShardSet

WARM_UP_BATCHES = 10


@dataclass(frozen=True)
class Options:
    """What to measure."""

    records: tuple[int, ...] = (100_000, 1_000_000)
    """Pairs in the shards, one measurement each."""
    batch_size: int = 16_384
    """Pairs in a batch."""
    batches: int = 60
    """Batches timed, after a warm-up."""
    row_tokens: int = 128
    """Length of a packed row; texts are cut to it."""
    processes: tuple[int, ...] = (1,)
    """Hosts, of which the first is measured: it makes its share of each batch's groups."""
    workers: int = 0
    """Processes that read and pack; 0 uses threads of this process."""
    records_per_shard: int = 100_000
    delay_s: float | None = None
    """Of an object store; None reads from the disk."""
    needed_per_s: float = 0.0
    """Pairs a second that training takes; 0 for as many as there come."""
    hosts: int = 1
    """Set by the benchmark itself, as is `side`."""
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


def _children() -> list[str]:
    """Processes that any thread of this one started."""
    return " ".join(p.read_text() for p in Path("/proc/self/task").glob("*/children")).split()


def _bytes(process: str, what: str) -> int:
    """A line of /proc/PROCESS/io or status, in bytes."""
    for name, unit in (("io", 1), ("status", 1024)):
        for line in Path(f"/proc/{process}/{name}").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) * unit
    raise ValueError(what)


def _shards(folder: Path, options: Options) -> "tuple[ShardSet, Counted]":
    """The shards, and what counts the bytes that are fetched of them."""
    from bucket_shards import Counted

    from jina_jax.shards.bucket import BucketShard
    from jina_jax.shards.manifest import ShardFile
    from jina_jax.shards.shard_set import ShardSet
    from jina_jax.shards.verify import ends_xxh3
    from jina_jax.system.hashing import file_sha256

    paths, counted = sorted(folder.iterdir()), Counted()
    records = [options.records_per_shard] * len(paths)
    if options.delay_s is None:
        return ShardSet(paths, records), counted
    indexes = folder.parents[1] / f"indexes-{time.time_ns()}"
    shards = [
        BucketShard(
            f"s3://{folder.name}/{path.name}",
            ShardFile(
                path.name, count, path.stat().st_size, file_sha256(path), ends_xxh3(path)
            ),
            indexes,
        )
        for path, count in zip(paths, records, strict=True)
    ]  # fmt: skip
    return ShardSet(shards, records), counted


def _taken(feed: Iterator[Any], step_s: float, waits: list[float]) -> Iterator[Any]:
    """The batches, each step_s after the one before or later; adds up how long each let wait."""
    due = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(feed, None)
        came = time.perf_counter()
        waits[0] += came - asked
        if batch is None:
            return
        yield batch
        due = max(due + step_s, came)
        time.sleep(max(0.0, due - time.perf_counter()))


def _read(folder: Path, options: Options) -> dict[str, float]:
    from jina_jax.config import FeedConfig
    from jina_jax.feed.mixture import interleave
    from jina_jax.feed.pipeline import Feed, batches, plan_rows, samples_of

    config = FeedConfig(
        options.batch_size, options.row_tokens, options.row_tokens, options.row_tokens,
        workers=options.workers,
    )  # fmt: skip
    shards, counted = _shards(folder, options)
    steps = WARM_UP_BATCHES + options.batches
    one_source = interleave([(0, np.ones(1))], steps)
    groups = range(config.num_groups // options.hosts)
    sources = {"synthetic": shards}
    asked = time.perf_counter()
    buckets = plan_rows(samples_of(sources), one_source, config)
    before_bytes = _bytes("self", "VmRSS")
    feed = batches(Feed(sources, one_source, config, 0, buckets.rows_S), groups=groups)
    real, positions, cut, peak_bytes = 0, 0, 0, 0
    began, began_cpu_s, began_bytes, waited_s = 0.0, 0.0, 0, 0.0
    first_s, first_requests = 0.0, 0

    def read_bytes() -> int:
        # What is fetched is read once more, from memory.
        return _bytes("self", "rchar") if options.delay_s is None else counted.bytes

    step_s = options.batch_size / options.needed_per_s if options.needed_per_s else 0.0
    for batch in _taken(feed, step_s, waits := [0.0]):
        if batch.step == 0:
            first_s, first_requests = time.perf_counter() - asked, counted.requests
        if batch.step < WARM_UP_BATCHES:
            began, began_cpu_s = time.perf_counter(), time.process_time()
            began_bytes, waited_s = read_bytes(), waits[0]
            continue
        if batch.step == steps - 1:  # while the workers still live
            everyone = ["self", *_children()]
            peak_bytes = sum(_bytes(process, "VmHWM") for process in everyone)
        real += int(np.count_nonzero(batch.arrays.segments_RL))
        positions += batch.arrays.segments_RL.size
        cut += batch.cut_tokens
    pairs = options.batches * options.batch_size
    return {
        "pairs_per_s": pairs / (time.perf_counter() - began),
        "cpu_us": 1e6 * (time.process_time() - began_cpu_s) / pairs,
        "read_bytes": (read_bytes() - began_bytes) / pairs,
        "first_s": first_s,
        "first_requests": first_requests,
        "waited_share": (waits[0] - waited_s) / (time.perf_counter() - began),
        "padding_share": 1 - real / positions,
        "cut_share": cut / real,
        "peak_bytes": peak_bytes,
        "held_bytes": peak_bytes - before_bytes,
    }


def _measure(options: Options) -> None:
    for records in options.records:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root) / "buckets" / "shards"
            folder.mkdir(parents=True)
            _write(folder, records, options)
            sizes = [path.stat().st_size for path in folder.iterdir()]
            print(
                f"{records:,} pairs, {sum(sizes) / 1e6:.0f} MB in {len(sizes)} shards", flush=True
            )
            with _stored(folder.parent, options):
                for hosts in options.processes:
                    _measure_one(folder, hosts, options)


@contextmanager
def _stored(buckets: Path, options: Options) -> Iterator[None]:
    if options.delay_s is None:
        yield
        return
    from tests.object_store import ObjectStore

    server = ObjectStore(buckets, options.delay_s)
    os.environ |= server.environment
    server.start()
    try:
        yield
    finally:
        server.kill()


def _measure_one(folder: Path, hosts: int, options: Options) -> None:
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in
             ("batch_size", "batches", "row_tokens", "workers", "records_per_shard",
              "needed_per_s", "delay_s")]  # fmt: skip
    command = [sys.executable, __file__, f"--side={folder}", f"--hosts={hosts}", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  one of {hosts}: batches of {found['pairs_per_s']:,.0f} pairs/s; of each pair "
        f"{found['cpu_us']:.2f} µs of processors and {found['read_bytes']:.0f} bytes read; "
        f"held {found['held_bytes'] / 2**20:.0f} MiB of {found['peak_bytes'] / 2**20:.0f} at most; "
        f"{found['padding_share']:.1%} padding, {found['cut_share']:.3%} cut; the first batch "
        f"after {found['first_s']:.1f} s and {found['first_requests']} requests, "
        f"{found['waited_share']:.1%} of the time waited for",
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
