"""Readers: from what a user configured to records, in a fixed order and in bounded memory."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.chunks import Chunk, Item, chunked, flattened
from jina_jax.sources.extract import read_extracted, read_records, reads_records
from jina_jax.sources.fields import layout_of, text_fields
from jina_jax.sources.kinds import data_files, file_kind
from jina_jax.sources.pydocs import read_pydocs
from jina_jax.sources.records import read_jsonl
from jina_jax.sources.tables import read_parquet, required_columns
from jina_jax.types import NO_PAIR, BadRecord, Pair, Record, Triplet

_PEEKED_RECORDS = 100


def with_fields(source: SourceConfig) -> SourceConfig:
    """A source with the names of its fields, those that are left empty found in its first records.

    A record that is a list of texts, or holds one, as those of
    sentence-transformers/embedding-training-data, gets the extractor for these.

    Raises: UserError when a path matches no file or cannot be read, or no field has a common name.
    """
    query, positive, negative = source.query_field, source.positive_field, source.negative_field
    if query and positive:
        return source
    # Where nothing can be found, what is wrong with the records is told when all are read.
    named = replace(source, query_field=query or "query", positive_field=positive or "positive")
    if source.extractor or source.kind == "pydocs":
        return named
    layouts = [layout_of(record) for record in _first_records(source)]
    if (sizes := [one.texts for one in layouts if one.texts]) and not (query or positive):
        found = negative or ("negative" if 3 in sizes else "")
        return replace(named, extractor="embedding_texts", negative_field=found)
    for one in layouts:
        if (query or one.query) and (positive or one.positive):
            # The first record may be one of the pairs without a negative.
            negatives = (other.negative for other in layouts if other.negative)
            return replace(
                source, query_field=query or one.query, positive_field=positive or one.positive,
                negative_field=next(negatives, "") if source.finds_negatives else negative,
            )  # fmt: skip
    first = next((one for one in layouts if one.fields), None)
    if first is None:
        return named
    lacks = "positive" if query or first.query else "query"
    raise UserError(
        f"source {source.name!r}: {first.file} has the fields {', '.join(first.fields)[:300]}, of "
        f"which none is known for the {lacks}. Set query_field and positive_field (and, for "
        f"triplets, negative_field) to those that hold the texts; of a csv or tsv without a header "
        f'these are numbers: query_field="1"'
    )


def _first_records(source: SourceConfig) -> Iterator[Record]:
    files = matched_files(source)
    try:
        for record in itertools.islice(read_records(source, files), _PEEKED_RECORDS):
            if isinstance(record, Record):
                yield record
    except OSError as error:
        where = ", ".join(files) or source.dataset
        raise UserError(f"source {source.name!r}: cannot read {where[:300]}: {error}") from error


def what_was_found(source: SourceConfig, named: SourceConfig) -> str:
    """A line on the fields that `with_fields` found; empty where all were named."""
    if source == named or source.kind == "pydocs":
        return ""
    if named.extractor:
        return "" if source.extractor else f"{source.name}: lists of texts ({named.extractor})"
    negative = f", negatives in {named.negative_field!r}" if named.negative_field else ""
    return (
        f"{source.name}: queries in {named.query_field!r}, positives in "
        f"{named.positive_field!r}{negative}"
    )


def read_source(source: SourceConfig) -> Iterator[Item]:
    """Reads a source from its first record to its last, in bounded memory.

    Args:
      source: kind, paths and fields; its globs are expanded in sorted order, and fields that are
        not named are found.
    Returns: pairs or triplets, and in their place a BadRecord for each record that cannot be read
      or gives none. `limit` counts both. Texts are as the source gave them, not stripped.
    Raises: UserError when a path matches no file, a file or a column cannot be read at all, or
      there is not one record.
    """
    records = iter(itertools.islice(_records(with_fields(source)), source.limit))
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
            if record.reason == NO_PAIR:
                continue
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
    source = with_fields(source)
    fields, kind = text_fields(source), file_kind(path, source.kind)
    try:
        if kind == "parquet" and not reads_records(source):
            yield from read_parquet(path, fields, start, end)
        elif kind == "jsonl" and not reads_records(source):
            yield from read_jsonl(path, fields, start, end)
        else:
            if kind in ("csv", "tsv") and not source.extractor:
                _check_columns(source, path, fields)
            yield from chunked(read_extracted(source, [path]), len(fields))
    except OSError as error:
        raise UserError(f"source {source.name!r}: cannot read {path}: {error}") from error


def _check_columns(source: SourceConfig, path: str, fields: tuple[str, ...]) -> None:
    for record in read_records(source, [path]):
        if isinstance(record, Record):
            required_columns(path, list(record.value), fields)
            return


def read_all(source: SourceConfig) -> Iterator[Chunk]:
    """Reads a whole source by column; as `read_source`, but an empty one is no error."""
    source = with_fields(source)
    records = itertools.islice(_records(source), source.limit)
    yield from chunked(records, len(text_fields(source)))
