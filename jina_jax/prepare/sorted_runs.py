"""Sorted runs: records on disk in shuffle order, from which any range of keys can be read.

A run holds records of one source, and lies in a file of `exchange`: a range of keys is one range of
each run's bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from jina_jax.prepare.exchange import BUCKETS, BucketWriter, Exchange, Layout, Rows
from jina_jax.system.arrow import joined, map_table, write_table
from jina_jax.system.store import StoredFile
from jina_jax.text.identity import HASH_BYTES, NO_TEXT, hash_words

KEYS = 1 << 64
_RUN_BYTES = 768 << 20
"""Records held in memory before a run is written."""
BATCH_ROWS = 4096
TEXTS = ("query", "positive", "negative")
LABEL, GOLD = "label", "gold"
"""Columns of a record's label, and of the score of a scored pair."""


class Columns(NamedTuple):
    """What the records of any source have, and those of the others lack."""

    texts: int = 2
    """2 where all sources are pairs; 3 where one is of triplets, and pairs have no negative."""
    labels: bool = False
    scores: bool = False


def schema(columns: Columns) -> pa.Schema:
    """Columns of runs and of the tables made of them."""
    return pa.schema(
        {
            "key": pa.uint64(),
            "source": pa.uint16(),  # position among the configured sources
            "position": pa.int64(),  # of the record in its source
            "row": pa.int64(),
            "file": pa.dictionary(pa.int32(), pa.string()),
            **{f"{name}_hash": pa.binary(HASH_BYTES) for name in TEXTS[: columns.texts]},
            **{name: pa.large_string() for name in TEXTS[: columns.texts]},
            **({LABEL: pa.large_string()} if columns.labels else {}),
            **({GOLD: pa.float32()} if columns.scores else {}),
        }
    )


def shuffle_keys(
    query_hashes: Sequence[bytes], positive_hashes: Sequence[bytes], seed: int
) -> np.ndarray:
    """uint64 [N]: places of records in the global shuffle. Records of an equal query and positive
    share it, so that triplets of one pair lie together.
    """
    digest, seed = xxhash.xxh3_64_intdigest, seed % KEYS
    keys = [digest(q + p, seed) for q, p in zip(query_hashes, positive_hashes, strict=True)]
    return np.array(keys, np.uint64)


def key_ranges(parts: int) -> list[tuple[int, int]]:
    """Splits the keys evenly into `parts` half-open ranges, in order."""
    bounds = [KEYS * i // parts for i in range(parts + 1)]
    return list(pairwise(bounds))


def partition_ranges(
    size_bytes: Sequence[int], parts: int, most_bytes: int
) -> list[tuple[int, int]]:
    """Splits the keys into half-open ranges, in order.

    Args:
      size_bytes: of the records of each bucket.
      parts: of as many buckets each, a power of two, at most BUCKETS.
      most_bytes: a part with more is split.
    """
    width, bucket_keys = BUCKETS // parts, KEYS // BUCKETS
    found: list[tuple[int, int]] = []
    for first in range(0, BUCKETS, width):
        held = sum(size_bytes[first : first + width])
        pieces = max(1, -(-held // most_bytes))
        keys = width * bucket_keys
        bounds = [first * bucket_keys + keys * i // pieces for i in range(pieces + 1)]
        found += pairwise(bounds)
    return found


def record_layout(columns: Columns) -> Layout:
    """Of the records of a run: a text more than they have, the file; where that is missing, it is
    the file of the record before.
    """
    gold = [(GOLD, "<f4")] if columns.scores else []
    fields = [("key", "<u8"), ("position", "<i8"), ("row", "<i8")]
    hashes = ("hashes", "<u8", (columns.texts, HASH_BYTES // 8))
    return Layout((*fields, hashes, *gold), columns.texts + columns.labels + 1)


class RunNote(NamedTuple):
    """What an exchange tells of a run."""

    source: int
    """Position among the configured sources."""
    row_base: int
    """Lines or rows of the file before the run's block."""
    position_base: int
    """Records of the source before the run's block."""
    columns: tuple[int, bool, bool]
    """`Columns` of the source."""


class RunWriter:
    """Collects the records of one block and writes a run whenever there is enough."""

    def __init__(
        self, stem: StoredFile, columns: Columns, seed: int,
        on_duplicates: Callable[[pa.Table, pa.Table], None], run_bytes: int = _RUN_BYTES,
    ):  # fmt: skip
        """Starts without a run.

        Args:
          stem: name of the runs, see `run_file`.
          columns: what the records of the source have.
          seed: of the shuffle.
          on_duplicates: takes records of `schema` that are left out, and for each the equal one
            that stays. Equal ones of different runs are left.
          run_bytes: records held in memory, roughly; twice as much while a run is written.
        """
        self._stem, self._columns, self._seed = stem, columns, seed
        self._on_duplicates, self._run_bytes = on_duplicates, run_bytes
        self._layout = record_layout(columns)
        self._fields: list[np.ndarray] = []
        self._texts: list[pa.Array] = []
        self._labels: list[np.ndarray] = []
        self._files: dict[str, int] = {}
        self._file_numbers: list[np.ndarray] = []
        self._held_bytes = self._records = 0
        self.places: list[int] = []
        """`places_at` of each run."""

    def add(
        self,
        texts: Sequence[Sequence[str]],
        hashes: Sequence[Sequence[bytes]],
        files: Sequence[str],
        rows: Sequence[int],
        labels: Sequence[str] = (),
        scores: Sequence[float] = (),
    ) -> None:
        """Takes records, by column; labels and scores are none or one a record."""
        count = len(rows)
        fields_N = np.zeros(count, self._layout.dtype)
        fields_N["key"] = shuffle_keys(hashes[0], hashes[1], self._seed)
        fields_N["position"] = np.arange(self._records, self._records + count)
        fields_N["row"] = rows
        for place, digests in enumerate(hashes):
            fields_N["hashes"][:, place] = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        if self._columns.scores:
            fields_N[GOLD] = scores
        columns = [*texts, *([labels] if self._columns.labels else [])]
        by_row: list[str | None] = [None] * (count * len(columns))
        for place, column in enumerate(columns):
            by_row[place :: len(columns)] = column
        found = pa.array(by_row, pa.large_string())
        told = pa.array(files, pa.large_string()).dictionary_encode()
        names = told.dictionary.to_pylist()
        number_F = np.array([self._files.setdefault(name, len(self._files)) for name in names])
        self._file_numbers.append(number_F[told.indices.to_numpy()])
        self._fields.append(fields_N)
        self._texts.append(found)
        self._records += count
        self._held_bytes += fields_N.nbytes + found.nbytes
        if self._held_bytes >= self._run_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is held as a run."""
        if not self._fields:
            return
        fields_N, file_N = np.concatenate(self._fields), np.concatenate(self._file_numbers)
        names = pa.array(list(self._files), pa.large_string())
        texts = pa.concat_arrays([*self._texts, names])
        self._fields, self._texts, self._file_numbers, self._held_bytes = [], [], [], 0
        width = self._layout.texts - 1
        place_NT = np.arange(len(fields_N) * width).reshape(-1, width)
        place_NT = np.hstack([place_NT, len(fields_N) * width + file_N[:, None]])
        rows = Rows(fields_N, texts, place_NT)
        words_Nx = fields_N["hashes"].reshape(len(fields_N), -1)
        if self._columns.texts == len(TEXTS) and self._columns.labels:
            # Negatives of two labels cannot be those of one record.
            labels = texts.take(pa.array(place_NT[:, -2])).dictionary_encode()
            label_N = labels.indices.to_numpy().astype(np.uint64)
            words_Nx = np.hstack([words_Nx, label_N[:, None]])
        order_N, is_first_N = unique_order(fields_N["key"], fields_N["position"], words_Nx)
        if not is_first_N.all():
            lost_N, kept_N = lost_and_kept(order_N, is_first_N)
            for start in range(0, len(lost_N), BATCH_ROWS):
                part = slice(start, start + BATCH_ROWS)
                parts = (_taken(rows, of[part], self._columns) for of in (lost_N, kept_N))
                self._on_duplicates(*parts)
        order_N = order_N[is_first_N]
        key_N = fields_N["key"][order_N]
        bucket_N = key_N // np.uint64(KEYS // BUCKETS)
        named_N = file_N[order_N]
        is_same = (named_N[1:] == named_N[:-1]) & (bucket_N[1:] == bucket_N[:-1])
        place_NT[order_N[1:][is_same], width] = -1
        with run_file(self._stem, len(self.places)).write() as path:
            with BucketWriter(path, self._layout) as writer:
                writer.add(rows, order_N, key_N)
            self.places.append(writer.places_at)


def run_file(stem: StoredFile, number: int) -> StoredFile:
    """The file of a writer's run."""
    return stem.store.file(f"{stem.name}-{number:05d}.run")


def unique_order(
    key_N: np.ndarray,
    position_N: np.ndarray,
    words_Nx: np.ndarray,
    rank_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Rows in shuffle order, equal ones together, and which of them begin a group of equals.

    Args:
      key_N: uint64, of `shuffle_key`.
      position_N: of equal rows and ranks, the one with the least comes first.
      words_Nx: uint64; rows are equal where they are. Of one key, those that don't lie together.
      rank_N: comes before the position.
    """
    order = np.argsort(key_N, kind="stable")
    same_key = key_N[order[1:]] == key_N[order[:-1]]
    # Sorting by all columns is slow and matters only among rows that share a key.
    shares = np.zeros(len(order), bool)
    shares[1:] |= same_key
    shares[:-1] |= same_key
    rows = order[shares]
    ranks = () if rank_N is None else (rank_N[rows],)
    by = (position_N[rows], *ranks, *words_Nx[rows].T, key_N[rows])
    order[shares] = rows[np.lexsort(by)]
    is_first = np.ones(len(order), bool)
    # A group of equals shares its key.
    twins = np.flatnonzero(same_key) + 1
    is_first[twins] = (words_Nx[order[twins]] != words_Nx[order[twins - 1]]).any(1)
    return order, is_first


def lost_and_kept(order_N: np.ndarray, is_first_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `unique_order`: the rows that begin no group, and for each that which begins its group."""
    first_N = np.maximum.accumulate(np.where(is_first_N, np.arange(len(order_N)), 0))
    return order_N[~is_first_N], order_N[first_N[~is_first_N]]


def read_range(exchange: Exchange, first_key: int, end_key: int, schema: pa.Schema) -> pa.Table:
    """Records of all runs whose key lies in a range.

    Args:
      exchange: of runs, each with its `RunNote`.
      first_key: least key.
      end_key: one above the greatest key, at most KEYS.
      schema: of the table.
    Returns: a table without order; rows and positions count from the start of the file and of the
      source.
    """
    width = KEYS // BUCKETS
    first, end = first_key // width, -(-end_key // width)
    is_whole = first_key % width == 0 and end_key % width == 0
    found = [schema.empty_table()]
    bases, kinds = _run_notes(exchange)
    for columns, numbers in kinds:
        for rows, file_N in exchange.windows(record_layout(columns), first, end, numbers):
            source_N, row_N, position_N = bases[file_N].T
            rows.fields_N["row"] += row_N
            rows.fields_N["position"] += position_N
            files = _named_files(rows)
            if not is_whole:
                key_N = rows.fields_N["key"]
                row_R = np.flatnonzero((key_N >= first_key) & (key_N <= np.uint64(end_key - 1)))
                width = record_layout(columns).texts
                place_RT = row_R[:, None] * width + np.arange(width)
                rows = Rows(rows.fields_N[row_R], rows.texts, place_RT)
                source_N, files = source_N[row_R], files.take(pa.array(row_R))
            found.append(_table(rows, columns, source_N, files, schema))
    return joined(pa.concat_tables(found))


# A process reads many ranges of the same runs.
@lru_cache(maxsize=1)
def _run_notes(exchange: Exchange) -> tuple[np.ndarray, list[tuple[Columns, np.ndarray]]]:
    """Source, row base and position base of each run; and which runs have which columns."""
    notes = [RunNote(*note) for note in exchange.given().notes]
    bases = np.array([note[:3] for note in notes], np.int64).reshape(-1, 3)
    kinds: dict[Columns, list[int]] = {}
    for number, note in enumerate(notes):
        kinds.setdefault(Columns(*note.columns), []).append(number)
    return bases, [(columns, np.array(of_kind)) for columns, of_kind in sorted(kinds.items())]


def _named_files(rows: Rows) -> pa.DictionaryArray:
    """The file of each row, which is missing where it is that of the row before."""
    texts = rows.fields_N["lengths"].shape[1]
    names = rows.texts.take(pa.array(np.arange(texts - 1, len(rows.texts), texts)))
    number_N = np.cumsum(names.is_valid().to_numpy(zero_copy_only=False)) - 1
    told = names.drop_null().cast(pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(told.indices.take(pa.array(number_N)), told.dictionary)


def _taken(rows: Rows, row_R: np.ndarray, columns: Columns) -> pa.Table:
    """Some of the rows that a writer holds; rows count from the start of the block."""
    assert rows.place_NT is not None
    some = Rows(rows.fields_N[row_R], rows.texts, rows.place_NT[row_R])
    names = rows.texts.take(pa.array(rows.place_NT[row_R, -1])).cast(pa.string())
    source_N = np.zeros(len(row_R))
    return _table(some, columns, source_N, names.dictionary_encode(), schema(columns))


def _table(
    rows: Rows, columns: Columns, source_N: np.ndarray, files: pa.DictionaryArray, wanted: pa.Schema
) -> pa.Table:
    """Rows of a run as a table of `schema`; null where it has columns that they lack."""
    fields_N = rows.fields_N
    count, width = len(fields_N), columns.texts + columns.labels + 1
    found: dict[str, pa.Array] = {
        "source": pa.array(source_N.astype(np.uint16)),
        "file": files,
        **{name: pa.array(fields_N[name].copy()) for name in ("key", "position", "row")},
    }
    if columns.scores:
        found[GOLD] = pa.array(fields_N[GOLD].copy())
    for place, name in enumerate(TEXTS[: columns.texts]):
        content = pa.py_buffer(np.ascontiguousarray(fields_N["hashes"][:, place]))
        kind = pa.binary(HASH_BYTES)
        found[f"{name}_hash"] = pa.Array.from_buffers(kind, count, [None, content])
    for place, name in enumerate([*TEXTS[: columns.texts], *([LABEL] if columns.labels else [])]):
        where = np.arange(place, count * width, width)
        where = where if rows.place_NT is None else rows.place_NT[:, place]
        found[name] = rows.texts.take(pa.array(where))
    arrays = [found[f.name] if f.name in found else pa.nulls(count, f.type) for f in wanted]
    return pa.Table.from_arrays(arrays, schema=wanted)


def count_sources(source_N: np.ndarray, sources: int) -> tuple[int, ...]:
    """How many rows each source has."""
    return tuple(int(n) for n in np.bincount(source_N, minlength=sources))


def batches(table: pa.Table, rows: np.ndarray, most: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """The numbered rows of a table, at most so many at a time."""
    for start in range(0, len(rows), most):
        yield table.take(pa.array(rows[start : start + most]))


def write_rows(rows: np.ndarray, file: StoredFile) -> None:
    """Writes which rows of a table are meant."""
    write_table(pa.table({"row": pa.array(rows.astype(np.int32))}), file)


def read_rows(file: StoredFile) -> np.ndarray:
    """Reads what `write_rows` wrote: int32, ascending."""
    return map_table(file.local()).column("row").to_numpy()


def negative_places(table: pa.Table, row_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pair of a query and a positive begins, and its negatives.

    Args:
      table: of triplets, some without a negative.
      row_N: rows of one source, in shuffle order, where triplets of one pair follow each other.
    Returns: bool [N], which rows have another query, positive or label than the one before; int64
      [N], the place of each row's negative among those of its pair, 0, 1, ..., and -1 where it has
      none.
    """
    rows = table.select([f"{name}_hash" for name in TEXTS]).take(pa.array(row_N))
    words_Nx = hash_words(*rows.columns[:2])
    is_other = np.ones(len(rows), bool)
    is_other[1:] = (words_Nx[1:] != words_Nx[:-1]).any(axis=1)
    if LABEL in table.column_names:
        label_N = table.column(LABEL).take(pa.array(row_N)).to_numpy()
        is_other[1:] |= label_N[1:] != label_N[:-1]
    hashes = rows.column(2)
    is_there = pc.fill_null(pc.not_equal(hashes, pa.scalar(NO_TEXT, hashes.type)), False).to_numpy()
    before_N = np.cumsum(is_there) - is_there
    first_N = np.maximum.accumulate(np.where(is_other, np.arange(len(row_N)), 0))
    return is_other, np.where(is_there, before_N - before_N[first_N], -1)


def record_begins(table: pa.Table, row_N: np.ndarray, negatives: int) -> np.ndarray:
    """Bool [N]: which rows begin a record; the others hold another negative of the row before.

    Args:
      table: of records.
      row_N: rows of one source, in shuffle order.
      negatives: most of a record; 0 for pairs.
    """
    if not negatives:
        return np.ones(len(row_N), bool)
    is_other, place_N = negative_places(table, row_N)
    return is_other | ((place_N > 0) & (place_N % negatives == 0))
