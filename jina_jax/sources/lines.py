"""Lines of plain, gzip and Zstandard files, in bounded memory."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import IO, Any, NamedTuple

import zstandard

from jina_jax.errors import UserError
from jina_jax.system.files import open_file

_CHUNK_BYTES = 1 << 16
_MOST_UNPACKED_BYTES = 1 << 20
"""Handed on at once, however well the file is packed."""
MAX_LINE_BYTES = 1 << 24
"""A longer line is no record but a damaged or foreign file; it is reported and passed over."""

BOM = b"\xef\xbb\xbf"


class Damage(NamedTuple):
    """A stretch of a file that gives no line."""

    reason: str
    detail: str


class _CannotUnpackError(UserError):
    """Of a packed file; says what is wrong with the rest of it."""

    def __init__(self, path: str, what: str, where: str = ""):
        super().__init__(
            f"{path} is damaged{where}: {what}; fetch or pack the file again, or take it out of "
            f"the paths"
        )
        self.what = what


class _Packing(NamedTuple):
    """How a compressed file is unpacked, member by member."""

    member: Callable[[], Any]
    """Makes what unpacks a member."""
    bytes_at_once: int
    """Packed, of which each can become 1 KiB of gzip and 32 KiB of Zstandard."""
    padding: bytes
    """What may stand between members and after the last one."""


_PACKINGS = {
    ".gz": _Packing(lambda: zlib.decompressobj(wbits=31), 1 << 14, b"\0"),
    # Public dumps are often packed with --long=31, which is refused unless asked for.
    ".zst": _Packing(
        lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), 1 << 10, b""
    ),
}


def compression_suffix(path: str) -> str:
    """`.gz`, `.zst` or, for a plain file, an empty string."""
    suffix = PurePath(path).suffix
    return suffix if suffix in _PACKINGS else ""


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


def _members(path: str, file: IO[bytes], packing: _Packing) -> Iterator[bytes]:
    """Bytes of every member of a file."""
    member = None
    while packed := file.read(packing.bytes_at_once):
        while packed:
            if member is None:
                packed = packed.lstrip(packing.padding)
                if not packed:
                    break
                member = packing.member()
            try:
                data = member.decompress(packed)
            except (zlib.error, zstandard.ZstdError) as error:
                what = f"the rest cannot be unpacked: {error}"
                raise _CannotUnpackError(path, what) from error
            for first in range(0, len(data), _MOST_UNPACKED_BYTES):
                yield data[first : first + _MOST_UNPACKED_BYTES]
            packed, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None:
        raise _CannotUnpackError(path, "it ends in the middle of what is compressed")


def unpacked(path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Bytes of a file, a part at a time, in bounded memory.

    Args:
      path: a file; `.gz` and `.zst` are unpacked, member after member.
      start: of a plain file, the byte where the first line to be given begins, or one before it.
      end: of a plain file, the byte before which its last line begins.
    Raises: UserError where a packed file is cut off or damaged; OSError.
    """
    packing = _PACKINGS.get(compression_suffix(path))
    with open_file(path) as file:
        yield from _members(path, file, packing) if packing else _span(file, start, end)


def read_lines(
    path: str, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, bytes | Damage]]:
    """Splits a file at newlines.

    Args:
      path: a file; `.gz` and `.zst` are unpacked, member after member.
      start: of a plain file, only the lines that begin at this byte or later.
      end: of a plain file, only the lines that begin before this byte; None reads all.
    Returns: (line number, from 1 for the first of these lines, the line without its newline), or
      for one that is too long (number, Damage). A byte-order mark is taken off the first line.
    Raises: UserError, after the whole lines before it, where a packed file is cut off or damaged;
      OSError when the file cannot be read.
    """
    row, parts, held, skipping = 1, [], 0, False
    bom = BOM if start == 0 else b""
    chunks = unpacked(path, start, end)
    while True:
        try:
            chunk = next(chunks, None)
        except _CannotUnpackError as error:
            raise _CannotUnpackError(path, error.what, f" after line {row - 1:,}") from error
        if chunk is None:
            break
        first, *others = chunk.split(b"\n")
        parts.append(first)
        held += len(first)
        for other in others:
            if not skipping:
                yield row, b"".join(parts).removeprefix(bom)
            row, parts, held, skipping, bom = row + 1, [other], len(other), False, b""
        if held > MAX_LINE_BYTES and not skipping:
            yield row, Damage("too_long", f"a line of more than {MAX_LINE_BYTES:,} bytes")
            skipping = True
        if skipping:
            parts = []
    if held and not skipping:
        yield row, b"".join(parts).removeprefix(bom)
