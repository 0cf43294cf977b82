"""The ledger: every record that did not become a training or held-out pair, and why.

One Parquet file, so that any tool can query it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.prepare.sorted_runs import TEXTS
from jina_jax.shards.manifest import LEDGER_FILE
from jina_jax.system.atomic import atomic_file

_BUFFERED_ROWS = 4096

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("query", pa.string()),
        pa.field("positive", pa.string()),
        pa.field("negative", pa.string()),
    ]
)


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
      rows: of `runs.schema`.
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
    }
    columns = []
    for field in SCHEMA:
        value = given.get(field.name)
        if value is None or isinstance(value, str):
            value = pa.repeat(pa.scalar(value, field.type), count)
        columns.append(value.cast(field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


@contextmanager
def open_ledger(path: Path) -> Iterator["LedgerWriter"]:
    """Writes a ledger, which appears when the block ends well. No rows leave no file."""
    with atomic_file(path) as part:
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
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            self._rows = []
            self.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))

    def write_table(self, table: pa.Table) -> None:
        """Appends rows that already are in a table of `SCHEMA`."""
        self.flush()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True)
class LedgerPart:
    """What one task left out."""

    path: Path
    row_base: int = 0
    """Lines or rows of the file before those that the part counts from 1."""


def merge_ledgers(parts: Iterable[LedgerPart], path: Path) -> None:
    """Joins ledgers into one file, which is written even when there is no row.

    Args:
      parts: of `open_ledger`, in order; those whose file does not exist are passed over.
      path: the file to write.
    """
    with open_ledger(path) as writer:
        writer.write_table(SCHEMA.empty_table())
        for part in parts:
            if part.path.exists():
                with pq.ParquetFile(part.path) as file:
                    for batch in file.iter_batches(_BUFFERED_ROWS):
                        table = pa.Table.from_batches([batch], SCHEMA)
                        row = pc.add(table.column("row"), part.row_base)
                        writer.write_table(table.set_column(2, SCHEMA.field("row"), row))


def ledger_batches(folder: Path, columns: Sequence[str] = SCHEMA.names) -> Iterator[pa.RecordBatch]:
    """The rows of `SCHEMA`, a few thousand at a time.

    Args:
      folder: the prepared folder.
      columns: to read.
    Raises: UserError when there is no readable ledger.
    """
    path = folder / LEDGER_FILE
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"no ledger in {folder}: run `jina-jax prepare` first") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; prepare the data again") from error
    with file:
        yield from file.iter_batches(_BUFFERED_ROWS, columns=columns)


def dropped_texts(folder: Path, stage: str) -> Iterator[pa.RecordBatch]:
    """The texts of what a stage dropped: batches of pairs, and batches of triplets.

    Args:
      folder: the prepared folder.
      stage: as in Dropped.
    Raises: UserError when there is no readable ledger.
    """
    for batch in ledger_batches(folder):
        mine = batch.filter(pc.equal(batch.column("stage"), stage))
        is_pair = pc.is_null(mine.column("negative"))
        for rows, names in ((is_pair, TEXTS[:2]), (pc.invert(is_pair), TEXTS)):
            yield mine.filter(rows).select(names)


def ledger_counts(folder: Path) -> dict[tuple[str, str], int]:
    """How many records each source lost, and why.

    Args:
      folder: the prepared folder.
    Returns: (source, reason) → rows, the most first.
    Raises: UserError when there is no readable ledger.
    """
    names, counts = ["source", "reason"], Counter[tuple[str, str]]()
    for batch in ledger_batches(folder, names):
        groups = pa.Table.from_batches([batch]).group_by(names)
        for row in groups.aggregate([([], "count_all")]).to_pylist():
            counts[row["source"], row["reason"]] += row["count_all"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def ledger_samples(
    folder: Path, *, source: str | None = None, reason: str | None = None, most: int = 10
) -> Sequence[Dropped]:
    """The first rows of a kind.

    Args:
      folder: the prepared folder.
      source: only of this one; None takes any.
      reason: only for this one; None takes any.
      most: at most so many rows.
    Raises: UserError when there is no readable ledger.
    """
    found: list[Dropped] = []
    for batch in ledger_batches(folder):
        for name, wanted in (("source", source), ("reason", reason)):
            if wanted is not None:
                batch = batch.filter(pc.equal(batch.column(name), wanted))
        found += [Dropped(**row) for row in batch.slice(0, most - len(found)).to_pylist()]
        if len(found) >= most:
            break
    return found
