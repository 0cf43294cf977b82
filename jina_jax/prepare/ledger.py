"""The ledger: every record that did not become a training or held-out pair, and why.

A folder of Parquet files, which any tool can query. Each task of preparation leaves a file of its
own where it drops something. At the end such files are gathered, by tasks too, into ones of at
least `FILE_ROWS` rows, sorted by the hash of the query. A file's metadata has the counts of its
kinds, so that counting reads no rows; the beginning of every text's hash is a column of its own, so
that a text is found without reading texts.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.prepare.sorted_runs import TEXTS
from jina_jax.shards.manifest import LEDGER, OLD_LEDGER_FILE
from jina_jax.system.store import StoredFile
from jina_jax.text.identity import hash_words, normalise, text_hash

LEDGER_VERSION = 1
"""Raise it when the same rows give other files."""
FILE_ROWS = 1 << 18
"""Parts are gathered into a file until they have as many rows: some hundred MiB in memory."""
_GROUP_ROWS = 1 << 15
"""Of a row group, which is what a reader decodes at once."""
_BUFFERED_ROWS = 4096
_HASHES = [f"{name}_hash" for name in TEXTS]
_COUNTS = b"jina_jax.counts"

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        *(pa.field(name, pa.string()) for name in TEXTS),
        *(pa.field(name, pa.uint32()) for name in _HASHES),
    ]
)
_WRITTEN: Mapping[str, Any] = {
    # Hashes neither repeat nor compress.
    "compression": {n: "none" if n in _HASHES else "zstd" for n in SCHEMA.names},
    "use_dictionary": [n for n in SCHEMA.names if n not in _HASHES],
    "write_statistics": ["source", "stage", "reason", *_HASHES],
}


class Dropped(NamedTuple):
    """A row of the ledger."""

    source: str
    file: str
    row: int
    """As in Origin."""
    stage: str
    """`read`, `clean`, `dedup`, the name of a filter, or `split`."""
    reason: str
    detail: str = ""
    score: float | None = None
    """What a scoring filter gave it."""
    query: str | None = None
    """None for a record that could not be read."""
    positive: str | None = None
    negative: str | None = None
    """None for a pair."""


def dropped_rows(
    rows: pa.Table,
    names: Sequence[str],
    stage: str,
    reason: str | pa.Array,
    detail: str | pa.Array = "",
    score: pa.Array | None = None,
) -> pa.Table:
    """The ledger's rows for rows of a table of records.

    Args:
      rows: of `sorted_runs.schema`.
      names: of the sources.
      stage: as in Dropped.
      reason: one for all, or one a row; so are detail and score.
      detail: as in Dropped.
      score: as in Dropped.
    """
    count = len(rows)
    given: dict[str, Any] = {
        "source": pa.array(names, pa.string()).take(rows.column("source")),
        "stage": stage,
        "reason": reason,
        "detail": detail,
        "score": score,
        **{c: rows.column(c) for c in rows.column_names if c in ("file", "row", *TEXTS)},
        **{c: _first_words(rows.column(c)) for c in rows.column_names if c in _HASHES},
    }
    columns = []
    for field in SCHEMA:
        value = given.get(field.name)
        if value is None or isinstance(value, str):
            value = pa.repeat(pa.scalar(value, field.type), count)
        columns.append(value.cast(field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _first_words(hashes: pa.ChunkedArray) -> pa.Array:
    """uint32: the first four bytes of each hash, null where that is."""
    if hashes.null_count == len(hashes):
        return pa.nulls(len(hashes), pa.uint32())
    is_null = hashes.is_null().to_numpy()
    return pa.array(hash_words(hashes)[:, 0].astype(np.uint32), mask=is_null)


def first_word(text: str) -> int:
    """The first four bytes of a text's hash, as columns of hashes have them. Few texts share them
    by chance; those are told apart by what they are.
    """
    return int.from_bytes(text_hash(text)[:4], "little")


@contextmanager
def open_ledger(file: StoredFile) -> Iterator["LedgerWriter"]:
    """Writes a ledger, which appears when the block ends well. No rows leave no file."""
    with file.write() as part:
        writer = LedgerWriter(part)
        try:
            yield writer
            writer.flush()
        finally:
            writer.close()


class LedgerWriter:
    """Writes rows in batches; the same rows give the same bytes."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: list[Dropped] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, dropped: Dropped) -> None:
        """Appends a row."""
        self._rows.append(dropped)
        if len(self._rows) == _BUFFERED_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are held."""
        if self._rows:
            columns = list(zip(*self._rows, strict=True))
            columns += [
                tuple(None if text is None else first_word(text) for text in texts)
                for texts in columns[-len(TEXTS) :]
            ]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            self._rows = []
            self.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))

    def write_table(self, table: pa.Table) -> None:
        """Appends rows that already are in a table of `SCHEMA`."""
        self.flush()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, SCHEMA, **_WRITTEN)
        self._writer.write_table(table)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True, slots=True)
class LedgerPart:
    """What one task left out."""

    file: StoredFile
    rows: int
    row_base: int = 0
    """Lines or rows of the input file before those that the part counts from 1."""


def gathered(parts: Sequence[LedgerPart]) -> list[list[LedgerPart]]:
    """The parts of each file of the ledger.

    Args:
      parts: in the order of the stages; those without a row have no file, and are left out.
    Returns: at least one, since a ledger without a row is a file too.
    """
    found: list[list[LedgerPart]] = [[]]
    rows = 0
    for part in parts:
        if rows >= FILE_ROWS:
            found.append([])
            rows = 0
        if part.rows:
            found[-1].append(part)
            rows += part.rows
    return found if found[-1] or len(found) == 1 else found[:-1]


def ledger_task(parts: Sequence[LedgerPart], out: StoredFile) -> int:
    """Writes a file of the ledger, sorted; the same rows in another order give the same bytes.

    Args:
      parts: of `gathered`.
      out: the file.
    Returns: its rows.
    """
    tables = [SCHEMA.empty_table()]
    for part in parts:
        table = pq.read_table(part.file.local(), schema=SCHEMA)
        rows = pc.add(table.column("row"), part.row_base)
        tables.append(table.set_column(2, SCHEMA.field("row"), rows))
    table = pa.concat_tables(tables)
    kinds = [_codes(table.column(name)) for name in ("source", "stage", "reason")]
    hashes = [table.column(name).fill_null(0).to_numpy() for name in _HASHES]
    where = [table.column("row").to_numpy(), _codes(table.column("file"))]
    # What comes last counts most.
    order = np.lexsort((_codes(table.column("detail")), *where, *reversed(hashes + kinds)))
    kept = table.select(["source", "reason"]).group_by(["source", "reason"])
    counts = [list(r.values()) for r in kept.aggregate([([], "count_all")]).to_pylist()]
    schema = SCHEMA.with_metadata({_COUNTS: json.dumps(sorted(counts)).encode()})
    with out.write() as path, pq.ParquetWriter(path, schema, **_WRITTEN) as writer:
        for first in range(0, max(len(order), 1), _GROUP_ROWS):
            rows = pa.array(order[first : first + _GROUP_ROWS])
            writer.write_table(table.take(rows).replace_schema_metadata(schema.metadata))
    return len(order)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers that are ordered as the texts of a column are."""
    encoded = column.combine_chunks().dictionary_encode()
    place = np.empty(len(encoded.dictionary), np.int64)
    place[pc.array_sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(place))
    return place[encoded.indices.to_numpy()]


class _File(NamedTuple):
    """A file of a ledger."""

    path: Path
    counts: list[tuple[str, str, int]] | None
    """Source, reason and rows; None where an earlier version wrote it, without them."""
    is_hashed: bool
    """Whether it has the hashes of texts."""


def has_ledger(folder: Path) -> bool:
    """Whether there is a ledger in a prepared folder; one that was fetched from afar has none."""
    return (folder / LEDGER).is_dir() or (folder / OLD_LEDGER_FILE).is_file()


def _files(folder: Path) -> tuple[_File, ...]:
    """The files of a ledger.

    Raises: UserError when there is no readable ledger.
    """
    if not has_ledger(folder):
        raise UserError(f"no ledger in {folder}: run `jina-jax prepare` first")
    paths = sorted((folder / LEDGER).glob("*.parquet")) or [folder / OLD_LEDGER_FILE]
    return _opened(tuple((path, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=2)
def _opened(paths: tuple[tuple[Path, int], ...]) -> tuple[_File, ...]:
    """Reads the footers of files, once for all that ask; the times tell a file from its like."""
    found = []
    for path, _ in paths:
        with _readable(path):
            schema = pq.read_schema(path)
            counts = (schema.metadata or {}).get(_COUNTS)
            rows = None if counts is None else [(s, r, int(n)) for s, r, n in json.loads(counts)]
            found.append(_File(path, rows, _HASHES[0] in schema.names))
    return tuple(found)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; prepare the data again") from error


def _rows(
    files: Sequence[_File], columns: Sequence[str], where: ds.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of files, in order, some thousand at a time; row groups that cannot have any are not
    read.
    """
    for file in files:
        with _readable(file.path):
            table = ds.dataset(file.path, format="parquet")
            yield from table.to_batches(
                columns=list(columns), filter=where, batch_size=_BUFFERED_ROWS, batch_readahead=2,
                fragment_readahead=1,
            )  # fmt: skip


def ledger_batches(
    folder: Path, columns: Sequence[str] = Dropped._fields, where: ds.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of `SCHEMA`, a few thousand at a time.

    Args:
      folder: the prepared folder.
      columns: to read.
      where: which rows; None takes all.
    Raises: UserError when there is no readable ledger.
    """
    yield from _rows(_files(folder), columns, where)


def dropped_texts(parts: Sequence[LedgerPart]) -> Iterator[pa.RecordBatch]:
    """The texts of what tasks left out: batches of pairs, and batches of triplets.

    Args:
      parts: of one stage.
    """
    for part in parts:
        with pq.ParquetFile(part.file.local()) as file:
            for batch in file.iter_batches(_BUFFERED_ROWS, columns=TEXTS):
                is_pair = pc.is_null(batch.column("negative"))
                for rows, names in ((is_pair, TEXTS[:2]), (pc.invert(is_pair), TEXTS)):
                    yield batch.filter(rows).select(names)


def dropped_with(folder: Path, text: str) -> Iterator[tuple[str, Dropped]]:
    """Every dropped record that holds a text, whatever its spelling.

    Args:
      folder: the prepared folder.
      text: a query, positive or negative; it matches what `normalise`s to the same.
    Returns: which of its texts it is, and the record.
    Raises: UserError when there is no readable ledger.
    """
    wanted, word = normalise(text), first_word(text)
    files, columns = _files(folder), list(Dropped._fields)
    groups = _row_groups([file.path for file in files if file.is_hashed])
    unhashed = [file for file in files if not file.is_hashed]
    for name in TEXTS:
        with _readable(folder):
            found = chain(_with_hash(groups, f"{name}_hash", word), _rows(unhashed, columns))
            for batch in found:
                for row, cell in enumerate(batch.column(name).to_pylist()):
                    if cell is not None and normalise(cell) == wanted:
                        yield name, Dropped(**batch.slice(row, 1).to_pylist()[0])


_Group = tuple[ds.ParquetFileFragment, dict[str, Any]]
"""A row group, and the least and the greatest value of columns."""


def _row_groups(paths: Sequence[Path]) -> list[_Group]:
    """Every row group of files."""
    found: list[_Group] = []
    for path in paths:
        with _readable(path):
            for fragment in ds.dataset(path, schema=SCHEMA, format="parquet").get_fragments():
                groups = fragment.split_by_row_group()
                found += [(group, group.row_groups[0].statistics) for group in groups]
    return found


def _with_hash(groups: Sequence[_Group], column: str, word: int) -> Iterator[pa.RecordBatch]:
    """Rows of which a column of hashes has a value."""
    # Where all is null there are no ends.
    able = [g for g, ends in groups if column in ends and _is_within(word, ends[column])]
    where = ds.field(column) == pa.scalar(word, pa.uint32())
    # The hashes first: texts are read of row groups that have the text alone.
    found: set[int] = set()
    table = ds.FileSystemDataset(able, SCHEMA, ds.ParquetFileFormat())
    for batch in table.to_batches(columns=["__fragment_index"], filter=where):
        found.update(batch.column(0).to_pylist())
    having = ds.FileSystemDataset(
        [able[number] for number in sorted(found)], SCHEMA, ds.ParquetFileFormat()
    )
    yield from having.to_batches(columns=list(Dropped._fields), filter=where)


def _is_within(value: int, ends: Mapping[str, int]) -> bool:
    return ends["min"] <= value <= ends["max"]


def ledger_counts(folder: Path) -> dict[tuple[str, str], int]:
    """How many records each source lost, and why.

    Args:
      folder: the prepared folder.
    Returns: (source, reason) → rows, the most first.
    Raises: UserError when there is no readable ledger.
    """
    names, counts = ["source", "reason"], Counter[tuple[str, str]]()
    for file in _files(folder):
        for source, reason, rows in file.counts or ():
            counts[source, reason] += rows
        for batch in _rows([file], names) if file.counts is None else ():
            groups = pa.Table.from_batches([batch]).group_by(names)
            for row in groups.aggregate([([], "count_all")]).to_pylist():
                counts[row["source"], row["reason"]] += row["count_all"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def ledger_samples(
    folder: Path, *, source: str | None = None, reason: str | None = None, most: int = 10
) -> Sequence[Dropped]:
    """The first rows of a kind, in the order of the hashes of their queries.

    Args:
      folder: the prepared folder.
      source: only of this one; None takes any.
      reason: only for this one; None takes any.
      most: at most so many rows.
    Raises: UserError when there is no readable ledger.
    """
    found: list[Dropped] = []
    where = None
    for name, wanted in (("source", source), ("reason", reason)):
        if wanted is not None:
            one = ds.field(name) == wanted
            where = one if where is None else where & one
    for file in _files(folder):
        kinds = file.counts
        if kinds is not None and not any(
            source in (None, s) and reason in (None, r) for s, r, _ in kinds
        ):
            continue
        for batch in _rows([file], Dropped._fields, where):
            found += [Dropped(**row) for row in batch.slice(0, most - len(found)).to_pylist()]
            if len(found) >= most:
                return found
    return found
