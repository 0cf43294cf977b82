"""Records of several shards, of this file system or at a URL, numbered through."""

import bisect
import errno
import os
import resource
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from jina_jax.errors import UserError
from jina_jax.shards.array_record import TokenisedRecords, decode_records
from jina_jax.shards.bucket import DAMAGE, READ_OPTIONS, BucketShard, remedy

_BATCH_RECORDS = 16_384
_KEPT_FREE = 256
"""Of the files that a process may have open, for all else."""


class _OpenReaders:
    """The readers that this process has open, of all `ShardSet`s: as many as its limit of open
    files allows, those used last. Where the limit may be raised, it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._gone: deque[int] = deque()
        # Two processes must not share a file position, and no thread of a parent frees its lock.
        os.register_at_fork(after_in_child=self._begin_child)

    def get(self, owner: int, shard: int, path: Path) -> Any:
        """The reader of a shard, opened where it is not; raises what the library raises.

        A reader that is let go of here stays open for the thread that is reading from it.
        """
        with self._lock:
            self._let_go()
            reader = self._readers.pop((owner, shard), None)
            if reader is None:
                while self._readers and len(self._readers) >= _most_open(len(self._readers)):
                    self._readers.popitem(last=False)
                reader = self._opened(path)
            self._readers[owner, shard] = reader
            return reader

    def _begin_child(self) -> None:
        self._lock = threading.Lock()
        self._readers.clear()

    def _opened(self, path: Path) -> Any:
        while True:
            reader = ArrayRecordReader(str(path), READ_OPTIONS)
            # A file without an intact footer opens as one of no records; we write none such.
            if reader.num_records():
                return reader
            # So does one for which there was no descriptor left.
            try:
                path.open("rb").close()
            except OSError as error:
                if error.errno != errno.EMFILE or not self._readers:
                    raise
                # Others have more open than was kept free: half, so that some is left for them.
                for _ in range(-(-len(self._readers) // 2)):
                    self._readers.popitem(last=False)
                continue
            raise ValueError("it has no records")

    def forget(self, owner: int) -> None:
        """Lets go of the readers of a ShardSet that is gone, now or when one is next asked for.

        The garbage collector comes here from any line of any thread, also from one that has the
        lock: nothing may wait for it.
        """
        self._gone.append(owner)
        if self._lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        while self._gone:
            owner = self._gone.popleft()
            for key in [key for key in self._readers if key[0] == owner]:
                del self._readers[key]


def _most_open(now: int) -> int:
    """How many readers may be open where `now` are; raises the process's own limit before it is
    reached, as far as the system lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept_free = min(_KEPT_FREE, soft // 2)
    if now >= soft - kept_free and soft < hard:
        soft = min(2 * soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft - kept_free


_READERS = _OpenReaders()
_OWNERS = count()


class ShardSet:
    """Random access to the records of several shards, numbered on from one to the next.

    Files are opened when they are read, in each process, so an instance may be pickled or forked;
    any number of threads may read. ArrayRecord hashes every chunk of records (64 bits) and compares
    at each read, so that a damaged record is an error and never given out. That a file is the one
    that was prepared is for `manifest.verify_shards` to tell, and of one at a URL is looked at when
    it is first read.
    """

    def __init__(self, shards: Sequence[Path | BucketShard], records: Sequence[int] | None = None):
        """Names the shards, without opening them.

        Args:
          shards: files, or what lies at URLs, in order.
          records: of each shard, where it is known; else all are opened once to count.
        """
        self._shards = list(shards)
        self._ends = None if records is None else list(accumulate(records))
        self._owner = next(_OWNERS)
        weakref.finalize(self, _READERS.forget, self._owner)

    def __getstate__(self) -> tuple[list[Path | BucketShard], list[int] | None]:
        return self._shards, self._ends

    def __setstate__(self, state: tuple[list[Path | BucketShard], list[int] | None]) -> None:
        self.__init__(state[0])  # type: ignore[misc]
        self._ends = state[1]

    @property
    def is_in_store(self) -> bool:
        """Whether any of its records lie at a URL, so that each read waits for a store."""
        return any(isinstance(shard, BucketShard) for shard in self._shards)

    def _reader(self, shard: int) -> Any:
        path = self._shards[shard]
        assert isinstance(path, Path)
        try:
            reader = _READERS.get(self._owner, shard, path)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise UserError(
                    f"{path} cannot be opened: this process has as many files open as it may "
                    f"(ulimit -n: {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}); raise that, "
                    f"such as with `ulimit -n 65536` before the command. The shard is not to blame"
                ) from error
            raise _damaged(path, error) from error
        if self._ends is not None:
            expected = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
            if reader.num_records() != expected:
                has = f"it has {reader.num_records():,} records instead of {expected:,}"
                raise _damaged(path, ValueError(has))
        return reader

    @contextmanager
    def _opened(self, number: int, rows: Sequence[int]) -> Iterator[Any]:
        """A reader of some records of a shard."""
        shard = self._shards[number]
        if isinstance(shard, BucketShard):
            with shard.opened(rows) as reader:
                yield reader
        else:
            yield self._reader(number)

    def _records(self, number: int) -> int:
        shard = self._shards[number]
        if isinstance(shard, BucketShard):
            return shard.records
        return int(self._reader(number).num_records())

    def _all_ends(self) -> list[int]:
        if self._ends is None:
            self._ends = list(accumulate(map(self._records, range(len(self._shards)))))
        return self._ends

    def __len__(self) -> int:
        return self._all_ends()[-1] if self._shards else 0

    def read(self, indices: Sequence[int] | np.ndarray) -> TokenisedRecords:
        """Reads records, fastest in batches of hundreds. Of a shard at a URL each costs a request
        where they lie apart.

        Args:
          indices: 0 ≤ index < len(self), in any order, repeats allowed.
        Returns: the records in the order of `indices`.
        Raises: UserError naming the shard, and the record in it, that cannot be read; Unreachable
          where a store did not answer in time.
        """
        ends = self._all_ends()
        wanted = [int(i) for i in indices]
        assert all(0 <= i < len(self) for i in wanted), f"index beyond {len(self)} records"
        of_shard: dict[int, list[int]] = {}
        for position, index in enumerate(wanted):
            of_shard.setdefault(bisect.bisect_right(ends, index), []).append(position)
        found: list[bytes] = [b""] * len(wanted)
        for shard, positions in of_shard.items():
            first = ends[shard - 1] if shard else 0
            for position, record in zip(
                positions, self._read(shard, [wanted[p] - first for p in positions]), strict=True
            ):
                found[position] = record
        return self._decoded(found, sorted(of_shard))

    def read_run(self, first: int, last: int) -> TokenisedRecords:
        """Reads consecutive records, faster than `read` does; of a shard at a URL by one request.

        Args:
          first: 0 ≤ first < last.
          last: behind the last record, at most len(self).
        Raises: as `read`.
        """
        ends = self._all_ends()
        assert 0 <= first < last <= len(self), f"[{first}, {last}) of {len(self)} records"
        found: list[bytes] = []
        shards = range(bisect.bisect_right(ends, first), bisect.bisect_left(ends, last) + 1)
        for shard in shards:
            start = ends[shard - 1] if shard else 0
            rows = range(max(first, start) - start, min(last, ends[shard]) - start)
            if rows:  # Else the shard is empty.
                found += self._read(shard, rows)
        return self._decoded(found, shards)

    def batches(self) -> Iterator[TokenisedRecords]:
        """All records in their order, some thousand at a time; errors as for `read`."""
        for first in range(0, len(self), _BATCH_RECORDS):
            yield self.read_run(first, min(first + _BATCH_RECORDS, len(self)))

    def _decoded(self, records: list[bytes], shards: Sequence[int]) -> TokenisedRecords:
        try:
            return decode_records(records)
        except ValueError as error:
            names = ", ".join(str(self._shards[shard]) for shard in shards)
            raise UserError(f"damaged records in {names}: {error}; prepare again") from error

    def _read(self, number: int, rows: Sequence[int], *, is_again: bool = False) -> list[bytes]:
        shard = self._shards[number]
        with self._opened(number, rows) as reader:
            try:
                if isinstance(rows, range):
                    return list(reader.read(rows.start, rows.stop))
                return list(reader.read(rows))
            except DAMAGE as error:
                damaged = _damaged_record(shard, reader, rows, error)
        if isinstance(shard, BucketShard) and not is_again:
            # It may have been damaged on the way.
            return self._read(number, rows, is_again=True)
        raise damaged


def _damaged_record(
    shard: Path | BucketShard, reader: Any, rows: Sequence[int], error: Exception
) -> UserError:
    """Names the first record that cannot be read."""
    for row in rows:
        try:
            reader.read([row])
        except DAMAGE as cause:
            return UserError(
                f"shard {shard}: record {row} is damaged ({_reason(cause)}); nothing of it was "
                f"used. {remedy(shard).capitalize()}; `jina-jax doctor --full` finds every "
                f"damaged shard"
            )
    return _damaged(shard, error)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _damaged(shard: Path | BucketShard, error: Exception) -> UserError:
    return UserError(f"{shard} is no readable shard ({_reason(error)}); {remedy(shard)}")
