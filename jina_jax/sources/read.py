"""Readers: from what a user configured to records, in a fixed order and in bounded memory."""

import itertools
from collections.abc import Iterator

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.chunks import Chunk, Item, chunked, flattened
from jina_jax.sources.extract import read_extracted, reads_records
from jina_jax.sources.kinds import data_files, file_kind
from jina_jax.sources.pydocs import read_pydocs
from jina_jax.sources.records import read_jsonl, text_fields
from jina_jax.sources.tables import read_delimited, read_parquet
from jina_jax.types import BadRecord, Pair, Triplet


def read_source(source: SourceConfig) -> Iterator[Item]:
    """Reads a source from its first record to its last, in bounded memory.

    Args:
      source: kind, paths and fields; its globs are expanded in sorted order.
    Returns: pairs or triplets, and in their place a BadRecord for each record that cannot be read.
      `limit` counts both. Texts are as the source gave them, not stripped.
    Raises: UserError when a path matches no file, a file or a column cannot be read at all, or
      there is not one record.
    """
    records = iter(itertools.islice(_records(source), source.limit))
    first = next(records, None)
    if first is None:
        raise empty_source(source)
    yield first
    yield from records


def read_whole(source: SourceConfig) -> Iterator[Pair | Triplet]:
    """As `read_source`, for sources of which no record is passed over.

    Raises: UserError, also for the first record that cannot be read.
    """
    for record in read_source(source):
        if isinstance(record, BadRecord):
            where = f"{record.origin.file}:{record.origin.row}"
            raise UserError(f"source {source.name!r}: {where}: {record.reason}: {record.detail}")
        yield record


def empty_source(source: SourceConfig) -> UserError:
    """The error for a source without a record."""
    where = source.dataset or ", ".join(source.paths) or "the installed packages"
    return UserError(f"source {source.name!r} is empty: no record in {where}")


def _records(source: SourceConfig) -> Iterator[Item]:
    if source.kind == "pydocs":
        yield from read_pydocs(source.paths)
    elif reads_records(source):
        yield from read_extracted(source, matched_files(source))
    else:
        for path in matched_files(source):
            for chunk in read_file(source, path):
                yield from flattened(chunk)


def matched_files(source: SourceConfig) -> list[str]:
    """Files of a source, each once, in the order of its paths and sorted within a glob or folder;
    none of a source that is no files.

    Raises: UserError naming the path that matches nothing.
    """
    paths = source.paths if is_of_files(source) else ()
    return list(dict.fromkeys(data_files(paths, f"source {source.name!r}", source.split)))


def is_of_files(source: SourceConfig) -> bool:
    """Whether a source is files, and neither a data set of a library nor docstrings."""
    return source.kind not in ("pydocs", "tfds", "hf")


def read_file(
    source: SourceConfig, path: str, start: int = 0, end: int | None = None
) -> Iterator[Chunk]:
    """Reads a file of a source, or a part of it.

    Args:
      source: says kind and fields.
      path: the file.
      start: of plain JSONL the first byte, of plain Parquet the first row group; else 0.
      end: what comes after the last of these; None reads to the end.
    Returns: records by column; rows are counted from the start of the part.
    Raises: UserError when the file or a column cannot be read at all.
    """
    fields = text_fields(source)
    kind = file_kind(path, source.kind)
    try:
        if reads_records(source) or kind in ("json", "arrow"):
            yield from chunked(read_extracted(source, [path]), len(fields))
        elif kind == "parquet":
            yield from read_parquet(path, fields, start, end)
        elif kind == "jsonl":
            yield from read_jsonl(path, fields, start, end)
        else:
            delimiter = "," if kind == "csv" else "\t"
            yield from chunked(read_delimited(path, fields, delimiter), len(fields))
    except OSError as error:
        raise UserError(f"source {source.name!r}: cannot read {path}: {error}") from error


def read_all(source: SourceConfig) -> Iterator[Chunk]:
    """Reads a whole source by column; as `read_source`, but an empty one is no error."""
    records = itertools.islice(_records(source), source.limit)
    yield from chunked(records, len(text_fields(source)))
