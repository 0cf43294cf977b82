"""Files that appear whole or not at all, and that are on the disk before anything is built on them.

A file's bytes are synced before it gets its name, and the folder after, so that whatever was
written before a marker is found wherever the marker is, even when the machine lost its power.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path, parts: Path | None = None) -> Iterator[Path]:
    """Gives a name to write to and, when the block ends well, moves that file to `path`.

    Two processes that write the same file at once do not meet: the last to end wins. Where the
    block writes nothing, an older file at `path` goes too.

    Args:
      path: of the file.
      parts: folder of the same file system to write in, None for the file's own: a kill leaves
        there what was written.
    """
    part = (parts or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
    try:
        yield part
        if part.exists():
            sync(part)
            part.replace(path)
        else:
            path.unlink(missing_ok=True)
        sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """`atomic_file` for a folder: what was at `path` is replaced."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    part.mkdir(parents=True)
    try:
        yield part
        for inner in (*part.rglob("*"), part):
            sync(inner)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_atomically(path: Path, content: bytes, parts: Path | None = None) -> None:
    """Writes a small file that survives whatever happens next, or leaves the old one; `parts` as
    in `atomic_file`.
    """
    with atomic_file(path, parts) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of a JSON value, for people to read."""
    write_atomically(path, f"{json.dumps(value, indent=1, ensure_ascii=False)}\n".encode())


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write_atomically` of an object a line."""
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def join_files(parts: Iterable[Path], path: Path) -> None:
    """Writes the files one after another into one."""
    with atomic_file(path) as whole, whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
