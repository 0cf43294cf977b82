"""The ledger: every record that did not become a training or held-out pair, and why.

One Parquet file, so that any tool can query it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.errors import UserError

LEDGER_FILE = "ledger.parquet"
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
    ]
)


class Dropped(NamedTuple):
    """A row of the ledger."""

    source: str
    file: str
    row: int
    """As in Origin."""
    stage: str
    """`read`, `clean`, `dedup` or `split`."""
    reason: str
    detail: str = ""
    score: float | None = None
    """What a scoring filter gave it."""
    query: str | None = None
    """None for a record that could not be read."""
    positive: str | None = None


class UnusableError(UserError):
    """The sources cannot be used as they are; the ledger says which records are to blame."""


def dropped_pair(
    row: dict[str, Any], names: Sequence[str], stage: str, reason: str, detail: str
) -> Dropped:
    """The ledger's row for a row of a table of pairs.

    Args:
      row: of `runs.SCHEMA`.
      names: of the sources.
      stage: as in Dropped.
      reason: as in Dropped.
      detail: as in Dropped.
    """
    name, texts = names[row["source"]], (row["query"], row["positive"])
    return Dropped(name, row["file"], row["row"], stage, reason, detail, None, *texts)


class LedgerWriter:
    """Writes rows in batches; the same rows give the same bytes. No rows leave no file."""

    def __init__(self, path: Path):
        self._path = path
        self._rows: list[Dropped] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, dropped: Dropped) -> None:
        """Appends a row."""
        self._rows.append(dropped)
        if len(self._rows) == _BUFFERED_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = list(zip(*self._rows, strict=True))
            arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
            self.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
            self._rows = []

    def write_table(self, table: pa.Table) -> None:
        """Appends rows that already are in a table of `SCHEMA`."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, SCHEMA, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """Writes what is buffered and the file's footer."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def merge_ledgers(parts: Iterable[Path], path: Path) -> None:
    """Joins ledgers into one file, which is written even when there is no row.

    Args:
      parts: files of LedgerWriters, in order; those that do not exist are passed over.
      path: the file to write.
    """
    with LedgerWriter(path) as writer:
        writer.write_table(SCHEMA.empty_table())
        for part in parts:
            if part.exists():
                with pq.ParquetFile(part) as file:
                    for batch in file.iter_batches(_BUFFERED_ROWS):
                        writer.write_table(pa.Table.from_batches([batch], SCHEMA))


def _open(folder: Path) -> pq.ParquetFile:
    path = folder / LEDGER_FILE
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"no ledger in {folder}: run `jina-jax prepare` first") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; prepare the data again") from error


def ledger_counts(folder: Path) -> dict[tuple[str, str], int]:
    """How many records each source lost, and why.

    Args:
      folder: the prepared folder.
    Returns: (source, reason) → rows, the most first.
    Raises: UserError when there is no readable ledger.
    """
    counts: dict[tuple[str, str], int] = {}
    with _open(folder) as file:
        for batch in file.iter_batches(columns=["source", "reason"]):
            groups = pa.Table.from_batches([batch]).group_by(["source", "reason"])
            for row in groups.aggregate([([], "count_all")]).to_pylist():
                key = (row["source"], row["reason"])
                counts[key] = counts.get(key, 0) + row["count_all"]
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
    with _open(folder) as file:
        for batch in file.iter_batches(_BUFFERED_ROWS):
            for name, wanted in (("source", source), ("reason", reason)):
                if wanted is not None:
                    batch = batch.filter(pc.equal(batch.column(name), wanted))
            found += [Dropped(**row) for row in batch.slice(0, most - len(found)).to_pylist()]
            if len(found) >= most:
                break
    return found
