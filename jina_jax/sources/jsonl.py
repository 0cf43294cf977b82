"""Reader of JSON lines."""

import json
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from jina_jax.sources.chunks import CHUNK_BYTES, CHUNK_RECORDS, Chunk, ChunkBuilder, Record, record
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.records import field_texts, parse_json
from jina_jax.types import BadRecord, Origin

_SCAN: Callable[[str, int], tuple[Any, int]] = getattr(json.JSONDecoder(), "scan_once")  # noqa: B009
"""What `json.loads` calls between skipping blanks, which takes longer than a short line."""


def read_jsonl(
    path: str, fields: Sequence[str], start: int = 0, end: int | None = None
) -> Iterator[Chunk]:
    """Reads two or three fields of each line.

    Args:
      path: plain, .gz or .zst file.
      fields: of the query, the positive and, for triplets, the negative.
      start: of a plain file, the first byte; a line belongs to the part in which it begins.
      end: of a plain file, the byte after the part; None reads to the end.
    Returns: a record per line that is not blank; rows count the lines of the part.
    """
    builder = ChunkBuilder(len(fields))
    row, held, lines = 0, 0, []
    for row, line in read_lines(path, start, end):
        lines.append(line)
        held += len(line)
        if len(lines) == CHUNK_RECORDS or held > CHUNK_BYTES:
            yield _parsed(builder, path, row, lines, fields)
            held, lines = 0, []
    yield _parsed(builder, path, row, lines, fields)


def _parsed(
    builder: ChunkBuilder, path: str, last_row: int, lines: list[Any], fields: Sequence[str]
) -> Chunk:
    first = last_row - len(lines) + 1
    # Nearly always every line is a record: the loop has no test that a good line needs not.
    try:
        texts = [line.decode() for line in lines]
        scanned = [_SCAN(text, 0) for text in texts]
        if [end for _, end in scanned] != [len(text) for text in texts]:
            raise ValueError("a line goes on after its value")
        cells = map(itemgetter(*fields), [value for value, _ in scanned])
        columns = tuple(map(list, zip(*cells, strict=True)))
        for column in columns:
            "".join(column).encode()  # Every cell is a text without half a surrogate pair.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, StopIteration):
        columns = ()
    if columns:
        builder.columns = columns
        builder.rows = list(range(first, last_row + 1))
        return builder.take(last_row, path)
    for row, line in enumerate(lines, first):
        parsed = _parse(line, fields, Origin(path, row))
        if parsed is not None:
            builder.add(parsed)
    return builder.take(last_row)


def _parse(line: bytes | Damage, fields: Sequence[str], origin: Origin) -> Record | None:
    """A record, what is wrong with it, or None for a blank line."""
    if isinstance(line, Damage):
        return BadRecord(line.reason, line.detail, origin)
    if not line.strip():
        return None
    value = parse_json(line, origin)
    texts = value if isinstance(value, BadRecord) else field_texts(value, tuple(fields), origin)
    return texts if isinstance(texts, BadRecord) else record(texts, origin)
