"""Preparation beside plain processes that do the same work and nothing else.

    python benchmarks/prepare_speed.py --pairs 2000000

Both normalise, hash, deduplicate, shuffle globally and write 16 tables of pairs, with the same
number of processes, from the same JSON lines. The plain one keeps no ledger, no origin of a record
and no markers, holds nothing out and cannot be resumed. Peak memory is the largest sum of the
proportional set sizes of all processes, sampled ten times a second.
"""

import json
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import tyro

from jina_jax.config import DataConfig, EngineConfig, SourceConfig
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.ingest import plan_blocks
from jina_jax.prepare.pipeline import Pipeline, dedup_stage, read_stage, split_stage
from jina_jax.system.store import open_store
from jina_jax.text.identity import hash_normalised, normalise

SHARDS = 16


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pairs: int = 2_000_000
    """One in twenty is a duplicate in another spelling, one in fifty not ASCII."""
    workers: int = 2
    folder: Path | None = None
    """Work here, and keep the input for another run; a temporary folder otherwise."""
    only: str = ""
    """`plain` or `engine`; both otherwise."""


def input_in(folder: Path, pairs: int) -> Path:
    """A file of so many pairs in a folder, which is made with it where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pairs-{pairs}.jsonl"
    if not path.exists():
        _write_input(path, pairs)
    return path


def _write_input(path: Path, pairs: int) -> None:
    """Pairs of about 140 bytes of words, the same ones every time."""
    source = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(source.choices(letters, k=source.randint(2, 10))) for _ in range(20_000)]
    query = positive = ""
    with path.open("w", encoding="utf-8") as file:
        for i in range(pairs):
            if i % 20 == 19:
                query, positive = "  " + query.title(), positive.upper()
            else:
                query = " ".join(source.choices(words, k=6)) + (" é" if i % 50 == 0 else "") + "?"
                positive = " ".join(source.choices(words, k=14)) + "."
            pair = {"query": query, "positive": positive}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


def plain(source: Path, folder: Path, workers: int) -> int:
    """The same steps in two maps over plain processes; returns the number of pairs left."""
    step = 32 << 20
    starts = range(0, source.stat().st_size, step)
    spans = [(source, start, start + step, folder) for start in starts]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_plain_map, spans, chunksize=1)
        return sum(pool.map(_plain_reduce, [(s, folder) for s in range(SHARDS)], chunksize=1))


def _plain_map(arguments: tuple[Path, int, int, Path]) -> None:
    source, start, end, folder = arguments
    queries, positives, hashes = [], [], []
    with source.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        while file.tell() < end and (line := file.readline()):
            pair = json.loads(line)
            query, positive = pair["query"], pair["positive"]
            a, b = normalise(query), normalise(positive)
            if a and b and a != b:
                queries.append(query)
                positives.append(positive)
                hashes.append(hash_normalised(a) + hash_normalised(b))
    words_Nx4 = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 4)
    key_N = words_Nx4[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ words_Nx4[:, 2]
    table = pa.table(
        {
            "key": key_N,
            "hash": pa.array(hashes, pa.binary(32)),
            "query": queries,
            "positive": positives,
        }
    )
    shard_N = key_N >> np.uint64(60)
    for shard in range(SHARDS):
        mine = table.take(pa.array(np.flatnonzero(shard_N == shard)))
        with pa.ipc.new_file(folder / f"run-{shard:02d}-{start:015d}", table.schema) as writer:
            writer.write_table(mine)


def _plain_reduce(arguments: tuple[int, Path]) -> int:
    shard, folder = arguments
    runs = sorted(folder.glob(f"run-{shard:02d}-*"))
    table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(r))).read_all() for r in runs])
    words_Nx4 = np.frombuffer(b"".join(table.column("hash").to_pylist()), "<u8").reshape(-1, 4)
    order = np.lexsort((*words_Nx4.T, table.column("key").to_numpy()))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (words_Nx4[order][1:] != words_Nx4[order][:-1]).any(1)
    unique = table.take(pa.array(order[is_first]))
    with pa.ipc.new_file(folder / f"shard-{shard:02d}", table.schema) as writer:
        writer.write_table(unique.combine_chunks())
    return len(unique)


def engine(source: Path, folder: Path, workers: int) -> int:
    """The stages of `prepare` before tokenising; returns the number of pairs left."""
    records = sum(1 for _ in source.open("rb"))
    config = DataConfig(
        (SourceConfig("pairs", paths=(str(source),)),),
        records_per_shard=-(-records // SHARDS),
        eval_pairs=1000,
        engine=EngineConfig("local", workers),
    )
    store = open_store(str(folder / "work"), "", 0, "work")
    run = Pipeline(config, store, progress=False)
    run.blocks, run.engine = plan_blocks(config.sources), LocalEngine(workers)
    try:
        reads, runs = read_stage(run)
        selected, dedups = dedup_stage(run, reads, runs)
        left = [sum(part.unique[0] for part in dedups)]
        split_stage(run, selected, left)
    finally:
        run.engine.close()
    assert len(selected.partitions) >= SHARDS
    return left[0]


def measured(work: Callable[[], int]) -> tuple[int, float, float]:
    """Result, seconds, and MiB at the peak of this process and its children."""
    peak_bytes, stop = 0, threading.Event()

    def sample() -> None:
        nonlocal peak_bytes
        me = psutil.Process()
        while not stop.wait(0.1):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak_bytes = max(peak_bytes, total)

    thread = threading.Thread(target=sample)
    thread.start()
    started = time.perf_counter()
    try:
        result = work()
    finally:
        took_s = time.perf_counter() - started
        stop.set()
        thread.join()
    return result, took_s, peak_bytes / 2**20


def main(options: Options) -> None:
    """Prints seconds and MiB of both."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        source = input_in(folder, options.pairs)
        size_mib = source.stat().st_size / 2**20
        print(
            f"{options.pairs:,} pairs, {size_mib:,.0f} MiB, "
            f"{options.workers} processes, load {os.getloadavg()[0]:.1f}"
        )
        took: dict[str, float] = {}
        for name, work in (("plain", plain), ("engine", engine)):
            if options.only in ("", name):
                scratch = folder / name
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                run = lambda work=work, scratch=scratch: work(source, scratch, options.workers)  # noqa: E731
                left, took[name], peak_mib = measured(run)
                rate = options.pairs / took[name]
                print(
                    f"{name:7} {took[name]:7.1f} s  {rate:10,.0f} pairs/s  "
                    f"peak {peak_mib:6,.0f} MiB  {left:,} left",
                    flush=True,
                )
                shutil.rmtree(scratch)
        if len(took) == 2:
            print(f"engine / plain = {took['engine'] / took['plain']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
