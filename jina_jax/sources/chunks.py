"""Consecutive records of a source, by column: what readers give and ingestion takes."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jina_jax.types import BadRecord, Origin, Pair, Triplet

CHUNK_RECORDS = 4096
CHUNK_BYTES = 8 << 20
"""Of texts in a chunk, beyond which no further record is added: the longest lines have 16 MiB."""

Item = Pair | Triplet | BadRecord


class Chunk(NamedTuple):
    """Some thousand records at most."""

    texts: tuple[list[str], ...]
    """Queries, positives and, of triplets, negatives."""
    files: list[str]
    rows: list[int]
    """Origin of each record that could be read."""
    bad: list[tuple[int, BadRecord]]
    """What could not be read, with its place among all records of the chunk."""
    last_row: int
    """Of the file, as far as it was read: blank lines count too."""

    @property
    def records(self) -> int:
        """Records read, bad ones included."""
        return len(self.rows) + len(self.bad)


def chunked(records: Iterable[Item], texts: int, last_row: int = 0) -> Iterator[Chunk]:
    """Records by column, a few thousand at a time.

    Args:
      records: of `texts` texts each.
      texts: 2 for pairs, 3 for triplets.
      last_row: of the file, as far as it was read for these.
    """
    held: list[Item] = []
    size = 0
    for record in records:
        held.append(record)
        size += 0 if isinstance(record, BadRecord) else sum(map(len, record[:-1]))
        if len(held) == CHUNK_RECORDS or size > CHUNK_BYTES:
            yield _by_column(held, texts, last_row)
            held, size = [], 0
    yield _by_column(held, texts, last_row)


def _by_column(records: Iterable[Item], texts: int, last_row: int) -> Chunk:
    chunk = Chunk(tuple([] for _ in range(texts)), [], [], [], last_row)
    for place, record in enumerate(records):
        if isinstance(record, BadRecord):
            chunk.bad.append((place, record))
            continue
        for column, text in zip(chunk.texts, record[:-1], strict=True):
            column.append(text)
        chunk.files.append(record.origin.file)
        chunk.rows.append(record.origin.row)
    return chunk


def flattened(chunk: Chunk) -> Iterator[Item]:
    """The records of a chunk one by one, bad ones in their places."""
    bad = dict(chunk.bad)
    good = zip(*chunk.texts, chunk.files, chunk.rows, strict=True)
    for place in range(chunk.records):
        if place in bad:
            yield bad[place]
        else:
            *texts, file, row = next(good)
            yield pair_or_triplet(tuple(texts), Origin(file, row))


def pair_or_triplet(texts: tuple[str, ...], origin: Origin) -> Pair | Triplet:
    """A pair of two texts or a triplet of three."""
    query, positive, *negative = texts
    return (
        Triplet(query, positive, negative[0], origin) if negative else Pair(query, positive, origin)
    )
