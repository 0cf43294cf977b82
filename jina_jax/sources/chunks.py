"""Consecutive records of a source, by column: what readers give and ingestion takes."""

from collections.abc import Iterable, Iterator, Sequence
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
    labels: Sequence[str] = ()
    """Of each record that could be read, where the source has labels; else none."""
    scores: Sequence[float] = ()
    """The same of the scores of scored pairs."""

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
        size += 0 if isinstance(record, BadRecord) else sum(map(len, record.texts))
        if len(held) == CHUNK_RECORDS or size > CHUNK_BYTES:
            yield _by_column(held, texts, last_row)
            held, size = [], 0
    yield _by_column(held, texts, last_row)


def _by_column(records: Iterable[Item], texts: int, last_row: int) -> Chunk:
    labels: list[str] = []
    scores: list[float] = []
    chunk = Chunk(tuple([] for _ in range(texts)), [], [], [], last_row, labels, scores)
    for place, record in enumerate(records):
        if isinstance(record, BadRecord):
            chunk.bad.append((place, record))
            continue
        for column, text in zip(chunk.texts, record.texts, strict=True):
            column.append(text)
        if record.label:
            labels.append(record.label)
        if isinstance(record, Pair) and record.score is not None:
            scores.append(record.score)
        chunk.files.append(record.origin.file)
        chunk.rows.append(record.origin.row)
    return chunk


def flattened(chunk: Chunk) -> Iterator[Item]:
    """The records of a chunk one by one, bad ones in their places."""
    bad = dict(chunk.bad)
    labels = chunk.labels or [""] * len(chunk.rows)
    scores: Sequence[float | None] = chunk.scores or [None] * len(chunk.rows)
    good = zip(*chunk.texts, chunk.files, chunk.rows, labels, scores, strict=True)
    for place in range(chunk.records):
        if place in bad:
            yield bad[place]
        else:
            *texts, file, row, label, score = next(good)
            yield pair_or_triplet(tuple(texts), Origin(file, row), label, score)


def pair_or_triplet(
    texts: tuple[str, ...], origin: Origin, label: str = "", score: float | None = None
) -> Pair | Triplet:
    """A pair of two texts, which may be scored, or a triplet of three."""
    query, positive, *negative = texts
    if negative:
        return Triplet(query, positive, negative[0], origin, label)
    return Pair(query, positive, origin, label, score)
