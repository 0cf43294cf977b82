"""Sorted runs: pairs on disk in shuffle order, from which any key range can be read.

A run is an Arrow IPC file with one record batch, sorted by key. It is memory-mapped, so that
reading a key range of many runs touches only the pages of that range.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from jina_jax.data.normalise import HASH_BYTES
from jina_jax.types import Pair

KEYS = 1 << 64
_RUN_BYTES = 64 << 20
"""Text held in memory before a run is written."""
_BATCH_ROWS = 4096

SCHEMA = pa.schema(
    {
        "key": pa.uint64(),
        "query_hash": pa.binary(HASH_BYTES),
        "positive_hash": pa.binary(HASH_BYTES),
        "source": pa.uint16(),  # position among the configured sources
        "position": pa.int64(),  # of the record in its source
        "row": pa.int64(),
        "file": pa.large_string(),
        "query": pa.large_string(),
        "positive": pa.large_string(),
    }
)


def shuffle_key(query_hash: bytes, positive_hash: bytes, seed: int) -> int:
    """Place of a pair in the global shuffle, 0 ≤ key < KEYS: pairs of equal texts share it."""
    return xxhash.xxh3_64_intdigest(query_hash + positive_hash, seed % KEYS)


def key_ranges(parts: int) -> list[tuple[int, int]]:
    """Splits the keys evenly into `parts` half-open ranges, in order."""
    bounds = [KEYS * i // parts for i in range(parts + 1)]
    return list(pairwise(bounds))


class RunWriter:
    """Collects the pairs of one source and writes a run whenever there is enough."""

    def __init__(self, folder: Path, source: int, seed: int, run_bytes: int = _RUN_BYTES):
        """Starts without a run.

        Args:
          folder: where runs are written.
          source: position among the configured sources.
          seed: of the shuffle.
          run_bytes: text held in memory, roughly.
        """
        self._folder, self._source, self._seed = folder, source, seed
        self._run_bytes = run_bytes
        self._rows: list[tuple] = []
        self._held_bytes = 0
        self.paths: list[Path] = []

    def add(self, pair: Pair, query_hash: bytes, positive_hash: bytes, position: int) -> None:
        """Takes a pair; `position` counts the records of the source."""
        key = shuffle_key(query_hash, positive_hash, self._seed)
        row, file = pair.origin.row, pair.origin.file
        self._rows.append(
            (key, query_hash, positive_hash, self._source, position, row, file, *pair[:2])
        )
        # 400: about what CPython needs for a row besides its characters.
        self._held_bytes += len(pair.query) + len(pair.positive) + 400
        if self._held_bytes >= self._run_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is held as a run."""
        if not self._rows:
            return
        # Stable: equal keys stay in the order of the source.
        self._rows.sort(key=lambda row: row[0])
        columns = list(zip(*self._rows, strict=True))
        arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
        path = self._folder / f"run-{self._source:03d}-{len(self.paths):05d}.arrow"
        write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), path)
        self.paths.append(path)
        self._rows, self._held_bytes = [], 0


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table as one record batch of an uncompressed Arrow IPC file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def map_table(path: Path) -> pa.Table:
    """Memory-maps a table written by `write_table`."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def read_range(paths: Sequence[Path], first_key: int, end_key: int) -> pa.Table:
    """Pairs of many runs whose key lies in a range.

    Args:
      paths: runs.
      first_key: least key.
      end_key: one above the greatest key, at most KEYS.
    Returns: a table of SCHEMA, run by run, sorted within each.
    """
    slices = [SCHEMA.empty_table()]
    for path in paths:
        table = map_table(path)
        keys_N = table.column("key").to_numpy()
        first = int(np.searchsorted(keys_N, np.uint64(first_key)))
        end = len(keys_N)
        if end_key < KEYS:
            end = int(np.searchsorted(keys_N, np.uint64(end_key)))
        slices.append(table.slice(first, end - first))
    return pa.concat_tables(slices).combine_chunks()


def hash_words(column: pa.ChunkedArray) -> np.ndarray:
    """A hash column as uint64 [N, 2], equal where the hashes are."""
    joined = b"".join(chunk.buffers()[1][_span(chunk)] for chunk in column.chunks if len(chunk))
    return np.frombuffer(joined, "<u8").reshape(-1, 2)


def _span(chunk: pa.Array) -> slice:
    return slice(chunk.offset * HASH_BYTES, (chunk.offset + len(chunk)) * HASH_BYTES)


def count_sources(source_N: np.ndarray, sources: int) -> tuple[int, ...]:
    """How many rows each source has."""
    return tuple(int(n) for n in np.bincount(source_N, minlength=sources))


def batches(table: pa.Table, rows: np.ndarray) -> Iterator[pa.Table]:
    """The numbered rows of a table, a few thousand at a time."""
    for start in range(0, len(rows), _BATCH_ROWS):
        yield table.take(pa.array(rows[start : start + _BATCH_ROWS]))
