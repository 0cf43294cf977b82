"""Reading shards from a bucket, against reading them from a disk.

Writes a shard of synthetic pairs and puts it into an object store of this machine under many names.
Reads runs of records, from the disk and by ranges from the store, whose every answer waits. Prints
seconds and bytes a record, the first time, when nothing is known of any shard, and again. The store
is one Python process on the same cores, which bounds the rates.

    python benchmarks/bucket_shards.py
    python benchmarks/bucket_shards.py --shards 2000 --records 2048
"""

import dataclasses
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.bucket import BucketShard
from jina_jax.shards.manifest import ShardFile, ends_xxh3
from jina_jax.shards.shard_set import ShardSet
from tests.object_store import ObjectStore


@dataclass(frozen=True)
class Options:
    """What to measure."""

    shards: int = 20
    """In the store, all with the same records."""
    records: int = 100_000
    """Of a shard."""
    record_bytes: int = 200
    run: int = 1024
    """Records read at a time."""
    runs: int = 64
    """Timed, each of another shard as far as there are any."""
    delay_s: float = 0.05
    """Before each answer of the store."""
    threads: int = 16


def _write(path: Path, options: Options) -> ShardFile:
    rng = np.random.default_rng(0)
    tokens = (options.record_bytes - 38) // 2
    with ShardWriter(path) as writer:
        for i in range(options.records):
            ids = rng.integers(3, 32000, tokens, dtype=np.uint16)
            pair = [i.to_bytes(16, "little"), i.to_bytes(16, "big")]
            writer.write(encode_record(pair, [ids[: tokens // 4], ids[tokens // 4 :]]))
    return ShardFile(path.name, options.records, path.stat().st_size, "", ends_xxh3(path))


def _runs(options: Options, seed: int) -> list[int]:
    """First records of runs, spread over all shards."""
    rng = np.random.default_rng(seed)
    shard_R = rng.permutation(options.runs) % options.shards
    within_R = rng.integers(0, options.records // options.run, options.runs) * options.run
    return (shard_R * options.records + within_R).tolist()


class Counted:
    """Bytes and requests that shards fetch."""

    def __init__(self) -> None:
        self.bytes = self.requests = 0
        fetched = BucketShard.fetched

        def counted(shard: BucketShard, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
            self.bytes += sum(end - start for start, end in ranges)
            self.requests += len(ranges)
            return fetched(shard, ranges)

        BucketShard.fetched = counted  # type: ignore[method-assign, assignment]


def _timed(
    what: str, read: Callable[[int], object], firsts: list[int], threads: int, options: Options,
    counted: Counted,
) -> None:  # fmt: skip
    counted.bytes = counted.requests = 0
    began, cpu = time.perf_counter(), _cpu_s()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, firsts))
    seconds, records = time.perf_counter() - began, len(firsts) * options.run
    print(
        f"{what}, {threads} threads: {seconds:.2f} s, {seconds / records * 1e6:.1f} µs a record "
        f"({(_cpu_s() - cpu) / records * 1e6:.1f} of CPU), {counted.bytes / records:.1f} bytes a "
        f"record in {counted.requests} requests",
        flush=True,
    )


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _measure(folder: Path, options: Options) -> None:
    (folder / "buckets" / "bucket").mkdir(parents=True)
    path = folder / "shard"
    file = _write(path, options)
    for i in range(options.shards):
        os.link(path, folder / "buckets" / "bucket" / f"{i:05d}")
    records = [options.records] * options.shards
    local = ShardSet([path] * options.shards, records)
    counted = Counted()
    firsts = _runs(options, 1)
    for what, read in (
        ("disk, read", lambda first: local.read(range(first, first + options.run))),
        ("disk, read_run", lambda first: local.read_run(first, first + options.run)),
    ):
        list(map(read, firsts))
        _timed(what, read, firsts, 1, options, counted)
    server = ObjectStore(folder / "buckets", options.delay_s)
    os.environ |= server.environment
    server.start()
    try:
        files = [dataclasses.replace(file, sha256=f"{i:05d}") for i in range(options.shards)]
        shards = [
            BucketShard(f"s3://bucket/{i:05d}", f, folder / "indexes") for i, f in enumerate(files)
        ]
        remote = ShardSet(shards, records)

        def read_run(first: int) -> object:
            return remote.read_run(first, first + options.run)

        name = f"{options.shards} shards in the store"
        _timed(f"{name}, the first runs", read_run, firsts, options.threads, options, counted)
        _timed(f"{name}, again", read_run, firsts, options.threads, options, counted)
        _timed(f"{name}, again", read_run, firsts, 1, options, counted)
    finally:
        server.kill()


def main() -> None:
    """Runs the benchmark."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), options)


if __name__ == "__main__":
    main()
