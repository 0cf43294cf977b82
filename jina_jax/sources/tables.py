"""Reads the columns of Parquet files that records are made of."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.sources.chunks import CHUNK_RECORDS, Chunk, chunked
from jina_jax.sources.fields import Fields, columns_of, items_of
from jina_jax.sources.kinds import open_unpacked
from jina_jax.sources.lines import MAX_LINE_BYTES
from jina_jax.system.files import open_file
from jina_jax.types import Origin

PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What a damaged file raises."""
_BATCH_BYTES = 64 << 20
"""Of a column's texts in a batch, where they come from a dictionary."""
_PROBE_BYTES = 1 << 16


def required_columns(path: str, present: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns that hold some fields, as `columns_of` finds them.

    Raises: UserError naming the field that is not there.
    """
    found: list[str] = []
    for name in wanted:
        columns = columns_of(name, present)
        if not columns:
            raise UserError(
                f"{path} has no column {name!r}; its columns are: {', '.join(present)}. "
                f"Set query_field, positive_field and negative_field of the source, and the others "
                f"where it has them"
            )
        found += columns
    return list(dict.fromkeys(found))


def row_group_bytes(path: str) -> list[int]:
    """Size of each row group of a Parquet file, unpacked. The file itself is not packed.

    Raises: UserError for a damaged file.
    """
    try:
        with open_file(path) as stream, pq.ParquetFile(stream) as file:
            groups = range(file.metadata.num_row_groups)
            return [file.metadata.row_group(i).total_byte_size for i in groups]
    except PARQUET_ERRORS as error:
        raise damaged(path, "Parquet", "row 0", error) from error


def count_rows(path: str) -> int:
    """Rows of a Parquet file, which its footer tells. The file itself is not packed.

    Raises: UserError for a damaged file.
    """
    try:
        with open_file(path) as stream, pq.ParquetFile(stream) as file:
            return int(file.metadata.num_rows)
    except PARQUET_ERRORS as error:
        raise damaged(path, "Parquet", "row 0", error) from error


def damaged(path: str, form: str, after: str, what: object) -> UserError:
    """The error for a file that cannot be read as Parquet, say, after row 3."""
    return UserError(
        f"{path} cannot be read as {form} after {after}: {what}; "
        f"fetch or write the file again, or take it out of the paths"
    )


def read_parquet(
    path: str, fields: Fields, start: int = 0, end: int | None = None
) -> Iterator[Chunk]:
    """Reads the fields of a Parquet file.

    Args:
      path: the file.
      fields: as for `items_of`.
      start: first row group.
      end: the row group after the last; None reads all.
    Returns: the records of `items_of`; rows are counted from 1 at the first row read.
    Raises: UserError for a missing column or a damaged file.
    """
    row = 0
    try:
        with open_unpacked(path) as stream, pq.ParquetFile(stream) as file:
            columns = required_columns(path, file.schema_arrow.names, fields.names)
            groups = range(start, file.metadata.num_row_groups if end is None else end)
            for batch in read_batches(stream, file, groups, columns, CHUNK_RECORDS):
                # A struct without fields stands in the schema and in no batch.
                required_columns(path, batch.schema.names, fields.names)
                last = row + len(batch)
                rows = range(row + 1, last + 1)
                if whole := _whole_texts(batch, fields):
                    yield Chunk(whole, [path] * len(batch), list(rows), [], last)
                else:
                    cells = zip(*map(cells_of, batch.columns), strict=True)
                    items = chain.from_iterable(
                        items_of(
                            dict(zip(batch.schema.names, values, strict=True)), fields,
                            Origin(path, number),
                        )
                        for number, values in zip(rows, cells, strict=True)
                    )  # fmt: skip
                    yield from chunked(items, len(fields.texts), last)
                row = last
    except PARQUET_ERRORS as error:
        raise damaged(path, "Parquet", f"row {row}", error) from error


def read_batches(
    stream: IO[bytes], file: pq.ParquetFile, groups: Iterable[int], columns: list[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of rows of a Parquet file, of bounded size.

    A column may name a text of its dictionary in every row, and so unpack to thousands of times
    the size of the file. Where a dictionary holds long texts a batch has fewer rows.

    Args:
      stream: that `file` reads.
      file: the open file.
      groups: row groups to read.
      columns: to read.
      rows: most rows of a batch.
    """
    texts = [n for n in columns if n in file.schema_arrow.names and _is_text(_kind(file, n))]
    for group in groups:
        longest = _longest_in_dictionary(stream, file, group, texts) if texts else 0
        few = max(_BATCH_BYTES // max(longest, 1), 1)
        yield from file.iter_batches(min(rows, few), row_groups=[group], columns=columns)


def _kind(file: pq.ParquetFile, name: str) -> pa.DataType:
    kind = file.schema_arrow.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _longest_in_dictionary(
    stream: IO[bytes], file: pq.ParquetFile, group: int, texts: list[str]
) -> int:
    """Bytes of the longest text in the dictionaries of a row group; reads them and one row."""
    probe = pq.ParquetFile(
        stream, metadata=file.metadata, read_dictionary=texts, buffer_size=_PROBE_BYTES,
        pre_buffer=False,
    )  # fmt: skip
    row = next(probe.iter_batches(1, row_groups=[group], columns=texts), None)
    lengths = [
        pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        for column in ([] if row is None else row.columns)
        if pa.types.is_dictionary(column.type)
    ]
    return max(lengths, default=0)


def _whole_texts(batch: pa.RecordBatch, fields: Fields) -> tuple[list[str], ...] | None:
    """The columns as texts where every cell is one, which most batches are, and nothing else is
    wanted.
    """
    if fields.beside or not set(fields.texts) <= set(batch.schema.names):
        return None
    columns = [batch.column(name) for name in fields.texts]
    if any(c.null_count or not _is_text(c.type) for c in columns):
        return None
    if any((pc.max(pc.binary_length(c)).as_py() or 0) > MAX_LINE_BYTES for c in columns):
        return None
    try:
        return tuple(c.to_pylist() for c in columns)
    except UnicodeDecodeError:
        return None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def cells_of(column: pa.Array) -> list[Any]:
    """The values of a column, with a UnicodeDecodeError for a text that is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        # Writers are not held to UTF-8: decode cell by cell, so that one bad cell is one.
        if not _is_text(column.type):
            raise
        return [_decoded(cell) for cell in column.cast(pa.large_binary()).to_pylist()]


def _decoded(cell: bytes | None) -> str | UnicodeDecodeError | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError as error:
        return error
