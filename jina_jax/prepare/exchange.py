"""How tasks hand rows to each other by bucket.

A task that gives rows writes one file, in which the rows of a bucket lie together, bucket after
bucket. Another gathers what lies where in all files into one index. A task that takes some buckets
reads one range of the index and one range of each file:

    file   rows of bucket 0, their texts, rows of bucket 1, their texts, ..., places
    places uint64 [BUCKETS + 1, 2]: first byte and first row of each bucket, and their ends
    index  places of all files, uint64 [BUCKETS + 1, files, 2]; then the list of the files, as JSON

A row has fields of fixed width and a number of texts, which lie row by row. Their lengths are among
the fields: a bucket of many files is put together by copying, and nothing is parsed.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jina_jax.system.store import StoredFile

BUCKETS = 2048
"""By the first bits of a 64-bit hash; a task takes as many that follow each other as it likes."""
_SHIFT = 64 - 11
_NO_TEXT = np.uint32(0xFFFFFFFF)
"""Length of a text that is missing."""
_CHUNK_BYTES = 16 << 20
_WINDOW_BYTES = 64 << 20
"""Of ranges that a task holds beside the rows that it has put together."""
_INDEX_BYTES = 2 << 20
"""Of an index that is held while it is made."""
_THREADS = 32
"""Ranges that are fetched at once from an object store, whose every answer takes long."""


class Layout(NamedTuple):
    """What a kind of rows has."""

    fields: tuple[tuple[Any, ...], ...]
    """Names, NumPy types and, where they are no scalars, shapes."""
    texts: int = 0
    """Of a row."""
    is_text: bool = True
    """They are UTF-8; else any bytes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the fields and of the lengths of the texts."""
        return np.dtype([*self.fields, ("lengths", "<u4", (self.texts,))])

    @property
    def text_type(self) -> pa.DataType:
        """Arrow's."""
        return pa.large_string() if self.is_text else pa.large_binary()


class Rows(NamedTuple):
    """N rows of a layout."""

    fields_N: np.ndarray
    """Of the layout's dtype; lengths count only in files."""
    texts: pa.Array
    place_NT: np.ndarray | None = None
    """Where in `texts` those of each row lie, -1 for one that is missing; None: row by row."""


class Totals(NamedTuple):
    """Of all files, per bucket."""

    rows: tuple[int, ...]
    size_bytes: tuple[int, ...]
    index_bytes: int
    """Of the index."""


def bucket_starts(first: int, end: int) -> np.ndarray:
    """uint64: the least hash of each bucket from `first` on, and so on before `end`."""
    return np.arange(first, end, dtype=np.uint64) << np.uint64(_SHIFT)


class BucketWriter:
    """Writes a file of rows, bucket after bucket. `places_at` is known when it is closed."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._file, self._layout = path.open("wb"), layout
        self._places = np.zeros((BUCKETS + 1, 2), np.uint64)
        self._bucket = self._bytes = self._rows = 0
        self.places_at = 0
        """Byte at which the places begin."""

    def __enter__(self) -> "BucketWriter":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        """Ends the file where all went well."""
        if kind is None:
            self._places[self._bucket :] = self._bytes, self._rows
            self.places_at = self._bytes
            self._file.write(self._places.tobytes())
        self._file.close()

    def add(self, rows: Rows, order_N: np.ndarray, hash_N: np.ndarray, end: int = BUCKETS) -> None:
        """Writes the rows of all buckets that are not written yet, up to a bucket.

        Args:
          rows: of those buckets, and perhaps others.
          order_N: which of them, in the order in which they are to lie.
          hash_N: uint64, ascending: the hash of each in that order.
          end: the bucket before which it ends.
        """
        first = self._bucket
        bounds = np.append(np.searchsorted(hash_N, bucket_starts(first, end)), len(order_N))
        assert first == end or not bounds[0], "a row of a bucket that is written already"
        mean_bytes = rows.fields_N.itemsize + rows.texts.nbytes // max(1, len(rows.fields_N))
        most_rows = max(1, _CHUNK_BYTES // mean_bytes)
        done = 0
        while done < end - first:
            # As many buckets as hold so many rows, or one that holds more.
            last = int(np.searchsorted(bounds, bounds[done] + most_rows, "right")) - 1
            last = min(max(last, done + 1), end - first)
            self._write(rows, order_N[bounds[done] : bounds[last]], bounds[done : last + 1])
            done = last

    def _write(self, rows: Rows, order_N: np.ndarray, bounds: np.ndarray) -> None:
        fields_N, heap, end_N = _laid_out(self._layout, rows, order_N)
        first_B = bounds - bounds[0]
        text_end_B = end_N[first_B]
        held_B = np.diff(first_B).astype(np.int64)
        size_B = held_B * fields_N.itemsize + np.diff(text_end_B)
        places_B = self._places[self._bucket :][: len(held_B)]
        places_B[:, 0] = self._bytes + np.cumsum(size_B) - size_B
        places_B[:, 1] = self._rows + np.cumsum(held_B) - held_B
        of_rows, row_ends = memoryview(fields_N.tobytes()), (first_B * fields_N.itemsize).tolist()
        text_ends = text_end_B.tolist()
        for bucket in np.flatnonzero(held_B).tolist():
            self._file.write(of_rows[row_ends[bucket] : row_ends[bucket + 1]])
            self._file.write(heap[text_ends[bucket] : text_ends[bucket + 1]])
        self._bucket += len(held_B)
        self._bytes += int(size_B.sum())
        self._rows += int(held_B.sum())


def _laid_out(
    layout: Layout, rows: Rows, order_N: np.ndarray
) -> tuple[np.ndarray, memoryview, np.ndarray]:
    """Fields of some rows; their texts, joined; and where those of each row end, from 0."""
    fields_N = rows.fields_N[order_N]
    if not layout.texts:
        return fields_N, memoryview(b""), np.zeros(len(order_N) + 1, np.int64)
    place_NT = order_N[:, None] * layout.texts + np.arange(layout.texts)
    if rows.place_NT is not None:
        place_NT = rows.place_NT[order_N]
    place_T = place_NT.ravel()
    texts = rows.texts.take(pa.array(place_T, mask=place_T < 0))
    _, ends, heap = texts.buffers()
    end_T = np.frombuffer(ends, np.int64)[texts.offset :][: len(texts) + 1]
    length_T = np.where(place_T < 0, _NO_TEXT, np.diff(end_T))
    if texts.null_count:
        length_T[texts.is_null().to_numpy(zero_copy_only=False)] = _NO_TEXT
    fields_N["lengths"] = length_T.reshape(-1, layout.texts)
    return fields_N, memoryview(heap or b""), end_T[:: layout.texts]


class Given(NamedTuple):
    """A file of rows, as whoever gathers it knows it."""

    file: StoredFile
    places_at: int
    note: Any = None
    """JSON that whoever takes the rows needs to know of the file."""


@dataclass(frozen=True)
class Exchange:
    """An index, and the files that it is of."""

    index: StoredFile
    files: int
    """How many."""
    size_bytes: int
    """Of the index."""

    def given(self) -> "Listed":
        """The files in their order, with their notes."""
        return _listed(self)

    def windows(
        self, layout: Layout, first: int, end: int, numbers: np.ndarray
    ) -> Iterator[tuple[Rows, np.ndarray]]:
        """Rows of the buckets [first, end), of a bounded number of bytes at a time.

        Args:
          layout: of the rows.
          first: bucket.
          end: bucket.
          numbers: ascending, which of the files to read.
        Returns: rows, file by file and within a file as they were written; and which file each is
          of.
        """
        width = self.files * 16
        (content,) = self.index.read([(first * width, (end + 1) * width)])
        shape = (end - first + 1, self.files, 2)
        places = np.frombuffer(content, "<i8").reshape(shape)[:, numbers]
        sizes = places[-1, :, 0] - places[0, :, 0]
        window_F = np.cumsum(sizes) // _WINDOW_BYTES
        for window in np.unique(window_F[sizes > 0]).tolist():
            mine = np.flatnonzero((window_F == window) & (sizes > 0))
            yield _put_together(self, layout, places[:, mine], numbers[mine])


class Listed(NamedTuple):
    """The files of an exchange."""

    files: tuple[StoredFile, ...]
    notes: tuple[Any, ...]


# A process works on one exchange for many tasks.
@lru_cache(maxsize=2)
def _listed(exchange: Exchange) -> Listed:
    start = (BUCKETS + 1) * exchange.files * 16
    (content,) = exchange.index.read([(start, exchange.size_bytes)])
    values = json.loads(content)
    files = tuple(exchange.index.store.file(name) for name, _ in values)
    return Listed(files, tuple(note for _, note in values))


def _put_together(
    exchange: Exchange, layout: Layout, places: np.ndarray, numbers: np.ndarray
) -> tuple[Rows, np.ndarray]:
    """Copies rows and texts of files one after another; each has some."""
    itemsize = layout.dtype.itemsize
    size_FS, rows_FS = np.moveaxis(np.diff(places, axis=0), 0, 1).transpose(2, 0, 1)
    rows = np.empty(int(rows_FS.sum()) * itemsize, np.uint8)
    heap = np.empty(int(size_FS.sum()) - len(rows), np.uint8)
    into_rows, into_heap = rows.data, heap.data
    row_at = heap_at = 0
    is_there_FS = rows_FS > 0
    of_rows = iter((rows_FS[is_there_FS] * itemsize).tolist())
    of_texts = iter((size_FS - rows_FS * itemsize)[is_there_FS].tolist())
    files = exchange.given().files
    ranges = zip(numbers.tolist(), places[0, :, 0].tolist(), places[-1, :, 0].tolist(), strict=True)
    contents = _contents([(files[number], start, end) for number, start, end in ranges])
    for segments, content in zip(is_there_FS.sum(axis=1).tolist(), contents, strict=True):
        at, view = 0, memoryview(content)
        for _ in range(segments):
            row_end, heap_end = row_at + next(of_rows), heap_at + next(of_texts)
            middle = at + row_end - row_at
            end = middle + heap_end - heap_at
            into_rows[row_at:row_end] = view[at:middle]
            into_heap[heap_at:heap_end] = view[middle:end]
            at, row_at, heap_at = end, row_end, heap_end
    fields_N = rows.view(layout.dtype)
    file_N = np.repeat(numbers, rows_FS.sum(axis=1))
    return Rows(fields_N, _texts(layout, fields_N, heap)), file_N


def _contents(ranges: Sequence[tuple[StoredFile, int, int]]) -> Iterator[bytes]:
    def content(one: tuple[StoredFile, int, int]) -> bytes:
        file, start, end = one
        return file.read([(start, end)])[0]

    if ranges and ranges[0][0].store.is_remote:
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from threads.map(content, ranges)
    else:
        yield from map(content, ranges)


def _texts(layout: Layout, fields_N: np.ndarray, heap: np.ndarray) -> pa.Array:
    length_T = fields_N["lengths"].reshape(-1).astype(np.int64)
    is_there_T = length_T != _NO_TEXT
    end_T = np.zeros(len(length_T) + 1, np.int64)
    np.cumsum(np.where(is_there_T, length_T, 0), out=end_T[1:])
    valid = None
    if not is_there_T.all():
        valid = pa.py_buffer(np.packbits(is_there_T, bitorder="little"))
    buffers = [valid, pa.py_buffer(end_T), pa.py_buffer(heap)]
    return pa.Array.from_buffers(layout.text_type, len(length_T), buffers)


def gather_task(given: Sequence[Given], index: StoredFile) -> Totals:
    """Makes the index of files. Memory holds the places of some buckets in all files.

    Args:
      given: the files, in the order in which their rows are wanted.
      index: the file to write.
    """
    step = max(1, _INDEX_BYTES // (16 * max(1, len(given))))
    rows: list[int] = []
    size_bytes: list[int] = []
    with index.write() as path:
        with path.open("wb") as file:
            for first in range(0, BUCKETS + 1, step):
                # One more, where there is one, for what the last bucket holds.
                end = min(first + step + 1, BUCKETS + 1)
                ranges = [
                    (one.file, one.places_at + first * 16, one.places_at + end * 16)
                    for one in given
                ]
                places = np.zeros((end - first, len(given), 2), "<i8")
                for number, content in enumerate(_contents(ranges)):
                    places[:, number] = np.frombuffer(content, "<i8").reshape(-1, 2)
                file.write(places[:step].tobytes())
                held_B2 = np.diff(places, axis=0).sum(axis=1)
                size_bytes += held_B2[:, 0].tolist()
                rows += held_B2[:, 1].tolist()
            file.write(json.dumps([(one.file.name, one.note) for one in given]).encode())
        index_bytes = path.stat().st_size
    return Totals(tuple(rows), tuple(size_bytes), index_bytes)
