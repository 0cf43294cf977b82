"""Readers: from what a user configured to records, in a fixed order and in bounded memory."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.chunks import Chunk, Item, chunked, flattened
from jina_jax.sources.extract import read_extracted, read_records, reads_records
from jina_jax.sources.fields import Fields, columns_of, fields_of, layout_of
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
    scored = next((one.score for one in layouts if one.score), "")
    takes_positive = bool(positive or source.score_field or not scored)
    for one in layouts:
        if (query or one.query) and (positive or one.positive) and takes_positive:
            # The first record may be one of the pairs without a negative.
            negatives = (other.negative for other in layouts if other.negative)
            return replace(
                source, query_field=query or one.query, positive_field=positive or one.positive,
                negative_field=next(negatives, "") if source.finds_negatives else negative,
            )  # fmt: skip
    first = next((one for one in layouts if one.fields), None)
    if first is None:
        return named
    if not takes_positive:
        raise UserError(
            f"source {source.name!r}: {first.file} has two sentences in {first.query!r} and "
            f"{first.positive!r} and {scored!r} beside them: they need not belong together. For "
            f"pairs with a score set score_field={scored!r} of the source in a config; to train on "
            f"all of them as pairs that belong together set query_field and positive_field"
        )
    lacks = "positive" if query or first.query else "query"
    raise UserError(
        f"source {source.name!r}: {first.file} has the fields {', '.join(first.fields)[:300]}, of "
        f"which none is known for the {lacks}. Set query_field and positive_field (and, for "
        f"triplets, negative_field) to those that hold the texts; of a csv or tsv without a header "
        f'these are numbers: query_field="1"'
    )


def check_beside(source: SourceConfig) -> None:
    """Looks for the fields of label and score in the first records of a source.

    Raises: UserError where none of these has a field, with those that there are; and where the
      files cannot be read.
    """
    wanted = {
        name: getattr(source, name)
        for name in ("label_field", "score_field")
        if getattr(source, name)
    }
    if not wanted:
        return
    records = [record for record in _first_records(source) if isinstance(record.value, dict)]
    for name, field in wanted.items():
        if records and not any(columns_of(field, record.value) for record in records):
            file, has = records[0].origin.file, ", ".join(records[0].value)[:300]
            raise UserError(
                f"source {source.name!r}: {name}={field!r} is in none of the first {len(records)} "
                f"records of {file}, whose fields are {has}; name one of these, or leave it empty"
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
    if named.score_field:
        return (
            f"{source.name}: scored pairs of {named.query_field!r} and {named.positive_field!r}, "
            f"scores in {named.score_field!r}"
        )
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


def _records(source: SourceConfig, start: int = 0, end: int | None = None) -> Iterator[Item]:
    if source.kind == "pydocs":
        yield from read_pydocs(source.paths)
    elif reads_records(source):
        yield from read_extracted(source, matched_files(source), start, end)
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
    fields, kind = fields_of(source), file_kind(path, source.kind)
    try:
        if kind == "parquet" and not reads_records(source):
            yield from read_parquet(path, fields, start, end)
        elif kind == "jsonl" and not reads_records(source):
            yield from read_jsonl(path, fields, start, end)
        else:
            if kind in ("csv", "tsv") and not source.extractor:
                _check_columns(source, path, fields)
            yield from chunked(read_extracted(source, [path]), len(fields.texts))
    except OSError as error:
        raise UserError(f"source {source.name!r}: cannot read {path}: {error}") from error


def _check_columns(source: SourceConfig, path: str, fields: Fields) -> None:
    for record in read_records(source, [path]):
        if isinstance(record, Record):
            required_columns(path, list(record.value), fields.names)
            return


def read_all(source: SourceConfig, start: int = 0, end: int | None = None) -> Iterator[Chunk]:
    """Reads a whole source by column; as `read_source`, but an empty one is no error.

    Args:
      source: of any kind.
      start: of `tfds` and `hf`, the first unit of `data_set_extent`; of others 0.
      end: the unit after the last; None reads to the end.
    Returns: records by column; of a part, rows are counted from its start.
    """
    source = with_fields(source)
    records = itertools.islice(_records(source, start, end), source.limit)
    last = 0
    for chunk in chunked(records, len(fields_of(source).texts)):
        # Every row gives a record, if only a bad one.
        last = max(last, *chunk.rows[-1:], *(bad.origin.row for _, bad in chunk.bad[-1:]), 0)
        yield chunk._replace(last_row=last)
