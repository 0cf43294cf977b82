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


class ChunkBuilder:
    """Collects the records of a file, in order."""

    def __init__(self, texts: int):
        """Takes how many texts a record has."""
        self._texts = texts
        self._start()

    def _start(self) -> None:
        self.columns: tuple[list[str], ...] = tuple([] for _ in range(self._texts))
        self.rows: list[int] = []
        self._files: list[str] = []
        self._bad: list[tuple[int, BadRecord]] = []
        self._held = 0

    def add(self, record: Item) -> bool:
        """Takes a record; True when the chunk is full."""
        if isinstance(record, BadRecord):
            self._bad.append((len(self.rows) + len(self._bad), record))
        else:
            for column, text in zip(self.columns, record[:-1], strict=True):
                column.append(text)
                self._held += len(text)
            self.rows.append(record.origin.row)
            self._files.append(record.origin.file)
        return len(self.rows) + len(self._bad) >= CHUNK_RECORDS or self._held > CHUNK_BYTES

    def take(self, last_row: int, file: str | None = None) -> Chunk:
        """What was collected.

        Args:
          last_row: of the file, so far.
          file: where all of it was read; None when `add` took each record.
        """
        files = self._files if file is None else [file] * len(self.rows)
        chunk = Chunk(self.columns, files, self.rows, self._bad, last_row)
        self._start()
        return chunk


def chunked(records: Iterable[Item], texts: int) -> Iterator[Chunk]:
    """Records by column, a few thousand at a time.

    Args:
      records: of `texts` texts each.
      texts: 2 for pairs, 3 for triplets.
    """
    builder = ChunkBuilder(texts)
    for record in records:
        if builder.add(record):
            yield builder.take(0)
    yield builder.take(0)


def flattened(chunk: Chunk) -> Iterator[Item]:
    """The records of a chunk one by one, bad ones in their places."""
    bad = dict(chunk.bad)
    good = zip(*chunk.texts, chunk.files, chunk.rows, strict=True)
    for place in range(chunk.records):
        if place in bad:
            yield bad[place]
        else:
            *texts, file, row = next(good)
            yield record(tuple(texts), Origin(file, row))


def record(texts: tuple[str, ...], origin: Origin) -> Pair | Triplet:
    """A pair of two texts or a triplet of three."""
    query, positive, *negative = texts
    return (
        Triplet(query, positive, negative[0], origin) if negative else Pair(query, positive, origin)
    )
