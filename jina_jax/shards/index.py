"""Where the records of a shard lie: the index at the end of an ArrayRecord file.

The library reads whole files. To read a part of one, its byte range has to be known first. An
ArrayRecord file is a Riegeli file: chunks of records, a chunk that lists them (the footer), and in
the last block a chunk that tells where the footer begins (the postscript):

    chunk | chunk | ... | footer, up to a multiple of 64 KiB | postscript, 64 KiB

A chunk is a head of 40 bytes and its data; wherever a block of 64 KiB begins, 24 bytes of the
block's own stand in between. Hashes are left to the library, which compares them whenever it opens
a file.

Sources: google/array_record, `layout.proto`; google/riegeli, `riegeli_records_file_format.md`.
"""

from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 1 << 16
_BLOCK_HEAD_BYTES, _CHUNK_HEAD_BYTES = 24, 40
_CHUNK_BYTES = 14
"""Most that the footer has of a chunk of records, in files below 32 GiB."""
_GROUP = 16
"""Records of a chunk, as `array_record.ShardWriter` makes them."""
_MAGIC = 0x71930E704FDAE05E
"""In each postscript."""
_VARINT_BYTES = 10
"""Most of a 64-bit number."""


class NotInTail(ValueError):
    """The footer begins before the bytes that were given."""

    def __init__(self, start: int):
        """Args: where it begins."""
        super().__init__(f"the footer begins at byte {start:,}")
        self.start = start


@dataclass(frozen=True)
class Index:
    """The index of one shard, with its bytes for the library to check."""

    size_bytes: int
    """Of the file."""
    records: int
    group: int
    """Records of each chunk but the last."""
    start_C: np.ndarray
    """int64 [chunks + 1]; where each chunk begins in the file, and the footer behind them."""
    tail_start: int
    """Where the footer begins, or a byte before it, from which on all is in `tail`."""
    tail: bytes
    """From there on, without the zeros at the end of the file."""

    @property
    def held_bytes(self) -> int:
        """In memory."""
        return self.start_C.nbytes + len(self.tail)

    def byte_range(self, first: int, last: int) -> tuple[int, int]:
        """[start, end) of the chunks with records [first, last)."""
        assert 0 <= first < last <= self.records
        return int(self.start_C[first // self.group]), int(self.start_C[-(-last // self.group)])


def tail_bytes(records: int, size_bytes: int) -> int:
    """How much of a file's end holds its index, in all likelihood: at most twice as much."""
    footer = _CHUNK_BYTES * -(-records // _GROUP)
    heads = _BLOCK_HEAD_BYTES * (footer // BLOCK_BYTES + 1)
    return min(size_bytes, footer + heads + 2 * BLOCK_BYTES)


def read_index(tail: bytes, size_bytes: int) -> Index:
    """Reads the index of a shard.

    Args:
      tail: the last bytes of the file, or all from the footer on.
      size_bytes: of the file.
    Raises:
      NotInTail: more of the file is needed.
      ValueError: that is the end of no shard, or of a damaged one.
    """
    before = size_bytes - len(tail)
    if before < 0 or size_bytes % BLOCK_BYTES or len(tail) < BLOCK_BYTES:
        raise ValueError("it is no ArrayRecord file")
    found = _numbers(_chunk(tail, before, size_bytes - BLOCK_BYTES).values)
    # Field 1, a number, and field 2, one of 64 bits.
    if len(found) < 4 or found[0] != 8 or found[2] != 16 or found[3] != _MAGIC:
        raise ValueError("its last block is no postscript")
    footer_start = int(found[1])
    if not 0 < footer_start < size_bytes - BLOCK_BYTES:
        raise ValueError(f"its footer begins at byte {footer_start:,} of {size_bytes:,}")
    if footer_start < before:
        raise NotInTail(footer_start)
    footer = _chunk(tail, before, footer_start)
    chunk_C, records, group = _chunks(footer)
    start_C = np.append(chunk_C, footer_start)
    if start_C[0] <= 0 or (np.diff(start_C) <= 0).any():
        raise ValueError("its chunks do not follow each other")
    content = tail[footer_start - before :].rstrip(b"\0")
    return Index(size_bytes, records, group, start_C, footer_start, content)


@dataclass(frozen=True)
class _Chunk:
    size_N: np.ndarray
    """Bytes of each value."""
    values: bytes
    """One after another."""


def _chunk(data: bytes, offset: int, start: int) -> _Chunk:
    """The chunk that begins at a byte of the file, whose bytes from `offset` on are given."""
    head = _without_block_heads(data, offset, start, _CHUNK_HEAD_BYTES)
    data_bytes, kind = int.from_bytes(head[8:16], "little"), head[24:25]
    if kind != b"r" or data_bytes > len(data):
        raise ValueError(f"there is no chunk of records at byte {start:,}")
    content = _without_block_heads(data, offset, start, _CHUNK_HEAD_BYTES + data_bytes)
    content = content[_CHUNK_HEAD_BYTES:]
    if content[:1] != b"\0":
        raise ValueError(f"the chunk at byte {start:,} is compressed")
    sizes_bytes, sizes_start = _number(content, 1)
    sizes = _numbers(content[sizes_start : sizes_start + sizes_bytes])
    values = content[sizes_start + sizes_bytes :]
    if len(sizes) != int.from_bytes(head[25:32], "little") or sizes.sum() != len(values):
        raise ValueError(f"the chunk at byte {start:,} holds other records than it says")
    return _Chunk(sizes, values)


def _without_block_heads(data: bytes, offset: int, start: int, size: int) -> bytes:
    """Bytes of a chunk; fewer at the end of the data."""
    found, missing, at = [], size, start
    while missing > 0 and at - offset < len(data):
        if at % BLOCK_BYTES == 0:
            at += _BLOCK_HEAD_BYTES
        taken = min(missing, BLOCK_BYTES - at % BLOCK_BYTES)
        found.append(data[at - offset : at - offset + taken])
        at, missing = at + taken, missing - taken
    return b"".join(found)


def _chunks(footer: _Chunk) -> tuple[np.ndarray, int, int]:
    """(where the chunks begin, all records, records of a chunk) of a footer's values."""
    if not len(footer.size_N):
        raise ValueError("its footer is empty")
    metadata_bytes = int(footer.size_N[0])
    # A message of version, chunks and records, and what the writer was told, all in one message.
    metadata = _numbers(footer.values[: min(metadata_bytes, 64)])[:8]
    if len(metadata) < 8 or metadata[[0, 2, 4, 6]].tolist() != [10, 8, 16, 24]:
        raise ValueError("its footer does not begin as one of ArrayRecord")
    version, chunks, records = (int(x) for x in metadata[[3, 5, 7]])
    if version != 1:
        raise ValueError(f"it is an ArrayRecord file of version {version}")
    # Of each chunk three fields: where it begins, its bytes, its records.
    found = _numbers(footer.values[metadata_bytes:])
    if len(found) != 6 * chunks or not chunks:
        raise ValueError(f"its footer has {len(found) // 6:,} chunks instead of {chunks:,}")
    found_C6 = found.reshape(-1, 6).astype(np.int64)
    if (found_C6[:, ::2] != (8, 16, 24)).any():
        raise ValueError("its footer is none of ArrayRecord")
    records_C = found_C6[:, 5]
    group = int(records_C[0])
    if (records_C[:-1] != group).any() or not 0 < records_C[-1] <= group:
        raise ValueError("its chunks have different numbers of records")
    return found_C6[:, 1], records, group


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next begins."""
    numbers = _numbers(data[at : at + _VARINT_BYTES])
    if not len(numbers):
        raise ValueError("a number without an end")
    end = next(k for k in range(at, at + _VARINT_BYTES) if data[k] < 0x80)
    return int(numbers[0]), end + 1


def _numbers(data: bytes) -> np.ndarray:
    """uint64, of numbers one after another, each seven bits a byte with the lowest first, and the
    highest bit set in all bytes but its last; what follows the last whole number is left out.
    """
    byte_B = np.frombuffer(data, np.uint8)
    last_N = np.flatnonzero(byte_B < 0x80)
    if not len(last_N):
        return np.zeros(0, np.uint64)
    byte_B = byte_B[: last_N[-1] + 1]
    start_N = np.append(0, last_N[:-1] + 1)
    place_B = np.arange(len(byte_B)) - np.repeat(start_N, np.diff(np.append(start_N, len(byte_B))))
    if place_B.max() >= _VARINT_BYTES:
        raise ValueError("a number of more than 64 bits")
    bits_B = (byte_B & 0x7F).astype(np.uint64) << (7 * place_B).astype(np.uint64)
    return np.asarray(np.add.reduceat(bits_B, start_N))
