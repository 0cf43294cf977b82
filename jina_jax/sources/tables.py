"""Readers of tables: Parquet, and comma- or tab-separated text with a header."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.sources.chunks import CHUNK_RECORDS, Chunk, Item, gathered, pair_or_triplet
from jina_jax.sources.kinds import open_unpacked
from jina_jax.sources.lines import MAX_LINE_BYTES, Damage, read_lines
from jina_jax.system.files import open_file
from jina_jax.types import BadRecord, Origin, Pair, Triplet

PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What a damaged file raises."""
_BATCH_BYTES = 64 << 20
"""Of a column's texts in a batch, where they come from a dictionary."""
_PROBE_BYTES = 1 << 16


def _require_columns(path: str, present: list[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise UserError(
                f"{path} has no column {name!r}; its columns are: {', '.join(present)}. "
                f"Set query_field, positive_field and negative_field of the source"
            )


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


def damaged(path: str, form: str, after: str, what: object) -> UserError:
    """The error for a file that cannot be read as Parquet, say, after row 3."""
    return UserError(
        f"{path} cannot be read as {form} after {after}: {what}; "
        f"fetch or write the file again, or take it out of the paths"
    )


def read_parquet(
    path: str, fields: Sequence[str], start: int = 0, end: int | None = None
) -> Iterator[Chunk]:
    """Reads two or three columns of a Parquet file.

    Args:
      path: the file.
      fields: columns of queries, positives and, for triplets, negatives.
      start: first row group.
      end: the row group after the last; None reads all.
    Returns: a record per row, counted from 1 at the first row read.
    Raises: UserError for a missing column or a damaged file.
    """
    row = 0
    try:
        with open_unpacked(path) as stream, pq.ParquetFile(stream) as file:
            _require_columns(path, file.schema_arrow.names, fields)
            groups = range(start, file.metadata.num_row_groups if end is None else end)
            columns = list(dict.fromkeys(fields))
            for batch in read_batches(stream, file, groups, columns, CHUNK_RECORDS):
                # A struct without fields stands in the schema and in no batch.
                _require_columns(path, batch.schema.names, fields)
                last = row + len(batch)
                rows = range(row + 1, last + 1)
                if whole := _whole_texts(batch, fields):
                    yield Chunk(whole, [path] * len(batch), list(rows), [], last)
                else:
                    cells = zip(*(_cells(batch.column(name)) for name in fields), strict=True)
                    records = (
                        _checked(texts, fields, Origin(path, number))
                        for number, texts in zip(rows, cells, strict=True)
                    )
                    yield gathered(records, len(fields), last)
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


def _whole_texts(batch: pa.RecordBatch, fields: Sequence[str]) -> tuple[list[str], ...] | None:
    """The columns as texts where every cell is one, which most batches are."""
    columns = [batch.column(name) for name in fields]
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


def _cells(column: pa.Array) -> list[Any]:
    # Parquet writers are not held to UTF-8: decode cell by cell, so that one bad cell is one.
    if _is_text(column.type):
        return [_decoded(cell) for cell in column.cast(pa.large_binary()).to_pylist()]
    return column.to_pylist()


def _decoded(cell: bytes | None) -> str | UnicodeDecodeError | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError as error:
        return error


def _checked(
    cells: Sequence[Any], fields: Sequence[str], origin: Origin
) -> Pair | Triplet | BadRecord:
    for name, cell in zip(fields, cells, strict=True):
        if cell is None:
            return BadRecord("missing_field", f"{name!r} is null", origin)
        if isinstance(cell, str) and len(cell) > MAX_LINE_BYTES:
            what = f"{name!r} holds a text of more than {MAX_LINE_BYTES:,} characters"
            return BadRecord("too_long", what, origin)
        if isinstance(cell, UnicodeDecodeError):
            return BadRecord("invalid_utf8", f"{name!r}: {cell.reason}", origin)
        if not isinstance(cell, str):
            what = f"{name!r} holds {type(cell).__name__}, not a text"
            return BadRecord("wrong_type", what, origin)
    return pair_or_triplet(tuple(cells), origin)


class _TextLines:
    """Lines of a file as the csv module wants them; remembers what cannot be given as a line."""

    def __init__(self, path: str):
        self._path, self.row = path, 0
        self.bad: BadRecord | None = None

    def __iter__(self) -> Iterator[str]:
        for row, line in read_lines(self._path):
            self.row = row
            if isinstance(line, Damage):
                self.bad = BadRecord(line.reason, line.detail, Origin(self._path, row))
                yield "\n"
            else:
                # Bytes that are not UTF-8 come back as lone surrogates and are found in the cell.
                yield line.decode(errors="surrogateescape") + "\n"


def read_delimited(path: str, fields: Sequence[str], delimiter: str) -> Iterator[Item]:
    """Reads two or three columns of a comma- or tab-separated file that begins with their names.

    Where the fields are numbers there is no header, and of tabs no quoting either, as in the files
    of TREC and MS MARCO.

    Quoting is RFC 4180: a cell in double quotes may hold newlines and doubled quotes. What
    follows a closing quote must be a delimiter; a stray quote at the start of a cell is reported
    as `malformed_row` where a lenient reader would join lines silently.

    Args:
      path: plain, .gz or .zst file.
      fields: columns of queries, positives and, for triplets, negatives.
      delimiter: one character.
    Returns: a record per row; Origin.row is the 1-based line it starts on.
    Raises: UserError for a missing column.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _TextLines(path)
    has_header = not all(name.isdecimal() for name in fields)
    plain = delimiter == "\t" and not has_header
    reader = csv.reader(
        lines, delimiter=delimiter, strict=True,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )  # fmt: skip
    header: list[str] | None = None
    while True:
        start, malformed, cells = lines.row + 1, "", []
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            malformed = str(error)
        if lines.bad is not None:
            yield lines.bad
            lines.bad = None
        elif malformed:
            yield BadRecord("malformed_row", malformed, Origin(path, start))
        elif not cells:
            continue
        elif header is None and has_header:
            header = cells
            _require_columns(path, header, fields)
        else:
            if header is None:
                header = [str(number) for number in range(1, len(cells) + 1)]
                _require_columns(path, header, fields)
            yield _row(cells, header, fields, Origin(path, start))


def _row(cells: list[str], header: list[str], fields: Sequence[str], origin: Origin) -> Item:
    if len(cells) != len(header):
        what = f"{len(cells)} cells, but the header has {len(header)}"
        return BadRecord("wrong_column_count", what, origin)
    texts = tuple(cells[header.index(name)] for name in fields)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return BadRecord("invalid_utf8", "a cell holds bytes that are not UTF-8", origin)
    return pair_or_triplet(texts, origin)
