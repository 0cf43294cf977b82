"""Shards: ArrayRecord files of tokenised texts, and how a record of them is laid out.

A record of n texts (2 for a pair) is, without padding and little-endian:

    u8 n | u8 s | n × 16 bytes text hash | n × u16 length | s × float32 score
    | ids of text 0, of text 1, ...

where s is n - 1 where a teacher has scored the query with each other text, and else 0. Ids are
uint16, or uint32 where the highest bit of the first byte is set: of vocabularies above 65,536.
"""

import bisect
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from jina_jax.errors import UserError
from jina_jax.text.identity import HASH_BYTES

MAX_TEXT_TOKENS = 65535
SMALL_VOCABULARY = 1 << 16
"""Pieces whose ids two bytes hold."""
_WIDE = 0x80
_WRITE_OPTIONS = "group_size:16,uncompressed"
"""Ids hardly compress: zstd saves 24% of the bytes and halves the records read per second (measured
on 117k records of 200 bytes, in batches of 1,024: 186k/s against 87k/s a core; groups of 1, 4 and
16 differ by less than 10%, and 16 makes the smallest index)."""
_DAMAGE = (RuntimeError, ValueError, IndexError, OSError)
"""What the library raises."""
_BATCH_RECORDS = 16_384
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class TokenisedRecords:
    """Decoded records, in the order asked for. N records of S texts, T ids in all."""

    ids_T: np.ndarray
    """uint16 or uint32; all texts one after another, record by record."""
    starts_NS: np.ndarray
    """int64; where each text starts in `ids_T`."""
    lengths_NS: np.ndarray
    """int64; tokens of each text, </s> included."""
    hashes_NSx2: np.ndarray
    """uint64; the two halves of each text's hash: equal exactly when the texts are the same."""
    scores_NS: np.ndarray | None = None
    """float32 [N, S - 1], a teacher's of the query with each other text, NaN where there is none;
    None where the records have none at all."""

    def __len__(self) -> int:
        return len(self.lengths_NS)

    def text(self, record: int, position: int) -> np.ndarray:
        """Ids of one text, a view.

        Args:
          record: 0 ≤ record < len(self).
          position: 0 for the query, 1 for the positive.
        """
        start = self.starts_NS[record, position]
        return self.ids_T[start : start + self.lengths_NS[record, position]]


def encode_record(
    hashes: Sequence[bytes],
    ids: Sequence[Sequence[int] | np.ndarray],
    scores: Sequence[float] | np.ndarray = (),
    *,
    wide: bool = False,
) -> bytes:
    """Lays out one record.

    Args:
      hashes: 16 bytes per text.
      ids: token ids per text.
      scores: a teacher's, of the query with each other text; none where there are none.
      wide: four bytes an id, for a vocabulary above `SMALL_VOCABULARY`, and not two.
    Returns: 2 + 18n + 4·(scores) + 2 or 4·(all ids) bytes.
    """
    assert 0 < len(hashes) == len(ids) < _WIDE
    assert len(scores) in (0, len(ids) - 1)
    assert all(len(h) == HASH_BYTES for h in hashes)
    lengths = np.array([len(text) for text in ids])
    assert lengths.max() <= MAX_TEXT_TOKENS
    texts = [np.asarray(text, dtype="<u4" if wide else "<u2").tobytes() for text in ids]
    head = bytes([len(ids) + _WIDE * wide, len(scores)])
    score_bytes = np.asarray(scores, "<f4").tobytes()
    return b"".join([head, *hashes, lengths.astype("<u2").tobytes(), score_bytes, *texts])


def decode_records(records: Sequence[bytes]) -> TokenisedRecords:
    """Reads records of equally many texts and scores back, all at once.

    Raises: ValueError when the bytes are no such records.
    """
    if not records:
        return _decoded(np.zeros(0, np.uint8), np.zeros(0, np.int64), 2, 0)
    if len(records[0]) < 2:
        raise ValueError("a record of less than 2 bytes")
    sizes_N = np.array([len(record) for record in records])
    return _decoded(np.frombuffer(b"".join(records), np.uint8), sizes_N, *records[0][:2])


def _decoded(buffer: np.ndarray, sizes_N: np.ndarray, first: int, scores: int) -> TokenisedRecords:
    n, id_bytes = first % _WIDE, 4 if first >= _WIDE else 2
    hashes_end = 2 + HASH_BYTES * n
    lengths_end = hashes_end + 2 * n
    header = lengths_end + 4 * scores
    starts_N = np.cumsum(sizes_N) - sizes_N
    if n == 0 or (sizes_N < header).any() or (
        buffer[starts_N[:, None] + np.arange(2)] != (first, scores)
    ).any():  # fmt: skip
        raise ValueError(f"not records of {n} texts and {scores} scores")
    heads = buffer[starts_N[:, None] + np.arange(header)]
    hashes = np.ascontiguousarray(heads[:, 2:hashes_end]).view("<u8")
    lengths = np.ascontiguousarray(heads[:, hashes_end:lengths_end]).view("<u2").astype(np.int64)
    if (lengths.sum(1) * id_bytes + header != sizes_N).any():
        raise ValueError("lengths do not add up to the size of the record")
    is_id = np.ones(len(buffer), bool)
    is_id[starts_N[:, None] + np.arange(header)] = False
    ends = np.cumsum(lengths.ravel()).reshape(lengths.shape)
    return TokenisedRecords(
        ids_T=buffer[is_id].view(f"<u{id_bytes}"),
        starts_NS=ends - lengths,
        lengths_NS=lengths,
        hashes_NSx2=hashes.reshape(-1, n, 2),
        scores_NS=np.ascontiguousarray(heads[:, lengths_end:]).view("<f4") if scores else None,
    )


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes records to one shard file; the file is complete once closed."""

    def __init__(self, path: Path):
        self._writer = ArrayRecordWriter(str(path), _WRITE_OPTIONS)
        self.records = 0

    def write(self, record: bytes) -> None:
        """Appends a record made by `encode_record`."""
        self._writer.write(record)
        self.records += 1

    def close(self) -> None:
        """Writes the index at the end of the file."""
        self._writer.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class ShardSet:
    """Random access to the records of several shards, numbered on from one to the next.

    Files are opened at the first use in each process, so an instance may be pickled or forked.
    ArrayRecord hashes every chunk of records (64 bits) and compares at each read, so that a damaged
    record is an error and never given out. That a file is the one that was prepared is for
    `verify.verify_shards` to tell.
    """

    def __init__(self, paths: Sequence[Path]):
        """Names the shards, without opening them.

        Args:
          paths: shard files, in order.
        """
        self._paths = [Path(path) for path in paths]
        self._pid = 0
        self._readers: list[Any] = []
        self._ends: list[int] = []

    def __getstate__(self) -> list[Path]:
        return self._paths

    def __setstate__(self, paths: list[Path]) -> None:
        self.__init__(paths)  # type: ignore[misc]

    def _open(self) -> None:
        if self._pid == os.getpid():
            return
        readers = []
        for path in self._paths:
            try:
                reader = ArrayRecordReader(str(path), _READ_OPTIONS)
                # A file without an intact footer opens as one of no records; we write none such.
                if reader.num_records() == 0:
                    raise ValueError("it has no records")
                readers.append(reader)
            except _DAMAGE as error:
                raise _damaged(path, error) from error
        self._readers = readers
        self._ends = list(accumulate(reader.num_records() for reader in readers))
        # Last, so that another thread never sees half of it.
        self._pid = os.getpid()

    def __len__(self) -> int:
        self._open()
        return self._ends[-1] if self._ends else 0

    def read(self, indices: Sequence[int] | np.ndarray) -> TokenisedRecords:
        """Reads records, fastest in batches of hundreds.

        Args:
          indices: 0 ≤ index < len(self), in any order, repeats allowed.
        Returns: the records in the order of `indices`.
        Raises: UserError naming the shard, and the record in it, that cannot be read.
        """
        self._open()
        wanted = [int(i) for i in indices]
        assert all(0 <= i < len(self) for i in wanted), f"index beyond {len(self)} records"
        of_shard: dict[int, list[int]] = {}
        for position, index in enumerate(wanted):
            of_shard.setdefault(bisect.bisect_right(self._ends, index), []).append(position)
        found: list[bytes] = [b""] * len(wanted)
        for shard, positions in of_shard.items():
            first = self._ends[shard - 1] if shard else 0
            for position, record in zip(
                positions, self._read(shard, [wanted[p] - first for p in positions]), strict=True
            ):
                found[position] = record
        try:
            return decode_records(found)
        except ValueError as error:
            shards = ", ".join(str(self._paths[shard]) for shard in sorted(of_shard))
            raise UserError(f"damaged records in {shards}: {error}; prepare again") from error

    def batches(self) -> Iterator[TokenisedRecords]:
        """All records in their order, some thousand at a time; errors as for `read`."""
        for first in range(0, len(self), _BATCH_RECORDS):
            yield self.read(range(first, min(first + _BATCH_RECORDS, len(self))))

    def _read(self, shard: int, rows: list[int]) -> Sequence[bytes]:
        try:
            return self._readers[shard].read(rows)
        except _DAMAGE as error:
            for row in rows:
                try:
                    self._readers[shard].read([row])
                except _DAMAGE as cause:
                    where = f"{self._paths[shard]}: record {row}"
                    raise UserError(
                        f"shard {where} is damaged ({_reason(cause)}); nothing of it was used. "
                        f"Restore the file or prepare the data again; `jina-jax doctor --full` "
                        f"finds every damaged shard"
                    ) from cause
            raise _damaged(self._paths[shard], error) from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is no readable shard ({_reason(error)}); restore it or prepare the data again"
    )
