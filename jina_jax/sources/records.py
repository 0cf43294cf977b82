"""Records of files, as they are: JSON, rows of tables and lines of text."""

import json
from collections.abc import Callable, Iterator
from itertools import chain
from operator import itemgetter
from typing import IO, Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.sources.chunks import CHUNK_BYTES, CHUNK_RECORDS, Chunk, Item, chunked
from jina_jax.sources.delimited import read_delimited
from jina_jax.sources.fields import Fields, items_of
from jina_jax.sources.kinds import open_unpacked
from jina_jax.sources.lines import BOM, Damage, read_lines
from jina_jax.sources.tables import PARQUET_ERRORS, cells_of, damaged, read_batches
from jina_jax.types import BadRecord, Origin, Record

_BATCH_ROWS = 1024


def read_file_records(
    path: str, kind: str, *, has_header: bool = True
) -> Iterator[Record | BadRecord]:
    """Reads the records of a file.

    Args:
      path: the file; text may be compressed as .gz or .zst.
      kind: `jsonl` (a JSON value a line), `json` (an array of them), `parquet`, `arrow`, `csv` and
        `tsv` (a dict a row) or `text` (a line; its newline and a carriage return before that are
        not part of it). Blank lines are passed over.
      has_header: of csv and tsv, as for `read_delimited`.
    Returns: in the order of the file; what cannot be read comes as a BadRecord.
    Raises: UserError for a damaged file, OSError when the file cannot be read.
    """
    if kind in ("parquet", "arrow"):
        yield from _read_table(path, kind)
        return
    if kind == "json":
        yield from _read_array(path)
        return
    if kind in ("csv", "tsv"):
        yield from read_delimited(path, "," if kind == "csv" else "\t", has_header=has_header)
        return
    for row, line in read_lines(path):
        origin = Origin(path, row)
        if isinstance(line, Damage) or line.strip():
            value = decode(line, origin) if kind == "text" else parse_json(line, origin)
            yield value if isinstance(value, BadRecord) else Record(value, origin)


def decode(line: bytes | Damage, origin: Origin) -> str | BadRecord:
    """The text of a line, without a carriage return at its end."""
    if isinstance(line, Damage):
        return BadRecord(line.reason, line.detail, origin)
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        return BadRecord("invalid_utf8", f"byte {error.start + 1}: {error.reason}", origin)


def parse_json(line: bytes | Damage, origin: Origin) -> Any:
    """The JSON value of a line, or a BadRecord."""
    text = decode(line, origin)
    if isinstance(text, BadRecord):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord("malformed_json", str(error), origin)


def _read_array(path: str) -> Iterator[Record]:
    row = 0
    try:
        with open_unpacked(path) as file:
            file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)
            for row, value in enumerate(ijson.items(file, "item", use_float=True), start=1):
                yield Record(value, Origin(path, row))
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:200]
        raise damaged(path, "a JSON array", f"record {row}", what) from error


def _read_table(path: str, kind: str) -> Iterator[Record]:
    row = 0
    try:
        with open_unpacked(path) as stream:
            for batch in _of_arrow(stream) if kind == "arrow" else _of_parquet(stream):
                names = batch.schema.names
                for cells in zip(*map(cells_of, batch.columns), strict=True):
                    row += 1
                    yield Record(dict(zip(names, cells, strict=True)), Origin(path, row))
    except PARQUET_ERRORS as error:
        raise damaged(path, kind.capitalize(), f"row {row}", error) from error


def _of_parquet(stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(stream) as file:
        groups, columns = range(file.metadata.num_row_groups), file.schema_arrow.names
        yield from read_batches(stream, file, groups, columns, _BATCH_ROWS)


def _of_arrow(stream: IO[bytes]) -> Iterator[pa.RecordBatch]:
    """Of both of Arrow's formats: `datasets` writes streams, other libraries mostly files."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if is_file:
        file = pa.ipc.open_file(stream)
        yield from map(file.get_batch, range(file.num_record_batches))
    else:
        yield from pa.ipc.open_stream(stream)


_SCAN: Callable[[str, int], tuple[Any, int]] = getattr(json.JSONDecoder(), "scan_once")  # noqa: B009
"""What `json.loads` calls between skipping blanks, which takes longer than a short line."""


def read_jsonl(
    path: str, fields: Fields, start: int = 0, end: int | None = None
) -> Iterator[Chunk]:
    """Reads the fields of each line.

    Args:
      path: plain, .gz or .zst file.
      fields: as for `items_of`.
      start: of a plain file, the first byte; a line belongs to the part in which it begins.
      end: of a plain file, the byte after the part; None reads to the end.
    Returns: the records of each line that is not blank; rows count the lines of the part.
    """
    row, held, lines = 0, 0, []
    for row, line in read_lines(path, start, end):
        lines.append(line)
        held += len(line)
        if len(lines) == CHUNK_RECORDS or held > CHUNK_BYTES:
            yield from _parsed(path, row, lines, fields)
            held, lines = 0, []
    yield from _parsed(path, row, lines, fields)


def _parsed(path: str, last_row: int, lines: list[Any], fields: Fields) -> Iterator[Chunk]:
    first = last_row - len(lines) + 1
    # Nearly always every line is a record: the loop has no test that a good line needs not.
    try:
        texts = [line.decode() for line in lines]
        scanned = [_SCAN(text, 0) for text in texts]
        if [end for _, end in scanned] != [len(text) for text in texts]:
            raise ValueError("a line goes on after its value")
        if fields.beside:
            raise ValueError("labels and scores are looked at one by one")
        cells = map(itemgetter(*fields.texts), [value for value, _ in scanned])
        columns = tuple(map(list, zip(*cells, strict=True)))
        for column in columns:
            "".join(column).encode()  # Every cell is a text without half a surrogate pair.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, StopIteration):
        columns = ()
    rows = range(first, last_row + 1)
    if columns:
        yield Chunk(columns, [path] * len(rows), list(rows), [], last_row)
        return
    items = (_parse(line, fields, Origin(path, row)) for row, line in zip(rows, lines, strict=True))
    yield from chunked(chain.from_iterable(items), len(fields.texts), last_row)


def _parse(line: bytes | Damage, fields: Fields, origin: Origin) -> list[Item]:
    """What a line gives, or what is wrong with it; nothing of a blank one."""
    if not isinstance(line, Damage) and not line.strip():
        return []
    value = parse_json(line, origin)
    return [value] if isinstance(value, BadRecord) else items_of(value, fields, origin)
