"""From whole records to pairs and triplets, for sources that name an extractor or a data set."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.extractors import GROUPED, PER_RECORD, Grouped, Texts
from jina_jax.sources.huggingface import read_hf
from jina_jax.sources.records import Record, field_texts, is_unicode, kind_of, read_file_records
from jina_jax.sources.tfds import read_tfds
from jina_jax.types import BadRecord, Origin, Pair, Triplet

MAX_HELD_GROUPS = 250_000
"""Groups kept open at once. MNLI has 130,000 premises whose three hypotheses stand far apart."""
MAX_GROUP_RECORDS = 1_000
"""A larger group is given out as it is and begun anew, so that memory stays bounded."""
_WRONG_SHAPE = (KeyError, TypeError, IndexError, ValueError, AttributeError, StopIteration)


def reads_records(source: SourceConfig) -> bool:
    """Whether `read_extracted` reads this source, rather than a reader of two columns."""
    return bool(source.extractor) or source.kind in ("text", "tfds", "hf")


def read_extracted(
    source: SourceConfig, files: Iterable[str]
) -> Iterator[Pair | Triplet | BadRecord]:
    """Reads whole records and takes the texts out of them.

    Args:
      source: one that `reads_records`.
      files: of the source; none for `tfds` and `hf`.
    Returns: triplets where the source names a `negative_field`, else pairs; in the order of the
      source, or for a grouping extractor in the order in which groups
      begin; a BadRecord for each record, or group, that is not of the expected shape.
    Raises: UserError when there is no such extractor, or a file or data set cannot be read.
    """
    wanted = Triplet if source.negative_field else Pair
    for item in _read(source, files):
        if isinstance(item, wanted | BadRecord):
            yield item
        else:
            yield BadRecord("wrong_shape", _OTHER_COUNT[type(item)], item.origin)


_OTHER_COUNT: dict[type, str] = {
    Pair: "a pair, but the source names a negative_field: leave it empty for pairs",
    Triplet: "a triplet, but the source names no negative_field: name it for triplets",
}


def _read(source: SourceConfig, files: Iterable[str]) -> Iterator[Pair | Triplet | BadRecord]:
    records = _records(source, files)
    if source.extractor in GROUPED:
        yield from _grouped(records, GROUPED[source.extractor], source.extractor)
    elif source.extractor:
        if source.extractor not in PER_RECORD:
            raise UserError(
                f"source {source.name!r}: no extractor {source.extractor!r}; there are "
                f"{', '.join(sorted(PER_RECORD | GROUPED))}"
            )
        extract = PER_RECORD[source.extractor]
        for record in records:
            if isinstance(record, BadRecord):
                yield record
            else:
                yield from _extracted(extract, record.value, source.extractor, record.origin)
    else:
        for record in records:
            yield record if isinstance(record, BadRecord) else _from_fields(source, record)


def _records(source: SourceConfig, files: Iterable[str]) -> Iterator[Record | BadRecord]:
    if source.kind == "hf":
        yield from read_hf(source)
    elif source.kind == "tfds":
        yield from read_tfds(source)
    else:
        for path in files:
            yield from read_file_records(path, source.kind)


def _from_fields(source: SourceConfig, record: Record) -> Pair | Triplet | BadRecord:
    fields: tuple[str, ...] = (source.query_field, source.positive_field)
    if source.negative_field:
        fields = (*fields, source.negative_field)
    texts = field_texts(record.value, fields, record.origin)
    return texts if isinstance(texts, BadRecord) else _as_item(texts, record.origin)


def _as_item(texts: tuple[str, ...], origin: Origin) -> Pair | Triplet:
    if len(texts) == 3:
        return Triplet(*texts, origin)
    query, positive = texts
    return Pair(query, positive, origin)


def _extracted(
    extract: Callable[[Any], list[Texts]], value: Any, name: str, origin: Origin
) -> Iterator[Pair | Triplet | BadRecord]:
    try:
        found = extract(value)
    except _WRONG_SHAPE as error:
        what = f"not what {name} reads: {type(error).__name__}: {error}"
        yield BadRecord("wrong_shape", what, origin)
        return
    for texts in found:
        if wrong := [text for text in texts if not isinstance(text, str)]:
            yield BadRecord("wrong_type", f"{name} found {kind_of(wrong[0])}, not a text", origin)
        elif not all(map(is_unicode, texts)):
            yield BadRecord("invalid_utf8", f"{name} found half of a surrogate pair", origin)
        else:
            yield _as_item(texts, origin)


def _grouped(
    records: Iterable[Record | BadRecord], grouped: Grouped, name: str
) -> Iterator[Pair | Triplet | BadRecord]:
    """Collects groups whose records may stand apart; the oldest goes first when too many wait."""
    held: dict[Hashable, list[Record]] = {}
    key: Hashable = None
    for record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            key = grouped.key(record.value, key)
            hash(key)  # A list where a text should be has none: a TypeError.
        except _WRONG_SHAPE as error:
            what = f"not what {name} reads: {type(error).__name__}: {error}"
            yield BadRecord("wrong_shape", what, record.origin)
            continue
        group = held.setdefault(key, [])
        group.append(record)
        if len(group) == MAX_GROUP_RECORDS:
            yield from _group(held.pop(key), grouped, name)
        elif len(held) > MAX_HELD_GROUPS:
            yield from _group(held.pop(next(iter(held))), grouped, name)
    for group in held.values():
        yield from _group(group, grouped, name)


def _group(
    group: list[Record], grouped: Grouped, name: str
) -> Iterator[Pair | Triplet | BadRecord]:
    values = [record.value for record in group]
    yield from _extracted(grouped.texts, values, name, group[0].origin)
