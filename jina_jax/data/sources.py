"""Readers: from what a user configured to pairs, one at a time and in a fixed order."""

import glob
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from jina_jax.config import SourceConfig
from jina_jax.data.extract import read_extracted, reads_records
from jina_jax.data.lines import Damage, read_lines
from jina_jax.data.pydocs import read_pydocs
from jina_jax.data.tables import read_delimited, read_parquet
from jina_jax.errors import UserError
from jina_jax.types import BadRecord, Origin, Pair


def read_source(source: SourceConfig) -> Iterator[Pair | BadRecord]:
    """Reads a source from its first record to its last, in bounded memory.

    Args:
      source: kind, paths and fields; its globs are expanded in sorted order.
    Returns: pairs, and in their place a BadRecord for each record that cannot be read. `limit`
      counts both. Texts are as the source gave them, not stripped.
    Raises: UserError when a path matches no file, a file or a column cannot be read at all, or
      there is not one record.
    """
    records: Iterator[Pair | BadRecord]
    if source.kind == "pydocs":
        records = read_pydocs(source.paths)
    elif reads_records(source):
        files = () if source.kind in ("tfds", "hf") else matched_files(source)
        records = cast(Iterator[Pair | BadRecord], read_extracted(source, files))
    else:
        records = _read_files(source, matched_files(source))
    empty = True
    for record in islice(records, source.limit):
        empty = False
        yield record
    if empty:
        where = source.dataset or ", ".join(source.paths) or "the installed packages"
        raise UserError(f"source {source.name!r} is empty: no record in {where}")


def matched_files(source: SourceConfig) -> list[Path]:
    """Files of a source, each once, in the order of its paths and sorted within a glob.

    Raises: UserError naming the path that matches nothing.
    """
    files: dict[Path, None] = {}
    for pattern in source.paths:
        path = Path(pattern).expanduser()
        # A name may hold '[' or '*' itself.
        names = [str(path)] if path.is_file() else _expand(path)
        found = [Path(name) for name in names if Path(name).is_file()]
        if not found:
            raise UserError(
                f"source {source.name!r}: {pattern!r} matches no file "
                f"(looked from {Path.cwd()}); check data.sources[...].paths"
            )
        files |= dict.fromkeys(found)
    return list(files)


def _expand(pattern: Path) -> list[str]:
    # Path.glob takes no absolute pattern.
    return sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207


def _read_files(source: SourceConfig, files: list[Path]) -> Iterator[Pair | BadRecord]:
    query, positive = source.query_field, source.positive_field
    for path in files:
        try:
            if source.kind == "parquet":
                yield from read_parquet(path, query, positive)
            elif source.kind == "jsonl":
                yield from _read_jsonl(path, query, positive)
            else:
                delimiter = "," if source.kind == "csv" else "\t"
                yield from read_delimited(path, query, positive, delimiter)
        except OSError as error:
            raise UserError(f"source {source.name!r}: cannot read {path}: {error}") from error


def _read_jsonl(path: Path, query: str, positive: str) -> Iterator[Pair | BadRecord]:
    for row, line in read_lines(path):
        origin = Origin(str(path), row)
        if isinstance(line, Damage):
            yield BadRecord(line.reason, line.detail, origin)
        elif line.strip():
            yield _parse(line, query, positive, origin)


def _parse(line: bytes, query: str, positive: str, origin: Origin) -> Pair | BadRecord:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return BadRecord("invalid_utf8", f"byte {error.start + 1}: {error.reason}", origin)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord("malformed_json", str(error), origin)
    if not isinstance(value, dict):
        return BadRecord("wrong_type", f"expected an object, got {_kind(value)}", origin)
    for name in (query, positive):
        cell = value.get(name)
        if cell is None:
            has = f"{name!r} is null" if name in value else f"fields are {', '.join(value)[:200]}"
            return BadRecord("missing_field", f"no text in {name!r}: {has}", origin)
        if not isinstance(cell, str):
            return BadRecord("wrong_type", f"{name!r} holds {_kind(cell)}, not a text", origin)
        if not _is_unicode(cell):
            return BadRecord("invalid_utf8", f"{name!r} holds half of a surrogate pair", origin)
    return Pair(value[query], value[positive], origin)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def _is_unicode(text: str) -> bool:
    # JSON can escape half of a surrogate pair, which no encoding of Unicode can hold.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
