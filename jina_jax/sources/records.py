"""Readers of whole records, for sources whose texts an extractor takes out of them."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.tables import PARQUET_ERRORS, read_batches
from jina_jax.system.files import open_file
from jina_jax.types import BadRecord, Origin

_BATCH_ROWS = 1024


class Record(NamedTuple):
    """A record as its source has it."""

    value: Any
    """Field → value, a JSON value, or a line of text."""
    origin: Origin


def read_file_records(path: str, kind: str) -> Iterator[Record | BadRecord]:
    """Reads the records of a file.

    Args:
      path: the file; text may be compressed as .gz or .zst.
      kind: `jsonl` (a JSON value a line), `parquet` (a dict a row) or `text` (a line; its newline
        and a carriage return before that are not part of it). Blank lines are passed over.
    Returns: in the order of the file; what cannot be read comes as a BadRecord.
    Raises: UserError for a damaged Parquet file, OSError when the file cannot be read.
    """
    if kind == "parquet":
        yield from _read_rows(path)
        return
    for row, line in read_lines(path):
        origin = Origin(path, row)
        if isinstance(line, Damage):
            yield BadRecord(line.reason, line.detail, origin)
        elif line.strip():
            value = decode(line, origin) if kind == "text" else parse_json(line, origin)
            yield value if isinstance(value, BadRecord) else Record(value, origin)


def decode(line: bytes, origin: Origin) -> str | BadRecord:
    """The text of a line, without a carriage return at its end."""
    try:
        return line.decode().removesuffix("\r")
    except UnicodeDecodeError as error:
        return BadRecord("invalid_utf8", f"byte {error.start + 1}: {error.reason}", origin)


def parse_json(line: bytes, origin: Origin) -> Any:
    """The JSON value of a line, or a BadRecord."""
    text = decode(line, origin)
    if isinstance(text, BadRecord):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord("malformed_json", str(error), origin)


def _read_rows(path: str) -> Iterator[Record]:
    row = 0
    try:
        with open_file(path) as stream, pq.ParquetFile(stream) as file:
            groups, columns = range(file.metadata.num_row_groups), file.schema_arrow.names
            for batch in read_batches(stream, file, groups, columns, _BATCH_ROWS):
                for value in batch.to_pylist():
                    row += 1
                    yield Record(value, Origin(path, row))
    except PARQUET_ERRORS as error:
        raise UserError(
            f"{path} cannot be read as Parquet after row {row}: {error}; "
            f"fetch or write the file again, or take it out of the paths"
        ) from error


def field_texts(value: Any, fields: tuple[str, ...], origin: Origin) -> tuple[str, ...] | BadRecord:
    """The texts in fields of a record.

    Args:
      value: a dict; anything else is a bad record.
      fields: their names.
      origin: where the record stands.
    Returns: a text for each field, or what is wrong: `wrong_type`, `missing_field` or
      `invalid_utf8`.
    """
    if not isinstance(value, dict):
        return BadRecord("wrong_type", f"expected an object, got {kind_of(value)}", origin)
    for name in fields:
        cell = value.get(name)
        if cell is None:
            has = f"{name!r} is null" if name in value else f"fields are {', '.join(value)[:200]}"
            return BadRecord("missing_field", f"no text in {name!r}: {has}", origin)
        if not isinstance(cell, str):
            return BadRecord("wrong_type", f"{name!r} holds {kind_of(cell)}, not a text", origin)
        if not is_unicode(cell):
            return BadRecord("invalid_utf8", f"{name!r} holds half of a surrogate pair", origin)
    return tuple(value[name] for name in fields)


def kind_of(value: Any) -> str:
    """A value's kind in the words of JSON."""
    names = {dict: "an object", list: "an array", str: "a text", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded: JSON and Python can escape half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
