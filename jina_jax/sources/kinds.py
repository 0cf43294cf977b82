"""Which format a file has: by its ending, or as it is said; and what its content looks like."""

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from jina_jax.config.source import FILE_KINDS, kind_of_ending
from jina_jax.errors import UserError
from jina_jax.sources.lines import BOM, compression_suffix, unpacked
from jina_jax.system.files import file_state, matched, open_file, within

_PEEKED_BYTES = 1 << 16
_SMALL_BYTES, _MOST_TIMES = 1 << 28, 100
"""A packed table or array may unpack to so many bytes, and beyond to so many times its size."""


def file_kind(path: str, said: str) -> str:
    """The format of a file.

    Args:
      path: its ending counts, before .gz or .zst.
      said: `kind` of what names it; `auto` leaves it to the ending.
    Returns: `json` for an array of records alone; of a record a line it is `jsonl`.
    Raises: UserError for an ending that is not known, with what the content looks like, and for a
      file that cannot be read.
    """
    kind = kind_of_ending(path) if said == "auto" else said
    try:
        if kind == "json" and not _is_array(_beginning(path)):
            return "jsonl"
        if not kind:
            raise UserError(
                f"{path}: its ending says nothing of its format; {looks_like(path)}. Set `kind` to "
                f"one of {', '.join(FILE_KINDS)}"
            )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return kind


def looks_like(path: str) -> str:
    """A few words on what the beginning of a file could be.

    Raises: OSError when it cannot be read.
    """
    return f"its content looks like {_guess(_beginning(path))}"


def _beginning(path: str) -> bytes:
    chunks: list[bytes] = []
    for chunk in unpacked(path):
        chunks.append(chunk)
        if sum(map(len, chunks)) >= _PEEKED_BYTES:
            break
    return b"".join(chunks)


def _guess(start: bytes) -> str:
    if start.startswith(b"PAR1"):
        return "Parquet (kind parquet)"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "Arrow (kind arrow)"
    if b"\0" in start:
        return "no text"
    text = start.decode(errors="replace").removeprefix("\ufeff").strip()
    first = text.partition("\n")[0]
    if _is_array(start):
        return "a JSON array (kind json)"
    if first.startswith(("{", "[")):
        is_record = first.rstrip().endswith(("}", "]"))
        return "JSON, a record a line (kind jsonl)" if is_record else "JSON"
    if "\t" in first:
        return "a table parted by tabs (kind tsv)"
    return "a table parted by commas (kind csv)" if "," in first else "lines of text (kind text)"


def _is_array(start: bytes) -> bool:
    """Whether a file of JSON begins with an array of records, rather than with a line of them."""
    text = start.removeprefix(BOM).lstrip()
    return text.startswith(b"[") and text[1:].lstrip().startswith(b"{")


def open_unpacked(path: str) -> IO[bytes]:
    """Opens a file for reading, with seek; what is packed is unpacked to a temporary file.

    Raises: OSError when it cannot be read, UserError where it is packed and damaged, or would fill
      a disk.
    """
    if not compression_suffix(path):
        return open_file(path)
    most = _SMALL_BYTES + _MOST_TIMES * file_state(path).size_bytes
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        for chunk in unpacked(path):
            if file.tell() > most:
                raise UserError(
                    f"{path} unpacks to more than {most:,} bytes, {_MOST_TIMES} times its size; "
                    f"unpack it where you trust it"
                )
            file.write(chunk)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def data_files(paths: Iterable[str], owner: str, split: str = "") -> Iterator[str]:
    """The files of each path, glob or folder, in that order and sorted within a glob or folder.

    Args:
      paths: of a folder all files with an ending of data are taken; of one that `datasets` saved
        (`save_to_disk`), its tables.
      owner: named in errors.
      split: of a saved folder that has several.
    Raises: UserError naming the path that matches nothing.
    """
    return matched(paths, owner, partial(_in_folder, split=split))


def _in_folder(folder: Path, split: str) -> list[str]:
    if (folder / "dataset_dict.json").is_file():
        folder /= split
    is_saved = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    kinds = ("arrow",) if is_saved else FILE_KINDS
    return [n for n in within(folder, sorted(folder.rglob("*"))) if kind_of_ending(n) in kinds]
