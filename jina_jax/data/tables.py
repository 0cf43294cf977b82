"""Readers of tables: Parquet, and comma- or tab-separated text with a header."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.data.lines import MAX_LINE_BYTES, Damage, read_lines
from jina_jax.errors import UserError
from jina_jax.types import BadRecord, Origin, Pair

_BATCH_ROWS = 1024


def _require_columns(path: Path, present: list[str], wanted: tuple[str, str]) -> None:
    for name in wanted:
        if name not in present:
            raise UserError(
                f"{path} has no column {name!r}; its columns are: {', '.join(present)}. "
                f"Set query_field and positive_field of the source"
            )


def read_parquet(path: Path, query: str, positive: str) -> Iterator[Pair | BadRecord]:
    """Reads two columns of a Parquet file.

    Args:
      path: the file.
      query: name of the column of queries.
      positive: name of the column of positives.
    Returns: a record per row; Origin.row is the 1-based row.
    Raises: UserError for a missing column or a damaged file.
    """
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, file.schema_arrow.names, (query, positive))
            for batch in file.iter_batches(_BATCH_ROWS, columns=[query, positive]):
                queries, positives = _cells(batch.column(query)), _cells(batch.column(positive))
                for q, p in zip(queries, positives, strict=True):
                    row += 1
                    yield _pair({query: q, positive: p}, query, positive, Origin(str(path), row))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read as Parquet after row {row}: {error}; "
            f"fetch or write the file again, or take it out of the source's paths"
        ) from error


def _cells(column: pa.Array) -> list[Any]:
    # Parquet writers are not held to UTF-8: decode cell by cell, so that one bad cell is one.
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [_decoded(cell) for cell in column.cast(pa.large_binary()).to_pylist()]
    return column.to_pylist()


def _decoded(cell: bytes | None) -> str | UnicodeDecodeError | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError as error:
        return error


def _pair(cells: dict[str, Any], query: str, positive: str, origin: Origin) -> Pair | BadRecord:
    for name, cell in cells.items():
        if cell is None:
            return BadRecord("missing_field", f"{name!r} is null", origin)
        if isinstance(cell, UnicodeDecodeError):
            return BadRecord("invalid_utf8", f"{name!r}: {cell.reason}", origin)
        if not isinstance(cell, str):
            what = f"{name!r} holds {type(cell).__name__}, not a text"
            return BadRecord("wrong_type", what, origin)
    return Pair(cells[query], cells[positive], origin)


class _TextLines:
    """Lines of a file as the csv module wants them; remembers what cannot be given as a line."""

    def __init__(self, path: Path):
        self._lines = read_lines(path)
        self.row = 0
        self.damage: tuple[int, Damage] | None = None

    def __iter__(self) -> "_TextLines":
        return self

    def __next__(self) -> str:
        self.row, line = next(self._lines)
        if isinstance(line, Damage):
            self.damage = (self.row, line)
            return "\n"
        # Bytes that are not UTF-8 come back as lone surrogates and are found in the cell.
        return line.decode(errors="surrogateescape") + "\n"


def read_delimited(
    path: Path, query: str, positive: str, delimiter: str
) -> Iterator[Pair | BadRecord]:
    """Reads two columns of a comma- or tab-separated file whose first record names the columns.

    Quoting is RFC 4180: a cell in double quotes may hold newlines and doubled quotes. What
    follows a closing quote must be a delimiter; a stray quote at the start of a cell is reported
    as `malformed_row` where a lenient reader would join lines silently.

    Args:
      path: plain, .gz or .zst file.
      query: name of the column of queries.
      positive: name of the column of positives.
      delimiter: one character.
    Returns: a record per row; Origin.row is the 1-based line it starts on.
    Raises: UserError for a missing column.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _TextLines(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start, malformed, cells = lines.row + 1, "", []
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            malformed = str(error)
        if lines.damage is not None:
            row, damage = lines.damage
            lines.damage = None
            yield BadRecord(damage.reason, damage.detail, Origin(str(path), row))
        elif malformed:
            yield BadRecord("malformed_row", malformed, Origin(str(path), start))
        elif not cells:
            continue
        elif header is None:
            header = cells
            _require_columns(path, header, (query, positive))
        else:
            yield _row(cells, header, query, positive, Origin(str(path), start))


def _row(
    cells: list[str], header: list[str], query: str, positive: str, origin: Origin
) -> Pair | BadRecord:
    if len(cells) != len(header):
        what = f"{len(cells)} cells, but the header has {len(header)}"
        return BadRecord("wrong_column_count", what, origin)
    pair = Pair(cells[header.index(query)], cells[header.index(positive)], origin)
    if any("\udc80" <= c <= "\udcff" for text in pair[:2] for c in text):
        return BadRecord("invalid_utf8", "a cell holds bytes that are not UTF-8", origin)
    return pair
