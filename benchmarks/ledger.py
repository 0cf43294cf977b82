"""A ledger of 100 million rows: how long `inspect` takes to count, and `--why` to find a text.

    python benchmarks/ledger.py --rows 100000000 --folder /somewhere

Rows are planted as tasks of preparation would leave them, and gathered by the same tasks: texts of
some 30 bytes, each of a million in about a hundred rows, of 32 sources and five reasons. Each
question is asked in a process of its own, whose peak memory is told; so is the time with files that
the page cache does not hold, where the kernel lets this user drop them.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro

from jina_jax.prepare.ledger import (
    FILE_ROWS,
    SCHEMA,
    LedgerPart,
    first_word,
    ledger_task,
    open_ledger,
)
from jina_jax.shards.manifest import LEDGER
from jina_jax.system.store import StoredFile

TEXTS = 1_000_000
REASONS = ("duplicate", "unwanted_language", "inconsistent", "too_short", "held_out")
_ASK = """
import resource, sys, time
from pathlib import Path
from jina_jax.prepare import ledger
began = time.perf_counter()
folder, text = Path(sys.argv[1]), sys.argv[2]
if text:
    found = f"{len(list(ledger.dropped_with(folder, text))):,} rows"
else:
    found = f"{sum(ledger.ledger_counts(folder).values()):,} rows counted"
took_s = time.perf_counter() - began
peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{found} in {took_s:.2f} s, peak {peak_mib:,.0f} MiB")
"""


@dataclass(frozen=True)
class Options:
    """What to plant and ask."""

    rows: int = 100_000_000
    folder: Path | None = None
    """Plant here, and keep it for another run; a temporary folder otherwise."""
    workers: int = 2


@cache
def _texts() -> tuple[pa.Array, np.ndarray]:
    texts = [f"the text of number {number:,}, in words" for number in range(TEXTS)]
    return pa.array(texts), np.array([first_word(text) for text in texts], np.uint32)


def plant(folder: Path, number: int, rows: int) -> None:
    """Writes a file of the ledger, by way of a part as a task of preparation leaves it."""
    chance = np.random.default_rng(number)
    query_N, positive_N = chance.integers(0, TEXTS, (2, rows))
    texts, words = _texts()
    source_N = chance.integers(0, 32, rows)
    names = pa.array([f"source_{source:02d}" for source in range(32)])
    files = pa.array([f"raw/source_{source:02d}.jsonl.gz" for source in range(32)])
    columns = {
        "source": names.take(pa.array(source_N)),
        "file": files.take(pa.array(source_N)),
        "row": pa.array(np.arange(rows) + number * rows),
        "stage": pa.repeat("dedup", rows),
        "reason": pa.array(REASONS).take(pa.array(chance.integers(0, len(REASONS), rows))),
        "detail": pa.repeat("same as source_00 raw/source_00.jsonl.gz:17", rows),
        "query": texts.take(pa.array(query_N)),
        "positive": texts.take(pa.array(positive_N)),
        "query_hash": pa.array(words[query_N]),
        "positive_hash": pa.array(words[positive_N]),
    }
    arrays = [columns.get(f.name, pa.nulls(rows, f.type)) for f in SCHEMA]
    part = StoredFile.at(folder / f".part-{number:05d}")
    with open_ledger(part) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
    ledger_task([LedgerPart(part, rows)], StoredFile.at(folder / f"{number:05d}.parquet"))
    part.remove()


def _drop_from_cache(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(options: Options) -> None:
    """Prints size, seconds and MiB."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        ledger = folder / LEDGER
        if not ledger.exists():
            ledger.mkdir(parents=True)
            began = time.perf_counter()
            files = -(-options.rows // FILE_ROWS)
            with ProcessPoolExecutor(options.workers) as pool:
                ends = [options.rows * (i + 1) // files for i in range(files)]
                sizes = np.diff([0, *ends]).tolist()
                list(pool.map(plant, [ledger] * files, range(files), sizes))
            print(f"planted in {time.perf_counter() - began:,.0f} s")
        size_bytes = sum(path.stat().st_size for path in ledger.iterdir())
        files = len(list(ledger.iterdir()))
        print(f"{options.rows:,} rows, {files} files, {size_bytes / 2**30:.2f} GiB")
        for what, text in (
            ("counts", ""),
            ("why, of a hundred rows", "The text of number 77,777, in words"),
            ("why, of none", "a text that is not there"),
        ):
            for state in ("cold", "warm"):
                if state == "cold":
                    _drop_from_cache(ledger)
                # Of this file's own words.
                ask = [sys.executable, "-c", _ASK, str(folder), text]
                said = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
                print(f"{what}, {state}: {said.strip()}, load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
