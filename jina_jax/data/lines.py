"""Lines of plain, gzip and Zstandard files, in bounded memory, past what is damaged."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

_CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 24
"""A longer line is no record but a damaged or foreign file; it is reported and passed over."""

_BOM = b"\xef\xbb\xbf"


class Damage(NamedTuple):
    """A stretch of a file that gives no line."""

    reason: str
    """`truncated`, `corrupt_compression` or `too_long`."""
    detail: str


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd() -> Any:
    # Public dumps are often packed with --long=31, which is refused unless asked for.
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_DECOMPRESSORS = {".gz": _gzip, ".zst": _zstd}


def compression_suffix(path: Path) -> str:
    """`.gz`, `.zst` or, for a plain file, an empty string."""
    return path.suffix if path.suffix in _DECOMPRESSORS else ""


def _decompress(path: Path) -> Iterator[bytes | Damage]:
    """Bytes of every member of a file, then what was wrong with the last one, if anything."""
    new = _DECOMPRESSORS.get(path.suffix)
    with path.open("rb") as file:
        member = None
        while chunk := file.read(_CHUNK_BYTES):
            if new is None:
                yield chunk
                continue
            while chunk:
                if member is None:
                    # gzip pads with zeros between members and after the last one.
                    chunk = chunk.lstrip(b"\0") if path.suffix == ".gz" else chunk
                    if not chunk:
                        break
                    member = new()
                try:
                    data = member.decompress(chunk)
                except (zlib.error, zstandard.ZstdError) as error:
                    yield Damage("corrupt_compression", f"the rest cannot be unpacked: {error}")
                    return
                if data:
                    yield data
                chunk = b""
                if member.eof:
                    chunk, member = member.unused_data, None
        if member is not None:
            yield Damage("truncated", "the file ends in the middle of a compressed member")


def read_lines(path: Path) -> Iterator[tuple[int, bytes | Damage]]:
    """Splits a file at newlines.

    Args:
      path: a file; `.gz` and `.zst` are unpacked, member after member.
    Returns: (1-based line number, the line without its newline), or for a line that cannot be
      given (number, Damage). A byte-order mark is taken off the first line. After `truncated`
      and `corrupt_compression` the file is over; the part of a line before them is given up.
    Raises: OSError when the file cannot be read.
    """
    row, parts, held, skipping = 1, [], 0, False
    for chunk in _decompress(path):
        if isinstance(chunk, Damage):
            yield row, chunk
            return
        first, *others = chunk.split(b"\n")
        parts.append(first)
        held += len(first)
        for other in others:
            if not skipping:
                yield row, _joined(parts, row)
            row, parts, held, skipping = row + 1, [other], len(other), False
        if held > MAX_LINE_BYTES and not skipping:
            yield row, Damage("too_long", f"a line of more than {MAX_LINE_BYTES:,} bytes")
            skipping = True
        if skipping:
            parts = []
    if held and not skipping:
        yield row, _joined(parts, row)


def _joined(parts: list[bytes], row: int) -> bytes:
    line = b"".join(parts)
    return line.removeprefix(_BOM) if row == 1 else line
