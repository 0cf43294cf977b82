"""Lines of plain, gzip and Zstandard files, in bounded memory, past what is damaged."""

import zlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import IO, NamedTuple

import zstandard

from jina_jax.system.files import open_file

_CHUNK_BYTES = 1 << 16
_MOST_UNPACKED_BYTES = 1 << 20
"""Handed on at once, however well the file is packed."""
MAX_LINE_BYTES = 1 << 24
"""A longer line is no record but a damaged or foreign file; it is reported and passed over."""

_BOM = b"\xef\xbb\xbf"


class Damage(NamedTuple):
    """A stretch of a file that gives no line."""

    reason: str
    """`truncated`, `corrupt_compression` or `too_long`."""
    detail: str


class _Gzip:
    """A member of a gzip file."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    def unpack(self, packed: bytes) -> Iterator[bytes]:
        """What the bytes unpack to, in parts."""
        while packed:
            yield self._member.decompress(packed, _MOST_UNPACKED_BYTES)
            packed = self._member.unconsumed_tail

    @property
    def rest(self) -> bytes | None:
        """What follows the member once it has ended, else None."""
        return self._member.unused_data if self._member.eof else None


class _Zstd:
    """A frame of a Zstandard file."""

    _PACKED_BYTES = 1 << 10
    """Unpacked at once: a block of 4 bytes can hold 128 KiB, so these are 32 MiB at most."""

    def __init__(self) -> None:
        # Public dumps are often packed with --long=31, which is refused unless asked for.
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        self.rest: bytes | None = None

    def unpack(self, packed: bytes) -> Iterator[bytes]:
        """As of `_Gzip`."""
        for start in range(0, len(packed), self._PACKED_BYTES):
            end = start + self._PACKED_BYTES
            data = self._frame.decompress(packed[start:end])
            for first in range(0, len(data), _MOST_UNPACKED_BYTES):
                yield data[first : first + _MOST_UNPACKED_BYTES]
            if self._frame.eof:
                self.rest = self._frame.unused_data + packed[end:]
                return


_DECOMPRESSORS: dict[str, type[_Gzip] | type[_Zstd]] = {".gz": _Gzip, ".zst": _Zstd}


def compression_suffix(path: str) -> str:
    """`.gz`, `.zst` or, for a plain file, an empty string."""
    suffix = PurePath(path).suffix
    return suffix if suffix in _DECOMPRESSORS else ""


def _span(file: IO[bytes], start: int, end: int | None) -> Iterator[bytes]:
    """Bytes of the lines that begin at start ≤ offset < end."""
    position = max(start - 1, 0)
    file.seek(position)
    seeking = start > 0
    while (end is None or position < end) and (chunk := file.read(_CHUNK_BYTES)):
        if seeking:
            first = chunk.find(b"\n") + 1
            if not first:
                position += len(chunk)
                continue
            chunk, position, seeking = chunk[first:], position + first, False
            if end is not None and position >= end:
                return
        if end is not None and position + len(chunk) >= end:
            # The last line ends with the first newline that is not before end - 1.
            while not (stop := chunk.find(b"\n", max(end - 1 - position, 0)) + 1):
                yield chunk
                position += len(chunk)
                if not (chunk := file.read(_CHUNK_BYTES)):
                    return
            yield chunk[:stop]
            return
        yield chunk
        position += len(chunk)


def _decompress(path: str, start: int, end: int | None) -> Iterator[bytes | Damage]:
    """Bytes of every member of a file, then what was wrong with the last one, if anything."""
    suffix = compression_suffix(path)
    with open_file(path) as file:
        if not suffix:
            yield from _span(file, start, end)
            return
        new, member = _DECOMPRESSORS[suffix], None
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                if member is None:
                    # gzip pads with zeros between members and after the last one.
                    chunk = chunk.lstrip(b"\0") if suffix == ".gz" else chunk
                    if not chunk:
                        break
                    member = new()
                try:
                    yield from member.unpack(chunk)
                except (zlib.error, zstandard.ZstdError) as error:
                    yield Damage("corrupt_compression", f"the rest cannot be unpacked: {error}")
                    return
                chunk = b""
                if member.rest is not None:
                    chunk, member = member.rest, None
        if member is not None:
            yield Damage("truncated", "the file ends in the middle of a compressed member")


def read_lines(
    path: str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes | Damage]]:
    """Splits a file at newlines.

    Args:
      path: a file; `.gz` and `.zst` are unpacked, member after member.
      start: of a plain file, only the lines that begin at this byte or later.
      end: of a plain file, only the lines that begin before this byte; None reads all.
    Returns: (line number, from 1 for the first of these lines, the line without its newline), or
      for a line that cannot be given (number, Damage). A byte-order mark is taken off the first
      line. After `truncated` and `corrupt_compression` the file is over; the part of a line before
      them is given up.
    Raises: OSError when the file cannot be read.
    """
    row, parts, held, skipping = 1, [], 0, False
    bom = _BOM if start == 0 else b""
    for chunk in _decompress(path, start, end):
        if isinstance(chunk, Damage):
            yield row, chunk
            return
        first, *others = chunk.split(b"\n")
        parts.append(first)
        held += len(first)
        for other in others:
            if not skipping:
                yield row, _joined(parts, bom if row == 1 else b"")
            row, parts, held, skipping = row + 1, [other], len(other), False
        if held > MAX_LINE_BYTES and not skipping:
            yield row, Damage("too_long", f"a line of more than {MAX_LINE_BYTES:,} bytes")
            skipping = True
        if skipping:
            parts = []
    if held and not skipping:
        yield row, _joined(parts, bom if row == 1 else b"")


def _joined(parts: list[bytes], bom: bytes) -> bytes:
    return b"".join(parts).removeprefix(bom)
