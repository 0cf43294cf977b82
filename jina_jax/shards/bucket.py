"""Shards at a URL, of which only the bytes are fetched that are wanted.

To read some records of a shard its index has to be there first. Each machine fetches it once, when
the shard is first read, and keeps it in a folder of bounded size; of a shard that is hardly larger
than what is fetched for its index, all. With the index the byte range of the records' chunks is
known. What comes is put where it belongs into a file in memory, which is empty but for that and the
index. The library reads that file like any other: so it compares all hashes, and what is damaged is
never taken for records.
"""

import errno
import hashlib
import io
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from array_record.python.array_record_module import ArrayRecordReader

from jina_jax.errors import UserError
from jina_jax.shards.index import Index, NotInTail, read_index, tail_bytes
from jina_jax.shards.manifest import END_BYTES, ShardFile, ends_digest
from jina_jax.system.files import again, store
from jina_jax.system.store import drop_least_recent

DAMAGE = (RuntimeError, ValueError, IndexError, OSError)
"""What the library raises."""
READ_OPTIONS = "readahead_buffer_size:262144,max_parallelism:0"
"""Records that follow each other are read in pieces of so many bytes: 0.2 ms for 1,024 of 150 bytes
and 0.6 ms without; it changes nothing for others."""
_HELD_BYTES = 64 << 20
"""Of indexes in a process: those of some 400 shards of 100,000 records."""
_KEPT_BYTES = 2 << 30
"""Of indexes on a machine: those of some 1.3 billion records."""
_LOOKED_AT_EVERY = 64
"""Of the indexes that a process keeps, the folder's size is looked at."""
_IN_FLIGHT_BYTES = 256 << 20
"""Of records that a process fetches and has not read yet."""
_WHOLE_WITHIN = 2
"""Times what is fetched for its index, a shard is fetched whole instead."""
_DIGEST_BYTES = 16
_HASHED_BYTES = 16 << 20
_REMEDY = "put the prepared folder there again"


@dataclass(frozen=True)
class BucketShard:
    """A shard at a URL."""

    url: str
    file: ShardFile
    """What the manifest says of it."""
    indexes: Path
    """Folder of this machine that keeps indexes."""

    def __str__(self) -> str:
        return self.url

    @property
    def records(self) -> int:
        """In it, as the manifest says."""
        return self.file.records

    @contextmanager
    def opened(self, rows: Sequence[int]) -> Iterator[Any]:
        """A reader that can read some records, and no others, until the block ends.

        Args:
          rows: of the shard; those of one chunk come together, and those of chunks that follow each
            other by one request.
        Raises: UserError or Unreachable where the shard cannot be fetched.
        """
        index = _INDEXES.get(self)
        ranges = [(start, end) for start, end in _ranges(index, rows) if start < index.tail_start]
        with _IN_FLIGHT.held(sum(end - start for start, end in ranges)):
            parts = self.fetched(ranges)
            with _in_memory(index, zip(ranges, parts, strict=True)) as reader:
                yield reader

    def fetched(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes [start, end) of each range.

        Raises: UserError where the shard is gone, refused or too short; Unreachable where the store
          did not answer in time.
        """
        parts = again(self.url, partial(self._fetched, ranges))
        for part, (start, end) in zip(parts, ranges, strict=True):
            if len(part) != end - start:
                raise self._other_size()
        return parts

    def ends_xxh3(self) -> str:
        """As `manifest.ends_xxh3`, of what is at the URL."""
        size = self.file.size_bytes
        first, last = self.fetched([(0, min(END_BYTES, size)), (max(size - END_BYTES, 0), size)])
        return ends_digest(first, last)

    def sha256(self) -> str:
        """Hex digest of what is at the URL, all of which is fetched."""
        digest = hashlib.sha256()
        for start in range(0, self.file.size_bytes, _HASHED_BYTES):
            end = min(start + _HASHED_BYTES, self.file.size_bytes)
            digest.update(self.fetched([(start, end)])[0])
        return digest.hexdigest()

    def _fetched(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        try:
            with store(self.url) as (system, name):
                parts = system.cat_ranges([name] * len(ranges), starts, ends, on_error="raise")
        except FileNotFoundError as error:
            raise UserError(f"shard {self.url} is missing; {_REMEDY}") from error
        except OSError as error:
            # S3 refuses a range behind the end of what has taken the shard's place.
            is_refused = error.errno == errno.EINVAL
            if is_refused and self._size_bytes() not in (None, self.file.size_bytes):
                raise self._other_size() from error
            raise
        return [bytes(part) for part in parts]

    def _size_bytes(self) -> int | None:
        """Of what is at the URL; None where the store does not tell."""
        with suppress(OSError), store(self.url) as (system, name):
            system.invalidate_cache()
            return int(system.info(name)["size"])
        return None

    def _other_size(self) -> UserError:
        return UserError(
            f"shard {self.url} has no longer the {self.file.size_bytes:,} bytes that the manifest "
            f"says; {_REMEDY}"
        )

    def index(self) -> Index:
        """Its index: from this machine's folder, or fetched and kept there.

        Raises: as `fetched`, and UserError where it is not the one that was prepared.
        """
        path = self.indexes / f"{self.file.sha256}.index"
        found = _read_kept(path)
        if found is None:
            found = self._fetched_index()
            _keep(path, found)
        return found

    def _fetched_index(self) -> Index:
        size = self.file.size_bytes
        tail_start = size - tail_bytes(self.file.records, size)
        if size <= _WHOLE_WITHIN * (END_BYTES + size - tail_start):
            [content] = self.fetched([(0, size)])
            if hashlib.sha256(content).hexdigest() == self.file.sha256:
                return replace(read_index(content, size), tail_start=0, tail=content)
            # Read record by record it is told what is damaged.
        first, tail = self.fetched([(0, min(END_BYTES, size)), (tail_start, size)])
        if ends_digest(first, tail[-END_BYTES:]) != self.file.ends_xxh3:
            raise UserError(
                f"shard {self.url} is another one than the manifest's, or damaged: its first or "
                f"last bytes differ; {_REMEDY}"
            )
        try:
            try:
                index = read_index(tail, size)
            except NotInTail as error:
                [before] = self.fetched([(error.start, tail_start)])
                index = read_index(before + tail, size)
            with _in_memory(index, ()) as reader:  # It compares the hashes.
                has = reader.num_records()
            if has != self.file.records or index.records != has:
                raise ValueError(f"it has {has:,} records instead of {self.file.records:,}")
        except DAMAGE as error:
            raise UserError(f"shard {self.url} is damaged ({error}); {_REMEDY}") from error
        return index


def remedy(shard: Path | BucketShard) -> str:
    """What to do about a shard that is not as it was prepared."""
    return _REMEDY if isinstance(shard, BucketShard) else "restore it or prepare the data again"


def _ranges(index: Index, rows: Sequence[int]) -> list[tuple[int, int]]:
    """The byte ranges of the chunks of some records, one for those that follow each other."""
    if isinstance(rows, range) and rows.step == 1:
        return [index.byte_range(rows.start, rows.stop)]
    ranges: list[tuple[int, int]] = []
    for chunk in sorted({row // index.group for row in rows}):
        start, end = int(index.start_C[chunk]), int(index.start_C[chunk + 1])
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


@contextmanager
def _in_memory(index: Index, parts: Any) -> Iterator[Any]:
    """A reader of a file in memory that has these parts of a shard and its index, and zeros, which
    take no memory, elsewhere.
    """
    file = os.memfd_create("shard", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, index.size_bytes)
        os.pwrite(file, index.tail, index.tail_start)
        for (start, _), part in parts:
            os.pwrite(file, part, start)
        reader = ArrayRecordReader(f"/proc/self/fd/{file}", READ_OPTIONS)
        try:
            yield reader
        finally:
            reader.close()
    finally:
        os.close(file)


def _read_kept(path: Path) -> Index | None:
    """None where there is none, or what a kill or a full disk has left of it."""
    try:
        content = path.read_bytes()
        os.utime(path)
    except FileNotFoundError:
        return None
    if xxhash.xxh3_128_digest(content[_DIGEST_BYTES:]) != content[:_DIGEST_BYTES]:
        return None
    file = io.BytesIO(content[_DIGEST_BYTES:])
    numbers = np.load(file).tolist()
    if len(numbers) != 4:  # Kept by an older version.
        return None
    size_bytes, records, group, tail_start = numbers
    start_C, tail = np.load(file), np.load(file).tobytes()
    return Index(size_bytes, records, group, start_C, tail_start, tail)


def _keep(path: Path, index: Index) -> None:
    file = io.BytesIO()
    np.save(file, np.array([index.size_bytes, index.records, index.group, index.tail_start]))
    np.save(file, index.start_C)
    np.save(file, np.frombuffer(index.tail, np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    content = file.getvalue()
    part.write_bytes(xxhash.xxh3_128_digest(content) + content)
    part.replace(path)
    if next(_kept) % _LOOKED_AT_EVERY == 0:
        drop_least_recent(path.parent.iterdir(), _KEPT_BYTES)


_kept = count()


class _Indexes:
    """The indexes that this process holds, those used last, each read by one thread alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[BucketShard, Index] = OrderedDict()
        self._held_bytes = 0
        self._coming: dict[BucketShard, threading.Lock] = {}

    def get(self, shard: BucketShard) -> Index:
        """The index of a shard; errors as `BucketShard.index`."""
        with self._lock:
            if shard in self._held:
                self._held.move_to_end(shard)
                return self._held[shard]
            coming = self._coming.setdefault(shard, threading.Lock())
        with coming:
            with self._lock:
                if shard in self._held:
                    return self._held[shard]
            index = shard.index()
            with self._lock:
                self._coming.pop(shard, None)
                self._held[shard] = index
                self._held_bytes += index.held_bytes
                while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
                    self._held_bytes -= self._held.popitem(last=False)[1].held_bytes
        return index


class _Gate:
    """Lets threads hold bytes, so many in all; one that wants more waits until it is alone."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._bytes = 0

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Waits until so many bytes more may be held, and holds them until the block ends."""
        with self._free:
            self._free.wait_for(lambda: not self._bytes or self._bytes + size <= _IN_FLIGHT_BYTES)
            self._bytes += size
        try:
            yield
        finally:
            with self._free:
                self._bytes -= size
                self._free.notify_all()


_INDEXES, _IN_FLIGHT = _Indexes(), _Gate()


def _begin_child() -> None:
    """A forked process holds no locks of threads that it does not have."""
    global _INDEXES, _IN_FLIGHT
    _INDEXES, _IN_FLIGHT = _Indexes(), _Gate()


os.register_at_fork(after_in_child=_begin_child)
