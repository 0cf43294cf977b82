"""Sorted runs: records on disk in shuffle order, from which any key range can be read.

A run is an Arrow IPC file with one record batch, sorted by key. It is memory-mapped, so that
reading a key range of many runs touches only the pages of that range.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from jina_jax.system.arrow import joined, map_table, write_table
from jina_jax.system.atomic import write_atomically
from jina_jax.text.identity import HASH_BYTES, NO_TEXT, hash_words

KEYS = 1 << 64
_RUN_BYTES = 48 << 20
"""Records held in memory before a run is written."""
BATCH_ROWS = 4096
TEXTS = ("query", "positive", "negative")


def schema(texts: int) -> pa.Schema:
    """Columns of runs and of the tables made of them.

    Args:
      texts: 2 where all sources are pairs; 3 where one is of triplets, and pairs have no negative.
    """
    return pa.schema(
        {
            "key": pa.uint64(),
            "source": pa.uint16(),  # position among the configured sources
            "position": pa.int64(),  # of the record in its source
            "row": pa.int64(),
            "file": pa.dictionary(pa.int32(), pa.string()),
            **{f"{name}_hash": pa.binary(HASH_BYTES) for name in TEXTS[:texts]},
            **{name: pa.large_string() for name in TEXTS[:texts]},
        }
    )


def shuffle_key(query_hash: bytes, positive_hash: bytes, seed: int) -> int:
    """Place of a record in the global shuffle, 0 ≤ key < KEYS: records of an equal query and
    positive share it, so that triplets of one pair lie together.
    """
    return xxhash.xxh3_64_intdigest(query_hash + positive_hash, seed % KEYS)


def key_ranges(parts: int) -> list[tuple[int, int]]:
    """Splits the keys evenly into `parts` half-open ranges, in order."""
    bounds = [KEYS * i // parts for i in range(parts + 1)]
    return list(pairwise(bounds))


class RunWriter:
    """Collects the records of one block and writes a run whenever there is enough."""

    def __init__(self, stem: Path, source: int, schema: pa.Schema, seed: int, run_bytes: int = _RUN_BYTES):  # fmt: skip  # noqa: E501
        """Starts without a run.

        Args:
          stem: path of the runs, which get a number and an ending.
          source: position among the configured sources.
          schema: of the runs.
          seed: of the shuffle.
          run_bytes: records held in memory, roughly.
        """
        self._stem, self._source, self._schema, self._seed = stem, source, schema, seed
        self._run_bytes = run_bytes
        self._batches: list[pa.RecordBatch] = []
        self._held_bytes = self._records = 0
        self.paths: list[str] = []
        self.text_bytes = 0

    def add(
        self,
        texts: Sequence[Sequence[str]],
        hashes: Sequence[Sequence[bytes]],
        files: Sequence[str],
        rows: Sequence[int],
    ) -> None:
        """Takes records, by column."""
        count = len(rows)
        columns: dict[str, pa.Array] = {
            "key": pa.array(
                [shuffle_key(q, p, self._seed) for q, p in zip(*hashes[:2], strict=True)],
                pa.uint64(),
            ),
            "source": pa.array(np.full(count, self._source, np.uint16)),
            "position": pa.array(np.arange(self._records, self._records + count)),
            "row": pa.array(rows, pa.int64()),
            "file": pa.array(files, pa.string()).dictionary_encode(),
        }
        for name, text, digest in zip(TEXTS, texts, hashes, strict=False):
            columns[name] = pa.array(text, pa.large_string())
            columns[f"{name}_hash"] = pa.array(digest, pa.binary(HASH_BYTES))
        arrays = [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in self._schema]  # fmt: skip  # noqa: E501
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._records += count
        self._batches.append(batch)
        self._held_bytes += batch.nbytes
        self.text_bytes += batch.nbytes
        if self._held_bytes >= self._run_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is held as a run."""
        if not self._batches:
            return
        table = joined(pa.Table.from_batches(self._batches, self._schema))
        self._batches, self._held_bytes = [], 0
        # Stable: equal keys stay in the order of the source.
        order = np.argsort(table.column("key").to_numpy(), kind="stable")
        path = self._stem.with_name(f"{self._stem.name}-{len(self.paths):05d}.arrow")
        write_table(table.take(pa.array(order)), path)
        self.paths.append(str(path))


@dataclass(frozen=True)
class Run:
    """A run, and what comes before its block."""

    path: str
    row_base: int
    """Lines or rows of the file before the block."""
    position_base: int
    """Records of the source before the block."""


def save_runs(runs: Sequence[Run], path: Path) -> None:
    """Writes a list of runs, which may be too long to be handed to each task."""
    write_atomically(path, json.dumps([astuple(run) for run in runs]).encode())


def load_runs(path: Path) -> list[Run]:
    """Reads what `save_runs` wrote."""
    return [Run(*values) for values in json.loads(path.read_bytes())]


def read_range(runs: Sequence[Run], first_key: int, end_key: int, schema: pa.Schema) -> pa.Table:
    """Records of many runs whose key lies in a range.

    Args:
      runs: of any sources.
      first_key: least key.
      end_key: one above the greatest key, at most KEYS.
      schema: of the runs.
    Returns: a table run by run, sorted within each; rows and positions count from the start of
      the file and of the source.
    """
    slices = [schema.empty_table()]
    for run in runs:
        table = map_table(Path(run.path))
        keys_N = table.column("key").to_numpy()
        first = int(np.searchsorted(keys_N, np.uint64(first_key)))
        end = len(keys_N)
        if end_key < KEYS:
            end = int(np.searchsorted(keys_N, np.uint64(end_key)))
        part = _copied(table.slice(first, end - first))
        for name, base in (("row", run.row_base), ("position", run.position_base)):
            column = pc.add(part.column(name), base)
            part = part.set_column(part.schema.get_field_index(name), name, column)
        slices.append(part.cast(schema))
    return joined(pa.concat_tables(slices))


def _copied(part: pa.Table) -> pa.Table:
    """A table that holds no part of a mapped file, of which a page can be megabytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as writer:
        writer.write_table(part)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def count_sources(source_N: np.ndarray, sources: int) -> tuple[int, ...]:
    """How many rows each source has."""
    return tuple(int(n) for n in np.bincount(source_N, minlength=sources))


def batches(table: pa.Table, rows: np.ndarray, most: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """The numbered rows of a table, at most so many at a time."""
    for start in range(0, len(rows), most):
        yield table.take(pa.array(rows[start : start + most]))


def write_rows(rows: np.ndarray, path: Path) -> None:
    """Writes which rows of a table are meant."""
    write_table(pa.table({"row": pa.array(rows.astype(np.int32))}), path)


def read_rows(path: Path) -> np.ndarray:
    """Reads what `write_rows` wrote: int32, ascending."""
    return map_table(path).column("row").to_numpy()


def negative_places(table: pa.Table, row_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pair of a query and a positive begins, and its negatives.

    Args:
      table: of triplets, some without a negative.
      row_N: rows of one source, in shuffle order, where triplets of one pair follow each other.
    Returns: bool [N], which rows have another query or positive than the one before; int64 [N], the
      place of each row's negative among those of its pair, 0, 1, ..., and -1 where it has none.
    """
    rows = table.select([f"{name}_hash" for name in TEXTS]).take(pa.array(row_N))
    words_Nx = hash_words(*rows.columns[:2])
    is_other = np.ones(len(rows), bool)
    is_other[1:] = (words_Nx[1:] != words_Nx[:-1]).any(axis=1)
    hashes = rows.column(2)
    is_there = pc.fill_null(pc.not_equal(hashes, pa.scalar(NO_TEXT, hashes.type)), False).to_numpy()
    before_N = np.cumsum(is_there) - is_there
    first_N = np.maximum.accumulate(np.where(is_other, np.arange(len(row_N)), 0))
    return is_other, np.where(is_there, before_N - before_N[first_N], -1)
